"""Between threads and the window: nothing is lost, slow drawing draws less, and who is gone is not called."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("napari")
from qtpy.QtCore import QObject
from qtpy.QtGui import QPaintEvent
from qtpy.QtWidgets import QWidget

from mepdiff_core.jobs import Job
from napari_mepdiff._pump import DRAW_SHARE, LONGEST_WAIT_S, Answerer, Pump

LONG_S = 20.0
"""Nothing here takes that long unless it hangs."""
NAME = "mepdiff answers"


def same(state: Any) -> Any:
    return state


def counting(steps: int, pause_s: float = 0.0) -> Callable[[], Iterator[int]]:
    """A loop over 1, 2, 3, ..."""

    def loop() -> Iterator[int]:
        for step in range(1, steps + 1):
            time.sleep(pause_s)
            yield step

    return loop


class Watched:
    """A pump, and what it has told.

    Attributes:
        told: ("records", list), ("state", state) and ("ended", job), in order.
        draw: called with every state.
    """

    def __init__(self, qtbot: Any, draw: Callable[[Any], object] = lambda _: None) -> None:
        self.bot, self.draw = qtbot, draw
        self.jobs: list[Job[Any, Any]] = []
        self.pump = Pump()
        self.told: list[tuple[str, Any]] = []
        self.pump.records.connect(lambda records: self.told.append(("records", records)))
        self.pump.state.connect(self._state)
        self.pump.ended.connect(lambda job: self.told.append(("ended", job)))

    def follow(self, loop: Callable[[], Any], rate_hz: float = 100.0) -> Job[Any, Any]:
        job: Job[Any, Any] = Job(loop, same)
        self.jobs.append(job)
        job.start()
        self.pump.follow(job, rate_hz)
        return job

    def to_end(self, loop: Callable[[], Any], rate_hz: float = 100.0) -> Job[Any, Any]:
        job = self.follow(loop, rate_hz)
        self.bot.waitUntil(lambda: ("ended", job) in self.told, timeout=int(1000 * LONG_S))
        assert job.join(LONG_S)
        return job

    def of(self, kind: str) -> list[Any]:
        return [what for each, what in self.told if each == kind]

    @property
    def records(self) -> list[Any]:
        return [record for batch in self.of("records") for record in batch]

    def _state(self, state: Any) -> None:
        self.told.append(("state", state))
        self.draw(state)


Watch = Callable[..., Watched]


@pytest.fixture
def watch(qtbot: Any) -> Iterator[Watch]:
    """Makes pumps; their jobs end with the test."""
    made: list[Watched] = []

    def make(draw: Callable[[Any], object] = lambda _: None) -> Watched:
        made.append(Watched(qtbot, draw))
        return made[-1]

    yield make
    for watched in made:
        watched.pump.deleteLater()
        for job in watched.jobs:
            job.cancel()
            assert job.join(LONG_S)


# the pump


@pytest.mark.parametrize(("steps", "pause_s"), [(1, 0.0), (7, 0.05), (300, 0.001), (5000, 0.0)])
def test_everything_arrives_in_order_before_the_one_end(qtbot: Any, watch: Watch, steps: int, pause_s: float) -> None:
    watched = watch()
    job = watched.to_end(counting(steps, pause_s))
    qtbot.wait(60)  # were there more to come, it would come now
    assert job.status == "finished"
    assert watched.records == [*range(1, steps + 1)]
    assert all(watched.of("records"))  # no empty lists
    states = watched.of("state")
    assert states == sorted(set(states))
    assert states[-1] == steps
    assert watched.told[-1] == ("ended", job)
    assert watched.of("ended") == [job]
    assert watched.pump.job is None


def test_slots_are_called_in_the_main_thread(watch: Watch) -> None:
    threads = set()
    watched = watch(lambda _: threads.add(threading.current_thread()))
    watched.to_end(counting(5, 0.02))
    assert threads == {threading.main_thread()}


def test_a_job_that_ended_before_anybody_looked_is_told_whole(qtbot: Any, watch: Watch) -> None:
    watched = watch()
    job: Job[Any, Any] = Job(counting(9), same)
    job.start()
    assert job.join(LONG_S)
    watched.pump.follow(job, 100.0)
    assert watched.told == []  # not within the call: its caller may not be ready
    qtbot.waitUntil(lambda: watched.pump.job is None)
    assert watched.told == [("records", [*range(1, 10)]), ("state", 9), ("ended", job)]


def test_a_job_that_fails_at_once_is_told_as_ended(watch: Watch) -> None:
    def start_loop() -> Iterator[int]:
        raise ImportError("no such library")

    watched = watch()
    job = watched.to_end(start_loop)
    assert watched.told == [("ended", job)]
    assert (job.status, str(job.error)) == ("failed", "no such library")


def test_what_came_before_a_failure_is_told(watch: Watch) -> None:
    def failing() -> Iterator[int]:
        yield from (1, 2, 3)
        raise MemoryError("9 GB")

    watched = watch()
    job = watched.to_end(failing)
    assert watched.records == [1, 2, 3]
    assert watched.of("state")[-1] == 3
    assert watched.told[-1] == ("ended", job)
    assert job.status == "failed"


def test_a_cancelled_job_ends_with_its_last_state(qtbot: Any, watch: Watch) -> None:
    watched = watch()
    job = watched.follow(counting(10**6, 0.001))
    qtbot.waitUntil(lambda: len(watched.of("state")) > 2)
    job.cancel()
    qtbot.waitUntil(lambda: watched.of("ended") == [job])
    assert job.status == "stopped"
    assert watched.records == [*range(1, watched.records[-1] + 1)]
    assert watched.of("state")[-1] == watched.records[-1]
    assert watched.told[-1] == ("ended", job)


def test_jobs_follow_one_another(qtbot: Any, watch: Watch) -> None:
    """The next one even from within the slot that hears of the end."""
    watched = watch()
    jobs = [watched.to_end(counting(3))]
    first: Job[Any, Any] = Job(counting(4), same)
    second: Job[Any, Any] = Job(counting(5), same)
    first.start()
    second.start()

    def go_on(job: Job[Any, Any]) -> None:
        if job is first:
            watched.pump.follow(second, 100.0)

    watched.pump.ended.connect(go_on)
    watched.pump.follow(first, 100.0)
    qtbot.waitUntil(lambda: len(watched.of("ended")) == 3)
    qtbot.wait(50)
    assert watched.of("ended") == [*jobs, first, second]
    assert watched.records == [1, 2, 3, 1, 2, 3, 4, 1, 2, 3, 4, 5]


def test_without_a_job_there_is_nothing_to_tell(qtbot: Any, watch: Watch) -> None:
    watched = watch()
    watched.pump.look()
    qtbot.wait(30)
    assert watched.told == []


def test_it_looks_as_often_as_it_was_told(watch: Watch) -> None:
    watched = watch()
    began = time.monotonic()
    watched.to_end(counting(500, 0.001), rate_hz=10.0)
    looks = (time.monotonic() - began) * 10
    assert 3 <= len(watched.of("records")) <= looks + 1


def test_a_slow_slot_draws_fewer_states_and_loses_no_record(watch: Watch) -> None:
    drawing_s = 0.02
    fast, slow = watch(), watch(lambda _: time.sleep(drawing_s))
    fast.to_end(counting(400, 0.002))
    began = time.monotonic()
    slow.to_end(counting(400, 0.002))
    seconds = time.monotonic() - began
    for watched in (fast, slow):
        assert watched.records == [*range(1, 401)]
        assert watched.of("state")[-1] == 400
    drawn = len(slow.of("state"))
    assert drawn >= 2
    assert (drawn - 2) * drawing_s <= DRAW_SHARE * seconds  # the first and the last are always drawn
    assert len(fast.of("state")) > 2 * drawn


class SlowToPaint(QWidget):
    """Takes its time whenever Qt asks it to paint itself.

    Attributes:
        painted: how often it has done so.
    """

    painting_s = 0.02
    painted = 0

    def paintEvent(self, event: QPaintEvent | None) -> None:
        self.painted += 1
        time.sleep(self.painting_s)


def test_painting_counts_as_drawing_though_it_comes_after_the_slot(qtbot: Any, watch: Watch) -> None:
    widget = SlowToPaint()
    qtbot.addWidget(widget)
    with qtbot.waitExposed(widget):
        widget.show()
    watched = watch(lambda _: widget.update())
    painted, began = widget.painted, time.monotonic()
    watched.to_end(counting(400, 0.002))
    seconds = time.monotonic() - began
    drawn = len(watched.of("state"))
    assert widget.painted - painted >= drawn - 1
    assert (drawn - 2) * widget.painting_s <= DRAW_SHARE * seconds
    assert watched.records == [*range(1, 401)]


def test_the_end_waits_for_no_drawing(qtbot: Any, watch: Watch) -> None:
    """Stop has to be seen at once, however slow the window was before."""
    watched = watch(lambda _: time.sleep(0.08))
    job = watched.follow(counting(10**6, 0.002))
    qtbot.waitUntil(lambda: len(watched.of("state")) == 1)
    job.cancel()
    assert job.join(LONG_S)
    began = time.monotonic()
    qtbot.waitUntil(lambda: watched.of("ended") == [job])
    assert time.monotonic() - began < 0.6 * LONGEST_WAIT_S
    assert watched.of("state")[-1] == watched.records[-1]
    assert watched.told[-1] == ("ended", job)


def test_even_the_slowest_window_is_drawn_once_a_second(qtbot: Any, watch: Watch) -> None:
    times = []

    def draw(_: Any) -> None:
        times.append(time.monotonic())
        time.sleep(0.2)

    watched = watch(draw)
    job = watched.follow(counting(10**6, 0.002))
    qtbot.waitUntil(lambda: len(times) >= 2)
    assert LONGEST_WAIT_S <= times[1] - times[0] < LONGEST_WAIT_S + 1.0  # 3.8 s were its share
    job.cancel()
    qtbot.waitUntil(lambda: watched.of("ended") == [job])


def test_a_pump_that_goes_with_its_dock_tells_nothing_more(qtbot: Any) -> None:
    dock = QObject()
    pump = Pump(dock)
    told: list[Any] = []
    pump.state.connect(told.append)
    job: Job[Any, Any] = Job(counting(10**6, 0.001), same)
    job.start()
    pump.follow(job, 100.0)
    qtbot.waitUntil(lambda: len(told) > 1)
    with qtbot.waitSignal(dock.destroyed):
        dock.deleteLater()
    before = len(told)
    qtbot.wait(60)
    assert len(told) == before
    assert job.status == "running"  # who closes a dock cancels its jobs
    job.cancel()
    assert job.join(LONG_S)


# the answerer


class Oracle:
    """Answers ten times the question, when a test lets it.

    Attributes:
        asked: the questions it has begun to think about.
        threads: where it thought.
    """

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.threads: set[threading.Thread] = set()
        self._allowed = threading.Semaphore(0)

    def let(self, answers: int = 1) -> None:
        self._allowed.release(answers)

    def __call__(self, question: Any) -> Any:
        self.asked.append(question)
        self.threads.add(threading.current_thread())
        assert self._allowed.acquire(timeout=LONG_S)
        if isinstance(question, Exception):
            raise question
        return 10 * question


@pytest.fixture
def oracle() -> Iterator[Oracle]:
    """Every thread that a test has made must be gone after it."""
    before = set(threading.enumerate())
    made = Oracle()
    yield made
    made.let(10**6)
    deadline = time.monotonic() + LONG_S
    while [t for t in threading.enumerate() if t.name == NAME and t not in before]:
        assert time.monotonic() < deadline, "a thread was left"
        time.sleep(1e-3)


def ask_all(oracle: Callable[[Any], Any], parent: QObject | None = None) -> tuple[Answerer[Any], list[Any], list[Any]]:
    """An answerer, its answers and its failures."""
    answerer: Answerer[Any] = Answerer(oracle, parent)
    answers: list[Any] = []
    failures: list[Any] = []
    answerer.answered.connect(lambda question, answer: answers.append((question, answer)))
    answerer.failed.connect(failures.append)
    return answerer, answers, failures


def test_a_question_is_answered_in_a_thread_and_told_in_the_main_one(qtbot: Any, oracle: Oracle) -> None:
    answerer, answers, _ = ask_all(oracle)
    told_in = []
    answerer.answered.connect(lambda *_: told_in.append(threading.current_thread()))
    assert not answerer.busy
    answerer.ask(7)
    assert answerer.busy
    qtbot.waitUntil(lambda: oracle.asked == [7])
    assert answers == []
    oracle.let()
    qtbot.waitUntil(lambda: not answerer.busy and answers == [(7, 70)])
    assert told_in == [threading.main_thread()]
    (thread,) = oracle.threads
    assert thread is not threading.main_thread()
    assert thread.name == NAME
    assert thread.daemon


def test_the_latest_question_replaces_those_that_wait(qtbot: Any, oracle: Oracle) -> None:
    answerer, answers, _ = ask_all(oracle)
    answerer.ask(1)
    qtbot.waitUntil(lambda: oracle.asked == [1])
    for question in (2, 3, 4):
        answerer.ask(question)
    oracle.let()
    qtbot.waitUntil(lambda: oracle.asked == [1, 4])
    answerer.ask(5)
    oracle.let(2)
    qtbot.waitUntil(lambda: not answerer.busy)
    qtbot.waitUntil(lambda: len(answers) == 3)
    assert answers == [(1, 10), (4, 40), (5, 50)]
    assert len(oracle.threads) == 1


def test_it_can_be_asked_again_after_a_rest(qtbot: Any, oracle: Oracle) -> None:
    answerer, answers, _ = ask_all(oracle)
    oracle.let(100)
    for question in range(5):
        answerer.ask(question)
        qtbot.waitUntil(lambda question=question: (question, 10 * question) in answers and not answerer.busy)
    assert [question for question, _ in answers] == [0, 1, 2, 3, 4]


def test_a_slot_may_ask_the_next_question(qtbot: Any, oracle: Oracle) -> None:
    answerer, answers, _ = ask_all(oracle)
    oracle.let(100)
    answerer.answered.connect(lambda question, _: answerer.ask(question + 1) if question < 5 else None)
    answerer.ask(1)
    qtbot.waitUntil(lambda: len(answers) == 5)
    assert [question for question, _ in answers] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("error", [ValueError("no"), RuntimeError("CUDA out of memory"), MemoryError()], ids=repr)
def test_a_failure_is_told_and_the_next_question_answered(qtbot: Any, oracle: Oracle, error: Exception) -> None:
    """A RuntimeError of the answer is no sign that the window is gone."""
    answerer, answers, failures = ask_all(oracle)
    answerer.ask(error)
    qtbot.waitUntil(lambda: oracle.asked == [error])
    answerer.ask(2)
    oracle.let(2)
    qtbot.waitUntil(lambda: answers == [(2, 20)])
    assert failures == [error]
    assert failures[0] is error
    answerer.ask(error)
    oracle.let()
    qtbot.waitUntil(lambda: not answerer.busy)
    qtbot.waitUntil(lambda: failures == [error, error])
    assert len(answers) == 1


def test_under_a_hail_of_questions_the_last_one_is_answered(qtbot: Any, oracle: Oracle) -> None:
    answerer, answers, _ = ask_all(oracle)
    oracle.let(10**6)
    threads = {t for t in threading.enumerate() if t.name != NAME}
    for question in range(3000):
        answerer.ask(question)
        if question % 100 == 0:
            qtbot.wait(1)
    qtbot.waitUntil(lambda: bool(answers) and answers[-1] == (2999, 29990))
    questions = [question for question, _ in answers]
    assert questions == sorted(set(questions)) == oracle.asked
    assert {t for t in threading.enumerate() if t.name != NAME} <= threads


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize("question", [1, ValueError("no")], ids=["answer", "failure"])
def test_one_that_is_deleted_while_it_thinks_ends_in_silence(
    qtbot: Any, oracle: Oracle, question: Any, waiting: bool
) -> None:
    """As a dock that is closed takes it along."""
    dock = QObject()
    answerer, answers, failures = ask_all(oracle, dock)
    answerer.ask(question)
    qtbot.waitUntil(lambda: oracle.asked == [question])
    if waiting:
        answerer.ask(2)
    with qtbot.waitSignal(answerer.destroyed):
        dock.deleteLater()
    assert answerer.busy
    oracle.let(2)
    qtbot.waitUntil(lambda: not answerer.busy)
    qtbot.wait(20)
    assert (answers, failures) == ([], [])


def test_one_that_nobody_holds_ends_with_its_answer(qtbot: Any, oracle: Oracle) -> None:
    def ask() -> weakref.ref[Any]:
        answerer: Answerer[int] = Answerer(oracle)
        answerer.ask(1)
        return weakref.ref(answerer)

    alive = ask()
    qtbot.waitUntil(lambda: oracle.asked == [1])
    gc.collect()
    oracle.let()

    def is_gone() -> bool:
        gc.collect()
        return alive() is None

    qtbot.waitUntil(is_gone)


def test_deletion_just_when_the_answer_is_told_does_no_harm() -> None:
    """The thread calls slots while the main one takes the dock away; a process of its own, since the harm is a crash."""
    code = """
import threading, time
from qtpy.QtCore import QCoreApplication, QEvent, QObject
from napari_mepdiff._pump import Answerer
application = QCoreApplication([])
for _ in range(150):
    thought = threading.Event()
    dock = QObject()
    answerer = Answerer(lambda question: thought.set(), dock)
    for _ in range(100):
        answerer.answered.connect(lambda *_: None)
    dock.deleteLater()
    answerer.ask(1)
    while not thought.is_set():
        pass
    QCoreApplication.sendPostedEvents(dock, QEvent.Type.DeferredDelete)
    application.processEvents()
for thread in threading.enumerate():
    if thread is not threading.main_thread():
        thread.join(20)
print("all is well")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "all is well\n", "")


def test_an_application_that_ends_while_it_thinks_ends_well() -> None:
    code = """
import time
from qtpy.QtCore import QCoreApplication, QTimer
from napari_mepdiff._pump import Answerer
application = QCoreApplication([])
answerer = Answerer(lambda question: time.sleep(60))
answerer.ask(1)
QTimer.singleShot(20, application.quit)
application.exec()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
