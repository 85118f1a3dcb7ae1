"""The pictures: slices, diffraction patterns, losses, depth profiles, probes. Each function returns a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mepdiff_core.metrics import ATOM_LEVEL, align_offset, middle, ssim_2d

if TYPE_CHECKING:
    from mepdiff_core.thickness import Candidate

Volume = npt.NDArray[np.floating]
GAMMA = 0.6
"""Light atoms show beside heavy ones."""
INK, MUTED = "#1b1b1f", "#6c6c76"
Sweep = dict[str, list[tuple[float, float | None, float, float, float]]]
"""By method: thickness (Å), dose (electrons per Å²; None: no noise), a score, and the ends of its interval."""
COLORS = ("#1f77b4", "#d1495b", "#2e9e6b", "#8a5fb0", "#e08e2b", "#3f3f46")


def slices_figure(
    volumes: Mapping[str, Volume], truth: Volume | None, voxel_size_A: Sequence[float], most: int = 8
) -> Figure:
    """Slices by depth, one row a volume, the truth first, all on the truth's grey scale (the paper's Figures 9 and 10).

    Args:
        volumes: (z, y, x) in rad by name; truth: on the same grid, or None.
        voxel_size_A: (z, y, x), Å.
        most: columns at most; more slices than that are thinned out evenly.
    """
    rows = ([("truth", middle(truth))] if truth is not None else []) + [(k, middle(v)) for k, v in volumes.items()]
    reference = rows[0][1]
    shown = np.unique(np.linspace(0, len(reference) - 1, min(most, len(reference))).round().astype(int))
    low, high = (0.0, float(reference.max())) if truth is not None else _range([v for _, v in rows])
    norm = PowerNorm(GAMMA, low, high)
    height, width = reference.shape[1:]
    figure = Figure(
        figsize=(1.35 * len(shown) + 1.6, (1.35 * height / width + 0.12) * len(rows) + 0.55), layout="constrained"
    )
    axes = figure.subplots(len(rows), len(shown), squeeze=False)
    image = None
    for (name, volume), line in zip(rows, axes, strict=True):
        aligned = align_offset(volume, middle(truth)) if truth is not None else volume
        for z, axis in zip(shown, line, strict=True):
            if z < len(aligned):
                image = axis.imshow(aligned[z], cmap="gray", norm=norm, interpolation="nearest")
            without_ticks(axis)
        label = name
        if truth is not None and name != "truth" and aligned.shape == middle(truth).shape:
            label += f"\nSSIM {ssim_2d(aligned, middle(truth).astype(float)):.3f}"
        line[0].set_ylabel(label, color=INK, fontsize=9)
    for z, axis in zip(shown, axes[0], strict=True):
        axis.set_title(f"z = {(z + 0.5) * voxel_size_A[0]:.1f} Å", fontsize=8, color=MUTED)
    assert image is not None
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01, aspect=30)
    bar.set_label(f"phase (rad), gamma {GAMMA}", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    axes[-1, 0].set_xlabel(f"{width * voxel_size_A[2]:.1f} Å wide", fontsize=8, color=MUTED)
    return figure


def outcomes_figure(examples: Sequence[tuple[str, Volume, Volume]], slice_thickness_A: float, most: int = 8) -> Figure:
    """Slices by depth of several specimens, two rows each: truth, reconstruction (the paper's Figures 9 and 10).

    Args:
        examples: what to call it, reconstruction and truth (z, y, x) on the same grid, rad; each on its truth's grey scale.
        most: columns at most.
    """
    columns = max(min(most, len(truth)) for _, _, truth in examples)
    figure = Figure(figsize=(1.15 * columns + 1.7, 2.36 * len(examples) + 0.3), layout="constrained")
    parts = figure.subfigures(len(examples), 1, squeeze=False)[:, 0]
    for part, (label, volume, truth) in zip(parts, examples, strict=True):
        true = middle(truth)
        found = align_offset(middle(volume), true)
        norm = PowerNorm(GAMMA, 0.0, float(true.max()))
        shown = np.unique(np.linspace(0, len(true) - 1, min(most, len(true))).round().astype(int))
        axes = part.subplots(2, columns, squeeze=False)
        for axis in axes.ravel():
            axis.set_axis_off()
        for row, stack in zip(axes, (true, found), strict=True):
            for z, axis in zip(shown, row, strict=False):
                axis.set_axis_on()
                axis.imshow(stack[z], cmap="gray", norm=norm, interpolation="nearest")
                without_ticks(axis)
        for z, axis in zip(shown, axes[0], strict=False):
            axis.set_title(f"{(z + 0.5) * slice_thickness_A:.1f} Å", fontsize=7, color=MUTED)
        axes[0, 0].set_ylabel("truth", fontsize=8, color=MUTED)
        axes[1, 0].set_ylabel(f"SSIM {ssim_2d(found, true.astype(float)):.3f}", fontsize=8, color=MUTED)
        part.supylabel(label, fontsize=8, color=INK, multialignment="center")
    return figure


def sweep_figure(sweep: Sweep) -> Figure:
    """SSIM by dose, a panel for each thickness; or by thickness, where there is one dose."""
    points = [point for method in sweep.values() for point in method]
    doses = sorted({dose for _, dose, *_ in points}, key=lambda dose: np.inf if dose is None else dose)
    thicknesses = sorted({thickness for thickness, *_ in points})
    by_dose = len(doses) > 1
    labels = ["no noise" if d is None else f"{d:.3g}" for d in doses] if by_dose else [f"{t:g}" for t in thicknesses]
    panels = thicknesses if by_dose else thicknesses[:1]
    figure = Figure(figsize=(3.3 * len(panels) + 0.6, 3.4), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False, sharey=True)[0], panels, strict=True):
        for number, (method, mine) in enumerate(sweep.items()):
            shown = [p for p in mine if not by_dose or p[0] == panel]
            places = np.array([doses.index(p[1]) if by_dose else thicknesses.index(p[0]) for p in shown], float)
            mean, low, high = (np.array([p[i] for p in shown]) for i in (2, 3, 4))
            places += 0.06 * (number - (len(sweep) - 1) / 2)  # beside each other where they agree
            color, reach = COLORS[number % len(COLORS)], np.clip([mean - low, high - mean], 0, None)
            axis.errorbar(places, mean, reach, color=color, marker="o", markersize=4, capsize=2, linewidth=1.2, label=method)
        if by_dose:
            axis.set_title(f"{panel:g} Å thick", fontsize=9, color=INK)
        axis.set_xticks(range(len(labels)), labels)
        axis.set_xlim(-0.4, len(labels) - 0.6)
        axis.set_xlabel("electrons per Å²" if by_dose else "thickness (Å)", fontsize=8)
        axis.set_ylim(0, 1.02)
        axis.tick_params(labelsize=7)
        plain_axis(axis)
    first = figure.axes[0]
    first.set_ylabel("SSIM of slices", fontsize=8)
    handles, names = first.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    return figure


def patterns_figure(measured: Volume, predicted: Mapping[str, Volume], k_step_invA: float, labels: Sequence[str]) -> Figure:
    """Measured beside predicted patterns as square roots, one column a position (the paper's Figure 11).

    Args:
        measured: (n, ky, kx); predicted: the same by name; both in electrons, zero frequency at n // 2.
        k_step_invA: pixel of the patterns, 1/Å.
        labels: what to call each position.
    """
    rows = [("measured", measured), *predicted.items()]
    count, n = len(measured), measured.shape[-1]
    figure = Figure(figsize=(2.1 * count + 0.9, 2.1 * len(rows) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), count, squeeze=False)
    edge = n / 2 * k_step_invA
    image = None
    for column in range(count):
        high = float(np.sqrt(np.percentile(measured[column], 99.7)))
        for (name, patterns), line in zip(rows, axes, strict=True):
            image = line[column].imshow(
                np.sqrt(patterns[column]), cmap="magma", vmin=0, vmax=high, extent=(-edge, edge, edge, -edge)
            )
            without_ticks(line[column])
            if column == 0:
                line[column].set_ylabel(name, color=INK, fontsize=9)
        axes[0, column].set_title(labels[column], fontsize=8, color=MUTED)
    assert image is not None
    axes[-1, 0].set_xlabel(f"±{edge:.2g} 1/Å; square root of electrons", fontsize=8, color=MUTED)
    return figure


def losses_figure(histories: Mapping[str, Sequence[Mapping[str, object]]]) -> Figure:
    """Loss and held-out misfit by step, each run's own axis, for their losses are of different kinds."""
    figure = Figure(figsize=(4.2 * len(histories), 3.0), layout="constrained")
    for axis, (name, rows) in zip(figure.subplots(1, len(histories), squeeze=False)[0], histories.items(), strict=True):
        for key, label, color in (("loss", "loss of the fit", COLORS[0]), ("heldout", "held-out misfit", COLORS[1])):
            points = [(int(str(r["step"])), float(str(r[key]))) for r in rows if r[key] not in ("", None)]
            points = [(s, v) for s, v in points if np.isfinite(v)]
            if points:
                axis.plot(*zip(*points, strict=True), color=color, marker="o", markersize=2.5, linewidth=1.2, label=label)
        kept = int(str(rows[-1]["volume_step"]))
        if kept != int(str(rows[-1]["step"])):
            axis.axvline(kept, color=MUTED, linewidth=0.8, linestyle=":", label="the answer")
        axis.set_title(name, fontsize=9, color=INK)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=7)
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.legend(fontsize=7, frameon=False)
        plain_axis(axis)
    return figure


def contact_sheet(volumes: Sequence[Volume], titles: Sequence[str], columns: int = 6) -> Figure:
    """Volumes from above (their sum over depth) and, below each, from the side (their sum over height), beam downwards."""
    columns = min(columns, len(volumes))
    rows = -(-len(volumes) // columns)
    figure = Figure(figsize=(1.75 * columns, 2.75 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[1.0, 0.35] * rows)
    for axis in axes.ravel():
        axis.set_axis_off()
    for number, (volume, title) in enumerate(zip(volumes, titles, strict=True)):
        row, column = divmod(number, columns)
        above, side = axes[2 * row, column], axes[2 * row + 1, column]
        above.imshow(volume.sum(0), cmap="inferno")
        side.imshow(volume.sum(1), cmap="inferno", aspect="auto")
        above.set_title(title, fontsize=6.5, color=INK)
    return figure


def depth_figure(volumes: Mapping[str, Volume], truth: Volume, voxel_size_A: Sequence[float], columns: int = 4) -> Figure:
    """Depth profiles through the strongest atom columns of the truth, and where they are."""
    area = middle(truth)
    projection = area.sum(0)
    places = _peaks(projection, columns)
    figure = Figure(figsize=(2.6 * (len(places) + 1), 3.0), layout="constrained")
    axes = figure.subplots(1, len(places) + 1, squeeze=False)[0]
    axes[0].imshow(projection, cmap="gray")
    axes[0].set_title("truth, projected", fontsize=8, color=MUTED)
    without_ticks(axes[0])
    depth = (np.arange(len(area)) + 0.5) * voxel_size_A[0]
    for number, ((y, x), axis) in enumerate(zip(places, axes[1:], strict=True)):
        color = COLORS[number % len(COLORS)]
        axes[0].plot(x, y, "o", markersize=8, markerfacecolor="none", markeredgecolor=color, markeredgewidth=1.6)
        axis.step(depth, area[:, y, x], where="mid", color=INK, linewidth=1.8, label="truth")
        for line, (name, volume) in enumerate(volumes.items()):
            aligned = align_offset(middle(volume), area)
            axis.step(
                depth, aligned[:, y, x], where="mid", color=COLORS[(line + 1) % len(COLORS)], linewidth=1.2, label=name
            )
        low, high = axis.get_ylim()
        most = float(area[:, y, x].max())
        axis.set_ylim(max(low, -0.5 * most), min(high, 1.6 * most))  # a volume that is far off leaves the picture
        axis.set_title(f"column {number + 1}", fontsize=8, color=color)
        axis.set_xlabel("depth (Å)", fontsize=8)
        axis.tick_params(labelsize=7)
        plain_axis(axis)
    axes[1].set_ylabel("phase (rad)", fontsize=8)
    handles, names = axes[1].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8, frameon=False)
    return figure


def probe_figure(probes: Mapping[str, npt.NDArray[np.complexfloating]], pixel_size_A: float) -> Figure:
    """Intensity in real space, amplitude and phase in reciprocal space, one row a probe (its strongest mode)."""
    figure = Figure(figsize=(8.2, 2.6 * len(probes)), layout="constrained")
    axes = figure.subplots(len(probes), 3, squeeze=False)
    radius = 0.0
    for (name, modes), line in zip(probes.items(), axes, strict=True):
        probe = modes[int(np.argmax(np.sum(np.abs(modes) ** 2, axis=(1, 2))))]
        n = probe.shape[-1]
        spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(probe), norm="ortho"))
        half, edge = n * pixel_size_A / 2, 0.5 / pixel_size_A
        line[0].imshow(np.abs(probe) ** 2, cmap="magma", extent=(-half, half, half, -half))
        line[1].imshow(np.abs(spectrum), cmap="gray", extent=(-edge, edge, edge, -edge))
        strong = np.abs(spectrum) > 0.1 * np.abs(spectrum).max()
        on_axis = spectrum[n // 2, n // 2]  # a constant phase means nothing
        phase = np.where(strong, np.angle(spectrum * on_axis.conj()), np.nan)
        line[2].imshow(phase, cmap="twilight", vmin=-np.pi, vmax=np.pi, extent=(-edge, edge, edge, -edge))
        radius = max(radius, np.sqrt(strong.sum() / np.pi) * 2 * edge / n * 1.3)
        for axis in line[1:]:
            axis.set_xlabel("1/Å", fontsize=8)
        line[0].set_xlabel("Å", fontsize=8)
        line[0].set_ylabel(name, fontsize=9, color=INK)
        for axis in line:
            axis.tick_params(labelsize=7)
    for axis in axes[:, 1:].ravel():
        axis.set_xlim(-radius, radius)
        axis.set_ylim(radius, -radius)
    for axis, title in zip(axes[0], ("intensity", "amplitude of the spectrum", "phase of the spectrum"), strict=True):
        axis.set_title(title, fontsize=8, color=MUTED)
    return figure


def thickness_figure(candidates: Sequence[Candidate]) -> Figure:
    """Misfit of held-out patterns over the thickness (or, at one, over the source's size), in nats above the best."""
    best = min(candidates, key=lambda c: c.heldout)
    same = len({c.thickness_A for c in candidates}) == 1 and len(candidates) > 1
    over = attrgetter("source_size_A" if same else "thickness_A")
    # of several sizes of the source at one thickness, the best
    lowest = {over(c): c.nats_above for c in sorted(candidates, key=lambda c: -c.nats_above)}
    figure = Figure(figsize=(4.8, 3.2), layout="constrained")
    axis = figure.subplots()
    axis.plot(sorted(lowest), [lowest[x] for x in sorted(lowest)], "o-", color=COLORS[0], markersize=4)
    axis.axvline(over(best), color=COLORS[1], linewidth=1)
    title = f"best of those tried: {best.thickness_A:.4g} Å in {best.slices} slices"
    title += f", source of {best.source_size_A:g} Å" if best.source_size_A else ""
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel("size of the source (Å)" if same else "thickness (Å)", fontsize=9)
    axis.set_ylabel("held-out misfit above the best (nats)", fontsize=9)
    axis.set_ylim(bottom=0)
    axis.tick_params(labelsize=8)
    plain_axis(axis)
    return figure


def _peaks(image: Volume, count: int) -> list[tuple[int, int]]:
    from skimage.feature import peak_local_max

    height, width = image.shape
    border = max(1, min(height, width) // 12)
    found = peak_local_max(image, min_distance=4, exclude_border=border, threshold_rel=ATOM_LEVEL)
    if not len(found):
        return [(height // 2, width // 2)]
    # columns of different kinds tell more than four of the strongest kind: take them along the order of strength
    order = np.unique(np.linspace(0, len(found) - 1, min(count, len(found))).round().astype(int))
    return [(int(found[i][0]), int(found[i][1])) for i in order]


def _range(volumes: Sequence[Volume]) -> tuple[float, float]:
    values = np.concatenate([v.ravel() for v in volumes])
    low, high = (float(v) for v in np.percentile(values, (1, 99.8)))
    return (low, high) if high > low else (low, low + 1)


def without_ticks(axis: object) -> None:
    axis.set_xticks([])  # type: ignore[attr-defined]
    axis.set_yticks([])  # type: ignore[attr-defined]


def plain_axis(axis: object) -> None:
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)  # type: ignore[attr-defined]
