"""A finished run judged: its volume against the truth, its patterns against the measured ones, and the report of both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core import figures
from mepdiff_core.baselines import split_patterns
from mepdiff_core.forward import ForwardModel, ModelConfig
from mepdiff_core.likelihood import Poisson
from mepdiff_core.metrics import failure_class, poisson_deviance, r_factor, volume_metrics
from mepdiff_core.report import figure_block, metrics_table, save_figure, write_page
from mepdiff_core.scan import Scan

INVERSE_CRIME_NOTE = (
    "Truth and patterns come from abTEM at 0.1 Å; the model that reconstructs works at the detector's pixel in a smaller "
    "window, so this is no inverse crime."
)


def judge(
    scan: Scan,
    volume: npt.NDArray[np.floating],
    slice_thickness_A: float,
    heldout_fraction: float,
    seed: int,
    device: torch.device,
) -> dict[str, Any]:
    """Every metric that this scan allows.

    Args:
        volume: (slices, y, x) on the scan's object field, rad.
        heldout_fraction, seed: those of the run: they say which patterns it had never seen.

    Returns:
        ``r_factor`` and ``deviance`` over the fitted patterns, ``r_heldout`` and ``deviance_heldout`` over the others (None
        without any); with a truth of the same slices also the volume metrics and ``failure_class``.
    """
    model = ForwardModel(scan, len(volume), slice_thickness_A, ModelConfig(), device=device)
    fit, held = split_patterns(scan.n_patterns, heldout_fraction, seed)
    tensor = torch.as_tensor(np.array(volume))
    electrons, background = scan.electrons_per_pattern, Poisson().background
    result: dict[str, Any] = {}
    for r_name, deviance_name, indices in (("r_factor", "deviance", fit), ("r_heldout", "deviance_heldout", held)):
        result[r_name] = result[deviance_name] = None
        if len(indices):
            predicted, measured = model.predict(tensor, indices).cpu().numpy(), scan.patterns()[indices].astype(np.float64)
            result[r_name] = r_factor(predicted * electrons, measured)
            result[deviance_name] = poisson_deviance(predicted * electrons, measured, background * electrons)
    if has_truth(scan, volume, slice_thickness_A):
        assert scan.truth is not None
        result |= volume_metrics(volume, scan.truth.phase)
        result["failure_class"] = failure_class(volume, scan.truth.phase)
    return result


def has_truth(scan: Scan, volume: npt.NDArray[np.floating], slice_thickness_A: float) -> bool:
    """Whether the scan knows the true volume on the grid of this one."""
    truth = scan.truth
    return truth is not None and truth.phase.shape == volume.shape and abs(truth.voxel_size_A[0] - slice_thickness_A) < 1e-6


def write_report(
    folder: Path,
    scan: Scan,
    volumes: Mapping[str, npt.NDArray[np.floating]],
    slice_thickness_A: float,
    rows: Sequence[Mapping[str, Any]],
    histories: Mapping[str, Sequence[Mapping[str, Any]]],
    record: Mapping[str, Any],
    title: str,
    device: torch.device,
) -> None:
    """``report.html`` and its PNGs: volumes, patterns, losses and depth profiles of one or more methods on one scan.

    Args:
        volumes: (slices, y, x) by method; rows: metrics of each, with "method"; histories: each one's ``history.csv``.
    """
    some = next(iter(volumes.values()))
    truth = scan.truth.phase if scan.truth is not None and has_truth(scan, some, slice_thickness_A) else None
    voxel = (slice_thickness_A, scan.pixel_size_A, scan.pixel_size_A)
    sections: list[tuple[str, str]] = [("Metrics", metrics_table(rows, ["method"]) + _explain(truth is not None, rows))]

    png = save_figure(figures.slices_figure(volumes, truth, voxel), folder / "slices.png")
    sections.append(
        (
            "Slices",
            figure_block(
                png, "Phase of slices from the entrance face (left) down, the middle of the field, one grey scale."
            ),
        )
    )
    if truth is not None:
        png = save_figure(figures.depth_figure(volumes, truth, voxel), folder / "depth.png")
        sections.append(
            ("Depth", figure_block(png, "Phase along the beam through atom columns: what a reconstruction finds hardest."))
        )

    n = scan.n_patterns
    indices = np.unique(np.array([0, n // 3 + scan.shape[1] // 2, 2 * n // 3, n - 1]))
    predicted = {}
    for name, volume in volumes.items():
        model = ForwardModel(scan, len(volume), slice_thickness_A, ModelConfig(), device=device)
        predicted[name] = (
            model.predict(torch.as_tensor(np.array(volume)), indices).cpu().numpy() * scan.electrons_per_pattern
        )
    labels = [f"position {i // scan.shape[1]}, {i % scan.shape[1]}" for i in indices]
    figure = figures.patterns_figure(scan.patterns()[indices].astype(float), predicted, scan.k_step_invA, labels)
    png = save_figure(figure, folder / "patterns.png")
    sections.append(
        (
            "Diffraction patterns",
            figure_block(png, "Measured and predicted patterns, square root of the electrons in a pixel."),
        )
    )
    if any(len(rows_) for rows_ in histories.values()):
        png = save_figure(figures.losses_figure(histories), folder / "losses.png")
        sections.append(
            ("Convergence", figure_block(png, "Loss of the fitted patterns and, where some were held out, of those."))
        )
    simulated = scan.info.get("simulation")
    lead = f"{scan.info.get('formula', 'a scan')}, {scan.shape[0]} × {scan.shape[1]} patterns of {scan.n_pixels} px."
    if simulated:
        lead += f" {INVERSE_CRIME_NOTE}"
    write_page(folder / "report.html", title, lead, sections, record)


def _explain(truth: bool, rows: Sequence[Mapping[str, Any]]) -> str:
    text = (
        "R is the sum of |√I − √D| over the sum of √D; counting noise alone puts a floor under it. The deviance is"
        " Poisson's, a pixel: unlike R it is lowest for the true patterns, also where most pixels hold no electron."
    )
    if any(row.get("r_heldout") is not None for row in rows):
        text += " Held-out patterns were never fitted: a volume that only follows the noise shows there."
    if truth:
        text += (
            " Volumes are judged over the middle 64 × 64 px after a constant phase is removed. An empty volume scores about"
            " 0.4 in SSIM where most of the truth is background; 'atoms' looks only where atoms are; depth correlation is"
            " 0 for a volume that is even along the beam."
        )
    return f"<p>{text}</p>"
