"""The simulation against abTEM itself, and its laws."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conftest import SMALL
from mepdiff_core.crystals import Crystal, cut_box
from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics
from mepdiff_core.scan import Scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan, smallest_integers


@pytest.fixture(scope="module")
def lopsided() -> Crystal:
    """No symmetry at all, in a cell whose edge divides the windows below: every wrong axis or sign shows."""
    fractional = np.array([[0.11, 0.23, 0.06], [0.52, 0.71, 0.31], [0.83, 0.38, 0.56], [0.29, 0.85, 0.81]])
    return Crystal("lopsided", np.diag([6.4, 6.4, 6.4]), np.array([8, 22, 38, 14]), fractional)


def test_patterns_agree_with_abtem(lopsided: Crystal) -> None:
    """The same crystal in a periodic cell of the window's size, scanned by abTEM from end to end.

    Both grids lie alike: abTEM spreads an atom over four pixels, so a grid half a pixel off is 1e-4 different.
    """
    import abtem
    from ase import Atoms

    config = SimulationConfig(
        optics=Optics(overfocus_A=80.0, aberrations={"C12": 30.0, "phi12": 20.0}),
        scan_shape=(2, 3),
        scan_step_A=0.93,
        detector_pixels=64,
        dose_e_per_A2=None,
        thickness_A=6.4,
        origin_A=(0.0, 0.7, 1.9),
    )
    scan = simulate_scan(lopsided, config)

    edge = 25.6
    box = cut_box(lopsided, "c", (6.4, edge, edge), (0.0, 0.7 - edge / 2, 1.9 - edge / 2))
    cell = Atoms(box.numbers, box.positions_A[:, ::-1], cell=(edge, edge, 6.4), pbc=True)
    with abtem.config.set({"precision": "float64", "fft": "numpy", "diagnostics.progress_bar": False}):
        potential = abtem.Potential(cell, gpts=256, slice_thickness=1.6, parametrization="lobato", projection="infinite")
        probe = abtem.Probe(
            energy=300e3, semiangle_cutoff=21.4, soft=False, C10=80.0, C30=5000.0, C12=30.0, phi12=np.radians(20)
        )
        at = abtem.CustomScan((scan.positions_A + edge / 2)[:, ::-1])
        measured = probe.scan(potential, scan=at, detectors=abtem.PixelatedDetector(max_angle="cutoff"), lazy=False)
    patterns = np.asarray(measured.array)
    centre = patterns.shape[-1] // 2
    part = slice(centre - 64, centre + 64, 2)
    reference = 4 * patterns[:, part, part].transpose(0, 2, 1)
    error = np.linalg.norm(scan.patterns() - reference) / np.linalg.norm(reference)
    assert error < 1e-5, f"{error:.2e}"


def test_truth_agrees_with_abtem_rendering_of_the_crystal(lopsided: Crystal) -> None:
    """In the middle of a much larger box: no seam, the right place, the right units."""
    from mepdiff_core.volumes import render_phase

    config = replace(SMALL, scan_shape=(3, 3), scan_step_A=0.8, origin_A=(1.6, 0.5, 0.9), dose_e_per_A2=None)
    truth = simulate_scan(lopsided, config).truth
    assert truth is not None
    z, y, x = truth.origin_A
    assert z == pytest.approx(0.8)
    margin = 20.0
    slices, height, width = truth.phase.shape
    size = (6.4, height * 0.2 + 2 * margin, width * 0.2 + 2 * margin)
    box = cut_box(lopsided, "c", size, (1.6, 0.5 + y - margin, 0.9 + x - margin))
    large = render_phase(box, 300e3, (round(size[1] / 0.2), round(size[2] / 0.2)), 1.6)
    inner = large[:, 100 : 100 + height, 100 : 100 + width]
    assert slices == 4
    assert np.abs(truth.phase - inner).max() < 1e-3


def test_truth_has_the_crystal_period_up_to_its_edges(lopsided: Crystal) -> None:
    truth = simulate_scan(lopsided, replace(SMALL, dose_e_per_A2=None, scan_shape=(2, 2))).truth
    assert truth is not None
    assert np.abs(truth.phase[:, 32:] - truth.phase[:, :-32]).max() < 1e-3
    assert np.abs(truth.phase[:, :, 32:] - truth.phase[:, :, :-32]).max() < 1e-3


def test_origin_along_the_beam_shifts_slices(lopsided: Crystal) -> None:
    volumes = []
    for z in (0.0, 1.6):
        config = replace(SMALL, scan_shape=(1, 1), thickness_A=12.8, origin_A=(z, 0.0, 0.0), dose_e_per_A2=None)
        truth = simulate_scan(lopsided, config).truth
        assert truth is not None
        volumes.append(truth.phase)
    assert np.array_equal(volumes[0][1:], volumes[1][:-1])


def test_axes_are_different_views(lopsided: Crystal) -> None:
    sums = [simulate_scan(lopsided, replace(SMALL, scan_shape=(1, 1), axis=axis)).counts for axis in ("a", "b", "c")]
    assert not np.array_equal(sums[0], sums[1])
    assert not np.array_equal(sums[1], sums[2])


def test_electrons_are_conserved_and_poisson(perovskite: Crystal, small_scan: Scan) -> None:
    clean = simulate_scan(perovskite, replace(SMALL, dose_e_per_A2=None))
    expected = clean.patterns().astype(float) * small_scan.electrons_per_pattern
    assert small_scan.electrons_per_pattern == pytest.approx(1e6 * 0.73**2)
    assert 0.97 < clean.patterns().sum((1, 2)).mean() <= 1.01
    counts = small_scan.patterns().astype(float)
    bright = expected > 5
    pull = (counts - expected)[bright] / np.sqrt(expected[bright])
    assert abs(pull.mean()) < 0.02
    assert pull.std() == pytest.approx(1, abs=0.02)


def test_counts_are_the_same_in_every_process(small_scan: Scan) -> None:
    code = (
        "import sys, hashlib; sys.path.insert(0, sys.argv[1])\n"
        "import torch, numpy as np; torch.set_num_threads(1)\n"
        "from conftest import SMALL\n"
        "from mepdiff_core.crystals import Crystal\nfrom mepdiff_core.simulate import simulate_scan\n"
        "f = np.array([[0, 0, 0], [.5, .5, .5], [.5, .5, 0], [.5, 0, .5], [0, .5, .5]])\n"
        "c = Crystal('SrTiO3', 3.905 * np.eye(3), np.array([38, 22, 8, 8, 8]), f)\n"
        "print(hashlib.sha256(simulate_scan(c, SMALL).counts.tobytes()).hexdigest())"
    )
    here = str(Path(__file__).parent)
    run = subprocess.run([sys.executable, "-c", code, here], capture_output=True, text=True, check=True, env=os.environ)
    assert run.stdout.strip() == hashlib.sha256(small_scan.counts.tobytes()).hexdigest()


def test_random_origin_is_drawn_from_the_seed(perovskite: Crystal) -> None:
    config = replace(SMALL, scan_shape=(1, 1), origin_A=None)
    first, again, other = (simulate_scan(perovskite, replace(config, seed=s)) for s in (1, 1, 2))
    assert np.array_equal(first.counts, again.counts)
    assert first.info["simulation"]["origin_A"] != other.info["simulation"]["origin_A"]
    exact = simulate_scan(perovskite, replace(config, seed=1, origin_A=tuple(first.info["simulation"]["origin_A"])))
    assert np.array_equal(first.counts, exact.counts)


def test_counts_take_the_narrowest_type_that_holds_them() -> None:
    assert smallest_integers(np.array([0, 255])).dtype == np.uint8
    assert smallest_integers(np.array([0, 70000])).dtype == np.uint32


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"thickness_A": 5.0}, "thickness_A"),
        ({"thickness_A": 0.0}, "thickness_A"),
        ({"dose_e_per_A2": -1.0}, "dose_e_per_A2"),
        ({"scan_step_A": 0.0}, "scan_step_A"),
        ({"k_max_invA": 1.0}, "semiangle_mrad"),
        ({"detector_pixels": 63}, "detector_pixels"),
        ({"sampling_A": 0.5}, "sampling_A"),
    ],
)
def test_impossible_simulations_are_refused(values: dict[str, float], named: str) -> None:
    with pytest.raises(InputError, match=named):
        SimulationConfig(**values)  # type: ignore[arg-type]


def test_a_simulation_larger_than_memory_is_refused(perovskite: Crystal) -> None:
    with pytest.raises(InputError, match="GB"):
        simulate_scan(perovskite, SimulationConfig(scan_shape=(3000, 3000)))
