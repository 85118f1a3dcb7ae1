"""The trainer: what it learns, what it keeps, and that nothing is lost."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

from mepdiff_core import batch_size
from mepdiff_core import train as training
from mepdiff_core.arrays import load_arrays, save_arrays
from mepdiff_core.batch_size import find_batch, parts_of
from mepdiff_core.cli import main
from mepdiff_core.config import dump_yaml, from_dict, merge, to_dict
from mepdiff_core.crystal_set import CrystalSet
from mepdiff_core.crystals import Crystal
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.loader import hold_out, load, open_crops, place_of
from mepdiff_core.prototype_crystals import generate
from mepdiff_core.store import VolumeConfig, create_store
from mepdiff_core.train import train
from mepdiff_core.train_config import PRESETS, TrainConfig, preset
from mepdiff_core.training_data import CropConfig, CrystalCrops
from mepdiff_core.training_folder import TrainingFolder, read_log
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.weights import PriorConfig, load_prior, prior_file, save_prior

ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}
SETTINGS: dict[str, Any] = {
    "network": {"channels_2d": [8], "channels_3d": [16], "blocks": 1, "patch": 2, "head_channels": 16, "embedding": 16},
    "crops": {"slices": 2, "pixels": 16},
    "diffusion": {"importance": True, "stratified": True},
    "steps": 6,
    "batch_size": 4,
    "warmup_steps": 2,
    "learning_rate": 1e-3,
    "checkpoint_every": 2,
    "validate_every": 3,
    "validation_crops": 2,
    "pictures_every": 0,
    "seed": 7,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks of this size gain nothing by threads that wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def crystals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty prototypes, as one file."""
    path = tmp_path_factory.mktemp("crystals") / "crystals.safetensors"
    CrystalSet.pack(generate(i, 0) for i in range(40)).save(path)
    return path


def config(crystals: Path, **settings: Any) -> TrainConfig:
    return from_dict(TrainConfig, merge(merge(SETTINGS, {"data": str(crystals)}), settings))


def run(configured: TrainConfig, out: Path, resume: bool = False) -> list[training.TrainState]:
    return list(train(configured, out, resume, device="cpu"))


def command(crystals: Path, out: Path, *more: str) -> list[str]:
    text = [f"--set={name}={json.dumps(value)}" for name, value in (SETTINGS | {"data": str(crystals)}).items()]
    return ["train", "--preset", "small", *text, "--device", "cpu", "--out", str(out), *more]


# what comes out


def test_the_folder_holds_what_is_promised(crystals: Path, tmp_path: Path) -> None:
    states = run(config(crystals, pictures_every=16), tmp_path / "p")
    assert [s.step for s in states] == [1, 2, 3, 4, 5, 6]
    names = {p.name for p in (tmp_path / "p").iterdir()}
    assert names == {
        "config.yaml",
        "last.safetensors",
        "best.safetensors",
        "state",
        "log.csv",
        "validation.csv",
        "pictures",
        "tensorboard",
    }
    assert sorted(p.name for p in (tmp_path / "p" / "state").iterdir()) == [
        "step-000000004.safetensors",
        "step-000000006.safetensors",
    ]
    assert sorted(p.name for p in (tmp_path / "p" / "pictures").iterdir()) == [
        "denoised-000000016.png",
        "denoised-000000024.png",
        "loss.png",
        "samples-000000016.png",
        "samples-000000024.png",
    ]
    rows = read_log(tmp_path / "p" / "log.csv")
    assert [r["step"] for r in rows] == [1, 2, 3, 4, 5, 6]
    assert [r["images"] for r in rows] == [4, 8, 12, 16, 20, 24]
    assert [r["loss"] for r in rows] == [s.loss for s in states]
    assert [r["learning_rate"] for r in rows] == [5e-4, 1e-3, 1e-3, 1e-3, 1e-3, 1e-3]
    held = read_log(tmp_path / "p" / "validation.csv")
    assert [r["step"] for r in held] == [3, 6]
    assert held[0].keys() > {"loss", "loss_at_-18", "loss_at_+18"}
    prior = load_prior(tmp_path / "p" / "last.safetensors")
    assert prior.training["images"] == 24
    assert prior.config.network == config(crystals).network
    assert prior.config.shape == (2, 16, 16)
    validation = states[-1].validation
    assert validation is not None
    assert prior.training["validation"]["loss"] == validation.loss


def test_the_prior_is_the_moving_average(crystals: Path, tmp_path: Path) -> None:
    """decay 0 keeps the last weights, and (1 + n) / (10 + n) of the first steps gives what is worked out here."""
    run(config(crystals, ema_decay=0.0, steps=2), tmp_path / "last")
    arrays = load_arrays(tmp_path / "last" / "state" / "step-000000002.safetensors")
    prior = load_arrays(tmp_path / "last" / "last.safetensors")
    for name, value in prior.items():
        np.testing.assert_array_equal(value, arrays[f"weights.{name}"])
    run(config(crystals, steps=2, checkpoint_every=1, keep=2), tmp_path / "mean")
    one, two = (load_arrays(tmp_path / "mean" / "state" / f"step-00000000{i}.safetensors") for i in (1, 2))
    for name in prior:
        expected = one[f"average.{name}"] + (two[f"weights.{name}"] - one[f"average.{name}"]) * np.float32(1 - 3 / 12)
        np.testing.assert_allclose(two[f"average.{name}"], expected, rtol=1e-5, atol=1e-7)


def test_seeds_decide(crystals: Path, tmp_path: Path) -> None:
    one = [s.loss for s in run(config(crystals, steps=2), tmp_path / "1")]
    assert one == [s.loss for s in run(config(crystals, steps=2), tmp_path / "2")]
    assert one != [s.loss for s in run(config(crystals, steps=2, seed=8), tmp_path / "3")]


class Gaussian:
    """Crops that are a known volume plus white noise: the exact denoiser is known."""

    std = 0.05

    def __init__(self) -> None:
        z, y, x = torch.meshgrid(torch.arange(2), torch.arange(16), torch.arange(16), indexing="ij")
        self.mean = 0.1 * torch.cos(2 * math.pi * (x + 2 * y) / 8 + z)[None]

    def __len__(self) -> int:
        return 1000

    def draw(self, index: int, epoch: int | None = None) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * (epoch or 0) + index)
        return self.mean + self.std * torch.randn(self.mean.shape, generator=generator)

    def assemble(self, items: Sequence[Tensor], /) -> Tensor:
        return torch.stack(list(items))


def test_it_learns_the_exact_denoiser(crystals: Path, tmp_path: Path) -> None:
    """Within 10 % of the least error that any denoiser has, at noise from a fifth of the data's spread to twenty times it.

    Not learning at all misses by the whole spread; knowing the mean alone misses by more than 10 % at the smallest noise.
    """
    configured = config(
        crystals,
        steps=300,
        batch_size=8,
        learning_rate=3e-3,
        ema_decay=0.98,
        warmup_steps=20,
        validate_every=1000,
        checkpoint_every=1000,
        diffusion={"log_snr_mean": -2.0, "log_snr_min": -8.0, "log_snr_max": 4.0, "data_scale": 16.0},
    )
    data, folder = Gaussian(), TrainingFolder.create(tmp_path / "g", configured)
    trainer = training._Trainer(configured, folder, Accelerator(cpu=True), data, None)
    *_, _ = trainer.run(lambda: False)
    prior = load_prior(tmp_path / "g" / "last.safetensors")
    clean = torch.stack([data.draw(i, 99) for i in range(64)]) * 16
    tau = data.std * 16
    for added in (0.2 * tau, tau, 4 * tau, 20 * tau):
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        found = prior.denoise(clean + added * noise, torch.full((64,), added))
        error = float((found - clean).square().mean())
        least = tau**2 * added**2 / (tau**2 + added**2)
        assert error < 1.10 * least, f"noise {added / tau:g} of the spread: {error / least:.3f} of the least error"


def test_accumulated_parts_learn_the_same(crystals: Path, tmp_path: Path) -> None:
    run(config(crystals, steps=1), tmp_path / "whole")
    run(config(crystals, steps=1, accumulate=4), tmp_path / "parts")
    assert_equal_gradients(tmp_path / "whole", tmp_path / "parts")


def assert_equal_gradients(one: Path, other: Path) -> None:
    """What AdamW keeps after its first step is a tenth of the gradient; the step itself is only its sign."""
    found = [load_arrays(folder / "state" / "step-000000001.safetensors") for folder in (one, other)]
    names = [name for name in found[0] if name.startswith("exp_avg.")]
    largest = max(float(np.abs(found[0][name]).max()) for name in names)
    assert largest > 1e-3
    for name in names:
        np.testing.assert_allclose(found[1][name], found[0][name], rtol=1e-4, atol=1e-6 * largest, err_msg=name)


# going on


def test_going_on_equals_never_having_stopped(crystals: Path, tmp_path: Path) -> None:
    """Bit for bit: weights, moving average, optimiser, order of the data, logs."""
    run(config(crystals), tmp_path / "whole")
    states = train(config(crystals), tmp_path / "cut", device="cpu")
    for _ in range(3):
        next(states)
    states.close()  # type: ignore[attr-defined]
    assert (tmp_path / "cut" / "state" / "step-000000003.safetensors").exists()
    later = run(config(crystals), tmp_path / "cut", resume=True)
    assert [s.step for s in later] == [4, 5, 6]
    assert_equal(tmp_path / "whole", tmp_path / "cut")


def assert_equal(one: Path, other: Path) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    whole, cut = (load_arrays(folder / "state" / "step-000000006.safetensors") for folder in (one, other))
    assert whole.keys() == cut.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(cut[name], value, err_msg=name)
    for name in ("log.csv", "validation.csv"):
        rows = [
            [{k: v for k, v in r.items() if "_s" not in k and k != "seconds"} for r in read_log(f / name)]
            for f in (one, other)
        ]
        assert rows[0] == rows[1]


@pytest.mark.slow
def test_a_killed_training_goes_on(crystals: Path, tmp_path: Path) -> None:
    """SIGKILL at three moments of the same run, and then one that is not killed."""
    assert main(command(crystals, tmp_path / "whole")) == 0
    cut = tmp_path / "cut"
    started, kills = False, 0
    for wait in (0.0, 0.05, 0.3):
        more = ["--resume"] if started else []
        given = ["--out", str(cut), "--resume"] if started else command(crystals, cut, *more)[1:]
        process = subprocess.Popen(
            [sys.executable, "-m", "mepdiff_core.train", *given],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=ONE_THREAD,
        )
        seen = len(steps_on_disk(cut))
        while process.poll() is None and len(steps_on_disk(cut)) <= seen:
            time.sleep(0.01)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        started = (cut / "config.yaml").exists()
        if steps_on_disk(cut)[-1:] == [6]:
            break
    assert kills >= 1
    assert main(["train", "--out", str(cut), "--resume", "--device", "cpu"]) == 0
    assert_equal(tmp_path / "whole", cut)
    assert not [p for p in cut.rglob(".*") if p.stat().st_size == 0 and "crystals" in p.name]


def steps_on_disk(folder: Path) -> list[int]:
    return [int(p.stem.removeprefix("step-")) for p in sorted((folder / "state").glob("step-*.safetensors"))]


@pytest.mark.slow
def test_ctrl_c_leaves_a_checkpoint(crystals: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    given = command(crystals, out, "--set", "steps=100000", "--set", "checkpoint_every=100000")
    process = subprocess.Popen(
        [sys.executable, "-m", "mepdiff_core", *given], stderr=subprocess.PIPE, text=True, env=ONE_THREAD
    )
    while not (out / "log.csv").exists() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, words = process.communicate(timeout=60)
    assert process.returncode == 0
    assert f"go on with: mepdiff train --out {out} --resume" in words
    step = steps_on_disk(out)[-1]
    assert step == read_log(out / "log.csv")[-1]["step"]
    states = train(TrainingFolder.recorded(out), out, resume=True, device="cpu")
    assert next(states).step == step + 1
    states.close()  # type: ignore[attr-defined]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(crystals: Path, tmp_path: Path) -> None:
    run(config(crystals, steps=3, checkpoint_every=1, keep=3), tmp_path / "one")
    (tmp_path / "c.yaml").write_text(dump_yaml(to_dict(config(crystals, steps=3, checkpoint_every=1, keep=3))))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1"]
    launch += ["--mixed_precision", "no", "--dynamo_backend", "no", "--num_cpu_threads_per_process", "1"]
    launch += ["-m", "mepdiff_core.train", str(tmp_path / "c.yaml"), "--device", "cpu", "--out", str(tmp_path / "two")]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_equal_gradients(tmp_path / "one", tmp_path / "two")
    losses = [[r["loss"] for r in read_log(tmp_path / name / "log.csv")] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_what_may_change_and_what_not(crystals: Path, tmp_path: Path) -> None:
    run(config(crystals, steps=2), tmp_path / "p")
    assert [s.step for s in run(config(crystals, steps=4, keep=1), tmp_path / "p", resume=True)] == [3, 4]
    assert TrainingFolder.recorded(tmp_path / "p").steps == 4
    with pytest.raises(InputError, match="another learning_rate, seed; leave these as they are"):
        run(config(crystals, learning_rate=1.0, seed=1), tmp_path / "p", resume=True)
    with pytest.raises(InputError, match="exists already; give another folder with --out, or --resume"):
        run(config(crystals), tmp_path / "p")


def test_half_a_row_of_a_killed_training_is_forgotten(tmp_path: Path, crystals: Path) -> None:
    run(config(crystals, steps=2), tmp_path / "p")
    with (tmp_path / "p" / "log.csv").open("a") as file:
        file.write("3,12,0.5,0.")
    run(config(crystals, steps=4), tmp_path / "p", resume=True)
    assert [r["step"] for r in read_log(tmp_path / "p" / "log.csv")] == [1, 2, 3, 4]


# faults


def test_a_damaged_checkpoint_is_refused(crystals: Path, tmp_path: Path) -> None:
    run(config(crystals, steps=4), tmp_path / "p")
    newest = tmp_path / "p" / "state" / "step-000000004.safetensors"
    whole = newest.read_bytes()
    newest.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match=r"is damaged .*remove it to go on from the one before"):
        run(config(crystals), tmp_path / "p", resume=True)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    newest.write_bytes(flipped)
    with pytest.raises(InputError, match="its sha256 does not fit"):
        run(config(crystals), tmp_path / "p", resume=True)
    save_arrays({"a": np.zeros(3)}, newest)
    with pytest.raises(InputError, match="is no checkpoint of a training"):
        run(config(crystals), tmp_path / "p", resume=True)
    newest.unlink()
    assert [s.step for s in run(config(crystals), tmp_path / "p", resume=True)] == [3, 4, 5, 6]


def test_a_loss_that_is_not_a_number_stops(crystals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(crystals, steps=3), tmp_path / "p")
    kept = {p: p.read_bytes() for p in (tmp_path / "p").rglob("*.safetensors")}
    original, calls = training.losses, []

    def breaking(*given: Any) -> Tensor:
        calls.append(1)
        return original(*given) * (math.nan if len(calls) > 1 else 1.0)

    monkeypatch.setattr(training, "losses", breaking)
    with pytest.raises(Diverged, match=r"step 5: the loss is nan.*last good checkpoint is .*step-000000004"):
        run(config(crystals, checkpoint_every=4), tmp_path / "p", resume=True)
    assert all(p.read_bytes() == content for p, content in kept.items() if "state" in str(p) and p.exists())
    monkeypatch.undo()
    assert [s.step for s in run(config(crystals), tmp_path / "p", resume=True)] == [5, 6]


def test_a_batch_that_does_not_fit_is_named(crystals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = training.losses

    def hungry(network: Any, x: Tensor, noise: Tensor, log_snr: Tensor) -> Tensor:
        if len(x) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return original(network, x, noise, log_snr)

    for module in (training, batch_size):
        monkeypatch.setattr(module, "losses", hungry)
    with pytest.raises(InputError, match=r"a batch of 12 volumes does not fit .*, 1 do; add --set accumulate=12"):
        run(config(crystals, batch_size=12), tmp_path / "p")
    with pytest.raises(InputError, match=r"a batch of 8 volumes does not fit .*, 2 do; add --set accumulate=4"):
        run(config(crystals, batch_size=8), tmp_path / "q")
    assert find_batch(config(crystals, batch_size=8), "cpu") == 2
    given = command(crystals, tmp_path / "r", "--set", "batch_size=8", "--set", "steps=1", "--find-batch-size")
    assert main(given) == 0
    assert TrainingFolder.recorded(tmp_path / "r").accumulate == 4


@pytest.mark.parametrize(("share", "fits", "parts"), [(256, 256, 1), (256, 100, 4), (12, 5, 3), (7, 3, 7), (8, 1, 8)])
def test_equal_parts_that_fit(share: int, fits: int, parts: int) -> None:
    assert parts_of(share, fits) == parts


def test_a_full_disk_leaves_the_checkpoint_before(crystals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(config(crystals, steps=2), tmp_path / "p")
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if "step-" in str(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="cannot be written: the disk is full"):
        run(config(crystals), tmp_path / "p", resume=True)
    monkeypatch.undo()
    assert steps_on_disk(tmp_path / "p") == [2]
    assert not list((tmp_path / "p" / "state").glob(".*"))
    assert [s.step for s in run(config(crystals), tmp_path / "p", resume=True)] == [3, 4, 5, 6]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "unknown field 'stepz' of TrainConfig; did you mean 'steps'?"),
        ({"steps": 0}, "steps is 0; expected at least 1"),
        ({"batch_size": 6, "accumulate": 4}, "batch_size is 6 and accumulate 4; expected a divisor"),
        ({"learning_rate": -1}, "learning_rate is -1"),
        ({"crops": {"pixels": 30}}, "takes multiples of 1 x 4 x 4"),
        ({"data": "nowhere.zarr"}, "nowhere.zarr: no such file"),
        ({"precision": "int8"}, "choose from auto, float32, bf16"),
    ],
)
def test_bad_input_of_the_command(
    settings: dict[str, Any], message: str, crystals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = merge(merge(SETTINGS, {"data": str(crystals)}), settings)
    changed["network"] = changed["network"] | {"channels_2d": [8, 16]}
    (tmp_path / "c.yaml").write_text(dump_yaml(changed))
    assert main(["train", str(tmp_path / "c.yaml"), "--device", "cpu", "--out", str(tmp_path / "p")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert not (tmp_path / "p").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to train was given; give CONFIG.yaml, --preset small or --preset paper"),
        (["c.yaml", "--preset", "small"], "were both given; choose one"),
        (["--preset", "tiny"], "preset 'tiny' is not known; choose from paper, small"),
        (["--resume"], "holds no training"),
        (["--preset", "small", "--device", "cuda:7"], "expected auto or cpu"),
    ],
)
def test_bad_arguments(arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--out", str(tmp_path / "p"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p").exists()


# the data


def test_an_empty_store_is_refused(tmp_path: Path) -> None:
    create_store(tmp_path / "s.zarr", CrystalSet.pack([]), VolumeConfig(), "nothing")
    with pytest.raises(InputError, match=r"s\.zarr is empty; build a larger one"):
        open_crops(tmp_path / "s.zarr", CropConfig(), torch.device("cpu"))


def test_training_from_a_store(tmp_path: Path) -> None:
    settings = VolumeConfig(slices=2, pixels=24, renderer="torch")
    store = create_store(tmp_path / "s.zarr", CrystalSet.pack(generate(i, 0) for i in range(6)), settings, "prototypes")
    opened = type(store)(tmp_path / "s.zarr", write=True)
    for shard in opened.missing_shards():
        opened.render_shard(shard)
    states = run(config(tmp_path / "s.zarr", steps=2), tmp_path / "p")
    assert states[-1].validation is not None
    training_part, validation = hold_out(opened)
    kinds = [{opened.crystals[opened.record(int(i)).crystal].formula for i in part} for part in (training_part, validation)]
    assert not kinds[0] & kinds[1]


def test_one_kind_of_crystal_has_nothing_to_hold_out(perovskite: Crystal, tmp_path: Path) -> None:
    whole = CrystalSet.pack([perovskite] * 3)
    if whole.split_of(0) != "train":
        pytest.skip("it is not one to train on")
    whole.save(tmp_path / "c.safetensors")
    states = run(config(tmp_path / "c.safetensors", steps=3), tmp_path / "p")
    assert all(s.validation is None for s in states)
    assert not (tmp_path / "p" / "best.safetensors").exists()


def test_every_pass_sees_every_item_once() -> None:
    places = [place_of(image, 7, seed=3) for image in range(21)]
    assert [p[0] for p in places] == [0] * 7 + [1] * 7 + [2] * 7
    orders = [[p[1] for p in places if p[0] == epoch] for epoch in range(3)]
    assert all(sorted(order) == list(range(7)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_workers_draw_the_same_crops(crystals: Path) -> None:
    crops = CrystalCrops(CrystalSet.load(crystals), None, CropConfig(slices=2, pixels=16))
    batches = [range(3), range(3, 6), range(39, 42)]
    alone = list(load(crops, batches, 5))
    shared = list(load(crops, batches, 5, workers=2))
    assert [b.shape[0] for b in alone] == [3, 3, 3]
    assert all(torch.equal(a, b) for a, b in zip(alone, shared, strict=True))


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_whole_and_go_through_yaml(name: str) -> None:
    made = from_dict(TrainConfig, merge(to_dict(TrainConfig()), preset(name)))
    assert from_dict(TrainConfig, to_dict(made)) == made
    assert made.diffusion.data_scale == DiffusionConfig().data_scale


def test_the_papers_preset_has_the_papers_numbers() -> None:
    """Appendix E, table 3."""
    made = from_dict(TrainConfig, preset("paper"))
    assert (made.batch_size, made.learning_rate, made.weight_decay) == (256, 1e-4, 0.01)
    d = made.diffusion
    assert (d.log_snr_min, d.log_snr_max, d.log_snr_mean, d.log_snr_std, d.log_snr_even) == (-20, 20, -7, 3, 0)
    assert made.network == UNetConfig()


# the command that looks at a prior


def test_inspect(crystals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(crystals, steps=3), tmp_path / "p")
    prior = tmp_path / "p" / "last.safetensors"
    assert main(["prior", "inspect", str(prior), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["training"]["steps"] == 3
    assert told["costs"][-1]["parameters"] == told["parameters"]
    assert main(["prior", "inspect", str(prior)]) == 0
    assert told["weights_sha256"] in capsys.readouterr().out


def prior_files(folder: Path, prior: Path) -> Iterator[tuple[Path, str]]:
    content = prior.read_bytes()
    flipped = bytearray(content)
    flipped[-3] ^= 4
    for name, data, message in (
        ("cut.safetensors", content[:-100], "is damaged"),
        ("flipped.safetensors", bytes(flipped), "its sha256 does not fit"),
        ("text.safetensors", b"hello", "is damaged"),
    ):
        (folder / name).write_bytes(data)
        yield folder / name, message
    save_arrays({"x": np.zeros(2)}, folder / "other.safetensors")
    yield folder / "other.safetensors", "is no prior of mepdiff"
    yield folder / "missing.safetensors", "no such file"


def test_what_is_no_prior_is_refused(crystals: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(config(crystals, steps=1), tmp_path / "p")
    for path, message in prior_files(tmp_path, tmp_path / "p" / "last.safetensors"):
        assert main(["prior", "inspect", str(path)]) == 2
        words = capsys.readouterr().err.strip().splitlines()
        assert len(words) == 1
        assert message in words[0]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_a_gpu_trains(precision: str, crystals: Path, tmp_path: Path) -> None:
    """In a process of its own: Accelerate keeps the first device it was given."""
    (tmp_path / "c.yaml").write_text(dump_yaml(to_dict(config(crystals, precision=precision, steps=3))))
    given = [sys.executable, "-m", "mepdiff_core", "train", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "p")]
    done = subprocess.run(given, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(math.isfinite(r["loss"]) for r in read_log(tmp_path / "p" / "log.csv"))
    again = subprocess.run(
        [*given, "--resume", "--set", "steps=5"], capture_output=True, text=True, check=False, timeout=300
    )
    assert again.returncode == 0, again.stderr[-3000:]
    assert load_prior(tmp_path / "p" / "last.safetensors").training["steps"] == 5


def test_excluded_formulas_are_never_trained_on(tmp_path: Path) -> None:
    crystals = CrystalSet.pack([generate(index, 5) for index in range(60)])
    training, _ = hold_out(crystals)
    formulas = {index: crystals[int(index)].formula for index in training}
    barred = [formulas[training[0]], formulas[training[7]]]
    kept, _ = hold_out(crystals, barred)
    assert set(training) - set(kept) == {index for index, formula in formulas.items() if formula in barred}
    assert len(kept) < len(training)
    with pytest.raises(InputError, match="composition is 'Xx2'"):
        TrainConfig(exclude=("Xx2",))
    with pytest.raises(InputError, match="beta2 is 1"):
        TrainConfig(beta2=1.0)


def test_the_installed_prior_is_whole_and_small_enough() -> None:
    prior = load_prior("embedded")
    assert prior_file("embedded").stat().st_size < 20e6
    assert prior.config.shape == (8, 64, 64)
    assert {"SrTiO3", "ZnS"} <= set(preset("small")["exclude"])
    # clean atoms out of noise of a third of a typical atom: nine tenths of the squared error are gone
    boxes = CrystalCrops(CrystalSet.pack([generate(i, 1000) for i in range(4)]), range(4), CropConfig(), torch.device("cpu"))
    x = boxes.assemble([boxes.draw(i) for i in range(4)]) * prior.config.diffusion.data_scale
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    seen = prior.denoise(x + noise, torch.ones(len(x)))
    assert float((seen - x).square().mean()) < 0.12


def test_a_packed_prior_is_the_same_in_half_the_space(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    config = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16))
    save_prior(tmp_path / "p.safetensors", dict(UNet(config.network).named_parameters()), config, {"steps": 3})
    assert main(["prior", "pack", str(tmp_path / "p.safetensors"), str(tmp_path / "half.safetensors"), "--json"]) == 0
    sizes = json.loads(capsys.readouterr().out)["bytes"]
    assert sizes["after"] < 0.6 * sizes["before"]
    one, other = (load_prior(tmp_path / name) for name in ("p.safetensors", "half.safetensors"))
    assert other.training == one.training
    for a, b in zip(one.network.parameters(), other.network.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)
    assert main(["prior", "pack", str(tmp_path / "p.safetensors"), str(tmp_path / "p.safetensors")]) == 2
    assert "is the prior itself" in capsys.readouterr().err
