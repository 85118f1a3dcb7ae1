"""A finished run judged: its volume against the truth, its patterns against the measured ones, and the report of both."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core import figures
from mepdiff_core.batches import split_patterns
from mepdiff_core.cell_report import Answer, cell_section
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.metrics import MIDDLE_PX, failure_class, poisson_deviance, r_factor, volume_metrics
from mepdiff_core.page import figure_block, metrics_table, save_figure, write_page
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig
from mepdiff_core.states import Refined

JUDGED_AT_ONCE = 1 << 25
"""Pixels of patterns that are judged together."""


def judge(
    scan: Scan,
    volume: npt.NDArray[np.floating],
    slice_thickness_A: float,
    heldout_fraction: float,
    seed: int,
    device: torch.device,
    model: ModelConfig | None = None,
    refined: Refined | None = None,
) -> dict[str, Any]:
    """Every metric that this scan allows.

    Args:
        volume: (slices, y, x) on the scan's object field, rad.
        heldout_fraction, seed: those of the run: they say which patterns it had never seen.
        model, refined: those of the run, as for ``judging_model``.

    Returns:
        ``r_factor`` and ``deviance`` over the fitted patterns, ``r_heldout`` and ``deviance_heldout`` over the others (None
        without any); with a truth of the same slices also the volume metrics and ``failure_class``.
    """
    judge = judging_model(scan, volume, slice_thickness_A, device, model, refined)
    fit, held = split_patterns(scan.n_patterns, heldout_fraction, seed)
    tensor = torch.as_tensor(np.array(volume))
    electrons, background = scan.electrons_per_pattern, Poisson().background
    seen = scan.seen
    result: dict[str, Any] = {}
    for r_name, deviance_name, indices in (("r_factor", "deviance", fit), ("r_heldout", "deviance_heldout", held)):
        result[r_name] = result[deviance_name] = None
        parts = np.array_split(indices, -(-len(indices) * scan.n_pixels**2 // JUDGED_AT_ONCE)) if len(indices) else []
        values, weights = [], []
        for part in parts:
            predicted = judge.predict(tensor, part).cpu().numpy()[:, seen] * electrons
            measured = scan.patterns_at(part)[:, seen].astype(np.float64)
            values.append((r_factor(predicted, measured), poisson_deviance(predicted, measured, background * electrons)))
            weights.append((max(float(np.sqrt(measured).sum()), 1e-300), len(part)))
        if parts:
            r, deviance = np.average(values, axis=0, weights=weights)
            result[r_name], result[deviance_name] = float(r), float(deviance)
    if has_truth(scan, volume, slice_thickness_A):
        assert scan.truth is not None
        result |= volume_metrics(volume, scan.truth.phase)
        result["failure_class"] = failure_class(volume, scan.truth.phase)
    return result


def judging_model(
    scan: Scan,
    volume: npt.NDArray[np.floating],
    slice_thickness_A: float,
    device: torch.device,
    model: ModelConfig | None = None,
    refined: Refined | None = None,
) -> ForwardModel:
    """The model every method is judged by: the detector's own pixel and window, whatever the run's were.

    Args:
        model: the run's; its probe modes and tilt are kept, for its volume is of them.
        refined: positions and probe that the run has found; its probe counts where it fits the detector's window.
    """
    config = replace(model or ModelConfig(), window=1, sampling=1, paraxial=False)
    probe = refined.probe if refined is not None and refined.probe.shape[-1] == scan.n_pixels else None
    positions = refined.positions_A if refined is not None else None
    return ForwardModel(scan, len(volume), slice_thickness_A, config, probe, device, positions_A=positions)


def has_truth(scan: Scan, volume: npt.NDArray[np.floating], slice_thickness_A: float) -> bool:
    """Whether the scan knows the true volume on the grid of this one."""
    truth = scan.truth
    return truth is not None and truth.phase.shape == volume.shape and abs(truth.voxel_size_A[0] - slice_thickness_A) < 1e-6


def write_report(
    folder: Path,
    scan: Scan,
    volume: npt.NDArray[np.floating],
    slice_thickness_A: float,
    metrics: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
    record: Mapping[str, Any],
    title: str,
    device: torch.device,
    answer: Answer | None = None,
    model: ModelConfig | None = None,
    refined: Refined | None = None,
) -> None:
    """``report.html`` and its PNGs: slices, depth profiles, patterns and losses of one run.

    Args:
        volume: (slices, y, x), rad; metrics: its own, with "method"; history: rows of ``history.csv``.
        answer: of the crystal solver; None for methods that find no atoms.
        model, refined: those of the run, as for ``judging_model``.
    """
    known = has_truth(scan, volume, slice_thickness_A)
    truth = scan.truth.phase if scan.truth is not None and known else None
    voxel = (slice_thickness_A, scan.pixel_size_A, scan.pixel_size_A)
    volumes = {str(metrics["method"]): volume}
    sections = [("Metrics", metrics_table([metrics], ["method"]) + _explain(scan, known, metrics))]

    if answer is not None:
        sections.append(("Unit cell", cell_section(folder, answer, metrics)))
    png = save_figure(figures.slices_figure(volumes, truth, voxel), folder / "slices.png")
    caption = "Phase of slices from the entrance face (left) down, the middle of the field, one grey scale."
    sections.append(("Slices", figure_block(png, caption)))
    if truth is not None:
        png = save_figure(figures.depth_figure(volumes, truth, voxel), folder / "depth.png")
        caption = "Phase along the beam through atom columns: what a reconstruction finds hardest."
        sections.append(("Depth", figure_block(png, caption)))

    n = scan.n_patterns
    indices = np.unique(np.array([0, n // 3 + scan.shape[1] // 2, 2 * n // 3, n - 1]).clip(0, n - 1))
    judge = judging_model(scan, volume, slice_thickness_A, device, model, refined)
    predicted = judge.predict(torch.as_tensor(np.array(volume)), indices).cpu().numpy() * scan.electrons_per_pattern
    labels = [f"position {i // scan.shape[1]}, {i % scan.shape[1]}" for i in indices]
    measured = scan.patterns_at(indices).astype(float)
    figure = figures.patterns_figure(measured, {str(metrics["method"]): predicted}, scan.k_step_invA, labels)
    png = save_figure(figure, folder / "patterns.png")
    caption = "Measured and predicted patterns, square root of the electrons in a pixel."
    sections.append(("Diffraction patterns", figure_block(png, caption)))
    png = save_figure(figures.losses_figure({str(metrics["method"]): history}), folder / "losses.png")
    caption = "Loss of the fitted patterns and, where some were held out, of those."
    sections.append(("Convergence", figure_block(png, caption)))
    lead = f"{scan.info.get('formula', 'a scan')}, {scan.shape[0]} × {scan.shape[1]} patterns of {scan.n_pixels} px."
    write_page(folder / "report.html", title, lead + provenance(scan, [metrics]), sections, record)


def write_comparison(
    folder: Path,
    scan: Scan,
    volumes: Mapping[str, npt.NDArray[np.floating]],
    metrics: Mapping[str, Mapping[str, Any]],
) -> Path:
    """``report.html`` of several reconstructions of one simulated scan beside its truth; returns its path.

    Args:
        volumes: (slices, y, x) by method, rad; metrics: of each, with "method".
    """
    assert scan.truth is not None
    truth, voxel = scan.truth.phase, scan.truth.voxel_size_A
    table = metrics_table(list(metrics.values()), ["method", "failure_class"])
    verdicts = "".join(
        f"<p><strong>{m}</strong>: {html.escape(str(v['verdict']))}</p>" for m, v in metrics.items() if v.get("verdict")
    )
    png = save_figure(figures.slices_figure(volumes, truth, voxel), folder / "slices.png")
    slices = figure_block(
        png, "Phase of slices from the entrance face (left) down, the middle of the field, one grey scale."
    )
    png = save_figure(figures.depth_figure(volumes, truth, voxel), folder / "depth.png")
    depth = figure_block(png, "Phase along the beam through atom columns: what a reconstruction finds hardest.")
    explained = _explain(scan, True, next(iter(metrics.values())))
    sections = [("Slices", slices), ("Depth", depth), ("Metrics", table + verdicts + explained)]
    lead = f"{scan.info.get('formula', 'a scan')}, {scan.shape[0]} × {scan.shape[1]} patterns of {scan.n_pixels} px."
    title = f"{scan.info.get('crystal', 'A crystal')} by {' and by '.join(volumes)}"
    record = {"methods": {method: dict(values) for method, values in metrics.items()}, "scan": dict(scan.info)}
    write_page(folder / "report.html", title, lead + provenance(scan, list(metrics.values())), sections, record)
    return folder / "report.html"


def provenance(scan: Scan, metrics: Sequence[Mapping[str, Any]]) -> str:
    """What a reader must know of a simulated scan: whether the models that fit and judge it are the one that made it."""
    made = scan.info.get("simulation")
    if not made:
        return ""
    text = f" Simulated with abTEM's potentials at {made['sampling_A']:g} Å, modelled at {scan.pixel_size_A:.3g} Å"
    if made["window"] > 1 and made["sampling_A"] < 0.75 * scan.pixel_size_A:
        text = f"{text} in a window {made['window']} times narrower: no inverse crime."
        if any(values.get("deviance_own_heldout") not in (None, "") for values in metrics):  # the crystal solver's
            text += " The crystal solver's own model is nearer to the simulation's: for it, an inverse crime in part."
        return text
    return f"{text}: the same sampling or window on both sides, an inverse crime in part."


def _explain(scan: Scan, known: bool, metrics: Mapping[str, Any]) -> str:
    text = (
        "R is the sum of |√I − √D| over the sum of √D; counting noise alone puts a floor under it. The deviance is"
        " Poisson's, a pixel: unlike R it is lowest for the true patterns, also where most pixels hold no electron."
        " Both are those of the model at the detector's pixel and window, for every method."
    )
    if metrics.get("r_heldout") is not None:
        text += " Held-out patterns were never fitted: a volume that only follows the noise shows there."
    if known:
        text += (
            f" Volumes are judged over the middle {MIDDLE_PX} × {MIDDLE_PX} px after a constant phase is removed. An empty"
            " volume scores about 0.4 in SSIM where most of the truth is background; 'atoms' looks only where atoms are;"
            " depth correlation is 0 for a volume that is even along the beam."
        )
    elif scan.truth is not None:
        text += " The scan's true volume has other slices than this one, so the two were not compared."
    return f"<p>{text}</p>"
