"""mepdiff export-ptyrad"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mepdiff_core.cli.common import add_json, emit

EPILOG = """\
PtyRAD itself writes the file, so that it and what reads its results can go on from there: obj_source, probe_source and
pos_source PtyRAD. The other way round, mepdiff reconstruct --start RESULT.hdf5 starts from a result of PtyRAD.

example:
  mepdiff export-ptyrad run scan.h5 model.hdf5
"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "export-ptyrad",
        help="a run's volume, probe and positions as PtyRAD writes its results",
        description="Write the volume, probe and positions of a run as PtyRAD writes its results (HDF5).",
        epilog=EPILOG,
    )
    parser.add_argument("run_folder", metavar="RUN", help="a run folder")
    parser.add_argument("scan", metavar="SCAN.h5", help="the scan that the run was made from")
    parser.add_argument("out", metavar="OUT.hdf5", help="the file to write")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    import torch

    from mepdiff_core.config import check, read_yaml
    from mepdiff_core.files import check_writable
    from mepdiff_core.ptyrad_adapter import write_result
    from mepdiff_core.report import judging_model
    from mepdiff_core.runs import Run
    from mepdiff_core.volume_files import read_volume

    out, folder = Path(arguments.out), Path(arguments.run_folder)
    check(not out.exists(), f"{out} exists already; give another name")
    check_writable(out)
    check((folder / "run.yaml").exists(), f"{folder} holds no run (no run.yaml)")
    method = str(read_yaml(folder / "run.yaml").get("method"))
    made = Run(arguments.scan, folder, method, device="cpu", resume=True)
    volume = read_volume(folder / "volume.ome.tif")
    model = judging_model(
        made.scan,
        volume,
        made.config.slice_thickness_A,
        torch.device("cpu"),
        getattr(made.config, "model", None),
        made.folder.read_refined(),
    )
    losses = [float(row["loss"]) for row in made.folder.history]
    write_result(model, volume, out, losses)
    result = {"file": str(out), "object": list(volume.shape), "probe": list(model.multislice.probe.shape)}
    emit(arguments, result, f"{out}: object {' x '.join(map(str, volume.shape))}, {len(losses)} passes by {method}")
