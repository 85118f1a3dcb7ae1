"""The dock "Reconstruct": a method and its settings, Run, and the volume as it forms, beside the patterns it explains."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from napari.utils.notifications import show_info, show_warning
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QComboBox, QFormLayout, QGridLayout, QHBoxLayout, QLabel, QProgressBar

from mepdiff_core.config import check, dump_yaml, from_dict, merge, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_text
from mepdiff_core.jobs import Job
from mepdiff_core.reconstruction import DEFAULT_METHOD, METHODS, MethodConfig, method_config
from mepdiff_core.runs import Run
from mepdiff_core.states import CrystalState, State
from napari_mepdiff._dialogs import YAML, ask_open, ask_save
from napari_mepdiff._dock import Dock, button, heading, notify, words
from napari_mepdiff._export import Request, as_command, as_python
from napari_mepdiff._form import ConfigForm, Section
from napari_mepdiff._layers import VolumeLayer, contrast_limits, volume_settings
from napari_mepdiff._preferences import preferences, recall, remember, remember_folder, runs_folder
from napari_mepdiff._pump import Pump
from napari_mepdiff._session import session_of
from napari_mepdiff._units import show_duration
from napari_mepdiff._watch import Row, Watch
from napari_mepdiff._writer import copy_run

FROM_OPTICS = ("slices", "slice_thickness_A")
"""Settings that the dock "Optics and scan" has."""
DEVICES = ("auto", "cpu", "cuda", "mps")
JOIN_S = 10.0
VIEW_ANGLES = (0.0, 6.0, 14.0)
"""A little off the beam: columns of atoms are short rods, and the lattice is still seen."""
LINK = "#3d9ad1"
"""A blue that is read on the dark theme and on the light one."""


class Reconstruct(Dock):
    """Run a method on the session's scan and watch.

    Args:
        napari_viewer: gets the volume as a layer.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self._jobs: list[Job[State, Row]] = []
        self._run: Run | None = None
        self._volume: VolumeLayer | None = None
        self._last: State | None = None
        self._rows: list[Row] = []
        self._told_of_removal = self._started = False

        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.method = QComboBox()
        self.method.addItems(list(METHODS))
        self.method.setToolTip("<qt>How to reconstruct.</qt>")
        self.device = QComboBox()
        self.device.setEditable(True)
        self.device.addItems(DEVICES)
        self.device.setToolTip("<qt>Where to compute: auto takes a GPU if there is one; cuda:1 names the second.</qt>")
        self.device.setCurrentText(str(preferences().device))
        form.addRow(QLabel("method"), self.method)
        self.summary = words()
        form.addRow(self.summary)
        form.addRow(QLabel("device"), self.device)
        self.column.addLayout(form)
        self.settings = Section("Settings")
        self.column.addWidget(self.settings)
        self._configs = {name: self._recalled(name) for name in METHODS}
        self.form: ConfigForm | None = None
        self._shown = ""
        self.method.currentTextChanged.connect(self._choose)

        row = QHBoxLayout()
        self.run_button = button("Run", "Reconstruct the scan with these settings.", self.run)
        self.pause_button = button("Pause", "Wait after this step; nothing is lost.", self.pause)
        self.stop_button = button("Stop", "Stop after this step and free the device. The volume stays.", self.stop)
        for each in (self.run_button, self.pause_button, self.stop_button):
            row.addWidget(each)
        self.column.addLayout(row)
        self.progress = QProgressBar()
        self.progress.setFormat("")
        self.column.addWidget(self.progress)
        self.status = words()
        self.column.addWidget(self.status)
        self.show_button = button("Show volume again", "Bring back the layer of this run.", self._show_again)
        self.show_button.hide()
        self.column.addWidget(self.show_button)

        self.watch = Watch(napari_viewer)
        self.column.addWidget(self.watch)

        self.column.addWidget(heading("Take it along"))
        grid = QGridLayout()
        grid.setSpacing(4)
        entries = [
            ("Copy as Python", "A script that does the same, to the clipboard.", lambda: self._copy(as_python)),
            ("Copy as command", "A command line that does the same, to the clipboard.", lambda: self._copy(as_command)),
            ("Save config…", "The method's settings as YAML, for --config.", self._save_config),
            ("Load config…", "Settings of this method from a YAML file.", self._load_config),
            ("Save run…", "A copy of the run folder: volume, history, settings, report.", self._save_run),
            ("Continue run", "Go on where the last run was stopped.", self.continue_run),
        ]
        self.entries = {}
        for i, (name, tip, press) in enumerate(entries):
            self.entries[name] = button(name, tip, press)
            grid.addWidget(self.entries[name], i // 2, i % 2)
        self.column.addLayout(grid)
        self.folder = words()
        self.column.addWidget(self.folder)
        self.column.addStretch(1)

        self.pump = Pump(self)
        self.pump.records.connect(self._have_records)
        self.pump.state.connect(self._have_state)
        self.pump.ended.connect(self._ended)
        self.session.changed.connect(self._update_buttons)
        napari_viewer.layers.events.removed.connect(self._layer_removed)
        jobs = self._jobs
        self.on_close(lambda: stop_jobs(jobs))

        last = recall("reconstruct").get("method", DEFAULT_METHOD)
        self.method.setCurrentText(last if last in METHODS else DEFAULT_METHOD)
        self._choose(self.method.currentText())

    # what is asked for

    def request(self) -> Request:
        """What Run would do now.

        Raises:
            InputError: no scan yet, or settings that are impossible.
        """
        session = self.session
        check(session.path is not None, "no scan yet; load one in Load scan, drop a file, or File > Open Sample")
        assert session.path is not None
        assert self.form is not None
        check(session.scan_in_file is not None and session.scan() is not None, "no scan yet")
        config = method_config(self._shown, merge(to_dict(self.form.value()), session.specimen_settings()))
        device = self.device.currentText().strip() or "auto"
        return Request(session.path, self._shown, config, device, session.calibration_changes(), session.probe_path)

    def _choose(self, method: str) -> None:
        if method == self._shown:
            return
        self._keep_form()
        self._shown = method
        self.summary.setText(f"{METHODS[method].summary}.")
        self.form = ConfigForm(self._configs[method], hide=FROM_OPTICS)
        self.form.value_changed.connect(self._form_edited)
        self.settings.set_content(self.form)
        self._form_edited()

    def _keep_form(self) -> None:
        if self.form is not None and self.form.validate():
            self._configs[self._shown] = self.form.value()

    def _form_edited(self) -> None:
        assert self.form is not None
        self._keep_form()
        default, now = METHODS[self._shown].default, self._configs[self._shown]
        count = sum(getattr(default, name) != getattr(now, name) for name in to_dict(default) if name not in FROM_OPTICS)
        self.settings.heading.setText(f"Settings ({count} changed)" if count else "Settings")
        self._update_buttons()

    def _recalled(self, method: str) -> MethodConfig:
        kept = recall("reconstruct").get("configs", {})
        default = METHODS[method].default
        try:
            values = {k: v for k, v in dict(kept.get(method, {})).items() if k not in FROM_OPTICS}
            return from_dict(type(default), merge(to_dict(default), values), "settings")
        except (InputError, AttributeError, TypeError, ValueError):
            return default  # of another version, perhaps

    # running

    @property
    def job(self) -> Job[State, Row] | None:
        """The reconstruction under way."""
        return self._jobs[0] if self._jobs else None

    def run(self) -> None:
        """Start a reconstruction."""
        if self.job is not None:
            show_warning("a reconstruction is under way; stop it first, or wait for its end")
            return
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
        stamp = time.strftime("%Y%m%d-%H%M%S")
        out = runs_folder() / f"{request.scan.stem}-{request.method}-{stamp}"
        number = 1
        while out.exists():
            number += 1
            out = out.with_name(f"{request.scan.stem}-{request.method}-{stamp}-{number}")
        self._start(request, out, resume=False)

    def continue_run(self) -> None:
        """Go on with the run that was stopped."""
        if self._run is None or self.job is not None:
            return
        record, scan = self._run.folder.record, self._scan_path
        request = Request(scan, record["method"], self._run.config, self.device.currentText().strip() or "auto")
        self._start(request, self._run.folder.path, resume=True)

    def pause(self) -> None:
        """Pause, or go on."""
        job = self.job
        if job is None:
            return
        job.resume() if job.status == "paused" else job.pause()
        if job.status == "paused":
            self.status.setText(f"Paused. {self._progress_text()}")
        self._update_buttons()

    def stop(self) -> None:
        """Stop after the step that is under way."""
        if self.job is not None:
            self.job.cancel()
            self.status.setText(f"Stopping after this step. {self._progress_text()}")
            self._update_buttons()

    def _start(self, request: Request, out: Path, resume: bool) -> None:
        self._scan_path = request.scan
        made: list[Run] = []
        threads = int(preferences().threads)

        def loop() -> Iterator[State]:
            import torch

            if threads:
                torch.set_num_threads(threads)
            settings, calibration = (None, None) if resume else (request.config, request.calibration)
            probe = None if resume else request.probe
            made.append(Run(request.scan, out, request.method, settings, request.device, None, probe, calibration, resume))
            yield from made[0].states()

        job: Job[State, Row] = Job(loop, record, f"mepdiff {request.method}")
        self._made, self._run, self._last = made, None, None
        self._told_of_removal, self._started = False, True
        self._name = f"{request.scan.stem}: {request.method}"
        self.watch.forget_volume()
        if not resume:
            self._volume = None
        if not resume or not (out / "checkpoint.safetensors").exists():  # without one it begins again
            self._rows = []
            self.watch.show_rows([])
        self._jobs.append(job)
        self.progress.setRange(0, 0)
        self.progress.setFormat("")
        self.status.setText("Starting: libraries and patterns are loaded …")
        self.show_button.hide()
        job.start()
        self.pump.follow(job, float(preferences().stream_rate))
        self._update_buttons()

    def _have_records(self, rows: list[Row]) -> None:
        self._rows += rows
        if self.job is not None and self.job.status == "running":
            self.status.setText(self._progress_text())
        step, total = self._rows[-1][:2]
        self.progress.setRange(0, total)
        self.progress.setValue(step)
        self.progress.setFormat("%v of %m")
        self.watch.show_rows(self._rows)

    def _have_state(self, state: State) -> None:
        self._last = state
        if state.note and self.job is not None and self.job.status == "running":
            self.status.setText(f"{self._progress_text()} {state.note[:1].upper()}{state.note[1:]}.")
        if self._run is None:
            self._run = self._made[0]
            self.session.add_run(self._run.folder.path)
        if self._volume is None:
            self._volume = self._make_layer(self._run)
        if self._volume.layer is None:
            self._volume.show(state.volume)
            self._look_in_3d()
            self._update_buttons()
        elif self._volume.there:
            self._volume.show(state.volume)
        self.watch.show_volume(self._scan_path, self._run, state.volume)

    def _make_layer(self, run: Run) -> VolumeLayer:
        record, truth = run.folder.record, run.scan.truth
        return VolumeLayer(
            self._viewer,
            self._name,
            tuple(record["voxel_size_A"]),
            tuple(record["origin_A"]),
            None if truth is None else contrast_limits(truth.phase),
            {"run": str(run.folder.path)},
        )

    def _look_in_3d(self) -> None:
        if self._viewer.dims.ndisplay == 2:
            self._viewer.dims.ndisplay = 3
            self._viewer.reset_view()
            self._viewer.scene.camera.angles = VIEW_ANGLES

    def _ended(self, job: Job[State, Row]) -> None:
        self._jobs.clear()
        run = self._made[0] if self._made else None
        self._run = run or self._run
        if run is not None and run.folder.history:
            self.session.add_run(run.folder.path)
        self.progress.setRange(0, max(1, self.progress.maximum()))
        if self._volume is not None:
            self._volume.finish()
        if job.status == "finished" and run is not None:
            self.status.setText(f"Finished. {self._result_text(run)}")
            self.progress.setRange(0, run.metrics["steps"])
            self.progress.setValue(run.metrics["steps"])
            if isinstance(self._last, CrystalState):
                self._show_answer(run, self._last)
        elif job.status == "stopped":
            self.status.setText(f"Stopped. {self._progress_text(False)} The volume stays; Continue run goes on with it.")
        elif job.error is not None:
            kept = " What was reached stays in its layer." if self._volume is not None and self._volume.there else ""
            self.status.setText(f"Failed.{kept}")
            notify(job.error, job.details)
        self._update_buttons()

    def _show_answer(self, run: Run, state: CrystalState) -> None:
        """Mean and spread of the posterior samples as layers, hidden; the limits of the answer as a notification."""
        record = run.folder.record
        for kind, volume in (("mean", state.mean()), ("spread", state.spread())):
            if volume is not None:
                settings = volume_settings(f"{self._name}, {kind}", tuple(record["voxel_size_A"]), tuple(record["origin_A"]))
                self._viewer.add_image(volume, contrast_limits=contrast_limits(volume), visible=False, **settings)
        if state.verdict:
            show_info(state.verdict)

    # what is shown

    def _update_buttons(self) -> None:
        job = self.job
        reason = self._reason()
        self.run_button.setEnabled(job is None and not reason)
        self.run_button.setToolTip(f"<qt>{reason or 'Reconstruct the scan with these settings.'}</qt>")
        self.pause_button.setEnabled(job is not None and job.status in ("running", "paused"))
        self.pause_button.setText("Resume" if job is not None and job.status == "paused" else "Pause")
        self.stop_button.setEnabled(job is not None and job.status in ("running", "paused"))
        for name in ("Copy as Python", "Copy as command"):
            self.entries[name].setEnabled(self.session.path is not None)
        status = self._run.folder.record["status"] if self._run is not None else ""
        self.entries["Save run…"].setEnabled(self._run is not None and self._last is not None)
        self.entries["Continue run"].setEnabled(job is None and status not in ("", "finished", "running"))
        if job is None and not self._started:
            self.status.setText(reason or "Ready.")
        where = self._run.folder.path if self._run is not None else runs_folder()
        self.folder.setText(f"Runs are kept in {breakable(where)}")

    def _reason(self) -> str:
        if self.session.path is None:
            return "No scan yet: load one in Load scan, drop a file, or File > Open Sample."
        if not self.session.confirmed:
            return NOT_CONFIRMED
        return "Some settings are impossible; they are marked red." if self.form is not None and self.form.error else ""

    def _progress_text(self, running: bool = True) -> str:
        if not self._rows:
            return ""
        step, total, loss, held, seconds = self._rows[-1]
        text = f"Step {step} of {total}" + (f", loss {loss:.5g}" if math.isfinite(loss) else "")
        if held is not None:
            text += f", held out {held:.5g}"
        first = self._rows[0]
        pace = (seconds - first[4]) / (step - first[0]) if step > first[0] else seconds / max(step, 1)
        if running and step < total:
            text += f", at most {show_duration((total - step) * pace)} left"
        return f"{text}."

    def _result_text(self, run: Run) -> str:
        metrics = run.metrics
        parts = [f"{metrics['steps']} steps in {show_duration(metrics['seconds'])}"]
        if metrics["volume_step"] != metrics["steps"]:
            parts.append(f"the volume is that of step {metrics['volume_step']}, by the patterns held out")
        parts.append(f"R-factor {metrics['r_factor']:.4f}")
        if metrics.get("r_heldout") is not None:
            parts.append(f"held out {metrics['r_heldout']:.4f}")
        if metrics.get("ssim_2d") is not None:
            parts.append(f"SSIM with the truth {metrics['ssim_2d']:.3f}")
        report = (run.folder.path / "report.html").resolve().as_uri()
        return f"{', '.join(parts)}. <a href='{report}' style='color: {LINK}'>Open the report</a>"

    def _layer_removed(self, event: Any) -> None:
        volume = self._volume
        if volume is None or event.value != volume.layer:  # napari may hand out proxies: the same, not identical
            return
        self.show_button.show()
        if self.job is not None and not self._told_of_removal:
            self._told_of_removal = True
            show_info("The layer was removed; its reconstruction goes on. 'Show volume again' brings it back.")

    def _show_again(self) -> None:
        if self._volume is not None and self._last is not None:
            self._volume.show(self._last.volume)
            self.show_button.hide()

    # taking it along

    def _copy(self, words_for: Any) -> None:
        try:
            text = words_for(self.request())
        except InputError as error:
            notify(error)
            return
        clipboard = QGuiApplication.clipboard()
        if clipboard is not None:
            clipboard.setText(text)
        show_info("Copied to the clipboard.")

    def _save_config(self) -> None:
        path = ask_save(self, "Save config", f"{self._shown}.yaml", YAML)
        if path:
            self.save_config(path)

    def save_config(self, path: Path) -> None:
        """Write the method's settings to a YAML file."""
        try:
            assert self.form is not None
            config = merge(to_dict(self.form.value()), self.session.specimen_settings() if self.session.path else {})
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
        assert self.form is not None
        try:
            config = method_config(self._shown, read_yaml(path))
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)
        self.form.set_value(config)
        self._form_edited()

    def _save_run(self) -> None:
        path = ask_save(self, "Save run folder", self._run.folder.path.name) if self._run is not None else None
        if path:
            self.save_run(path)

    def save_run(self, path: Path) -> None:
        """Copy the run folder."""
        try:
            assert self._run is not None
            copy_run(self._run.folder.path, path)
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)
        show_info(f"Saved to {path}.")


NOT_CONFIRMED = "Confirm the calibration in Load scan first: press 'Calibration is right'."


def record(state: State) -> Row:
    """What the loss curve and the status line need of a state."""
    return state.step, state.total, state.loss, state.heldout, state.seconds


def breakable(path: Path) -> str:
    """A path that a label can wrap."""
    return str(path).replace("/", "/\N{ZERO WIDTH SPACE}").replace("\\", "\\\N{ZERO WIDTH SPACE}")


def stop_jobs(jobs: list[Job[Any, Any]]) -> None:
    """Cancel and wait a little: long enough for a step to end and its run folder to be written."""
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.join(JOIN_S)
