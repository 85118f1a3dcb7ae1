"""Waves through slices on one grid, and the hand-written adjoint.

psi_0 is the probe shifted by the fraction of a pixel; slice s multiplies it by exp(i phase_s); the propagator H carries it
to the next slice; the pattern is the intensity of its Fourier transform. Source: Chen et al., Science 372 (2021) 826; the
conventions are PtyRAD's (docs/conventions.md). The adjoint is carried conjugated, which spares every conjugation:
with h = conj(dL/dpsi), slice s gives dL/dphase_s = -Im(psi h), and F^-1 H F turns into F H F^-1.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.fourier import Fourier

Wanted = Literal["probe", "shifts", "walk"]
"""What else than the phase a gradient can be asked for by."""


@dataclass(frozen=True)
class Further:
    """Gradients by other things than the phase; None where they were not asked for.

    Attributes:
        probe: (modes, n, n) dL/dRe + i dL/dIm of the unshifted probe.
        shifts: (positions, 2) float64, on the CPU, by each position's (y, x) in pixels.
        walk: (2,) float64, on the CPU, by the columns' walk in pixels a slice.
    """

    probe: Tensor | None = None
    shifts: Tensor | None = None
    walk: Tensor | None = None


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
        self._upright = torch.as_tensor(transfer).to(self.device, dtype)
        self._fourier = Fourier(self.n, self.device, dtype)
        self.corners = np.ascontiguousarray(corners, dtype=np.int64)
        self.shifts = torch.as_tensor(shifts).to(self.device, self.real_dtype)
        self.detector = None if detector is None else torch.as_tensor(detector, device=self.device)
        self.gain = gain
        self.slicing = self.device.type == "cpu"  # windows one by one are views; other devices gather them all at once
        self._k = torch.fft.fftfreq(self.n, device=self.device, dtype=self.real_dtype)
        self.set_walk((0.0, 0.0))
        self.set_probe(torch.as_tensor(np.array(probe)).to(self.device, dtype))

    def set_probe(self, probe: Tensor) -> None:
        """Take another probe of the same shape, (modes, n, n)."""
        self.probe = probe
        self._probe_k = torch.fft.fft2(probe) / self.n**2

    def set_walk(self, walk_px: tuple[float, float]) -> None:
        """Let the specimen's columns walk by (y, x) pixels from each slice to the next, seen from the beam."""
        self.walk = walk_px
        self.transfer = self._upright
        if any(walk_px):
            angle = 2 * math.pi * (walk_px[0] * self._k[:, None] + walk_px[1] * self._k[None, :])
            self.transfer = self._upright * torch.polar(torch.ones_like(angle), angle)
        self._transfer = self.transfer / self.n**2

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
        wanted: Collection[Wanted] = (),
    ) -> Further:
        """Add dL/dphase of these positions to ``gradient``.

        Args:
            dloss: (objects, positions, n_det, n_det) dL/dI.
            gradient: (objects, slices, Y, X) real, changed in place.
            wanted: what else to differentiate by; summed over objects.
        """
        walk = torch.zeros(2, dtype=torch.float64)
        h = self._seen(spectrum).conj() * (2 * self.gain / self.n**2 * dloss[:, :, None])
        if self.detector is not None:
            full = torch.zeros_like(spectrum)
            full[..., self.detector[:, None], self.detector[None, :]] = h
            h = full
        h = self._fourier.forward(h, overwrite=True)
        for s in range(len(waves) - 1, -1, -1):
            if s < len(waves) - 1:
                h = self._fourier.backward(h, overwrite=True).mul_(self._transfer)
                if "walk" in wanted:
                    walk -= self._along_k(self._fourier.forward(waves[s]).mul_(h).sum(2)).sum((0, 1))
                h = self._fourier.forward(h, overwrite=True)
            product = waves[s].mul_(h)  # the wave is not needed again
            self._subtract_imag(gradient[:, s], product, indices)
            if s > 0 or "probe" in wanted or "shifts" in wanted:
                h = self._multiply(h, transmission[:, s], indices)
        probe = shifts = None
        if "probe" in wanted or "shifts" in wanted:
            back = torch.fft.fft2(h.conj().sum(0)) * self.shift_phase(indices).conj()
            if "probe" in wanted:
                probe = torch.fft.ifft2(back.sum(0))
            if "shifts" in wanted:
                shifts = self._along_k((back.conj() * self._probe_k).sum(1))
        return Further(probe, shifts, walk if "walk" in wanted else None)

    def _along_k(self, spectrum: Tensor) -> Tensor:
        """(..., 2) float64 as (y, x): 2 pi times the sum of k Im of (..., n, n), k in cycles a pixel."""
        imag = spectrum.imag
        sums = [torch.sum(imag.sum(axis, dtype=self.real_dtype) * self._k, -1) for axis in (-1, -2)]
        return 2 * math.pi * torch.stack(sums, -1).to("cpu", torch.float64)

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


def walk(tilt_mrad: tuple[float, float], slice_thickness_A: float, pixel_size_A: float) -> tuple[float, float]:
    """(y, x) pixels that the columns of a tilted specimen walk from each slice to the next."""
    y, x = (math.tan(1e-3 * angle) * slice_thickness_A / pixel_size_A for angle in tilt_mrad)
    return y, x


def detector_indices(n_detector: int, n_grid: int, stride: int) -> npt.NDArray[np.int64]:
    """Indices, along one axis of a corner-centred FFT grid, of the frequencies a detector's pixels see."""
    pixel = np.fft.ifftshift(np.arange(n_detector) - n_detector // 2)
    return (pixel * stride) % n_grid
