"""Electron optics: wavelength, interaction constant, aberrations, probe, propagator.

Signs and axes are those of docs/conventions.md: a wave travels as exp(+2 pi i k r), aberrations enter the probe as
exp(-i chi), over focus is a positive C10: the crossover lies before the specimen, so that a probe of over focus C is in
focus again when it is propagated by -C, and one of under focus (C10 = -C) when it is propagated by +C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check

# CODATA 2018; h, e and c are exact.
PLANCK_J_S = 6.62607015e-34
ELECTRON_MASS_KG = 9.1093837015e-31
ELEMENTARY_CHARGE_C = 1.602176634e-19
LIGHT_M_PER_S = 299792458.0
REST_ENERGY_EV = ELECTRON_MASS_KG * LIGHT_M_PER_S**2 / ELEMENTARY_CHARGE_C

ABERRATION_ORDERS = tuple((n, m) for n in range(1, 6) for m in range(n + 1, -1, -1) if (n + m) % 2 == 1)
"""Krivanek's (n, m) up to fifth order: radial order n, azimuthal multiplicity m."""


def wavelength_A(energy_eV: float) -> float:
    """Relativistic electron wavelength in Å. Source: Kirkland, Advanced Computing in EM (2010), Eq. 2.5."""
    hc_eV_A = PLANCK_J_S * LIGHT_M_PER_S / ELEMENTARY_CHARGE_C * 1e10
    return hc_eV_A / math.sqrt(energy_eV * (2 * REST_ENERGY_EV + energy_eV))


def interaction_constant(energy_eV: float) -> float:
    """Interaction constant sigma_e in rad/(V Å), phase = sigma_e * projected potential.

    Source: Kirkland (2010), Eq. 5.6: sigma = 2 pi m e lambda / h^2 with the relativistic mass.
    """
    mass = ELECTRON_MASS_KG * (1 + energy_eV / REST_ENERGY_EV)
    per_V_m = 2 * math.pi * mass * ELEMENTARY_CHARGE_C * wavelength_A(energy_eV) * 1e-10 / PLANCK_J_S**2
    return per_V_m * 1e-10


@dataclass(frozen=True)
class Optics:
    """The probe-forming optics.

    Attributes:
        energy_eV: beam energy, eV.
        semiangle_mrad: semi-convergence angle, mrad; the aperture is hard.
        overfocus_A: defocus as C10, Å; positive is over focus, the crossover lies before the specimen.
        Cs_A: third-order spherical aberration C30, Å.
        aberrations: further coefficients in Krivanek's notation, "C12" in Å with "phi12" in degrees, and so on up to
            fifth order (C12, C21, C23, C32, C34, C41, C43, C45, C50, C52, C54, C56).

    Raises:
        InputError: a value that no microscope has.
    """

    energy_eV: float = 300e3
    semiangle_mrad: float = 21.4
    overfocus_A: float = 200.0
    Cs_A: float = 5000.0
    aberrations: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(1e3 <= self.energy_eV <= 1e7, f"energy_eV is {self.energy_eV:g}; expected 1e3 to 1e7 (300 kV is 300e3)")
        check(
            0 < self.semiangle_mrad <= 200,
            f"semiangle_mrad is {self.semiangle_mrad:g}; expected more than 0 and at most 200",
        )
        allowed = {f"{kind}{n}{m}" for n, m in ABERRATION_ORDERS for kind in (("C", "phi") if m else ("C",))}
        allowed -= {"C10", "C30"}
        for name in ("overfocus_A", "Cs_A"):
            check(math.isfinite(getattr(self, name)), f"{name} is {getattr(self, name)}; expected a number")
        for name, value in self.aberrations.items():
            check(math.isfinite(value), f"aberration {name} is {value}; expected a number")
            check(
                not name.startswith("phi") or f"C{name[3:]}" in self.aberrations,
                f"aberration {name} is an angle without its C{name[3:]}; give both",
            )
            check(
                name in allowed,
                f"aberration '{name}' is not known; C10 is overfocus_A, C30 is Cs_A, others are "
                f"{', '.join(sorted(allowed))}",
            )

    @property
    def wavelength_A(self) -> float:
        return wavelength_A(self.energy_eV)

    @property
    def k_aperture_invA(self) -> float:
        """Radius of the bright disk, 1/Å."""
        return self.semiangle_mrad * 1e-3 / self.wavelength_A

    def coefficients(self) -> dict[tuple[int, int], tuple[float, float]]:
        """All aberrations as {(n, m): (magnitude in Å, angle in rad)}."""
        result = {(1, 0): (self.overfocus_A, 0.0), (3, 0): (self.Cs_A, 0.0)}
        for n, m in ABERRATION_ORDERS:
            if f"C{n}{m}" in self.aberrations:
                angle = math.radians(self.aberrations.get(f"phi{n}{m}", 0.0))
                result[n, m] = (self.aberrations[f"C{n}{m}"], angle)
        return result


def frequencies(n: int, pixel_size_A: float) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Spatial frequencies (ky, kx) in 1/Å of an n x n grid, zero frequency at the corner, shapes (n, 1) and (1, n)."""
    k: npt.NDArray[np.float64] = np.fft.fftfreq(n, pixel_size_A).astype(np.float64)
    return k[:, None], k[None, :]


def aberration_phase(optics: Optics, ky: npt.NDArray[np.float64], kx: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The aberration function chi(k) in rad.

    chi = 2 pi / lambda * sum of C_nm alpha^(n+1) cos(m (phi - phi_nm)) / (n+1), phi measured from +x towards +y.
    Source: Krivanek et al., Ultramicroscopy 78 (1999) 1; Kirkland (2010), Eq. 2.22.
    """
    wavelength = optics.wavelength_A
    alpha = np.hypot(ky, kx) * wavelength
    phi = np.arctan2(ky, kx)
    chi = np.zeros(np.broadcast_shapes(ky.shape, kx.shape))
    for (n, m), (magnitude, angle) in optics.coefficients().items():
        chi += magnitude / (n + 1) * alpha ** (n + 1) * np.cos(m * (phi - angle))
    return 2 * math.pi / wavelength * chi


def make_probe(optics: Optics, n: int, pixel_size_A: float) -> npt.NDArray[np.complex128]:
    """The probe in real space.

    Args:
        optics: the microscope.
        n: the window's size in pixels.
        pixel_size_A: its pixel size, Å.

    Returns:
        (n, n) complex128, centred at index n // 2, its intensity summing to 1.

    Raises:
        InputError: the aperture does not fit into the window's frequencies.
    """
    k_max = 0.5 / pixel_size_A
    check(
        optics.k_aperture_invA < k_max,
        f"semiangle_mrad {optics.semiangle_mrad:g} is {optics.k_aperture_invA:.3f} 1/Å, beyond the detector's "
        f"{k_max:.3f} 1/Å; check semi-angle, energy and k_max",
    )
    ky, kx = frequencies(n, pixel_size_A)
    aperture = np.hypot(ky, kx) <= optics.k_aperture_invA
    spectrum = aperture * np.exp(-1j * aberration_phase(optics, ky, kx))
    probe = np.fft.fftshift(np.fft.ifft2(spectrum))
    return np.asarray(probe / np.sqrt(np.sum(np.abs(probe) ** 2)))


def off_axis_probe(
    optics: Optics, n: int, pixel_size_A: float, offset_px: tuple[float, float]
) -> npt.NDArray[np.complex128]:
    """As ``make_probe``, of an aperture that lies off the middle of the detector by (y, x) of its pixels.

    Aberrations stay centred on the aperture.
    """
    step = 1 / (n * pixel_size_A)
    ky, kx = frequencies(n, pixel_size_A)
    ky, kx = ky - offset_px[0] * step, kx - offset_px[1] * step
    spectrum = (np.hypot(ky, kx) <= optics.k_aperture_invA) * np.exp(-1j * aberration_phase(optics, ky, kx))
    probe = np.fft.fftshift(np.fft.ifft2(spectrum))
    return np.asarray(probe / np.sqrt(np.sum(np.abs(probe) ** 2)))


LEAST_COHERENCE = 0.9
"""Fewer modes than hold this part of the probe explain patterns worse than a point source does."""
SOURCE_NODES = 7
"""Points along each axis that a source of finite size is integrated over, by Gauss and Hermite's rule."""


def modes_of_source(optics: Optics, n: int, pixel_size_A: float, source_size_A: float, share: float) -> int:
    """How many modes hold this share of the probe of a Gaussian source; arguments as for ``make_probe_modes``."""
    if source_size_A == 0:
        return 1
    shifted = _from_all_points(optics, n, pixel_size_A, source_size_A)
    values = np.linalg.eigvalsh(shifted.conj() @ shifted.T)[::-1]
    return max(2, 1 + int(np.argmax(np.cumsum(values) / values.sum() >= share)))


def _from_all_points(optics: Optics, n: int, pixel_size_A: float, source_size_A: float) -> npt.NDArray[np.complex128]:
    """(points, n * n) probes from the points of a Gaussian source, times the root of each one's weight."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(SOURCE_NODES)
    places = nodes * source_size_A / math.sqrt(8 * math.log(2))
    ky, kx = frequencies(n, pixel_size_A)
    spectrum = np.fft.fft2(np.fft.ifftshift(make_probe(optics, n, pixel_size_A)))
    return np.stack(
        [
            math.sqrt(wy * wx) * np.fft.ifft2(spectrum * np.exp(-2j * math.pi * (ky * y + kx * x))).ravel()
            for y, wy in zip(places, weights, strict=True)
            for x, wx in zip(places, weights, strict=True)
        ]
    )


def make_probe_modes(
    optics: Optics, n: int, pixel_size_A: float, modes: int = 1, source_size_A: float = 0.0
) -> npt.NDArray[np.complex128]:
    """The probe of a source of finite size, as its strongest incoherent modes.

    Probes from all points of a Gaussian source add up as intensities; the modes are the eigenvectors of their mutual
    coherence, the orthogonal ones that hold most of it. Source: Thibault & Menzel, Nature 494 (2013) 68.

    Args:
        optics: the microscope.
        n, pixel_size_A: the window.
        modes: how many to keep.
        source_size_A: full width at half maximum of the source's image on the specimen, Å.

    Returns:
        (modes, n, n) complex128, the strongest first, all intensities together summing to 1.

    Raises:
        InputError: too few modes for a source of this size.
    """
    if source_size_A == 0 or modes == 1:
        check(modes == 1, f"probe_modes is {modes} for a source of no size; give source_size_A, or 1 mode")
        return make_probe(optics, n, pixel_size_A)[None]
    shifted = _from_all_points(optics, n, pixel_size_A, source_size_A)
    check(modes <= len(shifted), f"probe_modes is {modes}; expected at most {len(shifted)}")
    values, vectors = np.linalg.eigh(shifted.conj() @ shifted.T)
    share = np.cumsum(values[::-1]) / values.sum()
    check(
        share[modes - 1] >= LEAST_COHERENCE,
        f"{modes} modes hold {share[modes - 1]:.0%} of the probe of a source of {source_size_A:g} Å; take "
        f"probe_modes={1 + int(np.argmax(share >= LEAST_COHERENCE))} or more",
    )
    strongest = np.argsort(values)[::-1][:modes]
    found = (vectors[:, strongest].T @ shifted).reshape(modes, n, n)
    found = np.fft.fftshift(found, axes=(1, 2))
    return np.asarray(found / np.sqrt(np.sum(np.abs(found) ** 2)))


def propagator(
    energy_eV: float, n: int, pixel_size_A: float, distance_A: float, paraxial: bool = False
) -> npt.NDArray[np.complex128]:
    """The transfer function of free space, zero frequency at the corner.

    Args:
        energy_eV: beam energy, eV.
        n: grid size; pixel_size_A: its pixel, Å.
        distance_A: how far to propagate along the beam, Å.
        paraxial: exp(-i pi lambda dz k^2) (abTEM's) instead of the exact exp(i dz (kz - k0)) (PtyRAD's).

    Returns:
        (n, n) complex128. The constant phase of the axis is left out, which no intensity can see.
        Source: Kirkland (2010), Eq. 6.65; Goodman, Fourier Optics (2005), Eq. 3-66.
    """
    wavelength = wavelength_A(energy_eV)
    ky, kx = frequencies(n, pixel_size_A)
    k2 = ky**2 + kx**2
    # kz - k0 is -2 pi lambda k^2 / (1 + root): no difference of two large numbers; root is 1 in the paraxial limit
    root = 1.0 if paraxial else np.sqrt(np.maximum(1 - wavelength**2 * k2, 0.0))
    phase = 2 * math.pi * distance_A * wavelength * k2 / (1 + root)
    transfer: npt.NDArray[np.complex128] = np.exp(-1j * phase)
    return transfer
