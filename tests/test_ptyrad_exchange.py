"""Runs that become PtyRAD's results, and PtyRAD's results that runs start from."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml

from mepdiff_core.cli import main
from mepdiff_core.errors import InputError
from mepdiff_core.forward import ForwardModel
from mepdiff_core.ptyrad_adapter import write_result
from mepdiff_core.ptyrad_import import read_start
from mepdiff_core.ptyrad_result import read_ptyrad_result
from mepdiff_core.scan import Scan
from mepdiff_core.volume_files import read_volume


@pytest.fixture(scope="module")
def truth_file(small_scan: Scan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The truth, as PtyRAD would have written it."""
    assert small_scan.truth is not None
    path = tmp_path_factory.mktemp("ptyrad") / "model.hdf5"
    write_result(ForwardModel(small_scan, 4, 1.6), small_scan.truth.phase, path, [0.3, 0.2])
    return path


def test_ptyrad_reads_its_own_result_back(truth_file: Path, small_scan: Scan) -> None:
    """By PtyRAD's own loader, and by our reader."""
    from ptyrad.io.load import load_ptyrad

    theirs = load_ptyrad(str(truth_file))
    tensors, about = theirs["optimizable_tensors"], theirs["model_attributes"]
    assert small_scan.truth is not None
    np.testing.assert_array_equal(np.asarray(tensors["objp"])[0], small_scan.truth.phase)
    np.testing.assert_allclose(np.asarray(tensors["probe"]), small_scan.get_probe(), atol=1e-7)
    positions = (np.asarray(about["crop_pos"]) + np.asarray(tensors["probe_pos_shifts"])) * float(about["dx"])
    np.testing.assert_allclose(positions, small_scan.positions_A - small_scan.positions_A.min(0), atol=1e-5)
    assert int(theirs["niter"]) == 2
    ours = read_ptyrad_result(truth_file)
    assert (ours.pixel_size_A, ours.slice_thickness_A) == (pytest.approx(0.2), pytest.approx(1.6))


def test_a_result_is_a_start(truth_file: Path, small_scan: Scan, tmp_path: Path) -> None:
    assert small_scan.truth is not None
    np.testing.assert_array_equal(read_start(truth_file, small_scan, 1.6), small_scan.truth.phase)
    # a wider object that begins at a fraction of a pixel, as PtyRAD makes it
    smooth = np.zeros((4, 160, 170), np.float32)
    y, x = np.mgrid[:160, :170]
    smooth += np.exp(-((y - 70.0) ** 2 + (x - 80.0) ** 2) / 50).astype(np.float32)
    wide = tmp_path / "wide.hdf5"
    wide.write_bytes(truth_file.read_bytes())
    with h5py.File(wide, "r+") as file:
        for name in ("objp", "obja"):
            del file[f"optimizable_tensors/{name}"]
            file[f"optimizable_tensors/{name}"] = smooth[None]
        file["model_attributes/crop_pos"][...] += 12
        file["optimizable_tensors/probe_pos_shifts"][...] += 0.25
    start = read_start(wide, small_scan, 1.6)
    assert start.shape == small_scan.truth.phase.shape
    y, x = np.mgrid[: start.shape[1], : start.shape[2]] + 12.25
    np.testing.assert_allclose(start[0], np.exp(-((y - 70.0) ** 2 + (x - 80.0) ** 2) / 50), atol=1e-4)


def test_a_run_goes_to_ptyrad_and_back(
    small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    common = [
        "reconstruct",
        str(small_file),
        "--method",
        "adam-best",
        "--device",
        "cpu",
        "--set",
        "engine=fast",
        "--slices",
        "4",
    ]
    assert main([*common, "--steps", "2", "--out", "run", "--set", "refine.position_rate_A=0.03"]) == 0
    before = Path("run/run.yaml").read_bytes()
    assert main(["export-ptyrad", "run", str(small_file), "model.hdf5"]) == 0
    assert Path("run/run.yaml").read_bytes() == before
    result = read_ptyrad_result("model.hdf5")
    np.testing.assert_array_equal(result.phase, read_volume("run/volume.ome.tif"))
    assert main([*common, "--steps", "1", "--out", "next", "--start", "model.hdf5"]) == 0
    capsys.readouterr()
    for arguments, message in (
        (["export-ptyrad", "run", str(small_file), "model.hdf5"], "model.hdf5 exists already"),
        (["export-ptyrad", "nothing", str(small_file), "new.hdf5"], "nothing holds no run"),
        (
            [*common, "--out", "x", "--start", "model.hdf5", "--set", "slice_thickness_A=3"],
            "slices of 1.6 Å; this run has 3",
        ),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err.splitlines()[-1]
        assert not Path("new.hdf5").exists()
        assert not Path("x").exists()


def test_a_result_is_a_run_to_compare_with(
    truth_file: Path, small_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The truth, come from PtyRAD: its metrics are those of the truth."""
    out = tmp_path / "run"
    assert main(["import-ptyrad", str(truth_file), str(small_file), "--out", str(out), "--json"]) == 0
    metrics = json.loads(capsys.readouterr().out)
    assert metrics["ssim_3d"] == pytest.approx(1, abs=1e-6)
    assert metrics["deviance"] < 1.2
    assert [row["step"] for row in csv.DictReader((out / "history.csv").read_text().splitlines())] == ["1", "2"]
    assert yaml.safe_load((out / "run.yaml").read_text())["status"] == "finished"
    assert (out / "report.html").exists()
    assert (out / "refined.h5").exists()
    assert main(["import-ptyrad", str(truth_file), str(small_file), "--out", str(out)]) == 2
    assert main(["import-ptyrad", str(small_file), str(small_file), "--out", str(tmp_path / "no")]) == 2
    assert "is no result of PtyRAD" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_results_of_other_scans_are_refused(truth_file: Path, small_scan: Scan) -> None:
    part = replace(small_scan, counts=small_scan.counts[:3], positions_A=small_scan.positions_A[:21], truth=None)
    with pytest.raises(InputError, match="is of 42 positions; the scan has 21"):
        read_start(truth_file, part, 1.6)
    other = replace(small_scan, k_step_invA=0.9 * small_scan.k_step_invA, truth=None)
    with pytest.raises(InputError, match=r"has pixels of 0\.2 Å"):
        read_start(truth_file, other, 1.6)
    model = ForwardModel(small_scan, 4, 1.6)
    with pytest.raises(InputError, match="this scan's object field needs"):
        write_result(model, torch.zeros(4, 5, 5).numpy(), truth_file.parent / "bad.hdf5", [])
    assert not (truth_file.parent / "bad.hdf5").exists()
