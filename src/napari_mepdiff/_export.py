"""A run in words that a script or a shell understands."""

from __future__ import annotations

import pprint
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mepdiff_core.config import parse_assignments, quoted, to_dict
from mepdiff_core.reconstruction import METHODS, MethodConfig


@dataclass(frozen=True)
class Request:
    """What a person has asked for.

    Attributes:
        scan: the scan file.
        method, config, device: as for ``mepdiff_core.reconstruct``.
        calibration: what differs from the file's.
        probe: a probe file; None for the scan's own.
    """

    scan: Path
    method: str
    config: MethodConfig
    device: str = "auto"
    calibration: Mapping[str, Any] | None = None
    probe: Path | None = None

    def settings(self) -> dict[str, Any]:
        """The settings that differ from the method's own."""
        return changed(to_dict(METHODS[self.method].default), to_dict(self.config))


def as_python(request: Request) -> str:
    """A script that does the same."""
    lines = ["import mepdiff_core as mep", "", f"scan = mep.load_scan({str(request.scan)!r})"]
    if request.calibration:
        lines.append(f"scan = mep.calibrate(scan, {pprint.pformat(dict(request.calibration), sort_dicts=False)})")
    if request.probe is not None:
        lines[0] += "\nfrom mepdiff_core.probe import with_probe"
        lines.append(f"scan = with_probe(scan, {str(request.probe)!r})")
    settings = pprint.pformat(request.settings(), sort_dicts=False, width=100)
    lines += [
        f"settings = {settings}",
        f"for state in mep.reconstruct(scan, {request.method!r}, config=settings, device={request.device!r}):",
        "    print(state.step, state.loss, state.heldout, state.volume.shape)",
    ]
    return "\n".join(lines) + "\n"


def as_command(request: Request, out: str = "run") -> str:
    """A command line that does the same."""
    words = ["mepdiff", "reconstruct", str(request.scan), "--method", request.method, "--out", out]
    if request.device != "auto":
        words += ["--device", request.device]
    if request.probe is not None:
        words += ["--probe", str(request.probe)]
    for option, values in (("--calibrate", request.calibration or {}), ("--set", request.settings())):
        for name, value in flat(values):
            words += [option, f"{name}={in_yaml(value)}"]
    return shlex.join(words)


def changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """What of ``after`` differs, nested mappings field by field; what is gone is None."""
    result: dict[str, Any] = {key: None for key in before if key not in after}
    for key, value in after.items():
        old = before.get(key)
        if isinstance(value, Mapping) and isinstance(old, Mapping):
            inner = changed(old, value)
            if inner:
                result[key] = inner
        elif value != old:
            result[key] = value
    return result


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings by dotted names."""
    result: list[tuple[str, Any]] = []
    for key, value in values.items():
        result += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return result


def in_yaml(value: Any) -> str:
    """A number, text, truth value, nothing, or a list of these, in one line of YAML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(in_yaml, value))}]"
    if value is None:
        return "null"
    if isinstance(value, str):  # NO is nitric oxide
        plain = re.fullmatch(r"[A-Za-z/][\w./-]*", value) and parse_assignments([f"text={value}"])["text"] == value
        return value if plain else quoted(value)
    return str(value).lower() if isinstance(value, bool) else str(value)
