"""Preparation: what was done to a simulated scan on purpose is found and undone, within stated bounds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mepdiff_core.bright_disk import find_disk
from mepdiff_core.calibration import calibrate, calibration_of
from mepdiff_core.cli import main
from mepdiff_core.config import dump_yaml, from_dict, to_dict
from mepdiff_core.crystals import Crystal
from mepdiff_core.detector_faults import find_gain
from mepdiff_core.errors import InputError
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.optics import Optics
from mepdiff_core.patterns import bin_pixels, cut_or_pad, mirror, shift
from mepdiff_core.preparation import PrepareConfig, prepare, prepare_steps, words_of
from mepdiff_core.scan import Scan, Truth, load_scan, save_scan
from mepdiff_core.simulate import SimulationConfig, simulate_scan

CLEAN = SimulationConfig(
    optics=Optics(overfocus_A=60.0, Cs_A=0.0),
    scan_shape=(16, 15),
    scan_step_A=0.5,
    scan_rotation_deg=25.0,
    k_max_invA=1.6,
    detector_pixels=48,
    thickness_A=4.8,
    origin_A=(0.3, 0.2, 0.4),
    sampling_A=0.17,
    window=1,
)


@pytest.fixture(scope="module")
def clean(perovskite: Crystal) -> Scan:
    """240 patterns of 48 px through 3 slices of SrTiO3, the scan turned by 25 degrees."""
    return simulate_scan(perovskite, CLEAN)


def untold(scan: Scan) -> Scan:
    """The scan with its rotation forgotten."""
    return calibrate(scan, {"scan_rotation_deg": 0.0})


def changed(scan: Scan, counts: np.ndarray) -> Scan:
    return replace(scan, counts=counts)


def misfit(scan: Scan) -> float:
    """Of the truth, nats an electron."""
    assert scan.truth is not None
    model = ForwardModel(scan, 3, 1.6)
    return model.loss(torch.as_tensor(scan.truth.phase), np.arange(scan.n_patterns), Poisson())


def test_nothing_is_done_unasked(clean: Scan) -> None:
    same = prepare(clean, PrepareConfig())
    assert np.array_equal(same.counts, clean.counts)
    assert same.counts.dtype == clean.counts.dtype
    assert np.array_equal(same.positions_A, clean.positions_A)
    assert calibration_of(same) == calibration_of(clean)
    assert same.truth is not None
    assert clean.truth is not None
    assert np.array_equal(same.truth.phase, clean.truth.phase)
    assert words_of(same) == []
    assert words_of(clean) == []


# the detector


def test_dead_and_hot_pixels_are_found_and_filled(clean: Scan) -> None:
    counts = clean.counts.astype(np.uint32)
    dead = [(20, 22), (20, 23), (27, 30), (24, 10)]
    hot = [(3, 5), (24, 24), (40, 11)]
    for y, x in dead:
        counts[..., y, x] = 0
    for y, x in hot:
        counts[..., y, x] = 3 * counts[..., y, x] + 900
    filled = prepare(changed(clean, counts), PrepareConfig(fill_bad_pixels=True))
    found = filled.info["prepared"][-1]["found"]
    assert sorted(map(tuple, found["dead_pixels"])) == sorted(dead)
    assert sorted(map(tuple, found["hot_pixels"])) == sorted(hot)
    assert filled.counts.dtype == np.uint32
    good = np.ones((48, 48), bool)
    for place in dead + hot:
        good[place] = False
        # the mean of the neighbours, about what the pixel would have seen: on the slope of the disk's edge a third off
        truth = clean.counts[..., place[0], place[1]].mean()
        assert filled.counts[..., place[0], place[1]].mean() == pytest.approx(truth, rel=0.35, abs=1)
    assert np.array_equal(filled.counts[..., good], clean.counts[..., good])


def test_a_clean_detector_has_no_bad_pixels(clean: Scan) -> None:
    filled = prepare(clean, PrepareConfig(fill_bad_pixels=True))
    assert np.array_equal(filled.counts, clean.counts)
    assert words_of(filled) == ["0 dead and 0 hot pixels filled from their neighbours"]


def test_spots_are_no_faults(clean: Scan) -> None:
    counts = np.zeros((4, 4, 48, 48))
    counts[..., ::6, ::6] = 1000.0
    spots = replace(clean, counts=counts, positions_A=clean.positions_A[:16], truth=None)
    with pytest.raises(InputError, match="these are spots of the pattern; leave fill_bad_pixels out"):
        prepare(spots, PrepareConfig(fill_bad_pixels=True))


@pytest.mark.parametrize("gain", [0.05, 1.0, 12.5])
def test_gain_and_background_are_found(clean: Scan, gain: float) -> None:
    """To 3 % and to 1 % of the mean in the disk; the electrons of the beam follow."""
    pedestal = 40.0
    counts = clean.counts / gain + pedestal
    config = PrepareConfig(background=None, electrons_per_count=None, beam="sum")
    ready = prepare(changed(clean, counts), config)
    found = ready.info["prepared"][-1]["found"]
    assert found["electrons_per_count"] == pytest.approx(gain, rel=0.03)
    assert found["background"] == pytest.approx(pedestal, abs=0.01 * clean.counts[..., 20:28, 20:28].mean() / gain)
    assert ready.electrons_per_pattern == pytest.approx(clean.counts.sum((2, 3)).mean(), rel=0.04)
    assert ready.electrons_per_pattern == pytest.approx(float(ready.counts.sum((2, 3)).mean()), rel=1e-6)


def test_the_gain_of_pure_counting_noise_is_one() -> None:
    """An oracle without a microscope: Poisson counts of a smooth disk, each worth g electrons."""
    rng = np.random.default_rng(0)
    y, x = np.indices((64, 64))
    r = np.hypot(y - 32.3, x - 31.6)
    expected = 200 * np.clip((20.4 - r) / 3 + 0.5, 0, 1) * (1 + 0.3 * np.cos(y / 4))
    patterns = rng.poisson(expected, (60, 64, 64))
    for worth in (0.2, 1.0, 7.0):
        assert find_gain(patterns / worth) == pytest.approx(worth, rel=0.01)


def test_a_gain_that_cannot_be_told_is_refused() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(InputError, match="it takes 30, or give it"):
        find_gain(rng.poisson(5.0, (29, 16, 16)))
    with pytest.raises(InputError, match="differ too much from each other"):
        # each pattern adds something of its own, ever less of it, and all of it above the noise
        find_gain(
            (1 + rng.normal(0, 0.1, (40, 40)) @ np.diag(0.7 ** np.arange(40)) @ rng.normal(0, 1, (40, 256)))
            .clip(0.1)
            .reshape(40, 16, 16)
        )
    with pytest.raises(InputError, match="some patterns are empty"):
        find_gain(np.concatenate([np.zeros((5, 16, 16)), rng.poisson(5.0, (40, 16, 16))]))


def test_a_noise_floor_empties_faint_pixels(clean: Scan) -> None:
    noisy = clean.counts + np.random.default_rng(0).normal(0, 0.1, clean.counts.shape)
    ready = prepare(changed(clean, noisy.clip(0)), PrepareConfig(noise_floor=0.5))
    assert ((ready.counts == 0) == (clean.counts == 0)).mean() > 0.9999


# the patterns' places


def test_the_disk_is_found_to_a_fraction_of_a_pixel() -> None:
    """An analytic disk under counting noise, centre and radius to 0.03 px."""
    rng = np.random.default_rng(1)
    y, x = np.indices((60, 64))
    for centre, radius in (((28.37, 33.81), 9.6), ((31.0, 25.5), 17.25)):
        r = np.hypot(y - centre[0], x - centre[1])
        pattern = rng.poisson(1 + 400 * np.clip(radius - r + 0.5, 0, 1)).astype(float)
        disk = find_disk(pattern)
        assert disk.centre == pytest.approx(centre, abs=0.03)
        assert disk.radius == pytest.approx(radius, abs=0.03)


@pytest.mark.parametrize("pattern", [np.zeros((32, 32)), np.ones((32, 32)), np.eye(32)])
def test_no_disk_is_said(pattern: np.ndarray) -> None:
    with pytest.raises(InputError, match="bright disk"):
        find_disk(pattern)


def test_a_disk_that_leaves_the_detector_is_refused() -> None:
    """A bright corner whose best circle has its centre outside; a disk that is merely cut is found."""
    y, x = np.indices((64, 64))

    def pattern(centre_x: float) -> np.ndarray:
        return 1 + 400 * np.clip(30 - np.hypot(y - 32, x - centre_x) + 0.5, 0, 1)

    with pytest.raises(InputError, match="off the detector"):
        find_disk(pattern(-12))
    assert find_disk(pattern(12)).centre == pytest.approx((32, 12), abs=0.1)


def test_a_shift_of_all_patterns_is_undone(clean: Scan) -> None:
    moved = changed(clean, shift(clean.counts, (3, -2)))
    ready = prepare(moved, PrepareConfig(centre="mean", subpixel="leave"))
    inner = (..., slice(4, 44), slice(4, 44))
    assert np.array_equal(ready.counts[inner], clean.counts[inner])
    assert ready.info["prepared"][-1]["found"]["mean_shift_px"] == pytest.approx([-3, 2], abs=0.05)


def test_a_fraction_of_a_pixel_is_found_and_undone(clean: Scan) -> None:
    moved = changed(clean, shift(clean.counts, (1.4, -0.6)))
    ready = prepare(moved, PrepareConfig(centre="mean", subpixel="interpolate"))
    assert ready.info["prepared"][-1]["found"]["mean_shift_px"] == pytest.approx([-1.4, 0.6], abs=0.06)
    assert find_disk(ready.counts.mean((0, 1))).centre == pytest.approx((24, 24), abs=0.06)
    # interpolated twice here, the moving included
    assert misfit(ready) - misfit(clean) < 0.4 * (misfit(moved) - misfit(clean))


def test_what_whole_pixels_leave_goes_into_the_probe(perovskite: Crystal) -> None:
    """Patterns half a pixel off, as a detector sees them: the truth explains them as well as the centred ones, to 1 %."""
    config = replace(CLEAN, scan_shape=(8, 8), detector_pixels=96, dose_e_per_A2=None)
    fine = simulate_scan(perovskite, config)
    rng, scans = np.random.default_rng(5), []
    for moved in ((0, 0), (1, -1)):
        coarse = 4 * np.roll(fine.counts, moved, (2, 3))[..., ::2, ::2]
        coarse = np.roll(coarse, (2, 1), (2, 3)) if moved != (0, 0) else coarse
        counts, truth = rng.poisson(coarse * 2.5e5), fine.truth
        assert truth is not None
        scan = replace(fine, counts=counts, k_step_invA=2 * fine.k_step_invA, electrons_per_pattern=2.5e5, truth=None)
        inner = Truth(
            truth.phase[:, 24:-24, 24:-24], truth.voxel_size_A, (0.8, *(o + 24 * 0.3125 for o in truth.origin_A[1:]))
        )
        scans.append(replace(scan, truth=inner))
    centred, off = scans
    ready = prepare(off, PrepareConfig(centre="mean"))
    found = ready.info["prepared"][-1]["found"]
    assert found["mean_shift_px"] == pytest.approx([-2.5, -0.5], abs=0.06)
    assert np.abs(found["rest_px"]) == pytest.approx([0.5, 0.5], abs=0.06)
    assert ready.probe is not None
    excess = misfit(ready) / misfit(centred) - 1
    left = misfit(prepare(off, PrepareConfig(centre="mean", subpixel="leave"))) / misfit(centred) - 1
    assert excess < 0.01 < left
    assert ready.counts.dtype.kind in "iu"


def test_the_beams_wander_is_undone(clean: Scan) -> None:
    """Linear in row and column (to 0.1 px over the scan), or another way in each row."""
    rows, columns = clean.shape
    drift = np.empty((rows, columns, 2))
    drift[..., 0] = 0.20 * np.arange(rows)[:, None] - 0.11 * np.arange(columns)
    drift[..., 1] = -0.13 * np.arange(rows)[:, None] + 0.17 * np.arange(columns)
    drift -= drift.mean((0, 1))
    patterns = np.stack([shift(p, tuple(d)) for p, d in zip(clean.patterns(), drift.reshape(-1, 2), strict=True)])
    ready = prepare(
        changed(clean, patterns.reshape(clean.counts.shape)), PrepareConfig(centre="plane", subpixel="interpolate")
    )
    found = ready.info["prepared"][-1]["found"]
    assert found["wander_px"] == pytest.approx(np.ptp(drift, axis=(0, 1)), abs=0.25)
    each = np.array([find_disk(row.mean(0)).centre for row in ready.counts])
    assert np.abs(each - 24).max() < 0.2

    jumps = np.random.default_rng(2).integers(-3, 4, (rows, 2))
    jumped = np.stack([shift(row, (int(j[0]), int(j[1]))) for row, j in zip(clean.counts, jumps, strict=True)])
    ready = prepare(changed(clean, jumped), PrepareConfig(centre="rows", subpixel="leave"))
    inner = (..., slice(6, 42), slice(6, 42))
    assert np.array_equal(ready.counts[inner], clean.counts[inner])


# rotation, mirroring


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize(("overfocus", "rotation"), [(60.0, 25.0), (-60.0, 160.0), (200.0, -100.0)])
def test_rotation_and_mirroring_are_found(perovskite: Crystal, overfocus: float, rotation: float, mirrored: bool) -> None:
    """To 0.5 degrees, of all 360."""
    size = 96 if abs(overfocus) > 100 else 48
    optics = replace(CLEAN.optics, overfocus_A=overfocus)
    # the farther the images are shifted against each other, the wider a scan it takes
    shape = (22, 22) if size == 96 else CLEAN.scan_shape
    config = replace(CLEAN, optics=optics, scan_rotation_deg=rotation, detector_pixels=size, scan_shape=shape)
    scan = simulate_scan(perovskite, config)
    counts = scan.counts.swapaxes(2, 3) if mirrored else scan.counts
    ready = prepare(untold(changed(scan, counts)), PrepareConfig(rotation="mirror"))
    found = ready.info["prepared"][-1]["found"]
    assert found["mirrored"] is mirrored
    assert (found["scan_rotation_deg"] - rotation + 180) % 360 - 180 == pytest.approx(0, abs=0.5)
    assert np.array_equal(ready.counts, scan.counts)
    assert np.abs(ready.positions_A - scan.positions_A).max() < 0.1
    assert any("the sign of the centre of mass's divergence agrees" in line for line in words_of(ready))


def test_in_focus_the_curl_decides(perovskite: Crystal) -> None:
    """To 1.5 degrees, and 180 degrees by the sign of the divergence."""
    for rotation in (10.0, -140.0):
        optics = replace(CLEAN.optics, overfocus_A=0.0)
        scan = simulate_scan(perovskite, replace(CLEAN, optics=optics, scan_rotation_deg=rotation, scan_step_A=0.4))
        ready = prepare(untold(scan), PrepareConfig(rotation="find"))
        assert ready.info["prepared"][-1]["found"]["scan_rotation_deg"] == pytest.approx(rotation, abs=1.5)
        assert any("least curl" in line for line in words_of(ready))


def test_a_focus_of_the_wrong_sign_is_said(clean: Scan) -> None:
    wrong = calibrate(untold(clean), {"optics": {"overfocus_A": -60.0}})
    ready = prepare(wrong, PrepareConfig(rotation="find"))
    assert ready.info["prepared"][-1]["found"]["scan_rotation_deg"] == pytest.approx(25 - 180, abs=0.5)
    assert any("give overfocus_A=60 and find the rotation again" in line for line in words_of(ready))


def test_a_scan_too_small_to_tell_is_refused(clean: Scan) -> None:
    with pytest.raises(InputError, match="the scan has 5 x 5 positions; a rotation needs 6 x 6"):
        prepare(clean, PrepareConfig(scan_crop=(0, 5, 0, 5), rotation="find"))


@given(st.booleans(), st.booleans(), st.booleans(), st.sampled_from([6, 7]), st.sampled_from([6, 9]))
def test_mirroring_keeps_the_middle_in_the_middle(up: bool, left: bool, swap: bool, height: int, width: int) -> None:
    pattern = np.random.default_rng(3).random((2, height, width))
    once = mirror(pattern, up, left, swap)
    middle = once.shape[1] // 2, once.shape[2] // 2
    assert np.array_equal(once[:, middle[0], middle[1]], pattern[:, height // 2, width // 2])
    back = mirror(mirror(once, transpose=swap), up, left)
    assert np.array_equal(back, pattern)


# calibration and window


def test_the_disk_calibrates_pixel_or_semiangle(clean: Scan) -> None:
    """To 1 %, from values 20 % off."""
    wrong = replace(clean, k_step_invA=0.8 * clean.k_step_invA, truth=None)
    assert prepare(wrong, PrepareConfig(calibrate="k_step")).k_step_invA == pytest.approx(clean.k_step_invA, rel=0.01)
    wrong = calibrate(clean, {"optics": {"semiangle_mrad": 17.0}})
    ready = prepare(wrong, PrepareConfig(calibrate="semiangle"))
    assert ready.optics.semiangle_mrad == pytest.approx(clean.optics.semiangle_mrad, rel=0.01)


def test_the_calibrated_aperture_holds_the_bright_pixels(clean: Scan) -> None:
    wrong = replace(clean, k_step_invA=0.9 * clean.k_step_invA, truth=None)
    ready = prepare(wrong, PrepareConfig(calibrate="k_step"))
    k = (np.arange(48) - 24) * ready.k_step_invA
    aperture = np.hypot(k[:, None], k[None, :]) <= ready.optics.k_aperture_invA
    mean = clean.counts.mean((0, 1))
    assert np.array_equal(aperture, mean > 0.5 * np.median(mean[20:28, 20:28]))


def test_binning_keeps_counts_and_centre(clean: Scan) -> None:
    binned = prepare(clean, PrepareConfig(bin=2, subpixel="leave"))
    assert binned.counts.shape == (16, 15, 24, 24)
    assert binned.counts.sum() == clean.counts.sum()
    assert binned.k_step_invA == 2 * clean.k_step_invA
    assert binned.truth is not None
    smooth = prepare(clean, PrepareConfig(bin=2, subpixel="interpolate"))
    assert find_disk(smooth.counts.mean((0, 1))).centre == pytest.approx((12, 12), abs=0.05)
    assert smooth.counts.sum(dtype=float) == pytest.approx(clean.counts.sum(), rel=0.02)
    assert bin_pixels(np.full((1, 4, 6), 255, np.uint8), 2).tolist() == [[[1020] * 3] * 2]


@pytest.mark.parametrize(
    ("settings", "pixels"),
    [({"pixel_size_A": 0.4}, 38), ({"k_max_invA": 2.0}, 60), ({"detector_pixels": 40}, 40), ({"pixel_size_A": 0.25}, 60)],
)
def test_the_window_fits_what_is_wanted(clean: Scan, settings: dict[str, float], pixels: int) -> None:
    ready = prepare(clean, from_dict(PrepareConfig, settings))
    assert ready.n_pixels == pixels
    assert ready.k_step_invA == clean.k_step_invA
    assert ready.truth is None
    kept = min(pixels, 48) // 2
    middle = (..., slice(pixels // 2 - kept, pixels // 2 + kept), slice(pixels // 2 - kept, pixels // 2 + kept))
    assert np.array_equal(ready.counts[middle], clean.counts[..., 24 - kept : 24 + kept, 24 - kept : 24 + kept])
    outside = ready.counts.sum() - ready.counts[middle].sum()
    assert outside == 0


@given(st.integers(3, 20), st.integers(3, 20), st.integers(1, 12).map(lambda n: 2 * n))
def test_cutting_and_padding_keep_the_middle(height: int, width: int, n: int) -> None:
    pattern = np.zeros((1, height, width))
    pattern[0, height // 2, width // 2] = 1
    assert cut_or_pad(pattern, n).shape == (1, n, n)
    assert cut_or_pad(pattern, n)[0, n // 2, n // 2] == 1


def test_a_part_of_the_scan_keeps_its_truth(clean: Scan) -> None:
    part = prepare(clean, PrepareConfig(scan_crop=(4, 12, 3, 13)))
    assert part.shape == (8, 10)
    assert np.array_equal(part.counts, clean.counts[4:12, 3:13])
    assert part.truth is not None
    assert clean.truth is not None
    volumes = [torch.as_tensor(s.truth.phase) for s in (clean, part) if s.truth is not None]
    whole = ForwardModel(clean, 3, 1.6).predict(volumes[0], np.array([4 * 15 + 3, 11 * 15 + 12])).numpy()
    ours = ForwardModel(part, 3, 1.6).predict(volumes[1], np.array([0, 79])).numpy()
    assert np.abs(ours - whole).max() < 0.02 * whole.max()


def test_all_at_once_is_undone_in_the_fixed_order(clean: Scan) -> None:
    """Gain, hot pixel, flips, shift, wrong rotation and pixel: the truth explains the patterns as before, to 1 %."""
    counts = shift(clean.counts, (2, 1)).astype(np.float64)
    counts[..., 30, 20] += 2000
    counts = mirror(mirror(counts, transpose=True), flip_ky=True) / 4 + 10
    spoilt = replace(untold(changed(clean, counts)), k_step_invA=0.9 * clean.k_step_invA, truth=None)
    config = PrepareConfig(
        fill_bad_pixels=True,
        background=10.0,
        electrons_per_count=4.0,
        flip_ky=True,
        transpose=True,
        calibrate="k_step",
        centre="mean",
        subpixel="leave",
        rotation="mirror",
        beam="sum",
    )
    ready = prepare(spoilt, config)
    assert calibration_of(ready).scan_rotation_deg == pytest.approx(25, abs=0.5)
    assert ready.k_step_invA == pytest.approx(clean.k_step_invA, rel=0.01)
    inner = (..., slice(4, 44), slice(4, 44))
    close = np.isclose(ready.counts[inner], clean.counts[inner], atol=1e-2)
    assert (~close).sum() <= clean.n_patterns  # the pixel that was hot
    again = replace(ready, k_step_invA=clean.k_step_invA, truth=clean.truth, positions_A=clean.positions_A)
    assert misfit(again) == pytest.approx(misfit(clean), rel=0.01)


# the record, the command


configs = st.builds(
    PrepareConfig,
    scan_crop=st.none() | st.tuples(st.just(0), st.integers(1, 9), st.integers(0, 3), st.integers(4, 9)),
    fill_bad_pixels=st.booleans(),
    background=st.none() | st.floats(0, 1e6),
    electrons_per_count=st.none() | st.floats(1e-6, 1e6),
    calibrate=st.sampled_from(["keep", "k_step", "semiangle"]),
    centre=st.sampled_from(["keep", "mean", "rows", "plane"]),
    bin=st.integers(1, 64),
    pixel_size_A=st.none() | st.floats(1e-3, 10),
)


@given(configs)
def test_a_config_survives_yaml(config: PrepareConfig) -> None:
    assert from_dict(PrepareConfig, yaml.safe_load(dump_yaml(to_dict(config)))) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"bin": 0}, "bin is 0; expected 1 to 64"),
        ({"detector_pixels": 33}, "detector_pixels is 33; expected an even number"),
        ({"k_max_invA": 1, "pixel_size_A": 0.2}, "k_max_invA and pixel_size_A all say how large the window is"),
        ({"scan_crop": [3, 3, 0, 5]}, "scan_crop is"),
        ({"electrons_per_count": 0}, "electrons_per_count is 0"),
        ({"centre": "corner"}, "choose from keep, mean, rows, plane"),
        ({"rotate": 3}, "unknown field 'rotate'"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_dict(PrepareConfig, settings)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PrepareConfig(scan_crop=(0, 17, 0, 3)), "the scan has 16 x 15 positions"),
        (PrepareConfig(detector_crop=(0, 49, 0, 48)), "patterns are 48 x 48 px"),
        (PrepareConfig(detector_crop=(2, 48, 0, 46)), "moves zero frequency from the middle; set centre too"),
        (PrepareConfig(bin=8), "the window would have 6 px"),
    ],
)
def test_settings_that_do_not_fit_the_scan_are_refused(clean: Scan, config: PrepareConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(clean, config)


def test_progress_goes_up_to_its_total(clean: Scan) -> None:
    steps = list(prepare_steps(clean, PrepareConfig(fill_bad_pixels=True, centre="mean", rotation="find")))
    done = [step.done for step in steps]
    assert done == [*range(1, 4 * 16 + 1), 4 * 16]
    assert {step.total for step in steps} == {64}
    assert [step.scan is None for step in steps] == [True] * 64 + [False]


def test_the_command_writes_scan_picture_and_record(clean: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, out = tmp_path / "scan.h5", tmp_path / "ready.h5"
    save_scan(untold(clean), source)
    arguments = ["--set", "rotation=find", "--set", "centre=mean", "--set", "subpixel=leave"]
    assert main(["prepare", str(source), str(out), *arguments]) == 0
    said = capsys.readouterr().out
    assert "scan rotation 2" in said
    assert "centred by whole pixels nearest to" in said
    assert (tmp_path / "ready.png").stat().st_size > 20_000
    ready = load_scan(out)
    assert calibration_of(ready).scan_rotation_deg == pytest.approx(25, abs=0.5)
    run = [
        "reconstruct",
        str(out),
        "--method",
        "adam-best",
        "--out",
        str(tmp_path / "run"),
        "--steps",
        "1",
        "--set",
        "engine=fast",
    ]
    assert main([*run, "--set", "slices=1"]) == 0
    record = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    assert record["prepared"] == ready.info["prepared"]
    assert record["prepared"][0]["config"]["rotation"] == "find"
    assert main(["prepare", str(source), str(out), *arguments]) == 2
    assert "exists already" in capsys.readouterr().err


def test_the_command_refuses_in_one_line(clean: Scan, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "scan.h5"
    save_scan(clean, source)
    for arguments, message in (
        ([], "nothing to do; say what with --set"),
        (["--set", "bin=9"], "the window would have 4 px"),
        (["--set", "nonsense=1"], "unknown field 'nonsense' of PrepareConfig"),
    ):
        assert main(["prepare", str(source), str(tmp_path / "out.h5"), *arguments]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert message in error
        assert not (tmp_path / "out.h5").exists()
