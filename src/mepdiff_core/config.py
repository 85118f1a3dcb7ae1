"""Frozen, strict configs: dataclasses that read and write YAML and name the field that is wrong.

The same objects fill the command line (``--set name=value``), the forms of the window and ``run.yaml``.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from mepdiff_core.errors import InputError

C = TypeVar("C")


def from_dict(cls: type[C], values: Mapping[str, Any], where: str = "config") -> C:
    """Make a config from a mapping.

    Args:
        cls: a frozen dataclass; its annotations say what each field takes.
        values: field name to value; nested configs as nested mappings.
        where: how messages call the source, a file's name for instance.

    Raises:
        InputError: an unknown field, a value of another type, or a value the class itself refuses.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a mapping of names to values, got {type(values).__name__}")
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]  # type: ignore[arg-type]
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"it takes {', '.join(names)}"
            raise InputError(f"{where}: unknown field '{key}' of {cls.__name__}; {hint}")
    converted = {key: _convert(value, hints[key], f"{where}: field '{key}'") for key, value in values.items()}
    try:
        return cls(**converted)
    except TypeError as error:
        raise InputError(f"{where}: {cls.__name__} lacks a value: {error}") from None


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain numbers, strings, lists and dicts, ready for YAML or JSON."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, (tuple, list)):
            return [plain(v) for v in value]
        return value

    result: dict[str, Any] = plain(config)
    return result


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML mapping; nothing in it is ever executed.

    Raises:
        InputError: no such file, unreadable, not YAML, or not a mapping.
    """
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error}); give a YAML file") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: an impossible date, 2020-99-99
        raise InputError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InputError(f"{path}: expected a mapping of names to values, got {type(data).__name__}")
    return data


def dump_yaml(data: Mapping[str, Any]) -> str:
    """YAML text with fields in their own order."""
    return yaml.safe_dump(dict(data), sort_keys=False, allow_unicode=True)


def quoted(text: str) -> str:
    """A text as one line of YAML that nothing takes for a number or a truth value."""
    return yaml.safe_dump(text, default_style='"', width=math.inf, allow_unicode=True).strip("\n")


def parse_assignments(assignments: Iterable[str], option: str = "--set") -> dict[str, Any]:
    """``["a=1", "b.c=[2, 3]"]`` as ``{"a": 1, "b": {"c": [2, 3]}}``; values are read as YAML.

    ``option`` is how messages call them.

    Raises:
        InputError: an item without ``=``, or a value that is not YAML.
    """
    result: dict[str, Any] = {}
    for item in assignments:
        name, equals, text = item.partition("=")
        if not equals or not name:
            raise InputError(f"{option} {item}: expected name=value")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError):
            raise InputError(f"{option} {item}: '{text}' is not a value YAML can read") from None
        *parents, last = name.split(".")
        target = result
        for parent in parents:
            target = target.setdefault(parent, {})
            if not isinstance(target, dict):
                raise InputError(f"{option} {item}: '{parent}' was set to a value before")
        target[last] = value
    return result


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with the values of ``over`` put in, mappings merged field by field."""
    result = dict(base)
    for key, value in over.items():
        old = result.get(key)
        result[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return result


def check(condition: bool, message: str) -> None:
    """Raise ``InputError(message)`` unless the condition holds."""
    if not condition:
        raise InputError(message)


def describe(config: Any, prefix: str = "") -> list[tuple[str, Any, str]]:
    """(name, default, meaning) of every field of a config, nested ones by their dotted names, from its docstring."""
    texts = [(each.__doc__ or "").partition("Attributes:")[2] for each in reversed(type(config).__mro__)]
    text = "\n".join(texts)  # what a config inherits is told by its parent
    names = [field.name for field in dataclasses.fields(config)]
    meanings: dict[str, str] = {}
    current: list[str] = []
    for line in text.splitlines():
        before, colon, after = line.strip().partition(":")
        named = [name.strip() for name in before.split(",")]
        if colon and all(name in names for name in named):
            current = named
            meanings |= dict.fromkeys(current, after.strip())
        elif line.strip():
            for name in current:
                meanings[name] += f" {line.strip()}"
    rows: list[tuple[str, Any, str]] = []
    for name in names:
        value = getattr(config, name)
        if dataclasses.is_dataclass(value):
            rows += describe(value, f"{prefix}{name}.")
        else:
            rows.append((prefix + name, to_dict(value), meanings.get(name, "")))
    return rows


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (inner,) = (a for a in args if a is not type(None))
        return _convert(value, inner, where)
    if origin is typing.Literal:
        check(value in args, f"{where}: got {value!r}; choose from {', '.join(map(str, args))}")
        return value
    if dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else from_dict(hint, value, where)  # type: ignore[arg-type]
    if origin is tuple:
        check(isinstance(value, (list, tuple)), f"{where}: expected a list, got {value!r}")
        if args[-1] is not Ellipsis:
            check(len(value) == len(args), f"{where}: expected {len(args)} values, got {value!r}")
            return tuple(_convert(v, a, where) for v, a in zip(value, args, strict=True))
        return tuple(_convert(v, args[0], where) for v in value)
    if origin in (dict, Mapping):
        check(isinstance(value, Mapping), f"{where}: expected a mapping, got {value!r}")
        return {str(k): _convert(v, args[1], f"{where} {k}") for k, v in value.items()}
    if hint is float:
        try:
            # YAML reads 1e6 as a string (it wants 1.0e+6); people write 1e6
            number = float(value) if isinstance(value, (int, float, str)) and not isinstance(value, bool) else math.nan
        except (ValueError, OverflowError):
            number = math.nan
        check(math.isfinite(number), f"{where}: expected a number, got {value!r}")
        return number
    if hint is int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        check(isinstance(value, int) and not isinstance(value, bool), f"{where}: expected a whole number, got {value!r}")
        return value
    if hint in (bool, str):
        check(isinstance(value, hint), f"{where}: expected {hint.__name__}, got {value!r}")
        return value
    raise TypeError(f"{where}: configs have no fields of type {hint}")
