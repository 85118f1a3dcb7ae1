"""Many boxes of atoms -> phase volumes at once, in torch, on the CPU or a GPU; abTEM's infinite projections to 1e-5 rad.

Atoms are put on the grid by bilinear weights, each element's grid is multiplied in Fourier space by its scattering factor
over the pixel's transform, and the elements of a slice are summed there. Source: Van den Broek et al., Ultramicroscopy 158
(2015) 89; the pixel's transform is written as abTEM writes it, sin(k)/k of the frequency in pixels, so that volumes agree.

Bilinear weights blur an atom by where it lies between pixels. An exact drawing does not: a Kaiser-Bessel kernel over six
pixels, whose transform is divided out, puts atoms where they are, for frequencies up to ``EXACT_BAND``. Source: Jackson et
al., IEEE Trans. Med. Imaging 10 (1991) 473.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.config import check
from mepdiff_core.crystals import Atoms
from mepdiff_core.optics import ELECTRON_MASS_KG, ELEMENTARY_CHARGE_C, PLANCK_J_S, interaction_constant

PROJECTED_V_A2 = PLANCK_J_S**2 / (2 * math.pi * ELECTRON_MASS_KG * ELEMENTARY_CHARGE_C) * 1e20
"""h² / (2 pi m e) in V Å²: the projected potential's transform for a scattering factor of 1 Å. Kirkland (2010), Eq. C.21."""
EXACT_BAND = 0.42
"""Cycles a pixel; beyond, an exact drawing has nothing."""
KERNEL_PX = 6
KERNEL_SHAPE = math.pi * KERNEL_PX * (1 - 1 / 3)
"""Of the Kaiser-Bessel kernel: best for frequencies up to a third of a cycle a pixel."""
CPU_CHUNK_BYTES = 2e7
DEVICE_CHUNK_BYTES = 1e9
"""Memory that the grids of one chunk may take; fresh pages cost a CPU more than the transforms do."""


@cache
def scattering_parameters() -> npt.NDArray[np.float64]:
    """(104, 2, 5): Lobato's a in Å and b in Å² by atomic number; row 0 is empty. Source: Acta Cryst. A70 (2014) 636."""
    text = (resources.files("mepdiff_core") / "data" / "lobato.csv").read_text(encoding="utf-8")
    rows = [line.split(",")[1:] for line in text.splitlines() if not line.startswith("#")][1:]
    table = np.zeros((len(rows) + 1, 2, 5))
    table[1:] = np.array(rows, float).reshape(-1, 2, 5)
    return table


def scattering_factor(number: int, k2: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Electron scattering factor f(k) in Å of a neutral atom, k² in 1/Å². Source: Lobato & Van Dyck (2014), Eq. 16."""
    a, b = scattering_parameters()[number]
    terms = [ai * (2 + bi * k2) / (1 + bi * k2) ** 2 for ai, bi in zip(a, b, strict=True)]
    return np.asarray(sum(terms))


class Renderer:
    """Renders boxes of one size.

    Args:
        pixels: (y, x) pixels of a box; the plane is periodic.
        pixel_size_A: Å.
        slices: number of slices; slice_thickness_A: their thickness, Å.
        energy_eV: beam energy, eV.
        device: torch device.
        thermal_A: root of the atoms' mean square displacement along one axis, Å: each is blurred by a Gaussian of that width
            (Kirkland (2010), section 6.9).
        exact: draw atoms where they are; else as abTEM draws them, spread over the four nearest pixels.
    """

    def __init__(
        self,
        pixels: tuple[int, int],
        pixel_size_A: float,
        slices: int,
        slice_thickness_A: float,
        energy_eV: float = 300e3,
        device: torch.device | str = "cpu",
        thermal_A: float = 0.0,
        exact: bool = False,
    ) -> None:
        self.pixels, self.pixel_size_A = pixels, pixel_size_A
        self.exact = exact
        self.slices, self.slice_thickness_A = slices, slice_thickness_A
        self.device = torch.device(device)
        ky = np.fft.fftfreq(pixels[0])[:, None]
        kx = np.fft.rfftfreq(pixels[1])[None, :]
        self._k2 = (ky**2 + kx**2) / pixel_size_A**2
        k = np.hypot(ky, kx)
        k[0, 0] = 1.0
        pixel = np.sin(k) / k
        pixel[0, 0] = 1.0
        if exact:
            pixel = np.where(k < EXACT_BAND, _kernel_transform(ky) * _kernel_transform(kx), np.inf)
            pixel[0, 0] = _kernel_transform(0.0) ** 2
        self._scale = interaction_constant(energy_eV) * PROJECTED_V_A2 / (pixel * pixel_size_A**2)
        blur = np.exp(-2 * np.pi**2 * thermal_A**2 * self._k2).astype(np.float32)
        self._blur = torch.as_tensor(blur, device=self.device) if thermal_A else None
        self._factors = torch.zeros((104, *self._k2.shape), device=self.device)
        self._known: set[int] = set()

    def render(self, boxes: Sequence[Atoms]) -> Tensor:
        """Phase volumes of boxes of atoms.

        Args:
            boxes: atoms with positions (z, y, x) in Å from the box's corner; an atom belongs whole to the slice its centre
                is in, one on or behind the last face to the last slice.

        Returns:
            (boxes, slices, y, x) float32 on the device, rad; sample [y, x] lies at (y, x) pixels from the corner.

        Raises:
            InputError: an element beyond the tables.
        """
        # of each slice: some elements' deltas and their transforms, and the sum of those
        per_box = self.slices * 4 * self.pixels[0] * self.pixels[1] * 8
        chunk = max(1, int((CPU_CHUNK_BYTES if self.device.type == "cpu" else DEVICE_CHUNK_BYTES) / per_box))
        parts = [self._render(boxes[i : i + chunk]) for i in range(0, len(boxes), chunk)]
        return torch.cat(parts) if parts else torch.zeros((0, self.slices, *self.pixels), device=self.device)

    def _render(self, boxes: Sequence[Atoms]) -> Tensor:
        height, width = self.pixels
        counts = [len(box.numbers) for box in boxes]
        numbers = np.concatenate([box.numbers for box in boxes])
        positions = np.concatenate([box.positions_A for box in boxes])
        out = torch.zeros((len(boxes) * self.slices, height, width // 2 + 1), dtype=torch.complex64, device=self.device)
        if len(numbers):
            self._learn(numbers)
            box = np.repeat(np.arange(len(boxes)), counts)
            # an atom on the face between two slices belongs to the one behind it, whatever the last bit says
            edges = np.cumsum(np.full(self.slices, self.slice_thickness_A))[:-1] - 1e-12
            target = box * self.slices + np.digitize(positions[:, 0], edges)
            grids, grid = np.unique(target * 104 + numbers, return_inverse=True)
            deltas = self._deltas(positions[:, 1:] / self.pixel_size_A, grid, len(grids))
            spectrum = torch.fft.rfft2(deltas)
            factors = self._factors[torch.as_tensor(grids % 104, device=self.device)]
            if self._blur is not None:
                factors = factors * self._blur
            torch.view_as_real(spectrum).mul_(factors[..., None])  # a real factor need not become complex first
            out.index_add_(0, torch.as_tensor(grids // 104, device=self.device), spectrum)
        volume: Tensor = torch.fft.irfft2(out, s=self.pixels)
        return volume.reshape(len(boxes), self.slices, height, width)

    def factor(self, number: int) -> Tensor:
        """(y, x // 2 + 1) what the transform of a unit delta is multiplied by to become that of an atom's phase, rad."""
        self._learn(np.array([number]))
        return self._factors[number]

    def spectrum(self, position_px: npt.NDArray[np.floating], weights: npt.NDArray[np.floating] | None = None) -> Tensor:
        """(y, x // 2 + 1) transform of deltas at (n, 2) places in pixels, each of weight 1 or its own, blurred."""
        one_grid = np.zeros(len(position_px), np.int64)
        result: Tensor = torch.fft.rfft2(self._deltas(np.asarray(position_px, np.float64), one_grid, 1, weights)[0])
        return result if self._blur is None else result * self._blur

    def _deltas(
        self,
        position_px: npt.NDArray[np.float64],
        grid: npt.NDArray[np.integer],
        count: int,
        weights: npt.NDArray[np.floating] | None = None,
    ) -> Tensor:
        height, width = self.pixels
        corner = np.floor(position_px)
        fy, fx = (position_px - corner).T
        y0, x0 = corner.astype(np.int64).T
        places, parts = [], []
        each = 1.0 if weights is None else np.asarray(weights)
        for dy, wy in self._weights(fy):
            for dx, wx in self._weights(fx):
                places.append((grid * height + (y0 + dy) % height) * width + (x0 + dx) % width)
                parts.append(wy * wx * each)
        flat = torch.zeros(count * height * width, device=self.device)
        where = torch.as_tensor(np.concatenate(places), device=self.device)
        flat.index_add_(0, where, torch.as_tensor(np.concatenate(parts), dtype=torch.float32, device=self.device))
        return flat.reshape(count, height, width)

    def _weights(self, fraction: npt.NDArray[np.float64]) -> list[tuple[int, npt.NDArray[np.float64]]]:
        """Pixels about a place along one axis, counted from the one below it, and their weights."""
        if not self.exact:
            return [(0, 1 - fraction), (1, fraction)]
        return [(step, _kernel(step - fraction)) for step in range(1 - KERNEL_PX // 2, KERNEL_PX // 2 + 1)]

    def _learn(self, numbers: npt.NDArray[np.integer]) -> None:
        for number in np.unique(numbers).tolist():
            if number not in self._known:
                check(1 <= number <= 103, f"element {number} is beyond the tables, which end at 103")
                factor = scattering_factor(number, self._k2) * self._scale
                self._factors[number] = torch.as_tensor(factor, dtype=torch.float32, device=self.device)
                self._known.add(number)


def _kernel(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Kaiser-Bessel weights at distances in pixels."""
    inside = np.clip(1 - (2 * distance / KERNEL_PX) ** 2, 0, None)
    return np.asarray(np.i0(KERNEL_SHAPE * np.sqrt(inside)) / KERNEL_PX)


def _kernel_transform(k: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """The kernel's transform at frequencies of up to half a cycle a pixel."""
    root = np.sqrt(KERNEL_SHAPE**2 - (math.pi * KERNEL_PX * np.asarray(k, np.float64)) ** 2)
    return np.asarray(np.sinh(root) / root)
