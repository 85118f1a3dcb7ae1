"""Optics against abTEM and PtyRAD, and against the signs that docs/conventions.md states."""

from __future__ import annotations

import math

import numpy as np
import pytest

from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics, interaction_constant, make_probe, propagator, wavelength_A

ABERRATIONS = {
    "C12": 35.0,
    "phi12": 25.0,
    "C21": 900.0,
    "phi21": -40.0,
    "C23": 700.0,
    "phi23": 15.0,
    "C34": 2e4,
    "phi34": 10.0,
}
ABERRATIONS |= {"C32": 1.5e4, "phi32": 70.0, "C41": 3e5, "phi41": 33.0, "C45": 4e5, "phi45": 20.0, "C50": 5e6, "C56": 6e6}


@pytest.mark.parametrize("energy_eV", [60e3, 80e3, 200e3, 300e3])
def test_constants_agree_with_abtem_and_ptyrad(energy_eV: float) -> None:
    from abtem.core.energy import energy2sigma, energy2wavelength
    from ptyrad.optics.constants import get_EM_constants

    assert wavelength_A(energy_eV) == pytest.approx(energy2wavelength(energy_eV), rel=1e-6)
    assert wavelength_A(energy_eV) == pytest.approx(get_EM_constants(energy_eV / 1e3, "wavelength"), rel=1e-6)
    assert interaction_constant(energy_eV) == pytest.approx(energy2sigma(energy_eV), rel=1e-6)


def test_constants_at_300_kV() -> None:
    assert wavelength_A(300e3) == pytest.approx(0.019687489, rel=1e-7)
    assert interaction_constant(300e3) == pytest.approx(6.526161e-4, rel=1e-6)


@pytest.mark.parametrize("aberrations", [{}, ABERRATIONS])
def test_probe_agrees_with_abtem(aberrations: dict[str, float]) -> None:
    """abTEM's axes are (x, y) and its angles radians; its hard aperture is soft=False."""
    import abtem

    optics = Optics(aberrations=aberrations)
    polar = {k: math.radians(v) if k.startswith("phi") else v for k, v in aberrations.items()}
    with abtem.config.set({"precision": "float64"}):
        waves = abtem.Probe(
            energy=300e3, semiangle_cutoff=21.4, soft=False, gpts=128, extent=25.6, C10=200.0, C30=5000.0, **polar
        ).build((12.8, 12.8), lazy=False)
    reference = np.asarray(waves.array).T
    reference = reference / np.linalg.norm(reference)
    ours = make_probe(optics, 128, 0.2)
    phase = np.vdot(ours, reference)
    assert abs(phase) == pytest.approx(1, abs=1e-9)
    assert np.linalg.norm(reference - ours * phase / abs(phase)) < 1e-6


@pytest.mark.parametrize("aberrations", [{}, ABERRATIONS])
def test_probe_agrees_with_ptyrad(aberrations: dict[str, float]) -> None:
    """By its polar form: its default, Cartesian form rounds coefficients to 0.001 Å."""
    from ptyrad.optics.probe import make_stem_probe

    optics = Optics(overfocus_A=-150.0, Cs_A=2e4, aberrations=aberrations)
    reference = make_stem_probe(300.0, 21.4, 128, 0.2, {"C10": -150.0, "C30": 2e4, **aberrations}, method="polar")
    ours = make_probe(optics, 128, 0.2)
    assert np.linalg.norm(reference - ours) / np.linalg.norm(reference) < 1e-6


def test_propagator_agrees_with_abtem_and_ptyrad() -> None:
    from abtem.multislice import _fresnel_propagator_array
    from ptyrad.optics.propagator import near_field_evolution

    paraxial = propagator(300e3, 96, 0.15, 7.0, paraxial=True)
    reference = _fresnel_propagator_array(7.0, (96, 96), (0.15, 0.15), 300e3, "cpu")
    assert np.abs(paraxial - reference).max() < 1e-5  # abTEM computes it in single precision

    exact = propagator(300e3, 96, 0.15, 7.0)
    theirs = near_field_evolution((96, 96), 0.15, 7.0, wavelength_A(300e3))
    assert np.abs(exact - theirs / theirs[0, 0]).max() < 1e-6


def test_propagator_is_the_analytic_phase() -> None:
    k = np.fft.fftfreq(64, 0.2)
    expected = np.exp(-1j * math.pi * wavelength_A(300e3) * 10.0 * (k[:, None] ** 2 + k[None] ** 2))
    assert np.abs(propagator(300e3, 64, 0.2, 10.0, paraxial=True) - expected).max() < 1e-12


def width(wave: np.ndarray) -> float:
    """Root mean square radius of a centred wave, px."""
    r = np.arange(wave.shape[0]) - wave.shape[0] // 2
    weight = np.abs(wave) ** 2
    return float(np.sqrt(np.sum(weight * (r[:, None] ** 2 + r[None] ** 2)) / weight.sum()))


def test_over_focus_is_undone_by_propagating_back() -> None:
    focused = make_probe(Optics(overfocus_A=0, Cs_A=0), 256, 0.2)
    over = make_probe(Optics(overfocus_A=120, Cs_A=0), 256, 0.2)
    back = np.fft.ifft2(np.fft.fft2(over) * propagator(300e3, 256, 0.2, -120, paraxial=True))
    assert np.linalg.norm(back - focused) < 1e-9


def test_signs_of_defocus() -> None:
    """Through the specimen an over-focused probe spreads and an under-focused one converges."""
    forth = propagator(300e3, 256, 0.2, 60)
    for overfocus, grows in ((100.0, True), (-100.0, False)):
        probe = make_probe(Optics(overfocus_A=overfocus, Cs_A=0), 256, 0.2)
        later = np.fft.ifft2(np.fft.fft2(probe) * forth)
        assert (width(later) > width(probe)) == grows


def test_probe_is_centred_and_normalised() -> None:
    probe = make_probe(Optics(overfocus_A=0, Cs_A=0), 128, 0.2)
    assert np.sum(np.abs(probe) ** 2) == pytest.approx(1, abs=1e-12)
    assert np.unravel_index(np.argmax(np.abs(probe)), probe.shape) == (64, 64)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"energy_eV": 0.0}, "energy_eV"),
        ({"energy_eV": 300.0}, "energy_eV"),
        ({"semiangle_mrad": -1.0}, "semiangle_mrad"),
        ({"aberrations": {"C13": 1.0}}, "C13"),
        ({"aberrations": {"C10": 1.0}}, "overfocus_A"),
    ],
)
def test_impossible_optics_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Optics(**values)  # type: ignore[arg-type]


def test_aperture_beyond_the_grid_is_refused() -> None:
    with pytest.raises(InputError, match="semiangle_mrad"):
        make_probe(Optics(semiangle_mrad=60), 64, 0.2)
