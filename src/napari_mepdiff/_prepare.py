"""The section "Prepare the scan": steps chosen in a form, done in a thread, written to a file, and undone again."""

from __future__ import annotations

import html
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qtpy.QtWidgets import QHBoxLayout, QProgressBar, QVBoxLayout, QWidget

from mepdiff_core.calibration import Calibration
from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.jobs import Job
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan
from napari_mepdiff._dock import button, notify, words
from napari_mepdiff._form import ConfigForm
from napari_mepdiff._layers import KEY, scan_layers
from napari_mepdiff._preferences import preferences, runs_folder
from napari_mepdiff._pump import Pump
from napari_mepdiff._session import Session

FOUND = {"background": "found", "electrons_per_count": "found"}
"""What an empty line means, where it is not "as it is"."""
KEPT = ("scan_crop", "detector_crop", "detector_pixels", "k_max_invA", "pixel_size_A")


@dataclass(frozen=True)
class _Before:
    """A scan as it was, to go back to."""

    path: Path
    scan: Scan
    calibration: Calibration
    slices: int
    probe_path: Path | None
    confirmed: bool


class Prepare(QWidget):
    """What to do with the scan before it is reconstructed.

    Args:
        viewer: gets the prepared scan's layer.
        session: has the scan, and gets the prepared one.
        jobs: where a preparation under way is kept, for whoever closes the dock.
    """

    def __init__(self, viewer: Any, session: Session, jobs: list[Job[Any, Any]]) -> None:
        super().__init__()
        self._viewer, self.session, self._jobs = viewer, session, jobs
        self._before: list[_Before] = []
        self._mine: Path | None = None
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        column.addWidget(words("Steps come in this order. Each is on the record of the scan and of its runs."))
        self.form = ConfigForm(PrepareConfig(), missing={"blind": "none"} | FOUND | dict.fromkeys(KEPT, "as it is"))
        self.form.value_changed.connect(self._show)
        column.addWidget(self.form)
        row = QHBoxLayout()
        self.apply = button("Prepare", "Do what stands above, into a new file beside the runs.", self._apply)
        self.undo = button("Undo", "Back to the scan as it was before the last preparation.", self._undo)
        row.addWidget(self.apply, 1)
        row.addWidget(self.undo)
        column.addLayout(row)
        self.progress = QProgressBar()
        self.progress.hide()
        column.addWidget(self.progress)
        self.done = words()
        column.addWidget(self.done)
        self.pump = Pump(self)
        self.pump.state.connect(self._step)
        self.pump.ended.connect(self._ended)
        session.loaded.connect(self._loaded)
        self._show()

    def _loaded(self) -> None:
        if self.session.path != self._mine:
            self._before.clear()  # another scan: what was before belongs to the old one
            self.done.setText("")
        self._show()

    def _show(self) -> None:
        known = self.session.scan_in_file is not None
        self.form.setEnabled(known)
        self.apply.setEnabled(known and (bool(self._jobs) or not self.form.error))
        self.undo.setEnabled(bool(self._before) and not self._jobs)

    def _apply(self) -> None:
        if self._jobs:
            self._jobs[0].cancel()
            self.apply.setEnabled(False)
            return
        try:
            config = self.form.value()
            check(config != PrepareConfig(), "nothing to do yet: choose at least one step of the preparation")
            scan = self.session.scan()
            folder = runs_folder()
            folder.mkdir(parents=True, exist_ok=True)
        except (InputError, OSError) as error:
            notify(error)
            return
        assert self.session.path is not None
        stem = self.session.path.stem.partition("-prepared-")[0]
        path = folder / f"{stem}-prepared-{time.strftime('%Y%m%d-%H%M%S')}.h5"
        source = self.session.scan_in_file

        def loop() -> Iterator[tuple[int, int, str, Path, Any, Scan | None]]:
            from mepdiff_core.preparation import prepare_steps
            from mepdiff_core.scan import save_scan

            for step in prepare_steps(scan, config):
                if step.scan is not None:
                    save_scan(step.scan, path)
                yield step.done, step.total, step.what, path, source, step.scan

        job: Job[Any, None] = Job(loop, lambda _: None, "mepdiff preparation")
        self._jobs.append(job)
        self.apply.setText("Stop")
        self.undo.setEnabled(False)
        self.progress.setRange(0, 0)
        self.progress.setFormat("starting …")
        self.progress.show()
        job.start()
        self.pump.follow(job, float(preferences().stream_rate))

    def _step(self, state: tuple[int, int, str, Path, Any, Scan | None]) -> None:
        done, total, what, path, source, prepared = state
        self.progress.setRange(0, total)
        self.progress.setValue(done)
        self.progress.setFormat(f"{what}, row %v of %m")
        if prepared is not None and source is self.session.scan_in_file:
            self._take(path, prepared)

    def _take(self, path: Path, prepared: Scan) -> None:
        from mepdiff_core.preparation import words_of

        session = self.session
        assert session.path is not None
        assert session.scan_in_file is not None
        assert session.calibration is not None
        self._before.append(
            _Before(
                session.path,
                session.scan_in_file,
                session.calibration,
                session.slices,
                session.probe_path,
                session.confirmed,
            )
        )
        self._mine = path
        slices = session.slices
        self._show_layers(path, prepared)
        assert session.calibration is not None
        session.set_calibration(session.calibration, slices)
        lines = "".join(f"<li>{html.escape(line)}</li>" for line in words_of(prepared))
        self.done.setText(f"<ul style='margin-left: -24px'>{lines}</ul>Written to {html.escape(path.name)}.")

    def _show_layers(self, path: Path, scan: Scan) -> None:
        """The scan's overview in place of that of the one before, and the scan in the session."""
        for layer in self._viewer.layers:
            if "scan" in (layer.metadata.get(KEY) or {}):
                layer.visible = False
        there = next((la for la in self._viewer.layers if (la.metadata.get(KEY) or {}).get("path") == str(path)), None)
        if there is not None:
            there.visible = True
        else:
            data, settings, _ = scan_layers(scan, path)[0]
            self._viewer.add_image(data, **settings)
        if self.session.scan_in_file is not scan:
            self.session.show_scan(path, scan)

    def _undo(self) -> None:
        before, undone = self._before.pop(), self.session.path
        self._mine = before.path
        for layer in [la for la in self._viewer.layers if (la.metadata.get(KEY) or {}).get("path") == str(undone)]:
            self._viewer.layers.remove(layer)
        self._show_layers(before.path, before.scan)
        self.session.set_calibration(before.calibration, before.slices)
        self.session.set_probe(before.probe_path)
        if before.confirmed:
            self.session.confirm()
        self.done.setText(f"Back to {html.escape(before.path.name)}.")
        self._show()

    def _ended(self, job: Job[Any, Any]) -> None:
        self._jobs.clear()
        self.apply.setText("Prepare")
        self.progress.hide()
        if job.error is not None:
            notify(job.error, job.details)
        self._show()
