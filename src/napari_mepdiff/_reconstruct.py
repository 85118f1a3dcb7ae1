"""The dock "Reconstruct": a method and its settings, Run, and volumes as they form, beside the patterns they explain."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QComboBox, QFormLayout, QHBoxLayout, QLabel, QProgressBar

from mepdiff_core.config import check, from_dict, merge, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.jobs import Job
from mepdiff_core.reconstruction import DEFAULT_METHOD, METHODS, MethodConfig, method_config
from napari_mepdiff._dock import Dock, button, heading, notify, words
from napari_mepdiff._export import Request
from napari_mepdiff._form import ConfigForm, Section
from napari_mepdiff._playback import Playback
from napari_mepdiff._preferences import preferences, recall, remember, runs_folder
from napari_mepdiff._prior_chooser import PriorChooser
from napari_mepdiff._queue import Queue, QueueView
from napari_mepdiff._session import session_of
from napari_mepdiff._steer import Steer
from napari_mepdiff._take_along import TakeAlong
from napari_mepdiff._task import Task
from napari_mepdiff._watch import Watch

FROM_OPTICS = ("slices", "slice_thickness_A")
"""Settings that the dock "Optics and scan" has."""
ELSEWHERE = (
    *(*FROM_OPTICS, "prior"),
    *(f"crystal.{name}" for name in (*FROM_OPTICS, "heldout_fraction", "seed")),
)
"""Settings that are not in the form: others say what they are."""
DEVICES = ("auto", "cpu", "cuda", "mps")
JOIN_S = 10.0


class Reconstruct(Dock):
    """Run methods on the session's scan and watch.

    Args:
        napari_viewer: gets the volumes as layers.

    Attributes:
        task: the reconstruction that is shown; None before the first.
        queue: all of them.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self.queue = Queue(napari_viewer, self)
        self.task: Task | None = None
        self._told: set[Task] = set()

        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.method = QComboBox()
        for name, method in METHODS.items():
            self.method.addItem(name)
            self.method.setItemData(self.method.count() - 1, _sentence(method.summary), Qt.ItemDataRole.ToolTipRole)
        self.method.setToolTip("<qt>How to reconstruct.</qt>")
        self.device = QComboBox()
        self.device.setEditable(True)
        self.device.addItems(DEVICES)
        self.device.setToolTip("<qt>Where to compute: auto takes a GPU if there is one; cuda:1 names the second.</qt>")
        self.device.setCurrentText(str(preferences().device))
        form.addRow(QLabel("method"), self.method)
        self.summary = words()
        form.addRow(self.summary)
        self.prior_label = QLabel("prior")
        self.prior = PriorChooser()
        form.addRow(self.prior_label, self.prior)
        form.addRow(QLabel("device"), self.device)
        self.column.addLayout(form)
        self.settings = Section("Settings")
        self.column.addWidget(self.settings)
        self._configs = {name: self._recalled(name) for name in METHODS}
        self.form: ConfigForm | None = None
        self._shown = ""
        self.method.currentTextChanged.connect(self._choose)
        self.prior.chosen.connect(self._update_buttons)

        row = QHBoxLayout()
        self.run_button = button("Run", "Reconstruct the scan with these settings.", self.run)
        self.pause_button = button("Pause", "Wait after this step; nothing is lost.", self.pause)
        self.stop_button = button("Stop", "Stop after this step and free the device. The volume stays.", self.stop)
        for each in (self.run_button, self.pause_button, self.stop_button):
            row.addWidget(each)
        self.column.addLayout(row)
        self.jobs_section = Section("Runs of this window")
        self.queue_view = QueueView(self.queue)
        self.jobs_section.set_content(self.queue_view)
        self.jobs_section.hide()
        self.column.addWidget(self.jobs_section)
        self.progress = QProgressBar()
        self.progress.setFormat("")
        self.column.addWidget(self.progress)
        self.status = words()
        self.column.addWidget(self.status)
        self.show_button = button("Show volume again", "Bring back the layer of this run.", self._show_again)
        self.show_button.hide()
        self.column.addWidget(self.show_button)
        self.steer = Steer()
        self.column.addWidget(self.steer)
        self.watch = Watch(napari_viewer)
        self.column.addWidget(self.watch)
        self.playback = Playback(napari_viewer)
        self.column.addWidget(self.playback)

        self.column.addWidget(heading("Take it along"))
        self.take_along = TakeAlong(self)
        self.entries = self.take_along.entries
        self.column.addWidget(self.take_along)
        self.folder = words()
        self.column.addWidget(self.folder)
        self.column.addStretch(1)

        self.queue.changed.connect(self._refresh)
        self.queue_view.chosen.connect(self.show_task)
        self.session.changed.connect(self._update_buttons)
        jobs, movies = self.queue.jobs, self.playback.jobs
        self.on_close(lambda: stop_jobs([*jobs, *movies]))

        last = recall("reconstruct").get("method", DEFAULT_METHOD)
        self.method.setCurrentText(last if last in METHODS else DEFAULT_METHOD)
        self._choose(self.method.currentText())

    # what is asked for

    def config(self) -> MethodConfig:
        """The method's settings, as the form and the choice of a prior have them.

        Raises:
            InputError: they are impossible.
        """
        assert self.form is not None
        values = to_dict(self.form.value())
        if "prior" in values:
            check(not self.prior.error, self.prior.error)
            values["prior"] = self.prior.value()
        return method_config(self._shown, values)

    def show_config(self, config: MethodConfig) -> None:
        """Put settings into the form."""
        assert self.form is not None
        self.form.set_value(config)
        if hasattr(config, "prior"):
            self.prior.set_value(config.prior)
        self._form_edited()

    def request(self) -> Request:
        """What Run would do now.

        Raises:
            InputError: no scan yet, or settings that are impossible.
        """
        session = self.session
        check(session.path is not None, "no scan yet; load one in Load scan, drop a file, or File > Open Sample")
        assert session.path is not None
        check(session.scan_in_file is not None and session.scan() is not None, "no scan yet")
        config = method_config(self._shown, merge(to_dict(self.config()), session.specimen_settings()))
        device = self.device.currentText().strip() or "auto"
        return Request(session.path, self._shown, config, device, session.calibration_changes(), session.probe_path)

    def _choose(self, method: str) -> None:
        if method == self._shown:
            return
        self._keep_form()
        self._shown = method
        self.summary.setText(_sentence(METHODS[method].summary))
        self.form = ConfigForm(self._configs[method], hide=ELSEWHERE)
        self.form.value_changed.connect(self._form_edited)
        self.settings.set_content(self.form)
        for each in (self.prior, self.prior_label):
            each.setVisible(self._needs_prior())
        self._form_edited()

    def _needs_prior(self) -> bool:
        return hasattr(METHODS[self._shown].default, "prior")

    def _keep_form(self) -> None:
        if self.form is not None and self.form.validate():
            self._configs[self._shown] = self.form.value()

    def _form_edited(self) -> None:
        self._keep_form()
        default, now = METHODS[self._shown].default, self._configs[self._shown]
        count = sum(getattr(default, name) != getattr(now, name) for name in to_dict(default) if name not in ELSEWHERE)
        self.settings.heading.setText(f"Settings ({count} changed)" if count else "Settings")
        self._update_buttons()

    def _recalled(self, method: str) -> MethodConfig:
        kept = recall("reconstruct").get("configs", {})
        default = METHODS[method].default
        try:
            values = {k: v for k, v in dict(kept.get(method, {})).items() if k not in ELSEWHERE}
            return from_dict(type(default), merge(to_dict(default), values), "settings")
        except (InputError, AttributeError, TypeError, ValueError):
            return default  # of another version, perhaps

    # running

    @property
    def job(self) -> Job[Any, Any] | None:
        """Of the reconstruction that is shown, until it has ended."""
        return self.task.job if self.task is not None and self.task.job in self.queue.jobs else None

    def run(self) -> None:
        """Ask for a reconstruction; it begins when its turn comes."""
        try:
            check(self.session.confirmed or self.session.path is None, NOT_CONFIRMED)
            request = self.request()
        except InputError as error:
            notify(error)
            return
        self._keep_form()
        try:
            configs = {name: to_dict(config) for name, config in self._configs.items()}
            remember("reconstruct", {"method": request.method, "configs": configs})
        except InputError as error:
            notify(error)  # settings that are not kept are no reason not to run
        task = self.queue.add(request, self._new_folder(request))
        if self.job is None or task.status != "waiting":
            self.show_task(task)
        else:
            self._refresh()
        QTimer.singleShot(0, self._show_course)  # once the list of runs has its place

    def _show_course(self) -> None:
        """Scroll to the run's progress, which long settings may have pushed out of sight."""
        self.scroll_to(self.run_button)

    def continue_run(self) -> None:
        """Go on with the run that is shown, after it was stopped."""
        before = self.task
        if before is None or before.run is None or not before.job.ended:
            return
        device = self.device.currentText().strip() or "auto"
        request = Request(before.request.scan, before.request.method, before.run.config, device)
        self.show_task(self.queue.add(request, before.out, before))

    def pause(self) -> None:
        """Pause the reconstruction that is shown, or go on, also with one that was stopped."""
        if self.job is None:
            self.continue_run()
        elif self.task is not None:
            self.task.pause()
            self._refresh()

    def stop(self) -> None:
        """Stop it after the step that is under way."""
        if self.task is not None and self.job is not None:
            self.task.stop()
            self._refresh()

    def show_task(self, task: Task) -> None:
        """Show another reconstruction's course here."""
        if task is not self.task:
            self.task = self.queue.shown = task
            self.watch.forget_volume()
            self.queue.put_in_front(task)
        self.queue_view.show_task(task)
        self._refresh()

    def _new_folder(self, request: Request) -> Path:
        stamp = time.strftime("%Y%m%d-%H%M%S")
        taken = {task.out for task in self.queue.tasks}
        out = runs_folder() / f"{request.scan.stem}-{request.method}-{stamp}"
        number = 1
        while out.exists() or out in taken:
            number += 1
            out = out.with_name(f"{request.scan.stem}-{request.method}-{stamp}-{number}")
        return out

    # what is shown

    @property
    def _rows(self) -> list[Any]:
        return self.task.rows if self.task is not None else []

    @property
    def _jobs(self) -> list[Job[Any, Any]]:
        return self.queue.jobs

    def _refresh(self) -> None:
        """Show the task that is shown as it now is."""
        for each in self.queue.tasks:
            self._tell_session(each)
        several = len(self.queue.tasks) > 1
        if several and self.jobs_section.isHidden():
            self.jobs_section.show()
            self.jobs_section.unfold(True)
        task = self.task
        if task is None:
            return
        self._show_progress(task)
        self.watch.show_rows(task.rows)
        if task.run is not None and task.last is not None:
            self.watch.show_volume(task.request.scan, task.run, task.last.volume)
        self.steer.follow(task)
        self.playback.follow(task)
        self.show_button.setVisible(task.removed)
        self._update_buttons()

    def _tell_session(self, task: Task) -> None:
        known = task.out in self.session.runs
        if task.run is not None and (not known or (task.job.ended and task not in self._told)):
            self.session.add_run(task.out)
        if task.job.ended:
            self._told = {each for each in self._told if each in self.queue.tasks} | {task}

    def _show_progress(self, task: Task) -> None:
        rows, status = task.rows, task.status
        if not rows:
            self.progress.setRange(0, 0 if status == "running" else 1)
            self.progress.setFormat("")
        else:
            self.progress.setRange(0, rows[-1].total)
            self.progress.setValue(rows[-1].step)
            self.progress.setFormat("%v of %m")
        if status == "finished" and task.run is not None:
            self.progress.setRange(0, task.run.metrics["steps"])
            self.progress.setValue(task.run.metrics["steps"])
        texts = {
            "waiting": f"Waits for its turn: {len(self.queue.running)} running, {len(self.queue.waiting)} in the queue.",
            "running": task.progress_text() or "Starting: libraries and patterns are loaded …",
            "paused": f"Paused. {task.progress_text()}",
            "stopping": f"Stopping after this step. {task.progress_text()}",
        }
        note = task.last.note if task.last is not None and status == "running" else ""
        text = task.text or texts.get(status, "")
        self.status.setText(f"{text} {_sentence(note)}" if note else text)

    def _update_buttons(self) -> None:
        job = self.job
        reason = self._reason()
        waits = len(self.queue.running) >= self.queue.at_once
        self.run_button.setEnabled(not reason)
        self.run_button.setText("Add to queue" if waits else "Run")
        tip = "Reconstruct the scan with these settings, after those that are under way." if waits else ""
        self.run_button.setToolTip(f"<qt>{reason or tip or 'Reconstruct the scan with these settings.'}</qt>")
        task = self.task
        kept = task is not None and task.out.exists()  # what was refused has left nothing
        status = task.run.folder.record["status"] if task is not None and task.run is not None and kept else ""
        over = job is None and status not in ("", "finished", "running")
        self.pause_button.setEnabled(over or (job is not None and job.status in ("running", "paused")))
        paused = job is not None and job.status == "paused"
        self.pause_button.setText("Resume" if paused else "Continue" if over else "Pause")
        tip = "Go on where this run was stopped." if over else "Wait after this step; nothing is lost."
        self.pause_button.setToolTip(f"<qt>{tip}</qt>")
        self.stop_button.setEnabled(job is not None and job.status in ("waiting", "running", "paused"))
        for name in ("Copy as Python", "Copy as command"):
            self.entries[name].setEnabled(self.session.path is not None)
        self.entries["Save run…"].setEnabled(task is not None and task.last is not None and kept)
        if task is None:
            self.status.setText(reason or "Ready.")
        where = task.out if task is not None and task.run is not None and kept else runs_folder()
        self.folder.setText(f"Runs are kept in {breakable(where)}")

    def _reason(self) -> str:
        if self.session.path is None:
            return "No scan yet: load one in Load scan, drop a file, or File > Open Sample."
        if not self.session.confirmed:
            return NOT_CONFIRMED
        if self._needs_prior() and self.prior.error:
            return _sentence(self.prior.error)
        return "Some settings are impossible; they are marked red." if self.form is not None and self.form.error else ""

    def _show_again(self) -> None:
        if self.task is not None:
            self.task.show_again()
            self._refresh()


NOT_CONFIRMED = "Confirm the calibration in Load scan first: press 'Calibration is right'."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def breakable(path: Path) -> str:
    """A path that a label can wrap."""
    return str(path).replace("/", "/\N{ZERO WIDTH SPACE}").replace("\\", "\\\N{ZERO WIDTH SPACE}")


def stop_jobs(jobs: list[Job[Any, Any]]) -> None:
    """Cancel and wait a little: long enough for a step to end and its run folder to be written."""
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.join(JOIN_S)
