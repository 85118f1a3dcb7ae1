"""The settings of a preparation; nothing here computes, so forms and help read them at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mepdiff_core.config import check


@dataclass(frozen=True)
class PrepareConfig:
    """What to do with a scan before it is reconstructed; by default nothing.

    Attributes:
        scan_crop: first row, row after the last, first column, column after the last of the positions to keep; null: all.
        blind: picture of the detector as it is in the file, .npy or .tif: pixels that are not 0 (a beam stop, dead rows) are
            left out of every fit; null: none.
        fill_bad_pixels: find dead and hot pixels, and fill them from their neighbours.
        background: counts a pixel to take away; null: what the detector's corners see.
        electrons_per_count: gain of the detector; null: found from the counting noise.
        noise_floor: pixels with fewer electrons than this are set to 0, after background and gain.
        flip_ky: turn the patterns upside down.
        flip_kx: turn them left to right, after that.
        transpose: swap ky and kx, after that.
        detector_crop: first row, row after the last, first column, column after the last of the pixels to keep; null: all.
        calibrate: k_step: the bright disk's radius gives the detector pixel in 1/Å, for the semi-angle that is known;
            semiangle: it gives the semi-angle, for the pixel that is known; keep: neither.
        centre: mean: the bright disk of the mean pattern to the middle; rows: that of each scan row; plane: by a shift
            linear in scan row and column (descan); keep: no shift.
        subpixel: probe: patterns move by whole pixels, so that counts stay what they are, and what is left of the mean shift
            goes into the scan's probe, as an aperture off the middle; interpolate: by splines; leave: nothing is done to it.
        bin: pixels along each side that become one.
        detector_pixels: size of the window, cut out or filled up with zeros; null: as it is.
        k_max_invA: the same by its largest frequency, 1/Å; null: as it is.
        pixel_size_A: the same by the pixel of real space, 1 / (2 k_max), Å; null: as it is.
        beam: sum: the beam's electrons are the mean sum of the patterns (nothing missed the detector); keep: as they are.
        rotation: find: scan rotation from the patterns; mirror: the same, and whether they are mirrored; keep: neither.
    """

    scan_crop: tuple[int, int, int, int] | None = None
    blind: str | None = None
    fill_bad_pixels: bool = False
    background: float | None = 0.0
    electrons_per_count: float | None = 1.0
    noise_floor: float = 0.0
    flip_ky: bool = False
    flip_kx: bool = False
    transpose: bool = False
    detector_crop: tuple[int, int, int, int] | None = None
    calibrate: Literal["keep", "k_step", "semiangle"] = "keep"
    centre: Literal["keep", "mean", "rows", "plane"] = "keep"
    subpixel: Literal["probe", "interpolate", "leave"] = "probe"
    bin: int = 1
    detector_pixels: int | None = None
    k_max_invA: float | None = None
    pixel_size_A: float | None = None
    beam: Literal["keep", "sum"] = "keep"
    rotation: Literal["keep", "find", "mirror"] = "keep"

    def __post_init__(self) -> None:
        for name in ("scan_crop", "detector_crop"):
            crop = getattr(self, name)
            fits = crop is None or (0 <= crop[0] < crop[1] and 0 <= crop[2] < crop[3])
            check(fits, f"{name} is {crop}; expected first row, row after the last, first column, column after the last")
        check(
            self.background is None or self.background >= 0, f"background is {self.background}; expected 0 or more, or null"
        )
        gain = self.electrons_per_count
        check(gain is None or gain > 0, f"electrons_per_count is {gain}; expected more than 0, or null")
        check(self.noise_floor >= 0, f"noise_floor is {self.noise_floor:g}; expected 0 or more")
        check(1 <= self.bin <= 64, f"bin is {self.bin}; expected 1 to 64")
        n = self.detector_pixels
        check(
            n is None or (8 <= n <= 4096 and n % 2 == 0), f"detector_pixels is {n}; expected an even number from 8 to 4096"
        )
        for name in ("k_max_invA", "pixel_size_A"):
            value = getattr(self, name)
            check(value is None or value > 0, f"{name} is {value}; expected more than 0")
        given = [name for name in ("detector_pixels", "k_max_invA", "pixel_size_A") if getattr(self, name) is not None]
        check(len(given) <= 1, f"{' and '.join(given)} all say how large the window is; give one of them")
