"""A microscope's file in the dock "Load scan": what it says of itself, what it does not, and a scan file made of it."""

from __future__ import annotations

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QLineEdit, QProgressBar, QPushButton, QVBoxLayout, QWidget

from mepdiff_core.config import from_dict
from mepdiff_core.convert import Converted, convert, pattern_side
from mepdiff_core.errors import InputError, explain
from mepdiff_core.file_calibration import NEEDED, FileCalibration, Settled, given_values, settle
from mepdiff_core.jobs import Job
from mepdiff_core.raw_scan import ScanOptions, block_patterns
from mepdiff_core.readers import open_raw
from napari_mepdiff._dock import button, heading, notify, words
from napari_mepdiff._form import ConfigForm, TextField, label_of
from napari_mepdiff._plots import Pane
from napari_mepdiff._preferences import preferences, runs_folder
from napari_mepdiff._pump import Answerer, Pump
from napari_mepdiff._units import show_quantity, unit_of

MAKE, STOP = "Calibration is right: make a scan file", "Stop"
LOOKED_AT = 64
"""Patterns that the first look adds up."""


@dataclass(frozen=True)
class Offer:
    """What a first look at a file shows.

    Attributes:
        path, options: what was looked at, and how.
        text: format, shape, what is known and what is missing, as HTML.
        settled: calibrations found in the file.
        mean: (ky, kx), of the first patterns.
        lacks: what must be given before patterns can be read as a scan, "" for nothing.
    """

    path: Path
    options: ScanOptions
    text: str
    settled: Settled
    mean: npt.NDArray[np.float64]
    lacks: str


class ConvertFile(QWidget):
    """A form between a microscope's file and a scan.

    Attributes:
        made: signal; the scan file that was made.
        offer: the last look; None before it and where the file could not be read.
        job: the conversion that runs; None where none does.
    """

    made = Signal(object)

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.offer: Offer | None = None
        self.job: Job[Converted, tuple[int, int]] | None = None
        self._path = Path()
        self._looker: Answerer[Any] = Answerer(_look, self)
        self._looker.answered.connect(self._have_looked)
        self._looker.failed.connect(self._could_not_look)
        self._pump = Pump(self)
        self._pump.state.connect(self._converted)
        self._pump.ended.connect(self._ended)

        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        self.text = words()
        column.addWidget(self.text)
        self.pane = Pane("mean of the first patterns", "Power scale; the file's own pixels.", "CET-L1")
        column.addWidget(self.pane)
        column.addWidget(heading("How to read it"))
        self.options = ConfigForm(ScanOptions(), hide=("axes",))
        for name, shown in (("scan_shape", "rows, columns"), ("key", "the only one"), ("size", "as it is")):
            self.options.fields[name].setPlaceholderText(shown)
        column.addWidget(self.options)
        column.addWidget(button("Look again", "Read the file with these.", self._look_again))
        column.addWidget(heading("Calibration"))
        self.form = ConfigForm(FileCalibration(), hide=("optics.aberrations",), opened=("optics",))
        self.form.value_changed.connect(self._update)
        column.addWidget(self.form)
        self.missing = words()
        column.addWidget(self.missing)
        column.addWidget(heading("Scan file to write"))
        self.out = QLineEdit()
        self.out.setToolTip("<qt>Where the scan file goes; the microscope's file stays as it is.</qt>")
        self.out.textEdited.connect(lambda _: self._update())
        column.addWidget(self.out)
        self.make = QPushButton(MAKE)
        self.make.setToolTip("<qt>Writes the patterns with this calibration, and loads the scan.</qt>")
        self.make.clicked.connect(lambda *_: self._make())
        column.addWidget(self.make)
        self.progress = QProgressBar()
        self.progress.hide()
        column.addWidget(self.progress)
        self.hide()

    def look(self, path: Path) -> None:
        """Show what a file holds; its forms begin anew."""
        if self.job is not None:
            notify(InputError(f"{self._path.name} is being converted; stop that first, or wait"))
            return
        self._path = path
        self.options.set_value(ScanOptions())
        self.out.setText(str(_free(runs_folder() / f"{path.stem}.h5")))
        self.text.setText(f"Reading {html.escape(path.name)} …")
        self.show()
        self._looker.ask((path, ScanOptions()))

    def stop(self, wait_s: float) -> None:
        """End a conversion that runs; what it has written is removed."""
        if self.job is not None:
            self.job.cancel()
            self.job.join(wait_s)

    def _look_again(self) -> None:
        try:
            self._looker.ask((self._path, self.options.value()))
        except InputError as error:
            notify(error)

    def _have_looked(self, question: Any, offer: Offer) -> None:
        if question[0] != self._path:
            return
        self.offer = offer
        self.text.setText(offer.text)
        self.pane.show_image(offer.mean**0.3)
        values: dict[str, Any] = {}
        for name, found in offer.settled.values.items():
            *parents, last = name.split(".")
            target = values
            for parent in parents:
                target = target.setdefault(parent, {})
            target[last] = found.value
        self.form.set_value(from_dict(FileCalibration, values, str(offer.path)))
        for name, field in self.form.fields.items():
            if isinstance(field, TextField):
                field.setPlaceholderText("missing" if name in NEEDED else "not known")
        self._update()

    def _could_not_look(self, error: Exception) -> None:
        self.offer = None
        self.text.setText(html.escape(explain(error) or str(error)))
        self._update()
        notify(error)

    def _settled(self) -> Settled | None:
        """What stands in the form; a person who presses the button has read it and confirms it."""
        try:
            return settle({}, given_values(self.form.value()))
        except InputError:
            return None

    def _update(self) -> None:
        settled = self._settled() if self.offer is not None else None
        lacks = [] if self.offer is None or not self.offer.lacks else [self.offer.lacks]
        if settled is not None:
            lacks += [f"{_label(name)}: {NEEDED[name][0]}" for name in settled.missing if name in NEEDED]
        rows = "".join(f"<li>{html.escape(line)}</li>" for line in lacks)
        self.missing.setText(f"Still missing:<ul>{rows}</ul>" if lacks else "")
        ready = settled is not None and not lacks and bool(self.out.text().strip())
        self.make.setEnabled(ready or self.job is not None)

    def _make(self) -> None:
        if self.job is not None:
            self.job.cancel()
            self.make.setEnabled(False)
            return
        assert self.offer is not None
        path, options, out = self.offer.path, self.offer.options, Path(self.out.text().strip()).expanduser()
        try:
            options = self.options.value()
            calibration = self.form.value()
            out.parent.mkdir(parents=True, exist_ok=True)
        except (InputError, OSError) as error:
            notify(error)
            return

        def loop() -> Iterator[Converted]:
            return convert(path, out, calibration, options)

        self.job = Job(loop, lambda state: (state.done, state.total), "mepdiff convert")
        self.make.setText(STOP)
        self.progress.setRange(0, 0)
        self.progress.show()
        self.job.start()
        self._pump.follow(self.job, float(preferences().stream_rate))

    def _converted(self, state: Converted) -> None:
        self.progress.setRange(0, state.total)
        self.progress.setValue(state.done)
        self.progress.setFormat("%v of %m patterns")

    def _ended(self, job: Job[Converted, tuple[int, int]]) -> None:
        self.job = None
        self.make.setText(MAKE)
        self.progress.hide()
        self._update()
        if job.error is not None:
            notify(job.error, job.details)
        elif job.status == "finished":
            self.hide()
            self.made.emit(Path(self.out.text().strip()).expanduser())


def _look(question: tuple[Path, ScanOptions]) -> Offer:
    path, options = question
    with open_raw(path, options) as raw:
        patterns = raw.patterns
        block = patterns.read(0, min(patterns.n_patterns, LOOKED_AT, block_patterns(patterns)))
        mean = np.nan_to_num(np.maximum(block, 0).astype(np.float64)).mean(axis=0)
        settled = raw.settled()
        lacks = ""
        for step in (raw.check_scan_shape, lambda: pattern_side(raw, options)):
            try:
                step()
            except InputError as error:
                lacks = lacks or str(error).removeprefix(f"{path}").lstrip(": ")
        rows, columns, height, width = patterns.shape
        shape = f"{rows} × {columns} patterns" if raw.scan_shape_source else f"{rows * columns} patterns in a row"
        lines = [
            f"<b>{html.escape(raw.format)}</b> {html.escape(raw.key)}",
            f"{shape} of {height} × {width} px, {patterns.dtype}",
        ]
        lines += [html.escape(note) for note in raw.notes]
        cells = "".join(
            f"<tr><td>{_label(name)}&nbsp;</td><td>{_shown(name, found.value)}&nbsp;</td><td>{html.escape(found.source)}"
            f"{'' if found.certain else ' <b>(to be confirmed)</b>'}</td></tr>"
            for name, found in settled.values.items()
        )
    return Offer(path, options, f"{'<br>'.join(lines)}<table>{cells}</table>", settled, mean, lacks)


def _label(name: str) -> str:
    return label_of(name.rpartition(".")[2])


def _shown(name: str, value: float) -> str:
    return show_quantity(float(f"{value:.6g}"), unit_of(name)).replace(" ", "\N{NO-BREAK SPACE}")


def _free(path: Path) -> Path:
    """A name that no file has yet."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return free
