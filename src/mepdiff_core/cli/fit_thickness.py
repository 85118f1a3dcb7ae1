"""mepdiff fit-thickness"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import ProgressBar, add_device, add_json, add_settings, emit, read_settings

EPILOG = """\
Each thickness is fitted to most of the patterns and judged by the others, which it has not seen. By default all depths
have one phase: columns along the beam, as in a crystal on a zone axis. With --tilt their lean is found too, with --source
the size of the electrons' source, as its image on the specimen.
Every setting: mepdiff info --settings fit-thickness

examples:
  mepdiff fit-thickness scan.h5 --from 5 --to 40
  mepdiff fit-thickness scan.h5 --from 20 --to 30 --set candidates=11 --tilt --out thickness.png
  mepdiff fit-thickness scan.h5 --from 25 --to 25 --set candidates=1 --source 0 0.2 0.4 0.6 0.8
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "fit-thickness",
        help="find thickness, number of slices, tilt and source size by patterns held out",
        description="Find how thick a specimen is, and how it leans, by how well it explains patterns that are not fitted.",
        epilog=EPILOG,
    )
    parser.add_argument("scan", metavar="SCAN.h5", help="the scan file")
    parser.add_argument("--from", dest="lowest", type=float, metavar="Å", help="thinnest to try (default 5)")
    parser.add_argument("--to", dest="highest", type=float, metavar="Å", help="thickest to try (default 40)")
    parser.add_argument("--tilt", action="store_true", help="find the tilt too")
    parser.add_argument(
        "--source", type=float, nargs="+", metavar="Å", help="sizes of the source to try with each thickness (FWHM)"
    )
    parser.add_argument("--out", metavar="FILE.png", help="draw the misfit over the thickness")
    parser.add_argument("--probe", metavar="PROBE.h5", help="probe of 'mepdiff fit-probe' instead of the scan's own")
    add_device(parser)
    add_settings(parser, "fit's settings")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from mepdiff_core.config import check, from_dict
    from mepdiff_core.figures import thickness_figure
    from mepdiff_core.files import check_writable
    from mepdiff_core.fit_settings import ThicknessConfig
    from mepdiff_core.page import save_figure
    from mepdiff_core.probe import with_probe
    from mepdiff_core.reconstruction import choose_device
    from mepdiff_core.scan import load_scan
    from mepdiff_core.thickness import fit_thickness

    settings = read_settings(arguments)
    for option, name in (("lowest", "lowest_A"), ("highest", "highest_A")):
        if getattr(arguments, option) is not None:
            settings[name] = getattr(arguments, option)
    if arguments.tilt:
        settings["tilt"] = True
    if arguments.source is not None:
        settings["source_sizes_A"] = arguments.source
    config = from_dict(ThicknessConfig, settings, "fit-thickness")
    if arguments.out is not None:
        check(Path(arguments.out).suffix == ".png", f"--out {arguments.out}: expected the name of a picture, FILE.png")
        check_writable(arguments.out)
    scan = load_scan(arguments.scan)
    if arguments.probe is not None:
        scan = with_probe(scan, arguments.probe)
    step = None
    with ProgressBar("fit-thickness", "pass") as bar:
        for step in fit_thickness(scan, config, choose_device(arguments.device)):
            bar.show(step.step, step.total, step.note)
    assert step is not None
    best = step.best()
    several = bool(config.source_sizes_A)
    lines = ["thickness  slices  held-out misfit  nats above the best"]
    lines[0] += ("  source  modes" if several else "") + ("  tilt y, x (mrad)" if config.tilt else "")
    for each in step.candidates:
        source = f"  {each.source_size_A:4.2f} Å  {each.probe_modes:5d}" if several else ""
        tilt = f"  {each.tilt_mrad[0]:+7.2f}, {each.tilt_mrad[1]:+.2f}" if config.tilt else ""
        mark = "  <-" if each == best else ""
        lines.append(
            f"{each.thickness_A:7.2f} Å {each.slices:7d}  {each.heldout:15.6f}  {each.nats_above:19,.0f}{source}{tilt}{mark}"
        )
    options = [f"--slices {best.slices}", f"--set slice_thickness_A={best.slice_thickness_A:.6g}"]
    if config.tilt:
        options.append(f"--set model.tilt_mrad=[{best.tilt_mrad[0]:.2f},{best.tilt_mrad[1]:.2f}]")
    if several and best.source_size_A:
        options += [f"--set model.source_size_A={best.source_size_A:g}", f"--set model.probe_modes={best.probe_modes}"]
    edge = best.thickness_A in (config.lowest_A, config.highest_A) and config.candidates > 1
    edge = edge or (len(config.source_sizes_A) > 1 and best.source_size_A == max(config.source_sizes_A))
    if edge:
        lines.append("The best lies at the end of what was tried: try farther.")
    lines.append(f"Best: {best.thickness_A:.4g} Å. Use it with: {' '.join(options)}")
    if arguments.out is not None:
        save_figure(thickness_figure(step.candidates), arguments.out)
        lines.append(str(arguments.out))
    result = {
        "thickness_A": best.thickness_A,
        "slices": best.slices,
        "slice_thickness_A": best.slice_thickness_A,
        "tilt_mrad": list(best.tilt_mrad),
        "source_size_A": best.source_size_A,
        "probe_modes": best.probe_modes,
        "at_the_end_of_the_range": edge,
        "candidates": [
            {"thickness_A": c.thickness_A, "slices": c.slices, "heldout": c.heldout, "nats_above": c.nats_above}
            | {"tilt_mrad": list(c.tilt_mrad), "source_size_A": c.source_size_A, "probe_modes": c.probe_modes}
            for c in step.candidates
        ],
    }
    emit(arguments, result, "\n".join(lines))
