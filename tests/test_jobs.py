"""A job in its thread, without a window: what arrives, how it pauses and ends, and what it leaves behind."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

import mepdiff_core as mep
from mepdiff_core.errors import explain
from mepdiff_core.jobs import Job
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.states import State

LONG_S = 20.0
"""Nothing here takes that long unless it hangs."""
SHORT_S = 0.05
"""Long enough for a loop that ought to stand still to give itself away."""


def same(state: Any) -> Any:
    return state


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline, "that never came"
        time.sleep(1e-3)


class Gate:
    """A loop over 1, 2, 3, ... whose steps a test lets through one by one.

    Attributes:
        begun: the step under way, or the last one done.
        cleaned: in which thread, and after which step, its finally block ran.
    """

    def __init__(self, steps: int = 100) -> None:
        self.steps = steps
        self.begun = 0
        self.cleaned: list[tuple[int, int]] = []
        self._allowed = threading.Semaphore(0)

    def let(self, steps: int = 1) -> None:
        self._allowed.release(steps)

    def loop(self) -> Iterator[int]:
        try:
            for step in range(1, self.steps + 1):
                self.begun = step
                assert self._allowed.acquire(timeout=LONG_S)
                yield step
        finally:
            self.cleaned.append((threading.get_ident(), self.begun))


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
def gated(gate: Gate) -> Iterator[Job[int, int]]:
    """A job over the gate, in the middle of its first step."""
    job: Job[int, int] = Job(gate.loop, same)
    job.start()
    wait_until(lambda: gate.begun == 1)
    yield job
    job.cancel()
    gate.let(1000)
    assert job.join(LONG_S)


def finished(loop: Callable[[], Any], record: Callable[[Any], Any] = same) -> Job[Any, Any]:
    """A job that has run to its end, whatever that was."""
    job: Job[Any, Any] = Job(loop, record)
    job.start()
    assert job.join(LONG_S)
    assert job.ended
    return job


# what arrives


def test_a_job_that_nobody_looks_at_finishes_with_everything_in_order() -> None:
    job = finished(lambda: range(7), lambda state: 10 * state)
    assert (job.status, job.error, job.details) == ("finished", None, "")
    assert job.take() == 6
    assert job.take() is None
    assert job.take_records() == [0, 10, 20, 30, 40, 50, 60]
    assert job.take_records() == []


def test_the_latest_state_wins_and_is_given_once(gate: Gate, gated: Job[int, int]) -> None:
    assert gated.take() is None
    assert gated.take_records() == []
    gate.let()
    wait_until(lambda: gate.begun == 2)
    assert gated.take() == 1
    assert gated.take() is None
    gate.let(3)
    wait_until(lambda: gate.begun == 5)
    assert gated.take() == 4
    assert gated.take() is None
    assert gated.take_records() == [1, 2, 3, 4]  # those that were overtaken too
    gate.let()
    wait_until(lambda: gate.begun == 6)
    assert gated.take_records() == [5]
    assert gated.take() == 5


def test_records_polled_while_states_stream_are_complete_and_in_order() -> None:
    """One thread polls the records, this one the states."""
    n = 5000
    polled = threading.Event()
    batches: list[list[int]] = []

    def stream() -> Iterator[int]:
        for step in range(n):
            if step == 100:
                assert polled.wait(LONG_S)  # the rest streams while the other thread polls
            yield step

    def poll() -> None:
        while not job.ended:
            batch = job.take_records()
            if batch:
                batches.append(batch)
                polled.set()
        batches.append(job.take_records())

    job: Job[int, int] = Job(stream, same)
    poller = threading.Thread(target=poll)
    poller.start()
    job.start()
    taken = []
    while not job.ended:
        state = job.take()
        if state is not None:
            taken.append(state)
    poller.join(LONG_S)
    assert not poller.is_alive()
    last = job.take()
    taken += [] if last is None else [last]
    assert [record for batch in batches for record in batch] == list(range(n))
    assert len([batch for batch in batches if batch]) >= 2
    assert taken == sorted(set(taken))  # none twice, none older than the one before
    assert taken[-1] == n - 1


def test_loop_and_records_are_made_in_the_jobs_own_thread() -> None:
    threads: dict[str, threading.Thread] = {}

    def start_loop() -> Iterator[int]:
        """No generator: this body runs when it is called."""
        threads["start"] = threading.current_thread()
        return loop()

    def loop() -> Iterator[int]:
        threads["step"] = threading.current_thread()
        yield 1

    def record(state: int) -> int:
        threads["record"] = threading.current_thread()
        return state

    job: Job[int, int] = Job(start_loop, record, name="a name of its own")
    assert threads == {}
    job.start()
    assert job.join(LONG_S)
    assert threads.keys() == {"start", "step", "record"}
    assert len(set(threads.values())) == 1
    assert threads["start"] is not threading.current_thread()
    assert threads["start"].name == "a name of its own"
    assert threads["start"].daemon  # it holds up no exit of the program


def test_the_volume_of_a_state_taken_out_is_read_only() -> None:
    volume = np.zeros((2, 3, 3), np.float32)
    checkpoint = {"moments": np.ones(4)}
    job = finished(lambda: iter([State(1, 1, volume, 0.5, 0.0, 1, checkpoint=checkpoint)]))
    state = job.take()
    assert state.volume is volume  # no copy either
    with pytest.raises(ValueError, match="read-only"):
        state.volume[0, 0, 0] = 1
    with pytest.raises(ValueError, match="read-only"):
        state.checkpoint["moments"] += 1
    assert not volume.any()


# pause and resume


def test_pause_stops_after_the_step_under_way_and_resume_goes_on(gate: Gate, gated: Job[int, int]) -> None:
    gated.pause()
    assert gated.status == "paused"
    gate.let(3)
    wait_until(lambda: gated.take() == 1)  # what there is can be looked at meanwhile
    time.sleep(SHORT_S)
    assert (gate.begun, gated.take_records()) == (1, [1])
    assert not gated.ended
    gated.resume()
    assert gated.status == "running"
    wait_until(lambda: gate.begun == 4)
    assert gated.take_records() == [2, 3]

    gated.pause()
    gate.let(2)
    wait_until(lambda: gated.take() == 4)
    time.sleep(SHORT_S)
    assert (gate.begun, gated.take_records()) == (4, [4])
    gated.resume()
    wait_until(lambda: gate.begun == 6)
    assert gated.take_records() == [5]


def test_resuming_before_the_step_is_done_is_no_pause(gate: Gate, gated: Job[int, int]) -> None:
    gated.pause()
    gated.pause()
    gated.resume()
    gate.let(2)
    wait_until(lambda: gate.begun == 3)
    assert gated.status == "running"


def test_pause_and_resume_mean_nothing_before_the_start_and_after_the_end() -> None:
    job: Job[int, int] = Job(lambda: iter(range(3)), same)
    job.pause()
    job.resume()
    assert job.status == "waiting"
    job.start()
    assert job.join(LONG_S)
    for change in (job.pause, job.resume):
        change()
        assert job.status == "finished"


# cancel


def test_cancel_while_running_waits_for_the_step_and_the_clean_up(gate: Gate, gated: Job[int, int]) -> None:
    gate.let()
    wait_until(lambda: gate.begun == 2)
    gated.cancel()
    assert (gated.status, gated.ended) == ("stopping", False)
    assert not gated.join(SHORT_S)
    assert gate.cleaned == []
    gate.let(50)
    assert gated.join(LONG_S)
    assert (gated.status, gated.error) == ("stopped", None)
    assert gate.begun == 2
    assert [step for _, step in gate.cleaned] == [2]
    assert gate.cleaned[0][0] != threading.get_ident()  # where the loop lived
    assert gated.take_records() == [1, 2]
    assert gated.take() == 2  # the step under way is not lost


def test_cancel_while_paused_ends_it_at_once(gate: Gate, gated: Job[int, int]) -> None:
    gated.pause()
    gate.let(50)
    wait_until(lambda: gated.take() == 1)
    assert gate.cleaned == []
    gated.cancel()
    assert gated.join(LONG_S)
    assert gated.status == "stopped"
    assert [step for _, step in gate.cleaned] == [1]
    assert (gate.begun, gated.take_records()) == (1, [1])


def test_cancel_overrules_a_pause_whose_step_is_still_under_way(gate: Gate, gated: Job[int, int]) -> None:
    gated.pause()
    gated.cancel()
    gated.pause()
    gated.resume()
    assert gated.status == "stopping"
    gate.let(50)
    assert gated.join(LONG_S)
    assert (gated.status, gate.begun, gated.take_records()) == ("stopped", 1, [1])


def test_cancel_before_the_start_never_makes_the_loop() -> None:
    made = []
    big = np.zeros(1000)
    alive = weakref.ref(big)

    def start_loop(big: Any = big) -> Iterator[int]:
        made.append(big)
        return iter([1])

    job: Job[int, int] = Job(start_loop, same)
    assert not job.ended
    assert not job.join(0)
    job.cancel()
    assert (job.status, job.ended) == ("stopped", True)
    assert job.join()
    with pytest.raises(RuntimeError, match="stopped"):
        job.start()
    assert made == []
    del big, start_loop
    gc.collect()
    assert alive() is None  # what the loop would have worked on


def test_cancel_while_the_loop_is_being_made_ends_it_before_its_first_step() -> None:
    """Where imports and models are loaded."""
    loading, go_on, gate = threading.Event(), threading.Event(), Gate()

    def start_loop() -> Iterator[int]:
        loading.set()
        assert go_on.wait(LONG_S)
        return gate.loop()

    job: Job[int, int] = Job(start_loop, same)
    job.start()
    assert loading.wait(LONG_S)
    job.cancel()
    gate.let(50)
    go_on.set()
    assert job.join(LONG_S)
    assert (job.status, job.error) == ("stopped", None)
    assert gate.begun == 0
    assert gate.cleaned == []  # nothing began, so that there is nothing to clean up
    assert (job.take_records(), job.take()) == ([], None)


def test_a_loop_that_is_not_begun_is_closed_all_the_same() -> None:
    """One that opened something when it was made."""
    loading, go_on = threading.Event(), threading.Event()
    closed: list[int] = []

    class Opened:
        steps = 0

        def __iter__(self) -> Opened:
            return self

        def __next__(self) -> int:
            self.steps += 1
            return self.steps

        def close(self) -> None:
            closed.append(self.steps)

    def start_loop() -> Iterator[int]:
        loading.set()
        assert go_on.wait(LONG_S)
        return Opened()

    job: Job[int, int] = Job(start_loop, same)
    job.start()
    assert loading.wait(LONG_S)
    job.cancel()
    go_on.set()
    assert job.join(LONG_S)
    assert (job.status, closed) == ("stopped", [0])


def test_cancel_twice_and_after_the_end_changes_nothing(gate: Gate, gated: Job[int, int]) -> None:
    gated.cancel()
    gated.cancel()
    gate.let()
    assert gated.join(LONG_S)
    gated.cancel()
    assert gated.status == "stopped"
    done = finished(lambda: [1])
    done.cancel()
    assert (done.status, done.take_records()) == ("finished", [1])


# failures


class Trouble(RuntimeError):
    """As a library might derive it."""


def errors() -> list[Exception]:
    return [
        ValueError("wrong shape"),
        MemoryError("9 GB"),
        Trouble("trouble"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
    ]


@pytest.mark.parametrize("error", errors(), ids=lambda error: type(error).__name__)
def test_a_failing_loop_is_kept_as_an_error_without_its_arrays(error: Exception) -> None:
    arrays: list[weakref.ref[Any]] = []

    def deep() -> None:
        below = np.zeros(1000)
        arrays.append(weakref.ref(below))
        raise error

    def failing() -> Iterator[int]:
        above = np.zeros(1000)
        arrays.append(weakref.ref(above))
        yield 1
        deep()

    job = finished(failing)
    assert job.status == "failed"
    assert job.error is error
    assert job.take_records() == [1]  # what came before is there
    assert job.take() == 1
    for part in ("Traceback", "in deep", type(error).__name__, str(error)):
        assert part in job.details
    gc.collect()
    assert len(arrays) == 2
    assert [array() for array in arrays] == [None, None]


def fail_from_another(deep: Callable[[], None]) -> None:
    try:
        deep()
    except KeyError as error:
        raise ValueError("outer") from error


def fail_from_none(deep: Callable[[], None]) -> None:
    try:
        deep()
    except KeyError:
        raise ValueError("outer") from None


def fail_while_handling(deep: Callable[[], None]) -> None:
    try:
        deep()
    except KeyError:
        raise ValueError("outer")  # noqa: B904


def fail_while_cleaning_up(deep: Callable[[], None]) -> None:
    try:
        deep()
    finally:
        raise ValueError("outer")


@pytest.mark.parametrize("fail", [fail_from_another, fail_from_none, fail_while_handling, fail_while_cleaning_up])
def test_an_error_behind_the_error_keeps_no_arrays_either(fail: Callable[[Callable[[], None]], None]) -> None:
    arrays: list[weakref.ref[Any]] = []

    def deep() -> None:
        below = np.zeros(1000)
        arrays.append(weakref.ref(below))
        raise KeyError("inner")

    def failing() -> Iterator[int]:
        above = np.zeros(1000)
        arrays.append(weakref.ref(above))
        yield 1
        fail(deep)

    job = finished(failing)
    assert (job.status, str(job.error)) == ("failed", "outer")
    gc.collect()
    assert [array() for array in arrays] == [None, None]


class Arrays:
    """Errors that hold arrays by their frames."""

    def __init__(self) -> None:
        self.alive: list[weakref.ref[Any]] = []

    def error(self, words: str) -> Exception:
        def deep() -> None:
            below = np.zeros(1000)
            self.alive.append(weakref.ref(below))
            raise KeyError(words)

        try:
            deep()
        except KeyError as error:
            return error
        raise AssertionError

    @property
    def left(self) -> int:
        gc.collect()
        return sum(array() is not None for array in self.alive)


def fail_of_two_causes(arrays: Arrays) -> None:
    """While handling one error, because of another."""
    cause, context = arrays.error("cause"), arrays.error("context")
    try:
        raise context
    except KeyError:
        raise ValueError("outer") from cause


def fail_of_many(arrays: Arrays) -> None:
    inner = ExceptionGroup("inner", [arrays.error("two"), arrays.error("three")])
    raise ExceptionGroup("outer", [arrays.error("one"), inner])


def fail_of_a_group_behind(arrays: Arrays) -> None:
    one = arrays.error("one")
    one.__cause__ = arrays.error("two")
    try:
        raise ExceptionGroup("group", [one])
    except ExceptionGroup as group:
        raise ValueError("outer") from group


@pytest.mark.parametrize("fail", [fail_of_two_causes, fail_of_many, fail_of_a_group_behind])
def test_all_errors_behind_an_error_let_go_of_their_arrays(fail: Callable[[Arrays], None]) -> None:
    arrays = Arrays()
    kept = arrays.error("kept")
    assert arrays.left == 1  # so errors do hold arrays
    del kept

    def failing() -> Iterator[int]:
        yield 1
        fail(arrays)

    job = finished(failing)
    assert job.status == "failed"
    assert str(job.error).startswith("outer")
    assert len(arrays.alive) >= 3
    assert arrays.left == 0
    for each in ("outer", "in deep"):
        assert each in job.details


def raise_from_itself() -> None:
    error = ValueError("round")
    raise error from error


def raise_from_a_circle() -> None:
    first, second, third = ValueError("round"), KeyError("and"), ValueError("round")
    first.__cause__, second.__context__, third.__cause__ = second, third, first
    raise first


@pytest.mark.parametrize("fail", [raise_from_itself, raise_from_a_circle])
def test_errors_that_lead_to_themselves_end_the_job(fail: Callable[[], None]) -> None:
    def failing() -> Iterator[int]:
        yield 1
        fail()

    job = finished(failing)
    assert (job.status, str(job.error)) == ("failed", "round")
    assert "ValueError: round" in job.details
    assert job.error is not None
    assert job.error.__traceback__ is None


def broken_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that has failed cannot free its memory."""

    def empty_cache() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", empty_cache)


def test_a_device_that_cannot_free_its_memory_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    broken_device(monkeypatch)
    job = finished(lambda: [1, 2])
    assert (job.status, type(job.error)) == ("failed", RuntimeError)
    assert "illegal memory access" in str(job.error)
    assert "in empty_cache" in job.details
    assert job.error is not None
    assert job.error.__traceback__ is None
    assert (job.take_records(), job.take()) == ([1, 2], 2)  # what was reached is there


def test_the_loops_own_error_is_the_one_that_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not what came of it when the device was to be freed."""
    broken_device(monkeypatch)

    def failing() -> Iterator[int]:
        yield 1
        raise Trouble("trouble")

    job = finished(failing)
    assert (job.status, str(job.error)) == ("failed", "trouble")
    assert "illegal" not in job.details


def test_a_stopped_job_whose_device_failed_has_failed(
    gate: Gate, gated: Job[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_device(monkeypatch)
    gated.cancel()
    gate.let()
    assert gated.join(LONG_S)
    assert gated.status == "failed"
    assert "illegal memory access" in str(gated.error)


def test_a_failing_start_record_or_clean_up_is_a_failure_too(gate: Gate) -> None:
    def start_loop() -> Iterator[int]:
        raise ImportError("no such library")

    job = finished(start_loop)
    assert (job.status, str(job.error), job.take()) == ("failed", "no such library", None)

    gate.let(50)
    job = finished(gate.loop, lambda state: 1 // (3 - state))
    assert (job.status, type(job.error)) == ("failed", ZeroDivisionError)
    assert job.take_records() == [0, 1]
    assert [step for _, step in gate.cleaned] == [3]  # its clean-up ran all the same

    started = threading.Event()

    def untidy() -> Iterator[int]:
        try:
            while True:
                yield 1
                started.set()
        finally:
            raise OSError("disk full")

    job = Job(untidy, same)
    job.start()
    assert started.wait(LONG_S)
    job.cancel()
    assert job.join(LONG_S)
    assert (job.status, str(job.error)) == ("failed", "disk full")


def test_even_an_exit_in_the_loop_ends_only_the_job() -> None:
    def leaving() -> Iterator[int]:
        yield 1
        raise SystemExit(3)

    job = finished(leaving)
    assert (job.status, type(job.error)) == ("failed", SystemExit)


# start and join


def test_a_job_starts_once(gate: Gate, gated: Job[int, int]) -> None:
    with pytest.raises(RuntimeError, match="running"):
        gated.start()
    gated.pause()
    with pytest.raises(RuntimeError, match="paused"):
        gated.start()
    gated.cancel()
    gate.let()
    assert gated.join(LONG_S)
    with pytest.raises(RuntimeError, match="stopped"):
        gated.start()
    done = finished(lambda: [1])
    with pytest.raises(RuntimeError, match="finished"):
        done.start()
    assert gate.begun == 1
    assert done.take_records() == [1]


def test_join_says_whether_the_end_came_in_time(gate: Gate, gated: Job[int, int]) -> None:
    began = time.monotonic()
    assert gated.join(SHORT_S) is False
    assert time.monotonic() - began >= 0.9 * SHORT_S
    assert not gated.ended
    gated.cancel()
    gate.let()
    assert gated.join(LONG_S) is True
    assert gated.ended
    assert gated.join(0) is True


# what is left behind


def test_a_hundred_jobs_leave_no_threads_and_no_arrays() -> None:
    """Started, looked at, cancelled; some of them paused, every tenth fails instead."""
    arrays: list[weakref.ref[Any]] = []

    def run(index: int, errors: list[BaseException | None]) -> None:
        fails = index % 10 == 9

        def loop() -> Iterator[State]:
            for step in range(1, 10**6):
                volume = np.zeros((2, 8, 8), np.float32)
                if step == 1:
                    arrays.append(weakref.ref(volume))
                if fails and step == 2:
                    raise MemoryError("9 GB")
                yield State(step, 10**6, volume, 0.0, 0.0, step)

        job: Job[State, int] = Job(loop, lambda state: state.step)
        job.start()
        wait_until(lambda: job.take() is not None)
        if index % 3 == 0 and not fails:
            job.pause()
        if not fails:
            job.cancel()
        assert job.join(LONG_S)
        assert job.status == ("failed" if fails else "stopped")
        errors.append(job.error)  # a window goes on showing it

    threads = set(threading.enumerate())
    errors: list[BaseException | None] = []
    gc.collect()
    gc.freeze()  # a hundred collections need not walk through torch
    try:
        for index in range(100):
            run(index, errors)
            gc.collect()
            assert sum(array() is not None for array in arrays) == 0
    finally:
        gc.unfreeze()
    assert set(threading.enumerate()) <= threads
    assert len(arrays) == len(errors) == 100


def test_an_ended_job_holds_its_last_state_alone() -> None:
    """Neither the states before it nor the scan that the loop was made from."""
    arrays: list[weakref.ref[Any]] = []

    def run() -> Job[State, int]:
        scan = np.zeros((9, 8, 8))
        arrays.append(weakref.ref(scan))

        def loop() -> Iterator[State]:
            for step in range(1, 5):
                volume = np.full((2, 8, 8), step + scan.max(), np.float32)
                arrays.append(weakref.ref(volume))
                yield State(step, 4, volume, 0.0, 0.0, step)

        return finished(loop, lambda state: state.step)

    job = run()
    gc.collect()
    assert [array() is not None for array in arrays] == [False, False, False, False, True]
    assert job.take().volume[0, 0, 0] == 4
    gc.collect()
    assert arrays[-1]() is None


def test_the_gpu_has_its_memory_back_before_the_job_says_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays in reference cycles too; the next job may need all of it."""
    given_back: list[tuple[bool, bool]] = []
    arrays: list[weakref.ref[Any]] = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: given_back.append((job.ended, arrays[0]() is None)))

    def loop() -> Iterator[int]:
        cycle: list[Any] = [np.zeros(1000)]
        cycle.append(cycle)
        arrays.append(weakref.ref(cycle[0]))
        yield 1

    job: Job[int, int] = Job(loop, same)
    gc.disable()
    try:
        job.start()
        assert job.join(LONG_S)
    finally:
        gc.enable()
    assert given_back == [(False, True)]
    assert job.status == "finished"


# the real thing


def summary(state: State) -> tuple[int, int, float, bytes]:
    return state.step, state.total, state.loss, state.volume.tobytes()


def test_a_reconstruction_in_a_job_is_that_of_plain_iteration(small_scan: Scan) -> None:
    settings: dict[str, Any] = {"method": "adam", "iterations": 3, "engine": "fast", "device": "cpu"}
    plain = [summary(state) for state in mep.reconstruct(small_scan, **settings)]
    job: Job[State, tuple[int, int, float, bytes]] = Job(lambda: mep.reconstruct(small_scan, **settings), summary)
    job.start()
    assert job.join(LONG_S)
    assert job.status == "finished", job.details
    records = job.take_records()
    assert [record[0] for record in records] == [1, 2, 3]
    assert records == plain
    assert len({record[2] for record in records}) == 3
    last = job.take()
    assert last is not None
    assert last.volume.tobytes() == plain[-1][3]
    assert last.volume.any()
    with pytest.raises(ValueError, match="read-only"):
        last.volume[0] = 0


def test_bad_settings_in_a_job_are_one_line_for_the_user(small_scan: Scan) -> None:
    job = finished(lambda: mep.reconstruct(small_scan, "adam", iterations=0))
    assert job.status == "failed"
    assert isinstance(job.error, mep.InputError)
    assert explain(job.error) == "iterations is 0; expected at least 1"


def test_a_cancelled_run_is_on_record_and_can_be_resumed(small_file: Path, tmp_path: Path) -> None:
    settings = {"iterations": 3, "engine": "fast"}
    whole = [summary(state) for state in Run(small_file, tmp_path / "whole", "adam", settings, "cpu").states()]
    out = tmp_path / "run"

    job: Job[State, Any] = Job(Run(small_file, out, "adam", settings, "cpu").states, lambda state: job.cancel())
    job.start()
    assert job.join(LONG_S)
    assert job.status == "stopped", job.details
    assert yaml.safe_load((out / "run.yaml").read_text())["status"] == "stopped"
    assert (out / "checkpoint.safetensors").exists()
    assert not (out / "metrics.json").exists()

    again = finished(lambda: Run(small_file, out, "adam", device="cpu", resume=True).states(), summary)
    assert again.status == "finished", again.details
    assert again.take_records() == whole[1:]
    assert (out / "metrics.json").exists()
