"""Preparation: from what a detector wrote to what a model expects, in steps of a fixed order, each on record.

The order: positions cut out, bad pixels, background, gain, mirroring, detector cut out, calibration by the bright disk,
centring, binning, window, electrons of the beam, scan rotation. Flips come in the order of PtyRAD's meas_flipT.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.bright_disk import disk_centres, disk_places, find_disk, hard_radius, wander_per_step
from mepdiff_core.calibration import calibrate, calibration_of
from mepdiff_core.config import check, to_dict
from mepdiff_core.detector_faults import fill_pixels, find_background, find_bad_pixels, find_gain
from mepdiff_core.detector_mask import read_blind_pixels
from mepdiff_core.lazy_counts import LAZY_FROM_BYTES, MadeCounts, is_lazy
from mepdiff_core.optics import off_axis_probe
from mepdiff_core.patterns import bin_pixels, cut_or_pad, mirror, shift
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.prepare_record import Found, in_words
from mepdiff_core.scan import Scan, Truth
from mepdiff_core.scan_rotation import find_rotation

Patterns = npt.NDArray[np.generic]
GAIN_PATTERNS = 256
"""Patterns from all over the scan that the gain is found from."""
SMALLEST_SHIFT = 0.02
"""Pixels; smaller shifts than this are left alone."""


@dataclass(frozen=True)
class PrepareStep:
    """Progress: ``done`` of ``total`` scan rows gone through, and what for; ``scan`` is there at the end."""

    done: int
    total: int
    what: str
    scan: Scan | None = None


def prepare(scan: Scan, config: PrepareConfig) -> Scan:
    """A prepared scan; what was done and found is in its ``info["prepared"]``.

    Raises:
        InputError: something that was to be found is not there, or settings that do not fit the scan.
    """
    for step in prepare_steps(scan, config):
        if step.scan is not None:
            return step.scan
    raise AssertionError("a preparation ends with a scan")


def words_of(scan: Scan) -> list[str]:
    """What the last preparation of a scan did, a line a step; empty for one that was never prepared."""
    record = scan.info.get("prepared") or []
    return [str(line) for line in record[-1]["steps"]] if record else []


def prepare_steps(scan: Scan, config: PrepareConfig) -> Iterator[PrepareStep]:
    """As ``prepare``, yielding progress."""
    work = _Preparation(_crop_scan(scan, config), config)
    rows, passes = work.scan.shape[0], work.passes()
    for number, (what, each) in enumerate(passes):
        for row in range(rows):
            each(row)
            yield PrepareStep(number * rows + row + 1, len(passes) * rows, what)
    prepared = work.finish()
    steps, values = in_words(config, work.found, scan, prepared), work.found.values(scan, prepared)
    record = [*(scan.info.get("prepared") or []), {"config": to_dict(config), "steps": steps, "found": values}]
    total = len(passes) * rows
    yield PrepareStep(total, total, "done", replace(prepared, info={**scan.info, "prepared": record}))


def _crop_scan(scan: Scan, config: PrepareConfig) -> Scan:
    if config.scan_crop is None:
        return scan
    first_row, last_row, first, last = config.scan_crop
    rows, columns = scan.shape
    check(
        last_row <= rows and last <= columns,
        f"scan_crop is {list(config.scan_crop)}; the scan has {rows} x {columns} positions",
    )
    positions = scan.positions_A.reshape(rows, columns, 2)[first_row:last_row, first:last].reshape(-1, 2)
    counts: Any
    if is_lazy(scan.counts):
        shape = (last_row - first_row, last - first, *scan.counts.shape[2:])
        counts = MadeCounts(shape, scan.counts.dtype, lambda row: scan.counts[first_row + row, first:last])
        counts = np.asarray(counts) if counts.nbytes < LAZY_FROM_BYTES else counts
    else:
        counts = scan.counts[first_row:last_row, first:last]
    return replace(scan, counts=counts, positions_A=positions)


class _Preparation:
    """One scan on its way; what each pass over its rows finds is what the next one uses."""

    def __init__(self, scan: Scan, config: PrepareConfig) -> None:
        self.scan, self.config = scan, config
        self.found = Found(
            background=config.background or 0.0,
            gain=config.electrons_per_count or 1.0,
            shifts=np.zeros((*scan.shape, 2)),
        )
        n = scan.n_pixels
        self._bad, self._unseen = np.zeros((n, n), bool), scan.blind
        if config.blind is not None:
            own = read_blind_pixels(config.blind, n)
            self._unseen = own if scan.blind is None else own | scan.blind
        self._k_step, self._optics = scan.k_step_invA, scan.optics
        self._raw_sum, self._raw_square = np.zeros((n, n)), np.zeros((n, n))
        self._row_sums: list[npt.NDArray[np.float64]] = []
        self._column_sums: npt.NDArray[np.float64] | None = None
        self._masses: list[npt.NDArray[np.float64]] = []
        self._images: list[npt.NDArray[np.float64]] = []
        self._places: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None
        self._finished: list[Patterns] = []
        self._large = is_lazy(scan.counts)
        self._electrons = 0.0
        self._window = 0

    def passes(self) -> list[tuple[str, Callable[[int], None]]]:
        """What is done for each scan row, one pass after the other."""
        config = self.config
        passes: list[tuple[str, Callable[[int], None]]] = []
        if config.fill_bad_pixels or config.background is None or config.electrons_per_count is None:
            passes.append(("looking at the detector", self._look))
        if config.centre != "keep" or config.calibrate != "keep":
            passes.append(("looking for the bright disk", self._average))
        if config.rotation != "keep":
            passes.append(("looking at the centre of mass", self._weigh))
        return [*passes, ("preparing the patterns", self._apply)]

    def _last(self, row: int) -> bool:
        return row == self.scan.shape[0] - 1

    def _look(self, row: int) -> None:
        counts = self.scan.counts[row].astype(np.float64)
        self._raw_sum += counts.sum(0)
        self._raw_square += (counts**2).sum(0)
        if self._last(row):
            self._detector_known()

    def _detector_known(self) -> None:
        config, scan = self.config, self.scan
        mean = self._raw_sum / scan.n_patterns
        spread = np.sqrt(np.maximum(self._raw_square / scan.n_patterns - mean**2, 0))
        if config.fill_bad_pixels:
            self.found.dead, self.found.hot = find_bad_pixels(mean, spread, scan.n_patterns)
            self._bad = self.found.dead | self.found.hot
        mean = np.asarray(fill_pixels(mean, self._bad), np.float64)
        if config.background is None:
            self.found.background = find_background(mean)
        if config.electrons_per_count is None:
            self.found.gain = self._find_gain()

    def _find_gain(self) -> float:
        n = self.scan.n_patterns
        chosen = np.unique(np.linspace(0, n - 1, min(n, GAIN_PATTERNS)).round().astype(int))
        columns = self.scan.shape[1]
        patterns = np.stack([self.scan.counts[i // columns, i % columns] for i in chosen.tolist()])
        return find_gain(np.where(self._bad, 0, patterns.astype(np.float32) - np.float32(self.found.background)))

    def _clean(self, row: int) -> Patterns:
        """(scan_x, ky, kx) of a scan row: a perfect detector's, mirrored and cut out."""
        config = self.config
        patterns = fill_pixels(self.scan.counts[row], self._bad)
        if self.found.background or self.found.gain != 1 or config.noise_floor:
            electrons = (patterns.astype(np.float32) - np.float32(self.found.background)) * np.float32(self.found.gain)
            patterns = np.where(electrons > config.noise_floor, electrons, np.float32(0))
        return self._framed(patterns)

    def _framed(self, patterns: Patterns) -> Patterns:
        """Patterns (n, ky, kx) mirrored and cut out."""
        config = self.config
        patterns = mirror(patterns, config.flip_ky, config.flip_kx, config.transpose)
        if config.detector_crop is not None:
            top, bottom, left, right = config.detector_crop
            check(
                bottom <= patterns.shape[1] and right <= patterns.shape[2],
                f"detector_crop is {list(config.detector_crop)}; patterns are {patterns.shape[1]} x {patterns.shape[2]} px",
            )
            patterns = patterns[:, top:bottom, left:right]
        return patterns

    def _average(self, row: int) -> None:
        patterns = self._clean(row)
        self._row_sums.append(patterns.sum(0, dtype=np.float64))
        if self.config.centre == "plane":
            total = patterns.astype(np.float64)
            self._column_sums = total if self._column_sums is None else self._column_sums + total
        if self._last(row):
            self._disk_known()

    def _disk_known(self) -> None:
        config = self.config
        mean = np.sum(self._row_sums, axis=0) / self.scan.n_patterns
        disk = find_disk(mean)
        if config.calibrate != "keep":
            disk = replace(disk, radius=hard_radius(mean, disk))
        self.found.disk = disk
        wavelength = self._optics.wavelength_A
        if config.calibrate == "k_step":
            self._k_step = self._optics.k_aperture_invA / disk.radius
        elif config.calibrate == "semiangle":
            self._optics = replace(self._optics, semiangle_mrad=1e3 * wavelength * self._k_step * disk.radius)
        if config.centre == "keep":
            return
        height, width = self._row_sums[0].shape
        middle = np.array([height // 2, width // 2], float)
        self.found.shifts[...] = middle - np.array(disk.centre)
        if config.centre == "rows":
            self.found.shifts[...] = (middle - disk_centres(self._row_sums))[:, None, :]
        elif config.centre == "plane":
            assert self._column_sums is not None
            for axis, sums in ((0, self._row_sums), (1, list(self._column_sums))):
                slope = wander_per_step(disk_centres(sums))
                places = np.arange(len(sums)) - (len(sums) - 1) / 2
                self.found.shifts -= np.expand_dims(places[:, None] * slope, 1 - axis)

    def _place(self, row: int) -> Patterns:
        """(scan_x, ky, kx) of a scan row as it will be, but for a mirroring that the rotation may find."""
        return self._placed(self._clean(row), self.found.shifts[row])

    def _placed(self, patterns: Patterns, shifts: npt.NDArray[np.float64]) -> Patterns:
        config = self.config
        if config.centre == "keep" and config.detector_crop is not None:
            n, (top, bottom, left, right) = self.scan.n_pixels, config.detector_crop
            check(
                n // 2 - top == (bottom - top) // 2 and n // 2 - left == (right - left) // 2,
                f"detector_crop {list(config.detector_crop)} moves zero frequency from the middle; set centre too",
            )
        moves = shifts + (config.bin - 1) / 2  # binned pixels have their centres elsewhere
        whole = config.subpixel != "interpolate"
        moves = np.round(moves) if whole else np.where(np.abs(moves) < SMALLEST_SHIFT, 0.0, moves)
        if np.ptp(moves, axis=0).max() < 1e-9:
            patterns = shift(patterns, (moves[0, 0], moves[0, 1]))
        else:
            patterns = np.stack([shift(p, (m[0], m[1])) for p, m in zip(patterns, moves, strict=True)])
        return cut_or_pad(bin_pixels(patterns, config.bin), self._window_pixels(patterns.shape[-2:]))

    def _window_pixels(self, shape: tuple[int, ...]) -> int:
        config, step = self.config, self._k_step * self.config.bin
        n = min(shape) // config.bin
        n -= n % 2
        if config.detector_pixels is not None:
            n = config.detector_pixels
        elif config.k_max_invA is not None:
            n = 2 * round(config.k_max_invA / step)
        elif config.pixel_size_A is not None:
            n = 2 * round(0.5 / (config.pixel_size_A * step))
        check(8 <= n <= 4096, f"the window would have {n} px; expected 8 to 4096: check bin, k_max_invA and pixel_size_A")
        self._window = n
        return n

    def _weigh(self, row: int) -> None:
        patterns = self._place(row).astype(np.float64)
        n, step = patterns.shape[-1], self._k_step * self.config.bin
        if self._places is None:
            self._places = disk_places(n, step, self._optics.k_aperture_invA)
        labels, places = self._places
        k = (np.arange(n) - n // 2) * step
        total = np.maximum(patterns.sum((1, 2)), 1e-300)
        self._masses.append(np.stack([patterns.sum(2) @ k, patterns.sum(1) @ k], axis=-1) / total[:, None])
        flat = patterns.reshape(len(patterns), -1)[:, labels >= 0]
        image = np.zeros((len(patterns), len(places)))
        np.add.at(image.T, labels[labels >= 0], flat.T)
        self._images.append(image)
        if self._last(row):
            self._rotation_known()

    def _rotation_known(self) -> None:
        calibration = calibration_of(self.scan)
        check(calibration.scan_step_A is not None, "the positions are no raster of one step; their rotation cannot be found")
        assert calibration.scan_step_A is not None
        assert self._places is not None
        self.found.rotation = find_rotation(
            np.stack(self._masses),
            np.stack(self._images),
            self._places[1],
            calibration.scan_step_A,
            self._optics,
            self.scan.thickness_A or 0.0,
            self.config.rotation == "mirror",
        )

    def _blind(self) -> npt.NDArray[np.bool_] | None:
        """(ky, kx) pixels of the finished patterns that a blind one has part in, in any pattern."""
        if self._unseen is None:
            return None
        framed = self._framed(self._unseen[None].astype(np.float32))
        shifts = np.unique(self.found.shifts.reshape(-1, 2), axis=0)
        blind = np.any([self._placed(framed, each[None])[0] > 1e-3 for each in shifts], axis=0)
        turned = self.found.rotation is not None and self.found.rotation.mirrored
        return np.asarray(blind.T if turned else blind, np.bool_)

    def _make_row(self, row: int) -> Patterns:
        patterns = self._place(row)
        if self.found.rotation is not None and self.found.rotation.mirrored:
            patterns = patterns.swapaxes(-2, -1)
        return patterns

    def _apply(self, row: int) -> None:
        patterns = self._make_row(row)
        self._electrons += float(patterns.sum(dtype=np.float64))
        if self._large:
            self._finished[:] = [patterns[:1]]  # its shape is enough: rows are made again when they are asked for
        else:
            self._finished.append(np.ascontiguousarray(patterns))

    def finish(self) -> Scan:
        """The prepared scan; ``found`` is complete then."""
        config, scan = self.config, self.scan
        one = self._finished[0]
        shape = (*scan.shape, *one.shape[1:])
        counts: Any = MadeCounts(shape, one.dtype, self._make_row) if self._large else np.stack(self._finished)
        self.found.mean_electrons = self._electrons / scan.n_patterns
        beam = self.found.mean_electrons if config.beam == "sum" else scan.electrons_per_pattern
        k_step = self._k_step * config.bin
        same = self._window == scan.n_pixels and k_step == scan.k_step_invA and self._optics == scan.optics
        mirrored = config.flip_ky or config.flip_kx or config.transpose
        prepared = replace(
            scan,
            counts=counts,
            optics=self._optics,
            k_step_invA=k_step,
            electrons_per_pattern=beam,
            probe=scan.probe if same and not mirrored else None,
            truth=None,
            blind=self._blind(),
        )
        if config.subpixel == "probe":
            prepared = self._with_aperture_off(prepared)
        if self.found.rotation is not None:
            prepared = calibrate(prepared, {"scan_rotation_deg": self.found.rotation.rotation_deg})
        return replace(prepared, truth=cut_truth(scan, prepared))

    def _with_aperture_off(self, prepared: Scan) -> Scan:
        """The probe takes up what whole pixels have left of the disk's mean shift; a beam that is tilted by so much."""
        config = self.config
        moves = self.found.shifts + (config.bin - 1) / 2
        rest = np.mean(np.round(moves) - moves, axis=(0, 1)) / config.bin
        if self.found.rotation is not None and self.found.rotation.mirrored:
            rest = rest[::-1]
        if np.abs(rest).max() < SMALLEST_SHIFT:
            return prepared
        self.found.rest = (float(rest[0]), float(rest[1]))
        n = prepared.n_pixels
        place = (np.arange(n) - n // 2) / n
        ramp = np.exp(2j * np.pi * (rest[0] * place[:, None] + rest[1] * place[None, :]))
        # the aperture is cut anew at the pixels where it now lies: no ramp can move a hard edge between pixels
        probe = off_axis_probe(prepared.optics, n, prepared.pixel_size_A, self.found.rest)
        own = prepared.probe
        return replace(prepared, probe=(probe[None] if own is None else own * ramp).astype(np.complex64))


def cut_truth(before: Scan, after: Scan) -> Truth | None:
    """The true volume of one scan on the object field of another of it; None for other pixels, or where it ends before.

    What is left of a whole pixel is made up for in Fourier space.
    """
    from mepdiff_core.forward import object_field

    truth = before.truth
    if truth is None or not math.isclose(truth.voxel_size_A[1], after.pixel_size_A, rel_tol=1e-6):
        return None
    area = object_field(after.positions_A, after.n_pixels, after.pixel_size_A)
    offset = (np.array(area.origin_A) - truth.origin_A[1:]) / area.pixel_size_A
    y, x = first = np.round(offset).astype(int)
    height, width = truth.phase.shape[1:]
    if first.min() < 0 or y + area.shape[0] > height or x + area.shape[1] > width:
        return None
    phase, rest = truth.phase, offset - first
    if np.abs(rest).max() > 1e-3:
        ramp = rest[0] * np.fft.fftfreq(height)[:, None] + rest[1] * np.fft.rfftfreq(width)
        spectrum = np.fft.rfft2(phase) * np.exp(2j * np.pi * ramp)
        phase = np.fft.irfft2(spectrum, (height, width)).astype(np.float32)
    origin = (truth.origin_A[0], *area.origin_A)
    return Truth(phase[:, y : y + area.shape[0], x : x + area.shape[1]], truth.voxel_size_A, origin)
