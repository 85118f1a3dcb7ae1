"""Volumes of runs as layers: each opened once, several side by side under one camera, one less another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.sections import PlacedVolume
from napari_mepdiff._layers import KEY, contrast_limits, volume_settings

SPACING = 0.02
"""Between the views of the grid, in views."""


def frame(viewer: Any) -> None:
    """Let the view hold what is visible: what is hidden may lie far beside."""
    viewer.reset_view(layers=[layer for layer in viewer.layers if layer.visible], reset_camera_angle=False)


class RunLayers:
    """The layers of runs in one viewer.

    Args:
        viewer: where.
    """

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._hidden: list[Any] = []
        self._shown: list[Any] = []

    @property
    def side_by_side(self) -> bool:
        """Whether layers stand side by side."""
        return bool(self._shown)

    def run(self, path: Path, name: str, placed: PlacedVolume) -> Any:
        """The layer of a run's volume: the one that is there, or a new one."""
        return self._layer("run", str(path), name, placed)

    def truth(self, name: str, placed: PlacedVolume) -> Any:
        """The true volume, where the reconstructions lie and not beside them."""
        return self._layer("truth", name, name, placed)

    def difference(self, name: str, placed: PlacedVolume) -> Any:
        """One volume less another: pink below, green above."""
        layer = self._layer("difference", name, name, placed)
        high = float(np.percentile(np.abs(placed.phase), 99.9)) or 1e-3
        layer.colormap, layer.contrast_limits = "PiYG", (-high, high)
        layer.rendering = "translucent"
        return layer

    def show_side_by_side(self, layers: Sequence[Any]) -> None:
        """A view for each of these, in this order, with one contrast; all other layers are hidden meanwhile."""
        self.show_together()
        self._hidden = [layer for layer in self._viewer.layers if layer.visible and layer not in layers]
        for layer in self._hidden:
            layer.visible = False
        limits = tuple(layers[0].contrast_limits)
        for layer in layers:
            layer.visible, layer.contrast_limits = True, limits
            layer.name_overlay.visible = True
        self._shown = list(layers)
        for layer in layers:  # the grid begins with the lowest one
            self._viewer.layers.move(self._viewer.layers.index(layer), len(self._viewer.layers))
        grid = self._viewer.canvas.grid
        grid.shape, grid.stride, grid.spacing = (-1, -1), 1, SPACING
        grid.enabled = True
        frame(self._viewer)

    def show_together(self) -> None:
        """All in one view again, with those that were hidden."""
        if not self._shown:
            return
        self._viewer.canvas.grid.enabled = False
        for layer in self._shown:
            layer.name_overlay.visible = False
            if "truth" in layer.metadata.get(KEY, {}):
                layer.visible = False  # it would cover the others
        for layer in self._hidden:
            if layer in self._viewer.layers:
                layer.visible = True
        self._hidden, self._shown = [], []
        frame(self._viewer)

    def in_place(self, y_A: float, x_A: float) -> tuple[float, float]:
        """Where a click at (y, x) means: on a truth that lies beside, the same place of the specimen."""
        if not self._viewer.canvas.grid.enabled:
            for layer in self._viewer.layers:
                beside = (layer.metadata.get(KEY) or {}).get("beside")
                if beside is not None and layer.visible:
                    low, high = layer.extent.world[:, -2:]
                    if low[0] <= y_A <= high[0] and low[1] <= x_A <= high[1]:
                        return y_A, x_A - beside
        return y_A, x_A

    def _layer(self, kind: str, key: str, name: str, placed: PlacedVolume) -> Any:
        for layer in self._viewer.layers:
            if (layer.metadata.get(KEY) or {}).get(kind) == key and layer.data.shape == placed.phase.shape:
                return layer
        settings = volume_settings(name, placed.voxel_size_A, placed.origin_A) | {"metadata": {KEY: {kind: key}}}
        return self._viewer.add_image(
            np.array(placed.phase, np.float32), contrast_limits=contrast_limits(placed.phase), **settings
        )
