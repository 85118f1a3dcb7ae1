"""The pictures of a run: its loss, and a measured pattern beside the one that its volume predicts."""

from __future__ import annotations

import math
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtWidgets import QGridLayout, QVBoxLayout, QWidget

from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.states import FloatArray
from napari_mepdiff._dock import notify, words
from napari_mepdiff._plots import Curves, Pane, follow_theme
from napari_mepdiff._pump import Answerer
from napari_mepdiff._session import session_of
from napari_mepdiff._task import Row


class Watch(QWidget):
    """Shows a run's loss, and the session's pattern of the moment as measured and as predicted.

    Args:
        viewer: its session has the scan and the pattern; the mouse over its canvas in 2D chooses the pattern.
    """

    def __init__(self, viewer: Any) -> None:
        super().__init__()
        self.session = session_of(viewer)
        self._shown: tuple[Path, Run, FloatArray] | None = None
        self._levels = (0.0, 1.0)

        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(6)
        self.curves = Curves("step", "loss")
        self.noise = words()
        self.times = Curves("step", "s a step", height=100)
        for each in (self.curves, self.noise, self.times):
            column.addWidget(each)
            each.hide()
        tip = "Square root of the electrons in a pixel, one grey scale for both."
        self.measured = Pane("measured", tip)
        self.predicted = Pane("predicted", f"The pattern that the volume predicts at the same position. {tip}")
        grid = QGridLayout()
        grid.setSpacing(4)
        for i, pane in enumerate((self.measured, self.predicted)):
            grid.addWidget(pane, 0, i)
            grid.setColumnStretch(i, 1)
        column.addLayout(grid)
        follow_theme(viewer, self.curves, self.times, self.measured, self.predicted)

        self._predictor: Answerer[Any] = Answerer(_predict, self)
        self._predictor.answered.connect(self._have_prediction)
        self._predictor.failed.connect(notify)
        self.session.changed.connect(self._pattern_changed)
        self.session.pattern_changed.connect(self._pattern_changed)
        follow_cursor(self, viewer)
        self._pattern_changed()

    def show_rows(self, rows: Sequence[Row]) -> None:
        """Show the loss of these states and the held-out loss where there is one; of a sampler also its noise and times."""
        known = [row for row in rows if math.isfinite(row.loss)]
        lines = {"loss": ([row.step for row in known], [row.loss for row in known])} if known else {}
        held = [(row.step, row.heldout) for row in rows if row.heldout is not None]
        if held:
            lines["held out"] = ([step for step, _ in held], [loss for _, loss in held])
        self.curves.show_lines(lines)
        self.curves.setVisible(bool(lines))
        sampled = [row for row in rows if row.sigma is not None]
        for each in (self.noise, self.times):
            each.setVisible(bool(sampled))
        if sampled:
            last, steps = sampled[-1], [row.step for row in sampled]
            self.noise.setText(
                f"σ {last.sigma:.3g}, log-SNR {last.log_snr:+.2f}. This step: {last.network_s:.2f} s in the network,"
                f" {last.physics_s:.2f} s in the model of the patterns."
            )
            self.times.show_lines(
                {
                    "network": (steps, [row.network_s for row in sampled]),
                    "physics": (steps, [row.physics_s for row in sampled]),
                }
            )

    def show_volume(self, path: Path, run: Run, volume: FloatArray) -> None:
        """Predict patterns from now on by a run's (z, y, x) volume, rad, while the session's scan is that of the path."""
        before, self._shown = self._shown, (path, run, volume)
        if before is None or before[2] is not volume:
            self._ask_prediction()

    def forget_volume(self) -> None:
        """Predict nothing until the next volume."""
        self._shown = None
        self.predicted.clear()

    def _pattern_changed(self) -> None:
        scan = self.session.scan_in_file
        if scan is None:
            return
        row, column = divmod(self.session.pattern, scan.shape[1])
        measured = np.sqrt(scan.counts[row, column].astype(np.float32))
        self._levels = (0.0, float(measured.max()) or 1.0)
        self.measured.title.setText(f"measured {row}, {column}")
        self.measured.show_image(measured, levels=self._levels)
        self._ask_prediction()

    def _ask_prediction(self) -> None:
        if self._shown is None:
            return
        path, run, volume = self._shown
        if self.session.pattern < run.scan.n_patterns and self.session.path == path:
            self._predictor.ask((run.scan, volume, run.config.slice_thickness_A, self.session.pattern))

    def _have_prediction(self, question: Any, pattern: Any) -> None:
        scan, index = question[0], question[3]
        if index == self.session.pattern and self._shown is not None and self._shown[2] is question[1]:
            self.predicted.show_image(np.sqrt(pattern * scan.electrons_per_pattern), levels=self._levels)


def follow_cursor(watch: Watch, viewer: Any) -> None:
    """Look at the pattern nearest to the mouse while it moves over the canvas in 2D."""
    mine = weakref.ref(watch)

    def moved(viewer: Any, event: Any) -> None:
        watch = mine()
        if watch is None:
            viewer.mouse_move_callbacks.remove(moved)
            return
        scan: Scan | None = watch.session.scan_in_file
        if scan is None or viewer.dims.ndisplay != 2 or "torch" not in sys.modules:
            return
        distance = np.hypot(*(scan.positions_A - np.asarray(event.position[-2:])).T)
        nearest = int(np.argmin(distance))
        if distance[nearest] <= 2 * scan.pixel_size_A + np.ptp(scan.positions_A[:2], axis=0).max():
            watch.session.set_pattern(nearest)

    viewer.mouse_move_callbacks.append(moved)


def _predict(question: Any) -> Any:
    from mepdiff_core.forward import predict_pattern

    return predict_pattern(*question)
