"""Scan files dropped on the window or opened by File > Open."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mepdiff_core.scan import is_scan, load_scan

Reader = Callable[[str | Sequence[str]], list[Any]]


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """The reader for these files; None where one of them is no scan of ours."""
    paths = [path] if isinstance(path, str) else list(path)
    return read_scans if paths and all(is_scan(p) for p in paths) else None


def read_scans(path: str | Sequence[str]) -> list[Any]:
    """Scan files as layers.

    Raises:
        InputError: a file that is damaged.
    """
    from napari_mepdiff._layers import scan_layers

    paths = [path] if isinstance(path, str) else list(path)
    return [layer for p in paths for layer in scan_layers(load_scan(p), Path(p))]
