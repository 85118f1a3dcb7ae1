"""Vacancies and displaced atoms looked for one by one, where the counts decide.

The misfit's gradient by the amount and by the place of every single atom points at the sites that may differ; the few that
stand out are tried in the model itself, on the patterns whose beam passes nearest.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import map_coordinates
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves
from mepdiff_core.batches import Indices
from mepdiff_core.defects import Defect
from mepdiff_core.polish import draw_cell
from mepdiff_core.unit_cell import Triple, UnitCell

Array = npt.NDArray[np.float64]

STANDS_OUT = 4.0
"""Times the usual size of its gradient, from where on a site is tried."""
TRIED = 6
"""Sites of each kind at most."""
PATTERNS_A_STEP, NEAREST_PATTERNS = 64, 96
LEAST_NATS = 20.0
"""What a site that differs must gain: more than the best of all sites would by chance."""
STEP_A = 0.15
LARGEST_A = 0.8
"""Of the displacements that are tried."""
LIT = 0.3
"""Part of the full dose below which a site is not looked at."""


def find_defects(
    waves: AtomWaves, cell: UnitCell, dose: Array, origin_A: Array, pixel_A: float, indices: Indices
) -> Generator[float, None, list[Defect]]:
    """The sites that differ, those of the largest gain first; yields the part of the way that is done.

    Args:
        waves: the model, with the scan's counts; cell: the solved crystal.
        dose: (y, x) of the object field, as ``illumination`` gives it; origin_A: of its first pixel; pixel_A: its pixel.
        indices: patterns to look through.
    """
    corner = np.array([0.0, *waves.origin_A])
    box = cell.atoms_in((waves.slices * waves.slice_thickness_A, *waves.size_A), (0.0, *waves.origin_A))
    sites, numbers = box.positions_A + corner, box.numbers
    light = map_coordinates(dose, ((sites[:, 1:] - origin_A) / pixel_A).T, order=1, mode="constant")
    sites, numbers, light = sites[light > LIT], numbers[light > LIT], light[light > LIT]
    phase = draw_cell(waves, cell)
    gradient: Tensor | None = None
    parts = np.array_split(indices, max(1, len(indices) // PATTERNS_A_STEP))
    for done, part in enumerate(parts):
        more = waves.gradient(phase, part)
        gradient = more if gradient is None else gradient + more
        yield 0.8 * (done + 1) / len(parts)
    assert gradient is not None
    by_amount, by_place = _by_site(waves, gradient, sites, numbers)
    removal = _standing_out(by_amount, numbers, light)
    shifting = np.hypot(*(_standing_out(by_place[:, axis], numbers, light) for axis in (0, 1)))
    found: list[Defect] = []
    for i in [int(i) for i in np.argsort(-removal)[:TRIED] if removal[i] > STANDS_OUT]:
        trial = _Trial(waves, phase, sites[i], int(numbers[i]), indices)
        gain = trial.gain(None)
        if gain > LEAST_NATS:
            phase = trial.phase(None)
            found.append(Defect("vacancy", int(numbers[i]), _triple(sites[i]), (0.0, 0.0), gain))
        yield 0.85
    empty = {defect.site_A for defect in found}
    for i in [int(i) for i in np.argsort(-shifting)[:TRIED] if shifting[i] > STANDS_OUT and _triple(sites[i]) not in empty]:
        trial = _Trial(waves, phase, sites[i], int(numbers[i]), indices)
        moved, gain = trial.best_move(-by_place[i] / np.linalg.norm(by_place[i]))
        if gain > LEAST_NATS:
            phase = trial.phase(moved)
            found.append(Defect("displaced", int(numbers[i]), _triple(sites[i]), (float(moved[0]), float(moved[1])), gain))
        yield 0.95
    return sorted(found, key=lambda defect: -defect.gain_nats)


class _Trial:
    """One atom taken out or moved, judged by the model on the patterns nearest to it."""

    def __init__(self, waves: AtomWaves, phase: Tensor, site: Array, number: int, indices: Indices) -> None:
        self.waves, self.around, self.site = waves, phase, site
        self.spectrum = waves.factor(number)
        self.slice = min(int(site[0] / waves.slice_thickness_A + 1e-9), waves.slices - 1)
        away = np.linalg.norm(waves.positions_A[indices] - site[1:], axis=1)
        self.indices = np.sort(indices[np.argsort(away)[:NEAREST_PATTERNS]])
        self.before = self._misfit(phase)

    def phase(self, moved: Array | None) -> Tensor:
        """With the atom moved by (y, x) Å, or without it."""
        there = self.waves.spectrum(self.site[None, 1:])
        change = -there if moved is None else self.waves.spectrum((self.site[1:] + moved)[None]) - there
        phase = self.around.clone()
        phase[self.slice] += self.waves.image(change * self.spectrum)
        return phase

    def gain(self, moved: Array | None) -> float:
        """Nats."""
        return self.before - self._misfit(self.phase(moved))

    def best_move(self, direction: Array) -> tuple[Array, float]:
        """Along a direction, the top of the parabola through three gains, if it gains more than they."""
        near, far = self.gain(direction * STEP_A), self.gain(direction * 2 * STEP_A)
        bend = far - 2 * near
        best = 2 * STEP_A if bend >= 0 else STEP_A * (0.5 - near / bend)
        length = float(np.clip(best, 0.0, LARGEST_A))
        gain = self.gain(direction * length)
        return max(
            ((direction * at, value) for at, value in ((length, gain), (STEP_A, near), (2 * STEP_A, far))),
            key=lambda pair: pair[1],
        )

    def _misfit(self, phase: Tensor) -> float:
        return float(self.waves.misfit(self.waves.transmission(phase), self.indices).sum())


def _by_site(waves: AtomWaves, gradient: Tensor, sites: Array, numbers: npt.NDArray[np.int64]) -> tuple[Array, Array]:
    """(sites,) derivative of the misfit by each atom's amount, (sites, 2) by its place, 1/Å."""
    pixels = (sites[:, 1:] - waves.origin_A) / waves.model_pixel_A
    slices = np.minimum((sites[:, 0] / waves.slice_thickness_A + 1e-9).astype(int), waves.slices - 1)
    transformed = torch.fft.fft2(gradient)
    amount, place = np.zeros(len(sites)), np.zeros((len(sites), 2))
    frequency = 2j * np.pi * torch.fft.fftfreq(waves.waves_grid, waves.model_pixel_A, device=gradient.device)
    for number in np.unique(numbers):
        atom = torch.fft.fft2(waves.to_model(waves.draw_flat(np.array([waves.origin_A]), int(number))))
        matched = transformed * atom.conj()
        for s in np.unique(slices[numbers == number]):
            mine = np.flatnonzero((numbers == number) & (slices == s))
            spectra = (matched[s], matched[s] * frequency[:, None], matched[s] * frequency[None])
            maps = [torch.fft.ifft2(spectrum).real.cpu().numpy() for spectrum in spectra]
            values = [map_coordinates(plane, pixels[mine].T, order=3, mode="grid-wrap") for plane in maps]
            amount[mine], place[mine, 0], place[mine, 1] = values
    return amount, place


def _standing_out(derivative: Array, numbers: npt.NDArray[np.int64], light: Array) -> Array:
    """Derivatives in units of their usual size at sites of the same element."""
    scaled = derivative / np.sqrt(light)
    result = np.zeros(len(scaled))
    for number in np.unique(numbers):
        mine = numbers == number
        usual = np.median(np.abs(scaled[mine])) / 0.6745
        result[mine] = scaled[mine] / max(float(usual), 1e-12)
    return result


def _triple(site: Array) -> Triple:
    return float(site[0]), float(site[1]), float(site[2])
