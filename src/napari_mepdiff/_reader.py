"""Files dropped on the window or opened by File > Open: scans as layers, a microscope's files into the dock "Load scan"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mepdiff_core.errors import InputError
from mepdiff_core.readers import is_foreign, open_raw
from mepdiff_core.scan import is_scan, load_scan

Reader = Callable[[str | Sequence[str]], list[Any]]
COMMON = ("HDF5", "NumPy .npy", "TIFF", "Zarr", "MATLAB .mat", "MATLAB 7.3")
"""Formats of arrays of any kind: only those of four axes are taken for scans, others are left to other readers."""


def get_reader(path: str | Sequence[str]) -> Reader | None:
    """The reader for these files; None where one of them is no scan."""
    paths = [path] if isinstance(path, str) else list(path)
    if paths and all(is_scan(p) for p in paths):
        return read_scans
    return ask_for_calibration if len(paths) == 1 and _is_foreign_scan(Path(paths[0])) else None


def read_scans(path: str | Sequence[str]) -> list[Any]:
    """Scan files as layers.

    Raises:
        InputError: a file that is damaged.
    """
    from napari_mepdiff._layers import scan_layers

    paths = [path] if isinstance(path, str) else list(path)
    return [layer for p in paths for layer in scan_layers(load_scan(p), Path(p))]


def ask_for_calibration(path: str | Sequence[str]) -> list[Any]:
    """Show a microscope's file in the dock "Load scan", which asks for what it does not say; no layer comes of it yet.

    Raises:
        InputError: there is no window to ask in, and the file does not say all that a scan needs.
    """
    from napari import current_viewer

    from napari_mepdiff._layers import scan_layers

    file = Path(path if isinstance(path, str) else path[0])
    viewer = current_viewer()
    if viewer is None:
        return list(scan_layers(load_scan(file), file))
    from napari_mepdiff._all_steps import open_all_steps

    open_all_steps(viewer)[0].open(file)
    return [(None,)]


def _is_foreign_scan(path: Path) -> bool:
    if not is_foreign(path):
        return False
    try:
        with open_raw(path) as raw:
            return raw.format not in COMMON or raw.scan_shape_source is not None
    except InputError as error:
        # several arrays: which of them is asked for in the dock
        return "give one by --key" in str(error)
