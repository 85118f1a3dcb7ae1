"""Every file of patterns to a scan: which format a file has, and its reader."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from mepdiff_core.array_scans import open_matlab, open_numpy, open_tiff, open_zarr
from mepdiff_core.config import check
from mepdiff_core.errors import InputError, reading
from mepdiff_core.hdf5_damage import peek
from mepdiff_core.hdf5_scans import open_hdf5
from mepdiff_core.raw_scan import Opener, RawScan, ScanOptions, with_shape
from mepdiff_core.vendor_scans import open_blockfile, open_empad, open_gatan, open_merlin, open_tvips

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"
BEGINNINGS: tuple[tuple[bytes, str, Opener], ...] = (
    (HDF5_SIGNATURE, "HDF5", open_hdf5),
    (b"MATLAB 7.3", "MATLAB 7.3", open_hdf5),
    (b"MATLAB 5.0", "MATLAB", open_matlab),
    (b"\x93NUMPY", "NumPy", open_numpy),
    (b"II*\x00", "TIFF", open_tiff),
    (b"MM\x00*", "TIFF", open_tiff),
    (b"II+\x00", "TIFF", open_tiff),
    (b"MM\x00+", "TIFF", open_tiff),
    (b"MQ1,", "Merlin .mib", open_merlin),
    (b"IMGBLO", "NanoMegas block file", open_blockfile),
    (b"\x00\x00\x00\x03", "Gatan DM3", open_gatan),
    (b"\x00\x00\x00\x04", "Gatan DM4", open_gatan),
)
"""How files of a format begin."""
SUFFIXES: dict[str, tuple[str, Opener]] = {
    ".raw": ("EMPAD", open_empad),
    ".xml": ("EMPAD", open_empad),
    ".tvips": ("TVIPS", open_tvips),
}
"""Formats without a beginning of their own."""
NAMES = (
    "EMPAD .raw and .xml, Merlin .mib, Dectris, Velox, Prismatic, py4DSTEM, NCEM, HyperSpy and NeXus HDF5, Gatan .dm3 and"
    " .dm4, NanoMegas .blo, TVIPS, .npy, .mat, .tif, Zarr"
)
FILE_PATTERNS = tuple(
    f"*{suffix}"
    for suffix in (
        *(".h5", ".hdf5", ".emd", ".hspy", ".nxs", ".mib", ".dm3", ".dm4", ".blo", ".tvips", ".raw", ".xml"),
        *(".npy", ".mat", ".tif", ".tiff", ".zarr", ".zspy"),
    )
)
"""File names that can be scans."""


def find_format(path: Path) -> tuple[str, Opener]:
    """The format's name and its reader.

    Raises:
        InputError: no such file, or no format that is known.
    """
    check(path.exists(), f"{path}: no such file")
    check(os.access(path, os.R_OK), f"{path}: cannot be read; check its permissions")
    if path.is_dir():
        zarr = any((path / name).exists() for name in ("zarr.json", ".zarray", ".zgroup"))
        check(zarr, f"{path} is a folder; give a scan file, or a Zarr folder")
        return "Zarr", open_zarr
    check(path.stat().st_size > 0, f"{path} is empty; expected a scan file")
    with path.open("rb") as file:
        start = file.read(16)
    for beginning, words, opener in BEGINNINGS:
        if start.startswith(beginning):
            return words, opener
    known = SUFFIXES.get(path.suffix.lower())
    check(known is not None, f"{path} is no format that is known, or damaged; scans can be {NAMES}")
    assert known is not None
    return known


def is_foreign(path: str | Path) -> bool:
    """Whether a file is of another format than our scan file, as far as its beginning tells."""
    path = Path(path)
    if not path.exists() or not os.access(path, os.R_OK) or (path.is_file() and path.stat().st_size == 0):
        return False
    try:
        _, opener = find_format(path)
    except InputError:
        return False
    if opener is not open_hdf5:
        return True
    ours = peek(path, lambda file: str(file.attrs.get("format", "")).startswith("mepdiff"))
    # a damaged file of that name is one of ours, as likely as not
    return path.suffix.lower() not in (".h5", ".hdf5") if ours is None else not ours


@contextlib.contextmanager
def open_raw(path: str | Path, options: ScanOptions | None = None) -> Iterator[RawScan]:
    """A file of patterns, open until the block ends.

    Raises:
        InputError: it cannot be read, or leaves open what ``options`` must say.
    """
    path, options = Path(path), options or ScanOptions()
    words, opener = find_format(path)
    with contextlib.ExitStack() as stack:
        with reading(path, words):
            raw = with_shape(opener(path, options, stack), options)
            n = raw.patterns.n_patterns
            raw.patterns.read(n - 1, n)  # a file that was cut off is met now, not at the end
        yield raw
