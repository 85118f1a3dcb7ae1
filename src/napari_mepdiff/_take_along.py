"""The rows "Take it along" of Reconstruct: its settings and its run, as script, command, file or folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari.utils.notifications import show_info
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QGridLayout, QPushButton, QVBoxLayout, QWidget

from mepdiff_core.config import dump_yaml, merge, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_text
from mepdiff_core.reconstruction import method_config
from napari_mepdiff._dialogs import YAML, ask_open, ask_save
from napari_mepdiff._dock import button, notify
from napari_mepdiff._export import as_command, as_python
from napari_mepdiff._preferences import remember_folder
from napari_mepdiff._writer import copy_run

if TYPE_CHECKING:
    from napari_mepdiff._reconstruct import Reconstruct


class TakeAlong(QWidget):
    """Buttons.

    Args:
        dock: whose settings and run they take.
    """

    def __init__(self, dock: Reconstruct) -> None:
        super().__init__()
        self._dock = dock
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        grid = QGridLayout()
        grid.setSpacing(4)
        entries: list[tuple[str, str, Callable[[], object]]] = [
            ("Copy as Python", "A script that does the same, to the clipboard.", lambda: self._copy(as_python)),
            ("Copy as command", "A command line that does the same, to the clipboard.", lambda: self._copy(as_command)),
            ("Save config…", "The method's settings as YAML, for --config.", self._save_config),
            ("Load config…", "Settings of this method from a YAML file.", self._load_config),
            ("Save run…", "A copy of the run folder: volume, history, settings, report.", self._save_run),
        ]
        self.entries: dict[str, QPushButton] = {}
        for i, (name, tip, press) in enumerate(entries):
            self.entries[name] = button(name, tip, press)
            grid.addWidget(self.entries[name], i // 2, i % 2)
        column.addLayout(grid)

    def _copy(self, words_for: Any) -> None:
        try:
            text = words_for(self._dock.request())
        except InputError as error:
            notify(error)
            return
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
        show_info("Copied to the clipboard.")

    def _save_config(self) -> None:
        path = ask_save(self, "Save config", f"{self._dock.method.currentText()}.yaml", YAML)
        if path:
            self.save_config(path)

    def save_config(self, path: Path) -> None:
        """Write the method's settings to a YAML file."""
        session = self._dock.session
        try:
            config = merge(to_dict(self._dock.config()), session.specimen_settings() if session.path else {})
            write_text(path, dump_yaml(config))
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)

    def _load_config(self) -> None:
        path = ask_open(self, "Load config", YAML)
        if path:
            self.load_config(path)

    def load_config(self, path: Path) -> None:
        """Put the settings of a YAML file into the form; slices stay those of Optics and scan."""
        try:
            config = method_config(self._dock.method.currentText(), read_yaml(path))
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)
        self._dock.show_config(config)

    def _save_run(self) -> None:
        task = self._dock.task
        path = ask_save(self, "Save run folder", task.out.name) if task is not None else None
        if path:
            self.save_run(path)

    def save_run(self, path: Path) -> None:
        """Copy the run folder."""
        task = self._dock.task
        if task is None:
            return
        try:
            copy_run(task.out, path)
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)
        show_info(f"Saved to {path}.")
