"""A loop of states in a thread: pause, cancel, a mailbox where the latest state wins, a history that drops nothing."""

from __future__ import annotations

import contextlib
import gc
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Generic, Literal, TypeVar

S = TypeVar("S")
R = TypeVar("R")
Status = Literal["waiting", "running", "paused", "stopping", "finished", "stopped", "failed"]
ENDED: tuple[Status, ...] = ("finished", "stopped", "failed")


class Job(Generic[S, R]):
    """Iterates over a loop in a thread of its own, for somebody who looks now and then.

    Args:
        start_loop: makes the loop; called in the thread, so that what it imports and loads holds up nobody else.
        record: what to keep of every state; it runs in the thread and should be cheap.
        name: of the thread.

    Attributes:
        status: waiting, running, paused, stopping; finished, stopped or failed at the end.
        error: what a failed loop raised, without its frames: they would keep its arrays alive.
        details: the traceback of that error as text.
    """

    def __init__(self, start_loop: Callable[[], Iterable[S]], record: Callable[[S], R], name: str = "mepdiff job") -> None:
        self._start_loop: Callable[[], Iterable[S]] | None = start_loop
        self._record = record
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._latest: S | None = None
        self._records: list[R] = []
        self._cancelled = threading.Event()
        self.status: Status = "waiting"
        self.error: BaseException | None = None
        self.details = ""

    @property
    def ended(self) -> bool:
        """Whether the loop is over, its clean-up included."""
        return self.status in ENDED

    def start(self) -> None:
        """Begin.

        Raises:
            RuntimeError: it began before; a job runs once.
        """
        with self._changed:
            if self.status != "waiting":
                raise RuntimeError(f"this job is {self.status}; make another one")
            self.status = "running"
        self._thread.start()

    def pause(self) -> None:
        """Wait after the step that is under way."""
        self._change("running", "paused")

    def resume(self) -> None:
        """Go on after a pause."""
        self._change("paused", "running")

    def cancel(self) -> None:
        """Stop after the step that is under way; the loop's own clean-up still runs."""
        with self._changed:
            self._cancelled.set()
            if self.status == "waiting":
                self.status = "stopped"
                self._start_loop = None
            elif not self.ended:
                self.status = "stopping"
            self._changed.notify_all()

    def join(self, timeout_s: float | None = None) -> bool:
        """Wait for the end; whether it came in time."""
        if self._thread.ident is not None:
            self._thread.join(timeout_s)
            return not self._thread.is_alive()
        return self.ended

    def take(self) -> S | None:
        """The newest state that was not taken yet; those it overtook are gone."""
        with self._changed:
            latest, self._latest = self._latest, None
            return latest

    def take_records(self) -> list[R]:
        """The records of all states since the last call, in order."""
        with self._changed:
            records, self._records = self._records, []
            return records

    def _change(self, before: Status, after: Status) -> None:
        with self._changed:
            if self.status == before:
                self.status = after
            self._changed.notify_all()

    def _work(self) -> None:
        end: Status = "finished"
        try:
            if not self._iterate():
                end = "stopped"
        except BaseException as error:
            end = self._failed(error)
        try:
            free_device_memory()
        except Exception as error:  # a device that has failed cannot even free its memory
            end = self._failed(error)
        with self._changed:
            self.status = end
            self._changed.notify_all()

    def _failed(self, error: BaseException) -> Status:
        if self.error is None:
            self.details = traceback.format_exc()
            _drop_frames(error)
            self.error = error
        return "failed"

    def _iterate(self) -> bool:
        """Whether the loop came to its own end."""
        start_loop, self._start_loop = self._start_loop, None
        assert start_loop is not None
        if self._cancelled.is_set():
            return False
        loop = iter(start_loop())
        with contextlib.ExitStack() as stack:
            close = getattr(loop, "close", None)
            if close is not None:
                stack.callback(close)
            if self._cancelled.is_set():
                return False
            for state in loop:
                record = self._record(state)
                with self._changed:
                    self._records.append(record)
                    self._latest = state
                    while self.status == "paused":
                        self._changed.wait()
                    if self._cancelled.is_set():
                        return False
        return True


def free_device_memory() -> None:
    """Give back what torch holds for later on CUDA or MPS devices, if torch is here at all."""
    torch = sys.modules.get("torch")
    if torch is None:
        return
    if torch.cuda.is_initialized():
        gc.collect()  # takes the interpreter for some tenths of a second: only where memory is scarce
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        gc.collect()
        torch.mps.empty_cache()


def _drop_frames(error: BaseException) -> None:
    """Forget the frames of an error and of all that led to it."""
    left, seen = [error], set()
    while left:
        each = left.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        each.__traceback__ = None
        inner = each.exceptions if isinstance(each, BaseExceptionGroup) else ()
        left += [e for e in (each.__cause__, each.__context__, *inner) if e is not None]
