"""PtyRAD's parameter files as our settings; its own examples are read."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from mepdiff_core.calibration import calibrate, calibration_of
from mepdiff_core.cli import main
from mepdiff_core.config import to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.optics import wavelength_A
from mepdiff_core.ptyrad_params import read_ptyrad_params
from mepdiff_core.reconstruction import method_config
from mepdiff_core.scan import Scan, load_scan, raster_positions, save_scan

SPEC = importlib.util.find_spec("ptyrad")
assert SPEC is not None
assert SPEC.origin is not None
EXAMPLES = sorted((Path(SPEC.origin).parent / "starter" / "params").rglob("*.yaml"))
INIT = {
    "probe_kv": 300,
    "probe_conv_angle": 21.4,
    "probe_aberrations": {"C10": 60, "Cs": 5000, "C12": 20, "phi12": 30},
    "meas_Npix": 64,
    "pos_N_scan_slow": 6,
    "pos_N_scan_fast": 7,
    "pos_scan_step_size": 0.73,
    "obj_Nlayer": 4,
    "obj_slice_thickness": 1.6,
    "meas_calibration": {"mode": "kMax", "value": 2.5},
}


def write(folder: Path, **sections: object) -> Path:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"init_params": INIT, **sections}))
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=[p.stem for p in EXAMPLES])
def test_ptyrads_own_examples_are_read(path: Path) -> None:
    params = read_ptyrad_params(path)
    method_config(params.method, params.settings_of(params.method))
    params.prepare_config()
    assert params.calibration["optics"]["energy_eV"] > 0
    assert not [line for line in params.left_out if "unknown" in line]


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5


def test_what_has_a_place_is_taken(tmp_path: Path, small_scan: Scan) -> None:
    path = write(
        tmp_path,
        model_params={
            "update_params": {"objp": {"start_iter": 1, "lr": 1e-3}, "probe_pos_shifts": {"start_iter": 5, "lr": 1e-3}}
        },
        loss_params={"loss_single": {"state": False}, "loss_poissn": {"state": True}},
        constraint_params={
            "obj_zblur": {"start_iter": 1, "std": 1.5},
            "objp_postiv": {"start_iter": 1, "relax": 0},
            "kr_filter": {"start_iter": None},
        },
        recon_params={"NITER": 30, "BATCH_SIZE": {"size": 16, "grad_accumulation": 1}, "SAVE_ITERS": 10},
    )
    params = read_ptyrad_params(path)
    config = method_config("adam", params.settings_of("adam"))
    values = to_dict(config)
    assert (values["iterations"], values["batch_size"], values["learning_rate"]) == (30, 16, 1e-3)
    assert (values["likelihood"], values["slices"], values["slice_thickness_A"]) == ("poisson", 4, 1.6)
    assert values["constraints"] == {"positivity": True, "depth_blur_slices": 1.5, "kz_beta": 0.0, "kz_alpha": 1.0}
    assert (values["engine"], values["refine"]["start"]) == ("fast", 5)
    assert values["refine"]["position_rate_A"] == 0.05
    assert params.prepare == {}
    scan = calibrate(small_scan, params.calibration_for(small_scan))
    assert calibration_of(scan).scan_step_A == pytest.approx(0.73)
    assert scan.optics.aberrations == {"C12": 20.0, "phi12": 30.0}
    assert scan.k_max_invA == pytest.approx(2.5)
    assert params.left_out == ["the rates of what is refined (position_rate_A): ours, for theirs are of other units"]


def test_a_file_without_calibration_gets_ptyrads(tmp_path: Path, small_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Patterns in a row, as PtyRAD's users have them: converted, and reconstructed in one go."""
    monkeypatch.chdir(tmp_path)
    np.save("raw.npy", small_scan.counts.reshape(42, 64, 64))
    params = ["--ptyrad-params", str(write(tmp_path)), "--calibrate", "electrons_per_count=1"]
    assert main(["convert", "raw.npy", "scan.h5", *params]) == 0
    scan = load_scan("scan.h5")
    np.testing.assert_array_equal(scan.counts, small_scan.counts)
    assert scan.k_max_invA == pytest.approx(2.5)
    assert (scan.optics.overfocus_A, scan.optics.Cs_A, scan.optics.aberrations["C12"]) == (60, 5000, 20)
    run = ["reconstruct", "raw.npy", *params, "--out", "run", "--steps", "1", "--set", "engine=fast", "--device", "cpu"]
    assert main(run) == 0
    assert yaml.safe_load(Path("run/run.yaml").read_text())["config"]["slices"] == 4
    np.testing.assert_array_equal(load_scan("run.h5").positions_A, scan.positions_A)


def test_modes_of_a_refined_probe_are_taken(tmp_path: Path) -> None:
    active = {"objp": {"start_iter": 1, "lr": 1e-3}, "probe": {"start_iter": 1, "lr": 1e-3}}
    path = write(tmp_path, model_params={"update_params": active})
    data = yaml.safe_load(path.read_text())
    data["init_params"] |= {"probe_pmode_max": 4, "probe_pmode_init_pows": [0.02]}
    path.write_text(yaml.safe_dump(data))
    params = read_ptyrad_params(path)
    assert params.settings["refine"]["probe_modes"] == 4
    method_config("adam", params.settings_of("adam"))
    assert not [line for line in params.left_out if "pmode" in line]
    del active["probe"]
    data["model_params"]["update_params"] = active
    path.write_text(yaml.safe_dump(data))
    assert [line for line in read_ptyrad_params(path).left_out if line.startswith("probe_pmode_max 4")]


@pytest.mark.parametrize("mode", ["dx", "dk", "kMax", "da", "angleMax", "n_alpha", "RBF"])
def test_every_way_to_calibrate_gives_the_same(tmp_path: Path, small_scan: Scan, mode: str) -> None:
    wavelength, aperture = wavelength_A(300e3), small_scan.optics.k_aperture_invA
    values = {
        "dx": 0.2,
        "dk": 5 / 64,
        "kMax": 2.5,
        "da": 5 / 64 * wavelength * 1e3,
        "angleMax": 2.5 * wavelength * 1e3,
        "n_alpha": 2.5 / aperture,
        "RBF": aperture / (5 / 64),
    }
    path = write(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["init_params"]["meas_calibration"] = {"mode": mode, "value": float(values[mode])}
    path.write_text(yaml.safe_dump(data))
    assert read_ptyrad_params(path).calibration_for(small_scan)["k_step_invA"] == pytest.approx(5 / 64, rel=1e-9)


def test_a_rotation_turns_as_ptyrads_does(tmp_path: Path) -> None:
    """PtyRAD multiplies (y, x) from the right by [[c, s], [-s, c]]."""
    path = write(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["init_params"]["pos_scan_affine"] = [1.1, 0, 20, 0]
    path.write_text(yaml.safe_dump(data))
    calibration = read_ptyrad_params(path).calibration
    ours = raster_positions((4, 5), calibration["scan_step_A"], calibration["scan_rotation_deg"])
    c, s = np.cos(np.radians(20)), np.sin(np.radians(20))
    theirs = raster_positions((4, 5), 0.73) @ (1.1 * np.array([[c, s], [-s, c]]))
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_what_has_none_is_named(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        loss_params={"loss_single": {"state": True, "dp_pow": 0.5}, "loss_sparse": {"state": True}},
        constraint_params={"complex_ratio": {"start_iter": 1}, "obj_zblur": {"start_iter": 10, "std": 1}},
        model_params={"optimizer_params": {"name": "Muon"}, "update_params": {"obja": {"start_iter": 1, "lr": 1e-3}}},
        recon_params={"GROUP_MODE": "compact", "NEW": 3},
    )
    block = read_ptyrad_params(path).words().splitlines()
    assert block[0] == "Of PtyRAD's parameters these are not taken:"
    names = [line.strip().partition(":")[0] for line in block[1:]]
    assert set(names) == {"loss_sparse", "complex_ratio", "obj_zblur", "optimizer Muon", "obja", "GROUP_MODE", "NEW"}


def test_the_scan_is_prepared_first_and_then_reconstructed(
    small_scan: Scan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    flipped = replace(small_scan, counts=small_scan.counts.swapaxes(2, 3), thickness_A=None)
    save_scan(calibrate(flipped, {"scan_step_A": 0.5, "scan_rotation_deg": 0.0, "optics": {"Cs_A": 0.0}}), "raw.h5")
    path = write(tmp_path, recon_params={"NITER": 1}, loss_params={"loss_sparse": {"state": True}})
    data = yaml.safe_load(path.read_text())
    data["init_params"]["meas_flipT"] = [0, 0, 1]
    path.write_text(yaml.safe_dump(data))
    run = [
        "reconstruct",
        "raw.h5",
        "--out",
        "run",
        "--ptyrad-params",
        "params.yaml",
        "--device",
        "cpu",
        "--set",
        "engine=fast",
    ]
    assert main(run) == 2
    assert "mepdiff prepare raw.h5 READY.h5 --ptyrad-params params.yaml" in capsys.readouterr().err
    assert main(["prepare", "raw.h5", "ready.h5", "--ptyrad-params", "params.yaml"]) == 0
    assert "these are not taken:\n  loss_sparse" in capsys.readouterr().err
    ready = load_scan("ready.h5")
    assert np.array_equal(ready.counts, small_scan.counts)
    assert calibration_of(ready).scan_step_A == pytest.approx(0.73)
    run[1] = "ready.h5"
    assert main(run) == 0
    record = yaml.safe_load(Path("run/run.yaml").read_text())
    assert (record["method"], record["config"]["iterations"], record["config"]["slices"]) == ("adam", 1, 4)
    assert record["prepared"][0]["config"]["transpose"] is True


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1", "is no parameter file of PtyRAD"),
        ("init_params: 3", "init_params is 3; expected names and values"),
        ("init_params: {probe_kv: much}", "has a value that PtyRAD does not take"),
        ("init_params: {meas_calibration: {mode: eye, value: 1}}", "has mode 'eye'"),
        ("init_params: {meas_flipT: [1, 0]}", "has a value that PtyRAD does not take"),
        ("init_params: {probe_aberrations: 3}", "has a value that PtyRAD does not take"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_ptyrad_params(tmp_path / "p.yaml")
    assert "\n" not in str(error.value)


def test_another_scan_is_noticed(tmp_path: Path, small_scan: Scan) -> None:
    path = write(tmp_path)
    data = yaml.safe_load(path.read_text())
    data["init_params"]["pos_N_scan_fast"] = 128
    path.write_text(yaml.safe_dump(data))
    with pytest.raises(InputError, match="pos_N_scan_fast is 128; the scan has 7"):
        read_ptyrad_params(path).calibration_for(small_scan)
