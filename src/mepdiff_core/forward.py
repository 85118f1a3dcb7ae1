"""The multislice model of a scan: patterns, data misfit and gradient, in mini-batches (waves and adjoint: multislice.py)."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, fields
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.config import check
from mepdiff_core.likelihood import Likelihood, sum64
from mepdiff_core.measured import MeasuredPatterns
from mepdiff_core.multislice import Further, Multislice, Wanted, detector_indices, walk
from mepdiff_core.optics import make_probe_modes, propagator
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


class ForwardModel:
    """A scan's patterns from a phase volume on its object field, with data misfit and gradient.

    Args:
        scan: gives positions, optics, probe, calibration and the measured patterns.
        slices: number of slices; slice_thickness_A: their thickness, Å.
        config: window, sampling and propagator of the model.
        probe: (modes, y, x) instead of the scan's own.
        positions_A: (n, 2) where the probe really was, on the object field of the scan's positions; None: there.
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
        positions_A: npt.NDArray[np.float64] | None = None,
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
        if positions_A is not None:
            offset = (positions_A - scan.positions_A.min(0)) / pixel
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
        self.pixel_size_A = pixel
        self.set_tilt(config.tilt_mrad)
        self.device, self.real_dtype = self.multislice.device, self.multislice.real_dtype
        self.n_patterns, self.pattern_pixels = scan.n_patterns, scan.pattern_pixels
        self.patterns = MeasuredPatterns(scan, self.device, self.real_dtype, scan.electrons_per_pattern)
        self._scales: dict[Likelihood, npt.NDArray[np.float64]] = {}
        self.chunk = CPU_CHUNK
        if self.device.type != "cpu":
            per_pattern = 8 * grid**2 * (slices + 4) * len(probe)
            self.chunk = max(1, min(512, int(DEVICE_CHUNK_BYTES / per_pattern)))

    def set_tilt(self, tilt_mrad: tuple[float, float]) -> None:
        """Tilt the specimen: its columns lean towards (+y, +x) on their way down."""
        self.multislice.set_walk(walk(tilt_mrad, self.slice_thickness_A, self.pixel_size_A))

    def _probe_on_grid(self, scan: Scan, grid: int, pixel: float) -> npt.NDArray[np.complexfloating]:
        modes, source = self.config.probe_modes, self.config.source_size_A
        if scan.probe is None:
            return make_probe_modes(scan.optics, grid, pixel, modes, source)
        check(
            modes == 1,
            f"the scan has a probe of its own, of {len(scan.probe)} modes; leave probe_modes out or the probe away",
        )
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
        shifted: Tensor = torch.fft.fftshift(self.patterns.at(indices), dim=(-2, -1))
        return shifted

    def loss(self, volume: Tensor, indices: npt.NDArray[np.integer], likelihood: Likelihood) -> float:
        """The loss of one volume over these patterns."""
        total = 0.0
        with torch.no_grad():
            transmission = self._transmission(volume)
            for part in self._chunks(indices):
                data = self.patterns.at(part)
                self._note_scale(likelihood, part, data)
                spectrum, _ = self.multislice.exit_spectrum(transmission, part)
                terms, _ = likelihood.terms(self.multislice.intensity(spectrum), data)
                total += sum64(self.patterns.believed(terms))
        return likelihood.finish(total, self._data_scale(likelihood, indices), len(indices) * self.pattern_pixels)[0]

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
        wanted: tuple[Wanted, ...] = ("probe",) if want_probe else ()
        loss, gradient, further = self.gradients(volume, indices, likelihood, wanted)
        return loss, gradient, further.probe

    def gradients(
        self, volume: Tensor, indices: npt.NDArray[np.integer], likelihood: Likelihood, wanted: Collection[Wanted] = ()
    ) -> tuple[Tensor, Tensor, Further]:
        """As ``loss_and_gradient``, by anything that is wanted; all but the phase for one object at a time."""
        batch = self._batch(volume).detach()
        check(not wanted or len(batch) == 1, "gradients by probe, positions and tilt are for one object at a time")
        with torch.enable_grad():
            fine = upsample(batch.requires_grad_(self.config.sampling > 1), self.config.sampling)
        with torch.no_grad():
            transmission = torch.polar(torch.ones_like(fine), fine)
            gradient = torch.zeros_like(fine)
            parts: list[Further] = []
            totals = torch.zeros(len(batch), dtype=torch.float64)
            for part in self._chunks(indices):
                data = self.patterns.at(part)
                self._note_scale(likelihood, part, data)
                spectrum, waves = self.multislice.exit_spectrum(transmission, part, keep=True)
                terms, dloss = likelihood.terms(self.multislice.intensity(spectrum), data)
                terms, dloss = self.patterns.believed(terms), self.patterns.believed(dloss)
                totals += torch.tensor([sum64(t) for t in terms], dtype=torch.float64)
                parts.append(self.multislice.adjoint(transmission, part, spectrum, waves, dloss, gradient, wanted))
            scale, n_pixels = self._data_scale(likelihood, indices), len(indices) * self.pattern_pixels
            finished = [likelihood.finish(float(t), scale, n_pixels) for t in totals]
            factors = torch.tensor([f for _, f in finished], dtype=self.real_dtype, device=self.device)
            gradient *= factors[:, None, None, None]
            further = _add(parts, finished[0][1])
        if self.config.sampling > 1:
            (gradient,) = torch.autograd.grad(fine, batch, gradient)
        losses = torch.tensor([value for value, _ in finished], dtype=torch.float64)
        if volume.ndim == 3:
            return losses[0], gradient[0], further
        return losses, gradient, further

    def crop(self, volume: npt.NDArray[V]) -> npt.NDArray[V]:
        """The part of a model's volume that lies on the object field."""
        if not self.margin:
            return volume
        m = self.margin
        return volume[..., m:-m, m:-m]

    def _data_scale(self, likelihood: Likelihood, indices: npt.NDArray[np.integer]) -> float:
        return float(self._scales[likelihood][indices].sum())

    def _note_scale(self, likelihood: Likelihood, indices: npt.NDArray[np.integer], data: Tensor) -> None:
        """Keep what these patterns add to the scale of the loss: for patterns in a file, while they are at hand."""
        scales = self._scales.setdefault(likelihood, np.full(self.n_patterns, np.nan))
        for index, pattern in zip(indices.tolist(), data, strict=True):
            if np.isnan(scales[index]):
                scales[index] = likelihood.data_scale(pattern)

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


def _add(parts: list[Further], factor: float) -> Further:
    """Gradients of several chunks of patterns as one: positions after each other, all else in sum."""
    if not parts:
        return Further()
    values: dict[str, Tensor | None] = {}
    for field in fields(Further):
        each = [getattr(part, field.name) for part in parts]
        joined = None if each[0] is None else torch.cat(each) if field.name == "shifts" else torch.stack(each).sum(0)
        values[field.name] = None if joined is None else joined * factor
    return Further(**values)


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
