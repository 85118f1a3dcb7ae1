"""Every format, read value by value: files by other programs' writers, byte for byte by a public layout, and real ones."""

from __future__ import annotations

import gc
import pickle
import shutil
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import scipy.io
import tifffile
import zarr

import vendor_files as vendor
from mepdiff_core import convert
from mepdiff_core.errors import InputError
from mepdiff_core.lazy_counts import is_lazy
from mepdiff_core.raw_scan import ScanOptions
from mepdiff_core.readers import find_format, is_foreign, open_raw
from mepdiff_core.scan import load_scan

SAMPLES = Path(__file__).parent.parent.parent / "shared" / "samples"
COUNTS = vendor.make_counts()
WIDE = vendor.make_counts((3, 4, 128, 128))
STACK = {"scan_shape": (3, 4)}
GIVEN = {
    "optics": {"energy_eV": 200e3, "semiangle_mrad": 10.0, "overfocus_A": 30.0},
    "scan_step_A": 0.5,
    "k_step_invA": 0.08,
    "electrons_per_count": 1.0,
    "scan_rotation_deg": 0.0,
}
OF_AXES = {"scan_step_A": 0.5, "k_step_invA": 0.08}


@dataclass(frozen=True)
class Case:
    """A file to write, how to read it, and what must be found."""

    name: str
    write: Callable[[Path, Any], object]
    format: str
    found: dict[str, float] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    counts: Any = field(default_factory=lambda: COUNTS)
    lazy: bool = True


def write_ptyrad(path: Path, counts: Any) -> None:
    from ptyrad.io.hierarchy import write_hdf5

    write_hdf5(str(path), counts.reshape(-1, *counts.shape[2:]))


TEM = {"optics.energy_eV": 200e3, "optics.semiangle_mrad": 20.0}
CASES = [
    Case("scan.xml", vendor.write_empad, "EMPAD", OF_AXES, counts=WIDE),
    Case("scan_x4_y3.raw", vendor.write_empad_raw, "EMPAD raw", counts=WIDE),
    Case("other.raw", vendor.write_empad_raw, "EMPAD raw", {}, STACK, WIDE),
    Case("scan.mib", vendor.write_merlin, "Merlin .mib", {"electrons_per_count": 1.0}),
    Case(
        "a_master.h5", vendor.write_arina, "Dectris ARINA Si", {"electrons_per_count": 1.0, "optics.energy_eV": 200e3}, STACK
    ),
    Case(
        "velox.emd",
        vendor.write_velox,
        "Velox EMD",
        {**TEM, "k_step_invA": 0.08, "scan_rotation_deg": np.degrees(0.5)},
        STACK,
    ),
    Case("py4dstem.h5", vendor.write_py4dstem, "py4DSTEM", OF_AXES),
    Case("ncem.emd", vendor.by_rosettasciio("emd"), "NCEM EMD", OF_AXES),
    Case("scan.hspy", vendor.by_rosettasciio("hspy"), "HyperSpy .hspy", {**OF_AXES, **TEM}),
    Case("scan.zspy", vendor.write_zspy, "HyperSpy .zspy", {**OF_AXES, **TEM}),
    Case("scan.nxs", vendor.by_rosettasciio("nexus"), "NeXus", OF_AXES),
    Case("scan.blo", vendor.write_blockfile, "NanoMegas block file", {"scan_step_A": 0.5}),
    Case("scan_000.tvips", vendor.by_rosettasciio("tvips"), "TVIPS", {"optics.energy_eV": 200e3}, STACK),
    Case("scan.dm4", vendor.write_dm, "Gatan DM", {**OF_AXES, "optics.energy_eV": 200e3, "electrons_per_count": 0.25}),
    Case(
        "scan.dm3",
        lambda path, counts: vendor.write_dm(path, counts, version=3),
        "Gatan DM",
        {**OF_AXES, "optics.energy_eV": 200e3, "electrons_per_count": 0.25},
    ),
    Case(
        "turned.dm4",
        lambda path, counts: vendor.write_dm(path, counts, detector_first=True),
        "Gatan DM",
        {**OF_AXES, "optics.energy_eV": 200e3, "electrons_per_count": 0.25},
    ),
    Case("scan.npy", np.save, "NumPy .npy"),
    Case("stack.npy", lambda path, counts: np.save(path, counts.reshape(12, 16, 16)), "NumPy .npy", {}, STACK),
    Case(
        "turned.npy",
        lambda path, counts: np.save(path, counts.transpose(3, 2, 1, 0)),
        "NumPy .npy",
        {},
        {"axes": ("kx", "ky", "scan_x", "scan_y")},
    ),
    Case(
        "frames_last.npy",
        lambda path, counts: np.save(path, np.moveaxis(counts.reshape(12, 16, 16), 0, 2)),
        "NumPy .npy",
        {},
        {"axes": ("ky", "kx", "scan"), **STACK},
    ),
    Case("old.mat", lambda path, counts: scipy.io.savemat(path, {"cbed": counts, "n": 1}), "MATLAB .mat", lazy=False),
    Case("new.mat", vendor.write_matlab73, "MATLAB 7.3"),
    Case("stack.tif", lambda path, counts: tifffile.imwrite(path, counts.reshape(12, 16, 16)), "TIFF", {}, STACK),
    Case(
        "packed.tif",
        lambda path, counts: tifffile.imwrite(path, counts, photometric="minisblack", compression="zlib"),
        "TIFF",
    ),
    Case("scan.zarr", vendor.write_zarr, "Zarr"),
    Case("ptyrad.hdf5", write_ptyrad, "HDF5", {}, {"key": "meas", **STACK}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_format_is_read_value_by_value(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    case.write(path, case.counts)
    assert is_foreign(path)
    with open_raw(path, ScanOptions(**case.options)) as raw:
        assert raw.format == case.format
        assert raw.lazy == case.lazy
        assert raw.patterns.shape == case.counts.shape
        assert raw.scan_shape_source
        whole = raw.patterns.read(0, 12)
        assert whole.dtype == whole.dtype.newbyteorder("=")
        np.testing.assert_array_equal(whole.reshape(case.counts.shape), case.counts)
        for first, last in ((0, 1), (2, 3), (3, 9), (5, 12), (1, 4)):  # within a row, over rows, whole rows among parts
            np.testing.assert_array_equal(raw.patterns.read(first, last), whole[first:last])
        found = {name: value.value for name, value in raw.found.items() if name in case.found}
        assert found == pytest.approx(case.found, rel=1e-6)
        assert all(value.source for value in raw.found.values())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_large_counts_stay_in_their_file(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every format but the old MATLAB's: the scan is the one that is read whole, in whatever parts it is asked for."""
    path = tmp_path / case.name
    case.write(path, case.counts)
    given = {**GIVEN, "electrons_per_count": 0.5}
    options = ScanOptions(**{**case.options, "size": 12})
    whole = load_scan(path, given, options)
    monkeypatch.setattr(convert, "LAZY_FROM_BYTES", 0)
    scan = load_scan(path, given, options)
    assert isinstance(whole.counts, np.ndarray)
    assert is_lazy(scan.counts) == case.lazy
    assert scan.counts.dtype == whole.counts.dtype
    np.testing.assert_array_equal(np.asarray(scan.counts), whole.counts)
    for index in ((1, 2), (-1, -1), (2, 0, 3), (np.int64(0), np.int64(1), ..., 2), 1, slice(1, 3), (slice(0, 2), 1)):
        np.testing.assert_array_equal(scan.counts[index], whole.counts[index])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(scan.counts))[2, 1], whole.counts[2, 1])
    assert (scan.electrons_per_pattern, scan.info) == (whole.electrons_per_pattern, whole.info)


def test_large_counts_whose_file_changes_or_is_no_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "LAZY_FROM_BYTES", 0)
    path = tmp_path / "scan.npy"
    np.save(path, COUNTS)
    counts = pickle.loads(pickle.dumps(load_scan(path, GIVEN).counts))
    np.save(path, COUNTS[:2])
    with pytest.raises(InputError, match="has changed since it was opened; load it again"):
        counts[0, 0]
    path.unlink()
    with pytest.raises(InputError, match="no such file"):
        counts[0, 0]
    negative = COUNTS.astype(np.float32)
    negative[1, 2, 3, 4] = -1
    np.save(path, negative)
    with pytest.raises(InputError, match=r"some pixels are negative or not a number .* give --clip"):
        load_scan(path, GIVEN)
    clipped = load_scan(path, GIVEN, ScanOptions(clip=True))
    assert clipped.info["converted"]["pixels_set_to_zero"] == 1
    np.testing.assert_array_equal(clipped.counts[1, 2], np.maximum(negative[1, 2], 0))


@pytest.mark.parametrize(
    "name", ["stack.npy", "stack.tif", "other.raw", "a_master.h5", "velox.emd", "scan_000.tvips", "ptyrad.hdf5"]
)
def test_a_scan_shape_that_is_not_in_the_file_is_asked_for(name: str, tmp_path: Path) -> None:
    case = next(case for case in CASES if case.name == name)
    case.write(tmp_path / name, case.counts)
    rest = {key: value for key, value in case.options.items() if key != "scan_shape"}
    with open_raw(tmp_path / name, ScanOptions(**rest)) as raw:
        assert raw.scan_shape_source is None
        with pytest.raises(InputError, match=r"12 patterns in one row .* give --scan-shape Y X$"):
            raw.check_scan_shape()
    with (
        pytest.raises(InputError, match="holds 12 patterns; --scan-shape 3 5 needs 15"),
        open_raw(tmp_path / name, ScanOptions(**{**rest, "scan_shape": (3, 5)})),
    ):
        pass


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught, open_raw(path, ScanOptions(**options)):
        pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_several_arrays_are_told_apart_by_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "two.h5"
    with h5py.File(path, "w") as file:
        file["a/one"], file["b/two"], file["c"] = COUNTS, COUNTS[::-1], np.zeros(3)
    assert "several arrays that could be the scan: a/one 3x4x16x16, b/two 3x4x16x16; give one by --key NAME" in refusal(path)
    assert "no array of patterns 'c'; it has a/one" in refusal(path, key="c")
    with open_raw(path, ScanOptions(key="/b/two")) as raw:
        np.testing.assert_array_equal(raw.patterns.read(0, 12).reshape(COUNTS.shape), COUNTS[::-1])
    scipy.io.savemat(tmp_path / "two.mat", {"one": COUNTS, "two": COUNTS})
    assert "several arrays" in refusal(tmp_path / "two.mat")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (COUNTS + 1j, "the array holds complex numbers; expected counts"),
        (COUNTS[0, 0], "holds an array of 2 axes; expected (scan_y, scan_x, ky, kx)"),
        (np.zeros((0, 4, 16, 16)), "(0, 4, 16, 16) is empty"),
        (np.full((2, 2, 4, 4), "a"), "expected counts"),
        (np.array([[object()]]), "cannot be read as NumPy"),
    ],
)
def test_arrays_that_are_no_patterns_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", content, allow_pickle=True)
    assert message in refusal(tmp_path / "x.npy")


def test_colours_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((5, 16, 16, 3), np.uint8), photometric="rgb")
    assert "holds colours (RGB); expected counts" in refusal(tmp_path / "x.tif")


def test_axes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", COUNTS)
    assert "--axes names 3 axes; the array has 4" in refusal(tmp_path / "x.npy", axes=("scan", "ky", "kx"))
    with pytest.raises(InputError, match="axes are ky ky kx kx; expected scan_y scan_x ky kx"):
        ScanOptions(axes=("ky", "ky", "kx", "kx"))


def test_calibrations_follow_the_order_of_axes_that_is_given(tmp_path: Path) -> None:
    vendor.by_rosettasciio("hspy")(tmp_path / "x.hspy", COUNTS)
    with open_raw(tmp_path / "x.hspy", ScanOptions(axes=("ky", "kx", "scan_y", "scan_x"))) as raw:
        assert raw.patterns.shape == (16, 16, 3, 4)
        assert "scan_step_A" not in raw.found  # 1/nm measures no scan step


def test_a_pickled_zarr_array_is_never_opened(tmp_path: Path) -> None:
    vendor.write_zspy(tmp_path / "x.zspy", COUNTS)
    about = tmp_path / "x.zspy" / "Experiments" / "scan" / "data" / ".zarray"
    about.write_text(about.read_text().replace('"filters": null', '"filters": [{"id": "pickle"}]'))
    assert "pickled, which is never read for it can run code" in refusal(tmp_path / "x.zspy")


def test_damaged_zarr_arrays_are_refused_in_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """And nothing is said of them later, when what read the others is collected."""
    path = tmp_path / "x.zarr"
    group = zarr.open_group(path, mode="w", zarr_format=2)
    for name in "abc":
        group.create_array(name, data=COUNTS)
        about = path / name / ".zarray"
        about.write_text(about.read_text().replace("<u", "<no"))
    assert "x.zarr cannot be read as Zarr; is it damaged" in refusal(path)
    time.sleep(0.5)
    gc.collect()
    assert not caplog.records


def test_dead_pixels_of_the_detectors_own_mask_are_zero(tmp_path: Path) -> None:
    vendor.write_arina(tmp_path / "a_master.h5", COUNTS, dead=(5, 7))
    with open_raw(tmp_path / "a_master.h5", ScanOptions(scan_shape=(3, 4))) as raw:
        read = raw.patterns.read(0, 12).reshape(COUNTS.shape)
        assert raw.notes == ("1 pixels that the detector's pixel_mask calls dead are read as 0",)
    expected = COUNTS.copy()
    expected[:, :, 5, 7] = 0
    np.testing.assert_array_equal(read, expected)


def test_files_that_belong_together_are_asked_for(tmp_path: Path) -> None:
    vendor.write_arina(tmp_path / "a_master.h5", COUNTS)
    (tmp_path / "a_data_000002.h5").unlink()
    assert "needs its data file a_data_000002.h5, which is not beside it" in refusal(tmp_path / "a_master.h5")
    vendor.write_empad(tmp_path / "scan.xml", WIDE)
    (tmp_path / "scan_x4_y3.raw").unlink()
    assert "names the raw file scan_x4_y3.raw, which is not beside it" in refusal(tmp_path / "scan.xml")
    vendor.write_merlin(tmp_path / "alone.mib", COUNTS, header=False)
    with open_raw(tmp_path / "alone.mib") as raw:
        assert raw.patterns.shape == COUNTS.shape
        assert raw.notes == ("there is no alone.hdr beside it",)


def test_a_master_file_reaches_no_other_folder(tmp_path: Path) -> None:
    vendor.write_arina(tmp_path / "a_master.h5", COUNTS)
    with h5py.File(tmp_path / "a_master.h5", "r+") as file:
        file["entry/data/data_000003"] = h5py.ExternalLink("../secret.h5", "/entry/data/data")
    assert "points to ../secret.h5, outside its folder" in refusal(tmp_path / "a_master.h5")


@pytest.mark.parametrize(
    "case", [c for c in CASES if not c.name.endswith((".zarr", ".zspy", ".mib"))], ids=lambda case: case.name
)
def test_a_file_that_was_cut_off_is_refused_in_one_line(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    case.write(path, case.counts)
    target = next(tmp_path.glob("scan_x*.raw")) if path.suffix == ".xml" else path
    whole = target.read_bytes()
    target.write_bytes(whole[: len(whole) * 3 // 5])
    message = refusal(path, **{k: v for k, v in case.options.items() if k != "scan_shape"})
    assert str(tmp_path) in message


def test_an_interrupted_merlin_scan_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    vendor.write_merlin(tmp_path / "scan.mib", COUNTS)
    whole = (tmp_path / "scan.mib").read_bytes()
    (tmp_path / "scan.mib").write_bytes(whole[: len(whole) * 3 // 5])
    with open_raw(tmp_path / "scan.mib") as raw:
        assert raw.patterns.n_patterns == 7
        assert raw.scan_shape_source is None
        assert raw.notes == ("the .hdr file announces 12 frames, the file holds 7",)
        np.testing.assert_array_equal(raw.patterns.read(0, 7), COUNTS.reshape(12, 16, 16)[:7])


@pytest.mark.parametrize("own", [False, True])
def test_a_heap_of_texts_without_an_end_is_refused(own: bool, small_file: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    if own:
        shutil.copy(small_file, path)
    else:
        vendor.write_py4dstem(path, COUNTS)
    whole = bytearray(path.read_bytes())
    heap = whole.index(b"GCOL")
    whole[heap + 16 : heap + 64] = bytes(48)  # HDF5 itself reads this for ever
    path.write_bytes(whole)
    with pytest.raises(InputError, match="a heap of its texts has no end"):
        load_scan(path)
    assert "a heap of its texts has no end" in refusal(path)


def test_chunks_that_are_not_in_the_file_are_told_of_or_refused(small_file: Path, tmp_path: Path) -> None:
    for stored, name in ((2, "begun.h5"), (0, "empty.h5")):
        with h5py.File(tmp_path / name, "w") as file:
            data = file.create_dataset("data", COUNTS.shape, COUNTS.dtype, chunks=(1, 4, 16, 16))
            data[:stored] = COUNTS[:stored]
    with open_raw(tmp_path / "begun.h5") as raw:
        assert raw.notes == ("1 of the 3 chunks of its patterns are not in the file and read as 0",)
    assert "holds 0 of the 3 chunks of its patterns; it is damaged" in refusal(tmp_path / "empty.h5")
    shutil.copy(small_file, tmp_path / "own.h5")
    with h5py.File(tmp_path / "own.h5", "r+") as file:
        counts = file["counts"][()]
        del file["counts"]
        file.create_dataset("counts", counts.shape, counts.dtype, chunks=(1, 1, 64, 64))[:-1] = counts[:-1]
    with pytest.raises(InputError, match="/counts is incomplete: 35 of its 42 chunks are in the file"):
        load_scan(tmp_path / "own.h5")


def test_what_is_no_scan_is_refused_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("counts")
    assert "is no format that is known, or damaged; scans can be EMPAD" in refusal(tmp_path / "x.txt")
    (tmp_path / "empty.mib").touch()
    assert refusal(tmp_path / "empty.mib").endswith("is empty; expected a scan file")
    assert "no such file" in refusal(tmp_path / "none.mib")
    assert "is a folder; give a scan file, or a Zarr folder" in refusal(tmp_path)
    (tmp_path / "x.raw").write_bytes(b"abc" * 1000)
    assert "no whole number of EMPAD frames" in refusal(tmp_path / "x.raw")
    for path in (tmp_path / "x.txt", tmp_path / "none.mib", tmp_path):
        assert not is_foreign(path)


def test_load_scan_reads_other_formats_and_names_all_that_is_missing(tmp_path: Path) -> None:
    vendor.write_dm(tmp_path / "scan.dm4", COUNTS)
    with pytest.raises(InputError) as caught:
        load_scan(tmp_path / "scan.dm4")
    assert "optics.semiangle_mrad=21.4 (semi-convergence angle); optics.overfocus_A=0" in str(caught.value)
    assert "optics.energy_eV" not in str(caught.value)
    scan = load_scan(tmp_path / "scan.dm4", {"optics": {"semiangle_mrad": 10, "overfocus_A": -20}, "scan_step_A": 0.4})
    np.testing.assert_allclose(scan.counts, COUNTS * 0.25)
    assert scan.optics.energy_eV == 200e3
    assert scan.optics.overfocus_A == -20
    np.testing.assert_allclose(scan.positions_A[[1, 4]], [[0, 0.4], [0.4, 0]])
    assert scan.electrons_per_pattern == pytest.approx(COUNTS.sum() * 0.25 / 12)
    assert scan.info["converted"]["calibration_sources"]["scan_step_A"] == "0.4: given"


# real files


def sample(name: str) -> Path:
    if not (SAMPLES / name).exists():
        pytest.skip(f"{SAMPLES} has no {name}: the vendors' files are not here")
    return SAMPLES / name


def test_a_real_arina_file() -> None:
    with open_raw(sample("test_00_master.h5")) as raw:
        assert raw.format == "Dectris ARINA CZT"
        assert raw.patterns.shape == (16, 1, 192, 192)
        assert raw.scan_shape_source is None
        assert raw.patterns.dtype == np.uint32
        assert not raw.patterns.read(0, 16).any()  # its detector saw nothing
        assert raw.found["optics.energy_eV"].value == 300e3


def test_a_real_block_file() -> None:
    path = sample("nanomegas_test1.blo")
    with open_raw(path) as raw:
        assert raw.patterns.shape == (3, 2, 144, 144)
        read = raw.patterns.read(0, 6)
        assert set(raw.settled().missing) > {"scan_step_A", "k_step_invA", "scan_rotation_deg"}  # found, to be confirmed
        found = {name: value.value for name, value in raw.found.items()}
    whole = path.read_bytes()
    offset, length = int.from_bytes(whole[12:16], "little"), 6 + 144 * 144
    for number in range(6):
        frame = np.frombuffer(whole[offset + number * length :][6:length], np.uint8).reshape(144, 144)
        np.testing.assert_array_equal(read[number], frame)
    assert found["scan_step_A"] == 128
    assert found["optics.energy_eV"] == 200e3
    assert found["detector_pixel_mrad"] == pytest.approx(1e3 / 62.26 * 10 / 200)  # pixels per cm, camera length in mm


def test_a_real_prismatic_file() -> None:
    path = sample("prismatic_Si100_4D.emd")
    assert "several arrays that could be the scan" in refusal(path)
    key = "4DSTEM_simulation/data/datacubes/CBED_array_depth0001/datacube"
    with open_raw(path, ScanOptions(key=key)) as raw, h5py.File(path, "r") as file:
        np.testing.assert_array_equal(raw.patterns.read(0, 121).reshape(11, 11, 8, 8), file[key][()].transpose(1, 0, 3, 2))
        assert raw.found["scan_step_A"].value == pytest.approx(0.5)
        assert raw.found["k_step_invA"].value == pytest.approx(1 / 5.43, rel=1e-4)  # of its cell of 5.43 Å
        assert raw.found["optics.energy_eV"].value == 100e3


@pytest.mark.parametrize(("name", "rows"), [("001_4x2_6bit", 256), ("002_4x2_6bit_roi128", 128)])
def test_real_merlin_files(name: str, rows: int, tmp_path: Path) -> None:
    with zipfile.ZipFile(sample("Merlin_navigation4x2_ROI.zip")) as archive:
        for suffix in (".mib", ".hdr"):
            (tmp_path / f"scan{suffix}").write_bytes(archive.read(f"{name}{suffix}"))
    with open_raw(tmp_path / "scan.mib") as raw:
        assert raw.patterns.shape == (2, 4, rows, 256)
        assert raw.scan_shape_source == "pauses in the frames' time stamps"
        read = raw.patterns.read(0, 8)
    whole = (tmp_path / "scan.mib").read_bytes()
    frames = np.frombuffer(whole, np.dtype([("text", "S384"), ("data", "u1", (rows, 256))]))["data"]
    np.testing.assert_array_equal(read, frames[:, ::-1])


def test_formats_are_known_by_their_content(tmp_path: Path) -> None:
    vendor.write_blockfile(tmp_path / "x.blo", COUNTS)
    shutil.copy(tmp_path / "x.blo", tmp_path / "x.bin")
    assert find_format(tmp_path / "x.bin")[0] == "NanoMegas block file"
    assert zarr.__version__ >= "3"
