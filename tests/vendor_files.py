"""Files as microscopes and other programs write them: by the programs' own writers, or byte for byte by a public layout."""

from __future__ import annotations

import json
import struct
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import hdf5plugin
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
SHAPE = (3, 4, 16, 16)
STEP_NM, K_STEP_INV_NM = 0.05, 0.8
"""Scan step and detector pixel that the files state: 0.5 Å and 0.08 1/Å."""


def make_counts(shape: tuple[int, int, int, int] = SHAPE, largest: int = 200) -> Array:
    """Patterns without any symmetry, so that no exchange of axes goes unseen."""
    y, x, ky, kx = np.ogrid[tuple(slice(n) for n in shape)]
    return ((7 * y + 11 * x + 3 * ky + 5 * kx + y * kx) % largest).astype(np.uint16)


def signal(counts: Array, scan_unit: str = "nm", k_unit: str = "1/nm") -> dict[str, Any]:
    """What RosettaSciIO's writers take."""
    axes = [
        {
            "name": name,
            "size": size,
            "scale": STEP_NM if number < 2 else K_STEP_INV_NM,
            "offset": 0.0,
            "units": scan_unit if number < 2 else k_unit,
            "navigate": number < 2,
            "index_in_array": number,
            "_type": "UniformDataAxis",
            "is_binned": False,
        }
        for number, (name, size) in enumerate(zip(("y", "x", "ky", "kx"), counts.shape, strict=True))
    ]
    tem = {"beam_energy": 200.0, "convergence_angle": 20.0}
    return {
        "data": counts,
        "axes": axes,
        "metadata": {
            "General": {"title": "scan"},
            "Signal": {"signal_type": ""},
            "Acquisition_instrument": {"TEM": tem},
        },
        "original_metadata": {},
        "attributes": {"_lazy": False},
        "package_info": {"package": "hyperspy", "package_version": "2.0"},
        "learning_results": {},
        "models": {},
        "tmp_parameters": {},
    }


def by_rosettasciio(name: str, **options: Any) -> Callable[[Path, Array], None]:
    """A writer of RosettaSciIO."""

    def write(path: Path, counts: Array) -> None:
        from importlib import import_module

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(f"rsciio.{name}").file_writer(str(path), signal(counts), **options)

    return write


def write_blockfile(path: Path, counts: Array) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from rsciio.blockfile import file_writer

        file_writer(str(path), signal(counts.astype(np.uint8), k_unit="cm"), show_progressbar=False)


def write_empad_raw(path: Path, counts: Array) -> None:
    """128 x 128 float32 and two rows more, frame after frame."""
    frames = counts.reshape(-1, *counts.shape[2:]).astype("<f4")
    rest = np.full((len(frames), 2, 128), 99, "<f4")
    np.concatenate([frames, rest], axis=1).tofile(path)


def write_empad(path: Path, counts: Array) -> None:
    """The XML file as EMPAD's software 0.5 writes it, with its raw file."""
    raw = path.with_name(f"scan_x{counts.shape[1]}_y{counts.shape[0]}.raw")
    write_empad_raw(raw, counts)
    field = [counts.shape[0] * STEP_NM * 1e-9, counts.shape[1] * STEP_NM * 1e-9]
    path.write_text(
        f'<root><raw_file filename="{raw.name}" /><pix_x>{counts.shape[1]}</pix_x><pix_y>{counts.shape[0]}</pix_y>'
        f"<iom_measurements><optics.get_full_scan_field_of_view>{field}</optics.get_full_scan_field_of_view>"
        f"<calibrated_pixelsize>{K_STEP_INV_NM * 1e-9}</calibrated_pixelsize></iom_measurements></root>"
    )


def write_merlin(path: Path, counts: Array, header: bool = True) -> None:
    """Frames of a 16-bit Merlin, each after 384 bytes of text, with a pause after every line; rows run upwards."""
    rows, columns, height, width = counts.shape
    with path.open("wb") as file:
        for number, pattern in enumerate(counts.reshape(-1, height, width)):
            seconds = number * 0.001 + number // columns * 0.05
            stamp = f"2021-05-07T16:51:{10 + seconds:012.9f}Z"
            text = f"MQ1,{number + 1:06d},00384,01,{width:04d},{height:04d},U16,   1x1,01,2021-05-07 18:51:10,0.001,0,0,0,"
            text += f"MQ1A,{stamp},1000000ns,12,"
            file.write(text.ljust(384).encode())
            file.write(pattern[::-1].astype(">u2").tobytes())
    if header:
        lines = [f"Frames in Acquisition (Number):\t{rows * columns}", "Frames per Trigger (Number):\t1"]
        path.with_suffix(".hdr").write_text("\n".join(["HDR,", *lines, "End\t"]))


def write_arina(path: Path, counts: Array, dead: tuple[int, int] | None = None) -> None:
    """A master file that points to two data files, compressed as the detector does."""
    frames = counts.reshape(-1, *counts.shape[2:]).astype(np.uint32)
    half = len(frames) // 2
    with h5py.File(path, "w") as master:
        for number, part in enumerate((frames[:half], frames[half:]), 1):
            name = f"{path.stem.removesuffix('_master')}_data_{number:06d}.h5"
            with h5py.File(path.with_name(name), "w") as data:
                data.create_dataset("entry/data/data", data=part, chunks=(1, *part.shape[1:]), **hdf5plugin.Bitshuffle())
            master[f"entry/data/data_{number:06d}"] = h5py.ExternalLink(name, "/entry/data/data")
        detector = master.create_group("entry/instrument/detector")
        detector["description"] = b"Dectris ARINA Si"
        detector["detectorSpecific/photon_energy"] = 200e3
        mask = np.zeros(frames.shape[1:], np.uint32)
        if dead is not None:
            mask[dead] = 1
        detector["detectorSpecific/pixel_mask"] = mask


def write_velox(path: Path, counts: Array) -> None:
    """Velox keeps a stack of camera images, frames last, and JSON as columns of bytes."""
    frames = counts.reshape(-1, *counts.shape[2:])
    about = {
        "Optics": {"AccelerationVoltage": "200000", "BeamConvergence": "0.02"},
        "Scan": {"ScanRotation": "0.5"},
        "BinaryResult": {
            "PixelSize": {"width": str(K_STEP_INV_NM * 1e9), "height": str(K_STEP_INV_NM * 1e9)},
            "PixelUnitX": "1/m",
        },
    }
    text = np.frombuffer(json.dumps(about).encode() + b"\0" * 8, np.uint8)
    with h5py.File(path, "w") as file:
        file["Version"] = np.array([b'{"format": "Velox", "version": "1.10"}'])
        file["Data/Image/0123abcd/Data"] = np.moveaxis(frames, 0, 2)
        file["Data/Image/0123abcd/Metadata"] = np.repeat(text[:, None], len(frames), axis=1)


def write_py4dstem(path: Path, counts: Array) -> None:
    """A DataCube as emdfile, py4DSTEM's own format since version 0.14, keeps it."""
    with h5py.File(path, "w") as file:
        file.attrs.update({"emd_group_type": "file", "version_major": 1, "version_minor": 0})
        root = file.create_group("root")
        root.attrs.update({"emd_group_type": "root", "python_class": "Root"})
        cube = root.create_group("datacube")
        cube.attrs.update({"emd_group_type": "array", "python_class": "DataCube"})
        cube["data"] = counts
        steps = [(0.5, "A", "Rx"), (0.5, "A", "Ry"), (0.08, "A^-1", "Qx"), (0.08, "A^-1", "Qy")]
        for number, (step, unit, name) in enumerate(steps):
            axis = cube.create_dataset(f"dim{number}", data=np.array([0.0, step]))
            axis.attrs.update({"units": unit, "name": name})
        calibration = root.create_group("metadatabundle/calibration")
        for name, value in {
            "Q_pixel_size": 0.08,
            "Q_pixel_units": "A^-1",
            "R_pixel_size": 0.5,
            "R_pixel_units": "A",
        }.items():
            calibration[name] = value


def write_zspy(path: Path, counts: Array) -> None:
    """HyperSpy's Zarr folder, group by group."""
    import zarr

    root = zarr.open_group(str(path), mode="w", zarr_format=2)
    group = root.create_group("Experiments").create_group("scan")
    array = group.create_array("data", shape=counts.shape, dtype=counts.dtype, chunks=(1, 2, *counts.shape[2:]))
    array[...] = counts
    for number, axis in enumerate(signal(counts)["axes"]):
        group.create_group(f"axis-{number}").attrs.update(
            {name: axis[name] for name in ("name", "scale", "offset", "units")}
        )
    tem = group.create_group("metadata").create_group("Acquisition_instrument").create_group("TEM")
    tem.attrs.update({"beam_energy": 200.0, "convergence_angle": 20.0})


def write_zarr(path: Path, counts: Array) -> None:
    import zarr

    array = zarr.create_array(str(path), shape=counts.shape, dtype=counts.dtype, chunks=(1, 2, *counts.shape[2:]))
    array[...] = counts


def write_matlab73(path: Path, counts: Array) -> None:
    """HDF5 after 512 bytes of MATLAB's own, arrays with their axes reversed."""
    with h5py.File(path, "w", userblock_size=512) as file:
        file.create_dataset("cbed", data=counts.T).attrs["MATLAB_class"] = np.bytes_("uint16")
    with path.open("r+b") as raw:
        raw.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124))


def write_ptyrad_result(path: Path, phase: Array, probe: Array, pixel_A: float, thickness_A: float) -> None:
    """A result by PtyRAD's own writer."""
    import torch
    from ptyrad.io.save import save_dict_to_hdf5

    tensors = {
        "objp": torch.tensor(phase[None], dtype=torch.float32),
        "obja": torch.ones((1, *phase.shape)),
        "probe": torch.tensor(probe, dtype=torch.complex64),
        "slice_thickness": torch.tensor(thickness_A),
    }
    about = {"dx": torch.tensor(pixel_A), "slice_thickness": torch.tensor(1.0), "omode_occu": torch.ones(1), "lambd": 0.0197}
    save_dict_to_hdf5(
        {"ptyrad_version": "1.0.0", "optimizable_tensors": tensors, "model_attributes": about, "niter": 20}, str(path)
    )


def write_dm(path: Path, counts: Array, detector_first: bool = False, version: int = 4) -> None:
    """DigitalMicrograph's tagged file of version 3 or 4; its dimensions run from the fastest to the slowest."""
    array = counts.transpose(2, 3, 0, 1) if detector_first else counts
    axes = [(STEP_NM, "nm")] * 2 + [(K_STEP_INV_NM, "1/nm")] * 2
    axes = axes[2:] + axes[:2] if detector_first else axes
    dimension = {"Origin": np.float32(0)}
    image = {
        "ImageData": {
            "Calibrations": {
                "Brightness": {"Origin": np.float32(0), "Scale": np.float32(0.25), "Units": "e-"},
                "Dimension": [{**dimension, "Scale": np.float32(s), "Units": u} for s, u in reversed(axes)],
            },
            "Data": array.astype("<u2").ravel(),
            "DataType": np.uint32(10),
            "Dimensions": [np.uint32(n) for n in reversed(array.shape)],
            "PixelDepth": np.uint32(2),
        },
        "ImageTags": {"Microscope Info": {"Voltage": np.float64(200e3)}},
        "Name": "scan",
    }
    body = _dm_group({"ImageList": [image]}, version)
    size = "Q" if version == 4 else "I"
    path.write_bytes(struct.pack(f">I{size}I", version, len(body), 1) + body + b"\0" * 8)


_DM_TYPES = {"float32": 6, "float64": 7, "uint32": 5, "uint16": 4}


def _dm_group(content: Mapping[str, Any] | list[Any], version: int) -> bytes:
    items = list(content.items()) if isinstance(content, Mapping) else [("", item) for item in content]
    head = struct.pack(">BBQ" if version == 4 else ">BBI", 1, 0, len(items))
    return head + b"".join(_dm_tag(name, value, version) for name, value in items)


def _dm_tag(name: str, value: Any, version: int) -> bytes:
    """Sizes are 8 bytes in version 4 and 4 in version 3, which does not say how long a tag is."""

    def data(numbers: list[int], content: bytes) -> bytes:
        return b"%%%%" + struct.pack(f">{len(numbers) + 1}{'Q' if version == 4 else 'I'}", len(numbers), *numbers) + content

    kind = 20 if isinstance(value, Mapping | list) else 21
    if isinstance(value, Mapping | list):
        body = _dm_group(value, version)
    elif isinstance(value, str):
        text = value.encode("utf-16-le")
        body = data([20, 4, len(text) // 2], text)
    elif isinstance(value, np.ndarray):
        body = data([20, _DM_TYPES[value.dtype.name], value.size], value.tobytes())
    else:
        body = data([_DM_TYPES[value.dtype.name]], value.tobytes())
    length = struct.pack(">Q", len(body)) if version == 4 else b""
    return struct.pack(">BH", kind, len(name)) + name.encode() + length + body
