"""The crystal solver over structures and axes: how near it comes, what it costs, where it fails.

python benchmarks/science/crystal.py --structures DIR --out DIR [--axes a,b,c] [--composition] [--dose 1e6] [--baseline]

Each scan is simulated (abTEM's potentials, random origin, the paper's optics) and solved from nothing but the scan and its
thickness, or with the composition besides. Rows go to results.csv as they come; a second call goes on. --baseline has
adam-best (PtyRAD as an expert runs it, fast engine) reconstruct every scan of the table besides. Seconds are the clock's;
those of the processor (all threads together) do not depend on what else runs.
"""

from __future__ import annotations

import argparse
import csv
import io
import time
from pathlib import Path

import numpy as np

import mepdiff_core as mep
from mepdiff_core.atoms import run_crystal
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_text
from mepdiff_core.metrics import failure_class, volume_metrics
from mepdiff_core.reconstruction import method_config, reconstruct
from mepdiff_core.report import judge
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import from_crystal, lattice_error, match

COLUMNS = (
    "crystal",
    "axis",
    "ssim_2d",
    "nrmse",
    "depth_correlation",
    "r_factor",
    "r_heldout",
    "deviance_own_heldout",
    "seconds",
    "cpu_seconds",
    "lattice_error",
    "atoms",
    "atoms_right",
    "species_right",
    "failure_class",
    "baseline_ssim_2d",
    "baseline_deviance_heldout",
    "verdict",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--axes", default="a,b,c")
    parser.add_argument("--composition", action="store_true", help="tell the solver the elements")
    parser.add_argument("--baseline", action="store_true", help="run adam-best too")
    parser.add_argument("--dose", type=float, default=1e6)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--sampling", type=float, default=0.1, help="pixel of the simulation, Å")
    parser.add_argument("--slice", type=float, default=1.6, help="slices of the simulation, Å")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    table = arguments.out / "results.csv"
    rows = list(csv.DictReader(table.open())) if table.exists() else []
    done = {(row["crystal"], row["axis"]) for row in rows}
    for axis in arguments.axes.split(","):
        for path in sorted(arguments.structures.glob("*.cif")):
            if (path.stem, axis) in done:
                continue
            try:
                row = solve(path, axis, arguments)
            except InputError as error:
                row = {"crystal": path.stem, "axis": axis, "verdict": str(error)}
            rows.append(row)
            print(
                {key: row.get(key) for key in ("crystal", "axis", "ssim_2d", "seconds", "atoms_right", "verdict")},
                flush=True,
            )
            write(table, rows)
    for row in rows if arguments.baseline else []:
        if not row.get("baseline_ssim_2d"):
            path = arguments.structures / f"{row['crystal']}.cif"
            row |= baseline(simulated(read_crystal(path), path.stem, str(row["axis"]), arguments))
            print({key: row[key] for key in ("crystal", "axis", "ssim_2d", "baseline_ssim_2d")}, flush=True)
            write(table, rows)
    summary(rows)


def write(table: Path, rows: list[dict[str, object]]) -> None:
    """All rows, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_text(table, text.getvalue())


def simulated(crystal: Crystal, name: str, axis: str, arguments: argparse.Namespace) -> Scan:
    """The scan of a crystal along an axis, kept in a file."""
    file = arguments.out / f"{name}_{axis}.h5"
    if not file.exists():
        settings = SimulationConfig(
            axis=axis,  # type: ignore[arg-type]
            origin_A=None,
            seed=arguments.seed,
            dose_e_per_A2=arguments.dose,
            sampling_A=arguments.sampling,
            slice_thickness_A=arguments.slice,
        )
        save_scan(simulate_scan(crystal, settings), file)
    return load_scan(file)


def baseline(scan: Scan) -> dict[str, object]:
    """The expert's PtyRAD run."""
    config = method_config("adam-best", {"engine": "fast"})
    *_, state = reconstruct(scan, "adam-best", config=config, device="cpu")
    metrics = judge(scan, state.volume, 1.6, 0.05, 0, "cpu")  # type: ignore[arg-type]
    return {f"baseline_{key}": f"{metrics[key]:.4f}" for key in ("ssim_2d", "deviance_heldout")}


def solve(path: Path, axis: str, arguments: argparse.Namespace) -> dict[str, object]:
    """One crystal along one axis."""
    crystal = read_crystal(path)
    scan = simulated(crystal, path.stem, axis, arguments)
    assert scan.truth is not None
    assert scan.thickness_A is not None
    config = CrystalConfig(composition=crystal.formula if arguments.composition else None)
    start, start_cpu = time.perf_counter(), time.process_time()
    *_, state = run_crystal(scan, config)
    row: dict[str, object] = {"crystal": path.stem, "axis": axis, "verdict": state.verdict}
    row["seconds"] = f"{time.perf_counter() - start:.0f}"
    row["cpu_seconds"] = f"{time.process_time() - start_cpu:.0f}"
    metrics = judge(scan, state.volume, config.slice_thickness_A, config.heldout_fraction, config.seed, "cpu")  # type: ignore[arg-type]
    if scan.truth.phase.shape == state.volume.shape:
        metrics |= volume_metrics(state.volume, scan.truth.phase)
        row["failure_class"] = failure_class(state.volume, scan.truth.phase)
    if state.heldout is not None:
        metrics["deviance_own_heldout"] = 2 * state.heldout / scan.n_pixels**2
    row |= {key: f"{metrics[key]:.4f}" for key in COLUMNS if isinstance(metrics.get(key), float)}
    if state.cell is not None:
        origin = tuple(scan.info["simulation"]["origin_A"])
        true = from_crystal(crystal, axis, origin, scan.thickness_A)  # type: ignore[arg-type]
        middle = scan.positions_A.mean(0)
        box = (scan.thickness_A, 12.8, 12.8)
        agreement = match(state.cell, true, box, (0.0, middle[0] - 6.4, middle[1] - 6.4), depth_cutoff_A=1.6)
        row["lattice_error"] = f"{lattice_error(state.cell, true):.4f}"
        row["atoms"] = agreement.n_true
        row["atoms_right"] = f"{agreement.matched:.3f}"
        row["species_right"] = f"{agreement.right_species:.3f}"
    return row


def summary(rows: list[dict[str, object]]) -> None:
    """How many reach 0.9, and how long it took."""
    scores = np.array([float(str(row["ssim_2d"])) for row in rows if row.get("ssim_2d")])
    seconds = np.array([float(str(row["seconds"])) for row in rows if row.get("seconds")])
    if len(scores):
        print(
            f"mepdiff {mep.__version__}: {len(scores)} of {len(rows)} solved; SSIM mean {scores.mean():.3f}, median"
            f" {np.median(scores):.3f}, {100 * np.mean(scores >= 0.9):.0f} % at 0.9 or more; seconds median"
            f" {np.median(seconds):.0f}, most {seconds.max():.0f}"
        )


if __name__ == "__main__":
    main()
