"""What the docks have in common: a scrolling column of rows, notifications, and knowing when they are closed."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable
from typing import Any

from napari.utils.notifications import show_error, show_warning
from qtpy.QtCore import QEvent, QPoint, Qt
from qtpy.QtWidgets import QApplication, QDockWidget, QFrame, QLabel, QPushButton, QScrollArea, QVBoxLayout, QWidget

from mepdiff_core.errors import explain

WIDTH = 350
"""Every dock is readable at this width, in pixels."""
SPACING = 6
_waiting: set[Callable[..., None]] = set()
"""What Qt calls when a dock is destroyed: held here, or a garbage collection may clear it first and Qt call a ruin."""


class Dock(QWidget):
    """A column of widgets that scrolls up and down; fill ``column``.

    ``on_close`` says what to do when the dock or the window is closed (a hidden dock is not closed).
    """

    def __init__(self) -> None:
        super().__init__()
        body = QWidget()
        self.column = QVBoxLayout(body)
        self.column.setContentsMargins(6, 6, 6, 6)
        self.column.setSpacing(SPACING)
        area = self._area = QScrollArea()
        area.setWidgetResizable(True)
        area.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        area.setFrameShape(QFrame.Shape.NoFrame)
        area.setWidget(body)
        outer = QVBoxLayout(self)
        outer.setContentsMargins(0, 0, 0, 0)
        outer.addWidget(area)
        self.setMinimumWidth(WIDTH)
        self._clean_up: Callable[[], None] = lambda: None

    def scroll_to(self, widget: QWidget) -> None:
        """Bring a widget up, and with it what is below it, unless all of that is in sight."""
        top = widget.mapTo(self._area.widget(), QPoint(0, 0)).y()
        bar = self._area.verticalScrollBar()
        if not bar.value() <= top <= bar.value() + self._area.height() // 2:
            bar.setValue(top - SPACING)

    def on_close(self, clean_up: Callable[[], None]) -> None:
        """Call this once the dock or the window is closed; it must not hold the dock itself."""
        self._clean_up = clean_up
        application = QApplication.instance()
        if application is not None:
            application.aboutToQuit.connect(clean_up)

    def event(self, event: Any) -> bool:
        """Qt's word that the widget has come into a dock: napari removes a closed dock and leaves its widget behind."""
        if event.type() == QEvent.Type.ParentChange:
            self._watch()
        return bool(super().event(event))

    def _watch(self) -> None:
        parent = self.parent()
        if not isinstance(parent, QDockWidget):
            return
        parent.setWindowTitle(parent.windowTitle().partition(" (")[0])  # a short name for its tab
        clean_up, mine = self._clean_up, weakref.ref(self)

        def closed(*_: object) -> None:
            _waiting.discard(closed)
            clean_up()
            application = QApplication.instance()
            if application is not None:
                with contextlib.suppress(TypeError, RuntimeError):  # nothing was connected, or it is gone
                    application.aboutToQuit.disconnect(clean_up)
            widget = mine()
            if widget is not None:
                with contextlib.suppress(RuntimeError):  # Qt has deleted it already
                    widget.deleteLater()

        _waiting.add(closed)
        parent.destroyed.connect(closed)


def heading(text: str) -> QLabel:
    """A line above a group of rows."""
    label = QLabel(f"<b>{text}</b>")
    label.setContentsMargins(0, 4, 0, 0)
    return label


def words(text: str = "") -> QLabel:
    """Text that wraps and can be copied."""
    label = QLabel(text)
    label.setWordWrap(True)
    flags = Qt.TextInteractionFlag
    label.setTextInteractionFlags(flags.TextSelectableByMouse | flags.LinksAccessibleByMouse)
    label.setOpenExternalLinks(True)
    return label


def button(text: str, tooltip: str, press: Callable[[], object]) -> QPushButton:
    """A push button."""
    made = QPushButton(text)
    made.setToolTip(f"<qt>{tooltip}</qt>")
    made.clicked.connect(lambda *_: press())
    return made


def notify(error: BaseException, details: str = "") -> None:
    """One notification of an error: a line on what to do, or the fault with its traceback to report."""
    line = explain(error)
    if line is not None:
        show_warning(line)
        return
    reason = " ".join(str(error).split())
    show_error(f"{type(error).__name__}: {reason}. This is a fault of mepdiff; please report it.\n{details}".strip())
