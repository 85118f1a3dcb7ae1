"""The multislice model of a scan and its hand-written adjoint: patterns, data misfit and gradient, in mini-batches.

psi_0 is the probe shifted by the fraction of a pixel; slice s multiplies it by exp(i phase_s); the propagator H carries it
to the next slice; the pattern is the intensity of its Fourier transform. Source: Chen et al., Science 372 (2021) 826; the
conventions are PtyRAD's (docs/conventions.md). The adjoint is carried conjugated, which spares every conjugation:
with h = conj(dL/dpsi), slice s gives dL/dphase_s = -Im(psi h), and F^-1 H F turns into F H F^-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.config import check
from mepdiff_core.fourier import Fourier
from mepdiff_core.likelihood import Likelihood, sum64
from mepdiff_core.optics import make_probe, propagator
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig

V = TypeVar("V", bound=np.generic)

CPU_CHUNK = 16
"""Patterns at once on a CPU: their waves stay in its cache."""
DEVICE_CHUNK_BYTES = 2e9
"""Memory that the waves of the patterns at once may take on any other device."""


@dataclass(frozen=True)
class Field:
    """The object field of a scan: scan plus probe window.

    Attributes:
        shape: (y, x) pixels.
        origin_A: (y, x): where the centre of pixel [0, 0] lies in the frame of the positions.
        pixel_size_A: Å.
    """

    shape: tuple[int, int]
    origin_A: tuple[float, float]
    pixel_size_A: float


def object_field(positions_A: npt.NDArray[np.float64], n_pixels: int, pixel_size_A: float) -> Field:
    """The smallest field in which every position's window of ``n_pixels`` fits."""
    low = positions_A.min(0)
    reach = np.round((positions_A - low) / pixel_size_A).max(0).astype(int)
    origin = low - n_pixels // 2 * pixel_size_A
    return Field((int(reach[0]) + n_pixels, int(reach[1]) + n_pixels), (float(origin[0]), float(origin[1])), pixel_size_A)


class Multislice:
    """Waves through slices on one grid.

    Args:
        probe: (modes, n, n) complex, centred at n // 2, intensity summing to 1.
        transfer: (n, n) complex, propagation by one slice, zero frequency at the corner.
        corners: (positions, 2) integer (y, x): first pixel of each position's window in the field.
        shifts: (positions, 2) (y, x) in pixels: what is left of the position.
        detector: (pixels,) indices of the grid's frequencies that the detector sees along each axis, or None for all.
        gain: the detector pixel's area in grid pixels.
        device: torch device; dtype: complex type.
    """

    def __init__(
        self,
        probe: npt.NDArray[np.complexfloating],
        transfer: npt.NDArray[np.complexfloating],
        corners: npt.NDArray[np.integer],
        shifts: npt.NDArray[np.floating],
        detector: npt.NDArray[np.integer] | None = None,
        gain: float = 1.0,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.complex64,
    ) -> None:
        self.device = torch.device(device)
        self.dtype = dtype
        self.real_dtype = torch.float64 if dtype == torch.complex128 else torch.float32
        self.n = probe.shape[-1]
        # every transform is unnormalised: 1 / n^2 of the inverse is put into what it multiplies anyway
        self.transfer = torch.as_tensor(transfer).to(self.device, dtype)
        self._transfer = self.transfer / self.n**2
        self._fourier = Fourier(self.n, self.device, dtype)
        self.corners = np.ascontiguousarray(corners, dtype=np.int64)
        self.shifts = torch.as_tensor(shifts).to(self.device, self.real_dtype)
        self.detector = None if detector is None else torch.as_tensor(detector, device=self.device)
        self.gain = gain
        self.slicing = self.device.type == "cpu"  # windows one by one are views; other devices gather them all at once
        self._k = torch.fft.fftfreq(self.n, device=self.device, dtype=self.real_dtype)
        self.set_probe(torch.as_tensor(probe).to(self.device, dtype))

    def set_probe(self, probe: Tensor) -> None:
        """Take another probe of the same shape, (modes, n, n)."""
        self.probe = probe
        self._probe_k = torch.fft.fft2(probe) / self.n**2

    def shift_phase(self, indices: npt.NDArray[np.integer]) -> Tensor:
        """exp(-2 pi i k shift) for these positions, (positions, 1, n, n)."""
        angle = (-2 * math.pi * self.shifts[torch.as_tensor(indices, device=self.device)])[:, :, None] * self._k
        factor = torch.polar(torch.ones_like(angle), angle)
        return (factor[:, 0, :, None] * factor[:, 1, None, :])[:, None]

    def exit_spectrum(
        self, transmission: Tensor, indices: npt.NDArray[np.integer], keep: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The wave at the detector.

        Args:
            transmission: (objects, slices, Y, X) complex.
            indices: which positions.
            keep: also return the wave behind each slice, which the adjoint needs.

        Returns:
            (objects, positions, modes, n, n) complex, zero frequency at the corner, n times the unitary transform; and
            the waves.
        """
        waves: list[Tensor] = []
        psi = self._fourier.backward(self._probe_k * self.shift_phase(indices), overwrite=True)[None]
        if len(transmission) > 1:
            psi = psi.repeat(len(transmission), 1, 1, 1, 1)
        slices = transmission.shape[1]
        for s in range(slices):
            psi = self._multiply(psi, transmission[:, s], indices)
            if keep:
                waves.append(psi)
            if s < slices - 1:
                psi = self._fourier.forward(psi, overwrite=not keep).mul_(self._transfer)
                psi = self._fourier.backward(psi, overwrite=True)
        return self._fourier.forward(psi, overwrite=not keep), waves

    def intensity(self, spectrum: Tensor) -> Tensor:
        """(objects, positions, n_det, n_det): what the detector sees, modes added incoherently."""
        seen = torch.view_as_real(self._seen(spectrum)).square().sum(-1)
        total = seen[:, :, 0] if seen.shape[2] == 1 else seen.sum(2)
        return total.mul_(self.gain / self.n**2)

    def adjoint(
        self,
        transmission: Tensor,
        indices: npt.NDArray[np.integer],
        spectrum: Tensor,
        waves: list[Tensor],
        dloss: Tensor,
        gradient: Tensor,
        want_probe: bool = False,
    ) -> Tensor | None:
        """Add dL/dphase of these positions to ``gradient``.

        Args:
            dloss: (objects, positions, n_det, n_det) dL/dI.
            gradient: (objects, slices, Y, X) real, changed in place.
            want_probe: also return (modes, n, n) dL/dRe + i dL/dIm of the unshifted probe, summed over objects.
        """
        h = self._seen(spectrum).conj() * (2 * self.gain / self.n**2 * dloss[:, :, None])
        if self.detector is not None:
            full = torch.zeros_like(spectrum)
            full[..., self.detector[:, None], self.detector[None, :]] = h
            h = full
        h = self._fourier.forward(h, overwrite=True)
        for s in range(len(waves) - 1, -1, -1):
            if s < len(waves) - 1:
                h = self._fourier.backward(h, overwrite=True).mul_(self._transfer)
                h = self._fourier.forward(h, overwrite=True)
            product = waves[s].mul_(h)  # the wave is not needed again
            self._subtract_imag(gradient[:, s], product, indices)
            if s > 0 or want_probe:
                h = self._multiply(h, transmission[:, s], indices)
        if not want_probe:
            return None
        back = torch.fft.fft2(h.conj().sum(0)) * self.shift_phase(indices).conj()
        probe_gradient: Tensor = torch.fft.ifft2(back.sum(0))
        return probe_gradient

    def _seen(self, spectrum: Tensor) -> Tensor:
        if self.detector is None:
            return spectrum
        return spectrum[..., self.detector[:, None], self.detector[None, :]]

    def _window_index(self, indices: npt.NDArray[np.integer]) -> tuple[Tensor, Tensor]:
        corner = torch.as_tensor(self.corners[indices], device=self.device)
        span = torch.arange(self.n, device=self.device)
        return (corner[:, 0, None] + span)[:, :, None], (corner[:, 1, None] + span)[:, None, :]

    def _multiply(self, psi: Tensor, plane: Tensor, indices: npt.NDArray[np.integer]) -> Tensor:
        """psi times each position's window of the plane, in place."""
        if self.slicing:
            n = self.n
            for j, (y, x) in enumerate(self.corners[indices].tolist()):
                psi[:, j].mul_(plane[:, None, y : y + n, x : x + n])
            return psi
        rows, columns = self._window_index(indices)
        return psi.mul_(plane[:, rows, columns][:, :, None])

    def _subtract_imag(self, target: Tensor, product: Tensor, indices: npt.NDArray[np.integer]) -> None:
        imag = product.imag[:, :, 0] if product.shape[2] == 1 else product.imag.sum(2)
        if self.slicing:
            n = self.n
            for j, (y, x) in enumerate(self.corners[indices].tolist()):
                target[:, y : y + n, x : x + n].sub_(imag[:, j])
            return
        rows, columns = self._window_index(indices)
        rows, columns = torch.broadcast_tensors(rows, columns)
        objects = torch.arange(len(target), device=self.device)[:, None, None, None]
        target.index_put_((objects, rows[None], columns[None]), -imag, accumulate=True)


class ForwardModel:
    """A scan's patterns from a phase volume on its object field, with data misfit and gradient.

    Args:
        scan: gives positions, optics, probe, calibration and the measured patterns.
        slices: number of slices; slice_thickness_A: their thickness, Å.
        config: window, sampling and propagator of the model.
        probe: (modes, y, x) instead of the scan's own.
        device, dtype: where and how precisely to compute.

    Attributes:
        field: the object field of the scan: the volume's (y, x) grid.
        volume_shape: (slices, y, x) of the volumes it takes; wider than ``field`` on each side by ``margin`` pixels.
    """

    def __init__(
        self,
        scan: Scan,
        slices: int,
        slice_thickness_A: float,
        config: ModelConfig | None = None,
        probe: npt.NDArray[np.complexfloating] | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.complex64,
    ) -> None:
        config = config or ModelConfig()
        check(slices >= 1, f"slices is {slices}; expected at least 1")
        check(slice_thickness_A > 0, f"slice_thickness_A is {slice_thickness_A:g}; expected more than 0")
        self.config = config
        self.slice_thickness_A = slice_thickness_A
        n = scan.n_pixels
        self.field = object_field(scan.positions_A, n, scan.pixel_size_A)
        self.margin = (config.window - 1) * n // 2
        self.volume_shape = (slices, self.field.shape[0] + 2 * self.margin, self.field.shape[1] + 2 * self.margin)
        grid, pixel = n * config.window * config.sampling, scan.pixel_size_A / config.sampling
        # the window's first pixel is the position's, rounded; on finer pixels it must still end inside the field
        offset = (scan.positions_A - scan.positions_A.min(0)) / pixel
        last = (np.array(self.volume_shape[1:]) * config.sampling) - grid
        corner = np.minimum(np.round(offset), last).astype(np.int64)
        if probe is None:
            probe = self._probe_on_grid(scan, grid, pixel)
        self.multislice = Multislice(
            probe,
            propagator(scan.optics.energy_eV, grid, pixel, slice_thickness_A, config.paraxial),
            corner,
            offset - corner,
            detector_indices(n, grid, config.window) if grid != n else None,
            config.window**2,
            device,
            dtype,
        )
        self.device, self.real_dtype = self.multislice.device, self.multislice.real_dtype
        # fractions of the beam, zero frequency at the corner, as the FFT leaves them
        patterns = np.fft.ifftshift(scan.patterns(), axes=(-2, -1)).astype(np.float32)
        patterns /= np.float32(scan.electrons_per_pattern)
        self.patterns = torch.as_tensor(patterns).to(self.device, self.real_dtype)
        self._scales: dict[Likelihood, npt.NDArray[np.float64]] = {}
        self.chunk = CPU_CHUNK
        if self.device.type != "cpu":
            per_pattern = 8 * grid**2 * (slices + 4) * len(probe)
            self.chunk = max(1, min(512, int(DEVICE_CHUNK_BYTES / per_pattern)))

    def _probe_on_grid(self, scan: Scan, grid: int, pixel: float) -> npt.NDArray[np.complexfloating]:
        if scan.probe is None:
            return make_probe(scan.optics, grid, pixel)[None]
        check(
            grid == scan.n_pixels,
            f"the scan's own probe has {scan.n_pixels} px; a model of window {self.config.window} and sampling "
            f"{self.config.sampling} needs {grid} px: leave both at 1, or leave the probe to the optics",
        )
        return scan.probe

    def predict(self, volume: Tensor, indices: npt.NDArray[np.integer]) -> Tensor:
        """Patterns of a volume.

        Args:
            volume: (slices, y, x) or (objects, slices, y, x), rad.

        Returns:
            (positions, ky, kx) or (objects, positions, ky, kx): fractions of the beam, zero frequency at index n // 2.
        """
        with torch.no_grad():
            transmission = self._transmission(volume)
            parts = [
                self.multislice.intensity(self.multislice.exit_spectrum(transmission, part)[0])
                for part in self._chunks(indices)
            ]
        result: Tensor = torch.fft.fftshift(torch.cat(parts, 1), dim=(-2, -1))
        return result if volume.ndim == 4 else result[0]

    def measured(self, indices: npt.NDArray[np.integer]) -> Tensor:
        """(positions, ky, kx) measured patterns in the units of ``predict``."""
        patterns = self.patterns[torch.as_tensor(indices, device=self.device)]
        shifted: Tensor = torch.fft.fftshift(patterns, dim=(-2, -1))
        return shifted

    def loss(self, volume: Tensor, indices: npt.NDArray[np.integer], likelihood: Likelihood) -> float:
        """The loss of one volume over these patterns."""
        total = 0.0
        with torch.no_grad():
            transmission = self._transmission(volume)
            for part in self._chunks(indices):
                data = self.patterns[torch.as_tensor(part, device=self.device)]
                spectrum, _ = self.multislice.exit_spectrum(transmission, part)
                total += sum64(likelihood.terms(self.multislice.intensity(spectrum), data)[0])
        return likelihood.finish(total, self._data_scale(likelihood, indices), len(indices) * self.patterns[0].numel())[0]

    def loss_and_gradient(
        self, volume: Tensor, indices: npt.NDArray[np.integer], likelihood: Likelihood, want_probe: bool = False
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Data misfit and its gradient, one loss for each object.

        Args:
            volume: (slices, y, x) or (objects, slices, y, x), rad.
            indices: which patterns.
            likelihood: how to judge them.
            want_probe: also the gradient by the probe (for one object), (modes, n, n) dL/dRe + i dL/dIm.

        Returns:
            loss (objects,) float64 on the CPU or a scalar; gradient in the shape of ``volume``; the probe's or None.
        """
        batch = self._batch(volume).detach()
        check(not want_probe or len(batch) == 1, "the probe's gradient is for one object at a time")
        with torch.enable_grad():
            fine = upsample(batch.requires_grad_(self.config.sampling > 1), self.config.sampling)
        with torch.no_grad():
            transmission = torch.polar(torch.ones_like(fine), fine)
            gradient = torch.zeros_like(fine)
            probe_gradient: Tensor | None = None
            totals = torch.zeros(len(batch), dtype=torch.float64)
            for part in self._chunks(indices):
                data = self.patterns[torch.as_tensor(part, device=self.device)]
                spectrum, waves = self.multislice.exit_spectrum(transmission, part, keep=True)
                terms, dloss = likelihood.terms(self.multislice.intensity(spectrum), data)
                totals += torch.tensor([sum64(t) for t in terms], dtype=torch.float64)
                part_gradient = self.multislice.adjoint(transmission, part, spectrum, waves, dloss, gradient, want_probe)
                if part_gradient is not None:
                    probe_gradient = part_gradient if probe_gradient is None else probe_gradient + part_gradient
            scale, n_pixels = self._data_scale(likelihood, indices), len(indices) * self.patterns[0].numel()
            finished = [likelihood.finish(float(t), scale, n_pixels) for t in totals]
            factors = torch.tensor([f for _, f in finished], dtype=self.real_dtype, device=self.device)
            gradient *= factors[:, None, None, None]
            if probe_gradient is not None:
                probe_gradient = probe_gradient * factors[0]
        if self.config.sampling > 1:
            (gradient,) = torch.autograd.grad(fine, batch, gradient)
        losses = torch.tensor([value for value, _ in finished], dtype=torch.float64)
        if volume.ndim == 3:
            return losses[0], gradient[0], probe_gradient
        return losses, gradient, probe_gradient

    def crop(self, volume: npt.NDArray[V]) -> npt.NDArray[V]:
        """The part of a model's volume that lies on the object field."""
        if not self.margin:
            return volume
        m = self.margin
        return volume[..., m:-m, m:-m]

    def _data_scale(self, likelihood: Likelihood, indices: npt.NDArray[np.integer]) -> float:
        if likelihood not in self._scales:
            self._scales[likelihood] = np.array([likelihood.data_scale(pattern) for pattern in self.patterns])
        return float(self._scales[likelihood][indices].sum())

    def _transmission(self, volume: Tensor) -> Tensor:
        fine = upsample(self._batch(volume), self.config.sampling)
        return torch.polar(torch.ones_like(fine), fine)

    def _batch(self, volume: Tensor) -> Tensor:
        check(
            tuple(volume.shape[-3:]) == self.volume_shape,
            f"the volume has shape {tuple(volume.shape[-3:])}; this scan's object field needs {self.volume_shape}",
        )
        return (volume if volume.ndim == 4 else volume[None]).to(self.device, self.real_dtype)

    def _chunks(self, indices: npt.NDArray[np.integer]) -> list[npt.NDArray[np.integer]]:
        return [indices[i : i + self.chunk] for i in range(0, len(indices), self.chunk)]


def predict_pattern(
    scan: Scan, volume: npt.NDArray[np.floating], slice_thickness_A: float, index: int
) -> npt.NDArray[np.float32]:
    """The pattern of one position, by the default model, on the CPU; nothing of the other positions is computed.

    Args:
        volume: (slices, y, x) on the scan's object field, rad.
        index: which position.

    Returns:
        (ky, kx) float32: fractions of the beam, zero frequency at index n // 2.
    """
    n, pixel = scan.n_pixels, scan.pixel_size_A
    area = object_field(scan.positions_A, n, pixel)
    check(volume.shape[1:] == area.shape, f"the volume has shape {volume.shape}; this scan's field needs (z, *{area.shape})")
    offset = (scan.positions_A[index] - scan.positions_A.min(0)) / pixel
    y, x = corner = np.round(offset).astype(np.int64)
    transfer = propagator(scan.optics.energy_eV, n, pixel, slice_thickness_A)
    waves = Multislice(scan.get_probe(), transfer, np.zeros((1, 2), np.int64), (offset - corner)[None])
    with torch.no_grad():
        window = torch.as_tensor(np.array(volume[:, y : y + n, x : x + n], np.float32))
        transmission = torch.polar(torch.ones_like(window), window)[None]
        pattern = waves.intensity(waves.exit_spectrum(transmission, np.zeros(1, np.int64))[0])[0, 0]
    result: npt.NDArray[np.float32] = torch.fft.fftshift(pattern).numpy()
    return result


def upsample(volume: Tensor, factor: int) -> Tensor:
    """Fourier interpolation of (..., y, x) by a whole factor: sample i becomes sample factor * i. Differentiable."""
    if factor == 1:
        return volume
    height, width = volume.shape[-2:]
    spectrum = torch.fft.fftshift(torch.fft.fft2(volume), dim=(-2, -1))
    top, left = height * factor // 2 - height // 2, width * factor // 2 - width // 2
    bottom, right = height * (factor - 1) - top, width * (factor - 1) - left
    padded = torch.nn.functional.pad(spectrum, (left, right, top, bottom))
    fine: Tensor = torch.fft.ifft2(torch.fft.ifftshift(padded, dim=(-2, -1))).real * factor**2
    return fine


def detector_indices(n_detector: int, n_grid: int, stride: int) -> npt.NDArray[np.int64]:
    """Indices, along one axis of a corner-centred FFT grid, of the frequencies a detector's pixels see."""
    pixel = np.fft.ifftshift(np.arange(n_detector) - n_detector // 2)
    return (pixel * stride) % n_grid
