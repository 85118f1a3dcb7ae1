"""The dock "Optics and scan": the calibration as a form, the probe it gives, presets, and the probe fit."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtWidgets import QGridLayout, QHBoxLayout, QProgressBar, QSpinBox

from mepdiff_core.calibration import Calibration, calibrate, calibration_of
from mepdiff_core.config import check, dump_yaml, from_dict, merge, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_text
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.jobs import Job
from mepdiff_core.optics import ABERRATION_ORDERS
from mepdiff_core.states import ProbeState
from mepdiff_core.virtual import mean_pattern
from napari_mepdiff._dialogs import YAML, ask_open, ask_save
from napari_mepdiff._dock import Dock, button, heading, notify, words
from napari_mepdiff._form import INVALID_STYLE, ConfigForm, Section, TextField
from napari_mepdiff._plots import Pane, follow_theme
from napari_mepdiff._preferences import preferences, remember_folder, runs_folder
from napari_mepdiff._prepare import Prepare
from napari_mepdiff._pump import Pump
from napari_mepdiff._session import session_of
from napari_mepdiff._units import show_quantity

ABERRATIONS = [
    name
    for n, m in ABERRATION_ORDERS
    if (n, m) not in ((1, 0), (3, 0))
    for name in ([f"C{n}{m}", f"phi{n}{m}"] if m else [f"C{n}{m}"])
]
DISK = "#46b1e1"
FIT_PASSES = 20
JOIN_S = 5.0


class OpticsAndScan(Dock):
    """Correct what the scan was taken with, and see the probe that comes of it.

    Args:
        napari_viewer: its session has the scan.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.session = session_of(napari_viewer)
        self._mean: tuple[Any, Any] = (None, None)

        self.source = words()
        self.column.addWidget(self.source)
        tip = "The probe on the specimen that these values give: intensity, over the window that a pattern sees."
        self.probe = Pane("probe on the specimen", tip, "inferno")
        tip = "The measured mean pattern (square root of the counts); the circle is the aperture that these values give."
        self.aperture = Pane("aperture over mean pattern", tip)
        grid = QGridLayout()
        grid.setSpacing(4)
        for column, pane in enumerate((self.probe, self.aperture)):
            grid.addWidget(pane, 0, column)
            grid.setColumnStretch(column, 1)
        self.column.addLayout(grid)
        follow_theme(napari_viewer, self.probe, self.aperture)

        self.form = ConfigForm(
            Calibration(scan_step_A=0.5, scan_rotation_deg=0.0),
            opened=("optics",),
            names={"optics.aberrations": ABERRATIONS},
            check=self._fits,
        )
        self.form.value_changed.connect(self._edited)
        self.column.addWidget(self.form)
        self.slices = QSpinBox()
        self.slices.setRange(1, 1000)
        self.slices.setToolTip("<qt>How many slices the reconstruction cuts the specimen into.</qt>")
        self.slices.valueChanged.connect(lambda _: self._edited())
        self.form.add_row("slices", self.slices)
        self._typing_dose = False
        self.dose = TextField("dose_e_per_A2", float | None, missing="needs a raster")
        self.dose.setToolTip("<qt>Electrons per Å² of specimen; sets the electrons per pattern by the scan step.</qt>")
        self.dose.edited.connect(self._dose_edited)
        self.form.add_row("dose", self.dose)
        self.derived = words()
        self.column.addWidget(self.derived)

        row = QHBoxLayout()
        row.addWidget(button("Load preset…", "Optics and geometry from a YAML file; what it leaves out stays.", self._load))
        row.addWidget(button("Save preset…", "Optics and geometry to a YAML file, for other scans.", self._save))
        row.addWidget(button("From file", "Back to what the scan's file says.", self._reset))
        self.column.addLayout(row)

        holder: list[Job[Any, Any]] = []
        self._preparing: list[Job[Any, Any]] = []
        self.prepare = Prepare(napari_viewer, self.session, self._preparing)
        section = Section("Prepare the scan")
        section.set_content(self.prepare)
        self.column.addWidget(section)

        self.column.addWidget(heading("Probe"))
        self.probe_source = words()
        self.column.addWidget(self.probe_source)
        row = QHBoxLayout()
        self.passes = QSpinBox()
        self.passes.setRange(1, 1000)
        self.passes.setValue(FIT_PASSES)
        self.passes.setSuffix(" passes")
        self.passes.setToolTip("<qt>How often the fit goes through all patterns.</qt>")
        self.fit = button("Fit probe", "Fit the probe to this scan, together with its specimen.", self._fit)
        row.addWidget(self.passes)
        row.addWidget(self.fit, 1)
        self.column.addLayout(row)
        row = QHBoxLayout()
        self.load_probe = button("Load probe…", "Use a probe file that mepdiff has written.", self._load_probe)
        row.addWidget(self.load_probe)
        drop = "Put the fitted or loaded probe aside and use the one the scan or its optics give."
        self.drop_probe = button("Without it", drop, lambda: self.session.set_probe(None))
        row.addWidget(self.drop_probe)
        self.column.addLayout(row)
        self.progress = QProgressBar()
        self.progress.hide()
        self.column.addWidget(self.progress)
        self.column.addStretch(1)

        self.pump = Pump(self)
        self.pump.state.connect(self._fit_state)
        self.pump.ended.connect(self._fit_ended)
        self._fitted: ProbeState | None = None
        self._fitting: tuple[Any, Any] = (None, None)
        self._jobs = holder
        preparing = self._preparing
        self.on_close(lambda: _stop([*holder, *preparing]))
        self.session.changed.connect(self._session_changed)
        self._session_changed()

    def _fits(self, calibration: Calibration) -> None:
        if self.session.scan_in_file is not None:
            calibrate(self.session.scan_in_file, calibration)

    def _session_changed(self) -> None:
        session = self.session
        known = session.scan_in_file is not None and session.calibration is not None
        for widget in (self.form, self.slices, self.fit, self.passes, self.load_probe, self.drop_probe):
            widget.setEnabled(known)
        if not known:
            self.source.setText("No scan yet: load one in Load scan, drop a file, or File > Open Sample.")
            return
        assert session.path is not None
        assert session.calibration is not None
        if self._form_value() != session.calibration:
            self.form.set_value(session.calibration)
        self.slices.blockSignals(True)
        self.slices.setValue(session.slices)
        self.slices.blockSignals(False)
        self.dose.setEnabled(session.calibration.scan_step_A is not None)
        if not self._typing_dose:
            self.dose.set_value(session.calibration.dose_e_per_A2)
        changed = " with your corrections" if session.calibration_changes() else " as its file says"
        self.source.setText(f"{session.path.name},{changed}.")
        self.drop_probe.setEnabled(session.probe_path is not None)
        self._draw()

    def _form_value(self) -> Calibration | None:
        try:
            return self.form.value()  # type: ignore[no-any-return]
        except InputError:
            return None

    def _edited(self) -> None:
        calibration = self._form_value()
        if calibration is not None:
            self.session.set_calibration(calibration, self.slices.value())

    def _dose_edited(self) -> None:
        calibration = changed = self._form_value()
        try:
            dose = self.dose.value()
            check(dose is None or dose > 0, f"the dose is {dose}; expected more than 0")
            if calibration is not None and calibration.scan_step_A is not None and dose is not None:
                changed = replace(calibration, electrons_per_pattern=dose * calibration.scan_step_A**2)
        except InputError as error:
            self.dose.setStyleSheet(INVALID_STYLE)
            self.dose.setToolTip(str(error))
            return
        self.dose.setStyleSheet("")
        if changed != calibration:
            self._typing_dose = True  # or the field would be filled in again under the person's hands
            self.form.set_value(changed)
            self._edited()
            self._typing_dose = False

    def _draw(self) -> None:
        scan, calibration = self.session.scan(), self.session.calibration
        assert calibration is not None
        source = "made from the optics above"
        probe = scan.probe
        if self.session.probe_path is not None and self._fitted is not None:
            probe, source = self._fitted.probe, f"fitted: {self.session.probe_path}"
        elif self.session.probe_path is not None:
            source = f"of the file {self.session.probe_path}"
            probe = self._probe_of_file()
        elif scan.probe is not None:
            source = "of the scan's file"
        self._show_probe(scan.get_probe() if probe is None else probe)
        self.probe_source.setText(f"The probe is {source}.")
        if self._mean[0] is not self.session.scan_in_file:
            self._mean = (self.session.scan_in_file, np.sqrt(mean_pattern(scan.counts)))
        self.aperture.show_image(self._mean[1], 2 * scan.k_max_invA)
        self.aperture.title.setText("aperture, mean pattern")
        radius = scan.optics.k_aperture_invA
        self.aperture.show_circle(radius, DISK)
        lines = []
        if calibration.thickness_A is not None:
            lines.append(f"slices of {show_quantity(calibration.thickness_A / self.session.slices, 'Å')}")
        lines.append(f"wavelength {1e2 * scan.optics.wavelength_A:.4g} pm")
        lines.append(f"aperture {radius:.4g} 1/Å")
        lines.append(f"pixel {scan.pixel_size_A:.4g} Å")
        self.derived.setText(", ".join(line.replace(" ", "\N{NO-BREAK SPACE}") for line in lines))

    def _show_probe(self, probe: Any) -> None:
        scan = self.session.scan()
        width = scan.n_pixels * scan.pixel_size_A
        self.probe.show_image(np.sum(np.abs(probe) ** 2, axis=0), width)
        self.probe.title.setText(f"probe, {width:.3g} Å wide")

    def _probe_of_file(self) -> Any:
        from mepdiff_core.probe import with_probe

        assert self.session.probe_path is not None
        return with_probe(self.session.scan(), self.session.probe_path).probe

    def _load(self) -> None:
        path = ask_open(self, "Load preset", YAML)
        if path:
            self.load_preset(path)

    def load_preset(self, path: Path) -> None:
        """Put the values of a YAML file into the form."""
        base = self.session.calibration or self._form_value() or Calibration()
        try:
            preset = read_yaml(path)
            merged = merge(to_dict(base), preset)
            if isinstance(preset.get("optics"), dict) and "aberrations" in preset["optics"]:
                merged["optics"]["aberrations"] = preset["optics"]["aberrations"]  # all of them: none is none
            calibration = from_dict(Calibration, merged, str(path))
            self._fits(calibration)
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)
        self.form.set_value(calibration)
        self._edited()

    def _save(self) -> None:
        path = ask_save(self, "Save preset", "optics.yaml", YAML)
        if path:
            self.save_preset(path)

    def save_preset(self, path: Path) -> None:
        """Write the form's values to a YAML file."""
        try:
            write_text(path, dump_yaml(to_dict(self.form.value())))
        except InputError as error:
            notify(error)
            return
        remember_folder(path.parent)

    def _reset(self) -> None:
        if self.session.scan_in_file is not None:
            self.form.set_value(calibration_of(self.session.scan_in_file))
            self._edited()

    def _load_probe(self) -> None:
        path = ask_open(self, "Load probe", "Probes (*.h5)")
        if path is None:
            return
        from mepdiff_core.probe import with_probe

        try:
            with_probe(self.session.scan(), path)
        except InputError as error:
            notify(error)
            return
        self._fitted = None
        self.session.set_probe(path)

    def _fit(self) -> None:
        if self._jobs:
            self._jobs[0].cancel()
            self.fit.setEnabled(False)
            return
        try:
            scan = self.session.scan()
        except InputError as error:
            notify(error)
            return
        specimen = self.session.specimen_settings()
        config = ProbeFitConfig(iterations=self.passes.value(), **specimen)
        device = str(preferences().device)
        self._fitting = (self.session.scan_in_file, self.session.calibration)

        def loop() -> Iterator[ProbeState]:
            from mepdiff_core.probe import fit_probe
            from mepdiff_core.reconstruction import choose_device

            return fit_probe([scan], config, choose_device(device))

        job: Job[ProbeState, tuple[int, float]] = Job(loop, lambda s: (s.step, s.loss), "mepdiff probe fit")
        self._jobs.append(job)
        self.fit.setText("Stop")
        self.progress.setRange(0, self.passes.value())
        self.progress.setValue(0)
        self.progress.setFormat("starting …")
        self.progress.show()
        self._fitted = None
        job.start()
        self.pump.follow(job, float(preferences().stream_rate))

    def _fit_state(self, state: ProbeState) -> None:
        self._fitted = state
        self.progress.setValue(state.step)
        left = (state.total - state.step) * state.seconds / state.step
        self.progress.setFormat(f"pass %v of %m, loss {state.loss:.4g}, {left:.0f} s left")
        self.probe.show_image(
            np.sum(np.abs(state.probe) ** 2, axis=0), self.session.scan().n_pixels * self.session.scan().pixel_size_A
        )

    def _fit_ended(self, job: Job[Any, Any]) -> None:
        self._jobs.clear()
        self.fit.setText("Fit probe")
        self.fit.setEnabled(True)
        self.progress.hide()
        if job.error is not None:
            notify(job.error, job.details)
        state = self._fitted
        if state is None or self._fitting != (self.session.scan_in_file, self.session.calibration):
            self._fitted = None  # the scan or its optics are others by now: this probe is not theirs
            self._draw()
            return
        assert self.session.path is not None
        path = runs_folder() / f"{self.session.path.stem}-probe-{time.strftime('%Y%m%d-%H%M%S')}.h5"
        try:
            from mepdiff_core.probe import save_probe

            path.parent.mkdir(parents=True, exist_ok=True)
            save_probe(state.probe, self.session.scan(), path)
        except (InputError, OSError) as error:
            notify(error)
            return
        self.session.set_probe(path)


def _stop(jobs: list[Job[Any, Any]]) -> None:
    for job in jobs:
        job.cancel()
    for job in jobs:
        job.join(JOIN_S)
