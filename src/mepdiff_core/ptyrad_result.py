"""What PtyRAD writes of a reconstruction (its HDF5 "model"): object, probe, geometry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import reading
from mepdiff_core.hdf5_damage import check_heaps, peek, stored_chunks

TENSORS, ATTRIBUTES = "optimizable_tensors", "model_attributes"


@dataclass(frozen=True)
class PtyradResult:
    """A reconstruction of PtyRAD.

    Attributes:
        phase: (z, y, x) float32, rad; of several object modes their mean by occupancy.
        amplitude: the same of the object's modulus.
        probe: (modes, y, x) complex64.
        pixel_size_A, slice_thickness_A: of the object, Å.
        iterations: done when it was written.
    """

    phase: npt.NDArray[np.float32]
    amplitude: npt.NDArray[np.float32]
    probe: npt.NDArray[np.complex64]
    pixel_size_A: float
    slice_thickness_A: float
    iterations: int

    @property
    def voxel_size_A(self) -> tuple[float, float, float]:
        return self.slice_thickness_A, self.pixel_size_A, self.pixel_size_A


def is_ptyrad_result(path: str | Path) -> bool:
    """Whether a file holds a reconstruction of PtyRAD."""
    return Path(path).is_file() and bool(peek(path, lambda file: TENSORS in file))


def read_ptyrad_result(path: str | Path) -> PtyradResult:
    """Read PtyRAD's result.

    Raises:
        InputError: damaged, or no reconstruction of PtyRAD.
    """
    import h5py

    path = Path(path)
    check(path.is_file(), f"{path}: no such file")
    check_heaps(path)
    with reading(path, "a result of PtyRAD"), h5py.File(path, "r") as file:
        check(TENSORS in file, f"{path} is no result of PtyRAD: it has no {TENSORS}")
        tensors, about = file[TENSORS], file[ATTRIBUTES]
        objects = {name: _array(path, tensors, name, 4) for name in ("objp", "obja")}
        occupancy = np.asarray(about["omode_occu"][()], np.float64).reshape(-1)
        modes = len(objects["objp"])
        check(
            objects["obja"].shape == objects["objp"].shape and occupancy.shape == (modes,) and occupancy.sum() > 0,
            f"{path}: its object's modes do not fit together",
        )
        weights = occupancy / occupancy.sum()
        check(max(float(abs(o).max()) for o in objects.values()) < 1e30, f"{path}: its object is no phase and no amplitude")
        phase, amplitude = (np.tensordot(weights, objects[name], 1).astype(np.float32) for name in ("objp", "obja"))
        # the optimised thickness, where it was
        thickness = tensors["slice_thickness"] if "slice_thickness" in tensors else about["slice_thickness"]
        return PtyradResult(
            phase,
            amplitude,
            np.asarray(_array(path, tensors, "probe", 3, "c"), np.complex64),
            _positive(path, "dx", about["dx"]),
            _positive(path, "slice_thickness", thickness),
            int(np.asarray(file["niter"][()])) if "niter" in file else 0,
        )


def _array(path: Path, group: Any, name: str, ndim: int, kinds: str = "f") -> npt.NDArray[Any]:
    check(name in group, f"{path} has no {name}; it is no complete result of PtyRAD")
    node = group[name]
    fits = getattr(node, "ndim", None) == ndim and node.dtype.kind in kinds
    check(fits, f"{path}: its {name} is no array of {ndim} axes")
    stored, chunks = stored_chunks(node)
    check(stored == chunks, f"{path}: its {name} is incomplete, {stored} of {chunks} chunks are in the file")
    array: npt.NDArray[Any] = np.asarray(node[()])
    check(bool(np.isfinite(array).all()), f"{path}: its {name} has values that are not numbers")
    return array


def _positive(path: Path, name: str, node: Any) -> float:
    value = float(np.asarray(node[()]).reshape(-1)[0])
    check(0 < value < np.inf, f"{path}: its {name} is {value}; expected more than 0")
    return value
