"""A picture of the crystal solver's steps: projection and lattice, averaged cell and columns, periods along the beam."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.figures import COLORS, INK, MUTED, plain_axis

Array = npt.NDArray[np.float64]
LIT = 0.1
"""Part of the greatest weight from which a pixel is shown."""
LINEAR_NATS = 10.0
"""Below, the misfit's axis is even; above, logarithmic."""


def steps_figure(steps: CrystalSteps) -> Figure:
    """As many panels as there are steps."""
    known = (steps.projection, steps.average, steps.nats)
    panels = [panel for panel, data in zip((_projection, _average, _periods), known, strict=True) if data is not None]
    figure = Figure(figsize=(3.8 * len(panels), 3.8), layout="constrained")
    for axis, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        panel(axis, steps)
        axis.tick_params(labelsize=7)
    return figure


def _projection(axis: Any, steps: CrystalSteps) -> None:
    """The phase where the beam was, and the cells of the lattice."""
    lit = steps.weight > LIT * steps.weight.max()
    pixel, ends = float(steps.pixel_A), []
    for k in range(2):
        line = np.flatnonzero(lit.any(1 - k))
        ends.append(steps.origin_A[k] + np.array([line[0] - 0.5, line[-1] + 0.5]) * pixel)
    height, width = steps.projection.shape
    (y, x), half = steps.origin_A, pixel / 2
    extent = (x - half, x - half + width * pixel, y - half + height * pixel, y - half)
    shown = steps.projection[lit]
    axis.imshow(steps.projection, cmap="gray", extent=extent, vmin=shown.min(), vmax=shown.max())
    title = "projection"
    if steps.lattice_A is not None and steps.corner_A is not None:
        _cells(axis, steps.lattice_A, steps.corner_A, np.array(ends))
        lengths = np.linalg.norm(steps.lattice_A, axis=1)
        angle = np.degrees(np.arccos(np.clip(steps.lattice_A[0] @ steps.lattice_A[1] / lengths.prod(), -1, 1)))
        title += f": {lengths[0]:.3f} × {lengths[1]:.3f} Å, {angle:.1f}°"
    axis.set(xlim=ends[1], ylim=ends[0][::-1])
    _label(axis, title, "x (Å)", "y (Å)")


def _cells(axis: Any, vectors: Array, corner: Array, ends: Array) -> None:
    """Lines through the lattice's points within (y, x) ends, and the vectors of one cell."""
    corners = np.array([(y, x) for y in ends[0] for x in ends[1]])
    reach = (corners - corner) @ np.linalg.inv(vectors)
    low, high = np.floor(reach.min(0)).astype(int), np.ceil(reach.max(0)).astype(int)
    for k in range(2):
        for i in range(low[k], high[k] + 1):
            start = corner + i * vectors[k]
            line = np.array([start + low[1 - k] * vectors[1 - k], start + high[1 - k] * vectors[1 - k]])
            axis.plot(line[:, 1], line[:, 0], color=COLORS[0], linewidth=0.6, alpha=0.8)
    for vector, name in zip(vectors, ("t1", "t2"), strict=True):
        end, arrow = corner + vector, {"arrowstyle": "->", "color": COLORS[4], "linewidth": 1.8, "shrinkA": 0, "shrinkB": 0}
        axis.annotate("", end[::-1], corner[::-1], arrowprops=arrow)
        axis.annotate(name, end[::-1], (3, 3), textcoords="offset points", fontsize=9, color=COLORS[4])


def _average(axis: Any, steps: CrystalSteps) -> None:
    """The averaged cell, and how much is in each of its columns."""
    assert steps.average is not None
    assert steps.lattice_A is not None
    sides = [np.arange(n + 1) / n for n in steps.average.shape]
    grid = np.stack(np.meshgrid(*sides, indexing="ij"), -1) @ steps.lattice_A
    axis.pcolormesh(grid[..., 1], grid[..., 0], steps.average, cmap="gray", rasterized=True)
    title = "averaged cell"
    if steps.places is not None and steps.weights is not None:
        title += f", {len(steps.places)} columns"
        for place, weight in zip(steps.places % 1.0 @ steps.lattice_A, steps.weights, strict=True):
            axis.plot(place[1], place[0], "+", color=COLORS[1], markersize=7, markeredgewidth=1.2)
            axis.annotate(f"{weight:.1f}", place[::-1], (4, 3), textcoords="offset points", fontsize=7, color=COLORS[4])
    axis.set_aspect("equal")
    axis.invert_yaxis()
    _label(axis, title, "x from the corner (Å)", "y from the corner (Å)")


def _periods(axis: Any, steps: CrystalSteps) -> None:
    """How much worse than the best each period explains the patterns."""
    assert steps.periods_A is not None
    assert steps.nats is not None
    known = np.isfinite(steps.periods_A)
    axis.plot(steps.periods_A[known], steps.nats[known], ".", color=COLORS[0], markersize=5)
    if not known.all():
        axis.axhline(steps.nats[~known].min(), color=MUTED, linewidth=1, linestyle="--", label="no period")
        axis.legend(fontsize=8, frameon=False)
    axis.set_yscale("symlog", linthresh=LINEAR_NATS)
    axis.set_ylim(bottom=-1)
    plain_axis(axis)
    _label(axis, "periods along the beam", "period (Å)", "misfit above the best (nats)")


def _label(axis: Any, title: str, across: str, up: str) -> None:
    axis.set_title(title, fontsize=9, color=INK)
    axis.set_xlabel(across, fontsize=8)
    axis.set_ylabel(up, fontsize=8)
