"""The menu entry "All steps": the three docks, in working order."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

STEPS = ("Load scan", "Optics and scan", "Reconstruct")


class AllSteps(QWidget):
    """Docks the steps as tabs and leaves.

    Args:
        napari_viewer: whose window gets them.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        QTimer.singleShot(0, self._dock)  # napari docks this widget first

    def _dock(self) -> None:
        open_all_steps(self._viewer)
        self._viewer.window.remove_dock_widget(self)
        self.deleteLater()


def open_all_steps(viewer: Any) -> list[Any]:
    """Dock the steps as tabs, the first in front; returns their widgets."""
    made = [
        viewer.window.add_plugin_dock_widget("napari-mepdiff", name, tabify=number > 0) for number, name in enumerate(STEPS)
    ]
    for dock, _ in made:
        dock.show()
    made[0][0].raise_()
    return [widget for _, widget in made]
