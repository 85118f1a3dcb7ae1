"""Log-SNR, v and the weights of the loss."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core.diffusion import (
    DiffusionConfig,
    Weighting,
    added_noise,
    alpha,
    denoised_of,
    denoiser,
    log_snr_of,
    losses,
    noisy,
    per_item,
    sigma,
    v_of,
)
from mepdiff_core.errors import InputError

LOG_SNR = torch.linspace(-20, 20, 40001, dtype=torch.float64)


def test_identities() -> None:
    a, s = alpha(LOG_SNR), sigma(LOG_SNR)
    torch.testing.assert_close(a**2 + s**2, torch.ones_like(a), rtol=0, atol=1e-15)
    torch.testing.assert_close((a**2 / s**2).log(), LOG_SNR, rtol=0, atol=1e-12)
    torch.testing.assert_close(added_noise(LOG_SNR), s / a, rtol=1e-13, atol=0)
    torch.testing.assert_close(log_snr_of(added_noise(LOG_SNR)), LOG_SNR, rtol=0, atol=1e-12)


@given(st.floats(-20, 20), st.integers(0, 2**31))
def test_v_gives_data_and_noise_back(log_snr: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, 3, 1, 2, 4, 4, generator=generator, dtype=torch.float64)
    at = torch.tensor([log_snr, -log_snr, 0.0], dtype=torch.float64)
    z, v = noisy(x, noise, at), v_of(x, noise, at)
    torch.testing.assert_close(denoised_of(z, v, at), x, rtol=0, atol=1e-12)
    epsilon = per_item(sigma(at), z) * z + per_item(alpha(at), z) * v
    torch.testing.assert_close(epsilon, noise, rtol=0, atol=1e-12)


def test_the_error_of_v_is_that_of_the_data_with_scale() -> None:
    """Appendix B: an error d of the denoised volume, the noise following from it, is an error d / σ of v."""
    generator = torch.Generator().manual_seed(0)
    x, noise, d = torch.randn(3, 5, 1, 2, 4, 4, generator=generator, dtype=torch.float64)
    at = torch.tensor([-9.0, -3.0, 0.0, 3.0, 9.0], dtype=torch.float64)

    def network(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        s, a = sigma(log_snr), alpha(log_snr)
        wrong = x + d
        epsilon = (z - a.reshape(-1, 1, 1, 1, 1) * wrong) / s.reshape(-1, 1, 1, 1, 1)
        return v_of(wrong, epsilon, log_snr)

    expected = d.square().flatten(1).mean(1) / sigma(at) ** 2
    torch.testing.assert_close(losses(network, x, noise, at).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("even", [0.0, 0.25, 1.0])
def test_weights_integrate_to_one(even: float) -> None:
    weighting = Weighting(DiffusionConfig(log_snr_even=even))
    assert float(torch.trapezoid(weighting.density(LOG_SNR), LOG_SNR)) == pytest.approx(1, abs=1e-9)


def test_the_papers_weight() -> None:
    """Table 3: N(λ; -7, 3) / Z."""
    density = Weighting(DiffusionConfig()).density(LOG_SNR)
    shape = torch.exp(-0.5 * ((LOG_SNR + 7) / 3) ** 2)
    torch.testing.assert_close(density / density.max(), shape, rtol=1e-12, atol=0)


@pytest.mark.parametrize("even", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("importance", [False, True])
def test_every_way_to_draw_has_the_same_expected_loss(importance: bool, even: float) -> None:
    """The integral of w(λ) f(λ), for a loss f that varies; spread over 40,000 draws it is exact to 1e-4."""
    weighting = Weighting(DiffusionConfig(log_snr_even=even, importance=importance, stratified=True))
    log_snr, weights = weighting.draw(40000, torch.Generator().manual_seed(1))
    loss = torch.sigmoid(log_snr / 2) + 0.3 * torch.cos(log_snr)
    expected = torch.trapezoid(weighting.density(LOG_SNR) * (torch.sigmoid(LOG_SNR / 2) + 0.3 * torch.cos(LOG_SNR)), LOG_SNR)
    assert float((loss * weights).mean()) == pytest.approx(float(expected), abs=2e-4)
    assert log_snr.min() >= -20
    assert log_snr.max() <= 20


def test_importance_makes_all_weights_one() -> None:
    _, weights = Weighting(DiffusionConfig(importance=True)).draw(100, torch.Generator().manual_seed(0))
    assert (weights == 1).all()


def test_a_spread_batch_has_one_draw_in_each_part() -> None:
    log_snr, _ = Weighting(DiffusionConfig(stratified=True)).draw(32, torch.Generator().manual_seed(0))
    parts = ((log_snr + 20) / 40 * 32).long()
    assert sorted(parts.tolist()) == list(range(32))
    assert parts.tolist() != list(range(32))  # which crystal gets which is left to chance


def test_the_denoiser_of_a_gaussian() -> None:
    """Data N(m, τ²): E[x | x + s ε] = m + τ² / (τ² + s²) (y - m), through v and back."""
    mean, tau = 0.4, 0.7

    def network(z: torch.Tensor, log_snr: torch.Tensor) -> torch.Tensor:
        a, s = (f(log_snr).reshape(-1, 1, 1, 1, 1) for f in (alpha, sigma))
        x = mean + a * tau**2 / (a**2 * tau**2 + s**2) * (z - a * mean)
        return (a * z - x) / s

    y = torch.randn(4, 1, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    added = torch.tensor([0.01, 0.5, 3.0, 800.0], dtype=torch.float64)
    keep = (tau**2 / (tau**2 + added**2)).reshape(-1, 1, 1, 1, 1)
    torch.testing.assert_close(denoiser(network)(y, added), mean + keep * (y - mean), rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data_scale": 0.0}, "data_scale is 0"),
        ({"log_snr_mean": 30.0}, "log_snr_mean is 30; expected between -20 and 20"),
        ({"log_snr_std": 0.0}, "log_snr_std is 0"),
        ({"log_snr_even": 1.5}, "log_snr_even is 1.5"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DiffusionConfig(**settings)  # type: ignore[arg-type]


def test_the_middle_of_the_weight_is_where_the_table_puts_it() -> None:
    log_snr, _ = Weighting(DiffusionConfig(importance=True, stratified=True)).draw(10001, torch.Generator().manual_seed(0))
    assert float(log_snr.median()) == pytest.approx(-7, abs=0.01)
    assert float(log_snr.std()) == pytest.approx(3, abs=0.01)
    assert math.isfinite(float(log_snr.sum()))
