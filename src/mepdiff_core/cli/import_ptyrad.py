"""mepdiff import-ptyrad"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import add_json, emit

EPILOG = """\
The run folder has volume, history, metrics and report as those of mepdiff's own methods have, judged by the same model
and with the probe and positions that PtyRAD has found (refined.h5). All patterns count as fitted: PtyRAD holds none out.

example:
  mepdiff import-ptyrad model_iter0200.hdf5 scan.h5 --out run-ptyrad
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "import-ptyrad",
        help="a result of PtyRAD as a run folder, to be compared with others",
        description="Make a run folder of a result of PtyRAD (HDF5), with metrics and a report.",
        epilog=EPILOG,
    )
    parser.add_argument("result", metavar="RESULT.hdf5", help="PtyRAD's result")
    parser.add_argument("scan", metavar="SCAN.h5", help="the scan that it was made from, prepared as PtyRAD prepared it")
    parser.add_argument("--out", required=True, metavar="RUN", help="run folder to make")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from mepdiff_core.page import text_table
    from mepdiff_core.ptyrad_import import read_run
    from mepdiff_core.ptyrad_result import read_ptyrad_result
    from mepdiff_core.reconstruction import volume_grid
    from mepdiff_core.report import judge, write_report
    from mepdiff_core.runs import RunFolder, sha256
    from mepdiff_core.scan import load_scan

    scan, device = load_scan(arguments.scan), torch.device("cpu")
    thickness = read_ptyrad_result(arguments.result).slice_thickness_A
    states = list(read_run(arguments.result, scan, thickness))
    voxel, origin = volume_grid(scan, thickness)
    record = {
        "method": "ptyrad",
        "config": {"slice_thickness_A": thickness},
        "input": Path(arguments.scan).name,
        "input_sha256": sha256(arguments.scan),
        "result": Path(arguments.result).name,
        "result_sha256": sha256(arguments.result),
        "voxel_size_A": list(voxel),
        "origin_A": list(origin),
    }
    folder = RunFolder.create(arguments.out, record)
    for last in folder.follow(iter(states)):
        volume, refined = last.volume, last.refined
    metrics = {"method": "ptyrad", "steps": states[-1].step, "seconds": 0.0}
    metrics |= judge(scan, volume, thickness, 0.0, 0, device, None, refined)
    folder.write_metrics(metrics)
    title = f"{Path(arguments.result).stem} by PtyRAD"
    write_report(
        folder.path, scan, volume, thickness, metrics, folder.history, folder.record, title, device, None, None, refined
    )
    emit(
        arguments,
        {"folder": str(folder.path), **metrics},
        f"{text_table([metrics], ['method'])}\n{folder.path}/report.html",
    )
