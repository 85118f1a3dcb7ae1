"""A reconstruction in the window: its job and run folder, its layers, and the states it has come through."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, Signal

from mepdiff_core.ensemble import Ensemble, judge_ensemble
from mepdiff_core.jobs import Job
from mepdiff_core.runs import Run
from mepdiff_core.state_archive import Kept, StateArchive
from mepdiff_core.states import SampleState, State
from napari_mepdiff._dock import notify
from napari_mepdiff._ensemble import LAYERS, show_ensemble, show_outline
from napari_mepdiff._export import Request
from napari_mepdiff._layers import GAP, VolumeLayer, contrast_limits
from napari_mepdiff._preferences import preferences
from napari_mepdiff._pump import Pump
from napari_mepdiff._side_by_side import frame
from napari_mepdiff._units import show_duration

VIEW_ANGLES = (0.0, 6.0, 14.0)
"""A little off the beam: columns of atoms are short rods, and the lattice is still seen."""
LINK = "#3d9ad1"
"""A blue that is read on the dark theme and on the light one."""
MOST_ROWS = 2000
"""More would be no more than pixels of a curve, and a job of days would hold up the window to draw them."""


class Row(NamedTuple):
    """What curves and status line need of a state; ``sigma`` and what follows of a sampler alone."""

    step: int
    total: int
    loss: float
    heldout: float | None
    seconds: float
    sigma: float | None = None
    log_snr: float = math.nan
    network_s: float = 0.0
    physics_s: float = 0.0


def record(state: State) -> Row:
    """The row of a state."""
    row = Row(state.step, state.total, state.loss, state.heldout, state.seconds, state.sigma)
    if isinstance(state, SampleState):
        row = row._replace(log_snr=state.log_snr, network_s=state.network_s, physics_s=state.physics_s)
    return row


def evenly_spaced(rows: list[Row], count: int) -> list[Row]:
    """So many rows at most, as evenly spaced in steps as there are any; the first and the last stay."""
    steps = np.array([row.step for row in rows])
    wanted = np.linspace(steps[0], steps[-1], count)
    return [rows[i] for i in np.unique(np.searchsorted(steps, wanted))]


class Task(QObject):
    """One reconstruction, from waiting to its end.

    Args:
        viewer: gets the layers.
        request: what was asked for.
        called: what the run is called in this window.
        out: the run folder; with ``resume``, that of the run to go on with.
        before: the same run as it was before it was stopped; its rows, states and layers are taken over.

    Attributes:
        advanced: signal; there are new rows, and perhaps a new state.
        ended: signal; it is over.
        rows: of the states so far; evenly spaced ones, the first and the last among them, where there are many.
        run: the run, once it has started; last: its newest state.
        archive: its states, to look back at; ensemble: its samples, judged, where it drew several and has finished.
        over: whether it has ended and its last state has been told of; the job itself ends a moment earlier.
        text: what became of it, in words; "" while it waits or runs.
        removed: whether a person has taken its layer out of the viewer.
        looking_back: whether layers show an earlier state; they do not follow the run then.
        in_front: whether its layers are to be seen; those of runs that lie in the same place would cover each other.
    """

    advanced = Signal()
    ended = Signal()

    def __init__(
        self,
        viewer: Any,
        request: Request,
        called: str,
        out: Path,
        before: Task | None = None,
        parent: QObject | None = None,
    ) -> None:
        super().__init__(parent)
        self._viewer, self.request, self.out = viewer, request, out
        self.run: Run | None = None
        self.last: State | None = None
        self.text = ""
        self.over = False
        self.removed = self._told_of_removal = self.looking_back = False
        self.in_front = True
        self._outline: Any = None if before is None else before._outline
        self._outlined = self._outline is not None
        self._made: list[Run] = []
        self.name = f"{request.scan.stem}: {called}"
        resume = before is not None
        # without a checkpoint a run begins again
        goes_on = resume and (out / "checkpoint.safetensors").exists()
        self.rows: list[Row] = list(before.rows) if before is not None and goes_on else []
        self.archive: StateArchive = before.archive if before is not None and goes_on else StateArchive()
        self.volume: VolumeLayer | None = before.volume if before is not None else None
        self.noisy: VolumeLayer | None = before.noisy if before is not None else None
        self.ensemble: list[Ensemble] = []
        threads, made, archive, judged = int(preferences().threads), self._made, self.archive, self.ensemble

        def loop() -> Iterator[State]:
            import torch

            if threads:
                torch.set_num_threads(threads)
            settings, calibration = (None, None) if resume else (request.config, request.calibration)
            probe = None if resume else request.probe
            run = Run(request.scan, out, request.method, settings, request.device, None, probe, calibration, resume)
            made.append(run)
            last: State | None = None
            with contextlib.closing(run.states()) as states:  # what its last save may have to say is not to be lost
                try:
                    for last in states:
                        yield last
                finally:
                    archive.rest()
            if last is not None and last.samples is not None and len(last.samples) > 1:
                seen = last.illuminated if isinstance(last, SampleState) and last.illuminated.size else None
                judged.append(judge_ensemble(last.samples, run.folder.record, run.scan, seen, run.device))

        def keep(state: State) -> Row:
            archive.add(state)
            return record(state)

        self.job: Job[State, Row] = Job(loop, keep, f"mepdiff {request.method}")
        self.pump = Pump(self)
        self.pump.records.connect(self._have_records)
        self.pump.state.connect(self._have_state)
        self.pump.ended.connect(self._ended)
        viewer.layers.events.removed.connect(self._layer_removed)

    @property
    def status(self) -> str:
        """That of its job."""
        return self.job.status

    @property
    def line(self) -> str:
        """What it is and how far, in a line."""
        words = {"waiting": "waits", "stopping": "stopping", "paused": "paused", "running": "running"}
        text = f"{self.name}, {words.get(self.status, self.status)}"
        if not self.rows:
            return text
        last = self.rows[-1]
        return (
            f"{text} after {last.step} steps" if self.status == "finished" else f"{text}, step {last.step} of {last.total}"
        )

    def start(self) -> None:
        """Begin."""
        self.job.start()
        self.pump.follow(self.job, float(preferences().stream_rate))

    def pause(self) -> None:
        """Pause, or go on."""
        self.job.resume() if self.job.status == "paused" else self.job.pause()

    def stop(self) -> None:
        """Stop after the step under way; a task that waits never begins."""
        waiting = self.job.status == "waiting"
        self.job.cancel()
        if waiting:
            self.text = "Taken out of the queue."
            self._tell_end()

    def show_state(self, kept: Kept | None) -> None:
        """Let the layers show an earlier state; None: the newest one, and those that come."""
        self.looking_back = kept is not None
        state = kept or self.last
        if state is not None:
            noisy = state.noisy if isinstance(state, (Kept, SampleState)) and state.noisy is not None else None
            self._draw(state.volume, noisy if noisy is not None and noisy.size else None)

    def put_in_front(self, in_front: bool) -> None:
        """Let its layers be seen, or hide them."""
        self.in_front = in_front
        layers = [None if each is None else each.layer for each in (self.volume, self.noisy)]
        for layer in (*layers, self._outline):
            if layer is not None and layer in self._viewer.layers:
                layer.visible = in_front

    def show_again(self) -> None:
        """Bring the layer back."""
        if self.volume is not None and self.last is not None:
            self.volume.show(self.last.volume)
            self.removed = False

    def progress_text(self, running: bool = True) -> str:
        """How far it is, and how long it may still take."""
        if not self.rows:
            return ""
        last, first = self.rows[-1], self.rows[0]
        text = f"Step {last.step} of {last.total}" + (f", loss {last.loss:.5g}" if math.isfinite(last.loss) else "")
        if last.heldout is not None:
            text += f", held out {last.heldout:.5g}"
        done = last.step - first.step
        pace = (last.seconds - first.seconds) / done if done else last.seconds / max(last.step, 1)
        if running and last.step < last.total:
            text += f", at most {show_duration((last.total - last.step) * pace)} left"
        return f"{text}."

    def close(self) -> None:
        """The viewer's events no longer reach it."""
        self._viewer.layers.events.removed.disconnect(self._layer_removed)

    def _have_records(self, rows: list[Row]) -> None:
        self.rows += rows
        if len(self.rows) > MOST_ROWS:
            self.rows = evenly_spaced(self.rows, MOST_ROWS // 2)

    def _have_state(self, state: State) -> None:
        self.last = state
        if self.run is None:
            self.run = self._made[0]
        if not self.looking_back:
            noisy = state.noisy if isinstance(state, SampleState) and state.noisy.size else None
            self._draw(state.volume, noisy)
        if isinstance(state, SampleState) and state.illuminated.size and not self._outlined:
            self._outlined = True
            record = self.run.folder.record
            name, slices = f"{self.name}, illuminated", len(state.volume)
            self._outline = show_outline(self._viewer, name, state.illuminated, slices, record, self._alone)
        self.advanced.emit()

    @property
    def _alone(self) -> bool:
        """Whether all of its layers are to be seen: where runs stand side by side, each has a view for its volume alone."""
        return self.in_front and not self._viewer.canvas.grid.enabled

    def _draw(self, volume: Any, noisy: Any) -> None:
        assert self.run is not None
        if self.volume is None:
            truth = self.run.scan.truth
            limits = None if truth is None else contrast_limits(truth.phase)
            self.volume = self._layer(self.name, limits, {"run": str(self.run.folder.path)}, 0.0)
        if noisy is not None:
            if self.noisy is None:
                beside = -GAP * volume.shape[2] * self.run.folder.record["voxel_size_A"][2]
                self.noisy = self._layer(f"{self.name}, noisy", None, {"beside": beside}, beside)
            first = self.noisy.layer is None
            if first or self.noisy.there:
                active = self._viewer.layers.selection.active
                self.noisy.show(noisy, self._alone)
                self._viewer.layers.selection.active = active
            if first and self._alone:
                frame(self._viewer)  # it may lie beyond what was seen so far
        if self.volume.layer is None:
            self.volume.show(volume, self.in_front)
            if self._alone:
                self._look_in_3d()
        elif self.volume.there:
            self.volume.show(volume)

    def _layer(self, name: str, limits: Any, metadata: dict[str, Any], beside_A: float) -> VolumeLayer:
        assert self.run is not None
        record = self.run.folder.record
        z, y, x = record["origin_A"]
        return VolumeLayer(self._viewer, name, tuple(record["voxel_size_A"]), (z, y, x + beside_A), limits, metadata)

    def _look_in_3d(self) -> None:
        if self._viewer.dims.ndisplay == 2:
            self._viewer.dims.ndisplay = 3
            self._viewer.reset_view()
            self._viewer.scene.camera.angles = VIEW_ANGLES

    def _ended(self, job: Job[State, Row]) -> None:
        run = self._made[0] if self._made else None
        self.run = run or self.run
        for layer in (self.volume, self.noisy):
            if layer is not None:
                layer.finish()
        if job.status == "finished" and run is not None:
            self.text = f"Finished. {result_text(run)}"
            for ensemble in self.ensemble:
                show_ensemble(self._viewer, self.name, ensemble, run.folder.record)
                self.text += f"<br>{LAYERS} {ensemble.words}"
            if self.last is not None and self.last.verdict:
                show_info(self.last.verdict)
        elif job.status == "stopped":
            self.text = f"Stopped. {self.progress_text(False)} The volume stays; Continue goes on with it."
        elif job.error is not None:
            kept = " What was reached stays in its layer." if self.volume is not None and self.volume.there else ""
            self.text = f"Failed.{kept}"
            notify(job.error, job.details)
        self._tell_end()

    def _tell_end(self) -> None:
        self.over = True
        self.ended.emit()

    def _layer_removed(self, event: Any) -> None:
        volume = self.volume
        if volume is None or event.value != volume.layer:  # napari may hand out proxies: the same, not identical
            return
        self.removed = True
        if not self.job.ended and not self._told_of_removal:
            self._told_of_removal = True
            show_info("The layer was removed; its reconstruction goes on. 'Show volume again' brings it back.")
        self.advanced.emit()


def result_text(run: Run) -> str:
    """A finished run's figures, and a link to its report."""
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
