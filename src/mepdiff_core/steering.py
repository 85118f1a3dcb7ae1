"""A sampler's guidance changed while it runs: asked for at any time, taken up when the next step begins, kept on record."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

from mepdiff_core.config import check

C = TypeVar("C")

STEERED = ("guidance_scale", "guidance_log_snr", "learning_rate", "openness")
"""Settings of samplers that may change between steps; a method has some of them."""


def steerable(config: Any) -> list[str]:
    """Names of the settings of this config that can be changed while its sampler runs."""
    names = {field.name for field in fields(config)}
    return [name for name in STEERED if name in names] if hasattr(config, "prior") else []


class Steering:
    """The handle that a running sampler asks before every step. One thread steers, another one runs.

    Args:
        changes: of an earlier run, each ``{"step": step, name: value, ...}``: they are taken up at their steps again.

    Attributes:
        changes: what was taken up so far, in the same form; ``step`` is the first step with these settings.
        note: what has changed with the step that is under way, in words; "" for nothing.
    """

    def __init__(self, changes: Sequence[Mapping[str, Any]] = ()) -> None:
        self._lock = threading.Lock()
        self._planned = sorted((dict(change) for change in changes), key=lambda change: int(change["step"]))
        self._asked: dict[str, float] = {}
        self._values: dict[str, float] = {}
        self.changes: list[dict[str, Any]] = []
        self.note = ""

    def ask(self, config: Any, **settings: float) -> None:
        """Change settings from the next step on.

        Args:
            config: that of the run.

        Raises:
            InputError: a setting that its sampler cannot change, or a value that it refuses.
        """
        known = steerable(config)
        for name in settings:
            check(
                name in known, f"{name} cannot be changed while this method runs; choose from {', '.join(known) or 'none'}"
            )
        with self._lock:
            replace(config, **{**self._values, **self._asked, **settings})
            self._asked |= settings

    def begin(self, step: int) -> None:
        """A step begins: take up what is planned for it or was asked for since the last one."""
        with self._lock:
            while self._planned and int(self._planned[0]["step"]) <= step:
                change = self._planned.pop(0)
                self.changes.append(change)
                self._values |= {name: value for name, value in change.items() if name != "step"}
            new = {name: value for name, value in self._asked.items() if self._values.get(name) != value}
            self._asked = {}
            if new:
                self._values |= new
                self.changes.append({"step": step, **new})
            last = self.changes[-1] if self.changes and self.changes[-1]["step"] == step else {}
            self.note = ", ".join(f"{name} {value:g} from here on" for name, value in last.items() if name != "step")

    def now(self, config: C) -> C:
        """The config of a run with what has been changed put in."""
        with self._lock:
            return replace(config, **self._values) if self._values else config  # type: ignore[type-var]
