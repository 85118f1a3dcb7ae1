"""The command line: what it writes, what it says, what it refuses, and how it goes on after Ctrl-C."""

from __future__ import annotations

import csv
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import tifffile
import yaml

import mepdiff_core
from mepdiff_core import evaluation_task
from mepdiff_core.cli import COMMANDS, common, demo, main
from mepdiff_core.cli import reconstruct as reconstruct_command
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.optics import Optics
from mepdiff_core.probe import with_probe
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.simulate import SimulationConfig
from mepdiff_core.states import State
from mepdiff_core.volume_files import read_volume

CRYSTAL = str(resources.files("mepdiff_core") / "data" / "SrTiO3.cif")
TINY = [
    "--scan-shape",
    "3",
    "3",
    "--set",
    "detector_pixels=64",
    "--set",
    "optics.overfocus_A=60",
    "--set",
    "thickness_A=3.2",
]
FAST = ["--device", "cpu", "--engine", "fast"]
RUN_FILES = {"run.yaml", "history.csv", "volume.ome.tif", "metrics.json", "report.html"}
RUN_FILES |= {"slices.png", "depth.png", "patterns.png", "losses.png"}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine patterns of 64 px through two slices of the packaged crystal."""
    path = tmp_path_factory.mktemp("tiny") / "scan.h5"
    assert main(["simulate", CRYSTAL, str(path), *TINY]) == 0
    return path


@pytest.fixture
def tiny(tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh folder to work in, with ``scan.h5`` in it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(tiny_file, "scan.h5")
    return tmp_path


def files_in(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_time(rows: Sequence[dict[str, str]]) -> list[dict[str, str]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


# help and info


def test_every_command_explains_itself(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    names = [module.__name__.rsplit(".", 1)[1].replace("_", "-") for module in COMMANDS]
    assert names == [
        "info",
        "demo",
        "simulate",
        "inspect",
        "convert",
        "prepare",
        "fit-probe",
        "fit-thickness",
        "reconstruct",
        "evaluate",
        "dataset",
        "train",
        "sample",
        "prior",
        "export-ptyrad",
        "import-ptyrad",
    ]
    actions = [["dataset", "build"], ["dataset", "info"], ["dataset", "preview"], ["prior", "inspect"]]
    for arguments in ([], *([name] for name in names), *actions):
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--help"])
        assert stop.value.code == 0
        shown = capsys.readouterr()
        assert shown.out.startswith(f"usage: {' '.join(['mepdiff', *arguments])}")
        assert shown.err == ""
        assert max(map(len, shown.out.splitlines())) <= 125
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr()
    assert all(f"    {name} " in shown.out or f"    {name}\n" in shown.out for name in names)


def test_the_version_is_the_packages(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"mepdiff {mepdiff_core.__version__}\n"


def test_info_names_versions_devices_and_methods(capsys: Capture) -> None:
    assert main(["info", "--json"]) == 0
    shown = capsys.readouterr()
    info = json.loads(shown.out)
    assert shown.err == ""
    assert info["versions"]["mepdiff"] == mepdiff_core.__version__
    assert info["versions"]["numpy"] == np.__version__
    assert info["devices"][0] == "cpu"
    assert set(info["methods"]) == {"adam", "lbfgs", "adam-best", "crystal", "dps", "proximal", "mepdiff"}
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name in (*info["versions"], *info["methods"], info["default_device"]):
        assert name in text


def test_info_explains_the_calibration(capsys: Capture) -> None:
    assert main(["info", "--settings", "calibration"]) == 0
    shown = capsys.readouterr()
    lines = shown.out.splitlines()
    assert shown.err == ""
    assert "scan_step_A=null" in lines
    assert "distance between neighbouring positions" in lines[lines.index("scan_step_A=null") + 1]
    assert main(["info", "--settings", "calibration", "--json"]) == 0
    settings = json.loads(capsys.readouterr().out)
    assert {"optics.overfocus_A", "scan_step_A", "scan_rotation_deg", "k_step_invA", "thickness_A"} < settings.keys()
    assert settings["optics.overfocus_A"]["default"] == Optics().overfocus_A
    assert all(setting["meaning"] for setting in settings.values())
    assert main(["info", "--settings", "calibrations"]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert shown.err.startswith("mepdiff: --settings calibrations is not known; choose from ")


def test_the_module_runs_as_a_program(tmp_path: Path) -> None:
    """Exit codes, one line, nothing on the other stream: as a shell sees them."""
    command = [sys.executable, "-m", "mepdiff_core"]
    good = subprocess.run([*command, "--version"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (good.returncode, good.stdout, good.stderr) == (0, f"mepdiff {mepdiff_core.__version__}\n", "")
    bad = subprocess.run([*command, "simulate", "no.cif", "s.h5"], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "mepdiff: no.cif: no such file\n")
    assert list(tmp_path.iterdir()) == []


# simulate


def test_simulate_writes_the_scan_that_was_asked_for(tiny: Path, capsys: Capture) -> None:
    assert main(["simulate", CRYSTAL, "s.h5", *TINY, "--axis", "a", "--dose", "5e4", "--seed", "3", "--json"]) == 0
    shown = capsys.readouterr()
    scan = load_scan("s.h5")
    assert scan.counts.shape == (3, 3, 64, 64)
    assert scan.optics == Optics(overfocus_A=60.0)
    assert scan.thickness_A == 3.2
    assert scan.electrons_per_pattern == pytest.approx(5e4 * 0.512**2)
    assert scan.counts.sum() == pytest.approx(9 * scan.electrons_per_pattern, rel=0.1)
    assert scan.truth is not None
    assert scan.truth.phase.shape[0] == 2
    assert (scan.info["simulation"]["axis"], scan.info["simulation"]["seed"]) == ("a", 3)
    result = json.loads(shown.out)
    assert result["file"] == "s.h5"
    assert result["patterns"] == [3, 3, 64, 64]
    assert result["truth"] == list(scan.truth.phase.shape)
    assert "simulating" in shown.err
    assert sorted(p.name for p in tiny.iterdir()) == ["s.h5", "scan.h5"]


def test_the_seed_decides_the_counts(tiny: Path) -> None:
    for name, seed in (("same.h5", "0"), ("other.h5", "1")):
        assert main(["simulate", CRYSTAL, name, *TINY, "--seed", seed]) == 0
    first, same, other = (load_scan(name).counts for name in ("scan.h5", "same.h5", "other.h5"))
    np.testing.assert_array_equal(first, same)
    assert (first != other).any()
    assert Path("scan.h5").read_bytes() == Path("same.h5").read_bytes()


def test_options_go_over_the_file_and_a_random_origin_is_on_record(tiny: Path) -> None:
    Path("o.yaml").write_text(
        "optics: {energy_eV: 200e3, overfocus_A: 60, aberrations: {C12: 20, phi12: 45}}\n"
        "detector_pixels: 64\nscan_shape: [3, 3]\nthickness_A: 6.4\nscan_step_A: 0.4\n"
    )
    options = ["--optics", "o.yaml", "--thickness", "1.6", "--scan-shape", "2", "1", "--dose", "none", "--origin", "random"]
    assert main(["simulate", CRYSTAL, "s.h5", *options, "--set", "optics.Cs_A=1e4"]) == 0
    scan = load_scan("s.h5")
    assert scan.optics == Optics(200e3, 21.4, 60.0, 1e4, {"C12": 20.0, "phi12": 45.0})
    assert (scan.shape, scan.thickness_A) == ((2, 1), 1.6)
    assert scan.counts.dtype == np.float32
    origin = scan.info["simulation"]["origin_A"]
    assert len(set(origin)) == 3
    assert all(0 < value < 3.905 for value in origin)


# reconstruct


@pytest.fixture(scope="module")
def best_run(tiny_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of adam-best, three steps."""
    out = tmp_path_factory.mktemp("best") / "run"
    assert (
        main(
            ["reconstruct", str(tiny_file), "--method", "adam-best", *FAST, "--steps", "3", "--seed", "4", "--out", str(out)]
        )
        == 0
    )
    return out


def test_a_run_folder_is_complete(best_run: Path, tiny_file: Path) -> None:
    assert {p.name for p in best_run.iterdir()} == RUN_FILES
    record = yaml.safe_load((best_run / "run.yaml").read_text())
    assert (record["method"], record["status"], record["seed"]) == ("adam-best", "finished", 4)
    assert (record["config"]["iterations"], record["config"]["engine"]) == (3, "fast")
    assert record["config"]["likelihood"] == "poisson"
    assert record["input"] == "scan.h5"
    assert re.fullmatch("[0-9a-f]{64}", record["input_sha256"])
    assert record["versions"]["mepdiff"] == mepdiff_core.__version__
    history = table(best_run / "history.csv")
    assert [row["step"] for row in history] == ["1", "2", "3"]
    assert all(float(row["loss"]) > 0 and float(row["heldout"]) > 0 for row in history)
    metrics = json.loads((best_run / "metrics.json").read_text())
    assert {"ssim_2d", "psnr_dB", "r_factor", "r_heldout", "failure_class", "seconds"} < metrics.keys()
    assert (metrics["method"], metrics["steps"]) == ("adam-best", 3)


def test_the_volume_lies_on_the_grid_of_the_truth(best_run: Path, tiny_file: Path) -> None:
    truth = load_scan(tiny_file).truth
    assert truth is not None
    volume = read_volume(best_run / "volume.ome.tif")
    assert volume.shape == truth.phase.shape
    assert volume.min() >= 0  # adam-best keeps the phase positive
    assert volume.max() > 0
    with tifffile.TiffFile(best_run / "volume.ome.tif") as file:
        assert file.is_ome
        assert file.series[0].axes == "ZYX"
        assert file.series[0].dtype == np.float32
        ome = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
    sizes = [ome[f"PhysicalSize{axis}"] for axis in "ZYX"]
    assert sizes == pytest.approx(truth.voxel_size_A)
    assert {ome[f"PhysicalSize{axis}Unit"] for axis in "ZYX"} == {"Å"}
    first = ome["Plane"][0]
    assert [first[f"Position{axis}"] for axis in "ZYX"] == pytest.approx(truth.origin_A)
    assert ome["Plane"][1]["PositionZ"] - first["PositionZ"] == pytest.approx(truth.voxel_size_A[0])


def test_the_report_holds_everything_itself(best_run: Path) -> None:
    page = (best_run / "report.html").read_text(encoding="utf-8")
    sources = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert "no inverse crime" in page
    assert "for it, an inverse crime" not in page
    assert len(sources) == 4
    assert all(source.startswith("data:image/png;base64,iVBOR") for source in sources)
    for outside in ("http://", "https://", "<link", "<script", "@import", "url("):
        assert outside not in page
    assert "<style>" in page
    for word in ("adam-best", "SSIM (slices)", "R held out", "input_sha256"):
        assert word in page
    for png in best_run.glob("*.png"):
        assert png.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_results_are_json_on_stdout_and_progress_is_on_stderr(tiny: Path, capsys: Capture) -> None:
    assert main(["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "2", "--out", "run", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result == {"folder": "run", **json.loads(Path("run/metrics.json").read_text())}
    assert "adam: " in shown.err
    assert "2/2" in shown.err
    assert "{" not in shown.err


def test_the_same_seed_gives_the_same_volume(best_run: Path, tiny: Path) -> None:
    for seed in ("4", "5"):
        assert (
            main(["reconstruct", "scan.h5", "--method", "adam-best", *FAST, "--steps", "3", "--seed", seed, "--out", seed])
            == 0
        )
    np.testing.assert_array_equal(read_volume("4/volume.ome.tif"), read_volume(best_run / "volume.ome.tif"))
    assert without_time(table(Path("4/history.csv"))) == without_time(table(best_run / "history.csv"))
    assert (read_volume("5/volume.ome.tif") != read_volume("4/volume.ome.tif")).any()


def test_a_config_file_and_a_start_volume_are_used(best_run: Path, tiny: Path) -> None:
    Path("c.yaml").write_text("iterations: 1\nlearning_rate: 1e-9\nengine: fast\nconstraints: {positivity: true}\n")
    start = best_run / "volume.ome.tif"
    options = ["--method", "adam", "--config", "c.yaml", "--set", "batch_size=5", "--start", str(start)]
    assert main(["reconstruct", "scan.h5", *options, "--out", "run"]) == 0
    record = yaml.safe_load(Path("run/run.yaml").read_text())
    assert record["start"]["path"] == str(start)
    assert (record["config"]["iterations"], record["config"]["batch_size"]) == (1, 5)
    assert record["config"]["constraints"]["positivity"] is True
    np.testing.assert_allclose(read_volume("run/volume.ome.tif"), read_volume(start), atol=1e-7)


def test_a_fitted_probe_is_written_and_used(tiny: Path, capsys: Capture) -> None:
    assert main(["fit-probe", "scan.h5", "--out", "p.h5", "--steps", "2", "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["iterations"] == 2
    assert 0.5 < result["overlap_with_start"] <= 1
    assert sorted(p.name for p in tiny.iterdir()) == ["p.h5", "p.png", "scan.h5"]
    assert with_probe(load_scan("scan.h5"), "p.h5").get_probe().shape[-2:] == (64, 64)
    options = ["--method", "adam", *FAST, "--steps", "1", "--probe", "p.h5"]
    assert main(["reconstruct", "scan.h5", *options, "--out", "run"]) == 0
    assert yaml.safe_load(Path("run/run.yaml").read_text())["probe"]["path"] == str(tiny / "p.h5")


CALIBRATED = ["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "2"]
CALIBRATION = {"optics": {"overfocus_A": 50, "Cs_A": 9000.0}, "electrons_per_pattern": 2e4}


@pytest.fixture
def calibration_options(tiny: Path) -> list[str]:
    """A file and a value that goes over it; together they are ``CALIBRATION``."""
    Path("c.yaml").write_text("optics: {overfocus_A: 70, Cs_A: 9000.0}\nelectrons_per_pattern: 20000.0\n")
    return ["--calibrate", "optics.overfocus_A=50", "--calibration", "c.yaml"]


def test_another_calibration_is_used_and_on_record(tiny: Path, calibration_options: list[str]) -> None:
    """The result is that of a scan that says so itself."""
    assert main([*CALIBRATED, *calibration_options, "--out", "run"]) == 0
    assert yaml.safe_load(Path("run/run.yaml").read_text())["calibration"] == CALIBRATION
    scan = load_scan("scan.h5")
    optics = replace(scan.optics, overfocus_A=50.0, Cs_A=9000.0)
    save_scan(replace(scan, optics=optics, electrons_per_pattern=2e4), "says.h5")
    assert main(["reconstruct", "says.h5", *CALIBRATED[2:], "--out", "says"]) == 0
    assert main([*CALIBRATED, "--out", "plain"]) == 0
    assert yaml.safe_load(Path("plain/run.yaml").read_text())["calibration"] == {}
    run, says, plain = (read_volume(f"{name}/volume.ome.tif") for name in ("run", "says", "plain"))
    np.testing.assert_array_equal(run, says)
    assert np.abs(run - plain).max() > 0.1 * np.abs(plain).max()
    losses = [[row["loss"] for row in table(Path(name, "history.csv"))] for name in ("run", "says", "plain")]
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]


def test_resume_takes_the_calibration_up_and_refuses_another(
    tiny: Path, calibration_options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    assert main([*CALIBRATED, *calibration_options, "--out", "whole"]) == 0
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert main([*CALIBRATED, *calibration_options, "--out", "run"]) == 0
    assert [row["step"] for row in table(Path("run/history.csv"))] == ["1"]
    shutil.copytree("run", "again")
    before = files_in(Path("run"))
    go_on = ["reconstruct", "scan.h5", "--method", "adam", "--out", "run", "--resume"]
    for other in (
        ["--calibrate", "optics.overfocus_A=60"],
        ["--calibrate", "optics.overfocus_A=50"],  # a part of it
        ["--calibration", "c.yaml"],
        [*calibration_options, "--calibrate", "thickness_A=1.6"],
    ):
        capsys.readouterr()
        assert main([*go_on, *other]) == 2
        shown = capsys.readouterr()
        assert (shown.out, shown.err.count("\n")) == ("", 1)
        assert "the calibration given is not that of the run in run; leave it out to go on" in shown.err
    assert files_in(Path("run")) == before

    Path("c.yaml").rename("elsewhere.yaml")
    assert main(go_on) == 0
    same = ["--calibrate", "optics.overfocus_A=50", "--calibration", "elsewhere.yaml"]
    assert main([*CALIBRATED, *same, "--out", "again", "--resume"]) == 0
    for name in ("run", "again"):
        record = yaml.safe_load(Path(name, "run.yaml").read_text())
        assert (record["status"], record["calibration"]) == ("finished", CALIBRATION)
        assert without_time(table(Path(name, "history.csv"))) == without_time(table(Path("whole/history.csv")))
        np.testing.assert_array_equal(read_volume(f"{name}/volume.ome.tif"), read_volume("whole/volume.ome.tif"))


def test_the_demo_ends_with_a_report(tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """The demo itself, of a smaller scan and in two steps."""
    small = SimulationConfig(Optics(overfocus_A=60.0), scan_shape=(3, 3), detector_pixels=64, thickness_A=4.8)
    monkeypatch.setattr("mepdiff_core.simulate.SimulationConfig", lambda: small)
    monkeypatch.setattr("mepdiff_core.cli.demo.SCAN_SHAPE", (4, 4))
    monkeypatch.setitem(demo.METHODS, "adam", {"engine": "fast", "iterations": 2, "heldout_fraction": 0.1})
    monkeypatch.setitem(demo.METHODS, "mepdiff", {"steps": 2, "batches": 1, "heldout_fraction": 0.1})
    for _ in range(2):  # called again, it has nothing left to do but the page
        assert main(["demo", "--out", "d", "--device", "cpu", "--json"]) == 0
        shown = capsys.readouterr()
        result = json.loads(shown.out)
        assert result["folder"] == "d"
        assert set(result["runs"]) == {"adam", "mepdiff"}
        assert {p.name for p in Path("d/adam").iterdir()} == RUN_FILES
        assert {p.name for p in Path("d").iterdir()} == {
            *("adam", "mepdiff", "scan.h5"),
            *("report.html", "slices.png", "depth.png"),
        }
        assert load_scan("d/scan.h5").shape == (4, 4)
        assert [line for line in shown.err.splitlines() if " of 3:" in line][2].startswith("3 of 3")


# what is refused


def write_inputs(folder: Path) -> None:
    """The bad (and some good) inputs that the table below names."""
    (folder / "typo.yaml").write_text("iterationz: 3\n")
    (folder / "broken.yaml").write_text("iterations: [3\n")
    (folder / "optics.yaml").write_text("optics: {defocus: 3}\n")
    (folder / "text.h5").write_text("no scan")
    (folder / "half.h5").write_bytes((folder / "scan.h5").read_bytes()[:9999])
    (folder / "text.cif").write_text("no crystal")
    tifffile.imwrite(folder / "small.tif", np.zeros((2, 9, 9), np.float32))
    tifffile.imwrite(folder / "deep.tif", np.zeros((2, 3, 9, 9), np.float32), photometric="minisblack")
    (folder / "old").mkdir()
    (folder / "old" / "file").touch()
    (folder / "empty").mkdir()


RECONSTRUCT = ("reconstruct", "scan.h5", "--method", "adam-best", "--out", "new")
SIMULATE = ("simulate", CRYSTAL, "new.h5", *TINY)
EVALUATE = ("evaluate", "--structures", CRYSTAL, "--out", "new")
BAD_INPUT: list[tuple[Sequence[str], str]] = [
    (("reconstruct", "none.h5", "--out", "new"), "none.h5: no such file"),
    (("reconstruct", "empty", "--out", "new"), "empty is a folder; give a scan file (.h5)"),
    (("reconstruct", "text.h5", "--out", "new"), "text.h5 cannot be read as a scan"),
    (("reconstruct", "half.h5", "--out", "new"), "half.h5 cannot be read as a scan"),
    ((*RECONSTRUCT, "--method", "magic"), "method 'magic' is not known; choose from adam-best, adam, lbfgs"),
    ((*RECONSTRUCT, "--set", "iteration=3"), "unknown field 'iteration' of AdamConfig; did you mean 'iterations'?"),
    ((*RECONSTRUCT, "--set", "constraints.z=3"), "unknown field 'z' of Constraints"),
    ((*RECONSTRUCT, "--set", "iterations"), "--set iterations: expected name=value"),
    ((*RECONSTRUCT, "--set", "iterations=0"), "iterations is 0; expected at least 1"),
    ((*RECONSTRUCT, "--steps", "0"), "iterations is 0; expected at least 1"),
    ((*RECONSTRUCT, "--slices", "0"), "slices is 0; expected 1 to 1000"),
    ((*RECONSTRUCT, "--seed", "-1"), "seed is -1; expected 0 or more"),
    ((*RECONSTRUCT, "--set", "model.window=2"), "use engine fast"),
    ((*RECONSTRUCT, "--method", "lbfgs", "--set", "patience=3"), "unknown field 'patience' of LBFGSConfig"),
    ((*RECONSTRUCT, "--config", "typo.yaml"), "unknown field 'iterationz'"),
    ((*RECONSTRUCT, "--config", "broken.yaml"), "broken.yaml: not valid YAML"),
    ((*RECONSTRUCT, "--config", "none.yaml"), "none.yaml: cannot be read"),
    (
        (*RECONSTRUCT, "--calibrate", "optics.overfocus=50"),
        "unknown field 'overfocus' of Optics; did you mean 'overfocus_A'?",
    ),
    (
        (*RECONSTRUCT, "--calibrate", "scan_step=0.5"),
        "unknown field 'scan_step' of Calibration; did you mean 'scan_step_A'?",
    ),
    ((*RECONSTRUCT, "--calibrate", "thickness_A"), "--calibrate thickness_A: expected name=value"),
    ((*RECONSTRUCT, "--calibrate", "thickness_A=thin"), "calibration: field 'thickness_A': expected a number, got 'thin'"),
    ((*RECONSTRUCT, "--calibrate", "scan_step_A=0"), "scan_step_A is 0.0; expected more than 0"),
    ((*RECONSTRUCT, "--calibrate", "optics.semiangle_mrad=90"), "semiangle_mrad 90 is 4.571 1/Å, beyond the detector's"),
    ((*RECONSTRUCT, "--calibration", "optics.yaml"), "calibration: field 'optics': unknown field 'defocus' of Optics"),
    ((*RECONSTRUCT, "--calibration", "broken.yaml"), "broken.yaml: not valid YAML"),
    ((*RECONSTRUCT, "--calibration", "none.yaml"), "none.yaml: cannot be read"),
    ((*RECONSTRUCT, "--device", "gpu"), "device 'gpu' is not known; choose auto, cpu, cuda, cuda:1 or mps"),
    ((*RECONSTRUCT, "--device", "cuda:99"), "device 'cuda:99' is not here"),
    ((*RECONSTRUCT, "--resume"), "new holds no run (no run.yaml); leave out --resume to start one"),
    ((*RECONSTRUCT, "--start", "none.tif"), "none.tif: no such file"),
    (
        (*RECONSTRUCT, "--start", "text.cif"),
        "--start text.cif: a CIF file is for the methods crystal and mepdiff, not for adam-best",
    ),
    ((*RECONSTRUCT, "--start", "deep.tif"), "deep.tif has shape (2, 3, 9, 9); expected (z, y, x)"),
    ((*RECONSTRUCT, "--start", "small.tif", *FAST), "the start volume has shape (2, 9, 9); this scan's object field has"),
    ((*RECONSTRUCT, "--probe", "none.h5"), "none.h5"),
    (
        ("reconstruct", "scan.h5", "--method", "adam-best", "--out", "old"),
        "old exists already; give another folder with --out, or --resume",
    ),
    (("reconstruct", "scan.h5", "--out", "text.h5"), "text.h5 is a file; give the name of a folder"),
    (("simulate", "none.cif", "new.h5"), "none.cif: no such file"),
    (("simulate", "text.cif", "new.h5"), "text.cif is not a readable CIF file"),
    (("simulate", CRYSTAL, "missing/new.h5"), "the folder missing does not exist; make it first"),
    (("simulate", CRYSTAL, "empty"), "empty is a folder; give the name of a file"),
    ((*SIMULATE, "--origin", "1", "2"), "--origin takes z y x in Å or 'random', got 1 2"),
    ((*SIMULATE, "--origin", "1", "2", "up"), "field 'origin_A': expected a number, got 'up'"),
    ((*SIMULATE, "--dose", "much"), "field 'dose_e_per_A2': expected a number, got 'much'"),
    ((*SIMULATE, "--dose", "0"), "dose_e_per_A2 is 0.0; expected > 0"),
    ((*SIMULATE, "--thickness", "3"), "thickness_A 3 is not a whole number of slices of 1.6 Å"),
    ((*SIMULATE, "--scan-shape", "0", "3"), "scan_shape is (0, 3); expected at least 1 x 1"),
    ((*SIMULATE, "--set", "optics.energy_eV=1"), "energy_eV is 1; expected 1e3 to 1e7"),
    ((*SIMULATE, "--set", "path=1"), "unknown field 'path' of SimulationConfig"),
    ((*SIMULATE, "--set", "detector_pixels=63"), "detector_pixels is 63; expected an even number from 8 to 1024"),
    ((*SIMULATE, "--optics", "optics.yaml"), "optics.yaml: field 'optics': unknown field 'defocus' of Optics"),
    (("evaluate", "--structures", "empty", "--out", "new"), "empty has no CIF files (*.cif)"),
    (("evaluate", "--structures", "none", "--out", "new"), "none: no such folder"),
    ((*EVALUATE, "--axes", "c,d"), "axis 'd' is not known; choose from a, b, c"),
    ((*EVALUATE, "--methods", "adam,magic"), "method 'magic' is not known"),
    ((*EVALUATE, "--methods", ","), "no methods; give at least one"),
    ((*EVALUATE, "--n", "0"), "--n is 0; expected at least 1"),
    ((*EVALUATE, "--set", "iterationz=3"), "unknown field 'iterationz'"),
    ((*EVALUATE, "--set", "adam=3"), "settings of method adam must be names and values, got 3"),
    ((*EVALUATE, "--simulation", "optics.yaml"), "unknown field 'defocus' of Optics"),
    ((*EVALUATE, "--device", "gpu"), "device 'gpu' is not known"),
    ((*EVALUATE, "--resume"), "new holds no evaluation (no evaluation.yaml); leave out --resume to start one"),
    (("evaluate", "--structures", CRYSTAL, "--out", "old"), "old exists already"),
    (("fit-probe", "scan.h5", "none.h5", "--out", "new.h5"), "none.h5: no such file"),
    (("fit-probe", "scan.h5", "--out", "text.h5"), "text.h5 exists already; give another name with --out"),
    (("fit-probe", "scan.h5", "--out", "missing/new.h5"), "the folder missing does not exist"),
    (("fit-probe", "scan.h5", "--out", "new.h5", "--resume"), "new.resume.safetensors is not there; leave out --resume"),
    (("fit-probe", "scan.h5", "--out", "new.h5", "--set", "support=0.5"), "support is 0.5; expected at least 1"),
    (("demo", "--out", "old"), "old holds other things than a demo; give another folder with --out"),
    (("demo", "--out", "new", "--device", "gpu"), "device 'gpu' is not known"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_INPUT, ids=[" ".join(a)[:60] for a, _ in BAD_INPUT])
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny: Path, capsys: Capture, arguments: Sequence[str], message: str
) -> None:
    write_inputs(tiny)
    before = files_in(tiny)
    folders = {p for p in tiny.rglob("*") if p.is_dir()}
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("mepdiff: ")
    assert message in shown.err
    assert shown.err.count("\n") == 1
    assert "\r" not in shown.err
    assert shown.err.endswith("\n")
    assert files_in(tiny) == before
    assert {p for p in tiny.rglob("*") if p.is_dir()} == folders


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["simulate"],
        ["simulate", CRYSTAL],
        ["simulate", CRYSTAL, "new.h5", "--axis", "d"],
        ["simulate", CRYSTAL, "new.h5", "--seed", "x"],
        ["simulate", CRYSTAL, "new.h5", "--scan-shape", "3"],
        ["reconstruct", "scan.h5"],
        ["reconstruct", "scan.h5", "--out", "new", "--fast"],
        ["reconstruct", "scan.h5", "--out", "new", "--step", "3"],  # no abbreviations
        ["evaluate", "--out", "new"],
        ["fit-probe", "--out", "new.h5"],
        ["info", "--jso"],
    ],
)
def test_wrong_arguments_are_one_line_and_exit_code_2(tiny: Path, capsys: Capture, arguments: list[str]) -> None:
    before = files_in(tiny)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    shown = capsys.readouterr()
    assert stop.value.code == 2
    assert shown.out == ""
    assert shown.err.startswith("mepdiff")
    assert shown.err.count("\n") == 1
    assert shown.err.rstrip().endswith("--help)")
    assert files_in(tiny) == before


def test_a_folder_that_was_there_before_stays(tiny: Path) -> None:
    write_inputs(tiny)
    assert main(["reconstruct", "scan.h5", "--method", "adam-best", "--start", "small.tif", *FAST, "--out", "empty"]) == 2
    assert list(Path("empty").iterdir()) == []
    assert main(["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "1", "--out", "empty"]) == 0


def test_a_scan_of_unknown_thickness_wants_the_number_of_slices(tiny: Path, capsys: Capture) -> None:
    scan = load_scan("scan.h5")
    save_scan(Scan(scan.counts, scan.positions_A, scan.optics, scan.k_step_invA, scan.electrons_per_pattern), "s.h5")
    options = ["reconstruct", "s.h5", "--method", "adam", *FAST, "--steps", "1", "--out", "run"]
    assert main(options) == 2
    assert "the scan does not say how thick the specimen is; give the number of slices" in capsys.readouterr().err
    assert not Path("run").exists()
    assert main([*options, "--slices", "3"]) == 0
    assert read_volume("run/volume.ome.tif").shape[0] == 3
    assert "ssim_2d" not in json.loads(Path("run/metrics.json").read_text())


def test_a_diverging_run_says_so_and_keeps_its_last_good_volume(tiny: Path, capsys: Capture) -> None:
    options = ["--method", "adam", *FAST, "--set", "learning_rate=1e3", "--set", "likelihood=poisson"]
    assert main(["reconstruct", "scan.h5", *options, "--out", "run"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("mepdiff: the reconstruction diverged in step ")
    assert "lower the learning rate (1000)" in lines[-1]
    assert yaml.safe_load(Path("run/run.yaml").read_text())["status"].startswith("diverged: the reconstruction diverged")


def test_a_run_that_fails_in_the_middle_closes_its_bar_first(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """The line about the error is not the tail of the progress bar."""
    interrupt(monkeypatch, 2, Diverged("the reconstruction diverged"))
    assert main(["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "4", "--out", "run"]) == 2
    assert capsys.readouterr().err.endswith("\nmepdiff: the reconstruction diverged\n")


# Ctrl-C


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int, error: BaseException | None = None) -> None:
    """Press Ctrl-C (or fail) when that many states have come."""
    seen: list[State] = []
    show = common.StateBar.__call__

    def pressed(bar: common.StateBar, state: State) -> None:
        show(bar, state)
        seen.append(state)
        if len(seen) == after:
            raise error or KeyboardInterrupt

    monkeypatch.setattr(common.StateBar, "__call__", pressed)


@pytest.mark.parametrize(
    "method",
    [["adam", "--set", "batch_size=2"], ["adam-best", "--set", "batch_size=3", "--set", "learning_rate=0.1"]],
    ids=["adam", "adam-best"],
)
def test_ctrl_c_leaves_a_run_that_resume_finishes(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, method: list[str]
) -> None:
    """With adam-best the answer is that of a step before Ctrl-C: the last ones overshoot."""
    options = ["reconstruct", "scan.h5", "--method", *method, *FAST, "--steps", "5"]
    assert main([*options, "--out", "whole"]) == 0
    best = int(table(Path("whole/history.csv"))[-1]["volume_step"])
    assert best == 5 if method[0] == "adam" else best <= 2
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        capsys.readouterr()
        assert main([*options, "--out", "run"]) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    last = shown.err.splitlines()[-1]
    command = f"reconstruct scan.h5 --method {method[0]} --out run --resume"
    assert last == f"mepdiff: stopped; go on with: mepdiff {command}"
    assert yaml.safe_load(Path("run/run.yaml").read_text())["status"] == "stopped"
    assert [row["step"] for row in table(Path("run/history.csv"))] == ["1", "2"]
    assert read_volume("run/volume.ome.tif").any()

    assert main(command.split()) == 0
    assert yaml.safe_load(Path("run/run.yaml").read_text())["status"] == "finished"
    assert {p.name for p in Path("run").iterdir()} == RUN_FILES
    assert without_time(table(Path("run/history.csv"))) == without_time(table(Path("whole/history.csv")))
    assert read_volume("run/volume.ome.tif").tobytes() == read_volume("whole/volume.ome.tif").tobytes()
    metrics = [json.loads(Path(name, "metrics.json").read_text()) for name in ("run", "whole")]
    for values in metrics:
        del values["seconds"]
    assert metrics[0] == metrics[1]


def test_resuming_a_finished_run_makes_its_report_again(best_run: Path, tiny: Path, capsys: Capture) -> None:
    shutil.copytree(best_run, "run")
    for name in ("report.html", "metrics.json", "slices.png"):
        Path("run", name).unlink()
    assert main(["reconstruct", "scan.h5", "--out", "run", "--resume"]) == 0
    assert {p.name for p in Path("run").iterdir()} == RUN_FILES
    for name in ("history.csv", "volume.ome.tif", "metrics.json"):
        assert Path("run", name).read_bytes() == (best_run / name).read_bytes()


def test_ctrl_c_after_the_last_step_is_resumed_too(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "2", "--out", "run"]
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        assert main(options) == 0
    assert not Path("run/metrics.json").exists()
    assert main([*options, "--resume"]) == 0
    assert [row["step"] for row in table(Path("run/history.csv"))] == ["1", "2"]
    assert {p.name for p in Path("run").iterdir()} == RUN_FILES


def test_resume_wants_the_same_scan_method_and_settings(best_run: Path, tiny: Path, capsys: Capture) -> None:
    shutil.copytree(best_run, "run")
    before = files_in(Path("run"))
    assert main(["reconstruct", "scan.h5", "--method", "adam-best", "--out", "run", "--resume", "--steps", "9"]) == 2
    assert "the settings given are not those of the run in run; leave them out" in capsys.readouterr().err
    assert main(["reconstruct", "scan.h5", "--method", "adam", "--out", "run", "--resume"]) == 2
    assert "the run in run is of method adam-best, not adam" in capsys.readouterr().err
    assert main(["simulate", CRYSTAL, "other.h5", *TINY, "--seed", "9"]) == 0
    capsys.readouterr()
    assert main(["reconstruct", "other.h5", "--out", "run", "--resume"]) == 2
    assert "other.h5 is not the scan that the run in run was made from" in capsys.readouterr().err
    assert files_in(Path("run")) == before


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("checkpoint.safetensors", b"nonsense", "is damaged"),
        ("run.yaml", b"method: adam\n", "lacks 'config'; this run cannot be resumed"),
        ("run.yaml", b"method: [adam\n", "not valid YAML"),
    ],
)
def test_a_damaged_run_folder_is_one_line(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str, content: bytes, message: str
) -> None:
    options = ["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "4", "--out", "run"]
    with monkeypatch.context() as patch:
        interrupt(patch, 1)
        assert main(options) == 0
    assert (Path("run") / name).exists()
    (Path("run") / name).write_bytes(content)
    capsys.readouterr()
    assert main([*options, "--resume"]) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(("error", "code"), [(KeyboardInterrupt(), 130), (MemoryError("9 GB"), 2)])
def test_ctrl_c_before_there_is_anything_and_too_little_memory(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: BaseException, code: int
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mepdiff_core.scan.load_scan", fail)
    assert main(["reconstruct", "scan.h5", "--out", "run"]) == code
    shown = capsys.readouterr()
    expected = "stopped; nothing was written" if code == 130 else "out of memory (9 GB)"
    assert shown.err.startswith(f"mepdiff: {expected}")
    assert shown.err.count("\n") == 1
    assert not Path("run").exists()


def test_our_own_fault_is_a_traceback(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python makes exit code 1 of it."""

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(reconstruct_command, "read_settings", fail)
    with pytest.raises(ZeroDivisionError):
        main(["reconstruct", "scan.h5", "--out", "run"])


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to send")
def test_a_real_ctrl_c_ends_a_real_process_with_a_run_to_resume(tiny: Path) -> None:
    options = ["reconstruct", "scan.h5", "--method", "adam", *FAST, "--steps", "1000000", "--out", "run"]

    def listen() -> None:
        """A shell starts what it puts into the background deaf to Ctrl-C, and that is inherited."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [sys.executable, "-m", "mepdiff_core", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen)
    try:
        deadline = time.monotonic() + 60
        while not Path("run/volume.ome.tif").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0, shown
    assert shown.splitlines()[-1].startswith("mepdiff: stopped; go on with: mepdiff reconstruct scan.h5")
    assert "Traceback" not in shown
    assert yaml.safe_load(Path("run/run.yaml").read_text())["status"] == "stopped"
    assert (Path("run") / "checkpoint.safetensors").exists()


# evaluate


@pytest.fixture
def structures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two crystals with a disordered one between them, and settings that make them small."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cifs"
    folder.mkdir()
    whole = Path(CRYSTAL).read_text()
    (folder / "a.cif").write_text(whole)
    (folder / "b.cif").write_text(whole.replace("Ti1 Ti 0.5 0.5 0.5 1", "Ti1 Ti 0.5 0.5 0.5 0.9"))
    (folder / "c.cif").write_text(whole.replace("3.905", "4.1"))
    (folder / "readme.txt").write_text("no crystal")
    Path("small.yaml").write_text("optics: {overfocus_A: 60}\nscan_shape: [2, 3]\ndetector_pixels: 64\nthickness_A: 3.2\n")
    return folder


EVALUATION = [
    "evaluate",
    "--structures",
    "cifs",
    "--out",
    "ev",
    "--simulation",
    "small.yaml",
    "--device",
    "cpu",
    "--set",
    "engine=fast",
]
EVALUATION += ["--set", "iterations=2", "--set", "lbfgs.learning_rates=[0.1]", "--set", "lbfgs.inner_iterations=2"]


def test_an_evaluation_has_a_row_for_every_crystal_and_method(structures: Path, capsys: Capture) -> None:
    assert main([*EVALUATION, "--methods", "adam,lbfgs,adam", "--json"]) == 0
    shown = capsys.readouterr()
    result = json.loads(shown.out)
    assert result["folder"] == "ev"
    rows = table(Path("ev/results.csv"))
    columns = ["crystal", "axis", "method", "ssim_2d", "ssim_3d", "psnr_dB", "nrmse", "r_factor", "r_heldout", "seconds"]
    columns += ["network_calls", "failure_class", "error"]
    assert [name for name in rows[0] if name in columns] == columns  # people read these; there may be more
    keys = [(row["crystal"], row["axis"], row["method"]) for row in rows]
    assert keys == [(crystal, "c", method) for crystal in "abc" for method in ("adam", "lbfgs")]
    assert len(result["rows"]) == 6
    for row in rows:
        if row["crystal"] == "b":
            assert "site Ti1 is occupied to 0.9; only ordered crystals can be simulated" in row["error"]
            assert row["ssim_2d"] == ""
        else:
            assert row["error"] == ""
            assert 0 < float(row["r_factor"]) < 1
            assert 0 < float(row["r_heldout"]) < 1
            assert row["failure_class"] in ("near perfect", "slices misordered", "blurred in depth", "wrong structure")
    assert [(s["method"], s["over"]) for s in result["summary"]] == [
        *(("adam", "mean of 2"), ("adam", "median of 2"), ("lbfgs", "mean of 2"), ("lbfgs", "median of 2"))
    ]
    mean = np.mean([float(row["ssim_2d"]) for row in rows if row["method"] == "adam" and row["ssim_2d"]])
    assert result["summary"][0]["ssim_2d"] == pytest.approx(mean)
    assert {p.name for p in Path("ev/runs").iterdir()} == {"a_c_adam", "a_c_lbfgs", "c_c_adam", "c_c_lbfgs"}
    page = Path("ev/report.html").read_text()
    assert page.count('src="data:image/png;base64,') == 6  # slices and depth of two, outcomes, patterns
    assert "http" not in page
    assert "occupied to 0.9" in page
    origins = [load_scan(f"ev/scans/{name}_c.h5").info["simulation"]["origin_A"] for name in "ac"]
    assert origins[0] != origins[1]


def count_runs(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    """The runs that are made from now on; Ctrl-C comes after one of them, before its row is written."""
    made: list[str] = []

    class Counted(evaluation_task.Run):
        def states(self) -> Iterator[State]:
            yield from super().states()
            made.append(self.folder.path.name)
            if len(made) == stop_after:
                raise KeyboardInterrupt

    monkeypatch.setattr(evaluation_task, "Run", Counted)
    return made


def test_an_interrupted_evaluation_goes_on_without_doing_anything_twice(
    structures: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    options = [*EVALUATION, "--methods", "adam"]
    with monkeypatch.context() as patch:
        count_runs(patch, stop_after=2)
        assert main(options) == 0
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines()[-1] == "mepdiff: stopped; the same command with --resume goes on"
    before = table(Path("ev/results.csv"))
    assert [row["crystal"] for row in before] == ["a", "b"]
    kept = {name: Path("ev/runs", name, "history.csv").read_bytes() for name in ("a_c_adam", "c_c_adam")}
    volume = Path("ev/runs/a_c_adam/volume.ome.tif").stat().st_mtime_ns

    assert main(options) == 2  # without --resume the folder is not touched
    assert "ev exists already" in capsys.readouterr().err

    with monkeypatch.context() as patch:
        made = count_runs(patch)
        assert main([*options, "--resume"]) == 0
    after = table(Path("ev/results.csv"))
    assert made == ["c_c_adam"]
    assert after[:2] == before
    assert (after[2]["crystal"], after[2]["error"]) == ("c", "")
    assert {name: Path("ev/runs", name, "history.csv").read_bytes() for name in kept} == kept
    assert Path("ev/runs/a_c_adam/volume.ome.tif").stat().st_mtime_ns == volume
    assert Path("ev/report.html").exists()

    assert main([*options, "--set", "iterations=3", "--resume"]) == 2
    assert "the evaluation in ev has other methods" in capsys.readouterr().err.splitlines()[-1]


def test_axes_and_a_number_choose_the_specimens(structures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is simulated or reconstructed here."""
    asked: list[tuple[str, str, int]] = []

    def simulate(path: Path, config: SimulationConfig) -> list[None]:
        asked.append((path.name, config.axis, config.seed))
        raise InputError("not today")

    monkeypatch.setattr(evaluation_task, "simulate_steps", simulate)
    assert main([*EVALUATION, "--methods", "adam", "--axes", "a,c,a", "--n", "2"]) == 0
    assert [case[:2] for case in asked] == [("a.cif", "a"), ("a.cif", "c"), ("b.cif", "a"), ("b.cif", "c")]
    assert len({seed for *_, seed in asked}) == 4
    assert [row["error"] for row in table(Path("ev/results.csv"))] == ["not today"] * 4


def test_every_crystal_failing_is_still_a_table(structures: Path, capsys: Capture) -> None:
    for name in ("a.cif", "c.cif"):
        (structures / name).unlink()
    assert main([*EVALUATION, "--methods", "adam"]) == 0
    assert "b along c, adam: " in capsys.readouterr().out
    assert [row["crystal"] for row in table(Path("ev/results.csv"))] == ["b"]
    assert Path("ev/report.html").exists()


# progress


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_bar_appears_with_its_first_step_and_ends_its_line(capsys: Capture, count: int) -> None:
    with common.ProgressBar("working", "piece") as bar:
        assert capsys.readouterr().err == ""
        for done in range(1, count + 1):
            bar.show(done, 3, f"note {done}")
    shown = capsys.readouterr()
    assert shown.out == ""
    if count == 0:
        assert shown.err == ""
    else:
        assert shown.err.endswith("\n")
        assert shown.err.count("\n") == 1
        assert f"{count}/3" in shown.err
        assert f"note {count}" in shown.err


def test_a_message_between_two_steps_moves_nothing(capsys: Capture) -> None:
    show: Callable[..., None]
    with common.ProgressBar("working") as bar:
        show = bar.show
        show(1, 4, "first")
        show(1, 4, "still the first")
    assert "1/4" in capsys.readouterr().err.splitlines()[-1]
