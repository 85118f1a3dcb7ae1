"""Metrics: against scikit-image, against numbers worked out by hand, and for the failures they are meant to tell apart."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from mepdiff_core.errors import InputError
from mepdiff_core.metrics import (
    align_offset,
    atom_mask,
    depth_correlation,
    failure_class,
    middle,
    nrmse,
    nrmse_atoms,
    poisson_deviance,
    psnr_dB,
    r_factor,
    ssim_2d,
    ssim_3d,
    ssim_atoms,
    volume_metrics,
)

Volume = npt.NDArray[np.float64]
NAMES = {"ssim_2d", "ssim_3d", "ssim_atoms", "psnr_dB", "nrmse", "nrmse_atoms", "depth_correlation"}


def make_truth(slices: int = 8, size: int = 48, seed: int = 0) -> Volume:
    """Atoms as Gaussian peaks, each slice with others: no two slices look alike."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    volume = np.zeros((slices, size, size))
    for z in range(slices):
        for cy, cx, height in zip(
            rng.uniform(4, size - 4, 6), rng.uniform(4, size - 4, 6), rng.uniform(0.3, 1, 6), strict=True
        ):
            volume[z] += height * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / 8)
    return volume


@pytest.fixture(scope="module")
def truth() -> Volume:
    return make_truth()


@pytest.fixture(scope="module")
def noisy(truth: Volume) -> Volume:
    return truth + 0.05 * np.random.default_rng(1).normal(size=truth.shape)


# against scikit-image and by hand


def test_ssim_of_slices_is_scikit_images_mean(truth: Volume, noisy: Volume) -> None:
    span = truth.max() - truth.min()
    expected = np.mean([structural_similarity(truth[i], noisy[i], win_size=7, data_range=span) for i in range(8)])
    assert ssim_2d(noisy, truth) == pytest.approx(expected, abs=1e-12)
    assert 0.1 < expected < 0.95


@pytest.mark.parametrize(("slices", "window"), [(8, 7), (7, 7), (6, 5), (4, 3), (3, 3)])
def test_ssim_in_three_dimensions_has_an_odd_window_that_fits(slices: int, window: int) -> None:
    truth = make_truth(slices)
    noisy = truth + 0.05 * np.random.default_rng(1).normal(size=truth.shape)
    expected = structural_similarity(truth, noisy, win_size=window, data_range=truth.max() - truth.min())
    assert ssim_3d(noisy, truth) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("slices", [1, 2])
def test_ssim_of_a_thin_volume_is_that_of_its_slices(slices: int) -> None:
    truth = make_truth(slices)
    noisy = truth + 0.05 * np.random.default_rng(1).normal(size=truth.shape)
    assert ssim_3d(noisy, truth) == ssim_2d(noisy, truth)
    assert volume_metrics(noisy, truth).keys() == NAMES


def test_psnr_is_scikit_images(truth: Volume, noisy: Volume) -> None:
    expected = peak_signal_noise_ratio(truth, noisy, data_range=truth.max() - truth.min())
    assert psnr_dB(noisy, truth) == pytest.approx(expected)
    assert psnr_dB(truth + 0.1 * np.ptp(truth), truth) == pytest.approx(20)


def test_nrmse_by_hand() -> None:
    truth = np.array([[[3.0, 4.0]], [[0.0, 0.0]]])
    assert nrmse(np.zeros_like(truth), truth) == 1
    assert nrmse(2 * truth, truth) == 1
    assert nrmse(truth + 5, truth) == pytest.approx(math.sqrt(25 / (25 / 4)))
    assert nrmse(truth, truth) == 0


def test_nrmse_of_zeros_where_atoms_are_is_one(truth: Volume) -> None:
    assert nrmse_atoms(np.zeros_like(truth), truth) == 1
    mask = atom_mask(truth)
    assert 0.01 < mask.mean() < 0.5
    assert nrmse_atoms(np.where(mask, truth, 7.0), truth) == 0


def test_r_factor_by_hand() -> None:
    assert r_factor(np.array([0.0, 4.0]), np.array([9.0, 16.0])) == pytest.approx((3 + 2) / (3 + 4))
    assert r_factor(np.zeros(5), np.arange(5.0)) == 1
    assert r_factor(np.arange(5.0), np.arange(5.0)) == 0
    assert r_factor(1.21 * np.arange(5), np.arange(5)) == pytest.approx(0.1)


def test_r_factor_of_counts_is_taken_in_double_precision() -> None:
    """uint8 patterns: no overflow, no rounding to half a percent."""
    measured = np.full((3, 64, 64), 200, np.uint8)
    assert r_factor(measured.astype(np.float32) * 1.0201, measured) == pytest.approx(0.01, rel=1e-4)


# what all of them hold


def test_identical_volumes_are_perfect(truth: Volume) -> None:
    assert volume_metrics(truth, truth.copy()) == pytest.approx(
        {
            "ssim_2d": 1,
            "ssim_3d": 1,
            "ssim_atoms": 1,
            "psnr_dB": math.inf,
            "nrmse": 0,
            "nrmse_atoms": 0,
            "depth_correlation": 1,
        }
    )


@pytest.mark.parametrize("offset", [-3.0, 0.25, 100.0])
def test_a_constant_phase_changes_nothing(truth: Volume, noisy: Volume, offset: float) -> None:
    assert volume_metrics(noisy + offset, truth) == pytest.approx(volume_metrics(noisy, truth), rel=1e-9)
    assert align_offset(noisy + offset, truth).mean() == pytest.approx(truth.mean())


def test_more_noise_is_worse_by_every_metric(truth: Volume) -> None:
    noise = np.random.default_rng(2).normal(size=truth.shape)
    some, more = volume_metrics(truth + 0.05 * noise, truth), volume_metrics(truth + 0.2 * noise, truth)
    for name in NAMES:
        better = more[name] < some[name] if name not in ("nrmse", "nrmse_atoms") else more[name] > some[name]
        assert better, name


def test_only_the_middle_is_judged() -> None:
    truth = make_truth(4, 80)
    ruined = truth.copy()
    ruined[:, :8] = ruined[:, -8:] = ruined[:, :, :8] = ruined[:, :, -8:] = 9
    np.testing.assert_array_equal(middle(ruined), truth[:, 8:72, 8:72])
    assert volume_metrics(ruined, truth)["nrmse"] == 0
    ruined[0, 8, 8] += 1
    assert volume_metrics(ruined, truth)["nrmse"] > 0


@pytest.mark.parametrize(("size", "first"), [(63, 0), (64, 0), (65, 0), (66, 1), (97, 16)])
def test_the_middle_is_64_pixels_or_all_there_are(size: int, first: int) -> None:
    cut = middle(np.broadcast_to(np.arange(size), (2, size, size)))
    assert cut.shape == (2, min(size, 64), min(size, 64))
    assert cut[0, 0, 0] == first


@pytest.mark.parametrize("shape", [(8, 48, 47), (7, 48, 48), (48, 48), (1, 8, 48, 48)])
def test_volumes_of_different_shape_cannot_be_compared(truth: Volume, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as error:
        volume_metrics(np.zeros(shape), truth)
    assert str(error.value) == f"the volume has shape {shape}, the truth (8, 48, 48); they cannot be compared"


def test_a_constant_truth_and_a_tiny_one_are_refused(truth: Volume) -> None:
    with pytest.raises(InputError, match="the truth is constant"):
        volume_metrics(truth, np.ones_like(truth))
    with pytest.raises(InputError, match="too small for structural similarity"):
        volume_metrics(truth[:, :2, :2], truth[:, :2, :2])


# what each of them is for


def test_depth_correlation_sees_depth_alone(truth: Volume) -> None:
    averaged = np.broadcast_to(truth.mean(0), truth.shape)
    assert depth_correlation(truth, truth) == pytest.approx(1)
    assert depth_correlation(averaged, truth) == pytest.approx(0, abs=1e-9)
    assert depth_correlation(averaged + 0.3 * (truth - averaged), truth) == pytest.approx(1)
    assert depth_correlation(2 * averaged - truth, truth) == pytest.approx(-1)
    assert depth_correlation(np.zeros_like(truth), truth) == 0
    staircase = np.eye(8)[:, :, None] * np.ones((8, 8, 6))
    assert depth_correlation(staircase[::-1], staircase) < 0


def test_depth_correlation_ignores_places_without_atoms(truth: Volume) -> None:
    empty = truth.max(0) <= 0.1 * truth.max()
    assert 0.05 < empty.mean() < 0.95
    noise = np.random.default_rng(3).normal(size=truth.shape)
    assert depth_correlation(truth + noise * empty, truth) == pytest.approx(1)
    assert depth_correlation(truth + noise * ~empty, truth) < 0.5


def test_ssim_of_atoms_ignores_the_background() -> None:
    truth = make_truth(6, 60)
    noise = 0.05 * np.random.default_rng(4).normal(size=truth.shape)
    # farther than the window's three pixels from every atom
    near = np.stack([dilate(level, 4) for level in atom_mask(truth)])
    background = ~near
    assert background.mean() > 0.3
    spoiled = truth + noise * background
    assert ssim_atoms(spoiled, truth) == pytest.approx(1, abs=1e-9)
    assert ssim_2d(spoiled, truth) < 0.8
    on_atoms = truth + noise * atom_mask(truth)
    assert ssim_atoms(on_atoms, truth) < 0.98
    # an empty volume earns by its background what it does not earn by its atoms
    assert ssim_atoms(np.zeros_like(truth), truth) < 0.2 < ssim_2d(np.zeros_like(truth), truth)


def dilate(mask: npt.NDArray[np.bool_], by: int) -> npt.NDArray[np.bool_]:
    grown = mask.copy()
    for dy in range(-by, by + 1):
        for dx in range(-by, by + 1):
            grown |= np.roll(mask, (dy, dx), (0, 1))
    return grown


# the four outcomes


def test_a_good_volume_is_near_perfect(truth: Volume) -> None:
    assert failure_class(truth, truth) == "near perfect"
    assert failure_class(truth + 0.7, truth) == "near perfect"
    noise = np.random.default_rng(0).normal(size=truth.shape)
    assert 0.9 < ssim_2d(truth + 0.015 * noise, truth) < 0.95
    assert failure_class(truth + 0.015 * noise, truth) == "near perfect"
    assert 0.8 < ssim_2d(truth + 0.02 * noise, truth) < 0.9
    assert failure_class(truth + 0.02 * noise, truth) != "near perfect"


@pytest.mark.parametrize("order", [[7, 6, 5, 4, 3, 2, 1, 0], [1, 2, 3, 4, 5, 6, 7, 0], [1, 0, 3, 2, 5, 4, 7, 6]])
def test_slices_in_another_order_are_misordered(truth: Volume, order: list[int]) -> None:
    assert ssim_2d(truth[order], truth) < 0.9
    assert failure_class(truth[order] - 0.3, truth) == "slices misordered"


def test_misordered_slices_are_found_under_noise(truth: Volume, noisy: Volume) -> None:
    """No order of noisy slices reaches 0.9, but the right one gains much."""
    assert ssim_2d(noisy, truth) < 0.9
    assert failure_class(noisy[::-1], truth) == "slices misordered"


def test_a_volume_even_along_depth_is_blurred(truth: Volume) -> None:
    blurred = np.broadcast_to(truth.mean(0), truth.shape)
    assert failure_class(blurred, truth) == "blurred in depth"
    assert failure_class(blurred + 1, truth) == "blurred in depth"


def test_other_atoms_noise_and_nothing_are_wrong(truth: Volume) -> None:
    assert failure_class(make_truth(seed=9), truth) == "wrong structure"
    assert failure_class(np.random.default_rng(0).normal(size=truth.shape), truth) == "wrong structure"
    assert failure_class(np.zeros_like(truth), truth) == "wrong structure"
    assert failure_class(-truth, truth) == "wrong structure"


@given(seed=st.integers(0, 999), noise=st.floats(0, 2), scale=st.floats(-2, 2))
@settings(max_examples=25, deadline=None)
def test_every_volume_gets_finite_metrics_in_their_range(seed: int, noise: float, scale: float) -> None:
    truth = make_truth(3, 16, seed)
    volume = scale * truth + noise * np.random.default_rng(seed).normal(size=truth.shape)
    made = volume_metrics(volume, truth)
    assert made.keys() == NAMES
    for name in ("ssim_2d", "ssim_3d", "ssim_atoms", "depth_correlation"):
        assert abs(made[name]) <= 1 + 1e-9, name
    assert made["nrmse"] >= 0
    assert made["psnr_dB"] == math.inf or math.isfinite(made["psnr_dB"])


def test_deviance_is_lowest_for_the_true_intensities_where_the_r_factor_is_not() -> None:
    """Few counts: a prediction that is too low wins by R and loses by the deviance."""
    rng = np.random.default_rng(0)
    expected = np.full((200, 200), 0.4)
    counts = rng.poisson(expected)
    scales = (0.5, 0.8, 1.0, 1.25)
    deviances = [poisson_deviance(s * expected, counts, 0.0) for s in scales]
    assert min(deviances) == deviances[2]
    assert r_factor(0.5 * expected, counts) < r_factor(expected, counts)


def test_deviance_analytic() -> None:
    assert poisson_deviance(np.array([3.0, 0.0]), np.array([3.0, 0.0]), 0.0 + 1e-300) == pytest.approx(0, abs=1e-12)
    assert poisson_deviance(np.array([2.0]), np.array([0.0]), 0.0) == pytest.approx(4.0)
    assert poisson_deviance(np.array([1.0]), np.array([2.0]), 1.0) == pytest.approx(0.0)
