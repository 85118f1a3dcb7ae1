"""From threads to the window: a timer that looks what a job has left, and a worker that answers the latest question."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from qtpy.QtCore import QObject, QTimer, Signal

from mepdiff_core.jobs import Job

Q = TypeVar("Q")


DRAW_SHARE = 0.05
"""Part of the main thread's time that drawing states may take; where drawing is slow, fewer are drawn."""

LONGEST_WAIT_S = 1.0


class Pump(QObject):
    """Looks at a job some times a second and tells what is new; a window that draws slowly gets fewer states, not a freeze.

    Attributes:
        records: signal; the records of all states since the last look, a list.
        state: signal; the newest state.
        ended: signal; the job, once, after its last state.
    """

    records = Signal(list)
    state = Signal(object)
    ended = Signal(object)

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.job: Job[Any, Any] | None = None
        self._timer = QTimer(self)
        self._timer.timeout.connect(self.look)
        self._painted = QTimer(self)  # of no time: Qt comes to it after it has painted what was asked for
        self._painted.setSingleShot(True)
        self._painted.timeout.connect(self._drawn)
        self._began = self._draw_after = 0.0

    def follow(self, job: Job[Any, Any], rate_hz: float) -> None:
        """Look at this job from now on."""
        self.job = job
        self._timer.start(round(1000 / rate_hz))

    def look(self) -> None:
        """Tell what is new now."""
        job = self.job
        if job is None:
            return
        over = job.ended  # asked first: what came before the end is told before it
        began = time.monotonic()
        if over or began >= self._draw_after:
            records, state = job.take_records(), job.take()
            if records:
                self.records.emit(records)
            if state is not None:
                self.state.emit(state)
                self._began = began
                self._painted.start(0)
        if over:
            self._timer.stop()
            self.job = None
            self.ended.emit(job)

    def _drawn(self) -> None:
        now = time.monotonic()
        self._draw_after = now + min(LONGEST_WAIT_S, (now - self._began) * (1 / DRAW_SHARE - 1))


class Answerer(QObject, Generic[Q]):
    """Answers questions in a thread; a new question replaces one that still waits.

    Attributes:
        answered: signal; the question and its answer.
        failed: signal; the exception that a question raised.
    """

    answered = Signal(object, object)
    failed = Signal(object)

    def __init__(self, answer: Callable[[Q], Any], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._answer = answer
        self._lock = threading.Lock()
        self._waiting: list[Q] = []
        self._thread: threading.Thread | None = None

    def ask(self, question: Q) -> None:
        """Ask; the answer comes as a signal."""
        with self._lock:
            self._waiting[:] = [question]
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="mepdiff answers", daemon=True)
                self._thread.start()

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self._thread is not None

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                question = self._waiting.pop()
            try:
                try:
                    answer = self._answer(question)
                except Exception as error:
                    self.failed.emit(error)
                else:
                    self.answered.emit(question, answer)
            except RuntimeError:  # the window is gone, and with it the one who asked
                with self._lock:
                    self._thread = None
                return
