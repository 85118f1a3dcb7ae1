"""From crystals to a store and to crops: made again bit for bit, finished after a stop, split by crystal."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from mepdiff_core import store as store_module
from mepdiff_core.cli import main
from mepdiff_core.crystal_set import SPLITS, CrystalSet, reduced_formula
from mepdiff_core.crystals import Crystal
from mepdiff_core.dataset import BuildConfig, build
from mepdiff_core.errors import InputError
from mepdiff_core.sites import ReadOptions
from mepdiff_core.store import STEP_RAD, VolumeConfig, VolumeStore, quantize
from mepdiff_core.training_data import CropConfig, CrystalCrops, StoreCrops, turned_crop

Capture = pytest.CaptureFixture[str]
SMALL = VolumeConfig(slices=4, pixels=24, renderer="torch")


def cubic(name: str, a: float, numbers: list[int], kind: str = "") -> Crystal:
    places = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]])
    return Crystal(name, a * np.eye(3), np.array(numbers), places[: len(numbers)], kind)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve perovskites as POSCAR files, one good CIF and files that are none."""
    path = tmp_path_factory.mktemp("structures")
    (path / "more").mkdir()
    for i in range(12):
        lines = [f"ABO3 {i}", "1.0", *(" ".join(map(str, row)) for row in (3.8 + 0.02 * i) * np.eye(3)), "Sr Ti O", "1 1 3"]
        lines += ["Direct", "0 0 0", ".5 .5 .5", ".5 .5 0", ".5 0 .5", "0 .5 .5"]
        (path / "more" / f"{i:02}.poscar").write_text("\n".join(lines))
    with resources.as_file(resources.files("mepdiff_core") / "data" / "SrTiO3.cif") as crystal:
        shutil.copy(crystal, path / "good.cif")
    (path / "notes.txt").write_text("no crystal")
    (path / "broken.cif").write_text("data_x\n_cell_length_a 3\n")
    return path


@pytest.fixture(scope="module")
def request_(folder: Path) -> BuildConfig:
    return BuildConfig(str(folder), volumes=SMALL)


@pytest.fixture(scope="module")
def whole(request_: BuildConfig, tmp_path_factory: pytest.TempPathFactory) -> VolumeStore:
    """A store of 39 volumes in five shards, uninterrupted."""
    path = tmp_path_factory.mktemp("stores") / "whole.zarr"
    list(build(request_, path))
    return VolumeStore(path)


def contents(store: VolumeStore) -> dict[str, bytes]:
    return {str(p.relative_to(store.path)): p.read_bytes() for p in sorted(store.path.rglob("*")) if p.is_file()}


def test_every_crystal_is_there_along_every_axis(whole: VolumeStore) -> None:
    assert len(whole) == 39
    assert whole.shards == 5
    assert whole.missing_shards() == []
    assert [whole.record(i).axis for i in range(6)] == ["a", "b", "c"] * 2
    assert [whole.crystals[whole.record(i).crystal].name for i in (0, 3)] == ["good", "00"]
    with (whole.path / "rejected.csv").open(newline="") as file:
        rows = {row["file"]: row["reason"] for row in csv.DictReader(file)}
    assert set(rows) == {"notes.txt", "broken.cif"}
    assert "no structure file" in rows["notes.txt"]


def test_any_volume_is_made_again_bit_for_bit(whole: VolumeStore) -> None:
    for index in (0, 17, 38):
        again = whole.make_volume(index)
        np.testing.assert_array_equal(np.round(whole.volume(index) / STEP_RAD).astype(np.int16), again)
        assert again.max() > 1000
    assert len({whole.volume(i).tobytes() for i in range(39)}) == 39


def test_abtem_is_the_default_and_agrees_with_the_other(whole: VolumeStore, request_: BuildConfig, tmp_path: Path) -> None:
    assert VolumeConfig().renderer == "abtem"
    config = BuildConfig(request_.structures, volumes=VolumeConfig(slices=4, pixels=24))
    list(build(config, tmp_path / "abtem.zarr"))
    store = VolumeStore(tmp_path / "abtem.zarr")
    assert store.renderer.startswith("abtem 1.")
    for index in (0, 20, 38):
        np.testing.assert_allclose(store.volume(index), whole.volume(index), atol=1.01 * STEP_RAD)
        np.testing.assert_allclose(store.volume(index), STEP_RAD * store.make_volume(index), atol=1e-6)


def test_storing_costs_less_than_3e_minus_4_rad() -> None:
    phases = np.random.default_rng(0).uniform(-0.1, 3.2, 10_000)
    assert np.abs(quantize(phases) * STEP_RAD - phases).max() <= STEP_RAD / 2 + 1e-12
    with pytest.raises(InputError, match=r"phase of 3\.50 rad"):
        quantize(np.array([3.5]))


def test_one_in_a_hundred_atoms_is_missing(perovskite: Crystal) -> None:
    crystals = CrystalSet.pack([perovskite])
    removed, total = 0, 0
    for i in range(30):
        record = store_module.VolumeRecord(0, "c", (0.0, 0.0, 0.0), (0, i))
        box = store_module.box_of(crystals, record, VolumeConfig())
        full = store_module.box_of(crystals, record, VolumeConfig(vacancies=0))
        removed, total = removed + len(full.numbers) - len(box.numbers), total + len(full.numbers)
    assert removed / total == pytest.approx(0.01, abs=0.002)


def test_a_stopped_build_resumes_to_the_same_store(whole: VolumeStore, request_: BuildConfig, tmp_path: Path) -> None:
    path = tmp_path / "stopped.zarr"
    steps = build(request_, path)
    while next(steps).done < 8 or not (path / "volumes").exists():
        pass
    steps.close()
    begun = VolumeStore(path)
    assert 0 < len(begun.missing_shards()) < 5
    with pytest.raises(InputError, match="not rendered yet"):
        begun.volume(38)
    (path / "volumes" / "c" / "4.partial").write_bytes(b"half a shard")  # as a killed process leaves it
    list(build(request_, path, resume=True))
    assert contents(VolumeStore(path)) == contents(whole)
    assert [s.done for s in build(request_, path, resume=True)] == [39]  # nothing is left to do


def test_two_workers_make_the_same_store_though_one_is_killed(
    whole: VolumeStore, request_: BuildConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "killed.zarr"
    before = {p.pid for p in psutil.Process().children(recursive=True)}
    killed = False
    for step in build(request_, path, workers=2):
        if step.stage == "volumes" and not killed and step.done > 0:
            workers = [
                p
                for p in psutil.Process().children(recursive=True)
                if p.pid not in before and "spawn_main" in " ".join(p.cmdline())
            ]
            assert len(workers) == 2
            workers[0].kill()
            killed = True
    assert killed
    assert step.done == step.total == 39
    assert contents(VolumeStore(path)) == contents(whole)


def test_a_scheduler_that_does_not_answer_is_one_line(request_: BuildConfig, tmp_path: Path, capsys: Capture) -> None:
    options = ["--structures", request_.structures, "--out", str(tmp_path / "s.zarr"), "--scheduler", "tcp://127.0.0.1:9"]
    assert main(["dataset", "build", *options]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in line


def test_a_running_scheduler_is_used(whole: VolumeStore, request_: BuildConfig, tmp_path: Path) -> None:
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster:
        list(build(request_, tmp_path / "s.zarr", scheduler=cluster.scheduler_address))
    assert contents(VolumeStore(tmp_path / "s.zarr")) == contents(whole)


# crystals packed and split


def test_packed_crystals_come_back(tmp_path: Path, perovskite: Crystal) -> None:
    made = [perovskite, cubic("Å ü", 4.0, [29], "225 Fm-3m"), cubic("", 5.0, [11, 17])]
    CrystalSet.pack(made).save(tmp_path / "crystals.safetensors")
    loaded = CrystalSet.load(tmp_path / "crystals.safetensors")
    assert len(loaded) == 3
    for crystal, again in zip(made, loaded, strict=True):
        assert (crystal.name, crystal.structure_type) == (again.name, again.structure_type)
        for name in ("cell_A", "numbers", "fractional"):
            np.testing.assert_array_equal(getattr(crystal, name), getattr(again, name))
    assert [c.name for c in loaded[1:]] == ["Å ü", ""]
    assert loaded[-1].name == ""
    with pytest.raises(IndexError):
        loaded[3]


def test_like_crystals_stay_together_and_the_parts_have_their_sizes() -> None:
    crystals = [cubic(f"{a}-{b}", 4.0, [a, b], "221 Pm-3m") for a in range(3, 53) for b in range(3, 53) if a != b]
    doubled = [cubic("double", 8.0, [a, a, b, b], "221 Pm-3m") for a, b in ((3, 4), (20, 30), (50, 9))]
    packed = CrystalSet.pack([*crystals, *doubled])
    places = [packed.split_of(i) for i in range(len(packed))]
    assert np.mean([p == "train" for p in places]) == pytest.approx(0.9, abs=0.02)
    assert np.mean([p == "test" for p in places]) == pytest.approx(0.05, abs=0.02)
    by_name = {c.name: p for c, p in zip(crystals, places, strict=False)}
    assert [by_name["3-4"], by_name["20-30"], by_name["50-9"]] == places[-3:]  # the same composition and type
    assert all(by_name[f"{a}-{b}"] == by_name[f"{b}-{a}"] for a in range(3, 20) for b in range(3, 20) if a != b)
    assert sorted(np.concatenate([packed.indices(s) for s in SPLITS]).tolist()) == [*range(len(packed))]
    assert reduced_formula(np.array([8, 22, 8, 38, 8, 8, 22, 8, 38, 8])) == "8:3 22:1 38:1"


def test_volumes_of_a_crystal_are_in_one_part(whole: VolumeStore) -> None:
    parts = [whole.indices(split) for split in SPLITS]
    assert sorted(np.concatenate(parts).tolist()) == [*range(39)]
    owners = [{whole.record(int(i)).crystal for i in part} for part in parts]
    assert not owners[0] & owners[1]
    assert not (owners[0] | owners[1]) & owners[2]


# crops


def test_rendered_crops_repeat_and_change_with_the_epoch(perovskite: Crystal) -> None:
    crystals = CrystalSet.pack([perovskite, cubic("Cu", 3.6, [29])])
    crops = CrystalCrops(crystals, None)
    first = crops[1]
    assert first.shape == (1, 8, 64, 64)
    assert first.dtype == torch.float32
    assert 0.2 < float(first.max()) < 1.5
    assert torch.equal(first, CrystalCrops(crystals, None)[1])
    torch.testing.assert_close(crops.batch([0, 1])[1], first, atol=1e-6, rtol=0)
    crops.epoch = 1
    assert not torch.allclose(crops[1], first, atol=0.01)
    loader = torch.utils.data.DataLoader(CrystalCrops(crystals, None), batch_size=2)
    assert next(iter(loader)).shape == (2, 1, 8, 64, 64)
    with pytest.raises(IndexError):
        crops[2]


def test_a_rendered_crop_is_the_middle_of_a_larger_one(perovskite: Crystal) -> None:
    """No seam at its edge: a margin twice as wide changes nothing that matters."""
    crystals = CrystalSet.pack([perovskite])
    origin_moves = CropConfig(rotate=False, vacancies=0.0, margin_A=4.0)
    one = CrystalCrops(crystals, None, origin_moves)
    box = one.draw(0)
    wide = store_module.cut_box(perovskite, "abc"[_axis_of(origin_moves)], (12.8, 28.8, 28.8), _origin(one, perovskite, 4.0))
    from mepdiff_core.renderer import Renderer

    reference = Renderer((144, 144), 0.2, 8, 1.6).render([wide])[0, :, 40:-40, 40:-40]
    assert len(wide.numbers) > len(box.numbers)
    np.testing.assert_allclose(one[0][0], reference, atol=1e-3)


def _axis_of(config: CropConfig) -> int:
    rng = np.random.default_rng([config.seed, 0, 0])
    rng.random(3)
    return int(rng.integers(3))


def _origin(crops: CrystalCrops, crystal: Crystal, wider: float) -> tuple[float, float, float]:
    rng = np.random.default_rng([crops.config.seed, 0, 0])
    z, y, x = rng.random(3) * np.linalg.norm(crystal.cell_A, axis=1).max()
    return float(z), float(y) - wider, float(x) - wider


def test_stored_crops_are_turned_about_the_beam(whole: VolumeStore) -> None:
    config = CropConfig(slices=2, pixels=12)
    crops = StoreCrops(whole, None, config)
    assert len(crops) == 39
    assert crops[5].shape == (1, 2, 12, 12)
    assert torch.equal(crops[5], StoreCrops(whole, None, config)[5])
    straight = StoreCrops(whole, None, CropConfig(slices=4, pixels=12, rotate=False))
    volume, crop = whole.volume(7), straight[7][0].numpy()
    windows = np.lib.stride_tricks.sliding_window_view(volume, (4, 12, 12))[0]
    assert np.abs(windows - crop).max((2, 3, 4)).min() < 1e-5  # an exact part of the volume
    with pytest.raises(InputError, match="do not fit volumes"):
        StoreCrops(whole, None, CropConfig())


def test_a_crop_turned_by_a_quarter_is_the_volume_turned() -> None:
    volume = torch.rand(2, 21, 21)
    crop = turned_crop(volume, np.pi / 2, np.zeros(2), 11)
    expected = volume[:, 5:16, 5:16]
    assert any(torch.allclose(crop, torch.rot90(expected, k, (1, 2)), atol=1e-5) for k in (1, 3))
    smooth = torch.cos(torch.linspace(0, 3, 41))[None, :, None] * torch.cos(torch.linspace(0, 2, 41))[None, None, :]
    there = turned_crop(smooth, 0.4, np.array([1.5, -2.0]), 5)
    # the middle of the crop lies at the centre asked for
    assert float(there[0, 2, 2]) == pytest.approx(float(np.cos(3 * 21.5 / 40) * np.cos(2 * 18 / 40)), abs=2e-3)


def test_a_part_without_crystals_is_refused(perovskite: Crystal) -> None:
    crystals = CrystalSet.pack([perovskite])
    other = next(s for s in SPLITS if s != crystals.split_of(0))
    with pytest.raises(InputError, match=f"none of the 1 crystals is in the part '{other}'"):
        CrystalCrops(crystals, other)


def test_crops_need_no_crystal_library(tmp_path: Path, perovskite: Crystal) -> None:
    import subprocess
    import sys

    CrystalSet.pack([perovskite]).save(tmp_path / "c.safetensors")
    code = (
        "import json, sys\n"
        "from mepdiff_core.crystal_set import CrystalSet\n"
        "from mepdiff_core.training_data import CrystalCrops\n"
        f"CrystalCrops(CrystalSet.load({str(tmp_path / 'c.safetensors')!r}), None)[0]\n"
        "loaded = {m.split('.')[0] for m in sys.modules}\n"
        "print(json.dumps(sorted(loaded & {'gemmi', 'abtem', 'zarr', 'dask', 'scipy', 'ptyrad'})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


# the command line


def test_build_info_preview(folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--set", "volumes.slices=4", "--set", "volumes.pixels=24", "--renderer", "torch", "--json"]
    assert main(["dataset", "build", "--structures", str(folder), "--out", "s.zarr", *options]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["volumes"], made["crystals"], made["rejected"]) == (39, 13, 2)
    assert main(["dataset", "info", "s.zarr", "--json"]) == 0
    info = json.loads(capsys.readouterr().out)
    assert info["elements"] == {"O": 13, "Sr": 13, "Ti": 13}
    assert sum(info["phase_rad"]["voxels"]) == 39 * 4 * 24 * 24
    assert sum(info["splits"].values()) == 13
    assert main(["dataset", "info", "s.zarr"]) == 0
    assert "39 of 39 volumes of 13 crystals" in capsys.readouterr().out
    assert main(["dataset", "preview", "s.zarr", "--n", "5"]) == 0
    assert (tmp_path / "s.png").read_bytes()[:4] == b"\x89PNG"


def test_prototypes_are_built(tmp_path: Path, capsys: Capture) -> None:
    options = ["--n", "6", "--seed", "3", "--set", "volumes.slices=2", "--set", "volumes.pixels=16", "--renderer", "torch"]
    assert main(["dataset", "build", "--structures", "prototypes", "--out", str(tmp_path / "p.zarr"), *options]) == 0
    store = VolumeStore(tmp_path / "p.zarr")
    assert len(store) == 18
    assert store.source == "prototypes, n=6, seed=3"
    assert all(crystal.structure_type for crystal in store.crystals)


def damage_layout(path: Path) -> None:
    description = json.loads((path / "zarr.json").read_text())
    description["attributes"]["format_version"] = 0
    (path / "zarr.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_layout, "has layout 0; this mepdiff reads layout 1"),
        (lambda p: (p / "zarr.json").unlink(), "is no store of volumes"),
        (lambda p: (p / "zarr.json").write_text("{"), "cannot be read as a Zarr 3 store"),
        (lambda p: shutil.rmtree(p / "volumes"), "is not complete"),
        (lambda p: (p / "crystals.safetensors").write_bytes(b"x"), "is damaged"),
        (lambda p: shutil.rmtree(p), "no such store"),
    ],
)
def test_a_damaged_store_is_one_line(
    whole: VolumeStore, tmp_path: Path, capsys: Capture, damage: Callable[[Path], Any], words: str
) -> None:
    path = tmp_path / "copy.zarr"
    shutil.copytree(whole.path, path)
    damage(path)
    assert main(["dataset", "info", str(path)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line


def test_nothing_to_build_from_is_one_line_and_leaves_nothing(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "a.txt").write_text("a")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "b.cif").write_text("data_x")
    for name, words in (
        ("empty", "holds no structure files (0 others)"),
        ("texts", "holds no structure files (1 others)"),
        ("bad", "holds no crystal that can be used"),
        ("nowhere", "no such folder"),
    ):
        out = tmp_path / "out.zarr"
        assert main(["dataset", "build", "--structures", str(tmp_path / name), "--out", str(out)]) == 2
        assert words in capsys.readouterr().err.strip().splitlines()[-1]
        assert not out.exists()


def test_another_store_in_the_way_and_another_request_are_refused(
    whole: VolumeStore, request_: BuildConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="exists already"):
        list(build(request_, whole.path))
    other = BuildConfig(request_.structures, volumes=VolumeConfig(slices=4, pixels=24, seed=1, renderer="torch"))
    with pytest.raises(InputError, match="begun with other settings"):
        list(build(other, whole.path, resume=True))
    sampled = BuildConfig(request_.structures, read=ReadOptions("sample"), volumes=SMALL)
    with pytest.raises(InputError, match="begun with other settings"):
        list(build(sampled, whole.path, resume=True))


def test_a_disk_that_fills_keeps_what_is_there(
    request_: BuildConfig, whole: VolumeStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zarr.storage._local as local

    path = tmp_path / "full.zarr"
    put = local._put
    shards = 0

    def full(target: Path, *arguments: Any, **options: Any) -> Any:
        nonlocal shards
        if "volumes" in target.parts and "c" in target.parts:
            shards += 1
            if shards == 3:
                raise OSError(28, "No space left on device")
        return put(target, *arguments, **options)

    monkeypatch.setattr(local, "_put", full)
    with pytest.raises(InputError, match="the disk is full"):
        list(build(request_, path))
    monkeypatch.undo()
    assert len(VolumeStore(path).missing_shards()) == 3
    list(build(request_, path, resume=True))
    assert contents(VolumeStore(path)) == contents(whole)
