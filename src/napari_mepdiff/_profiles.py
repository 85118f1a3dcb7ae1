"""Depth profiles of several volumes: through a column that is clicked, or under a line that is drawn."""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import numpy as np
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QVBoxLayout, QWidget

from mepdiff_core.errors import InputError
from mepdiff_core.sections import PlacedVolume
from napari_mepdiff._dock import button, notify, words
from napari_mepdiff._plots import PALETTE, Curves, Pane, follow_theme
from napari_mepdiff._side_by_side import RunLayers, frame

TRUTH = "truth"
COLUMN_LAYER, LINE_LAYER = "depth profile: column", "depth profile: line"
MOST = 6
"""Sections shown at once."""
MARK = "#46b1e1"


class Profiles(QWidget):
    """Curves of phase by depth and, under a line, a picture of each section.

    Args:
        viewer: whose canvas is clicked and drawn on.
        layers: know what lies where.
    """

    def __init__(self, viewer: Any, layers: RunLayers) -> None:
        super().__init__()
        self._viewer, self._layers = viewer, layers
        self._volumes: dict[str, PlacedVolume] = {}
        self._column: tuple[float, float] | None = None
        self._line: tuple[tuple[float, float], tuple[float, float]] | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        row = QHBoxLayout()
        self.pick = button(
            "Click a column", "Then click on an atom column in the canvas; again for another one.", self._picked
        )
        self.pick.setCheckable(True)
        self.draw = button("Draw a line", "Then draw a line in the canvas: the volumes are cut along it.", self.draw_line)
        row.addWidget(self.pick)
        row.addWidget(self.draw)
        column.addLayout(row)
        self.place = words("Choose runs in the table; then click a column or draw a line.")
        column.addWidget(self.place)
        self.curves = Curves("depth (Å)", "phase (rad)", height=150)
        column.addWidget(self.curves)
        self.curves.hide()
        self.panes = [Pane("", "Phase under the line: the beam enters at the top.", "CET-L4", 80) for _ in range(MOST)]
        grid = QGridLayout()
        grid.setSpacing(4)
        for i, pane in enumerate(self.panes):
            grid.addWidget(pane, i // 2, i % 2)
            grid.setColumnStretch(i % 2, 1)
            pane.hide()
        column.addLayout(grid)
        follow_theme(viewer, self.curves, *self.panes)
        _follow_clicks(self, viewer)

    def show_volumes(self, volumes: Mapping[str, PlacedVolume]) -> None:
        """Compare these from now on, the truth by its name "truth"."""
        self._volumes = dict(volumes)
        self._refresh()

    def show_column(self, y_A: float, x_A: float) -> None:
        """Profiles through one place of the specimen."""
        self._column, self._line = self._layers.in_place(y_A, x_A), None
        if not self._layers.side_by_side:
            self._mark(COLUMN_LAYER, np.array([[y_A, x_A]]))
        self._refresh()

    def draw_line(self) -> None:
        """Let a person draw a line."""
        self._layers.show_together()
        self._flat()
        self.pick.setChecked(False)
        layer = self._find(LINE_LAYER)
        if layer is None:
            layer = self._viewer.add_shapes(
                None, ndim=2, name=LINE_LAYER, edge_color=MARK, edge_width=0.3, face_color="transparent", **_IN_ANGSTROM
            )
            layer.events.data.connect(self._drawn)
        self._viewer.layers.selection.active = layer
        layer.mode = "add_line"
        self.place.setText("Draw a line over the volumes in the canvas.")

    def _picked(self) -> None:
        if self.pick.isChecked():
            self._flat()
            self.place.setText("Click on a column in the canvas.")

    def _flat(self) -> None:
        if self._viewer.dims.ndisplay != 2:
            self._viewer.dims.ndisplay = 2
            frame(self._viewer)

    def _drawn(self, event: Any = None) -> None:
        layer = self._find(LINE_LAYER)
        if layer is None or not len(layer.data) or str(getattr(event, "action", "added")).endswith("ing"):
            return
        start, end = (tuple(float(v) for v in layer.data_to_world(point)[-2:]) for point in layer.data[-1][[0, -1]])
        self._line = self._layers.in_place(*start), self._layers.in_place(*end)
        self._column = None
        self._refresh()

    def _refresh(self) -> None:
        for pane in self.panes:
            pane.hide()
        if self._column is None and self._line is None:
            return
        colors = dict(zip((name for name in self._volumes if name != TRUTH), PALETTE * 4, strict=False))
        try:
            lines = self._along_line() if self._line is not None else self._through_column()
        except InputError as error:
            notify(error)
            return
        self.curves.show_lines(lines, colors)
        self.curves.setVisible(bool(lines))

    def _through_column(self) -> dict[str, Any]:
        assert self._column is not None
        y, x = self._column
        holding = {name: placed for name, placed in self._volumes.items() if placed.holds(y, x)}
        where = f"Through y = {y:.2f} Å, x = {x:.2f} Å"
        self.place.setText(f"{where}." if holding else f"{where}: none of the chosen volumes is there.")
        return {name: (placed.depths_A, placed.profile(y, x)) for name, placed in holding.items()}

    def _along_line(self) -> dict[str, Any]:
        assert self._line is not None
        sections = {name: placed.section(*self._line) for name, placed in self._volumes.items()}
        if not sections:
            self.place.setText("Choose runs in the table.")
            return {}
        length = max(distance[-1] for distance, _ in sections.values())
        under = any(np.isfinite(cut).any() for _, cut in sections.values())
        found = ", and the sections under it" if under else ": none of the chosen volumes is under it"
        self.place.setText(f"{'Mean along a' if under else 'A'} line of {length:.1f} Å{found}.")
        shown = next((v for n, v in sections.items() if n == TRUTH), next(iter(sections.values())))[1]
        levels = 0.0, float(np.nanmax(shown)) if np.isfinite(shown).any() else 1.0
        for pane, (name, (distance, cut)) in zip(self.panes, sections.items(), strict=False):
            step = distance[1] - distance[0]
            taller = max(1, round(self._volumes[name].voxel_size_A[0] / step))  # square in Å
            pane.title.setText(name)
            pane.show_image(np.nan_to_num(np.repeat(cut, taller, axis=0)), levels=levels)
            pane.show()
        return {name: (self._volumes[name].depths_A, _mean(cut)) for name, (_, cut) in sections.items()}

    def _mark(self, name: str, points: np.ndarray[Any, Any]) -> None:
        layer = self._find(name)
        if layer is None:
            style = {"face_color": "transparent", "border_color": MARK, "border_width": 0.15, "size": 1.6}
            active = self._viewer.layers.selection.active
            self._viewer.add_points(points, name=name, **style, **_IN_ANGSTROM)
            self._viewer.layers.selection.active = active
        else:
            layer.data = points

    def _find(self, name: str) -> Any:
        return next((layer for layer in self._viewer.layers if layer.name == name), None)


_IN_ANGSTROM = {"axis_labels": ("y", "x"), "units": ("angstrom",) * 2}


def _mean(cut: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """(z,) of (z, n), over what lies inside."""
    inside = np.isfinite(cut[0])
    return np.asarray(cut[:, inside].mean(1)) if inside.any() else np.full(len(cut), np.nan)


def _follow_clicks(profiles: Profiles, viewer: Any) -> None:
    """While a column is asked for, take the place of a click on the canvas."""
    mine = weakref.ref(profiles)

    def pressed(viewer: Any, event: Any) -> None:
        profiles = mine()
        if profiles is None:
            viewer.mouse_drag_callbacks.remove(pressed)
        elif profiles.pick.isChecked() and viewer.dims.ndisplay == 2:
            profiles.show_column(*(float(v) for v in event.position[-2:]))

    viewer.mouse_drag_callbacks.append(pressed)
