"""Looking back at the states of a run, and a movie of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from napari.utils.notifications import show_info
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QHBoxLayout, QLabel, QSlider, QVBoxLayout, QWidget

from mepdiff_core.errors import InputError
from mepdiff_core.jobs import Job
from mepdiff_core.movie import GIF_FRAMES, filmed, slice_frames, write_movie
from napari_mepdiff._dialogs import ask_save
from napari_mepdiff._dock import button, notify
from napari_mepdiff._preferences import remember_folder
from napari_mepdiff._pump import Pump
from napari_mepdiff._task import Task

MOVIES = "Movies (*.mp4 *.gif)"
LOOK_HZ = 5.0


class Playback(QWidget):
    """A slider over the states that a task has come through, and buttons for movies.

    Args:
        viewer: whose 3D view is filmed.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self._viewer = viewer
        self._task: Task | None = None
        self._steps: list[int] = []
        self._film: Iterator[int] | None = None
        self.jobs: list[Job[int, int]] = []
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        row = QHBoxLayout()
        row.addWidget(QLabel("states"))
        self.slider = QSlider(Qt.Orientation.Horizontal)
        self.slider.setToolTip("<qt>Back through the run; all the way to the right, the layers follow it again.</qt>")
        self.slider.valueChanged.connect(self._moved)
        row.addWidget(self.slider, 1)
        self.place = QLabel("newest")
        row.addWidget(self.place)
        column.addLayout(row)
        row = QHBoxLayout()
        self.slices = button(
            "Movie of slices…",
            f"MP4 of slices at every state that was kept, or a larger GIF of {GIF_FRAMES} states at most.",
            self._slices,
        )
        self.view = button(
            "Movie of the view…",
            f"MP4 of the canvas as it stands, state by state, or a GIF of {GIF_FRAMES} states at most.",
            self._view,
        )
        self.cancel = button("Stop movie", "Nothing of it is kept.", self.stop)
        for each in (self.slices, self.view, self.cancel):
            row.addWidget(each)
        self.cancel.hide()
        column.addLayout(row)
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._film_on)
        self._pump = Pump(self)
        self._pump.records.connect(lambda numbers: self._progress(numbers[-1]))
        self._pump.ended.connect(self._ended)
        self.hide()

    def follow(self, task: Task | None) -> None:
        """Look back at this task."""
        if task is not self._task:
            if self._task is not None and self._task.looking_back:
                self._task.show_state(None)
            self._task = task
        steps = task.archive.steps if task is not None else []
        self.setVisible(len(steps) > 1)
        if steps == self._steps:
            return
        newest = self._task is None or not self._task.looking_back
        shown = None if newest or self.slider.value() >= len(self._steps) else self._steps[self.slider.value()]
        self._steps = steps
        self.slider.blockSignals(True)
        self.slider.setRange(0, max(0, len(steps) - 1))
        nearest = len(steps) - 1 if shown is None else int(np.argmin(np.abs(np.array(steps) - shown)))
        self.slider.setValue(nearest)
        self.slider.blockSignals(False)

    def _moved(self, index: int) -> None:
        if self._task is None or not self._steps:
            return
        if index >= len(self._steps) - 1:
            self.place.setText("newest")
            self._task.show_state(None)
            return
        kept = self._task.archive.nearest(self._steps[index])
        self.place.setText(f"step {kept.step}" + ("" if kept.sigma is None else f", σ {kept.sigma:.3g}"))
        self._task.show_state(kept)

    # movies

    @property
    def filming(self) -> bool:
        """Whether a movie is being made."""
        return self._film is not None or bool(self.jobs)

    def movie_of_slices(self, path: Path) -> None:
        """Write one, in a thread."""
        if self._task is None or self.filming:
            return
        archive, thickness = self._task.archive, float(self._task.request.config.slice_thickness_A)
        steps = filmed(path, archive)
        frames = slice_frames(archive, thickness, steps=steps)
        job: Job[int, int] = Job(lambda: write_movie(path, frames), int, "mepdiff movie")
        self._begin(path, len(steps))
        self.jobs.append(job)
        job.start()
        self._pump.follow(job, LOOK_HZ)

    def movie_of_view(self, path: Path) -> None:
        """Write one; the layers run through the states meanwhile."""
        if self._task is None or self.filming:
            return
        steps = filmed(path, self._task.archive)
        self._begin(path, len(steps))
        self._film = write_movie(path, self._filmed(self._task, steps))
        self._timer.start(0)

    def stop(self) -> None:
        """Stop the movie that is being made."""
        for job in self.jobs:
            job.cancel()
        if self._film is not None:
            self._film.close()  # type: ignore[attr-defined]
            self._end_film("Movie stopped.")

    def _slices(self) -> None:
        path = ask_save(self, "Movie of slices", "crystal.mp4", MOVIES)
        if path:
            self.movie_of_slices(path)

    def _view(self) -> None:
        path = ask_save(self, "Movie of the view", "crystal-3d.mp4", MOVIES)
        if path:
            self.movie_of_view(path)

    def _filmed(self, task: Task, steps: Iterable[int]) -> Iterator[Any]:
        for step in steps:
            task.show_state(task.archive.nearest(step))
            yield np.ascontiguousarray(self._viewer.screenshot(canvas_only=True, flash=False)[..., :3])

    def _film_on(self) -> None:
        if self._film is None:
            return
        try:
            number = next(self._film, None)
        except InputError as error:
            notify(error)
            self._end_film("")
            return
        if number is None:
            self._end_film(self._saved())
            remember_folder(self._path.parent)
            return
        self._progress(number)
        self._timer.start(0)

    def _end_film(self, words: str) -> None:
        self._film = None
        if self._task is not None:
            self._task.show_state(None)
            self.slider.setValue(self.slider.maximum())
        self._end(words)

    def _begin(self, path: Path, total: int) -> None:
        self._path, self._total = path, total
        self.slices.hide()
        self.view.hide()
        self.cancel.show()
        self._progress(0)

    def _progress(self, number: int) -> None:
        self.cancel.setText(f"Stop movie ({number} of {self._total})")

    def _ended(self, job: Job[int, int]) -> None:
        self.jobs.clear()
        if job.error is not None:
            notify(job.error, job.details)
        self._end(self._saved() if job.status == "finished" else "Movie stopped." if job.status == "stopped" else "")
        if job.status == "finished":
            remember_folder(self._path.parent)

    def _saved(self) -> str:
        return f"Saved to {self._path}, {self._path.stat().st_size / 1e6:.1f} MB."

    def _end(self, words: str) -> None:
        self.cancel.hide()
        self.slices.show()
        self.view.show()
        if words:
            show_info(words)
