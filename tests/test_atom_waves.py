"""Waves through drawn atoms against the simulation, against finite differences and against their own laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy.special import kl_div

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.crystals import Crystal, cut_box
from mepdiff_core.errors import InputError
from mepdiff_core.expansion import pairs_of, quadratic
from mepdiff_core.optics import Optics
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan

Array = npt.NDArray[np.float64]

ELECTRONS = 5e5
CONFIG = SimulationConfig(
    optics=Optics(overfocus_A=60.0),
    scan_shape=(4, 4),
    scan_step_A=0.73,
    detector_pixels=64,
    dose_e_per_A2=None,
    thickness_A=6.4,
    origin_A=(0.3, 0.2, 0.4),
)
MIXED = ModelConfig(probe_modes=3, source_size_A=0.3, tilt_mrad=(40.0, -25.0))
EVERY = np.arange(16)
SOME = np.array([5, 6, 15])


def clean_scan(crystal: Crystal, config: SimulationConfig) -> Scan:
    """The simulation's patterns without noise, in electrons."""
    scan = simulate_scan(crystal, config)
    return replace(scan, counts=scan.counts.astype(np.float64) * ELECTRONS, electrons_per_pattern=ELECTRONS)


def atoms_around(waves: AtomWaves, crystal: Crystal, config: SimulationConfig) -> tuple[Array, npt.NDArray[np.int64]]:
    """The simulated specimen's atoms that a drawing holds, (z, y, x) in the frame of the scan's positions."""
    assert config.origin_A is not None
    corner = np.array([0.0, *waves.origin_A])
    z, y, x = np.array(config.origin_A) + corner
    box = cut_box(crystal, config.axis, (config.thickness_A, *waves.size_A), (z, y, x))
    return box.positions_A + corner, box.numbers


def make_waves(scan: Scan, background_electrons: float = 1e-6) -> AtomWaves:
    return AtomWaves(scan, CONFIG.slices, CONFIG.slice_thickness_A, background_electrons / scan.electrons_per_pattern)


@pytest.fixture(scope="module")
def clean(perovskite: Crystal) -> Scan:
    return clean_scan(perovskite, CONFIG)


@pytest.fixture(scope="module")
def noisy(clean: Scan) -> AtomWaves:
    return AtomWaves(replace(clean, counts=np.random.default_rng(0).poisson(clean.counts)), 4, 1.6)


@pytest.fixture(scope="module", params=["one mode", "three modes, tilted"])
def waves(request: pytest.FixtureRequest, noisy: AtomWaves) -> AtomWaves:
    """The noisy patterns with a point source and upright columns, or with a wide one and tilted columns."""
    if request.param == "one mode":
        return noisy
    return AtomWaves(noisy.scan, 4, 1.6, model=MIXED)


@pytest.fixture(scope="module")
def phase(noisy: AtomWaves, perovskite: Crystal) -> torch.Tensor:
    return noisy.draw(*atoms_around(noisy, perovskite, CONFIG))


def measured(scan: Scan) -> torch.Tensor:
    """(positions, n, n) zero frequency at the corner, as ``predict`` gives them."""
    return torch.fft.ifftshift(torch.as_tensor(scan.patterns().astype(np.float64)), dim=(-2, -1))


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Relative, in the Euclidean norm."""
    return float((a.double() - b.double()).norm() / b.double().norm())


def test_it_predicts_what_is_simulated(clean: Scan, perovskite: Crystal) -> None:
    """To 1e-3 in norm and 2.5 nats a pattern of 5e5 electrons."""
    waves = make_waves(clean)
    transmission = waves.transmission(waves.draw(*atoms_around(waves, perovskite, CONFIG)))
    predicted = waves.predict(transmission, EVERY)
    assert predicted.shape == (16, 64, 64)
    assert distance(predicted, measured(clean)) < 1e-3
    assert waves.misfit(transmission, EVERY).max() < 2.5


def test_it_predicts_high_angles(perovskite: Crystal) -> None:
    """Up to the simulation's band limit, two thirds of the frequencies of its 0.1 Å pixels."""
    config = replace(CONFIG, scan_shape=(2, 2), k_max_invA=3.3, detector_pixels=96)
    scan = clean_scan(perovskite, config)
    waves = make_waves(scan)
    transmission = waves.transmission(waves.draw(*atoms_around(waves, perovskite, config)))
    assert distance(waves.predict(transmission, EVERY[:4]), measured(scan)) < 2e-3
    assert waves.misfit(transmission, EVERY[:4]).max() < 20


def test_wrong_crystals_are_told_apart(clean: Scan, perovskite: Crystal) -> None:
    """The measure of agreement above is no empty one: an oxygen for a titanium, a column 0.05 Å off."""
    waves = make_waves(clean)
    positions, numbers = atoms_around(waves, perovskite, CONFIG)
    moved = positions + np.where(numbers == 22, 0.05, 0.0)[:, None] * np.array([0.0, 1.0, 0.0])
    for where, which in ((positions, np.where(numbers == 22, 8, numbers)), (moved, numbers)):
        assert waves.misfit(waves.transmission(waves.draw(where, which)), EVERY).mean() > 20


def test_misfit_vanishes_where_the_model_made_the_counts(clean: Scan, phase: torch.Tensor) -> None:
    waves = make_waves(clean, 5e-4)
    transmission = waves.transmission(phase)
    own = torch.fft.fftshift(waves.predict(transmission, EVERY), dim=(-2, -1)).double().numpy().reshape(clean.counts.shape)
    itself = make_waves(replace(clean, counts=own), 5e-4)
    assert np.abs(itself.misfit(transmission, EVERY)).max() < 1e-3
    sources = [{0: itself.to_model(itself.draw_flat(np.array([[1.0, 1.3]]), 22))}]
    misfit, gradient, fisher = quadratic(itself, phase, sources, SOME)
    assert abs(misfit) < 1e-3
    assert abs(gradient[0]) < 1e-3 * np.sqrt(fisher[0, 0])


def test_the_background_is_added_to_every_pixel(clean: Scan, phase: torch.Tensor) -> None:
    low, high = (make_waves(clean, background) for background in (0.0, 0.25))
    added = high.predict(high.transmission(phase), SOME) - low.predict(low.transmission(phase), SOME)
    assert added.numpy() == pytest.approx(np.full(added.shape, 0.25), abs=2e-3)


def test_deviance_is_scipys_in_float64(noisy: AtomWaves, phase: torch.Tensor) -> None:
    expected = noisy.predict(noisy.transmission(phase), SOME)
    counts = noisy.measured.at(SOME).double().numpy()
    assert (counts == 0).any()
    theirs = kl_div(counts, expected.double().numpy()).sum((1, 2))
    assert noisy.deviance(expected, SOME) == pytest.approx(theirs, rel=1e-12)
    large = torch.full_like(expected, 4e6)  # sums of 1.6e10, where float32 would lose thousands
    assert noisy.deviance(large, SOME) == pytest.approx(kl_div(counts, 4e6).sum((1, 2)), rel=1e-12)


def example_sources(waves: AtomWaves) -> list[Mapping[int, torch.Tensor]]:
    """One slice; all slices alike; the last slice and, with another image, the first."""
    one, even, last, first = (
        waves.draw_flat(np.array([place]), number)
        for place, number in (((1.4, 1.2), 8), ((0.4, 0.7), 38), ((0.6, 1.9), 22), ((1.6, 1.3), 3))
    )
    return [{1: one}, dict.fromkeys(range(4), even / 4), {3: last, 0: first}]


def at_model(waves: AtomWaves, sources: Sequence[Mapping[int, torch.Tensor]]) -> list[Mapping[int, torch.Tensor]]:
    """Images as ``quadratic`` takes them."""
    return [{s: waves.to_model(image) for s, image in source.items()} for source in sources]


def stepped(waves: AtomWaves, phase: torch.Tensor, source: Mapping[int, torch.Tensor], step: float) -> torch.Tensor:
    changed = phase.clone()
    for s, image in source.items():
        changed[s] += step * image
    return waves.transmission(changed)


def test_quadratic_is_the_misfits_expansion(waves: AtomWaves, phase: torch.Tensor) -> None:
    """Gradient by central differences to 1 %, curvature as weighed J^T J with a numeric J to 0.1 %."""
    weak = 0.7 * phase
    sources = example_sources(waves)
    misfit, gradient, fisher = quadratic(waves, weak, at_model(waves, sources), SOME)
    expected = waves.predict(waves.transmission(weak), SOME).double()
    assert misfit == pytest.approx(waves.deviance(expected, SOME).sum(), rel=1e-6)
    assert misfit == pytest.approx(waves.misfit(waves.transmission(weak), SOME).sum(), rel=1e-6)
    columns, slopes = [], []
    step = 0.015
    for source in sources:
        ahead, behind = (waves.predict(stepped(waves, weak, source, sign * step), SOME).double() for sign in (1, -1))
        columns.append(((ahead - behind) / (2 * step)).ravel())
        slopes.append((waves.deviance(ahead, SOME) - waves.deviance(behind, SOME)).sum() / (2 * step))
    assert (np.abs(gradient) > 2 * np.sqrt(np.diag(fisher))).all()
    assert (np.abs(gradient - slopes) < 0.02 * np.sqrt(np.diag(fisher))).all()
    jacobian = torch.stack(columns)
    counts = waves.measured.at(SOME).double()
    weight = (2 * expected + counts + 0.1) / (3 * expected * (expected + 0.1 / 3))
    numeric = ((jacobian * weight.ravel()) @ jacobian.T).numpy()
    scale = np.sqrt(np.diag(numeric))
    assert fisher / scale / scale[:, None] == pytest.approx(numeric / scale / scale[:, None], abs=1e-3)
    assert np.array_equal(fisher, fisher.T)


def test_products_carry_the_waves_to_second_order(waves: AtomWaves, phase: torch.Tensor) -> None:
    """Their gradient is the second derivative of the counts, weighed as the first: by differences, to 3 %."""
    weak = 0.7 * phase
    sources: list[Mapping[int, torch.Tensor]] = [
        {s: waves.draw_flat(np.array([place]), number)}
        for s, place, number in ((0, (1.0, 1.2), 40), (2, (1.0, 1.2), 40), (2, (1.3, 1.0), 20))
    ]
    _, gradient, curvature = quadratic(waves, weak, at_model(waves, sources), SOME, [range(3)])
    assert gradient.shape == (9,)
    assert curvature.shape == (9, 9)
    plain = quadratic(waves, weak, at_model(waves, sources), SOME)
    assert gradient[:3] == pytest.approx(plain[1], rel=1e-5)
    assert curvature[:3, :3] == pytest.approx(plain[2], rel=1e-5)
    expected = waves.predict(waves.transmission(weak), SOME).double()
    excess = 1 - waves.measured.at(SOME).double() / expected
    step = 0.04

    def weighed(*amounts: float) -> float:
        changed = weak.clone()
        for amount, source in zip(amounts, sources, strict=True):
            for s, image in source.items():
                changed[s] += step * amount * image
        return float((excess * waves.predict(waves.transmission(changed), SOME).double()).sum()) / step**2

    unit = np.eye(3)
    second = [
        weighed(*a) + weighed(*-a) - 2 * weighed(0, 0, 0)
        if (a == b).all()
        else (weighed(*a + b) + weighed(*-a - b) - weighed(*a - b) - weighed(*b - a)) / 4
        for a, b in pairs_of(list(unit))
    ]
    assert np.abs(second).max() > 100
    assert gradient[3:] == pytest.approx(np.array(second), abs=0.03 * np.abs(second).max())


def test_quadratics_of_parts_add_up(noisy: AtomWaves, phase: torch.Tensor) -> None:
    sources = example_sources(noisy)
    whole = quadratic(noisy, phase, at_model(noisy, sources), SOME)
    parts = [quadratic(noisy, phase, at_model(noisy, sources), part) for part in (SOME[:1], SOME[1:])]
    for i in range(3):
        assert whole[i] == pytest.approx(parts[0][i] + parts[1][i], rel=1e-5)
    shuffled = quadratic(noisy, phase, at_model(noisy, sources[::-1]), SOME)
    assert shuffled[1][::-1] == pytest.approx(whole[1], rel=1e-5)
    assert shuffled[2][::-1, ::-1] == pytest.approx(whole[2], rel=1e-5)


def test_threads_do_not_matter(noisy: AtomWaves, phase: torch.Tensor) -> None:
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(
                (
                    noisy.predict(noisy.transmission(phase), EVERY),
                    quadratic(noisy, phase, at_model(noisy, example_sources(noisy)), SOME),
                )
            )
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert distance(results[1][0], results[0][0]) < 1e-6
    for i in range(3):
        assert results[1][1][i] == pytest.approx(results[0][1][i], rel=1e-6)


def test_gradient_images_give_the_same_gradient(waves: AtomWaves, phase: torch.Tensor) -> None:
    """The adjoint, matched with what a parameter draws, is the forward derivative."""
    weak = 0.7 * phase
    sources = example_sources(waves)
    image = waves.gradient(weak, SOME).double()
    _, gradient, _ = quadratic(waves, weak, at_model(waves, sources), SOME, far=range(len(sources)))
    for source, expected in zip(sources, gradient, strict=True):
        matched = sum(float((image[s] * waves.to_model(drawn).double()).sum()) for s, drawn in source.items())
        assert matched == pytest.approx(expected, rel=1e-4)


def test_no_electron_is_lost_within_the_band_limit(noisy: AtomWaves, phase: torch.Tensor) -> None:
    """All frequencies together: vacuum and a smooth object keep all; atoms lose what they scatter beyond, under 1 %."""
    x = torch.arange(noisy.drawn) * (2 * np.pi / noisy.drawn)
    smooth = 0.4 * torch.cos(20 * x)[:, None] * torch.cos(14 * x) + torch.zeros(4, 1, 1)

    def kept(slices: torch.Tensor) -> Array:
        spectrum, _ = noisy.waves.exit_spectrum(noisy.transmission(slices)[None], SOME)
        return (spectrum.abs().double() ** 2).sum((0, 2, 3, 4)).numpy() / noisy.grid**2

    assert kept(torch.zeros_like(phase)) == pytest.approx(np.ones(len(SOME)), abs=1e-5)
    assert kept(smooth) == pytest.approx(np.ones(len(SOME)), abs=1e-5)
    crystal = kept(phase)
    assert (crystal < 1 - 5e-5).all()
    assert (crystal > 0.99).all()


@pytest.mark.parametrize("shift", [(3, -2), (-40, 17.25)], ids=["whole pixels", "any"])
def test_a_shifted_frame_changes_nothing(
    clean: Scan, phase: torch.Tensor, perovskite: Crystal, noisy: AtomWaves, shift: tuple[float, float]
) -> None:
    """Scan and atoms moved together."""
    by = np.array(shift) * clean.pixel_size_A
    moved = make_waves(replace(clean, positions_A=clean.positions_A + by), 5e-4)
    positions, numbers = atoms_around(noisy, perovskite, CONFIG)
    there = moved.draw(positions + np.array([0.0, *by]), numbers)
    before = noisy.predict(noisy.transmission(phase), SOME)
    assert distance(moved.predict(moved.transmission(there), SOME), before) < 1e-4
    assert distance(moved.predict(moved.transmission(moved.draw(positions, numbers)), SOME), before) > 0.05


def test_other_positions_of_the_scan_do_not_matter(clean: Scan, perovskite: Crystal) -> None:
    """The grid starts elsewhere, by fractions of its pixels; an atom and a probe are where they were, to 0.5 %."""
    whole = make_waves(clean)
    inner = make_waves(replace(clean, counts=clean.counts[1:3, 1:3], positions_A=clean.positions_A[[5, 6, 9, 10]]))
    apart = (inner.origin_A - whole.origin_A) / whole.model_pixel_A
    assert np.abs(apart - np.round(apart)).max() > 0.1
    both = [
        w.predict(w.transmission(w.draw(*atoms_around(w, perovskite, CONFIG))), i)
        for w, i in ((whole, SOME[:2]), (inner, np.array([0, 1])))
    ]
    assert distance(both[1], both[0]) < 5e-3


def test_flat_drawings_are_the_drawing_seen_along_the_beam(
    noisy: AtomWaves, perovskite: Crystal, phase: torch.Tensor
) -> None:
    positions, numbers = atoms_around(noisy, perovskite, CONFIG)
    flat = torch.stack([noisy.draw_flat(positions[numbers == z, 1:], int(z)) for z in np.unique(numbers)]).sum(0)
    assert (flat - phase.sum(0)).abs().max() < 1e-4
    around = positions.copy()
    around[:, 1:] += np.array(noisy.size_A) * (1, -2)
    assert (noisy.draw(around, numbers) - phase).abs().max() < 1e-4


def test_a_probe_of_its_own_is_put_into_the_wider_window(clean: Scan, phase: torch.Tensor) -> None:
    """The optics' probe, cut to the detector's window, gives almost the same."""
    waves = make_waves(clean)
    own = make_waves(replace(clean, probe=clean.get_probe()))
    transmission = waves.transmission(phase)
    vacuum = torch.ones_like(transmission)
    assert distance(own.predict(transmission, SOME), waves.predict(transmission, SOME)) < 0.1
    spectrum = torch.fft.fft2(torch.as_tensor(clean.get_probe()[0]), norm="ortho").abs() ** 2 * ELECTRONS
    assert distance(own.predict(vacuum, SOME[:1])[0], spectrum) < 1e-4
    with pytest.raises(InputError, match="has a probe of its own, of 1 modes; leave probe_modes out"):
        AtomWaves(replace(clean, probe=clean.get_probe()), 4, 1.6, model=MIXED)


def test_modes_add_as_intensities(clean: Scan, phase: torch.Tensor) -> None:
    """A probe of two modes gives the sum of what each gives alone, in its part of the beam."""
    first = clean.get_probe()[0]
    k = np.fft.fftfreq(len(first))
    second = np.fft.ifft2(np.fft.fft2(first) * (k[:, None] + 1j * k))
    second = (second / np.linalg.norm(second)).astype(np.complex64)
    modes = np.stack([first * np.float32(np.sqrt(0.7)), second * np.float32(np.sqrt(0.3))])
    both, *alone = (make_waves(replace(clean, probe=p), 0.0) for p in (modes, first[None], second[None]))
    one, other = (w.predict(w.transmission(phase), SOME) for w in alone)
    assert distance(both.predict(both.transmission(phase), SOME), 0.7 * one + 0.3 * other) < 1e-5


def test_tilted_columns_are_upright_ones_that_lean(clean: Scan, perovskite: Crystal) -> None:
    """Atoms drawn where a lean of each slice against that above puts them, to 0.3 % in norm; the lean itself is 5 %."""
    upright = make_waves(clean)
    leaning = AtomWaves(clean, 4, 1.6, 1e-6, model=replace(MIXED, probe_modes=1, source_size_A=0.0))
    positions, numbers = atoms_around(upright, perovskite, CONFIG)
    expected = leaning.predict(leaning.transmission(leaning.draw(positions, numbers)), SOME)
    leaned = positions.copy()
    leaned[:, 1:] += np.outer(np.floor(positions[:, 0] / 1.6) * 1.6, np.tan(1e-3 * np.array(MIXED.tilt_mrad)))
    drawn = upright.predict(upright.transmission(upright.draw(leaned, numbers)), SOME)
    assert distance(drawn, expected) < 3e-3
    straight = upright.predict(upright.transmission(upright.draw(positions, numbers)), SOME)
    assert distance(straight, expected) > 0.05


def test_narrow_windows_lose_little_of_an_atom(noisy: AtomWaves, phase: torch.Tensor) -> None:
    """What one atom does is the same to 1 % of its deviation; a lattice that stretches needs wide ones."""
    sources = example_sources(noisy)
    _, wide, fisher = quadratic(noisy, phase, at_model(noisy, sources), SOME, [[0, 2]], far=range(3))
    _, narrow, narrow_fisher = quadratic(noisy, phase, at_model(noisy, sources), SOME, [[0, 2]])
    deviation = np.sqrt(np.diag(fisher))
    assert (narrow != wide).any()
    assert np.abs((narrow - wide) / deviation).max() < 0.01
    assert np.abs((narrow_fisher - fisher) / np.outer(deviation, deviation)).max() < 1e-3
