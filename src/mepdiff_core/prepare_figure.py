"""A scan before and after its preparation, in one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.figures import INK, MUTED, plain_axis, without_ticks
from mepdiff_core.scan import Scan
from mepdiff_core.virtual import detector_mask, mean_pattern, virtual_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

APERTURE = "#46b1e1"
ARROWS = 18
"""Arrows along the longer side of the scan, at most."""


def prepare_figure(before: Scan, after: Scan) -> Figure:
    """Mean pattern with the aperture, virtual dark field where it was taken, centre of mass: before (above) and after."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.6), layout="constrained")
    axes = figure.subplots(2, 3)
    for name, scan, line in (("before", before, axes[0]), ("after", after, axes[1])):
        _pattern(line[0], scan)
        _dark_field(line[1], scan)
        _centre_of_mass(line[2], scan)
        line[0].set_ylabel(name, color=INK, fontsize=10)
    for axis, title in zip(axes[0], ("mean pattern, aperture", "virtual dark field", "centre of mass"), strict=True):
        axis.set_title(title, fontsize=9, color=MUTED)
    return figure


def _pattern(axis: Any, scan: Scan) -> None:
    from matplotlib.patches import Circle

    edge = (scan.n_pixels // 2 + 0.5) * scan.k_step_invA
    far = edge - scan.k_step_invA
    mean = mean_pattern(scan.counts)
    high = float(np.percentile(mean, 99.8))
    axis.imshow(np.sqrt(mean), cmap="magma", vmin=0, vmax=np.sqrt(max(high, 1e-12)), extent=(-edge, far, far, -edge))
    axis.add_patch(Circle((0, 0), scan.optics.k_aperture_invA, fill=False, color=APERTURE, linewidth=1.2))
    axis.set_xlabel(f"{scan.n_pixels} px to {scan.k_max_invA:.3g} 1/Å, square root", fontsize=8)
    axis.tick_params(labelsize=7)


def _dark_field(axis: Any, scan: Scan) -> None:
    inner = 1.1 * scan.optics.k_aperture_invA
    outer = min(3 * scan.optics.k_aperture_invA, scan.k_max_invA)
    image = virtual_image(scan.counts, detector_mask(scan.n_pixels, scan.k_step_invA, min(inner, 0.9 * outer), outer))
    y, x = scan.positions_A.T
    size = 3.2e4 / max(scan.shape) ** 2
    axis.scatter(x, y, c=image.ravel(), s=min(size, 300), marker="s", cmap="gray", linewidths=0)
    axis.set_aspect("equal")
    axis.invert_yaxis()
    axis.set_facecolor("#e8e8ec")
    axis.set_xlabel("x (Å)", fontsize=8)
    axis.tick_params(labelsize=7)
    plain_axis(axis)


def _centre_of_mass(axis: Any, scan: Scan) -> None:
    n = scan.n_pixels
    k = np.asarray((np.arange(n) - n // 2) * scan.k_step_invA, np.float64)
    mass: npt.NDArray[np.float64] = np.stack([_row_mass(row, k) for row in scan.counts])
    offset = mass.mean((0, 1))
    field = mass - offset
    stride = -(-max(scan.shape) // ARROWS)
    positions = scan.positions_A.reshape(*scan.shape, 2)[::stride, ::stride]
    shown = field[::stride, ::stride]
    # in data units: arrows on a y axis that points down must point down with it
    axis.quiver(
        positions[..., 1], positions[..., 0], shown[..., 1], shown[..., 0], angles="xy", pivot="mid", color=INK, width=0.006
    )
    axis.set_aspect("equal")
    axis.invert_yaxis()
    strength = float(np.sqrt(np.mean(np.sum(field**2, axis=-1))))
    axis.set_xlabel(f"mean {offset[0]:+.3f}, {offset[1]:+.3f} 1/Å taken off; rms {strength:.2g} 1/Å", fontsize=8)
    without_ticks(axis)


def _row_mass(row: npt.NDArray[np.generic], k: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    patterns = row.astype(np.float64)
    total = np.maximum(patterns.sum((1, 2)), 1e-300)
    return np.asarray(np.stack([patterns.sum(2) @ k, patterns.sum(1) @ k], axis=-1) / total[:, None])
