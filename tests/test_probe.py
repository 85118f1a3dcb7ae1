"""The probe fit finds a probe it was not told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from conftest import SMALL
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.forward import ForwardModel
from mepdiff_core.probe import fit_probe, probe_overlap, save_probe, with_probe
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import simulate_scan
from mepdiff_core.states import ProbeState


@pytest.fixture(scope="module")
def two_scans(perovskite: Crystal) -> list[Scan]:
    """Two places of a crystal under one probe."""
    return [simulate_scan(perovskite, replace(SMALL, scan_shape=(8, 8), seed=s, origin_A=None)) for s in (1, 2)]


def fit(scans: list[Scan], **settings: object) -> ProbeState:
    *_, state = fit_probe(scans, ProbeFitConfig(batch_size=8, **settings))  # type: ignore[arg-type]
    return state


def test_overlap_knows_phase_and_shift(small_scan: Scan) -> None:
    probe = small_scan.get_probe()
    assert probe_overlap(probe, probe) == pytest.approx(1, abs=1e-6)
    assert probe_overlap(probe, np.exp(1.3j) * probe) == pytest.approx(1, abs=1e-6)
    k = np.fft.fftfreq(64)
    ramp = np.exp(-2j * np.pi * (1.37 * k[:, None] - 2.81 * k[None]))
    assert probe_overlap(probe, np.fft.ifft2(np.fft.fft2(probe) * ramp)) == pytest.approx(1, abs=1e-4)
    other = replace(small_scan, optics=replace(small_scan.optics, overfocus_A=110.0)).get_probe()
    assert probe_overlap(probe, other) < 0.4


def test_fit_recovers_a_defocus_50_A_off(two_scans: list[Scan]) -> None:
    true = two_scans[0].get_probe()
    wrong = [replace(s, optics=replace(s.optics, overfocus_A=110.0)) for s in two_scans]
    state = fit(wrong, iterations=50)
    assert probe_overlap(wrong[0].get_probe(), true) < 0.4
    assert probe_overlap(state.probe, true) > 0.9
    assert np.sum(np.abs(state.probe) ** 2) == pytest.approx(1, abs=1e-5)


def test_fit_recovers_a_soft_aperture(two_scans: list[Scan]) -> None:
    """Patterns of a soft probe, made with the model that fits (an inverse crime: only the fit is tested here)."""
    scan = two_scans[0]
    assert scan.truth is not None
    optics = scan.optics
    k = np.hypot(*np.meshgrid(*[np.fft.fftfreq(64, 0.2)] * 2))
    edge = 1 / (1 + np.exp((k - 0.95 * optics.k_aperture_invA) / 0.06))
    spectrum = np.fft.fft2(np.fft.ifftshift(replace(scan, optics=replace(optics, semiangle_mrad=26.0)).get_probe()[0]))
    soft = np.fft.fftshift(np.fft.ifft2(spectrum * edge))[None]
    soft = (soft / np.linalg.norm(soft)).astype(np.complex64)
    model = ForwardModel(replace(scan, probe=soft), 4, 1.6)
    clean = model.predict(torch.tensor(scan.truth.phase), np.arange(scan.n_patterns)).numpy() * scan.electrons_per_pattern
    counts = np.random.default_rng(5).poisson(clean).reshape(scan.counts.shape)
    state = fit([replace(scan, counts=counts)], iterations=50)
    before, after = probe_overlap(scan.get_probe(), soft), probe_overlap(state.probe, soft)
    assert before < 0.97
    assert after > 0.98


def test_fit_resumes_bit_for_bit(two_scans: list[Scan]) -> None:
    config = ProbeFitConfig(batch_size=16, iterations=4)
    whole = list(fit_probe(two_scans, config))
    resumed = list(fit_probe(two_scans, config, checkpoint=whole[1].checkpoint))
    assert [s.step for s in resumed] == [3, 4]
    assert np.array_equal(resumed[-1].probe, whole[-1].probe)


def test_probe_file_round_trip_and_refusals(small_scan: Scan, tmp_path: Path) -> None:
    probe = small_scan.get_probe() * np.complex64(1j)
    save_probe(probe, small_scan, tmp_path / "probe.h5")
    assert np.array_equal(with_probe(small_scan, tmp_path / "probe.h5").get_probe(), probe)
    with pytest.raises(InputError, match="no such file"):
        with_probe(small_scan, tmp_path / "other.h5")
    (tmp_path / "text.h5").write_text("no probe")
    with pytest.raises(InputError, match="probe file"):
        with_probe(small_scan, tmp_path / "text.h5")
    other = replace(small_scan, optics=replace(small_scan.optics, energy_eV=200e3))
    with pytest.raises(InputError, match="eV"):
        with_probe(other, tmp_path / "probe.h5")


def test_scans_of_different_calibration_are_refused(small_scan: Scan) -> None:
    with pytest.raises(InputError, match="differ"):
        next(fit_probe([small_scan, replace(small_scan, k_step_invA=0.05)]))
    with pytest.raises(InputError, match="no scans"):
        next(fit_probe([]))
