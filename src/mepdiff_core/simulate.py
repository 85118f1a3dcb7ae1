"""Crystal + optics + dose -> a scan with its ground truth.

The potential is abTEM's, at 0.1 Å; the waves go through it as abTEM's do (paraxial propagator, transmission and propagator
limited to two thirds of the grid's frequencies), which tests compare with abTEM itself. The model that reconstructs works at
the detector's pixel, without that limit, in a smaller window: simulating with it would be an inverse crime.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core import __version__
from mepdiff_core.config import check, from_dict, merge, read_yaml, to_dict
from mepdiff_core.crystals import Axis, Crystal, cut_box
from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics, frequencies, make_probe, propagator
from mepdiff_core.scan import Scan, Truth, raster_positions
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.volumes import SEAM_MARGIN_A, render_phase


@dataclass(frozen=True)
class SimulationConfig:
    """What to simulate; the defaults are the paper's (MEP-Diffusion, appendix A).

    Attributes:
        optics: the microscope.
        scan_shape: (scan_y, scan_x) positions.
        scan_step_A: distance between them, Å.
        scan_rotation_deg: turns the fast scan axis from +x towards +y.
        k_max_invA: largest frequency the detector sees along its axes, 1/Å.
        detector_pixels: pixels along one side of the detector.
        dose_e_per_A2: electrons per Å² (step² times dose is a pattern); null: no noise.
        thickness_A: specimen thickness, Å.
        slice_thickness_A: slices of the ground truth and of the simulation, Å.
        axis: the lattice vector along the beam.
        origin_A: (z, y, x) of the turned crystal that lies at the first scan position on the entrance face; null:
            drawn from the seed, somewhere in the cell.
        sampling_A: pixel of the simulation, Å; made smaller where the detector needs it.
        window: width of the simulated window in widths of the detector's (1 / k_step).
        seed: of noise and random origin.
    """

    optics: Optics = field(default_factory=Optics)
    scan_shape: tuple[int, int] = (26, 26)
    scan_step_A: float = 0.512
    scan_rotation_deg: float = 0.0
    k_max_invA: float = 2.5
    detector_pixels: int = 128
    dose_e_per_A2: float | None = 1e6
    thickness_A: float = 12.8
    slice_thickness_A: float = 1.6
    axis: Axis = "c"
    origin_A: tuple[float, float, float] | None = (0.0, 0.0, 0.0)
    sampling_A: float = 0.1
    window: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check(min(self.scan_shape) >= 1, f"scan_shape is {self.scan_shape}; expected at least 1 x 1")
        check(0 < self.scan_step_A <= 1e4, f"scan_step_A is {self.scan_step_A:g}; expected more than 0 and at most 1e4")
        check(0 < self.k_max_invA <= 20, f"k_max_invA is {self.k_max_invA:g}; expected more than 0 and at most 20")
        n = self.detector_pixels
        check(8 <= n <= 1024 and n % 2 == 0, f"detector_pixels is {n}; expected an even number from 8 to 1024")
        check(
            self.dose_e_per_A2 is None or 0 < self.dose_e_per_A2 <= 1e12,
            f"dose_e_per_A2 is {self.dose_e_per_A2}; expected > 0",
        )
        check(self.slice_thickness_A > 0, f"slice_thickness_A is {self.slice_thickness_A:g}; expected more than 0")
        slices = self.thickness_A / self.slice_thickness_A
        check(
            slices > 0.5 and abs(slices - round(slices)) < 1e-6,
            f"thickness_A {self.thickness_A:g} is not a whole number of slices of {self.slice_thickness_A:g} Å",
        )
        check(0 < self.sampling_A <= 0.2, f"sampling_A is {self.sampling_A:g}; expected more than 0 and at most 0.2")
        check(1 <= self.window <= 8, f"window is {self.window}; expected 1 to 8")
        check(self.seed >= 0, f"seed is {self.seed}; expected 0 or more")
        check(
            self.optics.k_aperture_invA < self.k_max_invA,
            f"semiangle_mrad {self.optics.semiangle_mrad:g} is {self.optics.k_aperture_invA:.3f} 1/Å, beyond "
            f"k_max_invA {self.k_max_invA:g}; lower the one or raise the other",
        )

    @property
    def pixel_size_A(self) -> float:
        """The detector-limited pixel, that of the ground truth, Å."""
        return 0.5 / self.k_max_invA

    @property
    def slices(self) -> int:
        return round(self.thickness_A / self.slice_thickness_A)


def load_simulation(
    path: str | Path | None, over: Mapping[str, Any] | None = None, under: Mapping[str, Any] | None = None
) -> SimulationConfig:
    """Simulation settings: the defaults, over them those of ``under``, of a YAML file, and of ``over``."""
    values = merge(under or {}, read_yaml(path) if path is not None else {})
    return from_dict(SimulationConfig, merge(values, over or {}), str(path) if path is not None else "simulation")


@dataclass(frozen=True)
class SimulationStep:
    """Progress of a simulation: ``step`` of ``total`` patterns done; ``scan`` is there at the end."""

    step: int
    total: int
    scan: Scan | None = None


def simulate_scan(crystal: Crystal | str | Path, config: SimulationConfig | None = None) -> Scan:
    """Simulate a 4D-STEM scan of an extended crystal.

    Args:
        crystal: a crystal or a CIF file.
        config: optics, scan, detector, dose, specimen; the paper's by default.

    Returns:
        The scan with ``truth`` over the whole object field and, for a finite dose, Poisson counts. The same seed gives the
        same counts in every process.

    Raises:
        InputError: a crystal that cannot be read, or a simulation larger than memory.
    """
    for step in simulate_steps(crystal, config):
        if step.scan is not None:
            return step.scan
    raise AssertionError("a simulation ends with a scan")


def simulate_steps(crystal: Crystal | str | Path, config: SimulationConfig | None = None) -> Iterator[SimulationStep]:
    """As ``simulate_scan``, yielding progress."""
    import torch

    from mepdiff_core.forward import object_field
    from mepdiff_core.multislice import Multislice, detector_indices

    config = config or SimulationConfig()
    crystal = crystal if isinstance(crystal, Crystal) else read_crystal(crystal)
    rng = np.random.default_rng(config.seed)
    draw = rng.random(3)
    origin = config.origin_A
    if origin is None:
        lengths = np.linalg.norm(crystal.cell_A, axis=1)
        origin = tuple(float(v) for v in draw * lengths.max())  # type: ignore[assignment]
    assert origin is not None

    optics, n, pixel = config.optics, config.detector_pixels, config.pixel_size_A
    factor = math.ceil(pixel / config.sampling_A - 1e-9)
    fine = pixel / factor
    grid = n * config.window * factor
    positions = raster_positions(config.scan_shape, config.scan_step_A, config.scan_rotation_deg)
    field_ = object_field(positions, n, pixel)
    margin = math.ceil(((config.window - 1) * n / 2 * pixel + SEAM_MARGIN_A) / pixel)
    pixels = (field_.shape[0] + 2 * margin, field_.shape[1] + 2 * margin)
    _check_memory(pixels, factor, config)

    # the box's corner in the frame of the positions, and the crystal that lies there
    corner = (0.0, field_.origin_A[0] - margin * pixel, field_.origin_A[1] - margin * pixel)
    size = (config.thickness_A, pixels[0] * pixel, pixels[1] * pixel)
    start = (origin[0] + corner[0], origin[1] + corner[1], origin[2] + corner[2])
    atoms = cut_box(crystal, config.axis, size, start)
    check(
        len(atoms.numbers) > 0, f"{crystal.name}: no atom lies in the first {config.thickness_A:g} Å; choose another origin"
    )
    inner = (slice(None), slice(margin, -margin), slice(margin, -margin))
    truth = render_phase(atoms, optics.energy_eV, pixels, config.slice_thickness_A)[inner]
    phase = render_phase(atoms, optics.energy_eV, (pixels[0] * factor, pixels[1] * factor), config.slice_thickness_A)

    limit = antialias_aperture(phase.shape[1], phase.shape[2], fine)
    transmission = np.fft.ifft2(np.fft.fft2(np.exp(1j * phase)) * limit)
    transfer = propagator(optics.energy_eV, grid, fine, config.slice_thickness_A, paraxial=True)
    aperture = antialias_aperture(grid, grid, fine)
    centre = (positions - (corner[1], corner[2])) / fine
    nearest = np.round(centre).astype(np.int64)
    seen = detector_indices(n, grid, config.window)
    model = Multislice(
        make_probe(optics, grid, fine)[None],
        transfer * aperture,
        nearest - grid // 2,
        centre - nearest,
        seen,
        config.window**2,
    )
    waves = torch.as_tensor(transmission).to(torch.complex64)[None]
    del transmission, phase
    detector_limit = torch.as_tensor(aperture[np.ix_(seen, seen)] ** 2).float()

    intensity = np.empty((len(positions), n, n), np.float32)
    chunk = 4
    with torch.no_grad():
        for first in range(0, len(positions), chunk):
            indices = np.arange(first, min(first + chunk, len(positions)))
            spectrum, _ = model.exit_spectrum(waves, indices)
            pattern = model.intensity(spectrum)[0] * detector_limit
            intensity[indices] = torch.fft.fftshift(pattern, dim=(-2, -1)).numpy()
            yield SimulationStep(int(indices[-1]) + 1, len(positions))

    counts: npt.NDArray[np.generic] = intensity
    electrons = 1.0
    if config.dose_e_per_A2 is not None:
        electrons = config.dose_e_per_A2 * config.scan_step_A**2
        counts = smallest_integers(rng.poisson(intensity.astype(np.float64) * electrons))
    recorded = replace(config, origin_A=origin)
    scan = Scan(
        counts=counts.reshape(*config.scan_shape, n, n),
        positions_A=positions,
        optics=optics,
        k_step_invA=2 * config.k_max_invA / n,
        electrons_per_pattern=electrons,
        thickness_A=config.thickness_A,
        truth=Truth(
            truth.astype(np.float32),
            (config.slice_thickness_A, pixel, pixel),
            (config.slice_thickness_A / 2, field_.origin_A[0], field_.origin_A[1]),
        ),
        info={
            "crystal": crystal.name,
            "formula": crystal.formula,
            "simulation": to_dict(recorded),
            "software": f"mepdiff {__version__}",
        },
    )
    yield SimulationStep(len(positions), len(positions), scan)


def antialias_aperture(height: int, width: int, pixel_size_A: float) -> npt.NDArray[np.float64]:
    """abTEM's limit to two thirds of the grid's frequencies, with its soft edge; (height, width), corner-centred."""
    ky, kx = frequencies(height, pixel_size_A)[0], frequencies(width, pixel_size_A)[1]
    k = np.hypot(ky, kx)
    cutoff, taper = 0.6666666 / pixel_size_A / 2, 0.01 / pixel_size_A
    edge = 0.5 * (1 + np.cos(np.pi * (k - cutoff + taper) / taper))
    return np.where(k > cutoff, 0.0, np.where(k > cutoff - taper, edge, 1.0))


def smallest_integers(counts: npt.NDArray[np.integer]) -> npt.NDArray[np.unsignedinteger]:
    """The counts in the narrowest unsigned type that holds them."""
    return counts.astype(np.min_scalar_type(int(counts.max())))


def _check_memory(pixels: tuple[int, int], factor: int, config: SimulationConfig) -> None:
    import psutil

    fine = pixels[0] * pixels[1] * factor**2 * config.slices
    patterns = config.scan_shape[0] * config.scan_shape[1] * config.detector_pixels**2
    grid = config.detector_pixels * config.window * factor
    needed = fine * 56 + patterns * 28 + grid**2 * 200
    free = psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"this simulation needs about {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; take fewer positions, "
            f"a thinner specimen or a smaller k_max"
        )
