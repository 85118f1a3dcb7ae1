"""Small pictures and curves inside a dock (pyqtgraph); patterns are no layers, since 1/Å beside Å turns units off."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyqtgraph as pg
from napari.utils.theme import get_theme
from qtpy.QtCore import QRectF, Signal
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QLabel, QVBoxLayout, QWidget

Image = npt.NDArray[np.generic]
LOSS_COLORS = {"loss": "#2e86ab", "held out": "#d1792f", "network": "#a871d6", "physics": "#2e9e6b"}
PALETTE = ("#2e86ab", "#d1792f", "#2e9e6b", "#a871d6", "#d1495b", "#b59f2a")
"""Lines of several volumes; read on the dark theme and on the light one."""


class Pane(QWidget):
    """A titled picture with square pixels.

    Attributes:
        hovered: signal; (row, column) of the pixel under the mouse.
        clicked: signal; (row, column) of the pixel that was clicked.
    """

    hovered = Signal(int, int)
    clicked = Signal(int, int)

    def __init__(self, title: str, tooltip: str = "", colormap: str = "CET-L1", height: int = 150) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        layout.setSpacing(1)
        self.title = QLabel(title)
        self.title.setToolTip(tooltip)
        self.title.setWordWrap(True)
        layout.addWidget(self.title)
        self.view = pg.PlotWidget()
        self.view.setToolTip(tooltip)
        self.view.setFixedHeight(height)
        self.view.setMinimumWidth(80)
        for axis in ("left", "bottom"):
            self.view.hideAxis(axis)
        self.view.setMenuEnabled(False)
        self.view.hideButtons()
        self.view.setMouseEnabled(False, False)
        self.view.setAspectLocked(True)
        self.view.invertY(True)
        self.circle: Any = None
        self.image = pg.ImageItem(axisOrder="row-major")
        self.image.setColorMap(pg.colormap.get(colormap))
        self.view.addItem(self.image)
        self.view.getPlotItem().getViewBox().setDefaultPadding(0.02)
        layout.addWidget(self.view)
        self.view.scene().sigMouseMoved.connect(self._moved)
        self.view.scene().sigMouseClicked.connect(self._pressed)

    def show_image(self, image: Image, extent: float | None = None, levels: tuple[float, float] | None = None) -> None:
        """Show a picture.

        Args:
            image: (rows, columns).
            extent: width of the picture in its own unit, centred at pixel n // 2; None: in pixels from the corner.
            levels: what is black and what is white; its smallest and largest value by default.
        """
        values = np.asarray(image, np.float32)
        if levels is None:
            low, high = float(values.min()), float(values.max())
            levels = (low, high if high > low else low + 1)
        self.image.setImage(values, levels=levels)
        rows, columns = values.shape
        rect = QRectF(0, 0, columns, rows)
        if extent is not None:
            step = extent / columns
            rect = QRectF(-(columns // 2 + 0.5) * step, -(rows // 2 + 0.5) * step, extent, step * rows)
        if rect != getattr(self, "_rect", None):
            self._rect = rect
            self.image.setRect(rect)
            self.view.setRange(rect, padding=0.02)

    def clear(self) -> None:
        """Show no picture."""
        self.image.clear()

    def show_circle(self, radius: float, color: str) -> None:
        """Draw a circle about the centre, in the unit of the picture's extent; the one before goes."""
        if self.circle is None:
            self.circle = pg.PlotCurveItem(pen=pg.mkPen(color, width=2))
            self.view.addItem(self.circle)
        angle = np.linspace(0, 2 * np.pi, 91)
        self.circle.setData(radius * np.cos(angle), radius * np.sin(angle))

    def paint(self, theme: str) -> None:
        """Take on the colours of a napari theme."""
        self.view.setBackground(_qcolor(get_theme(theme).background))

    def _pixel(self, position: Any) -> tuple[int, int] | None:
        if self.image.image is None:
            return None
        point = self.image.mapFromScene(position)
        row, column = int(np.floor(point.y())), int(np.floor(point.x()))
        rows, columns = self.image.image.shape
        return (row, column) if 0 <= row < rows and 0 <= column < columns else None

    def _moved(self, position: Any) -> None:
        pixel = self._pixel(position)
        if pixel is not None:
            self.hovered.emit(*pixel)

    def _pressed(self, event: Any) -> None:
        pixel = self._pixel(event.scenePos())
        if pixel is not None:
            self.clicked.emit(*pixel)


class Ring(pg.CircleROI):
    """A circle in 1/Å that a person drags; ``radius`` and ``centre`` as (y, x)."""

    def __init__(self, radius: float, color: str, movable: bool = True) -> None:
        super().__init__((-radius, -radius), radius=radius, pen=pg.mkPen(color, width=2), movable=movable)

    @property
    def radius(self) -> float:
        return float(abs(self.size().x()) / 2)

    @property
    def centre(self) -> tuple[float, float]:
        return float(self.pos().y() + self.size().y() / 2), float(self.pos().x() + self.size().x() / 2)

    def place(self, centre: tuple[float, float], radius: float) -> None:
        """Put it there, without a signal."""
        self.blockSignals(True)
        self.setSize((2 * radius, 2 * radius), update=False)
        self.setPos((centre[1] - radius, centre[0] - radius))
        self.blockSignals(False)


class Curves(QWidget):
    """Lines over a common axis, and their names below: a legend among them would hide the newest values."""

    def __init__(self, x_label: str, y_label: str, height: int = 130, log_y: bool = False) -> None:
        super().__init__()
        layout = QVBoxLayout(self)
        layout.setContentsMargins(0, 0, 0, 0)
        self.view = pg.PlotWidget()
        self.view.setFixedHeight(height)
        self.view.getPlotItem().setContentsMargins(0, 6, 0, 0)  # room for half of the uppermost number
        self.view.setMenuEnabled(False)
        self.view.hideButtons()
        self.view.setMouseEnabled(False, False)
        self.view.setLogMode(y=log_y)
        self._labels = {"bottom": x_label, "left": y_label}
        self._lines: dict[str, Any] = {}
        self._plain: set[str] = set()
        self._ink = QColor("gray")
        layout.addWidget(self.view)
        self.names = QLabel()
        self.names.setWordWrap(True)
        self.names.hide()
        layout.addWidget(self.names)

    def show_lines(
        self, lines: Mapping[str, tuple[Sequence[float], Sequence[float]]], colors: Mapping[str, str] | None = None
    ) -> None:
        """Show lines by name as (x, y); names that are not there any more go. A name without a colour is in that of text."""
        colors = LOSS_COLORS if colors is None else colors
        for name in [n for n in self._lines if n not in lines]:
            self.view.removeItem(self._lines.pop(name))
        self._plain = {name for name in lines if name not in colors}
        for name, (x, y) in lines.items():
            if name not in self._lines:
                self._lines[name] = self.view.plot(name=name)
            self._lines[name].setPen(pg.mkPen(colors.get(name, self._ink), width=1.5))
            # a line of a single point would not be seen
            self._lines[name].setData(np.asarray(x, float), np.asarray(y, float))
            self._lines[name].setSymbol("o" if len(x) == 1 else None)
        self.names.setText(" &nbsp; ".join(_colored(name, colors.get(name)) for name in lines))
        self.names.setVisible(len(lines) > 1)

    def show_bars(self, edges: npt.NDArray[np.floating], numbers: npt.NDArray[np.integer]) -> None:
        """Show a histogram; empty bins are left out."""
        if "bars" not in self._lines:
            self._lines["bars"] = self.view.plot(pen=pg.mkPen("#2e86ab"), stepMode="center")
        self._lines["bars"].setData(edges, np.maximum(numbers, 0.5))

    def paint(self, theme: str) -> None:
        """Take on the colours of a napari theme."""
        colors = get_theme(theme)
        self._ink = _qcolor(colors.text)
        self.view.setBackground(_qcolor(colors.background))
        for side, label in self._labels.items():
            axis = self.view.getAxis(side)
            axis.setPen(_qcolor(colors.secondary))
            axis.setTextPen(self._ink)
            # no range: rad stay rad, also below a thousandth
            axis.setLabel(label, siPrefixEnableRanges=((0.0, 0.0),), **{"font-size": "8pt", "color": self._ink.name()})
            axis.enableAutoSIPrefix(False)
        for name in self._plain:
            self._lines[name].setPen(pg.mkPen(self._ink, width=1.5))


def follow_theme(viewer: Any, *plots: Pane | Curves) -> None:
    """Paint these plots in the viewer's theme, now and when it changes."""

    def repaint() -> None:
        for plot in plots:
            plot.paint(viewer.theme)

    def changed(event: object = None) -> None:
        try:
            repaint()
        except RuntimeError:  # the dock is gone
            viewer.events.theme.disconnect(changed)

    repaint()
    viewer.events.theme.connect(changed)


def _colored(name: str, color: str | None) -> str:
    line = f"<b style='color: {color}'>—</b>" if color else "<b>—</b>"
    return f"{line}&nbsp;{html.escape(name)}"


def _qcolor(color: Any) -> QColor:
    return QColor(*(int(v) for v in color.as_rgb_tuple()[:3]))
