"""A 4D-STEM scan: counts, positions, calibration, optics; and our HDF5 file of it.

Layout of the file: docs/conventions.md. ``/counts`` (scan_y, scan_x, ky, kx) in electrons with zero frequency at index
n // 2, ``/positions_A`` (n, 2) as (y, x), optics and calibration as attributes, optional ``/probe`` and ``/truth/phase``.
"""

from __future__ import annotations

import io
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, from_dict, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path
from mepdiff_core.hdf5_damage import check_heaps, peek, stored_chunks
from mepdiff_core.lazy_counts import LAZY_FROM_BYTES, FileCounts, is_lazy
from mepdiff_core.optics import Optics, make_probe

if TYPE_CHECKING:
    from mepdiff_core.calibration import Calibration
    from mepdiff_core.raw_scan import ScanOptions

FORMAT = "mepdiff-scan"
FORMAT_VERSION = 1
SPARE_BYTES = 16 << 20
"""Left free on the disk: where it is full, HDF5 brings the whole process down."""


def raster_positions(shape: tuple[int, int], step_A: float, rotation_deg: float = 0.0) -> npt.NDArray[np.float64]:
    """Positions of a raster scan.

    Args:
        shape: (scan_y, scan_x).
        step_A: distance between neighbours, Å.
        rotation_deg: turns the fast axis from +x towards +y.

    Returns:
        (scan_y * scan_x, 2) float64 as (y, x) in Å, fast axis x; the first position is the origin.
    """
    rows, columns = np.mgrid[: shape[0], : shape[1]] * step_A
    c, s = math.cos(math.radians(rotation_deg)), math.sin(math.radians(rotation_deg))
    return np.stack([c * rows + s * columns, -s * rows + c * columns], axis=-1).reshape(-1, 2)


@dataclass(frozen=True)
class Truth:
    """The phase volume a simulated scan was made from.

    Attributes:
        phase: (z, y, x) float32, rad.
        voxel_size_A: (z, y, x), Å.
        origin_A: where the centre of voxel [0, 0, 0] lies, (z, y, x), in the frame of ``positions_A``.
    """

    phase: npt.NDArray[np.float32]
    voxel_size_A: tuple[float, float, float]
    origin_A: tuple[float, float, float]


@dataclass(frozen=True)
class Scan:
    """A 4D-STEM scan.

    Attributes:
        counts: (scan_y, scan_x, ky, kx) electrons, zero frequency at index n // 2; large ones are ``LazyCounts``, which
            stay in their file and are indexed like an array.
        positions_A: (scan_y * scan_x, 2) float64 as (y, x), Å.
        optics: the microscope.
        k_step_invA: width of a detector pixel, 1/Å.
        electrons_per_pattern: electrons of the beam in one pattern, also those that missed the detector.
        thickness_A: specimen thickness, Å; None where nobody knows it yet.
        probe: (modes, y, x) complex64, its intensity summing to 1; None means: make it from ``optics``.
        truth: what a simulated scan was made from.
        info: where the scan comes from (crystal, seed, software), for the record.
        blind: (ky, kx) pixels that no fit is to believe (a beam stop, dead regions); None: none.

    Raises:
        InputError: shapes that do not fit together, NaN or negative counts, impossible optics.
    """

    counts: npt.NDArray[np.generic]
    positions_A: npt.NDArray[np.float64]
    optics: Optics
    k_step_invA: float
    electrons_per_pattern: float
    thickness_A: float | None = None
    probe: npt.NDArray[np.complex64] | None = None
    truth: Truth | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    blind: npt.NDArray[np.bool_] | None = None

    def __post_init__(self) -> None:
        shape = self.counts.shape
        check(self.counts.ndim == 4, f"counts has shape {shape}; expected (scan_y, scan_x, ky, kx)")
        check(min(shape) > 0, f"counts has shape {shape}; it is empty")
        check(shape[2] == shape[3], f"patterns are {shape[2]} x {shape[3]} px; crop or pad them to a square")
        check(shape[2] % 2 == 0, f"patterns are {shape[2]} x {shape[3]} px; crop or pad them to an even size")
        check(self.counts.dtype.kind in "uif", f"counts holds {self.counts.dtype}; expected integers or floats")
        # lazy counts are checked when they are read
        rows = () if is_lazy(self.counts) or self.counts.dtype.kind == "u" else self.counts
        bad = [int(np.count_nonzero(~(row >= 0) | ~np.isfinite(row))) for row in rows]
        check(not any(bad), f"counts has {sum(bad)} pixels that are negative or not a number; mask or clip them first")
        check(any(row.any() for row in self.counts), "counts are all zero; nothing was measured")
        n = shape[0] * shape[1]
        check(
            self.positions_A.shape == (n, 2),
            f"positions_A has shape {self.positions_A.shape}; {shape[0]} x {shape[1]} patterns need ({n}, 2)",
        )
        check(bool(np.isfinite(self.positions_A).all()), "positions_A has values that are not numbers")
        for name in ("k_step_invA", "electrons_per_pattern", "thickness_A"):
            value = getattr(self, name)
            check(value is None or 0 < value < math.inf, f"{name} is {value}; expected more than 0")
        check(
            self.optics.k_aperture_invA < self.k_max_invA,
            f"semiangle_mrad {self.optics.semiangle_mrad:g} is {self.optics.k_aperture_invA:.3f} 1/Å, beyond the "
            f"detector's {self.k_max_invA:.3f} 1/Å; check semi-angle, energy and k_step_invA",
        )
        if self.probe is not None:
            check(
                self.probe.ndim == 3 and self.probe.shape[1:] == shape[2:],
                f"probe has shape {self.probe.shape}; patterns of {shape[2]} px need (modes, {shape[2]}, {shape[2]})",
            )
            check(
                bool(np.isfinite(self.probe).all() and self.probe.any()), "probe is zero or has values that are not numbers"
            )
            power = float(np.sum(np.abs(self.probe.astype(np.complex128)) ** 2))
            check(abs(power - 1) < 1e-3, f"the probe's intensity sums to {power:.4g}; divide the probe by the root of that")
        if self.blind is not None:
            fits = self.blind.shape == shape[2:] and self.blind.dtype == np.bool_ and not self.blind.all()
            check(fits, f"blind has shape {self.blind.shape}; expected {shape[2:]}, true or false, and not all true")
        if self.truth is not None:
            check(self.truth.phase.ndim == 3, f"truth/phase has shape {self.truth.phase.shape}; expected (z, y, x)")
            for name in ("voxel_size_A", "origin_A"):
                vector = getattr(self.truth, name)
                check(
                    len(vector) == 3 and all(map(math.isfinite, vector)), f"truth's {name} is {vector}; expected (z, y, x)"
                )

    @property
    def shape(self) -> tuple[int, int]:
        return self.counts.shape[0], self.counts.shape[1]

    @property
    def n_patterns(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def n_pixels(self) -> int:
        """Pixels along one side of a pattern, and of the probe's window."""
        return int(self.counts.shape[2])

    @property
    def k_max_invA(self) -> float:
        return self.k_step_invA * self.n_pixels / 2

    @property
    def pixel_size_A(self) -> float:
        """Real-space pixel that belongs to k_max: 1 / (2 k_max)."""
        return 1 / (self.k_step_invA * self.n_pixels)

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """(ky, kx) pixels that are to be believed."""
        return np.ones((self.n_pixels, self.n_pixels), bool) if self.blind is None else ~self.blind

    @property
    def pattern_pixels(self) -> int:
        """Pixels of a pattern that are to be believed."""
        return int(np.count_nonzero(self.seen))

    def patterns(self) -> npt.NDArray[np.generic]:
        """(n, ky, kx): one pattern a position, all in memory."""
        return np.asarray(self.counts).reshape(self.n_patterns, self.n_pixels, self.n_pixels)

    def patterns_at(self, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.generic]:
        """(indices, ky, kx): the patterns of these positions alone."""
        rows, columns = np.divmod(np.asarray(indices), self.shape[1])
        return np.stack([np.asarray(self.counts[r, c]) for r, c in zip(rows.tolist(), columns.tolist(), strict=True)])

    def get_probe(self) -> npt.NDArray[np.complex64]:
        """(modes, y, x): the scan's own probe, else the one its optics give."""
        if self.probe is not None:
            return self.probe
        return make_probe(self.optics, self.n_pixels, self.pixel_size_A)[None].astype(np.complex64)


def specimen_slices(scan: Scan, slices: int | None, slice_thickness_A: float) -> int:
    """The number of slices asked for, or the one that the scan's thickness gives.

    Raises:
        InputError: neither is known.
    """
    if slices is not None:
        return slices
    check(scan.thickness_A is not None, "the scan does not say how thick the specimen is; give the number of slices")
    assert scan.thickness_A is not None
    return max(1, round(scan.thickness_A / slice_thickness_A))


def save_scan(scan: Scan, path: str | Path, progress: Callable[[int, int], None] | None = None) -> None:
    """Write a scan to HDF5, atomically.

    Args:
        progress: called with the rows written and all of them, where counts are lazy and it takes its time.

    Raises:
        InputError: the folder is missing, read-only or full.
    """
    import h5py

    if is_lazy(scan.counts):
        _save_by_rows(scan, Path(path), progress)
        return
    # in memory first: where the disk is full, HDF5 brings the whole process down
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        make_counts(file, scan.counts.shape, scan.counts.dtype)[...] = scan.counts
        _write_all_but_counts(file, scan)
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def _save_by_rows(scan: Scan, path: Path, progress: Callable[[int, int], None] | None) -> None:
    import h5py

    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        counts = make_counts(file, scan.counts.shape, scan.counts.dtype)
        for number, row in enumerate(scan.counts):
            free = shutil.disk_usage(path.absolute().parent).free
            check(free > row.nbytes + SPARE_BYTES, f"{path} cannot be written: the disk is full; free some space")
            counts[number] = row
            if progress is not None:
                progress(number + 1, len(scan.counts))
        _write_all_but_counts(file, scan)


def _write_all_but_counts(file: Any, scan: Scan) -> None:
    write_about(file, scan)
    if scan.probe is not None:
        file.create_dataset("probe", data=scan.probe)
    if scan.blind is not None:
        file.create_dataset("blind", data=scan.blind.astype(np.uint8))
    if scan.truth is not None:
        phase = file.create_dataset(
            "truth/phase", data=scan.truth.phase, compression="gzip", compression_opts=4, shuffle=True
        )
        phase.attrs["voxel_size_A"] = scan.truth.voxel_size_A
        phase.attrs["origin_A"] = scan.truth.origin_A


def make_counts(file: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Any:
    """The data set of counts of a scan file, to be filled; chunks of one pattern."""
    counts = file.create_dataset(
        "counts", shape, dtype, chunks=(1, 1, *shape[2:]), compression="gzip", compression_opts=2, shuffle=True
    )
    counts.attrs["axes"] = "scan_y, scan_x, ky, kx"
    counts.attrs["unit"] = "electrons"
    return counts


def write_about(file: Any, scan: Scan) -> None:
    """What a scan file says beside the counts."""
    file.attrs["format"] = FORMAT
    file.attrs["format_version"] = FORMAT_VERSION
    file.attrs["optics"] = json.dumps(to_dict(scan.optics))
    file.attrs["k_step_invA"] = scan.k_step_invA
    file.attrs["electrons_per_pattern"] = scan.electrons_per_pattern
    if scan.thickness_A is not None:
        file.attrs["thickness_A"] = scan.thickness_A
    file.attrs["info"] = json.dumps(dict(scan.info))
    file.create_dataset("positions_A", data=scan.positions_A).attrs["axes"] = "y, x"


def is_scan(path: str | Path) -> bool:
    """Whether a file says of itself that it is a scan of ours."""
    return Path(path).is_file() and bool(peek(path, lambda file: file.attrs.get("format") == FORMAT))


def load_scan(
    path: str | Path, calibration: Calibration | Mapping[str, Any] | None = None, options: ScanOptions | None = None
) -> Scan:
    """Read a scan, from our own file or from one of the formats of docs/formats.md.

    Args:
        path: the file.
        calibration: what to use instead of, or beside, what the file says: ``{"optics": {"energy_eV": 300e3}, ...}``.
        options: of other formats: scan shape, key, pattern size.

    Raises:
        InputError: missing, empty, truncated or of no known kind; its contents do not fit together; or another format's file
            that does not say all of how it was taken (the message names every missing value).
    """
    from mepdiff_core.calibration import calibrate
    from mepdiff_core.convert import load_foreign
    from mepdiff_core.readers import is_foreign

    if is_foreign(path):
        return load_foreign(path, calibration, options)
    check(options is None or options == type(options)(), f"{path} is no file of another format: it takes no key or shape")
    scan = _load_own(path)
    return scan if calibration is None else calibrate(scan, calibration)


def _load_own(path: str | Path) -> Scan:
    """Read a scan file of ours.

    Raises:
        InputError: missing, empty, truncated or of another kind; or its contents do not fit together.
    """
    import h5py

    path = Path(path)
    check(path.exists(), f"{path}: no such file")
    check(not path.is_dir(), f"{path} is a folder; give a scan file (.h5)")
    check(os.access(path, os.R_OK), f"{path}: cannot be read; check its permissions")
    check(path.stat().st_size > 0, f"{path} is empty; expected a scan file (.h5)")
    try:
        check_heaps(path)
        with h5py.File(path, "r") as file:
            check(
                file.attrs.get("format") == FORMAT,
                f"{path} is HDF5 but not a mepdiff scan (attribute format is {file.attrs.get('format')!r})",
            )
            version = int(file.attrs["format_version"])
            check(version <= FORMAT_VERSION, f"{path} has format version {version}; this mepdiff reads {FORMAT_VERSION}")
            truth = None
            if "truth/phase" in file:
                attributes = file["truth/phase"].attrs
                voxel, origin = (tuple(map(float, attributes[name])) for name in ("voxel_size_A", "origin_A"))
                truth = Truth(_array(file, "truth/phase").astype(np.float32), voxel, origin)  # type: ignore[arg-type]
            info = json.loads(file.attrs["info"])
            check(isinstance(info, dict), f"info is {info!r}; expected names and values")
            values: dict[str, Any] = {
                "counts": _counts(path, file),
                "positions_A": _array(file, "positions_A").astype(np.float64),
                "optics": from_dict(Optics, json.loads(file.attrs["optics"]), f"{path}: optics"),
                "k_step_invA": float(file.attrs["k_step_invA"]),
                "electrons_per_pattern": float(file.attrs["electrons_per_pattern"]),
                "thickness_A": float(file.attrs["thickness_A"]) if "thickness_A" in file.attrs else None,
                "probe": _array(file, "probe", "uifc").astype(np.complex64) if "probe" in file else None,
                "truth": truth,
                "blind": _array(file, "blind", "u") != 0 if "blind" in file else None,
                "info": info,
            }
        return Scan(**values)
    except InputError as error:
        message = str(error)
        raise InputError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    except KeyError as error:
        raise InputError(f"{path} is not a complete scan: {error.args[0]}") from None
    except (OSError, OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a scan; is it truncated or of another kind? ({' '.join(str(error).split())})"
        ) from None


def _counts(path: Path, file: Any) -> Any:
    """The counts, or where they are large, counts that are read when they are needed."""
    node = file["counts"]
    if getattr(node, "ndim", 0) == 4 and node.dtype.kind in "uif" and node.size * node.dtype.itemsize >= LAZY_FROM_BYTES:
        return FileCounts(path.absolute(), "counts", node.shape, node.dtype)
    return _array(file, "counts")


def _array(file: Any, name: str, kinds: str = "uif") -> npt.NDArray[Any]:
    node = file[name]
    dtype = getattr(node, "dtype", None)
    check(dtype is not None and dtype.kind in kinds and node.shape is not None, f"/{name} holds no array of numbers")
    stored, chunks = stored_chunks(node)
    check(stored == chunks, f"/{name} is incomplete: {stored} of its {chunks} chunks are in the file")
    array: npt.NDArray[Any] = np.asarray(node[()])
    return array
