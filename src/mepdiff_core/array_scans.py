"""Scans as plain arrays: NumPy, MATLAB, TIFF stacks, Zarr."""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.config import check
from mepdiff_core.hdf5_scans import open_hyperspy
from mepdiff_core.raw_scan import Mapped, Patterns, RawScan, ScanOptions, axis_order, choose


def open_numpy(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """A .npy file of 4 axes, or of 3 with a scan shape."""
    array = Mapped(lambda: np.load(path, mmap_mode="r", allow_pickle=False))
    return _raw(path, "NumPy .npy", array, True, options)


def open_matlab(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """A MATLAB file of version 7 or older; version 7.3 is HDF5."""
    from scipy.io import loadmat, whosmat

    shapes = {name: shape for name, shape, kind in whosmat(path) if len(shape) in (3, 4) and kind not in ("cell", "struct")}
    key = choose(path, shapes, options.key)
    return _raw(path, "MATLAB .mat", loadmat(path, variable_names=[key])[key], False, options, key)


def open_tiff(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """A TIFF stack: a page a pattern, or a hyperstack."""
    import tifffile
    import zarr

    logging.getLogger("tifffile").setLevel(logging.CRITICAL)  # what it has to say of damaged files is said by us
    file = stack.enter_context(tifffile.TiffFile(path))
    check(len(file.pages) > 0, f"{path} has no pages")  # counted first: a damaged chain of pages would be walked for ever
    series = {f"series-{number}": one for number, one in enumerate(file.series)}
    check(not any("S" in one.axes for one in series.values()), f"{path} holds colours (RGB); expected counts")
    key = choose(path, {name: one.shape for name, one in series.items() if one.ndim in (3, 4)}, options.key)
    store = series[key].aszarr()
    stack.callback(store.close)
    array = zarr.open(store, mode="r")
    if not hasattr(array, "shape"):  # a pyramid: its first level is the image
        array = array["0"]
    return _raw(path, "TIFF", array, True, options, key if len(series) > 1 else "")


def open_zarr(path: Path, options: ScanOptions, stack: contextlib.ExitStack) -> RawScan:
    """A folder that holds a Zarr array, or a group of them; also HyperSpy's .zspy."""
    import zarr

    check_codecs(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", zarr.errors.ZarrUserWarning)  # of files in the folder that are none of Zarr's
        node = zarr.open(path, mode="r")
        # one after another: where one is damaged, what zarr reads of others beside it fails later, aloud
        members = {} if isinstance(node, zarr.Array) else {name: node[name] for name in _names(path)}
    if not isinstance(node, zarr.Group):
        return _raw(path, "Zarr", node, True, options)
    shapes = {k: member.shape for k, member in members.items() if isinstance(member, zarr.Array) and member.ndim in (3, 4)}
    if "Experiments" in node:
        return open_hyperspy(path, node, "HyperSpy .zspy", options, shapes)
    key = choose(path, shapes, options.key)
    return _raw(path, "Zarr", node[key], True, options, key)


def _names(path: Path) -> list[str]:
    """Of the arrays and groups in a Zarr group, as paths within it."""
    folders = {about.parent for name in (".zarray", "zarr.json") for about in path.rglob(name)} - {path}
    return sorted(folder.relative_to(path).as_posix() for folder in folders)


def check_codecs(path: Path) -> None:
    """Nothing in a Zarr folder is unpickled, which would run what its writer wants.

    Raises:
        InputError: an array is stored so.
    """
    for name in (".zarray", "zarr.json", ".zmetadata"):
        for about in path.rglob(name):
            text = about.read_text(encoding="utf-8", errors="replace")
            try:
                plain = json.dumps(json.loads(text))
            except ValueError:
                check(False, f"{about} is damaged (it is no JSON)")
            check(
                '"pickle"' not in plain and "numcodecs.pickle" not in plain,
                f"{about}: the array is pickled, which is never read for it can run code; store it as numbers",
            )


def _raw(path: Path, words: str, array: Any, lazy: bool, options: ScanOptions, key: str = "") -> RawScan:
    check(array.ndim in (3, 4), f"{path} holds an array of {array.ndim} axes; expected (scan_y, scan_x, ky, kx)")
    patterns = Patterns(array, axis_order(array.ndim, options))
    return RawScan(path, words, patterns, lazy, {}, "the file's array" if array.ndim == 4 else None, key)
