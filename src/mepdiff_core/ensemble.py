"""Several samples of one posterior: which the held-out patterns like best, and what their spread is worth."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

if TYPE_CHECKING:
    from mepdiff_core.run_summary import RunSummary
    from mepdiff_core.scan import Scan

Volumes = npt.NDArray[np.floating]
NOMINAL = 0.95
"""Of the truth that an interval ought to hold."""
FEW = 8
"""Of fewer normal samples the standard deviation is wrong by more than a quarter as a rule: 1 / sqrt(2 (k - 1))."""
SIMULATED = {"dps": (0.90, 0.63), "proximal": (0.48, 0.37), "crystal": (0.0, 0.0)}
"""What was found instead, of all voxels and of those with atoms, by method, on simulated crystals (docs/method.md)."""


def outlines(mask: npt.NDArray[np.bool_]) -> list[npt.NDArray[np.float64]]:
    """Closed lines (n, 2) as (row, column) round what is true in a (y, x) mask, half a pixel outside it."""
    from skimage.measure import approximate_polygon, find_contours

    padded = np.pad(np.asarray(mask, float), 1)
    lines = [approximate_polygon(line - 1, 0.3)[:-1] for line in find_contours(padded, 1e-3)]
    return [np.asarray(line, np.float64) for line in lines if len(line) > 2]


def heldout_deviances(
    scan: Scan, samples: Volumes, slice_thickness_A: float, heldout_fraction: float, seed: int, device: Any = "cpu"
) -> list[float]:
    """Poisson deviance a pixel of the patterns that no sample was fitted to, at each sample.

    Args:
        samples: (k, slices, y, x) on the scan's object field, rad.
        heldout_fraction, seed: those of the run.

    Raises:
        InputError: the run held no patterns out.
    """
    import torch

    from mepdiff_core.batches import split_patterns
    from mepdiff_core.forward import ForwardModel
    from mepdiff_core.likelihood import Poisson
    from mepdiff_core.metrics import poisson_deviance

    _, held = split_patterns(scan.n_patterns, heldout_fraction, seed)
    check(len(held) > 0, "the run held no patterns out, so its samples cannot be ranked; set heldout_fraction to 0.05")
    model = ForwardModel(scan, samples.shape[1], slice_thickness_A, device=device)
    electrons = scan.electrons_per_pattern
    measured = scan.patterns_at(held)[:, scan.seen].astype(np.float64)
    found = []
    for sample in samples:
        predicted = model.predict(torch.as_tensor(np.array(sample)), held).cpu().numpy()[:, scan.seen] * electrons
        found.append(poisson_deviance(predicted, measured, Poisson().background * electrons))
    return found


def errors_and_spread(
    samples: Volumes, truth: Volumes, illuminated: npt.NDArray[np.bool_] | None = None
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Truth minus mean, and standard deviation, of samples, both (z, voxels) where electrons went.

    A constant phase that no pattern can see is taken away from each volume first.

    Args:
        samples: (k, z, y, x), at least two; truth: (z, y, x); illuminated: (y, x) where voxels count, all by default.
    """
    check(len(samples) >= 2, f"spread needs two samples or more, got {len(samples)}")
    mask = np.ones(truth.shape[1:], bool) if illuminated is None else illuminated
    inside = samples[:, :, mask].astype(np.float64)
    inside = inside - inside.mean((1, 2), keepdims=True)
    true = truth[:, mask].astype(np.float64)
    return true - true.mean() - inside.mean(0), inside.std(0, ddof=1)


def coverage(
    samples: Volumes, truth: Volumes, illuminated: npt.NDArray[np.bool_] | None = None, atoms: bool = False
) -> float:
    """Part of the voxels whose true phase lies where 95 % of the truth should lie, if it were one more sample.

    The interval is mean ± t s sqrt(1 + 1/k) with s the spread of k samples and t Student's of k - 1: exact for normal
    samples, however few they are.

    Args:
        samples, truth, illuminated: as for ``errors_and_spread``.
        atoms: only voxels where atoms are; there are few of them, and their coverage drowns in the background's.
    """
    from mepdiff_core.metrics import atom_mask

    error, spread = errors_and_spread(samples, truth, illuminated)
    within = np.abs(error) <= reach(len(samples)) * spread
    counted = atom_mask(truth)[:, np.ones(truth.shape[1:], bool) if illuminated is None else illuminated]
    return float(np.mean(within[counted] if atoms else within))


def reach(count: int) -> float:
    """Spreads of so many samples to either side of their mean that 95 % of the truth should lie within."""
    from scipy.stats import t

    return float(t.ppf(0.5 + NOMINAL / 2, count - 1)) * math.sqrt(1 + 1 / count)


@dataclass(frozen=True)
class Ensemble:
    """Samples, judged.

    Attributes:
        samples: (k, z, y, x), rad, the one first that the held-out patterns like best (as drawn where none were held out).
        deviances: of the held-out patterns, in that order; empty without any.
        covered: part of the illuminated voxels whose truth lies where 95 % should, and the same of those with atoms; None
            where the truth is not known.
        words: how they rank, and what their spread means.
    """

    samples: Volumes
    deviances: list[float]
    covered: tuple[float, float] | None
    words: str

    @property
    def mean(self) -> npt.NDArray[np.float32]:
        return np.asarray(self.samples.mean(0, dtype=np.float64), np.float32)

    @property
    def spread(self) -> npt.NDArray[np.float32]:
        """(z, y, x) standard deviation."""
        return np.asarray(self.samples.std(0, ddof=1, dtype=np.float64), np.float32)


def judge_ensemble(
    samples: Volumes,
    record: Mapping[str, Any],
    scan: Scan | None,
    illuminated: npt.NDArray[np.bool_] | None = None,
    device: Any = "cpu",
) -> Ensemble:
    """Rank the samples of a run, two or more, and measure their spread, as far as the scan allows.

    Args:
        samples: (k, z, y, x), rad; record: ``run.yaml``.
        scan: calibrated as the run was; None: neither patterns nor truth are known.
        illuminated: (y, x) where electrons went.
    """
    config, thickness = record["config"], float(record["voxel_size_A"][0])
    deviances: list[float] = []
    covered = None
    if scan is not None and config.get("heldout_fraction", 0) > 0:
        found = heldout_deviances(scan, samples, thickness, config["heldout_fraction"], config["seed"], device)
        order = np.argsort(found, kind="stable")
        samples, deviances = samples[order], [found[i] for i in order]
    truth = None if scan is None else scan.truth
    if truth is not None and truth.phase.shape == samples.shape[1:] and abs(truth.voxel_size_A[0] - thickness) < 1e-6:
        covered = coverage(samples, truth.phase, illuminated), coverage(samples, truth.phase, illuminated, atoms=True)
    words = f"{rank_in_words(deviances)} {spread_in_words(len(samples), covered, record.get('method'))}".strip()
    return Ensemble(samples, deviances, covered, words)


def read_ensemble(run: RunSummary, scans: Sequence[Path] = ()) -> Ensemble:
    """The samples of a run folder, judged.

    Args:
        scans: files that the run's scan may be, after the place on record.

    Raises:
        InputError: the run drew fewer than two samples, or files that are damaged.
    """
    from mepdiff_core.run_summary import scan_of
    from mepdiff_core.runs import MASK, SAMPLES
    from mepdiff_core.volume_files import read_volume

    path = run.path / SAMPLES[0]
    drawn = read_volume(path, samples=True) if path.exists() else np.zeros((0,))
    check(len(drawn) > 1, f"{run.name} drew fewer than two samples, so there is no spread; set samples to 4 and run again")
    mask = run.path / MASK
    illuminated = read_volume(mask)[0] > 0.5 if mask.exists() else None
    return judge_ensemble(drawn, run.record, scan_of(run, scans), illuminated)


def rank_in_words(deviances: Sequence[float]) -> str:
    """How well samples explain the patterns held out, the best first; nothing where none were."""
    if not deviances:
        return ""
    figures = [f"{deviance:.4f}" for deviance in deviances]
    if len({*figures}) == 1:
        return f"The patterns held out do not tell the samples apart: deviance {figures[0]} a pixel of each."
    told = ", ".join(figures[:FEW]) + (" …" if len(figures) > FEW else "")
    return f"Sample 1 explains the patterns held out best; deviance a pixel, sample by sample: {told}."


def spread_in_words(count: int, covered: tuple[float, float] | None, method: str | None = None) -> str:
    """What the spread of samples means, and what is known of its worth."""
    words = (
        f"The spread is how far the {count} samples differ: what the patterns leave open to this method, not what the method"
        " itself gets wrong."
    )
    if count < FEW:
        words += (
            f" {count} are few: the spread at a voxel is a rough guess, and 95 % need {reach(count):.1f} of it to either"
            f" side of the mean; draw {FEW} or more to judge by it."
        )
    known = covered or SIMULATED.get(method or "")
    if known is None:
        return f"{words} Whether the truth lies within it has not been measured: it is no confidence interval."
    share, of_atoms = known
    verdict = "" if min(known) >= 0.9 else ": too small for a confidence interval"
    where = "Measured against this scan's truth" if covered else "On simulated crystals"
    lie = "lie" if covered else "lay"
    return (
        f"{words} {where}, {100 * share:.0f} % of the illuminated voxels {lie} where {100 * NOMINAL:.0f} % should, of those"
        f" with atoms {100 * of_atoms:.0f} %{verdict}."
    )
