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
ANSWER_MS = 15
"""How often answers are looked for while there are questions."""


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
        # where drawing takes longer than the timer's interval, this comes round before Qt has painted
        if over or (began >= self._draw_after and not self._painted.isActive()):
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

    The thread leaves its answers in a list that a timer of the main thread empties: it touches nothing of Qt, which may be
    gone by the time it has an answer.

    Attributes:
        answered: signal; the question and its answer.
        failed: signal; the exception that a question raised.
    """

    answered = Signal(object, object)
    failed = Signal(object)

    def __init__(self, answer: Callable[[Q], Any], parent: QObject | None = None) -> None:
        super().__init__(parent)
        self._desk: _Desk[Q] = _Desk(answer)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._look)

    def ask(self, question: Q) -> None:
        """Ask; the answer comes as a signal."""
        self._desk.ask(question)
        self._timer.start(ANSWER_MS)

    @property
    def busy(self) -> bool:
        """Whether an answer is under way."""
        return self._desk.working

    def _look(self) -> None:
        answers, idle = self._desk.take()
        if idle:
            self._timer.stop()
        for question, answer, error in answers:
            if error is None:
                self.answered.emit(question, answer)
            else:
                self.failed.emit(error)


class _Desk(Generic[Q]):
    """The part of an ``Answerer`` that its thread knows."""

    def __init__(self, answer: Callable[[Q], Any]) -> None:
        self._answer = answer
        self._lock = threading.Lock()
        self._waiting: list[Q] = []
        self._answers: list[tuple[Q, Any, Exception | None]] = []
        self.working = False

    def ask(self, question: Q) -> None:
        with self._lock:
            self._waiting[:] = [question]
            if self.working:
                return
            self.working = True
        threading.Thread(target=self._work, name="mepdiff answers", daemon=True).start()

    def take(self) -> tuple[list[tuple[Q, Any, Exception | None]], bool]:
        """The answers since the last call, and whether no more are to come."""
        with self._lock:
            answers, self._answers = self._answers, []
            return answers, not self.working

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self.working = False
                    return
                question = self._waiting.pop()
            answer, failure = None, None
            try:
                answer = self._answer(question)
            except Exception as error:
                failure = error
            with self._lock:
                self._answers.append((question, answer, failure))
