"""What the commands do, without their arguments: a run from a scan file to a finished folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, to_dict
from mepdiff_core.reconstruct import METHODS, MethodConfig, choose_device, method_config, volume_grid
from mepdiff_core.runs import RunFolder, read_volume, sha256
from mepdiff_core.scan import Scan, load_scan
from mepdiff_core.states import State

Progress = Callable[[State], None]


@dataclass(frozen=True)
class RunResult:
    """A finished run: where, its metrics, its last state and its history."""

    folder: Path
    metrics: dict[str, Any]
    volume: npt.NDArray[np.floating]
    history: list[dict[str, Any]]


def run_to_folder(
    scan_path: str | Path,
    out: str | Path,
    method: str,
    settings: Mapping[str, Any] | MethodConfig | None = None,
    device: str = "auto",
    start: str | Path | None = None,
    probe: str | Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> RunResult:
    """Reconstruct a scan file into a run folder, with metrics and report.

    Args:
        scan_path: our HDF5 scan.
        out: run folder, new, or with ``resume`` that of an interrupted run of the same scan and method.
        method, settings, device: as for ``reconstruct``.
        start: a TIFF volume to start from.
        probe: a probe file to use instead of the scan's own.
        resume: go on where the run stopped, with the settings it has on record.
        progress: called with every state.

    Raises:
        InputError: bad input, or a diverged reconstruction, whose last good volume is in the folder then.
    """
    from mepdiff_core.compare import judge, write_report
    from mepdiff_core.probe import with_probe

    config = method_config(method, settings)
    scan: Scan = load_scan(scan_path)
    digest = sha256(scan_path)
    checkpoint = None
    if resume:
        folder = RunFolder.reopen(out)
        record = folder.record
        check(
            record["input_sha256"] == digest,
            f"{scan_path} is not the scan that the run in {out} was made from; its sha256 differs",
        )
        check(record["method"] == method, f"the run in {out} is of method {record['method']}, not {method}")
        config = method_config(method, record["config"])
        start, probe = record.get("start"), record.get("probe")
        checkpoint = folder.load_checkpoint()
    if probe is not None:
        scan = with_probe(scan, probe)
    start_volume = None if start is None else read_volume(start)
    chosen = choose_device(device)
    if not resume:
        voxel, origin = volume_grid(scan, config.slice_thickness_A)
        folder = RunFolder.create(
            out,
            {
                "method": method,
                "config": to_dict(config),
                "seed": config.seed,
                "input": Path(scan_path).name,
                "input_sha256": digest,
                "start": None if start is None else str(start),
                "probe": None if probe is None else str(probe),
                "device": str(chosen),
                "voxel_size_A": list(voxel),
                "origin_A": list(origin),
            },
        )
    last: State | None = None
    # a finished run has nothing left to do: only its metrics and report are made again
    finished = folder.record["status"] == "finished"
    states = iter(()) if finished else METHODS[method].run(scan, config, chosen, start_volume, checkpoint)
    for state in folder.follow(states):
        last = state
        if progress is not None:
            progress(state)
    volume = last.volume if last is not None else read_volume(folder.path / "volume.ome.tif")
    history = folder.history
    metrics: dict[str, Any] = {
        "method": method,
        "steps": int(history[-1]["step"]),
        "volume_step": int(history[-1]["volume_step"]),
        "seconds": float(history[-1]["seconds"]),
        **judge(scan, volume, config.slice_thickness_A, config.heldout_fraction, config.seed, chosen),
    }
    folder.write_metrics(metrics)
    title = f"{scan.info.get('crystal', Path(scan_path).stem)} by {method}"
    write_report(
        folder.path,
        scan,
        {method: volume},
        config.slice_thickness_A,
        [metrics],
        {method: history},
        folder.record,
        title,
        chosen,
    )
    return RunResult(folder.path, metrics, volume, history)
