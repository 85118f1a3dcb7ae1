"""Large scans: counts that stay in their file give what counts in memory give, and take no memory."""

from __future__ import annotations

import pickle
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core import lazy_counts, measured, preparation
from mepdiff_core import scan as scan_module
from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.baselines import run_adam
from mepdiff_core.errors import InputError
from mepdiff_core.lazy_counts import FileCounts, MadeCounts, is_lazy
from mepdiff_core.preparation import prepare, words_of
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.settings import ADAM_BEST
from mepdiff_core.virtual import counts_histogram, detector_mask, mean_pattern, virtual_image

QUICK = replace(ADAM_BEST, engine="fast", iterations=3, patience=None, batch_size=8)


@pytest.fixture
def lazily(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every scan is a large one."""
    for module, name in ((scan_module, "LAZY_FROM_BYTES"), (preparation, "LAZY_FROM_BYTES"), (measured, "HELD_BYTES")):
        monkeypatch.setattr(module, name, 0)


@pytest.fixture
def lazy(lazily: None, small_file: Path) -> Scan:
    return load_scan(small_file)


def test_small_scans_are_in_memory(small_file: Path) -> None:
    assert not is_lazy(load_scan(small_file).counts)
    assert lazy_counts.LAZY_FROM_BYTES == 2**30


def test_a_lazy_scan_is_the_scan(lazy: Scan, small_scan: Scan) -> None:
    assert is_lazy(lazy.counts)
    assert (lazy.counts.shape, lazy.counts.dtype) == (small_scan.counts.shape, small_scan.counts.dtype)
    assert (lazy.counts.nbytes, lazy.counts.size, len(lazy.counts)) == (small_scan.counts.nbytes, small_scan.counts.size, 6)
    assert np.array_equal(np.asarray(lazy.counts), small_scan.counts)
    assert np.array_equal(lazy.patterns(), small_scan.patterns())
    assert np.array_equal(lazy.patterns_at(np.array([41, 0, 13])), small_scan.patterns()[[41, 0, 13]])
    assert np.array_equal(mean_pattern(lazy.counts), mean_pattern(small_scan.counts))
    ring = detector_mask(64, lazy.k_step_invA, 1.2, 2.0)
    assert np.array_equal(virtual_image(lazy.counts, ring), virtual_image(small_scan.counts, ring))
    for ours, theirs in zip(counts_histogram(lazy.counts), counts_histogram(small_scan.counts), strict=True):
        assert np.array_equal(ours, theirs)
    assert np.array_equal(pickle.loads(pickle.dumps(lazy.counts))[2, 3], small_scan.counts[2, 3])


def test_a_reconstruction_is_the_same_to_the_bit(lazy: Scan, small_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    *_, from_file = run_adam(lazy, QUICK)
    monkeypatch.setattr(measured, "HELD_BYTES", 1 << 31)
    *_, in_memory = run_adam(small_scan, QUICK)
    assert np.array_equal(from_file.volume, in_memory.volume)
    assert (from_file.loss, from_file.heldout) == (in_memory.loss, in_memory.heldout)


def test_the_crystal_solvers_misfit_is_the_same(lazy: Scan, small_scan: Scan, monkeypatch: pytest.MonkeyPatch) -> None:
    atoms = np.array([[2.0, 2.5, 1.5], [4.0, 1.0, 3.0]]), np.array([38, 22])
    some, misfits = np.array([3, 40, 17]), []
    for scan, at_most in ((lazy, 0), (small_scan, 1 << 31)):
        monkeypatch.setattr(measured, "HELD_BYTES", at_most)
        waves = AtomWaves(scan, 4, 1.6)
        assert (waves.measured.held is None) == (at_most == 0)
        misfits.append(waves.misfit(waves.transmission(waves.draw(*atoms)), some))
        assert waves.changed(slices=3).measured is waves.measured
    assert np.array_equal(*misfits)


def test_ptyrad_says_that_it_cannot(lazy: Scan) -> None:
    with pytest.raises(InputError, match="PtyRAD holds all 42 patterns in memory, and these are too large; use engine=fast"):
        next(run_adam(lazy, replace(QUICK, engine="ptyrad")))


def test_preparing_is_the_same(lazy: Scan, small_scan: Scan, tmp_path: Path) -> None:
    config = PrepareConfig(scan_crop=(0, 6, 1, 7), fill_bad_pixels=True, centre="mean", bin=2, rotation="find", beam="sum")
    from_file, in_memory = prepare(lazy, config), prepare(small_scan, config)
    assert is_lazy(from_file.counts)
    assert words_of(from_file) == words_of(in_memory)
    rows: list[tuple[int, int]] = []
    save_scan(from_file, tmp_path / "ready.h5", lambda *row: rows.append(row))
    assert rows == [(n, 6) for n in range(1, 7)]
    again = load_scan(tmp_path / "ready.h5")
    assert np.array_equal(np.asarray(again.counts), in_memory.counts)
    assert again.electrons_per_pattern == pytest.approx(in_memory.electrons_per_pattern, rel=1e-6)
    assert np.array_equal(again.positions_A, in_memory.positions_A)
    assert again.truth is not None
    assert in_memory.truth is not None
    assert np.array_equal(again.truth.phase, in_memory.truth.phase)


def test_reading_takes_the_memory_of_a_row(lazily: None, small_scan: Scan, tmp_path: Path) -> None:
    """48 MB of counts, opened, averaged, and a mini-batch judged: a tenth of that at most."""
    counts = np.zeros((48, 64, 128, 128), np.uint8)
    counts[..., 64, 64] = 3
    positions = np.stack(np.divmod(np.arange(48 * 64), 64), -1) * 0.3
    made = replace(
        small_scan, counts=counts, positions_A=positions, truth=None, k_step_invA=small_scan.k_step_invA / 2, thickness_A=1.6
    )
    save_scan(made, tmp_path / "large.h5")
    del counts, made
    tracemalloc.start()
    large = load_scan(tmp_path / "large.h5")
    assert mean_pattern(large.counts)[64, 64] == 3
    assert large.patterns_at(np.arange(0, 3072, 100)).shape == (31, 128, 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5e6


def test_what_is_no_count_is_found_when_it_is_read(lazily: None, small_scan: Scan, tmp_path: Path) -> None:
    wrong = small_scan.counts.astype(np.float32)
    save_scan(replace(small_scan, counts=wrong.copy()), tmp_path / "scan.h5")
    with h5py.File(tmp_path / "scan.h5", "r+") as file:
        file["counts"][3, 2, 5, 5] = -1
    scan = load_scan(tmp_path / "scan.h5")
    assert scan.counts[0].shape == (7, 64, 64)
    with pytest.raises(InputError, match="counts has 1 pixels that are negative or not a number"):
        scan.counts[3]
    (tmp_path / "scan.h5").unlink()
    assert scan.counts[0].shape == (7, 64, 64)  # the file stays open
    with pytest.raises(InputError, match="cannot be read any more"):
        FileCounts(tmp_path / "scan.h5", "counts", scan.counts.shape, scan.counts.dtype)[0]


INDICES: list[Any] = [
    np.s_[1],
    np.s_[-1],
    np.s_[:],
    np.s_[1:3],
    np.s_[2, 1],
    np.s_[2, 1:],
    np.s_[..., 2],
    np.s_[1, ..., 2],
    np.s_[:, 1],
    np.s_[0:2, 1, 2, 3],
    np.s_[:, :, 1:3, 2],
]


@given(st.sampled_from(INDICES))
def test_made_counts_are_indexed_as_an_array_is(index: Any) -> None:
    array = np.arange(3 * 4 * 5 * 6).reshape(3, 4, 5, 6)
    made = MadeCounts(array.shape, array.dtype, lambda row: array[row])
    assert np.array_equal(made[index], array[index])
    assert made.max() == array.max()
