"""The menu entry "All steps": the docks, in working order."""

from __future__ import annotations

from typing import Any

from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QWidget

from napari_mepdiff._load import LoadScan
from napari_mepdiff._optics import OpticsAndScan
from napari_mepdiff._reconstruct import Reconstruct
from napari_mepdiff._results import Results

STEPS = {"Load scan": LoadScan, "Optics and scan": OpticsAndScan, "Reconstruct": Reconstruct, "Results": Results}


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
    """Dock the steps as tabs, the first in front; steps that are there already stay. Returns their widgets."""
    widgets: list[Any] = []
    for name, make in STEPS.items():
        title = f"{name} (MEP-Diffusion)"  # as napari's menu calls it, so that both mean the same dock
        widget = viewer.window.dock_widgets.get(title)
        if widget is None:
            widget = make(viewer)
            viewer.window.add_dock_widget(widget, name=title, tabify=bool(widgets))
        widget.parent().show()
        widgets.append(widget)
    widgets[0].parent().raise_()
    return widgets
