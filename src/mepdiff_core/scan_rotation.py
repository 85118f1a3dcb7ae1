"""How the scan is turned against the detector, and whether the patterns are mirrored: from the scan itself.

Two laws tell. The centre of mass of the patterns is a gradient field, that of the specimen's phase seen by the probe: turned
rightly it has no curl (Lazić et al., Ultramicroscopy 160 (2016) 265), which leaves open 180 degrees; its divergence decides
these, since atoms attract electrons. And where the probe is out of focus, images from different places of the bright disk
are shifted against each other along those places by the gradient of the aberrations (parallax; Spoth et al., Microsc.
Microanal. 23 (2017) 144): it gives the whole angle, sharper, but 180 degrees more for a focus on the other side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.optics import Optics, aberration_phase, make_probe

Field = npt.NDArray[np.float64]
FEWEST = 6
"""Positions along each side of the scan that a rotation can be told from."""
COARSE_DEG = 8.0
CLEAR = 2.0
"""The parallax is believed where it explains the images this many times as well as the opposite angle does."""
SKEWED = 0.25
"""Skewness of the projected phase from which on its sign is believed."""


@dataclass(frozen=True)
class Rotation:
    """What a scan says of its rotation.

    Attributes:
        rotation_deg: turns the fast scan axis from +x towards +y, -180 to 180.
        mirrored: whether the patterns are mirrored; transposing them mends that, and the rotation is that after it.
        by: parallax or centre of mass.
        curl: of the centre of mass over its divergence, root mean square, at this rotation.
        words: what was found and how sure it is, for a person.
    """

    rotation_deg: float
    mirrored: bool
    by: str
    curl: float
    words: str


def find_rotation(
    centre_of_mass: Field,
    bright_field: Field,
    places_invA: Field,
    scan_step_A: float,
    optics: Optics,
    thickness_A: float = 0.0,
    may_be_mirrored: bool = False,
) -> Rotation:
    """Find the rotation of a raster scan.

    Args:
        centre_of_mass: (scan_y, scan_x, 2) as (ky, kx), in any unit.
        bright_field: (scan_y, scan_x, places) counts on each of some places of the bright disk.
        places_invA: (places, 2) as (ky, kx), where these lie, 1/Å.
        scan_step_A: Å.
        optics: the microscope; its defocus is taken as known.
        thickness_A: of the specimen, as far as it is known.
        may_be_mirrored: whether to look for mirrored patterns too.

    Raises:
        InputError: a scan too small, or one without contrast.
    """
    shape = centre_of_mass.shape[:2]
    check(min(shape) >= FEWEST, f"the scan has {shape[0]} x {shape[1]} positions; a rotation needs {FEWEST} x {FEWEST}")
    check(float(np.ptp(centre_of_mass)) > 0, "the centre of mass is the same everywhere; a rotation cannot be found")
    options = [False, True] if may_be_mirrored else [False]
    fits = {m: _least_curl(centre_of_mass[..., ::-1] if m else centre_of_mass) for m in options}
    mirrored = min(options, key=lambda m: fits[m][1])
    angle = fits[mirrored][0]

    images = _Parallax(bright_field, places_invA, scan_step_A, optics)
    best = max((images.best(m) for m in options), key=lambda found: found[2])
    clear = best[2] / max(images.sharpness(best[0] + 180, best[1]), 1e-300)
    if clear >= CLEAR and best[2] >= CLEAR * images.chance:
        angle, mirrored, by = best[0], best[1], "parallax"
        skew = _skewness(centre_of_mass[..., ::-1] if mirrored else centre_of_mass, angle, scan_step_A, optics, thickness_A)
        focus = "over" if optics.overfocus_A > 0 else "under"
        words = f"by the parallax of the bright disk, for {focus} focus of {abs(optics.overfocus_A):g} Å"
        if skew < -SKEWED:
            words += (
                "; the centre of mass speaks against it (atoms would repel electrons): if the focus is on the other side,"
                f" give overfocus_A={-optics.overfocus_A:g} and find the rotation again"
            )
        elif skew > SKEWED:
            words += "; the sign of the centre of mass's divergence agrees"
        else:
            words += "; were the focus on the other side, it would be 180° more"
    else:
        by = "centre of mass"
        skew = _skewness(centre_of_mass[..., ::-1] if mirrored else centre_of_mass, angle, scan_step_A, optics, thickness_A)
        if skew < 0:
            angle += 180
        words = "by the least curl of the centre of mass; of two angles 180° apart that where atoms attract electrons"
        if abs(skew) < SKEWED:
            words += ", which is not clear here: compare both by a reconstruction"
    angle = float((angle + 180) % 360 - 180)
    at = _curl_at(centre_of_mass[..., ::-1] if mirrored else centre_of_mass, angle)
    seen = f"{angle:.2f}°{', patterns mirrored (transposed to mend it)' if mirrored else ''}"
    return Rotation(angle, mirrored, by, at, f"scan rotation {seen}, {words}")


def _derivative(field: Field, axis: int) -> Field:
    """Differences along one axis, averaged over neighbours along the other: both lie in the middle of a mesh."""
    difference = np.diff(field, axis=axis)
    first, last = (slice(None, -1), slice(1, None))
    return 0.5 * (difference[:, first] + difference[:, last] if axis == 0 else difference[first] + difference[last])


def _divergence_and_curl(field: Field) -> tuple[Field, Field]:
    """As if the scan were not turned; at angle t the divergence is cos t D - sin t K and the curl cos t K + sin t D."""
    cy, cx = field[..., 0], field[..., 1]
    divergence = _derivative(cy, 0) + _derivative(cx, 1)
    curl = _derivative(cx, 0) - _derivative(cy, 1)
    return divergence - divergence.mean(), curl - curl.mean()


def _least_curl(field: Field) -> tuple[float, float]:
    """Angle in degrees, known up to 180, and the ratio of curl to divergence there (root mean square)."""
    d, k = _divergence_and_curl(field)
    dd, kk, dk = float(np.mean(d * d)), float(np.mean(k * k)), float(np.mean(d * k))
    angle = 0.5 * math.atan2(-2 * dk, dd - kk)
    middle, half = (dd + kk) / 2, math.hypot((dd - kk) / 2, dk)
    return math.degrees(angle), math.sqrt(max(middle - half, 0.0) / (middle + half))


def _curl_at(field: Field, angle_deg: float) -> float:
    d, k = _divergence_and_curl(field)
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return float(np.sqrt(np.mean((c * k + s * d) ** 2) / max(float(np.mean((c * d - s * k) ** 2)), 1e-300)))


def _turned_frequencies(shape: tuple[int, int], step_A: float, angle_deg: float) -> tuple[Field, Field]:
    """(qy, qx) in the detector's frame of the frequencies of scan images, 1/Å."""
    qi, qj = np.fft.fftfreq(shape[0], step_A)[:, None], np.fft.fftfreq(shape[1], step_A)[None, :]
    c, s = math.cos(math.radians(angle_deg)), math.sin(math.radians(angle_deg))
    return c * qi + s * qj, -s * qi + c * qj


def _taper(shape: tuple[int, int]) -> Field:
    rows, columns = (np.hanning(n + 2)[1:-1] for n in shape)
    return np.asarray(rows[:, None] * columns[None, :])


class _Parallax:
    """How sharp the sum of all bright-field images is once each is shifted back by the gradient of the aberrations."""

    def __init__(self, bright_field: Field, places_invA: Field, scan_step_A: float, optics: Optics) -> None:
        self.shape, self.step = (bright_field.shape[0], bright_field.shape[1]), scan_step_A
        mean = bright_field.mean((0, 1))
        used = mean > 0.1 * np.median(mean)
        images = bright_field[..., used] / mean[used] - 1
        self.spectra = np.fft.fft2(images * _taper(self.shape)[..., None], axes=(0, 1)).reshape(-1, int(used.sum()))
        self.spectra[0] = 0
        # frequencies without contrast only take time
        power = np.sum(np.abs(self.spectra) ** 2, axis=1)
        self.kept = np.argsort(power)[::-1][: max(64, len(power) // 4)]
        self.spectra = self.spectra[self.kept]
        self.power = max(float(power.sum()) * int(used.sum()), 1e-300)
        self.chance = 1 / int(used.sum())
        self.shifts = _aberration_gradient(optics, places_invA[used])

    def sharpness(self, angle_deg: float, mirrored: bool) -> float:
        """1 for images that are all the same once shifted back, ``chance`` for images that have nothing in common."""
        qy, qx = (np.broadcast_to(q, self.shape).ravel()[self.kept] for q in _frequencies(self, angle_deg))
        dy, dx = self.shifts[:, 1 if mirrored else 0], self.shifts[:, 0 if mirrored else 1]
        phase = np.exp(-2j * np.pi * (qy[:, None] * dy + qx[:, None] * dx))
        return float(np.sum(np.abs(np.sum(self.spectra * phase, axis=1)) ** 2)) / self.power

    def best(self, mirrored: bool) -> tuple[float, bool, float]:
        """Angle in degrees, mirrored, sharpness."""
        angles = np.arange(-180.0, 180.0, COARSE_DEG)
        angle = float(angles[np.argmax([self.sharpness(a, mirrored) for a in angles])])
        for width in (COARSE_DEG, COARSE_DEG / 4, COARSE_DEG / 16):
            near = angle + width * np.linspace(-1, 1, 9)
            values = np.array([self.sharpness(a, mirrored) for a in near])
            i = int(np.argmax(values))
            angle = float(near[i])
            if 0 < i < 8:  # the top of the parabola through three points
                a, b, c = values[i - 1 : i + 2]
                angle += 0.5 * (a - c) / (a - 2 * b + c) * width / 4 if a - 2 * b + c < 0 else 0.0
        return angle, mirrored, self.sharpness(angle, mirrored)


def _frequencies(images: _Parallax, angle_deg: float) -> tuple[Field, Field]:
    return _turned_frequencies(images.shape, images.step, angle_deg)


def _aberration_gradient(optics: Optics, places_invA: Field) -> Field:
    """(places, 2): where on the specimen, seen from the probe's centre, a place of the disk looks, Å: grad chi / 2 pi."""
    h = 1e-4
    result = np.empty_like(places_invA)
    for axis in (0, 1):
        step = np.zeros(2)
        step[axis] = h
        ahead, behind = places_invA + step, places_invA - step
        difference = aberration_phase(optics, ahead[:, 0], ahead[:, 1]) - aberration_phase(
            optics, behind[:, 0], behind[:, 1]
        )
        result[:, axis] = difference / (4 * np.pi * h)
    return result


def _skewness(field: Field, angle_deg: float, step_A: float, optics: Optics, thickness_A: float) -> float:
    """Skewness of the projected phase that the centre of mass gives at this angle; negative: turn it by 180 degrees.

    The field's divergence is integrated twice and the probe's blur, whose sign changes with frequency out of focus, divided
    out as far as noise allows. Atoms are peaks of positive phase, so that the true angle gives a positive skewness.
    """
    from scipy.ndimage import map_coordinates

    shape = (field.shape[0], field.shape[1])
    tapered = (field - field.mean((0, 1))) * _taper(shape)[..., None]
    spectrum = np.fft.fft2(tapered, axes=(0, 1))
    qy, qx = _turned_frequencies(shape, step_A, angle_deg)
    square = qy**2 + qx**2
    phase = (qy * spectrum[..., 0] + qx * spectrum[..., 1]) / (1j * np.where(square == 0, 1, square))
    phase[0, 0] = 0
    pixel = min(step_A, 0.45 / optics.k_aperture_invA)
    middle = replace(optics, overfocus_A=optics.overfocus_A + thickness_A / 2)
    n = 2 * math.ceil(max(128, 4 * abs(middle.overfocus_A) * optics.semiangle_mrad * 1e-3 / pixel) / 2)
    n = min(n, 1024)
    blur = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(np.abs(make_probe(middle, n, pixel)) ** 2))).real
    transfer = map_coordinates(blur, [qy * n * pixel + n // 2, qx * n * pixel + n // 2], order=1, mode="nearest")
    image = np.fft.ifft2(phase * transfer / (transfer**2 + 0.02)).real
    rows, columns = (slice(n // 6, n - n // 6) for n in shape)
    image = image[rows, columns]
    image = image - image.mean()
    variance = float(np.mean(image**2))
    return float(np.mean(image**3)) / variance**1.5 if variance > 0 else 0.0
