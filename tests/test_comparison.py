"""Runs from disk, cut and compared: against volumes whose every value is known."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core.comparison import compare
from mepdiff_core.errors import InputError
from mepdiff_core.run_summary import comparable, find_runs, read_summary, scan_of
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.sections import PlacedVolume

VOXEL, ORIGIN = (1.6, 0.2, 0.25), (0.8, -3.0, 2.0)


def ramp() -> PlacedVolume:
    """Phase = z + 2 y + 3 x in Å: linear, so that interpolation is exact."""
    z, y, x = (o + d * np.arange(n) for o, d, n in zip(ORIGIN, VOXEL, (5, 40, 30), strict=True))
    return PlacedVolume(z[:, None, None] + 2 * y[:, None] + 3 * x, VOXEL, ORIGIN)


# cuts


@given(st.floats(-2.9, 4.7), st.floats(2.1, 9.1))
def test_a_profile_is_the_phase_at_that_place(y: float, x: float) -> None:
    volume = ramp()
    np.testing.assert_allclose(volume.profile(y, x), volume.depths_A + 2 * y + 3 * x, atol=1e-9)


def test_a_section_follows_its_line_and_stops_at_the_edge() -> None:
    volume = ramp()
    distance, cut = volume.section((-2.0, 3.0), (1.0, 7.0))
    assert distance[0] == 0
    assert distance[-1] == pytest.approx(5.0)
    assert np.diff(distance) == pytest.approx(0.2)
    expected = volume.depths_A[:, None] + 2 * (-2 + 0.6 * distance) + 3 * (3 + 0.8 * distance)
    np.testing.assert_allclose(cut, expected, atol=1e-9)
    _, beyond = volume.section((0.0, 5.0), (0.0, 50.0))
    assert np.isfinite(beyond[:, 0]).all()
    assert np.isnan(beyond[:, -1]).all()
    with pytest.raises(InputError, match="shorter than a voxel"):
        volume.section((0.0, 3.0), (0.0, 3.1))


def test_a_place_outside_is_outside() -> None:
    volume = ramp()
    assert volume.holds(-3.09, 2.0)
    assert not volume.holds(-3.11, 2.0)
    assert volume.holds(0.0, 2.0 + 29.4 * 0.25)
    assert not volume.holds(0.0, 2.0 + 29.6 * 0.25)
    assert np.isnan(volume.profile(0.0, 12.0)).all()


def test_a_difference_knows_no_constant_phase() -> None:
    volume, rng = ramp(), np.random.default_rng(0)
    noise = rng.normal(size=volume.phase.shape)
    other = PlacedVolume(volume.phase + noise + 7.0, VOXEL, ORIGIN)
    np.testing.assert_allclose(other.less(volume).phase, noise - noise.mean(), atol=1e-5)
    with pytest.raises(InputError, match="on one grid"):
        volume.less(PlacedVolume(volume.phase[:4], VOXEL, ORIGIN))
    with pytest.raises(InputError, match="on one grid"):
        volume.less(PlacedVolume(volume.phase, VOXEL, (0.8, -3.0, 2.2)))


# run folders


@pytest.fixture(scope="module")
def runs(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs on one scan, one of them stopped, in a folder of folders."""
    folder = tmp_path_factory.mktemp("runs")
    for name, steps in (("few", 2), ("more", 6)):
        run = Run(small_file, folder / "inner" / name, "adam-best", {"engine": "fast", "iterations": steps}, "cpu")
        list(run.states())
    states = Run(small_file, folder / "adam", "adam", {"engine": "fast", "iterations": 5}, "cpu").states()
    next(states)
    next(states)
    states.close()  # type: ignore[attr-defined]
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Callable[[], Path]:
    def copy() -> Path:
        return Path(shutil.copytree(runs, tmp_path / "copied"))

    return copy


def test_runs_are_found_in_folders_of_folders(runs: Path) -> None:
    found, refused = find_runs(runs)
    assert not refused
    assert [run.name for run in found] == ["adam", "few", "more"]
    assert [run.status for run in found] == ["stopped", "finished", "finished"]
    assert found[0].metrics["steps"] == 2
    assert found[0].metrics["seconds"] > 0
    assert found[2].row() == {
        **json.loads((runs / "inner" / "more" / "metrics.json").read_text()),
        "run": "more",
        "method": "adam-best",
        "status": "finished",
    }
    assert comparable(found[1:])
    assert not comparable(found)
    assert [run.name for run in find_runs(runs / "inner" / "few")[0]] == ["few"]


def test_damaged_runs_are_told_and_the_others_found(copied: Callable[[], Path], tmp_path: Path) -> None:
    folder = copied()
    (folder / "inner" / "few" / "metrics.json").write_text("{")
    record = yaml.safe_load((folder / "adam" / "run.yaml").read_text())
    (folder / "adam" / "run.yaml").write_text(yaml.safe_dump({k: v for k, v in record.items() if k != "config"}))
    found, refused = find_runs(folder)
    assert [run.name for run in found] == ["more"]
    assert "lacks 'config'" in refused[0]
    assert "few/metrics.json is damaged" in refused[1]
    with pytest.raises(InputError, match="holds no runs"):
        find_runs(tmp_path / "nothing")


def test_the_scan_of_a_run_is_known_by_its_content(
    runs: Path, copied: Callable[[], Path], small_file: Path, small_scan: Scan, tmp_path: Path
) -> None:
    run = read_summary(runs / "inner" / "few")
    scan = scan_of(run)
    assert scan is not None
    np.testing.assert_array_equal(scan.counts, small_scan.counts)
    folder = copied() / "adam"
    record = yaml.safe_load((folder / "run.yaml").read_text())
    record |= {"input_path": str(tmp_path / "gone.h5"), "calibration": {"optics": {"overfocus_A": 70.0}}}
    (folder / "run.yaml").write_text(yaml.safe_dump(record))
    moved = read_summary(folder)
    assert scan_of(moved) is None
    other = tmp_path / "other.h5"
    other.write_bytes(b"something else")
    again = scan_of(moved, [other, small_file])
    assert again is not None
    assert again.optics.overfocus_A == 70.0


def test_runs_on_one_scan_are_laid_side_by_side(runs: Path, small_scan: Scan, tmp_path: Path) -> None:
    comparison = compare([runs / "inner" / "few", runs / "inner" / "more", runs / "adam"])
    assert [*comparison.runs] == ["few", "more", "adam"]  # a method that is there twice goes by its folder
    truth = comparison.truth
    assert truth is not None
    assert small_scan.truth is not None
    np.testing.assert_array_equal(truth.phase, small_scan.truth.phase)
    np.testing.assert_allclose(truth.origin_A, small_scan.truth.origin_A, atol=1e-9)
    assert comparison.verdict().startswith("The patterns held out prefer more: deviance")
    assert "Without figures for held-out patterns: adam." in comparison.verdict()
    rows, patterns = len(comparison.slices().axes), len(comparison.patterns().axes)
    assert rows == 4 * 4 + 1  # the truth and three volumes, four slices, and the scale
    assert patterns == 4 * 4
    page = comparison.write_report(tmp_path / "report").read_text()
    assert "The patterns held out prefer more" in page
    assert page.count("<img") == 4
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        *("report.html", "slices.png", "depth.png", "patterns.png", "convergence.png")
    }


def test_runs_that_held_out_other_patterns_are_not_judged(runs: Path, small_file: Path, copied: Callable[[], Path]) -> None:
    folder = copied() / "inner"
    record = yaml.safe_load((folder / "few" / "run.yaml").read_text())
    record["config"]["seed"] = 5
    (folder / "few" / "run.yaml").write_text(yaml.safe_dump(record))
    assert "cannot decide" in compare([folder / "few", folder / "more"]).verdict()
    record["input_sha256"] = "0" * 64
    (folder / "few" / "run.yaml").write_text(yaml.safe_dump(record))
    with pytest.raises(InputError, match="on different scans"):
        compare([folder / "few", folder / "more"])
    alone = compare([folder / "few"])
    assert alone.truth is None
    with pytest.raises(InputError, match=r"small\.h5 was not found"):
        alone.patterns()
    assert len(alone.slices().axes) == 4 + 1
