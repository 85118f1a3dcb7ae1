"""Reconstructed layers saved: as OME-TIFF with sizes in Å, or as the whole run folder."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.files import write_error
from mepdiff_core.volume_files import write_volume
from napari_mepdiff._layers import KEY


def write_ome_tiff(path: str, data: npt.NDArray[Any], attributes: dict[str, Any]) -> list[str]:
    """A (z, y, x) image layer as OME-TIFF: float32, voxel size and origin in Å.

    Raises:
        InputError: no volume, or a file that cannot be written.
    """
    volume = np.asarray(data)
    check(volume.ndim == 3, f"the layer has shape {volume.shape}; OME-TIFF of mepdiff takes volumes (z, y, x)")
    scale, translate = (tuple(float(v) for v in attributes[name]) for name in ("scale", "translate"))
    write_volume(path, volume.astype(np.float32), scale, translate)  # type: ignore[arg-type]
    return [path]


def write_run_folder(path: str, data: npt.NDArray[Any], attributes: dict[str, Any]) -> list[str]:
    """The run folder that a reconstructed layer came from, copied.

    Raises:
        InputError: a layer that no run of this plugin made, or a folder that cannot be written.
    """
    run = ((attributes.get("metadata") or {}).get(KEY) or {}).get("run")
    check(run is not None, "this layer is no reconstruction of mepdiff; save it as OME-TIFF")
    assert run is not None
    copy_run(Path(run), Path(path))
    return [path]


def copy_run(run: Path, out: Path) -> None:
    """Copy a run folder, whole or not at all.

    Raises:
        InputError: it is gone, the target exists, or cannot be written.
    """
    check(run.is_dir(), f"{run}, the folder of this run, is gone; save the layer as OME-TIFF")
    check(not out.exists() or (out.is_dir() and not any(out.iterdir())), f"{out} exists already; give another name")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            copied = Path(temporary) / "run"
            shutil.copytree(run, copied)
            if out.exists():
                out.rmdir()
            copied.rename(out)
    except shutil.Error as error:
        raise InputError(f"{out} cannot be written: {error.args[0][0][2]}") from None
    except OSError as error:
        raise write_error(out, error) from None
