"""Waves through a crystal drawn from its atoms, and what each atom does to them.

Atoms are drawn finely and the transmission function, not the phase, is brought to the model's pixel; windows are twice the
detector's. A volume at the detector's pixel misses several percent of the scattering (docs/method.md); this model misses
less than the counts can tell, which is what lets them decide where an atom lies.

Waves are linear in the transmission function of a slice: what a change of one slice's phase adds to the exit wave is the
source i dphase T psi, carried through the slices behind it. Summed over pixels these additions give the gradient and the
Fisher information of the Poisson likelihood by the amount of matter in every slice of every column.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations_with_replacement
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
PATTERNS_AT_ONCE, SOURCES_AT_ONCE, PAIRS_AT_ONCE = 2, 4, 8
"""Patterns and sources whose waves are carried together: more do not stay in a processor's cache."""

FEW_ELECTRONS = 0.1
"""Added to a pixel's counts and expectation where its curvature is weighed by both."""
Result = TypeVar("Result")
Item = TypeVar("Item")
Sources = Sequence[Mapping[int, Tensor]]
"""For each parameter: slice -> derivative of that slice's phase by it, at the model's pixel (``plane``, ``to_model``)."""


class _Windows:
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
        self._wide, self._narrow = (
            _Windows(self.waves, n, side, self._amplitude) for side in (self.grid, self.grid // NARROWER)
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
            amplitude = self._amplitudes(self._forward(transmission, part)[1])
            return self._expected(amplitude)

        return torch.cat(list(self._shared_out(work, indices)))

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

    def quadratic(
        self,
        phase: Tensor,
        sources: Sources,
        indices: npt.NDArray[np.integer],
        groups: Sequence[Sequence[int]] = (),
        far: Collection[int] = (),
    ) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The misfit around a crystal, to second order in its parameters; results of several sets of patterns add up.

        Args:
            phase: (slices, drawn, drawn), rad.
            sources: what each parameter changes.
            indices: which patterns.
            groups: sources whose waves are followed to second order: the product of each two of a group, and half of each
                square, is a parameter of its own, after the others, in the order of ``pairs_of``.
            far: sources for which atoms far from the beam count, as they do for a lattice that stretches: wide windows.

        Returns:
            Misfit in nats; its gradient (parameters,); its curvature (parameters, parameters), close to the Fisher
            information. Sums in float64.
        """
        transmission = self.transmission(phase)
        order = sorted(range(len(sources)), key=lambda p: min(sources[p], default=self.slices))
        blocks = [
            (windows, some[first : first + SOURCES_AT_ONCE])
            for windows, some in (
                (self._narrow, [p for p in order if p not in far]),
                (self._wide, [p for p in order if p in far]),
            )
            for first in range(0, len(some), SOURCES_AT_ONCE)
        ]
        followed = {p for group in groups for p in group}
        turned = 1j * transmission  # a phase of 1 rad at slice s adds i T psi there

        def work(part: npt.NDArray[np.integer]) -> tuple[float, Tensor, Tensor]:
            before, spectrum = self._forward(transmission, part)
            amplitude = self._amplitudes(spectrum)
            expected = self._expected(amplitude)
            counts, twice = self.measured.at(part), amplitude * (2 * self.electrons)
            count = len(sources) + sum(len(pairs_of(group)) for group in groups)
            rows = torch.zeros(count, *expected.shape, device=self.device)
            kept: dict[int, Tensor] = {}
            for windows, block in blocks:
                seen = self._added(windows, transmission, turned, before, part, [sources[p] for p in block])
                rows[block] = (seen.real * twice.real + seen.imag * twice.imag).sum(2)
                kept |= {p: wave for p, wave in zip(block, seen, strict=True) if p in followed}
            first = len(sources)
            for group in groups:
                members = [sources[p] for p in group]
                for j in range(len(part)):
                    here = [wave[:, j : j + 1] for wave in before]
                    done = first
                    for seen in self._added_by_pairs(self._narrow, transmission, turned, here, part[j], members):
                        wave = twice[j : j + 1]
                        rows[done : done + len(seen), j : j + 1] = (seen.real * wave.real + seen.imag * wave.imag).sum(2)
                        done += len(seen)
                for a, b in pairs_of(group):
                    both = kept[a].real * kept[b].real + kept[a].imag * kept[b].imag
                    rows[first] += both.sum(1) * (2 * self.electrons)
                    first += 1
            rows = self.measured.believed(rows).reshape(count, -1)
            gradient = (rows @ (1 - counts / expected).reshape(-1)).double()
            # the likelihood's third order, as far as it shows where the counts are: to the Fisher information's mean
            few = FEW_ELECTRONS / 3
            rows *= ((2 * expected + counts + 3 * few) / (3 * expected * (expected + few))).sqrt().reshape(-1)
            return float(self.deviance(expected, part).sum()), gradient, (rows @ rows.T).double()

        misfit, gradient, fisher = 0.0, torch.tensor(0.0), torch.tensor(0.0)
        for more, slope, curvature in self._shared_out(work, indices):  # a matrix at a time: all would fill the memory
            misfit, gradient, fisher = misfit + more, slope.add_(gradient), curvature.add_(fisher)
        return misfit, gradient.cpu().numpy(), fisher.cpu().numpy()

    def _added(
        self,
        windows: _Windows,
        transmission: Tensor,
        turned: Tensor,
        before: list[Tensor],
        indices: npt.NDArray[np.integer],
        sources: Sources,
    ) -> Tensor:
        """(sources, positions, modes, n, n) what each source adds to the amplitudes."""
        n, inner, places = windows.side, windows.inner, [windows.place(index) for index in indices]
        shape = (len(sources), len(indices), len(self.waves.probe), n, n)
        added = torch.zeros(shape, dtype=torch.complex64, device=self.device)
        started = False
        for s in range(self.slices):
            here = [(b, source[s]) for b, source in enumerate(sources) if s in source]
            for j, window in enumerate(places):
                if started:
                    added[:, j].mul_(transmission[s][window])
                if here:
                    wave = turned[s][window] * before[s][0, j][(..., *inner)]
                    for b, plane in here:
                        added[b, j].addcmul_(wave, plane[window])
            started = started or bool(here)
            if started and s < self.slices - 1:
                added = windows.carried(added)
        return windows.seen(added)

    def _added_by_pairs(
        self,
        windows: _Windows,
        transmission: Tensor,
        turned: Tensor,
        before: list[Tensor],
        index: int,
        sources: Sources,
    ) -> Iterator[Tensor]:
        """What the products of two sources add to one pattern's amplitudes, a few pairs at a time, in order."""
        n, inner, window, modes = windows.side, windows.inner, windows.place(index), len(self.waves.probe)
        through = transmission[(slice(None), *window)]
        images = [{s: image[window] for s, image in source.items()} for source in sources]
        arriving: list[Tensor] = []  # (sources, modes, n, n) first-order waves before each slice
        psi = torch.zeros(len(sources), modes, n, n, dtype=torch.complex64, device=self.device)
        for s in range(self.slices):
            arriving.append(psi)
            psi = psi * through[s]
            wave = turned[s][window] * before[s][0, 0][(..., *inner)]
            for k, image in enumerate(images):
                if s in image:
                    psi[k].addcmul_(wave, image[s])
            psi = windows.carried(psi)
        pairs = pairs_of(range(len(sources)))
        for first in range(0, len(pairs), PAIRS_AT_ONCE):
            block = pairs[first : first + PAIRS_AT_ONCE]
            psi = torch.zeros(len(block), modes, n, n, dtype=torch.complex64, device=self.device)
            started = False
            for s in range(self.slices):
                if started:
                    psi.mul_(through[s])
                wave = through[s] * before[s][0, 0][(..., *inner)]
                bent = turned[s][window]
                for k, (a, b) in enumerate(block):
                    if s in images[a]:
                        psi[k].addcmul_(bent * images[a][s], arriving[s][b])
                        started = True
                    if s in images[b]:
                        psi[k].addcmul_(bent * images[b][s], arriving[s][a])
                        started = True
                    if s in images[a] and s in images[b]:
                        psi[k].addcmul_(wave * images[a][s], images[b][s], value=-1)
                if started and s < self.slices - 1:
                    psi = windows.carried(psi)
            yield windows.seen(psi)[:, None]

    def _amplitudes(self, spectrum: Tensor) -> Tensor:
        """(positions, modes, n, n) complex whose squared moduli add up to the pattern as parts of the beam."""
        return self.waves._seen(spectrum)[0] * self._amplitude

    def _expected(self, amplitude: Tensor) -> Tensor:
        return ((amplitude.real.square() + amplitude.imag.square()).sum(1) + self.background) * self.electrons

    def _shared_out(
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

        return torch.stack(list(self._shared_out(work, indices, 8 * PATTERNS_AT_ONCE))).sum(0)

    def _forward(self, transmission: Tensor, indices: npt.NDArray[np.integer]) -> tuple[list[Tensor], Tensor]:
        """The wave before each slice, and the exit wave's spectrum."""
        waves = self.waves
        psi = torch.fft.ifft2(waves._probe_k * waves.shift_phase(indices), norm="forward")[None]
        before: list[Tensor] = []
        for s in range(self.slices):
            before.append(psi)
            psi = waves._multiply(psi.clone(), transmission[None, s], indices)
            if s < self.slices - 1:
                psi = self._wide.carried(psi)
        return before, torch.fft.fft2(psi)


def pairs_of(group: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Each with itself and with those behind it."""
    return list(combinations_with_replacement(group, 2))


def _chunks(indices: npt.NDArray[np.integer], size: int) -> list[npt.NDArray[np.integer]]:
    return [indices[i : i + size] for i in range(0, len(indices), size)]
