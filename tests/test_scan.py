"""Scans: raster, the file and back, and what is refused; files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from mepdiff_core import files
from mepdiff_core.arrays import load_arrays, save_arrays
from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path, check_writable, make_folder, write_text
from mepdiff_core.optics import Optics
from mepdiff_core.ptyrad_adapter import import_torchvision
from mepdiff_core.scan import Scan, Truth, load_scan, raster_positions, save_scan
from mepdiff_core.volume_files import write_volume


def make_scan(**changes: Any) -> Scan:
    """Two by three patterns of 16 px with everything a scan can have."""
    rng = np.random.default_rng(5)
    probe = rng.normal(size=(2, 16, 16)) + 1j * rng.normal(size=(2, 16, 16))
    values: dict[str, Any] = {
        "counts": rng.integers(0, 300, (2, 3, 16, 16)).astype(np.uint16),
        "positions_A": raster_positions((2, 3), 0.4, 30.0),
        "optics": Optics(200e3, 18.0, -70.0, 1.2e7, {"C12": 20.0, "phi12": 35.0, "C34": -3.5}),
        "k_step_invA": 5.0 / 16,
        "electrons_per_pattern": 12345.5,
        "thickness_A": 11.2,
        "probe": (probe / np.linalg.norm(probe)).astype(np.complex64),
        "truth": Truth(rng.random((7, 5, 6), np.float32), (1.6, 0.2, 0.2), (0.8, -1.5, -1.7)),
        "info": {"crystal": "Å", "seed": 3, "nested": {"a": [1, 2.5, None]}},
    }
    return Scan(**values | changes)


@pytest.fixture
def scan_file(tmp_path: Path) -> Path:
    path = tmp_path / "scan.h5"
    save_scan(make_scan(), path)
    return path


def refused(action: Callable[[], object]) -> str:
    """The message of the InputError that the action raises; it has to be one line."""
    with pytest.raises(InputError) as error:
        action()
    message = str(error.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


# the raster


def test_a_raster_begins_at_the_origin_and_runs_along_x_first() -> None:
    positions = raster_positions((2, 3), 0.5)
    assert positions.dtype == np.float64
    np.testing.assert_allclose(positions, [[0, 0], [0, 0.5], [0, 1], [0.5, 0], [0.5, 0.5], [0.5, 1]])


def test_rotation_turns_the_fast_axis_from_x_towards_y() -> None:
    turned = raster_positions((3, 4), 0.5, 90.0)
    np.testing.assert_allclose(turned[0], (0, 0), atol=1e-12)
    np.testing.assert_allclose(turned[1], (0.5, 0), atol=1e-12)  # one step of the fast axis, now +y
    np.testing.assert_allclose(turned[4], (0, -0.5), atol=1e-12)  # one step of the slow axis, from +y to -x
    slightly = raster_positions((3, 4), 0.5, 10.0)[1]
    assert slightly[0] == pytest.approx(0.5 * np.sin(np.radians(10)))
    assert slightly[1] == pytest.approx(0.5 * np.cos(np.radians(10)))


def test_rotation_keeps_distances_and_handedness() -> None:
    flat, turned = raster_positions((4, 5), 0.3), raster_positions((4, 5), 0.3, 37.0)
    distance = np.linalg.norm(flat[:, None] - flat, axis=-1)
    np.testing.assert_allclose(np.linalg.norm(turned[:, None] - turned, axis=-1), distance, atol=1e-12)
    slow, fast = turned[5], turned[1]
    assert np.linalg.det([slow, fast]) == pytest.approx(0.3**2)


# the file and back


def assert_equal_scans(a: Scan, b: Scan) -> None:
    for f in fields(Scan):
        x, y = getattr(a, f.name), getattr(b, f.name)
        if isinstance(x, Truth):
            assert x.phase.dtype == y.phase.dtype
            np.testing.assert_array_equal(x.phase, y.phase)
            assert (x.voxel_size_A, x.origin_A) == (y.voxel_size_A, y.origin_A)
        elif isinstance(x, np.ndarray):
            assert x.dtype == y.dtype, f.name
            np.testing.assert_array_equal(x, y)
        else:
            assert x == y, f.name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"probe": None, "truth": None, "thickness_A": None, "info": {}},
        {"counts": np.full((2, 3, 16, 16), 0.25, np.float32), "optics": Optics()},
    ],
)
def test_save_then_load_gives_the_same_scan(tmp_path: Path, changes: dict[str, Any]) -> None:
    scan = make_scan(**changes)
    save_scan(scan, tmp_path / "s.h5")
    assert_equal_scans(load_scan(tmp_path / "s.h5"), scan)


def test_a_simulated_scan_survives_its_file(small_scan: Scan, small_file: Path) -> None:
    assert_equal_scans(load_scan(small_file), small_scan)


def test_the_file_is_laid_out_as_documented(scan_file: Path) -> None:
    """Other programs read these names."""
    with h5py.File(scan_file) as file:
        assert file["counts"].shape == (2, 3, 16, 16)
        assert file["positions_A"].shape == (6, 2)
        assert file["probe"].dtype == np.complex64
        assert set(file["truth/phase"].attrs) == {"voxel_size_A", "origin_A"}
        assert file.attrs["format"] == "mepdiff-scan"
        assert file.attrs["k_step_invA"] == 5 / 16


def test_saving_again_replaces_the_file_and_leaves_nothing_else(scan_file: Path) -> None:
    save_scan(make_scan(thickness_A=3.2), scan_file)
    assert load_scan(scan_file).thickness_A == 3.2
    assert [p.name for p in scan_file.parent.iterdir()] == ["scan.h5"]


def test_the_derived_sizes_agree() -> None:
    scan = make_scan()
    assert (scan.shape, scan.n_patterns, scan.n_pixels) == ((2, 3), 6, 16)
    assert scan.k_max_invA == pytest.approx(2.5)
    assert scan.pixel_size_A == pytest.approx(0.2)
    np.testing.assert_array_equal(scan.patterns()[4], scan.counts[1, 1])


def test_a_scan_without_a_probe_makes_one_from_its_optics() -> None:
    probe = make_scan(probe=None).get_probe()
    assert (probe.shape, probe.dtype) == ((1, 16, 16), np.complex64)
    assert np.sum(np.abs(probe) ** 2) == pytest.approx(1, abs=1e-5)


# what is refused


def with_count(value: float) -> np.ndarray[Any, np.dtype[np.float32]]:
    counts = np.ones((2, 3, 16, 16), np.float32)
    counts[1, 2, 3, 4] = value
    return counts


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"counts": with_count(np.nan)}, "counts has 1 pixels that are negative or not a number"),
        ({"counts": with_count(np.inf)}, "counts has 1 pixels that are negative or not a number"),
        ({"counts": with_count(-1)}, "counts has 1 pixels that are negative or not a number"),
        ({"counts": np.zeros((2, 3, 16, 16))}, "counts are all zero"),
        ({"counts": np.ones((6, 16, 16))}, "counts has shape (6, 16, 16); expected (scan_y, scan_x, ky, kx)"),
        ({"counts": np.ones((0, 3, 16, 16))}, "counts has shape (0, 3, 16, 16); it is empty"),
        ({"counts": np.ones((2, 3, 16, 12))}, "patterns are 16 x 12 px; crop or pad them to a square"),
        ({"counts": np.ones((2, 3, 15, 15))}, "patterns are 15 x 15 px; crop or pad them to an even size"),
        ({"counts": np.ones((2, 3, 16, 16), complex)}, "counts holds complex128"),
        ({"counts": np.ones((2, 3, 16, 16), bool)}, "counts holds bool"),
        ({"positions_A": np.zeros((5, 2))}, "positions_A has shape (5, 2); 2 x 3 patterns need (6, 2)"),
        ({"positions_A": np.zeros((6, 3))}, "positions_A has shape (6, 3)"),
        ({"positions_A": np.full((6, 2), np.nan)}, "positions_A has values that are not numbers"),
        ({"probe": np.ones((16, 16), np.complex64)}, "probe has shape (16, 16); patterns of 16 px need (modes, 16, 16)"),
        ({"probe": np.ones((1, 32, 32), np.complex64)}, "probe has shape (1, 32, 32)"),
        ({"probe": np.zeros((1, 16, 16), np.complex64)}, "probe is zero or has values that are not numbers"),
        ({"probe": np.full((1, 16, 16), 0.125, np.complex64)}, "the probe's intensity sums to 4"),
        ({"probe": np.full((1, 16, 16), np.nan, np.complex64)}, "probe is zero or has values that are not numbers"),
        ({"k_step_invA": 0.08}, "semiangle_mrad 18 is 0.718 1/Å, beyond the detector's 0.640 1/Å"),
        ({"k_step_invA": 0.0}, "k_step_invA is 0.0"),
        ({"k_step_invA": np.nan}, "k_step_invA is nan"),
        ({"electrons_per_pattern": -1.0}, "electrons_per_pattern is -1.0"),
        ({"electrons_per_pattern": np.inf}, "electrons_per_pattern is inf"),
        ({"thickness_A": np.nan}, "thickness_A is nan"),
        ({"thickness_A": 0.0}, "thickness_A is 0.0"),
        ({"truth": Truth(np.ones((5, 6), np.float32), (1.6, 0.2, 0.2), (0, 0, 0))}, "truth/phase has shape (5, 6)"),
        ({"truth": Truth(np.ones((7, 5, 6), np.float32), (1.6, 0.2), (0, 0, 0))}, "truth's voxel_size_A is (1.6, 0.2)"),  # type: ignore[arg-type]
    ],
)
def test_what_does_not_fit_together_is_refused(changes: dict[str, Any], message: str) -> None:
    assert message in refused(lambda: make_scan(**changes))


@pytest.mark.parametrize("energy", [0.0, -300e3, 300.0, np.nan])
def test_an_impossible_energy_is_refused(energy: float) -> None:
    assert "energy_eV is" in refused(lambda: make_scan(optics=Optics(energy_eV=energy)))


def test_files_that_are_no_scans_are_refused_in_one_line(tmp_path: Path, scan_file: Path) -> None:
    missing = tmp_path / "missing.h5"
    assert refused(lambda: load_scan(missing)) == f"{missing}: no such file"
    assert refused(lambda: load_scan(tmp_path)) == f"{tmp_path} is a folder; give a scan file (.h5)"
    empty = tmp_path / "empty.h5"
    empty.touch()
    assert refused(lambda: load_scan(empty)) == f"{empty} is empty; expected a scan file (.h5)"
    text = tmp_path / "text.h5"
    text.write_text("these are no counts\n" * 100)
    assert refused(lambda: load_scan(text)).startswith(f"{text} cannot be read as a scan")
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["counts"] = np.ones((2, 3, 16, 16))
    assert refused(lambda: load_scan(other)).startswith(f"{other} does not say all of how it was taken")
    with h5py.File(other, "r+") as file:
        file.attrs["format"] = "mepdiff-probe"
    assert refused(lambda: load_scan(other)).startswith(f"{other} is HDF5 but not a mepdiff scan")


@pytest.mark.parametrize("part", [0.02, 0.5, 0.9, 1.0])
def test_a_truncated_file_is_refused(scan_file: Path, part: float) -> None:
    whole = scan_file.read_bytes()
    scan_file.write_bytes(whole[: min(int(len(whole) * part), len(whole) - 1)])
    message = refused(lambda: load_scan(scan_file))
    assert message.startswith(f"{scan_file} cannot be read as a scan; is it truncated")


def damage(path: Path, change: Callable[[h5py.File], None]) -> str:
    with h5py.File(path, "r+") as file:
        change(file)
    message = refused(lambda: load_scan(path))
    assert message.startswith(str(path))
    return message


def put(name: str, value: Any) -> Callable[[h5py.File], None]:
    """Put another array, or with a leading @ another attribute, in place of the one of that name."""

    def change(file: h5py.File) -> None:
        if name.startswith("@"):
            file.attrs[name[1:]] = value
        else:
            attributes = dict(file[name].attrs)
            del file[name]
            file[name] = value
            file[name].attrs.update(attributes)

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("counts", with_count(np.nan)), "counts has 1 pixels that are negative or not a number"),
        (put("counts", with_count(-3)), "counts has 1 pixels that are negative or not a number"),
        (put("counts", np.zeros((2, 3, 16, 16), np.uint8)), "counts are all zero"),
        (put("counts", np.ones((6, 16, 16))), "counts has shape (6, 16, 16); expected (scan_y, scan_x, ky, kx)"),
        (put("counts", np.ones((2, 3, 16, 8))), "patterns are 16 x 8 px"),
        (put("counts", "words"), "/counts holds no array of numbers"),
        (put("counts", h5py.Empty("f4")), "/counts holds no array of numbers"),
        (put("positions_A", np.zeros((7, 2))), "positions_A has shape (7, 2); 2 x 3 patterns need (6, 2)"),
        (put("positions_A", "words"), "/positions_A holds no array of numbers"),
        (put("probe", np.ones((1, 8, 8), np.complex64)), "probe has shape (1, 8, 8)"),
        (put("truth/phase", np.ones(3)), "truth/phase has shape (3,)"),
        (put("@optics", '{"energy_eV": 0}'), "energy_eV is 0"),
        (put("@optics", '{"energy": 1e5}'), "optics: unknown field 'energy' of Optics; did you mean 'energy_eV'?"),
        (put("@optics", '{"semiangle_mrad": 190}'), "semiangle_mrad 190 is 9.651 1/Å, beyond the detector's 2.500 1/Å"),
        (put("@optics", 5), "cannot be read as a scan"),
        (put("@optics", "no JSON"), "cannot be read as a scan"),
        (put("@info", "[1]"), "info is [1]"),
        (put("@format_version", 99), "has format version 99; this mepdiff reads 1"),
        (put("@k_step_invA", "wide"), "cannot be read as a scan"),
        (put("@electrons_per_pattern", 0.0), "electrons_per_pattern is 0.0"),
        (put("@thickness_A", np.nan), "thickness_A is nan"),
        (lambda file: file.__delitem__("counts"), "is not a complete scan: "),
        (lambda file: file.attrs.__delitem__("optics"), "is not a complete scan: "),
        (lambda file: file["truth/phase"].attrs.__delitem__("origin_A"), "is not a complete scan: "),
    ],
)
def test_a_damaged_scan_file_says_what_is_wrong(scan_file: Path, change: Callable[[h5py.File], None], message: str) -> None:
    assert message in damage(scan_file, change)


# files that appear whole or not at all


class Interrupted(BaseException):
    """Like Ctrl-C: no Exception."""


def half_write(target: Path, error: BaseException) -> None:
    """Fail in the middle of a file."""
    with atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error


@pytest.mark.parametrize("error", [ValueError, Interrupted, KeyboardInterrupt])
def test_an_error_inside_leaves_neither_target_nor_temporary(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error):
        half_write(tmp_path / "out.txt", error())
    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_leaves_an_existing_target_as_it_was(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("before")
    with pytest.raises(ValueError, match="no"):
        half_write(target, ValueError("no"))
    assert target.read_text() == "before"
    assert list(tmp_path.iterdir()) == [target]


def test_the_target_appears_only_at_the_end_and_with_usual_permissions(tmp_path: Path) -> None:
    target, beside = tmp_path / "out.txt", tmp_path / "beside.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("whole")
        assert not target.exists()
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".txt"
    assert target.read_text() == "whole"
    beside.touch()
    assert target.stat().st_mode == beside.stat().st_mode


REASONS = [
    (errno.ENOSPC, "the disk is full"),
    (errno.EDQUOT, "the disk quota is used up"),
    (errno.EACCES, "permission denied"),
    (errno.EROFS, "the file system is read-only"),
]


@pytest.mark.parametrize(("number", "reason"), REASONS)
def test_an_error_of_the_disk_is_told_in_words(tmp_path: Path, number: int, reason: str) -> None:
    target = tmp_path / "out.txt"
    message = refused(lambda: half_write(target, OSError(number, os.strerror(number))))
    assert message.startswith(f"{target} cannot be written: {reason}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "reason"), REASONS)
def test_a_folder_that_takes_no_files_is_told_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "out.h5"
    monkeypatch.setattr(files.tempfile, "mkstemp", full)
    monkeypatch.setattr(files.tempfile, "NamedTemporaryFile", full)
    for action in (lambda: save_scan(make_scan(), target), lambda: check_writable(target)):
        assert refused(action).startswith(f"{target} cannot be written: {reason}")
    monkeypatch.setattr(files.Path, "mkdir", full)
    assert reason in refused(lambda: make_folder(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 16 kB, where one can be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("no disk can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_is_one_line_and_nothing_left(tiny_disk: Path) -> None:
    """Each of our kinds of file; HDF5 itself would bring the process down when it closes a file on a full disk."""
    noise = np.random.default_rng(0).random((8, 32, 32))
    scan = make_scan(counts=np.random.default_rng(0).integers(0, 999, (2, 3, 64, 64)), probe=None, k_step_invA=5 / 64)
    writers: dict[str, Callable[[Path], None]] = {
        "scan.h5": lambda path: save_scan(scan, path),
        "volume.ome.tif": lambda path: write_volume(path, noise, (1.6, 0.2, 0.2), (0, 0, 0)),
        "checkpoint.safetensors": lambda path: save_arrays({"a": noise}, path),
        "page.html": lambda path: write_text(path, "x" * 99999),
    }
    for name, write in writers.items():
        path = tiny_disk / name
        assert refused(lambda: write(path)) == (  # noqa: B023
            f"{path} cannot be written: the disk is full; free some space or choose another folder"
        )
        assert list(tiny_disk.iterdir()) == []


def test_places_that_are_no_places_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    nowhere = tmp_path / "no" / "out.h5"
    for action in (lambda: write_text(nowhere, ""), lambda: check_writable(nowhere)):
        assert f"the folder {nowhere.parent} does not exist; make it first" in refused(action)
    for action in (lambda: write_text(tmp_path, ""), lambda: check_writable(tmp_path)):
        assert refused(action) == f"{tmp_path} is a folder; give the name of a file"
    assert f"{file} is not a folder" in refused(lambda: write_text(file / "out.h5", ""))
    assert f"{file} is a file; give the name of a folder" in refused(lambda: make_folder(file))
    assert f"{tmp_path} exists already" in refused(lambda: make_folder(tmp_path))
    assert list(tmp_path.iterdir()) == [file]


def test_make_folder_takes_a_new_and_an_empty_one(tmp_path: Path) -> None:
    new = make_folder(tmp_path / "a" / "b")
    assert new.is_dir()
    assert make_folder(new) == new


def test_arrays_survive_their_file_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    arrays = {"scalar": np.array(3), "turned": np.arange(6.0).reshape(2, 3).T, "float32": np.ones(2, np.float32)}
    save_arrays(arrays, path)
    loaded = load_arrays(path)
    assert set(loaded) == set(arrays)
    for name, array in arrays.items():
        assert (loaded[name].shape, loaded[name].dtype) == (array.shape, array.dtype)
        np.testing.assert_array_equal(loaded[name], array)
    path.write_bytes(path.read_bytes()[:-5])
    assert refused(lambda: load_arrays(path)).startswith(f"{path} is damaged")


def test_a_scan_cannot_be_changed_into_a_bad_one() -> None:
    scan = make_scan()
    with pytest.raises(InputError, match="positions_A"):
        replace(scan, positions_A=scan.positions_A[:-1])


def test_ptyrad_reads_the_counts_by_their_key(small_scan: Scan, small_file: Path) -> None:
    """Without our help, as somebody with PtyRAD alone would."""
    import_torchvision()
    from ptyrad.io.hierarchy import load_hdf5

    assert np.array_equal(load_hdf5(str(small_file), "counts"), small_scan.counts)
