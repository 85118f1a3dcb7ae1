"""Waves through a crystal drawn from its atoms.

Atoms are drawn finely and the transmission function, not the phase, is brought to the model's pixel; windows are twice the
detector's. A volume at the detector's pixel misses several percent of the scattering (docs/method.md); this model misses
less than the counts can tell, which is what lets them decide where an atom lies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.fft import next_fast_len
from torch import Tensor

from mepdiff_core.crystals import Atoms
from mepdiff_core.measured import MeasuredPatterns
from mepdiff_core.multislice import Multislice, detector_indices, walk
from mepdiff_core.optics import frequencies, propagator
from mepdiff_core.renderer import Renderer
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig
from mepdiff_core.wide_probe import wide_probe

WINDOW, NARROWER = 2, 2
"""What one atom changes is carried in windows so many times narrower: it starts where the beam is, and goes not far."""
DRAWN_A, MODEL_A = 0.1, 0.135
"""Largest pixels of the drawing and of the waves; coarser ones cost hundreds of nats on strong crystals."""
BACKGROUND = 5e-4 / 2**18
"""Part of the beam in each pixel that no model explains: 5e-4 electrons of the 2^18 in one of the paper's patterns. More
would hide the few electrons at high angles, which tell much."""
BANDWIDTH = 2 / 3
"""Part of the drawing's frequencies that transmission function and propagator keep. Source: Kirkland (2010), section 6.8."""
PATTERNS_AT_ONCE = 2
"""Patterns whose waves are carried together: more do not stay in a processor's cache."""
Result = TypeVar("Result")


class Windows:
    """Square windows about the beam, as wide as those of the waves or narrower.

    Args:
        waves: whose windows they are, or lie in the middle of; n_detector: pixels along the detector.
        side: pixels along one; amplitude: scale of what is seen.
    """

    def __init__(self, waves: Multislice, n_detector: int, side: int, amplitude: float) -> None:
        self.waves, self.side, self.first = waves, side, (waves.n - side) // 2
        part = slice(self.first, self.first + side)
        self.inner = (part, part)
        step = waves.n // side
        self._transfer = waves._transfer[::step, ::step] * step**2
        where = detector_indices(n_detector, side, WINDOW // step)
        self._detector = torch.as_tensor(where, device=waves.device)
        turn = np.exp(-2j * np.pi * where * self.first / side)  # the windows' corners differ: phases of what is seen
        self._turn = torch.as_tensor(turn[:, None] * turn * amplitude, dtype=torch.complex64, device=waves.device)

    def place(self, index: int) -> tuple[slice, slice]:
        """Where a pattern's window lies in the transmission function."""
        y, x = self.waves.corners[index].tolist()
        return slice(y + self.first, y + self.first + self.side), slice(x + self.first, x + self.first + self.side)

    def carried(self, waves: Tensor) -> Tensor:
        """(..., side, side) behind a slice -> before the next."""
        result: Tensor = torch.fft.ifft2(torch.fft.fft2(waves).mul_(self._transfer), norm="forward")
        return result

    def seen(self, waves: Tensor) -> Tensor:
        """(..., n, n) amplitudes of (..., side, side) waves behind the last slice."""
        result: Tensor = torch.fft.fft2(waves)[..., self._detector[:, None], self._detector[None, :]] * self._turn
        return result


@dataclass(frozen=True)
class Imaging:
    """What a scan's file may not know.

    Attributes:
        overfocus_A: beyond that of the scan's probe, Å.
        thermal_A: root of the atoms' mean square displacement along one axis, Å.
        exact: whether atoms are drawn where they are; else spread over the four nearest pixels, as abTEM draws them.
    """

    overfocus_A: float = 0.0
    thermal_A: float = 0.0
    exact: bool = False


class AtomWaves:
    """Predicts patterns of a crystal drawn from atoms.

    Args:
        scan: positions, optics, probe and counts.
        slices: number of slices; slice_thickness_A: their thickness, Å.
        background: part of the beam in each pixel that no model explains.
        device: where to compute.
        imaging: what is known beyond the scan.
        measured: the scan's patterns, where another model has them already.
        model: the probe's modes, the specimen's tilt, the propagator; window and sampling are these waves' own.

    Attributes:
        positions_A: (positions, 2) of the beam as (y, x).
        origin_A: (y, x) of the drawing's first pixel in the frame of the scan's positions.
        size_A: (y, x) extent of the drawing, Å; it is periodic.
        wide, narrow: windows in which waves are carried: as wide as the beam's own, or those of what one atom changes.
    """

    def __init__(
        self,
        scan: Scan,
        slices: int,
        slice_thickness_A: float,
        background: float = BACKGROUND,
        device: torch.device | str = "cpu",
        imaging: Imaging = Imaging(),
        measured: MeasuredPatterns | None = None,
        model: ModelConfig | None = None,
    ) -> None:
        model = model or ModelConfig()
        self.scan, self.imaging, self.model = scan, imaging, model
        n, pixel = scan.n_pixels, scan.pixel_size_A
        quarter = math.ceil(4 * pixel / MODEL_A - 1e-9)  # model pixels along four of the detector's
        while (WINDOW * n * quarter) % 8:
            quarter += 1
        self.grid = WINDOW * n * quarter // 4
        self.model_pixel_A = 4 * pixel / quarter
        factor = math.ceil(pixel / DRAWN_A - 1e-9)
        self.drawn_pixel_A = pixel / factor
        low, high = scan.positions_A.min(0), scan.positions_A.max(0)
        reach = int(np.ceil((high - low).max() / pixel)) + WINDOW * n + 4
        self.pixels = 4 * next_fast_len(math.ceil(reach / 4))
        before = WINDOW * n // 2 + 2
        self.origin_A = low - before * pixel
        self.size_A = (self.pixels * pixel, self.pixels * pixel)
        self.drawn = self.pixels * factor
        self.waves_grid = self.pixels * quarter // 4
        self.slices, self.slice_thickness_A = slices, slice_thickness_A
        self.device = torch.device(device)
        limit = self._bandwidth(self.waves_grid)
        if self.waves_grid % 2 == 0:  # of Nyquist's frequency the grid has but one sign
            limit[self.waves_grid // 2] = limit[:, self.waves_grid // 2] = False
        self._limit = torch.as_tensor(limit, dtype=torch.float32, device=self.device)
        self.renderer, self._flat = (
            Renderer(
                (self.drawn, self.drawn),
                self.drawn_pixel_A,
                *depth,
                scan.optics.energy_eV,
                device,
                imaging.thermal_A,
                imaging.exact,
            )
            for depth in ((slices, slice_thickness_A), (1, 1.0))
        )
        self.positions_A = np.asarray(scan.positions_A, np.float64)
        position = (self.positions_A - self.origin_A) / self.model_pixel_A
        nearest = np.round(position).astype(np.int64)
        transfer = propagator(scan.optics.energy_eV, self.grid, self.model_pixel_A, slice_thickness_A, model.paraxial)
        self.waves = Multislice(
            wide_probe(scan, WINDOW, self.grid, model, imaging.overfocus_A),
            transfer * self._bandwidth(self.grid),
            nearest - self.grid // 2,
            position - nearest,
            detector_indices(n, self.grid, WINDOW),
            WINDOW**2,
            device,
        )
        self.waves.set_walk(walk(model.tilt_mrad, slice_thickness_A, self.model_pixel_A))
        self.electrons = scan.electrons_per_pattern
        self.background = background
        self.measured = measured or MeasuredPatterns(scan, self.device)
        self._amplitude = math.sqrt(self.waves.gain) / self.grid
        self.wide, self.narrow = (
            Windows(self.waves, n, side, self._amplitude) for side in (self.grid, self.grid // NARROWER)
        )

    def changed(self, *, slices: int | None = None, imaging: Imaging | None = None) -> AtomWaves:
        """The same with another number of slices or imaged otherwise; itself where that changes nothing."""
        slices, imaging = slices or self.slices, imaging or self.imaging
        if (slices, imaging) == (self.slices, self.imaging):
            return self
        thickness, background = self.slice_thickness_A, self.background
        return AtomWaves(self.scan, slices, thickness, background, self.device, imaging, self.measured, self.model)

    def _bandwidth(self, grid: int) -> npt.NDArray[np.bool_]:
        ky, kx = frequencies(grid, self.model_pixel_A)
        return np.array(np.hypot(ky, kx) <= BANDWIDTH / (2 * self.drawn_pixel_A))

    def draw(self, positions_A: npt.NDArray[np.floating], numbers: npt.NDArray[np.integer]) -> Tensor:
        """Phase of each slice, (slices, drawn, drawn) rad, of atoms at (z, y, x) Å in the frame of the scan's positions."""
        return self.renderer.render([self._atoms(positions_A, numbers)])[0]

    def draw_flat(self, positions_A: npt.NDArray[np.floating], number: int) -> Tensor:
        """(drawn, drawn) projected phase, rad, of atoms of one element at (y, x) Å."""
        placed = np.concatenate([np.zeros((len(positions_A), 1)), positions_A], axis=1)
        return self._flat.render([self._atoms(placed, np.full(len(placed), number))])[0, 0]

    def spectrum(self, positions_A: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None = None) -> Tensor:
        """(drawn, drawn // 2 + 1) transform of deltas at (y, x) Å, each of weight 1 or its own."""
        inside = (np.asarray(positions_A) - self.origin_A) % self.size_A
        return self._flat.spectrum(inside / self.drawn_pixel_A, weights)

    def factor(self, number: int) -> Tensor:
        """What turns such a transform into that of the element's projected phase, rad."""
        return self._flat.factor(number)

    def image(self, spectrum: Tensor) -> Tensor:
        """(..., drawn, drawn) from its transform."""
        result: Tensor = torch.fft.irfft2(spectrum, s=(self.drawn, self.drawn))
        return result

    def slope(self, axis: int) -> Tensor:
        """What turns a transform into that of the image's change as its atoms move along y (0) or x (1), 1/Å."""
        k = torch.fft.fftfreq(self.drawn, self.drawn_pixel_A, device=self.device)
        along = k[:, None] if axis == 0 else torch.fft.rfftfreq(self.drawn, self.drawn_pixel_A, device=self.device)[None]
        result: Tensor = -2j * math.pi * along
        return result

    def _atoms(self, positions_A: npt.NDArray[np.floating], numbers: npt.NDArray[np.integer]) -> Atoms:
        moved = np.array(positions_A, float)
        moved[:, 1:] = (moved[:, 1:] - self.origin_A) % self.size_A
        return Atoms(moved, np.asarray(numbers), (self.slices * self.slice_thickness_A, *self.size_A))

    def transmission(self, phase: Tensor) -> Tensor:
        """(slices, y, x) complex at the model's pixel, from phases at the drawing's."""
        return torch.stack([self._cut(torch.polar(torch.ones_like(plane), plane)) for plane in phase])

    def to_model(self, drawn: Tensor) -> Tensor:
        """(..., y, x) real on the drawing's grid, cut off beyond the model's frequencies."""
        return self.plane(torch.fft.rfft2(drawn))

    def plane(self, spectrum: Tensor) -> Tensor:
        """(..., y, x) at the model's pixel, from an image's transform on the drawing's grid."""
        n = self.waves_grid
        low = self._low(spectrum[..., : n // 2 + 1], -2) * self._limit[:, : n // 2 + 1]
        result: Tensor = torch.fft.irfft2(low, s=(n, n)) * (n / self.drawn) ** 2
        return result

    def _cut(self, drawn: Tensor) -> Tensor:
        """What ``to_model`` does, of complex values."""
        low = self._low(self._low(torch.fft.fft2(drawn), -2), -1) * self._limit
        result: Tensor = torch.fft.ifft2(low) * (self.waves_grid / self.drawn) ** 2
        return result

    def _low(self, spectrum: Tensor, axis: int) -> Tensor:
        """A transform on the drawing's grid without the frequencies along an axis that the waves' grid lacks."""
        n = self.waves_grid
        return torch.cat([spectrum.narrow(axis, 0, (n + 1) // 2), spectrum.narrow(axis, self.drawn - n // 2, n // 2)], axis)

    def predict(self, transmission: Tensor, indices: npt.NDArray[np.integer]) -> Tensor:
        """(positions, n, n) expected electrons, background included, zero frequency at the corner."""

        def work(part: npt.NDArray[np.integer]) -> Tensor:
            amplitude = self.amplitudes(self.forward(transmission, part)[1])
            return self.expected(amplitude)

        return torch.cat(list(self.shared_out(work, indices)))

    def misfit(self, transmission: Tensor, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """(positions,) half the Poisson deviance of each pattern, nats: the negative log-likelihood above the data's own."""
        return np.concatenate(
            [self.deviance(self.predict(transmission, part), part) for part in _chunks(indices, 32 * PATTERNS_AT_ONCE)]
        )

    def deviance(self, expected: Tensor, indices: npt.NDArray[np.integer]) -> npt.NDArray[np.float64]:
        """(positions,) sums of expected - counts + counts log(counts / expected), in float64."""
        counts = self.measured.at(indices).double()
        expected = expected.double()
        terms = expected - counts + torch.special.xlogy(counts, counts / expected)
        return np.asarray(self.measured.believed(terms).sum((-2, -1)).cpu().numpy())

    def amplitudes(self, spectrum: Tensor) -> Tensor:
        """(positions, modes, n, n) complex whose squared moduli add up to the pattern as parts of the beam."""
        return self.waves._seen(spectrum)[0] * self._amplitude

    def expected(self, amplitude: Tensor) -> Tensor:
        return ((amplitude.real.square() + amplitude.imag.square()).sum(1) + self.background) * self.electrons

    def shared_out(
        self,
        work: Callable[[npt.NDArray[np.integer]], Result],
        indices: npt.NDArray[np.integer],
        size: int = PATTERNS_AT_ONCE,
    ) -> Iterator[Result]:
        """``work`` on a few patterns at a time, in order; on a CPU in as many threads as torch has, each working alone.

        Threads that share one small operation wait for each other, and much longer beside another busy process.
        """

        def quietly(part: npt.NDArray[np.integer]) -> Result:
            with torch.no_grad():
                return work(part)

        parts, threads = _chunks(indices, size), torch.get_num_threads()
        if self.device.type != "cpu" or threads == 1 or len(parts) == 1:
            yield from map(quietly, parts)
            return
        torch.set_num_threads(1)
        try:
            with ThreadPoolExecutor(threads) as pool:
                yield from pool.map(quietly, parts)
        finally:
            torch.set_num_threads(threads)

    def gradient(self, phase: Tensor, indices: npt.NDArray[np.integer]) -> Tensor:
        """(slices, y, x) derivative of the misfit by the phase at the model's pixel, nats/rad."""
        transmission = self.transmission(phase)[None]

        def work(part: npt.NDArray[np.integer]) -> Tensor:
            gradient = torch.zeros(transmission.shape, device=self.device)
            for few in _chunks(part, PATTERNS_AT_ONCE):
                spectrum, behind = self.waves.exit_spectrum(transmission, few, keep=True)
                expected = self.waves.intensity(spectrum) + self.background
                counts = self.measured.at(few) / self.electrons
                dloss = self.electrons * self.measured.believed(1 - counts / expected)
                self.waves.adjoint(transmission, few, spectrum, behind, dloss, gradient)
            return gradient[0]

        return torch.stack(list(self.shared_out(work, indices, 8 * PATTERNS_AT_ONCE))).sum(0)

    def forward(self, transmission: Tensor, indices: npt.NDArray[np.integer]) -> tuple[list[Tensor], Tensor]:
        """The wave before each slice, and the exit wave's spectrum."""
        waves = self.waves
        psi = torch.fft.ifft2(waves._probe_k * waves.shift_phase(indices), norm="forward")[None]
        before: list[Tensor] = []
        for s in range(self.slices):
            before.append(psi)
            psi = waves._multiply(psi.clone(), transmission[None, s], indices)
            if s < self.slices - 1:
                psi = self.wide.carried(psi)
        return before, torch.fft.fft2(psi)


def _chunks(indices: npt.NDArray[np.integer], size: int) -> list[npt.NDArray[np.integer]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]
