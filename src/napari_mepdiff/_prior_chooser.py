"""A prior to choose: the one that comes with the package, or a file; what it is shows on hovering."""

from __future__ import annotations

import html
from pathlib import Path

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QHBoxLayout, QVBoxLayout, QWidget

from mepdiff_core.errors import InputError
from mepdiff_core.prior_card import read_card
from mepdiff_core.settings import EMBEDDED
from napari_mepdiff._dialogs import ask_open
from napari_mepdiff._dock import button, words
from napari_mepdiff._preferences import recall, remember, remember_folder

MOST = 8
"""Files that are remembered."""


class PriorChooser(QWidget):
    """A row to choose a prior in, and a line on it.

    Attributes:
        chosen: signal; another prior is chosen.
        error: why it is none, "" where it is one.
    """

    chosen = Signal()

    def __init__(self) -> None:
        super().__init__()
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(2)
        row = QHBoxLayout()
        row.setSpacing(4)
        self.box = QComboBox()
        self.box.setMinimumContentsLength(10)
        self.box.setSizeAdjustPolicy(QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon)
        self.box.activated.connect(lambda _: self._picked())
        row.addWidget(self.box, 1)
        row.addWidget(button("File…", "A prior's file (safetensors), as mepdiff train writes it.", self._browse))
        column.addLayout(row)
        self.line = words()
        column.addWidget(self.line)
        self.error = ""
        self._add(EMBEDDED)
        for path in recall("priors").get("files", []):
            if Path(str(path)).is_file():
                self._add(str(path))
        self._show_card()

    def value(self) -> str:
        """``embedded``, or a file's path."""
        return str(self.box.currentData())

    def set_value(self, prior: str) -> None:
        """Show a prior; no signal is emitted."""
        self._add(prior)
        self.box.setCurrentIndex(self.box.findData(prior))
        self._show_card()

    def choose(self, path: Path) -> None:
        """Take a file, and remember it."""
        self.set_value(str(path))
        if not self.error:
            files = [str(path), *(self.box.itemData(i) for i in range(1, self.box.count()))]
            try:
                remember("priors", {"files": list(dict.fromkeys(files))[:MOST]})
            except InputError:
                self.line.setText(f"{self.line.text()} It cannot be remembered: the settings folder cannot be written.")
            remember_folder(path.parent)
        self.chosen.emit()

    def _add(self, prior: str) -> None:
        if self.box.findData(prior) < 0:
            path = Path(prior)
            name = "embedded" if prior == EMBEDDED else f"{path.parent.name}/{path.name}" if path.parent.name else path.name
            self.box.addItem(name, prior)

    def _picked(self) -> None:
        self._show_card()
        self.chosen.emit()

    def _browse(self) -> None:
        path = ask_open(self, "Choose a prior", "Priors (*.safetensors)")
        if path:
            self.choose(path)

    def _show_card(self) -> None:
        try:
            card = read_card(self.value())
        except InputError as error:
            self.error = str(error)
            self.line.setText(f"<span style='color: #d1495b'>{html.escape(self.error)}</span>")
            self.box.setToolTip(f"<qt>{html.escape(self.error)}</qt>")
            return
        self.error = ""
        lines = card.lines()
        self.line.setText(f"{lines[0]}; hover here for its card.")
        told = "<br>".join(html.escape(line) for line in [str(card.path), *lines])
        self.box.setToolTip(f"<qt>{told}</qt>")
        self.line.setToolTip(self.box.toolTip())
