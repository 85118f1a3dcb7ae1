"""Guidance to change while a sampler runs."""

from __future__ import annotations

import html
from typing import Any

from qtpy.QtWidgets import QFormLayout, QLabel, QWidget

from mepdiff_core.config import describe
from mepdiff_core.errors import InputError
from mepdiff_core.steering import steerable
from napari_mepdiff._dock import notify, words
from napari_mepdiff._form import TextField, label_of
from napari_mepdiff._task import Task


class Steer(QWidget):
    """A line for each setting that a running sampler lets change: Enter, and the next step takes it up."""

    def __init__(self) -> None:
        super().__init__()
        self._layout = QFormLayout(self)
        self._layout.setContentsMargins(0, 0, 0, 0)
        self._layout.setVerticalSpacing(4)
        self.fields: dict[str, TextField] = {}
        self._task: Task | None = None
        self.said = words()
        self.hide()

    def follow(self, task: Task | None) -> None:
        """Steer this task, while it runs."""
        config = task.request.config if task is not None else None
        names = steerable(config) if config is not None else []
        if task is not self._task:
            self._task = task
            self._build(config, names)
        self.setVisible(bool(names) and task is not None and task.run is not None and not task.job.ended)
        if task is not None and task.run is not None and task.run.steering.changes:
            last = task.run.steering.changes[-1]
            changed = ", ".join(f"{label_of(name)} {value:g}" for name, value in last.items() if name != "step")
            self.said.setText(f"Since step {last['step']}: {changed}.")

    def _build(self, config: Any, names: list[str]) -> None:
        while self._layout.rowCount():
            self._layout.removeRow(0)
        self.fields = {}
        if not names:
            return
        self._layout.addRow(QLabel("<b>Guidance, from the next step on</b>"))
        meanings = {name: meaning for name, _, meaning in describe(config)}
        for name in names:
            field = TextField(name, float)
            field.set_value(getattr(config, name))
            field.setToolTip(
                f"<qt>{html.escape(meanings[name])} Enter: the next step takes it up, and it is on record.</qt>"
            )
            field.returnPressed.connect(lambda name=name: self._ask(name))
            self.fields[name] = field
            self._layout.addRow(QLabel(label_of(name)), field)
        self.said = words("Type a value and press Enter.")
        self._layout.addRow(self.said)

    def _ask(self, name: str) -> None:
        task = self._task
        if task is None or task.run is None:
            return
        try:
            value = self.fields[name].value()
            task.run.steering.ask(task.run.config, **{name: value})
        except InputError as error:
            notify(error)
            return
        self.said.setText(f"{label_of(name)[:1].upper()}{label_of(name)[1:]} {value:g} from the next step on.")
