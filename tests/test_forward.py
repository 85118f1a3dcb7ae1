"""The forward model against PtyRAD, against abTEM's data, and against its own laws."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.forward import ForwardModel, object_field, upsample
from mepdiff_core.likelihood import make_likelihood
from mepdiff_core.metrics import r_factor
from mepdiff_core.multislice import detector_indices
from mepdiff_core.optics import Optics
from mepdiff_core.ptyrad_adapter import PtyRADEngine
from mepdiff_core.scan import Scan, raster_positions
from mepdiff_core.settings import ModelConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan

BATCH = np.array([0, 3, 11, 12, 20, 29, 41])


@pytest.fixture(scope="module")
def model(small_scan: Scan) -> ForwardModel:
    return ForwardModel(small_scan, 4, 1.6)


@pytest.fixture(scope="module")
def model64(small_scan: Scan) -> ForwardModel:
    return ForwardModel(small_scan, 4, 1.6, dtype=torch.complex128)


@pytest.fixture(scope="module")
def truth(small_scan: Scan) -> torch.Tensor:
    assert small_scan.truth is not None
    return torch.tensor(small_scan.truth.phase)


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_loss_and_gradient_agree_with_ptyrad(model: ForwardModel, truth: torch.Tensor, name: str) -> None:
    volume = 0.7 * truth + 0.01 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(1))
    engine = PtyRADEngine(model, name)  # type: ignore[arg-type]
    theirs, their_gradient = engine.loss_and_gradient(volume, BATCH)
    ours, our_gradient, _ = model.loss_and_gradient(volume, BATCH, make_likelihood(name))
    assert float(ours) == pytest.approx(theirs, rel=1e-5)
    assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 1e-5
    assert engine.loss(volume, BATCH) == pytest.approx(model.loss(volume, BATCH, make_likelihood(name)), rel=1e-5)


def test_intensities_agree_with_ptyrad(model: ForwardModel, truth: torch.Tensor) -> None:
    theirs = PtyRADEngine(model, "amplitude").predict(truth, BATCH)
    ours = model.predict(truth, BATCH)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_several_modes_agree_with_ptyrad(small_scan: Scan, truth: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    second = np.roll(small_scan.get_probe(), 3, axis=1) * np.exp(1j * rng.random())
    modes = np.concatenate([0.9 * small_scan.get_probe(), 0.4359 * second]).astype(np.complex64)
    mixed = ForwardModel(replace(small_scan, probe=modes), 4, 1.6)
    theirs, their_gradient = PtyRADEngine(mixed, "poisson").loss_and_gradient(0.5 * truth, BATCH)
    ours, our_gradient, _ = mixed.loss_and_gradient(0.5 * truth, BATCH, make_likelihood("poisson"))
    assert float(ours) == pytest.approx(theirs, rel=1e-5)
    assert (our_gradient - their_gradient).norm() / their_gradient.norm() < 1e-5


@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(window=2), ModelConfig(sampling=2), ModelConfig(2, 2, True)])
@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_gradient_is_the_derivative(small_scan: Scan, name: str, config: ModelConfig) -> None:
    """Central differences in double precision along a random direction."""
    model = ForwardModel(small_scan, 3, 2.0, config, dtype=torch.complex128)
    likelihood = make_likelihood(name)
    generator = torch.Generator().manual_seed(2)
    volume = 0.1 * torch.rand(model.volume_shape, generator=generator, dtype=torch.float64)
    direction = torch.randn(model.volume_shape, generator=generator, dtype=torch.float64)
    _, gradient, _ = model.loss_and_gradient(volume, BATCH, likelihood)
    step = 1e-5
    there, back = (float(model.loss_and_gradient(volume + s * direction, BATCH, likelihood)[0]) for s in (step, -step))
    assert float((gradient * direction).sum()) == pytest.approx((there - back) / (2 * step), rel=1e-5)


def test_probe_gradient_is_the_derivative(model64: ForwardModel, truth: torch.Tensor) -> None:
    likelihood = make_likelihood("poisson")
    volume = truth.double()
    probe = model64.multislice.probe.clone()
    direction = torch.randn(probe.shape, generator=torch.Generator().manual_seed(3), dtype=torch.complex128) * 1e-3
    _, _, gradient = model64.loss_and_gradient(volume, BATCH, likelihood, want_probe=True)
    assert gradient is not None
    losses = []
    for step in (1e-4, -1e-4):
        model64.multislice.set_probe(probe + step * direction)
        losses.append(float(model64.loss_and_gradient(volume, BATCH, likelihood)[0]))
    model64.multislice.set_probe(probe)
    expected = (losses[0] - losses[1]) / 2e-4
    assert float((gradient.conj() * direction).sum().real) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sampling", [1, 2])
def test_gradients_by_positions_and_walk_are_the_derivatives(small_scan: Scan, truth: torch.Tensor, sampling: int) -> None:
    """Central differences in double precision, with two probe modes and a tilt."""
    config = ModelConfig(sampling=sampling, probe_modes=2, source_size_A=0.2, tilt_mrad=(4.0, -7.0))
    model = ForwardModel(small_scan, 4, 1.6, config, dtype=torch.complex128)
    likelihood, waves = make_likelihood("poisson"), model.multislice
    model.chunk = 3  # positions come in several chunks
    _, _, found = model.gradients(truth.double(), BATCH, likelihood, ("shifts", "walk"))
    assert found.probe is None
    assert found.shifts is not None
    assert found.walk is not None
    generator = torch.Generator().manual_seed(4)
    direction = torch.randn(waves.shifts.shape, generator=generator, dtype=torch.float64)
    shifts, losses = waves.shifts.clone(), []
    for step in (1e-5, -1e-5):
        waves.shifts = shifts + step * direction
        losses.append(model.loss(truth.double(), BATCH, likelihood))
    waves.shifts = shifts
    expected = (losses[0] - losses[1]) / 2e-5
    assert float((found.shifts * direction[BATCH]).sum()) == pytest.approx(expected, rel=1e-5)
    walk = waves.walk
    for axis in (0, 1):
        losses = []
        for step in (1e-5, -1e-5):
            moved = tuple(w + step * (i == axis) for i, w in enumerate(walk))
            waves.set_walk((moved[0], moved[1]))
            losses.append(model.loss(truth.double(), BATCH, likelihood))
        assert float(found.walk[axis]) == pytest.approx((losses[0] - losses[1]) / 2e-5, rel=1e-5)
        waves.set_walk(walk)


def test_a_tilted_specimen_is_an_upright_one_sheared(small_scan: Scan, truth: torch.Tensor) -> None:
    """Columns that lean by t lie t z to the side at depth z, seen by a beam that goes straight down."""
    tilt = (5.0, -3.0)
    upright = ForwardModel(small_scan, 4, 1.6, dtype=torch.complex128)
    leaning = ForwardModel(small_scan, 4, 1.6, ModelConfig(tilt_mrad=tilt), dtype=torch.complex128)
    volume = torch.stack([smooth(t) for t in truth.double()])
    walk = [math.tan(1e-3 * t) * 1.6 / small_scan.pixel_size_A for t in tilt]
    sheared = torch.stack([shifted(slice_, (s * walk[0], s * walk[1])) for s, slice_ in enumerate(volume)])
    ours, theirs = leaning.predict(volume, BATCH), upright.predict(sheared, BATCH)
    plain = upright.predict(volume, BATCH)
    # the window's edges walk in one and not in the other
    assert (ours - theirs).norm() < 0.1 * (plain - theirs).norm()
    assert (plain - theirs).norm() > 1e-3 * theirs.norm()


def smooth(plane: torch.Tensor) -> torch.Tensor:
    """A plane without the highest frequencies, so that it can be shifted by any fraction of a pixel."""
    ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in plane.shape)
    return torch.fft.ifft2(torch.fft.fft2(plane) * torch.exp(-40 * (ky[:, None] ** 2 + kx[None, :] ** 2))).real


def shifted(plane: torch.Tensor, by: tuple[float, float]) -> torch.Tensor:
    ky, kx = (torch.fft.fftfreq(n, dtype=torch.float64) for n in plane.shape)
    ramp = torch.exp(-2j * math.pi * (ky[:, None] * by[0] + kx[None, :] * by[1]))
    return torch.fft.ifft2(torch.fft.fft2(plane) * ramp).real


def test_modes_of_a_wide_source_are_its_points_in_sum(small_scan: Scan, truth: torch.Tensor) -> None:
    """All 49 modes together give the patterns of all points of the source, each seen from its own place."""
    size = 0.5
    nodes, weights = np.polynomial.hermite_e.hermegauss(7)
    places, weights = nodes * size / np.sqrt(8 * np.log(2)), weights / weights.sum()
    expected = torch.zeros(len(BATCH), 64, 64, dtype=torch.float64)
    for y, wy in zip(places, weights, strict=True):
        for x, wx in zip(places, weights, strict=True):
            moved = small_scan.positions_A + np.array([y, x])
            point = ForwardModel(small_scan, 4, 1.6, dtype=torch.complex128, positions_A=moved)
            expected += wy * wx * point.predict(truth.double(), BATCH)
    point = ForwardModel(small_scan, 4, 1.6, dtype=torch.complex128)
    coherent = float((point.predict(truth.double(), BATCH) - expected).norm())
    for modes, most in ((49, 1e-6), (12, 0.2)):
        config = ModelConfig(probe_modes=modes, source_size_A=size)
        model = ForwardModel(small_scan, 4, 1.6, config, dtype=torch.complex128)
        assert model.multislice.probe.shape == (modes, 64, 64)
        assert float(model.multislice.probe.abs().square().sum()) == pytest.approx(1, abs=1e-12)
        assert (model.predict(truth.double(), BATCH) - expected).norm() < most * coherent
    few = ModelConfig(probe_modes=2, source_size_A=size)
    with pytest.raises(InputError, match=r"2 modes hold 66% of the probe .* take probe_modes=5 or more"):
        ForwardModel(small_scan, 4, 1.6, few)


def test_tilt_and_modes_agree_with_ptyrad(small_scan: Scan, truth: torch.Tensor) -> None:
    config = ModelConfig(probe_modes=3, source_size_A=0.3, tilt_mrad=(10.0, 20.0))
    model = ForwardModel(small_scan, 4, 1.6, config)
    theirs = PtyRADEngine(model, "amplitude").predict(truth, BATCH)
    ours = model.predict(truth, BATCH)
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_several_objects_at_once_equal_one_by_one(model: ForwardModel, truth: torch.Tensor) -> None:
    objects = torch.stack([truth, 0.5 * truth, torch.zeros_like(truth)])
    likelihood = make_likelihood("amplitude")
    losses, gradients, _ = model.loss_and_gradient(objects, BATCH, likelihood)
    for one, loss, gradient in zip(objects, losses, gradients, strict=True):
        alone, gradient_alone, _ = model.loss_and_gradient(one, BATCH, likelihood)
        assert float(loss) == pytest.approx(float(alone), rel=1e-6)
        assert (gradient - gradient_alone).norm() <= 1e-5 * gradient_alone.norm()
    assert model.predict(objects, BATCH).shape == (3, len(BATCH), 64, 64)


def test_gathering_equals_slicing(small_scan: Scan, truth: torch.Tensor) -> None:
    """The way windows are cut on a GPU gives the same as the way on a CPU."""
    model = ForwardModel(small_scan, 4, 1.6)
    likelihood = make_likelihood("poisson")
    loss, gradient, _ = model.loss_and_gradient(truth, BATCH, likelihood)
    model.multislice.slicing = False
    loss_gathered, gradient_gathered, _ = model.loss_and_gradient(truth, BATCH, likelihood)
    assert float(loss) == pytest.approx(float(loss_gathered), rel=1e-6)
    assert (gradient - gradient_gathered).norm() / gradient.norm() < 1e-5


def test_chunks_do_not_matter(small_scan: Scan, truth: torch.Tensor) -> None:
    model = ForwardModel(small_scan, 4, 1.6)
    results = []
    for model.chunk in (1, 5, 64):
        loss, gradient, _ = model.loss_and_gradient(truth, BATCH, make_likelihood("amplitude"))
        results.append((float(loss), gradient))
    for loss, gradient in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-6)
        assert (gradient - results[0][1]).norm() / gradient.norm() < 1e-5


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_gradient_is_finite_at_zero_residual_and_zero_counts(small_scan: Scan, truth: torch.Tensor, name: str) -> None:
    model = ForwardModel(small_scan, 4, 1.6)
    likelihood = make_likelihood(name)
    own = model.predict(truth, np.arange(model.n_patterns))
    model.patterns.held = torch.fft.ifftshift(own + (1e-10 if name == "amplitude" else 1e-7), dim=(-2, -1))
    _, gradient, _ = model.loss_and_gradient(truth, BATCH, likelihood)
    assert torch.isfinite(gradient).all()
    model.patterns.held = torch.zeros_like(model.patterns.held)
    model.patterns.held[:, 0, 0] = 1.0  # a pattern with all of its electrons in one pixel
    _, gradient, _ = model.loss_and_gradient(torch.zeros_like(truth), BATCH, likelihood)
    assert torch.isfinite(gradient).all()


def test_poisson_gradient_vanishes_where_the_model_made_the_data(model64: ForwardModel, truth: torch.Tensor) -> None:
    patterns = model64.patterns.held
    indices = np.arange(len(patterns))
    clean = model64.predict(truth.double(), indices) + make_likelihood("poisson").background  # type: ignore[attr-defined]
    _, noisy, _ = model64.loss_and_gradient(truth.double(), indices, make_likelihood("poisson"))
    model64.patterns.held = torch.fft.ifftshift(clean, dim=(-2, -1))
    _, gradient, _ = model64.loss_and_gradient(truth.double(), indices, make_likelihood("poisson"))
    model64.patterns.held = patterns
    assert gradient.norm() < 1e-9 * noisy.norm()


def test_energy_is_conserved(model: ForwardModel, truth: torch.Tensor) -> None:
    assert model.predict(truth, BATCH).sum((1, 2)) == pytest.approx(np.ones(len(BATCH)), abs=1e-5)


def test_vacuum_gives_the_probe_whatever_the_position(model: ForwardModel, small_scan: Scan) -> None:
    patterns = model.predict(torch.zeros(model.volume_shape), BATCH)
    disk = np.abs(np.fft.fftshift(np.fft.fft2(small_scan.get_probe()[0], norm="ortho"))) ** 2
    assert np.abs(patterns.numpy() - disk).max() < 1e-6


def test_a_shifted_specimen_under_a_shifted_scan_gives_the_same_patterns(small_scan: Scan, truth: torch.Tensor) -> None:
    """Rolling the object by whole pixels and moving every position with it changes nothing."""
    model = ForwardModel(small_scan, 4, 1.6)
    inside = np.array([16, 17, 24])
    before = model.predict(truth, inside)
    model.multislice.corners[inside] += (2, -3)
    after = model.predict(torch.roll(truth, (2, -3), (1, 2)), inside)
    assert (before - after).norm() / before.norm() < 1e-6


def test_model_of_the_paper_explains_abtem_within_five_percent(perovskite: Crystal) -> None:
    """Every twelfth position of the default scan, without noise: R <= 5 %. The other sign of defocus is far off."""
    config = SimulationConfig(scan_shape=(3, 3), scan_step_A=12 * 0.512, dose_e_per_A2=None)
    scan = simulate_scan(perovskite, config)
    assert scan.truth is not None
    indices = np.arange(9)
    plain = ForwardModel(scan, 8, 1.6)
    measured = plain.measured(indices).numpy()
    score = r_factor(plain.predict(torch.tensor(scan.truth.phase), indices).numpy(), measured)
    assert score < 0.05
    flipped = ForwardModel(replace(scan, optics=Optics(overfocus_A=-200.0)), 8, 1.6)
    assert r_factor(flipped.predict(torch.tensor(scan.truth.phase), indices).numpy(), measured) > 4 * score


def test_object_field_holds_every_window() -> None:
    positions = np.array([[0.0, 0.0], [1.31, 2.9], [0.7, -0.55]])
    area = object_field(positions, 32, 0.2)
    start = np.round((positions - area.origin_A) / 0.2).astype(int) - 16
    assert start.min(0).tolist() == [0, 0]
    assert (start.max(0) + 32).tolist() == list(area.shape)


@pytest.mark.parametrize("step", [0.3, 0.5, 0.512, 0.7])
@pytest.mark.parametrize("config", [ModelConfig(), ModelConfig(sampling=2), ModelConfig(window=2, sampling=3)])
@pytest.mark.parametrize("count", [1, 2, 10, 16, 26])
def test_no_window_leaves_the_field(step: float, config: ModelConfig, count: int) -> None:
    """Steps whose reach lies half a pixel between two: rounding must be the same for the field and its windows."""
    positions = raster_positions((1, count), step)
    scan = Scan(np.ones((1, count, 16, 16), np.uint8), positions, Optics(), 5 / 16, 256.0)
    model = ForwardModel(scan, 1, 1.6, config)
    waves = model.multislice
    assert waves.corners.min() == 0
    assert (waves.corners.max(0) + waves.n <= np.array(model.volume_shape[1:]) * config.sampling).all()
    assert waves.shifts.abs().max() <= config.sampling
    centre = waves.corners + waves.shifts.numpy() + waves.n // 2
    pixel = 0.2 / config.sampling
    expected = (positions - model.field.origin_A) / pixel + model.margin * config.sampling
    assert centre == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", ["amplitude", "poisson"])
def test_a_mini_batch_without_an_electron_says_nothing(small_scan: Scan, name: str) -> None:
    counts = small_scan.counts.copy()
    counts[0] = 0
    model = ForwardModel(replace(small_scan, counts=counts), 4, 1.6)
    empty, volume = np.arange(3), torch.zeros(model.volume_shape)
    loss, gradient, _ = model.loss_and_gradient(volume, empty, make_likelihood(name))
    theirs, their_gradient = PtyRADEngine(model, name).loss_and_gradient(volume, empty)  # type: ignore[arg-type]
    assert float(loss) == theirs == 0
    assert not gradient.any()
    assert not their_gradient.any()


def test_detector_indices_pick_every_second_frequency_of_a_window_twice_as_wide() -> None:
    fine = np.fft.fftfreq(64, 0.1)[detector_indices(16, 64, 2)]
    assert fine == pytest.approx(np.fft.fftfreq(16, 0.2), abs=1e-12)


def test_upsampling_keeps_samples_and_interpolates_a_wave_exactly() -> None:
    x = torch.arange(12) * 2 * torch.pi / 12
    wave = torch.cos(2 * x)[None, :] + torch.sin(3 * x)[:, None]
    fine_x = torch.arange(24) * 2 * torch.pi / 24
    expected = torch.cos(2 * fine_x)[None, :] + torch.sin(3 * fine_x)[:, None]
    fine = upsample(wave[None].double(), 2)[0]
    assert (fine - expected).abs().max() < 1e-6
    assert (fine[::2, ::2] - wave).abs().max() < 1e-6


def test_a_volume_of_another_shape_is_refused(model: ForwardModel) -> None:
    with pytest.raises(InputError, match="object field"):
        model.predict(torch.zeros(4, 10, 10), BATCH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_equals_cpu(small_scan: Scan, model: ForwardModel, truth: torch.Tensor) -> None:
    there = ForwardModel(small_scan, 4, 1.6, device="cuda")
    likelihood = make_likelihood("poisson")
    loss, gradient, _ = model.loss_and_gradient(truth, BATCH, likelihood)
    loss_there, gradient_there, _ = there.loss_and_gradient(truth, BATCH, likelihood)
    assert float(loss) == pytest.approx(float(loss_there), rel=1e-5)
    assert (gradient - gradient_there.cpu()).norm() / gradient.norm() < 1e-4
