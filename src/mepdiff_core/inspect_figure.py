"""The picture of ``mepdiff inspect``: mean pattern with the virtual detectors, and what they see."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator

from mepdiff_core.figures import INK, MUTED, plain_axis, without_ticks
from mepdiff_core.inspection import Inspection

GAMMA = 0.3
"""Of the mean pattern's grey scale: the few counts at high angles show beside the bright disk."""
BRIGHT, DARK = "#2f8fd0", "#e0862a"


def inspect_figure(seen: Inspection, title: str) -> Figure:
    """Mean pattern, virtual bright field and virtual dark field side by side; curves where the scan is one row."""
    figure = Figure(figsize=(10.4, 4.6), layout="constrained")
    pattern, *images = figure.subplots(1, 3)
    figure.suptitle(title, fontsize=10, color=INK)
    high = float(seen.mean.max())
    image = pattern.imshow(
        seen.mean, cmap="gray", norm=PowerNorm(GAMMA, 0.0, high if high > 0 else 1.0), interpolation="nearest"
    )
    _scale(figure, image, pattern, "mean counts a pixel")
    pattern.set_title("mean pattern", fontsize=9, color=MUTED)
    pattern.tick_params(labelsize=7)
    pattern.set_xlabel("kx (px)", fontsize=8)
    pattern.set_ylabel("ky (px)", fontsize=8)
    found = seen.detectors
    if found is not None:
        y, x = found.centre_px
        for radius, color, line in (
            (found.radius_px, BRIGHT, "-"),
            (found.inner_px, DARK, "--"),
            (found.outer_px, DARK, "--"),
        ):
            pattern.add_patch(Circle((x, y), radius, fill=False, color=color, linewidth=1.2, linestyle=line))
        pattern.set_xlim(-0.5, seen.mean.shape[1] - 0.5)
        pattern.set_ylim(seen.mean.shape[0] - 0.5, -0.5)
    for axis, values, name, color in (
        (images[0], seen.bright, "virtual bright field (blue circle)", BRIGHT),
        (images[1], seen.dark, "virtual dark field (orange ring)", DARK),
    ):
        axis.set_title(name, fontsize=9, color=MUTED)
        if found is None:
            without_ticks(axis)
            axis.text(0.5, 0.5, "nothing was measured", ha="center", va="center", fontsize=9, color=MUTED)
        elif min(values.shape) > 1:
            shown = axis.imshow(values, cmap="gray", interpolation="nearest")
            _scale(figure, shown, axis, "counts")
            axis.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.yaxis.set_major_locator(MaxNLocator(6, integer=True))
            axis.set_xlabel("scan x", fontsize=8)
            axis.set_ylabel("scan y", fontsize=8)
        else:
            axis.plot(np.arange(values.size), values.ravel(), color=color, linewidth=1.0)
            axis.set_xlabel("pattern", fontsize=8)
            axis.set_ylabel("counts", fontsize=8)
            plain_axis(axis)
        axis.tick_params(labelsize=7)
    return figure


def _scale(figure: Figure, image: AxesImage, axis: Axes, name: str) -> None:
    bar = figure.colorbar(image, ax=axis, location="bottom", shrink=0.8, aspect=28, pad=0.02)
    bar.locator = MaxNLocator(4)
    bar.update_ticks()
    bar.set_label(name, fontsize=8)
    bar.ax.tick_params(labelsize=7)
