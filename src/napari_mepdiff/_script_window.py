"""A window with a script, to copy or to save."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from napari.utils.notifications import show_info
from qtpy.QtCore import Qt
from qtpy.QtGui import QFontDatabase, QGuiApplication
from qtpy.QtWidgets import QDialog, QHBoxLayout, QPlainTextEdit, QVBoxLayout, QWidget

from mepdiff_core.errors import InputError
from mepdiff_core.files import write_text
from napari_mepdiff._dialogs import ask_save
from napari_mepdiff._dock import button, notify
from napari_mepdiff._preferences import remember_folder


class ScriptWindow(QDialog):
    """Shows a script; it can be edited here before it is taken along.

    Args:
        text: the script; title: of the window.
    """

    def __init__(self, text: str, title: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
        self.setWindowTitle(title)
        self.resize(760, 460)
        column = QVBoxLayout(self)
        self.text = QPlainTextEdit(text)
        self.text.setFont(QFontDatabase.systemFont(QFontDatabase.SystemFont.FixedFont))
        self.text.setLineWrapMode(QPlainTextEdit.LineWrapMode.NoWrap)
        column.addWidget(self.text)
        row = QHBoxLayout()
        row.addStretch(1)
        row.addWidget(button("Copy", "To the clipboard.", self._copy))
        row.addWidget(button("Save…", "As a file; run it with python.", self._save))
        row.addWidget(button("Close", "Close this window.", self.close))
        column.addLayout(row)

    def _copy(self) -> None:
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(self.text.toPlainText())
        show_info("Copied to the clipboard.")

    def _save(self) -> None:
        path = ask_save(self, "Save script", "compare.py", "Python (*.py)")
        if path:
            self.save(path)

    def save(self, path: Path) -> None:
        """Write the script as it stands."""
        try:
            write_text(path, self.text.toPlainText())
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)


def comparing_script(runs: Sequence[Path], scans: Sequence[Path]) -> str:
    """A script that lays these runs side by side as the dock does."""
    places = ",\n".join(f"    {str(path)!r}" for path in runs)
    return f'''"""Volumes of {len(runs)} runs on one scan: their metrics, slices and patterns."""

from mepdiff_core.comparison import compare
from mepdiff_core.page import text_table

RUNS = [
{places},
]
SCANS = {[str(path) for path in scans]!r}  # where the scan may be, if it is not at the place on record any more

comparison = compare(RUNS, SCANS)
print(text_table(comparison.rows(), ["method", "status"]))
print(comparison.verdict())

for name, volume in comparison.volumes.items():  # (z, y, x) in rad, and where it lies
    print(name, volume.phase.shape, volume.voxel_size_A, volume.origin_A)

comparison.slices().savefig("slices.png", dpi=130)
if comparison.scans:
    comparison.patterns().savefig("patterns.png", dpi=130)
'''
