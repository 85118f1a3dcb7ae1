"""Virtual detectors against plain numpy on small random scans."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.errors import InputError
from mepdiff_core.scan import Scan
from mepdiff_core.virtual import counts_histogram, detector_mask, mean_pattern, virtual_image

Counts = npt.NDArray[np.generic]
KINDS = ["uint8", "uint16", "float32"]


def make_counts(kind: str, shape: tuple[int, int, int, int] = (5, 7, 12, 12), seed: int = 0) -> Counts:
    """Counts over the whole range of their type: sums leave it at once."""
    rng = np.random.default_rng(seed)
    if kind == "float32":
        return np.asarray(rng.gamma(0.3, 1e4, shape).astype(np.float32))
    return rng.integers(0, np.iinfo(kind).max, shape, dtype=kind, endpoint=True)


# mean pattern and images


@pytest.mark.parametrize("kind", KINDS)
def test_the_mean_pattern_is_the_mean_over_all_positions(kind: str) -> None:
    counts = make_counts(kind)
    mean = mean_pattern(counts)
    assert (mean.shape, mean.dtype) == ((12, 12), np.float64)
    np.testing.assert_allclose(mean, counts.astype(np.float64).mean(axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 9, 4, 4), (9, 1, 4, 4), (2, 3, 5, 5)])
def test_scans_of_every_shape_have_mean_and_image(kind: str, shape: tuple[int, int, int, int]) -> None:
    counts = make_counts(kind, shape)
    exact = counts.astype(np.float64)
    mask = np.zeros(shape[2:], bool)
    mask[1, 2] = mask[3, 0] = True
    image = virtual_image(counts, mask)
    assert image.shape == shape[:2]
    np.testing.assert_allclose(image, exact[:, :, 1, 2] + exact[:, :, 3, 0], rtol=1e-12)
    np.testing.assert_allclose(mean_pattern(counts), exact.mean(axis=(0, 1)), rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_is_the_sum_over_its_mask(kind: str) -> None:
    counts = make_counts(kind)
    mask = np.random.default_rng(1).random((12, 12)) < 0.4
    image = virtual_image(counts, mask)
    assert (image.shape, image.dtype) == ((5, 7), np.float64)
    np.testing.assert_allclose(image, (counts.astype(np.float64) * mask).sum(axis=(2, 3)), rtol=1e-12)
    assert image.max() > 1000  # more than a byte holds
    np.testing.assert_array_equal(virtual_image(counts, np.zeros((12, 12), bool)), np.zeros((5, 7)))


def test_bright_patterns_do_not_run_over() -> None:
    for kind in ("uint8", "uint16"):
        largest = np.iinfo(kind).max
        counts = np.full((3, 200, 8, 8), largest, kind)
        np.testing.assert_array_equal(mean_pattern(counts), np.full((8, 8), float(largest)))
        np.testing.assert_array_equal(virtual_image(counts, np.ones((8, 8), bool)), np.full((3, 200), 64.0 * largest))
    # float32 knows no odd numbers there
    counts = np.full((1, 4, 2, 2), 1, np.float32)
    counts[0, 0] = 2**24
    assert mean_pattern(counts)[0, 0] == (2**24 + 3) / 4
    counts[0, :, 0, 0] = 2**24
    assert virtual_image(counts, np.ones((2, 2), bool))[0, 1] == 2**24 + 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius2", [0.5, 7.5, 20.5, 40.5])
def test_bright_and_dark_field_add_up_to_everything(kind: str, radius2: float) -> None:
    """The border lies between pixels, whose squared radii are whole numbers."""
    counts = make_counts(kind)
    border = 0.05 * np.sqrt(radius2)
    bright, dark = detector_mask(12, 0.05, 0, border), detector_mask(12, 0.05, border, np.inf)
    assert not (bright & dark).any()
    assert (bright | dark).all()
    assert bright.any()
    assert dark.any()
    images = virtual_image(counts, bright), virtual_image(counts, dark)
    np.testing.assert_allclose(images[0] + images[1], counts.sum(axis=(2, 3), dtype=np.float64), rtol=1e-12)


def test_the_bright_disk_of_a_scan_takes_the_beam(small_scan: Scan) -> None:
    disk = detector_mask(small_scan.n_pixels, small_scan.k_step_invA, 0, small_scan.optics.k_aperture_invA)
    image = virtual_image(small_scan.counts, disk)
    assert image.shape == (6, 7)
    share = image / small_scan.counts.sum(axis=(2, 3))
    assert share.min() > 0.6  # a thin crystal scatters little of it further out
    assert share.max() < 1
    mean = mean_pattern(small_scan.counts)
    assert mean[disk].mean() > 20 * mean[~disk].mean()


# masks


@given(
    st.integers(1, 40),
    st.floats(1e-3, 10),
    st.floats(0, 25),
    st.floats(0.1, 25),
    st.tuples(st.floats(-20, 20), st.floats(-20, 20)),
)
@settings(max_examples=100, deadline=None)
def test_a_pixel_belongs_to_a_ring_whose_centre_lies_in_it(
    n: int, k_step: float, inner: float, width: float, centre: tuple[float, float]
) -> None:
    """Pixel by pixel; radii and centre in pixels here."""
    outer = inner + width
    y, x = centre
    mask = detector_mask(n, k_step, inner * k_step, outer * k_step, (y * k_step, x * k_step))
    assert (mask.shape, mask.dtype) == ((n, n), np.bool_)
    for i in range(n):
        for j in range(n):
            radius = ((i - n // 2 - y) ** 2 + (j - n // 2 - x) ** 2) ** 0.5
            if min(abs(radius - inner), abs(radius - outer)) > 1e-9:  # else rounding decides
                assert mask[i, j] == (inner < radius < outer)


@pytest.mark.parametrize("n", [256, 255])
@pytest.mark.parametrize(("inner", "outer"), [(0, 20.3), (0, 100.3), (30.3, 40.7), (99.3, 120.1)])
def test_the_area_of_a_ring_is_that_of_geometry(n: int, inner: float, outer: float) -> None:
    mask = detector_mask(n, 0.01, 0.01 * inner, 0.01 * outer)
    assert mask.sum() == pytest.approx(np.pi * (outer**2 - inner**2), rel=0.01)


def test_zero_frequency_is_at_half_the_pixels() -> None:
    for n in (8, 9):
        assert np.argwhere(detector_mask(n, 0.1, 0, 0.04)).tolist() == [[n // 2, n // 2]]
        plus = np.argwhere(detector_mask(n, 0.1, 0, 0.1)) - n // 2  # the border belongs to it
        assert plus.tolist() == [[-1, 0], [0, -1], [0, 0], [0, 1], [1, 0]]
        ring = np.argwhere(detector_mask(n, 0.1, 0.1, 0.14)) - n // 2  # the inner one too
        assert ring.tolist() == [[-1, 0], [0, -1], [0, 1], [1, 0]]


def test_a_detector_off_centre_is_shifted_along_y_then_x() -> None:
    assert np.argwhere(detector_mask(16, 0.1, 0, 0.04, (0.2, -0.3))).tolist() == [[10, 5]]
    centred, shifted = detector_mask(32, 0.5, 1.2, 3.7), detector_mask(32, 0.5, 1.2, 3.7, (2.5, -1.5))
    np.testing.assert_array_equal(shifted, np.roll(centred, (5, -3), (0, 1)))
    assert centred.sum() > 100
    corner = detector_mask(200, 1.0, 0, 90.3, (-100.0, -100.0))
    assert corner.sum() == pytest.approx(np.pi * 90.3**2 / 4, rel=0.03)  # a quarter of it is on the detector
    assert not detector_mask(16, 0.1, 0, 0.3, (5.0, 0.0)).any()


@pytest.mark.parametrize(
    ("inner", "outer"), [(0.5, 0.5), (0.0, 0.0), (0.6, 0.5), (-0.1, 0.5), (0.0, -1.0), (np.nan, 1.0), (0.0, np.nan)]
)
def test_a_ring_turned_inside_out_is_refused(inner: float, outer: float) -> None:
    with pytest.raises(InputError) as error:
        detector_mask(16, 0.1, inner, outer)
    assert str(error.value) == f"a detector from {inner:g} to {outer:g} 1/Å; expected 0 <= inner < outer"


# histogram


@pytest.mark.parametrize("kind", ["uint8", "uint16", "int32"])
def test_few_whole_counts_have_a_bin_each(kind: str) -> None:
    counts = np.random.default_rng(2).poisson(3.0, (5, 7, 12, 12)).astype(kind)
    edges, numbers = counts_histogram(counts)
    largest = int(counts.max())
    assert 5 < largest < 49
    np.testing.assert_array_equal(edges, np.arange(largest + 2) - 0.5)
    np.testing.assert_array_equal(numbers, np.bincount(counts.ravel()))
    assert numbers.dtype == np.int64


@given(st.sampled_from(["uint8", "uint16"]), st.integers(1, 60), st.integers(0, 65535), st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_bins_of_whole_counts_are_whole_and_hold_every_pixel(kind: str, bins: int, largest: int, seed: int) -> None:
    largest = min(largest, np.iinfo(kind).max)
    counts = np.random.default_rng(seed).integers(0, largest, (2, 3, 4, 4), kind, endpoint=True)
    edges, numbers = counts_histogram(counts, bins)
    widths = np.diff(edges)
    assert 1 <= len(numbers) <= bins
    assert edges[0] == -0.5
    assert (widths == widths[0]).all()
    assert widths[0] == int(widths[0]) >= 1
    assert edges[-2] < counts.max() < edges[-1]  # no empty bins at the end
    for low, high, number in zip(edges[:-1], edges[1:], numbers, strict=True):
        assert number == np.count_nonzero((counts > low) & (counts < high))


@pytest.mark.parametrize("bins", [1, 10, 50])
def test_bins_of_float_counts_divide_zero_to_the_largest(bins: int) -> None:
    counts = make_counts("float32")
    edges, numbers = counts_histogram(counts, bins)
    assert (edges.shape, numbers.shape, numbers.dtype) == ((bins + 1,), (bins,), np.int64)
    np.testing.assert_allclose(edges, np.linspace(0, float(counts.max()), bins + 1), rtol=1e-12)
    for i, number in enumerate(numbers):
        below_next = counts <= edges[i + 1] if i == bins - 1 else counts < edges[i + 1]
        assert number == np.count_nonzero((counts >= edges[i]) & below_next)
    assert numbers.sum() == counts.size


@given(st.integers(1, 200), st.floats(1e-30, 1e30) | st.sampled_from([1.0, 3.0, 0.1, 7.0]), st.sampled_from(["f4", "f8"]))
@settings(max_examples=300, deadline=None)
def test_the_brightest_float_counts_are_counted_too(bins: int, largest: float, kind: str) -> None:
    """49 bins of a width of 1/49 end below 1."""
    counts = np.full((2, 3, 4, 4), largest, kind)
    counts[0, 0, 0, 0] = 0
    edges, numbers = counts_histogram(counts, bins)
    assert len(numbers) == bins
    assert numbers.sum() == counts.size
    assert numbers[-1] == (counts.size - 1 if bins > 1 else counts.size)
    assert edges[-1] == counts.max()


def test_float_ones_are_all_counted() -> None:
    ones = np.ones((2, 3, 4, 4), np.float32)
    for bins in range(1, 101):
        assert counts_histogram(ones, bins)[1].tolist() == [*[0] * (bins - 1), ones.size]


@pytest.mark.parametrize("kind", KINDS)
def test_a_dark_scan_has_a_histogram_too(kind: str) -> None:
    edges, numbers = counts_histogram(np.zeros((2, 3, 4, 4), kind))
    assert numbers[0] == numbers.sum() == 96
    assert edges[0] <= 0 < edges[1]
