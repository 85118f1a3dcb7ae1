"""``mepdiff convert`` and ``mepdiff inspect``: what they write, what they say, what they ask for."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import vendor_files as vendor
from mepdiff_core import convert as convert_module
from mepdiff_core.calibration import calibration_of
from mepdiff_core.cli import main
from mepdiff_core.convert import convert
from mepdiff_core.errors import InputError
from mepdiff_core.file_calibration import (
    FileCalibration,
    Found,
    angle_mrad,
    axis_values,
    given_values,
    length_A,
    per_length_invA,
    settle,
)
from mepdiff_core.inspection import find_detectors
from mepdiff_core.optics import wavelength_A
from mepdiff_core.ptyrad_result import read_ptyrad_result
from mepdiff_core.raw_scan import ScanOptions, resized
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.virtual import detector_mask, mean_pattern, virtual_image

Capture = pytest.CaptureFixture[str]
COUNTS = vendor.make_counts()
KNOWN = {
    "optics": {"energy_eV": 200e3, "semiangle_mrad": 10.0, "overfocus_A": 30.0},
    "scan_step_A": 0.5,
    "k_step_invA": 0.08,
    "electrons_per_count": 1.0,
}
GIVEN = [f"--calibrate={name}={value}" for name, value in given_values(KNOWN).items()]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    np.save("scan.npy", COUNTS)
    return tmp_path


def said(capsys: Capture) -> str:
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_a_converted_file_is_the_scan_that_load_scan_reads(here: Path, capsys: Capture) -> None:
    assert main(["convert", "scan.npy", "scan.h5", *GIVEN, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["shape"] == [3, 4, 16, 16]
    assert result["calibration"]["scan_step_A"] == {"value": 0.5, "source": "given"}
    assert result["calibration"]["optics.Cs_A"] == {"value": 0.0, "source": "assumed, for the file does not say"}
    scan, direct = load_scan("scan.h5"), load_scan("scan.npy", KNOWN)
    np.testing.assert_array_equal(scan.counts, COUNTS)
    assert scan.counts.dtype == np.uint16
    np.testing.assert_array_equal(direct.counts, COUNTS)
    assert calibration_of(scan) == calibration_of(direct)
    assert calibration_of(scan).electrons_per_pattern == pytest.approx(COUNTS.sum() / 12)
    assert scan.info == direct.info
    assert sorted(p.name for p in here.iterdir()) == ["scan.h5", "scan.npy"]


def test_a_file_is_reconstructed_in_one_go(here: Path, small_scan: Scan, capsys: Capture) -> None:
    """What it does not say is named; then the run is that of the converted scan, which resumes without its calibration."""
    np.save("row.npy", small_scan.counts.reshape(42, 64, 64))
    run = ["reconstruct", "row.npy", "--method", "adam-best", "--set", "engine=fast", "--device", "cpu"]
    assert main([*run, "--out", "run", *GIVEN]) == 2
    assert "give --scan-shape Y X" in said(capsys)
    run += ["--scan-shape", "6", "7", "--slices", "2", "--steps", "1", "--out", "run"]
    assert main(run) == 2
    assert "optics.semiangle_mrad=21.4 (semi-convergence angle)" in said(capsys)
    assert main([*run, *GIVEN, "--set", "batchsize=3"]) == 2
    assert "unknown field 'batchsize'" in said(capsys)
    assert not Path("run.h5").exists()
    assert main([*run, *GIVEN]) == 0
    np.testing.assert_array_equal(load_scan("run.h5").counts, small_scan.counts)
    record = yaml.safe_load(Path("run/run.yaml").read_text())
    assert record["input"] == "run.h5"
    assert main(["reconstruct", "row.npy", "--out", "run", "--resume", "--device", "cpu"]) == 0
    for options, message in (
        ([*run, *GIVEN], "run.h5 is there already, as what row.npy was converted to"),
        (["reconstruct", "run.h5", "--out", "other", "--clip"], "--clip is for a microscope's file"),
    ):
        assert main(options) == 2
        assert message in said(capsys)


def test_a_file_is_prepared_in_one_go(here: Path, capsys: Capture) -> None:
    """The same scan as that of its converted file, with both on record; nothing but it and its picture is left."""
    options = ["--set", "flip_ky=true", "--set", "bin=2", "--set", "subpixel=leave"]
    assert main(["prepare", "scan.npy", "ready.h5", *options]) == 2
    assert "optics.semiangle_mrad=21.4 (semi-convergence angle)" in said(capsys)
    assert main(["prepare", "scan.npy", "ready.h5", *options, *GIVEN]) == 0
    captured = capsys.readouterr()
    assert "scan.npy: 3 x 4 patterns of 16 x 16 px" in captured.err
    assert sorted(p.name for p in here.iterdir()) == ["ready.h5", "ready.png", "scan.npy"]
    assert main(["convert", "scan.npy", "scan.h5", *GIVEN]) == 0
    assert main(["prepare", "scan.h5", "again.h5", *options]) == 0
    ready, again = load_scan("ready.h5"), load_scan("again.h5")
    np.testing.assert_array_equal(ready.counts, again.counts)
    assert ready.counts.shape == (3, 4, 8, 8)
    assert calibration_of(ready) == calibration_of(again)
    assert ready.info == again.info
    assert ready.info["converted"]["file"] == "scan.npy"
    assert main(["prepare", "scan.h5", "other.h5", *options, "--calibrate=optics.overfocus_A=55"]) == 0
    assert load_scan("other.h5").optics.overfocus_A == 55
    assert main(["prepare", "scan.h5", "no.h5", *options, "--clip"]) == 2
    assert "--clip is for a microscope's file; scan.h5 is none: leave it out" in said(capsys)


def test_values_come_from_a_preset_too(here: Path) -> None:
    Path("microscope.yaml").write_text(yaml.safe_dump({**KNOWN, "thickness_A": 50.0}))
    assert main(["convert", "scan.npy", "scan.h5", "--calibration", "microscope.yaml", "--calibrate=scan_step_A=0.7"]) == 0
    scan = load_scan("scan.h5")
    assert calibration_of(scan).scan_step_A == 0.7
    assert scan.thickness_A == 50
    assert scan.optics.overfocus_A == 30


def test_all_that_is_missing_is_named_at_once(here: Path, capsys: Capture) -> None:
    assert main(["convert", "scan.npy", "scan.h5", "--calibrate=optics.energy_eV=200e3"]) == 2
    line = said(capsys)
    for name in ("optics.semiangle_mrad", "optics.overfocus_A", "scan_step_A", "k_step_invA", "electrons_per_count"):
        assert f"{name}=" in line
    assert "energy_eV" not in line
    assert not Path("scan.h5").exists()


def test_what_a_block_file_says_without_units_must_be_confirmed(here: Path, capsys: Capture) -> None:
    vendor.write_blockfile(Path("scan.blo"), COUNTS)
    rest = [given for given in GIVEN if "scan_step_A" not in given]
    assert main(["convert", "scan.blo", "scan.h5", *rest]) == 2
    assert "scan_step_A=0.5 (confirm or correct it: the header's SX 0.05, taken to be in nm)" in said(capsys)
    assert main(["convert", "scan.blo", "scan.h5", *GIVEN]) == 0
    np.testing.assert_array_equal(load_scan("scan.h5").counts, COUNTS)


def test_a_detector_pixel_can_be_given_as_an_angle(here: Path) -> None:
    rest = [given for given in GIVEN if "k_step_invA" not in given]
    assert main(["convert", "scan.npy", "scan.h5", *rest, "--calibrate=detector_pixel_mrad=2"]) == 0
    assert load_scan("scan.h5").k_step_invA == pytest.approx(2e-3 / wavelength_A(200e3))


def test_a_gain_makes_electrons(here: Path) -> None:
    assert main(["convert", "scan.npy", "scan.h5", *GIVEN, "--calibrate=electrons_per_count=0.25"]) == 0
    scan = load_scan("scan.h5")
    np.testing.assert_array_equal(scan.counts, COUNTS * np.float32(0.25))
    assert scan.counts.dtype == np.float32


@pytest.mark.parametrize(
    ("shape", "small", "large"), [((2, 3, 15, 16), 14, 16), ((2, 3, 15, 15), 14, 16), ((2, 3, 12, 18), 12, 18)]
)
def test_patterns_that_are_no_even_square_are_cut_or_padded_when_told(
    shape: tuple[int, int, int, int], small: int, large: int, here: Path, capsys: Capture
) -> None:
    counts = vendor.make_counts(shape)
    np.save("odd.npy", counts)
    assert main(["convert", "odd.npy", "odd.h5", *GIVEN]) == 2
    line = said(capsys)
    assert f"give --size {small} to cut them about their middle, or --size {large} to pad them" in line
    for size in (small, large):
        assert main(["convert", "odd.npy", f"{size}.h5", *GIVEN, "--size", str(size)]) == 0
        read = load_scan(f"{size}.h5").counts
        assert read.shape == (2, 3, size, size)
        middle = counts[:, :, shape[2] // 2, shape[3] // 2]
        np.testing.assert_array_equal(read[:, :, size // 2, size // 2], middle)


def test_padding_loses_nothing_and_cutting_undoes_it() -> None:
    patterns = vendor.make_counts((1, 2, 14, 14))[0]
    padded = resized(patterns, 20)
    assert padded.sum() == patterns.sum()
    np.testing.assert_array_equal(resized(padded, 14), patterns)


def test_negative_pixels_are_clipped_only_when_told(here: Path, capsys: Capture) -> None:
    counts = COUNTS.astype(np.float32)
    counts[0, 1, 2, 3], counts[2, 2, 4, 5] = -4, np.nan
    np.save("bad.npy", counts)
    assert main(["convert", "bad.npy", "bad.h5", *GIVEN]) == 2
    assert "give --clip to make them 0" in said(capsys)
    assert not Path("bad.h5").exists()
    assert main(["convert", "bad.npy", "bad.h5", *GIVEN, "--clip"]) == 0
    assert "2 pixels were negative or not a number and are 0 now" in capsys.readouterr().out
    scan = load_scan("bad.h5")
    np.testing.assert_array_equal(scan.counts, np.where(counts >= 0, counts, 0))
    assert scan.info["converted"]["pixels_set_to_zero"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.npy", "new.h5"), "none.npy: no such file"),
        (("scan.npy", "old.h5"), "old.h5 exists already; give another name"),
        (("old.h5", "new.h5"), "old.h5 is a scan file already"),
        (("scan.npy", "missing/new.h5"), "the folder missing does not exist"),
        (("scan.npy", "new.h5", "--calibrate", "optics.energy=1"), "unknown field 'energy' of KnownOptics"),
        (("scan.npy", "new.h5", "--calibrate", "scan_step_A=-1"), "scan_step_A is -1.0; expected more than 0"),
        (("scan.npy", "new.h5", "--calibrate", "optics.semiangle_mrad=150"), "beyond the detector's"),
        (("scan.npy", "new.h5", "--size", "7"), "size is 7; expected an even number"),
        (("scan.npy", "new.h5", "--scan-shape", "0", "3"), "scan_shape is (0, 3)"),
        (("zero.npy", "new.h5"), "counts are all zero; nothing was measured"),
    ],
)
def test_what_cannot_be_converted_is_one_line_and_leaves_nothing(
    arguments: tuple[str, ...], message: str, here: Path, small_scan: Scan, capsys: Capture
) -> None:
    save_scan(small_scan, "old.h5")
    np.save("zero.npy", COUNTS * 0)
    before = sorted(p.name for p in here.iterdir())
    assert main(["convert", *arguments[:2], *GIVEN, *arguments[2:]]) == 2
    output = capsys.readouterr().err.strip()
    assert message in output
    assert len(output.splitlines()) == 1
    assert sorted(p.name for p in here.iterdir()) == before


def test_a_full_disk_leaves_nothing(here: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert_module.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1 << 20}))
    assert main(["convert", "scan.npy", "scan.h5", *GIVEN]) == 2
    assert "the disk is full" in said(capsys)
    assert [p.name for p in here.iterdir()] == ["scan.npy"]


def test_a_conversion_that_is_stopped_leaves_nothing(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mepdiff_core.raw_scan.BLOCK_BYTES", 1)
    loop = convert("scan.npy", "scan.h5", KNOWN)
    assert next(loop).done == 1
    assert len(list(here.iterdir())) == 2
    loop.close()
    assert [p.name for p in here.iterdir()] == ["scan.npy"]


def test_blocks_of_any_size_give_the_same_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 512 * 3, 512 * 5, 512 * 9):  # a pattern, less than a row, more than one, more than two
        monkeypatch.setattr("mepdiff_core.raw_scan.BLOCK_BYTES", size)
        out = Path(f"{size}.h5")
        states = list(convert("scan.npy", out, KNOWN))
        assert [state.done for state in states] == sorted({state.done for state in states})
        assert states[-1].done == 12
        np.testing.assert_array_equal(load_scan(out).counts, COUNTS)


def test_a_large_file_is_never_held_in_memory(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mepdiff_core.raw_scan.BLOCK_BYTES", 1 << 19)
    large = np.lib.format.open_memmap("large.npy", "w+", np.uint8, (32, 32, 128, 128))  # 16 MiB
    large[:, :, 40:80, 40:80] = 7
    large.flush()
    del large
    tracemalloc.start()
    for _ in convert("large.npy", "large.h5", {**KNOWN, "k_step_invA": 0.02}):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20
    assert load_scan("large.h5").counts.sum() == 32 * 32 * 1600 * 7
    monkeypatch.setattr("mepdiff_core.convert.LAZY_FROM_BYTES", 1 << 20)
    tracemalloc.start()
    scan = load_scan("large.npy", {**KNOWN, "k_step_invA": 0.02})
    assert scan.patterns_at(np.array([5, 900])).sum() == 2 * 1600 * 7
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 6 << 20


# looking at files


def test_inspect_shows_what_is_there_and_what_is_missing(here: Path, capsys: Capture) -> None:
    vendor.write_dm(Path("scan.dm4"), COUNTS)
    assert main(["inspect", "scan.dm4"]) == 0
    text = capsys.readouterr().out
    assert "Gatan DM, image-0" in text
    assert "3 x 4 positions (the file's array)" in text
    assert "200000       the file's metadata: Microscope Info, Voltage" in text
    assert "--calibrate optics.semiangle_mrad=21.4 (semi-convergence angle)" in text
    with Image.open("scan-inspect.png") as picture:
        assert picture.size[0] > 1000
        assert len(np.unique(np.asarray(picture.convert("L")))) > 50
    assert main(["inspect", "scan.dm4", "--out", "", "--json", *GIVEN]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["missing"] == []
    assert result["counts_per_pattern"] == pytest.approx(COUNTS.sum() / 12)
    assert sorted(p.name for p in here.iterdir()) == ["scan-inspect.png", "scan.dm4", "scan.npy"]


def test_inspect_looks_at_scan_files_and_rows_of_patterns(here: Path, small_file: Path, capsys: Capture) -> None:
    assert main(["inspect", str(small_file), "--out", "own.png", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["format"] == "mepdiff scan"
    assert result["missing"] == []
    assert result["disk"]["centre_px"] == pytest.approx([32, 32], abs=0.5)
    np.save("row.npy", COUNTS.reshape(12, 16, 16))
    assert main(["inspect", "row.npy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["missing"][0] == "scan_shape"


def test_inspection_equals_the_virtual_detectors_of_the_core(small_file: Path, small_scan: Scan) -> None:
    from mepdiff_core.inspection import inspect_patterns
    from mepdiff_core.readers import open_raw

    with open_raw(small_file) as raw:
        loop = inspect_patterns(raw)
        while True:
            try:
                next(loop)
            except StopIteration as stop:
                seen = stop.value
                break
    np.testing.assert_allclose(seen.mean, mean_pattern(small_scan.counts))
    found = seen.detectors
    step = small_scan.k_step_invA
    assert found.radius_px * step == pytest.approx(small_scan.optics.k_aperture_invA)
    centre = ((found.centre_px[0] - 32) * step, (found.centre_px[1] - 32) * step)
    disk = detector_mask(64, step, 0, found.radius_px * step, centre)
    np.testing.assert_allclose(seen.bright, virtual_image(small_scan.counts, disk))


def test_the_bright_disk_is_found_where_it_is() -> None:
    y, x = np.ogrid[:80, :100]
    mean = 1.0 + 50 * (np.hypot(y - 33.3, x - 61.6) <= 14)
    found = find_detectors(mean, settle({}, {}))
    assert found is not None
    assert found.centre_px == pytest.approx((33.3, 61.6), abs=0.2)
    assert found.radius_px == pytest.approx(14, abs=0.2)
    assert find_detectors(np.zeros((8, 8)), settle({}, {})) is None


def test_a_result_of_ptyrad_is_read_and_shown(here: Path, capsys: Capture) -> None:
    phase = np.random.default_rng(0).random((4, 20, 24)).astype(np.float32)
    probe = np.full((2, 16, 16), 0.25 + 0.5j, np.complex64)
    vendor.write_ptyrad_result(Path("model.hdf5"), phase, probe, 0.2, 1.5)
    result = read_ptyrad_result("model.hdf5")
    np.testing.assert_array_equal(result.phase, phase)
    np.testing.assert_array_equal(result.probe, probe)
    assert result.voxel_size_A == pytest.approx((1.5, 0.2, 0.2))
    assert result.iterations == 20
    assert main(["inspect", "model.hdf5"]) == 0
    assert "4 slices of 20 x 24 px" in capsys.readouterr().out
    assert Path("model-inspect.png").exists()
    assert main(["convert", "model.hdf5", "new.h5", *GIVEN]) == 2
    assert "is a result of PtyRAD: an object and a probe, without patterns" in said(capsys)


# calibrations


@pytest.mark.parametrize(
    ("unit", "length", "frequency", "angle"),
    [
        ("nm", 20.0, None, None),
        ("Å", 2.0, None, None),
        ("A", 2.0, None, None),
        ("pm", 0.02, None, None),
        ("µm", 2e4, None, None),
        ("[n_m]", 20.0, None, None),
        ("1/nm", None, 0.2, None),
        ("1 / nm", None, 0.2, None),
        ("nm^-1", None, 0.2, None),
        ("A^-1", None, 2.0, None),
        ("1/Å", None, 2.0, None),
        ("1/m", None, 2e-10, None),
        ("mrad", None, None, 2.0),
        ("rad", None, None, 2e3),
        ("", None, None, None),
        ("px", None, None, None),
        ("furlong", None, None, None),
    ],
)
def test_units_of_axes(unit: str, length: float | None, frequency: float | None, angle: float | None) -> None:
    for measured, expected in zip(
        (length_A(-2.0, unit), per_length_invA(2.0, unit), angle_mrad(2.0, unit)), (length, frequency, angle), strict=True
    ):
        assert measured == (None if expected is None else pytest.approx(expected))


@pytest.mark.parametrize("step", [0.0, np.nan, np.inf])
def test_an_axis_without_a_step_says_nothing(step: float) -> None:
    assert axis_values(step, "nm", "x", scan_axis=True) == {}


def test_what_a_person_gives_goes_over_what_a_file_says() -> None:
    found = {
        "optics.energy_eV": Found(300e3, "file"),
        "k_step_invA": Found(0.05, "file"),
        "scan_step_A": Found(9, "?", False),
    }
    settled = settle(found, given_values({"detector_pixel_mrad": 1.0, "optics": {"energy_eV": 80e3}}))
    assert settled.values["k_step_invA"].value == pytest.approx(1e-3 / wavelength_A(80e3))
    assert settled.values["optics.energy_eV"].source == "given"
    assert "scan_step_A" in settled.missing
    assert "scan_step_A" not in settle(found, {"scan_step_A": 9.0}).missing
    assert given_values(FileCalibration()) == {}


def test_options_for_other_formats_are_refused_for_a_scan_file(small_file: Path) -> None:
    with pytest.raises(InputError, match="is no file of another format"):
        load_scan(small_file, options=ScanOptions(scan_shape=(2, 2)))
    calibrated: Any = load_scan(small_file, {"thickness_A": 20})
    assert calibrated.thickness_A == 20
