"""Volumes of runs as layers: each opened once, several side by side under one camera, one less another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QObject, Signal

from mepdiff_core.sections import PlacedVolume
from napari_mepdiff._layers import KEY, contrast_limits, volume_settings

SPACING = 0.02
"""Between the views of the grid, in views."""


def frame(viewer: Any) -> None:
    """Let the view hold what is visible: what is hidden may lie far beside."""
    viewer.reset_view(layers=[layer for layer in viewer.layers if layer.visible], reset_camera_angle=False)


class RunLayers(QObject):
    """The layers of runs in one viewer.

    Args:
        viewer: where.

    Attributes:
        ended: signal; layers stood side by side, and now all are in one view again, whoever has switched the grid off.
    """

    ended = Signal()

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._before: list[tuple[Any, bool]] = []
        self._shown: list[Any] = []
        viewer.canvas.grid.events.enabled.connect(self._grid_changed)

    @property
    def side_by_side(self) -> bool:
        """Whether layers stand side by side."""
        return bool(self._shown)

    def run(self, path: Path, name: str, placed: PlacedVolume, visible: bool = True) -> Any:
        """The layer of a run's volume: the one that is there, or a new one."""
        return self._layer("run", str(path), name, placed, visible)

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
        grid = self._viewer.canvas.grid
        grid.enabled = False  # whoever has layers side by side puts them back
        for layer in layers:  # and may have taken away a truth that is wanted here too
            if layer not in self._viewer.layers:
                self._viewer.add_layer(layer)
        self._before = [(layer, bool(layer.visible)) for layer in self._viewer.layers]
        for layer, _ in self._before:
            layer.visible = layer in layers
        self._shown = []
        self._put_in_order(layers)
        self._add(layers)
        grid.shape, grid.stride, grid.spacing = (-1, -1), 1, SPACING
        grid.enabled = True
        frame(self._viewer)

    def join(self, layers: Sequence[Any]) -> None:
        """Views for those of these layers that have none yet."""
        fresh = [layer for layer in layers if layer not in self._shown]
        if fresh:
            self._add(fresh)
            frame(self._viewer)

    def show_together(self) -> None:
        """All in one view again, those visible that were."""
        if self._shown:
            self._viewer.canvas.grid.enabled = False

    def _add(self, layers: Sequence[Any]) -> None:
        limits = tuple((self._shown or layers)[0].contrast_limits)
        for layer in layers:
            layer.visible, layer.contrast_limits = True, limits
            layer.name_overlay.visible = True
        self._shown += layers

    def _put_in_order(self, layers: Sequence[Any]) -> None:
        """Let these layers have this order from the lowest one, with which a grid begins, in the places that they have."""
        wanted = iter(layers)
        order = [next(wanted) if layer in layers else layer for layer in self._viewer.layers]
        for place, layer in enumerate(order):
            if self._viewer.layers.index(layer) != place:
                self._viewer.layers.move(self._viewer.layers.index(layer), place)

    def _grid_changed(self, event: object = None) -> None:
        if not self._shown or self._viewer.canvas.grid.enabled:
            return
        shown, self._shown = self._shown, []
        there = [layer for layer in shown if layer in self._viewer.layers]
        for layer in there:
            layer.name_overlay.visible = layer.visible = False
        before = [(layer, visible) for layer, visible in self._before if layer in self._viewer.layers]
        for layer, visible in before:
            layer.visible = visible
        self._put_in_order([layer for layer, _ in before])
        self._before = []
        truths = [layer for layer in there if "truth" in layer.metadata.get(KEY, {})]
        for layer in truths:  # one lies beside already
            self._viewer.layers.remove(layer)
        runs = [layer for layer in there if layer not in truths]
        all_runs = [layer for layer in self._viewer.layers if "run" in (layer.metadata.get(KEY) or {})]
        if runs and not any(layer.visible for layer in all_runs):
            runs[0].visible = True
        self.ended.emit()
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

    def _layer(self, kind: str, key: str, name: str, placed: PlacedVolume, visible: bool = True) -> Any:
        for layer in self._viewer.layers:
            if (layer.metadata.get(KEY) or {}).get(kind) == key and layer.data.shape == placed.phase.shape:
                return layer
        settings = volume_settings(name, placed.voxel_size_A, placed.origin_A) | {"metadata": {KEY: {kind: key}}}
        limits = contrast_limits(placed.phase)
        return self._viewer.add_image(
            np.array(placed.phase, np.float32), contrast_limits=limits, visible=visible, **settings
        )
