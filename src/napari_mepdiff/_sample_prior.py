"""The dock "Sample crystals from the prior": crystals from noise, live, to see what a prior knows."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtWidgets import QHBoxLayout, QProgressBar

from mepdiff_core.errors import InputError
from mepdiff_core.jobs import Job
from mepdiff_core.sample_settings import SampleConfig
from mepdiff_core.states import State
from napari_mepdiff._dock import Dock, button, notify, words
from napari_mepdiff._form import ConfigForm, Section
from napari_mepdiff._layers import VolumeLayer
from napari_mepdiff._preferences import preferences, runs_folder
from napari_mepdiff._prior_chooser import PriorChooser
from napari_mepdiff._pump import Pump
from napari_mepdiff._reconstruct import breakable, stop_jobs
from napari_mepdiff._side_by_side import frame
from napari_mepdiff._task import LINK, VIEW_ANGLES, Row, record
from napari_mepdiff._units import show_duration

GAP = 8
"""Voxels between crystals."""
BELOW_A = 2.0
"""From what is in the canvas already."""
FEW = SampleConfig(n=4)
"""What a window shows at once without a long wait."""


class SamplePrior(Dock):
    """Draw crystals from a prior alone, without a measurement.

    Args:
        napari_viewer: gets the crystals as one layer, beside each other.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.jobs: list[Job[State, Row]] = []
        self.layer: VolumeLayer | None = None
        self._made: list[Any] = []
        self._row: Row | None = None
        self.column.addWidget(
            words(
                "Crystals from noise, by a prior alone: what it takes a crystal to be. No scan is needed, and none is used."
            )
        )
        self.prior = PriorChooser()
        self.column.addWidget(self.prior)
        self.form = ConfigForm(FEW)
        settings = Section("Settings")
        settings.set_content(self.form)
        self.column.addWidget(settings)
        row = QHBoxLayout()
        self.run_button = button("Sample", "Draw crystals with these settings.", self.run)
        self.pause_button = button("Pause", "Wait after this step.", self.pause)
        self.stop_button = button("Stop", "Stop after this step; what the crystals had come to stays.", self.stop)
        for each in (self.run_button, self.pause_button, self.stop_button):
            row.addWidget(each)
        self.column.addLayout(row)
        self.progress = QProgressBar()
        self.progress.setFormat("")
        self.column.addWidget(self.progress)
        self.status = words()
        self.column.addWidget(self.status)
        self.column.addStretch(1)
        self.form.value_changed.connect(self._update_buttons)
        self.prior.chosen.connect(self._update_buttons)
        self.pump = Pump(self)
        self.pump.records.connect(self._have_records)
        self.pump.state.connect(self._have_state)
        self.pump.ended.connect(self._ended)
        jobs = self.jobs
        self.on_close(lambda: stop_jobs(jobs))
        self._update_buttons()

    @property
    def job(self) -> Job[State, Row] | None:
        """What is under way."""
        return self.jobs[0] if self.jobs else None

    def run(self) -> None:
        """Start drawing."""
        if self.job is not None:
            return
        try:
            config = self.form.value()
        except InputError as error:
            notify(error)
            return
        prior, device, threads = self.prior.value(), str(preferences().device), int(preferences().threads)
        out = runs_folder() / f"crystals-{time.strftime('%Y%m%d-%H%M%S')}"
        while out.exists():
            out = out.with_name(f"{out.name}-2")
        made: list[Any] = []

        def loop() -> Iterator[State]:
            import torch

            from mepdiff_core.sample_run import SampleRun

            if threads:
                torch.set_num_threads(threads)
            made.append(SampleRun(prior, out, config, device))
            yield from made[0].states()

        self._made, self._row, self.layer = made, None, None
        job: Job[State, Row] = Job(loop, record, "mepdiff crystals")
        self.jobs.append(job)
        self.progress.setRange(0, 0)
        self.progress.setFormat("")
        self.status.setText("Starting: libraries and the prior are loaded …")
        job.start()
        self.pump.follow(job, float(preferences().stream_rate))
        self._update_buttons()

    def pause(self) -> None:
        """Pause, or go on."""
        job = self.job
        if job is not None:
            job.resume() if job.status == "paused" else job.pause()
            self._update_buttons()

    def stop(self) -> None:
        """Stop after the step that is under way."""
        if self.job is not None:
            self.job.cancel()
            self._update_buttons()

    def _have_records(self, rows: list[Row]) -> None:
        self._row = row = rows[-1]
        self.progress.setRange(0, row.total)
        self.progress.setValue(row.step)
        self.progress.setFormat("%v of %m")
        left = show_duration((row.total - row.step) * row.seconds / row.step)
        self.status.setText(f"Step {row.step} of {row.total}, noise σ {row.sigma:.3g}, about {left} left.")

    def _have_state(self, state: State) -> None:
        assert state.samples is not None
        if self.layer is None:
            folder = self._made[0].folder
            self.layer = VolumeLayer(
                self._viewer,
                f"crystals of {self.prior.box.currentText()}",
                tuple(folder.record["voxel_size_A"]),
                self._free_place(),
                metadata={"run": str(folder.path)},
            )
        first = self.layer.layer is None
        if first or self.layer.there:
            self.layer.show(side_by_side(state.samples))
        if first and len(self._viewer.layers) == 1:
            self._viewer.dims.ndisplay = 3
            self._viewer.reset_view()
            self._viewer.scene.camera.angles = VIEW_ANGLES
        elif first:
            frame(self._viewer)

    def _free_place(self) -> tuple[float, float, float]:
        """Where crystals cover nothing: below all that is visible."""
        corners = [layer.extent.world[:, -2:] for layer in self._viewer.layers if layer.visible]
        if not corners:
            return 0.0, 0.0, 0.0
        below, left = max(float(ends[1, 0]) for ends in corners), min(float(ends[0, 1]) for ends in corners)
        return 0.0, below + BELOW_A, left

    def _ended(self, job: Job[State, Row]) -> None:
        self.jobs.clear()
        self.progress.setRange(0, max(1, self.progress.maximum()))
        if self.layer is not None:
            self.layer.finish()
        path = self._made[0].folder.path if self._made else None
        if job.error is not None:
            self.status.setText("Failed.")
            notify(job.error, job.details)
        elif job.status == "stopped":
            self.status.setText(f"Stopped. {breakable(path)} keeps what the crystals had come to." if path else "Stopped.")
        elif path is not None and self._row is not None:
            sheet = (path / "sheet.png").resolve().as_uri()
            link = f"<a href='{sheet}' style='color: {LINK}'>Open the sheet</a>"
            self.status.setText(f"Finished in {show_duration(self._row.seconds)}, kept in {breakable(path)}. {link}")
        self._update_buttons()

    def _update_buttons(self) -> None:
        job, reason = self.job, self.prior.error or self.form.error
        self.run_button.setEnabled(job is None and not reason)
        self.run_button.setToolTip(f"<qt>{reason or 'Draw crystals with these settings.'}</qt>")
        self.pause_button.setEnabled(job is not None and job.status in ("running", "paused"))
        self.pause_button.setText("Resume" if job is not None and job.status == "paused" else "Pause")
        self.stop_button.setEnabled(job is not None and job.status in ("running", "paused"))


def side_by_side(samples: npt.NDArray[np.floating]) -> npt.NDArray[np.float32]:
    """(z, rows, columns) of (n, z, y, x): crystals in a square, ``GAP`` voxels of nothing between them."""
    count, depth, height, width = samples.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    out = np.zeros((depth, rows * (height + GAP) - GAP, columns * (width + GAP) - GAP), np.float32)
    for number, sample in enumerate(samples):
        y, x = (place * (size + GAP) for place, size in zip(divmod(number, columns), (height, width), strict=True))
        out[:, y : y + height, x : x + width] = sample
    return out
