"""A picture of a unit cell: its atoms from three sides."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle

from mepdiff_core.figures import INK, MUTED
from mepdiff_core.unit_cell import UnitCell

FloatArray = npt.NDArray[np.float64]
DISC = 0.45
"""Of the covalent radius: neighbours stay apart."""
ON_FACE_A = 0.25
"""Atoms this near to a face of the cell are drawn on the opposite one, too."""
POINTS = 72
"""To the inch."""
ROOM = 8
"""Points of radius that a disc needs to bear its element's symbol."""
SURE = 0.9
"""A species less probable than this has a question mark."""


class Side(NamedTuple):
    """A direction of view: the components of (z, y, x) drawn to the right and down, and (sign, component) of nearness."""

    title: str
    right: int
    down: int
    nearer: tuple[int, int]


SIDES = (  # (x, y, z) is right-handed: who looks along y has x to the right and z down on the side of large y
    Side("along the beam", 2, 1, (-1, 0)),
    Side("from the side, x across", 2, 0, (1, 1)),
    Side("from the side, y across", 1, 0, (-1, 2)),
)
AXES = ("depth (Å)", "y (Å)", "x (Å)")


def cell_figure(cell: UnitCell) -> Figure:
    """The atoms of a cell seen along the beam and from two sides, the beam running down.

    Discs have ``DISC`` of the covalent radius, crosses are one standard deviation where it is known, a question mark stands
    behind a species less probable than ``SURE``. Atoms on a face, an edge or a corner are drawn on all of them. The cell's
    corner is the origin of the scan, as many periods below the entrance face as keep the whole cell in the specimen.
    """
    from ase.data import chemical_symbols, covalent_radii
    from ase.data.colors import jmol_colors

    positions, which = _with_images(cell)
    radii = DISC * covalent_radii[cell.numbers]
    corners = np.array(list(itertools.product((0, 1), repeat=3))) @ cell.lattice_A
    lowered = np.ceil(-corners[:, 0].min() / cell.lattice_A[2, 0] - 1e-6) * cell.lattice_A[2]
    corners, positions = corners + lowered, positions + lowered
    edges = [(i, j) for i, j in itertools.combinations(range(8), 2) if bin(i ^ j).count("1") == 1]
    everything = np.concatenate([corners, positions])
    margin = float(radii.max(initial=0.0)) + 0.3
    low, high = everything.min(0) - margin, everything.max(0) + margin
    extent = high - low

    # inches per Å: one scale for both sides, its own for the view along the beam
    above = 2.9 / float(extent[1:].max())
    beside = min(above, 7.0 / float(extent[0]))
    scales = (above, beside, beside)
    widths = [max(extent[side.right] * scale, 1.3) for side, scale in zip(SIDES, scales, strict=True)]
    height = max(extent[side.down] * scale for side, scale in zip(SIDES, scales, strict=True))
    figure = Figure(figsize=(sum(widths) + 2.2, height + 1.9), layout="constrained")
    for axis, side, scale in zip(figure.subplots(1, 3, width_ratios=widths), SIDES, scales, strict=True):
        for i, j in edges:
            axis.plot(*corners[[i, j]][:, [side.right, side.down]].T, color=MUTED, linewidth=0.8, zorder=1)
        sign, component = side.nearer
        order = np.argsort(sign * positions[:, component], kind="stable")
        for layer, k in enumerate(order):
            atom, number = which[k], cell.numbers[which[k]]
            color, place = jmol_colors[number], positions[k][[side.right, side.down]]
            z = 2 + 3 * layer
            axis.add_patch(Circle(place, radii[atom], facecolor=_lighter(color), edgecolor=INK, linewidth=0.6, zorder=z))
            across, down = cell.spread_A[atom][[side.right, side.down]]
            bars = {"xerr": across, "yerr": down}
            axis.errorbar(
                *place,
                **{name: bar for name, bar in bars.items() if np.isfinite(bar)},
                fmt="none",
                ecolor=INK,
                elinewidth=0.8,
                capsize=1.5,
                capthick=0.8,
                zorder=z + 1,
            )
            unsure = "?" if dict(cell.candidates[atom]).get(int(number), 0.0) < SURE else ""
            symbol = chemical_symbols[number] if radii[atom] * scale * POINTS >= ROOM else ""
            beside_the_cross = (2.5, 2.5)
            axis.annotate(
                symbol + unsure, place, beside_the_cross, textcoords="offset points", fontsize=7.5, color=INK, zorder=z + 2
            )
        axis.set(xlim=(low[side.right], high[side.right]), ylim=(high[side.down], low[side.down]), aspect="equal")
        axis.set_anchor("N")
        axis.set_title(side.title, fontsize=9, color=INK)
        axis.set_xlabel(AXES[side.right], fontsize=8)
        axis.set_ylabel(AXES[side.down], fontsize=8)
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=6)
    elements = np.unique(cell.numbers)
    discs = [
        Line2D([], [], linestyle="", marker="o", markersize=8, markerfacecolor=_lighter(jmol_colors[e]), markeredgecolor=INK)
        for e in elements
    ]
    names = [chemical_symbols[e] for e in elements]
    figure.legend(discs, names, loc="outside lower center", ncols=12, fontsize=8, frameon=False)
    c = cell.lattice_A[2, 0]
    period = f"period {c:.3f} Å along the beam" if cell.periodic_along_beam else "no period along the beam"
    figure.suptitle(f"{cell.formula}: {period}, specimen {cell.thickness_A:.4g} Å thick", fontsize=10, color=INK)
    return figure


def _with_images(cell: UnitCell) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Positions (z, y, x) in and on the cell whose corner is the origin, and the atom of each."""
    inverse = np.linalg.inv(cell.lattice_A)
    fractional = cell.fractional
    if not cell.periodic_along_beam:
        fractional[:, 2] = (cell.positions_A @ inverse)[:, 2]
    near = ON_FACE_A * np.linalg.norm(inverse, axis=0)  # over the distance of the faces
    which = np.arange(len(fractional))
    for axis in range(3 if cell.periodic_along_beam else 2):
        at_start, at_end = fractional[:, axis] < near[axis], fractional[:, axis] > 1 - near[axis]
        step = np.eye(3)[axis]
        fractional = np.concatenate([fractional, fractional[at_start] + step, fractional[at_end] - step])
        which = np.concatenate([which, which[at_start], which[at_end]])
    return fractional @ cell.lattice_A, which


def _lighter(color: FloatArray) -> tuple[float, float, float]:
    """Dark text is readable on it."""
    red, green, blue = 1 - 0.65 * (1 - color)
    return float(red), float(green), float(blue)
