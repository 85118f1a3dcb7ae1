"""mepdiff simulate"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import ProgressBar, add_json, emit
from mepdiff_core.errors import InputError

EPILOG = """\
The defaults are those of the MEP-Diffusion paper: 300 kV, 21.4 mrad, 200 Å over focus, Cs 500 nm, 26 x 26 positions
0.512 Å apart, 1e6 electrons per Å², patterns of 128 x 128 pixels to 2.5 1/Å, a specimen of 12.8 Å.

examples:
  mepdiff simulate SrTiO3.cif scan.h5
  mepdiff simulate SrTiO3.cif scan.h5 --axis a --thickness 25.6 --dose 1e5 --seed 3
  mepdiff simulate SrTiO3.cif small.h5 --scan-shape 12 12 --set optics.overfocus_A=150

FILE.yaml of --optics holds any of the settings, for instance:
  optics: {energy_eV: 200e3, semiangle_mrad: 25, overfocus_A: 150, Cs_A: 0, aberrations: {C12: 20, phi12: 45}}
  scan_step_A: 0.4
  k_max_invA: 2.0
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "simulate",
        help="simulate a 4D-STEM scan of a crystal",
        description="Simulate a 4D-STEM scan of a crystal with abTEM's potentials, with its true phase volume in the file.",
        epilog=EPILOG,
    )
    parser.add_argument("crystal", metavar="CRYSTAL.cif", help="an ordered crystal")
    parser.add_argument("out", metavar="OUT.h5", help="the scan file to write")
    parser.add_argument("--axis", choices=("a", "b", "c"), help="lattice vector along the beam (default c)")
    parser.add_argument(
        "--origin",
        nargs="+",
        metavar="Å",
        help="z y x (or z,y,x), z along the beam: the point of the crystal, in Å from its cell's corner, that lies at the "
        "first scan position on the entrance face (default 0 0 0); or 'random': drawn from the seed",
    )
    parser.add_argument("--thickness", type=float, metavar="Å", help="specimen thickness (default 12.8)")
    parser.add_argument("--dose", metavar="E_PER_A2", help="electrons per Å² (default 1e6), or 'none': no noise")
    parser.add_argument("--scan-shape", nargs=2, type=int, metavar=("Y", "X"), help="scan positions (default 26 26)")
    parser.add_argument("--seed", type=int, help="of the counting noise and a random origin (default 0)")
    parser.add_argument("--optics", metavar="FILE.yaml", help="optics, scan and detector settings (see below)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, over the file's")
    add_json(parser)
    parser.set_defaults(run=run)


def overrides(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options as settings."""
    from mepdiff_core.config import parse_assignments

    values = parse_assignments(arguments.set)
    if arguments.axis is not None:
        values["axis"] = arguments.axis
    if arguments.thickness is not None:
        values["thickness_A"] = arguments.thickness
    if arguments.scan_shape is not None:
        values["scan_shape"] = arguments.scan_shape
    if arguments.seed is not None:
        values["seed"] = arguments.seed
    if arguments.dose is not None:
        values["dose_e_per_A2"] = None if arguments.dose == "none" else arguments.dose
    if arguments.origin is not None:
        origin = [part for word in arguments.origin for part in word.split(",") if part]
        if origin == ["random"]:
            values["origin_A"] = None
        elif len(origin) == 3:
            values["origin_A"] = origin
        else:
            raise InputError(f"--origin takes z y x in Å or 'random', got {' '.join(arguments.origin)}")
    return values


def _is_simulated(path: str) -> bool:
    """Whether a file can be written over: a simulation can be made again, a measurement cannot."""
    from mepdiff_core.scan import load_scan

    try:
        return "simulation" in load_scan(path).info
    except InputError:
        return False


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import check
    from mepdiff_core.files import check_writable
    from mepdiff_core.scan import save_scan
    from mepdiff_core.simulate import load_simulation, simulate_steps

    config = load_simulation(arguments.optics, overrides(arguments))
    check_writable(arguments.out)
    if Path(arguments.out).exists():
        check(_is_simulated(arguments.out), f"{arguments.out} exists and is no simulated scan; give another name")
    scan = None
    with ProgressBar("simulating", "pattern") as bar:
        for step in simulate_steps(arguments.crystal, config):
            bar.show(step.step, step.total)
            scan = step.scan
    assert scan is not None
    assert scan.truth is not None
    save_scan(scan, arguments.out)
    result = {
        "file": str(arguments.out),
        "formula": scan.info["formula"],
        "patterns": list(scan.counts.shape),
        "electrons_per_pattern": scan.electrons_per_pattern,
        "thickness_A": config.thickness_A,
        "truth": list(scan.truth.phase.shape),
        "largest_phase_rad": float(scan.truth.phase.max()),
    }
    text = (
        f"{arguments.out}: {scan.info['formula']} along {config.axis}, {config.thickness_A:g} Å thick, "
        f"{scan.shape[0]} x {scan.shape[1]} patterns of {scan.n_pixels} px, "
        + (f"{scan.electrons_per_pattern:,.0f} electrons each" if config.dose_e_per_A2 else "without noise")
        + f"; true phase up to {result['largest_phase_rad']:.2f} rad on {' x '.join(map(str, result['truth']))} voxels"
    )
    emit(arguments, result, text)
