"""Samples of a posterior: ranked, their spread measured, and where electrons went; and what a prior's card says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from mepdiff_core.arrays import save_arrays
from mepdiff_core.candidates import heldout_deviance
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.ensemble import SIMULATED, coverage, judge_ensemble, outlines, rank_in_words, spread_in_words
from mepdiff_core.errors import InputError
from mepdiff_core.memory import device_memory, memory_in_words
from mepdiff_core.prior_card import DATA_FILE, read_card
from mepdiff_core.scan import Scan
from mepdiff_core.settings import EMBEDDED, MepdiffConfig
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.weights import PriorConfig, prior_file, save_prior


@pytest.mark.parametrize("count", [2, 3, 8])
def test_coverage_of_a_truth_that_is_one_more_sample(count: int) -> None:
    """Exactly 95 % however few samples there are: 40,000 voxels leave a standard error of 0.11 %."""
    rng = np.random.default_rng(count)
    drawn = rng.normal(0.3, 0.1, (count + 1, 4, 100, 100))
    assert coverage(drawn[1:], drawn[0]) == pytest.approx(0.95, abs=0.005)
    assert coverage(drawn[1:] + 5.0, drawn[0]) == pytest.approx(0.95, abs=0.005)  # a constant phase is nothing


def test_samples_that_agree_too_well_cover_too_little() -> None:
    rng = np.random.default_rng(0)
    drawn = rng.normal(0, 0.1, (5, 4, 100, 100))
    narrow = drawn[1:].mean(0) + 0.25 * (drawn[1:] - drawn[1:].mean(0))
    assert coverage(narrow, drawn[0]) < 0.6
    mask = np.zeros((100, 100), bool)
    mask[:50] = True
    narrow[:, :, 50:] = drawn[1:, :, 50:]
    assert coverage(narrow, drawn[0], ~mask) == pytest.approx(0.95, abs=0.01)
    with pytest.raises(InputError, match="two samples or more, got 1"):
        coverage(narrow[:1], drawn[0])


def test_atoms_are_counted_apart() -> None:
    """A spread that is right in the background and a quarter of what it should be at the few atoms."""
    rng = np.random.default_rng(1)
    truth = np.zeros((4, 100, 100))
    truth[:, ::5, ::5] = 4.0
    drawn = truth + rng.normal(0, 0.1, (5, 4, 100, 100))
    truth_drawn = truth + rng.normal(0, 0.1, truth.shape)
    at = truth > 1
    drawn[:, at] = drawn[:, at].mean(0) + 0.25 * (drawn[:, at] - drawn[:, at].mean(0))
    assert coverage(drawn, truth_drawn) == pytest.approx(0.935, abs=0.01)
    assert coverage(drawn, truth_drawn, atoms=True) < 0.6


def test_what_is_known_of_a_method_is_said_without_a_truth(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIMULATED, "dps", (0.9, 0.41))
    words = spread_in_words(4, None, "dps")
    assert "On simulated crystals, 90 % of the illuminated voxels lay where 95 % should, of those with atoms 41 %" in words
    assert words.endswith("too small for a confidence interval.")
    assert "has not been measured" in spread_in_words(4, None, "another")
    assert "Measured against this scan's truth, 95 % of" in spread_in_words(4, (0.95, 0.94), "dps")


def test_samples_are_ranked_by_patterns_that_none_was_fitted_to(small_scan: Scan) -> None:
    assert small_scan.truth is not None
    truth = small_scan.truth.phase.astype(np.float32)
    samples = np.stack([0.2 * truth, truth, 0.6 * truth])
    config = MepdiffConfig(heldout_fraction=0.2, seed=3)
    record = {"config": {"heldout_fraction": 0.2, "seed": 3}, "voxel_size_A": [1.6, 0.2, 0.2]}
    found = judge_ensemble(samples, record, small_scan)
    np.testing.assert_array_equal(found.samples, samples[[1, 2, 0]])
    expected = [heldout_deviance(small_scan, sample, config) for sample in found.samples]
    np.testing.assert_allclose(found.deviances, expected, rtol=1e-6)
    assert found.covered is not None
    told = ", ".join(f"{deviance:.4f}" for deviance in expected)
    assert found.words.startswith(
        f"Sample 1 explains the patterns held out best; deviance a pixel, sample by sample: {told}."
    )
    assert "Measured against this scan's truth" in found.words
    np.testing.assert_allclose(found.mean, 0.6 * truth, atol=1e-6)
    np.testing.assert_allclose(found.spread, 0.4 * truth, atol=1e-6)


def test_samples_that_fit_equally_well_have_no_best_one() -> None:
    assert rank_in_words([0.60161, 0.60164]) == (
        "The patterns held out do not tell the samples apart: deviance 0.6016 a pixel of each."
    )
    assert rank_in_words([0.5 + 0.1 * k for k in range(10)]).endswith(
        "0.5000, 0.6000, 0.7000, 0.8000, 0.9000, 1.0000, 1.1000, 1.2000 …."
    )
    assert rank_in_words([]) == ""


def test_without_a_scan_nothing_is_claimed() -> None:
    samples = np.random.default_rng(0).normal(size=(3, 2, 8, 8)).astype(np.float32)
    record = {"config": {"heldout_fraction": 0.05, "seed": 0}, "voxel_size_A": [1.6, 0.2, 0.2]}
    found = judge_ensemble(samples, record, None)
    np.testing.assert_array_equal(found.samples, samples)
    assert (found.deviances, found.covered) == ([], None)
    assert "has not been measured: it is no confidence interval" in found.words
    # Student's t of two degrees of freedom, 4.303, times the root of 4 / 3
    assert "3 are few: the spread at a voxel is a rough guess, and 95 % need 5.0 of it to either side" in found.words
    many = np.repeat(samples, 3, axis=0)
    assert "are few" not in judge_ensemble(many, record, None).words


def test_an_outline_goes_round_what_is_lit() -> None:
    mask = np.zeros((20, 30), bool)
    mask[4:10, 6:18] = True
    (line,) = outlines(mask)
    assert line.min(0) == pytest.approx([3, 5], abs=0.51)
    assert line.max(0) == pytest.approx([10, 18], abs=0.51)
    y, x = line.T
    area = 0.5 * abs(np.dot(y, np.roll(x, 1)) - np.dot(x, np.roll(y, 1)))
    assert 6 * 12 <= area <= 8 * 14
    (whole,) = outlines(np.ones((5, 5), bool))  # to the edge
    assert whole.min() < 0
    assert outlines(np.zeros((5, 5), bool)) == []


def test_memory_of_the_computer() -> None:
    memory = device_memory("cpu")
    assert memory.total == psutil.virtual_memory().total
    assert 0 < memory.ours <= memory.total
    assert memory.used <= memory.total
    assert f"of {memory.total / 1e9:.1f} GB taken" in memory_in_words("cuda")  # there is none here that was begun


def test_memory_of_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the device by this name, where torch has begun to use it; free memory is what others leave."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", {"cuda:1": (20_000_000_000, 80_000_000_000)}.__getitem__)
    monkeypatch.setattr(torch.cuda, "memory_reserved", {"cuda:1": 5_500_000_000}.__getitem__)
    assert memory_in_words("cuda:1") == "Memory of cuda:1: 60.0 of 80.0 GB taken, 5.5 by this window."


# a prior's card


def test_a_card_tells_what_is_in_the_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16), DiffusionConfig(), (2, 8, 8))
    network = UNet(config.network)
    path = tmp_path / "prior.safetensors"
    save_prior(path, network.state_dict(), config, {"steps": 7, "data": "prototypes", "validation": {"loss": 0.25}})
    card = read_card(path)
    assert card.parameters == sum(p.numel() for p in network.parameters())
    assert (card.shape, card.voxel_size_A) == ((2, 8, 8), (1.6, 0.2, 0.2))
    assert card.lines()[1:] == [
        "trained on 2 x 8 x 8 voxels of 1.6 x 0.2 x 0.2 Å (z, y, x)",
        "data: prototypes",
        "steps: 7",
        "held-out loss 0.2500",
    ]


def test_what_is_no_prior_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file; choose a prior's file"):
        read_card(tmp_path / "nothing")
    (tmp_path / "noise").write_bytes(b"not a safetensors file at all")
    with pytest.raises(InputError, match="damaged, or no safetensors file"):
        read_card(tmp_path / "noise")
    save_arrays({"a": np.zeros(3)}, tmp_path / "other")
    with pytest.raises(InputError, match="is no prior of mepdiff"):
        read_card(tmp_path / "other")


def test_the_embedded_prior_is_looked_for_where_it_is_loaded_from() -> None:
    assert prior_file(EMBEDDED) == DATA_FILE
