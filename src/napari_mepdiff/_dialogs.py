"""Asking for a file, beginning in the folder of the last one."""

from __future__ import annotations

from pathlib import Path

from qtpy.QtWidgets import QFileDialog, QWidget

from napari_mepdiff._preferences import last_folder

YAML = "YAML (*.yaml *.yml)"


def ask_open(parent: QWidget, title: str, kinds: str) -> Path | None:
    """A file to read, of these kinds in Qt's notation; None where the person cancels."""
    name, _ = QFileDialog.getOpenFileName(parent, title, str(last_folder()), kinds)
    return Path(name) if name else None


def ask_save(parent: QWidget, title: str, name: str, kinds: str = "") -> Path | None:
    """Where to write, with a suggested name; None where the person cancels."""
    chosen, _ = QFileDialog.getSaveFileName(parent, title, str(last_folder() / name), kinds)
    return Path(chosen) if chosen else None
