"""The calibration of a scan: what it says, what changing it changes, and what it refuses."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import mepdiff_core as mep
from mepdiff_core.calibration import Calibration, calibrate, calibration_of, find_raster
from mepdiff_core.config import dump_yaml, from_dict, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics, make_probe
from mepdiff_core.scan import Scan, Truth, raster_positions

OPTICS = Optics(200e3, 18.0, -70.0, 1.2e7, {"C12": 20.0, "phi12": 35.0})
Positions = npt.NDArray[np.float64]

shapes = st.tuples(st.integers(1, 7), st.integers(1, 7)).filter(lambda shape: max(shape) > 1)
steps = st.floats(0.01, 20)
rotations = st.floats(-180, 180, exclude_min=True)
shifts = st.tuples(st.floats(-100, 100), st.floats(-100, 100))
quick = settings(max_examples=150, deadline=None)


def make_scan(shape: tuple[int, int] = (2, 3), **changes: Any) -> Scan:
    """Patterns of 16 px with everything a scan can have but a probe of its own."""
    n = shape[0] * shape[1]
    values: dict[str, Any] = {
        "counts": np.arange(n * 256, dtype=np.uint16).reshape(*shape, 16, 16),
        "positions_A": np.array([3.0, -4.0]) + raster_positions(shape, 0.4, 30.0),
        "optics": OPTICS,
        "k_step_invA": 0.3125,
        "electrons_per_pattern": 800.0,
        "thickness_A": 11.2,
        "truth": Truth(np.zeros((7, 5, 6), np.float32), (1.6, 0.2, 0.2), (0.8, -1.5, -1.7)),
        "info": {"crystal": "X"},
    }
    return Scan(**values | changes)


def own_probe(n: int = 16) -> npt.NDArray[np.complex64]:
    """Two modes that no optics make."""
    rng = np.random.default_rng(1)
    probe = rng.normal(size=(2, n, n)) + 1j * rng.normal(size=(2, n, n))
    return (probe / np.linalg.norm(probe)).astype(np.complex64)


def refused(scan: Scan, changes: Any) -> str:
    """The message of the InputError that calibrating raises; it has to be one line."""
    with pytest.raises(InputError) as error:
        calibrate(scan, changes)
    message = str(error.value)
    assert len(message.splitlines()) == 1
    return message


def assert_same_angle(a: float, b: float) -> None:
    assert abs((a - b + 180) % 360 - 180) <= 2e-6


def assert_equal_but(scan: Scan, other: Scan, *names: str) -> None:
    """Equal, without copies of arrays, in all fields but those of these names, which differ."""
    for name in (f.name for f in fields(Scan)):
        a, b = getattr(scan, name), getattr(other, name)
        if name in names:
            assert np.any(a != b), name
        else:
            assert a is b or (name == "optics" and a == b), name


# rasters


@given(shapes, steps, rotations, shifts)
@quick
def test_a_raster_is_found_wherever_it_lies(
    shape: tuple[int, int], step: float, rotation: float, shift: tuple[float, float]
) -> None:
    found = find_raster(shift + raster_positions(shape, step, rotation), shape)
    assert found is not None
    assert found[0] == pytest.approx(step, abs=1e-6)
    assert_same_angle(found[1], rotation)


@given(shapes, st.integers(10, 9999), st.integers(-179999, 179999), shifts)
@quick
def test_round_numbers_come_back_as_they_were(
    shape: tuple[int, int], step_mA: int, rotation_mdeg: int, shift: tuple[float, float]
) -> None:
    """A person who typed 0.512 does not want to see 0.5120000000000001."""
    step, rotation = step_mA / 1000, rotation_mdeg / 1000
    assert find_raster(shift + raster_positions(shape, step, rotation), shape) == (step, rotation)


@pytest.mark.parametrize(
    ("positions", "shape", "expected"),
    [
        ([(0, 0), (0, 2)], (1, 2), (2, 0)),
        ([(0, 0), (2, 0)], (1, 2), (2, 90)),
        ([(0, 0), (0, -2)], (1, 2), (2, 180)),
        ([(0, 0), (-2, 0)], (1, 2), (2, -90)),
        ([(0, 0), (3, 0), (6, 0)], (3, 1), (3, 0)),
        ([(0, 0), (0, 3), (0, 6)], (3, 1), (3, -90)),
        ([(0, 0), (0, -3), (0, -6)], (3, 1), (3, 90)),
        ([(5, 7), (5, 8), (6, 7), (6, 8)], (2, 2), (1, 0)),
        ([(0, 0), (1, 0), (0, -1), (1, -1)], (2, 2), (1, 90)),
        ([(0, 0), (3, 4), (6, 8)], (1, 3), (5, np.degrees(np.arctan2(3, 4)))),
    ],
)
def test_rasters_worked_out_by_hand(
    positions: list[tuple[float, float]], shape: tuple[int, int], expected: tuple[float, float]
) -> None:
    """Positions are (y, x); the fast axis is turned from +x towards +y, the slow one runs along +y without rotation."""
    assert find_raster(np.array(positions, float), shape) == pytest.approx(expected, abs=1e-6)


def snake() -> Positions:
    grid = raster_positions((3, 4), 0.5).reshape(3, 4, 2)
    grid[1] = grid[1, ::-1]
    return grid.reshape(-1, 2)


def jitter(size: float) -> Positions:
    positions = raster_positions((3, 4), 0.5, 20.0)
    positions[5, 1] += 0.5 * size
    return positions


NO_RASTER = [
    ((3, 4), snake()),
    ((3, 4), jitter(2e-3)),
    ((3, 4), raster_positions((3, 4), 0.5) * (1.0, 1.01)),  # another step along x
    ((3, 4), raster_positions((3, 4), 0.5) * (-1.0, 1.0)),  # mirrored
    ((3, 4), raster_positions((3, 4), 0.5) @ np.array([[1, 0.01], [0, 1]])),  # sheared
    ((3, 4), raster_positions((4, 3), 0.5)),  # of another shape
    ((3, 4), np.zeros((12, 2))),
    ((1, 4), np.array([(0, 0), (0, 1), (0, 3), (0, 4.0)])),
    ((4, 1), np.array([(0, 0), (1, 0), (1, 0.2), (3.0, 0)])),
    ((1, 1), np.array([(2.0, 3.0)])),
]
NO_RASTER_IDS = ["snake", "jitter", "unequal", "mirrored", "sheared", "shape", "point", "row", "column", "one"]


@pytest.mark.parametrize(("shape", "positions"), NO_RASTER, ids=NO_RASTER_IDS)
def test_other_positions_have_no_step_and_take_none(shape: tuple[int, int], positions: Positions) -> None:
    assert find_raster(positions, shape) is None
    scan = make_scan(shape, positions_A=positions)
    now = calibration_of(scan)
    assert (now.scan_step_A, now.scan_rotation_deg, now.dose_e_per_A2) == (None, None, None)
    assert "no raster" in refused(scan, {"scan_step_A": 0.5, "scan_rotation_deg": 0.0})
    assert "no raster" in refused(scan, replace(now, scan_step_A=0.5, scan_rotation_deg=0.0))
    assert "give both or neither" in refused(scan, {"scan_step_A": 0.5})
    assert "give both or neither" in refused(scan, {"scan_rotation_deg": 5})
    changed = calibrate(scan, {"optics": {"Cs_A": 0}, "thickness_A": 3.2})
    assert_equal_but(scan, changed, "optics", "thickness_A")
    assert calibrate(scan, now) is scan


def test_a_ten_thousandth_of_a_step_is_no_other_raster() -> None:
    assert find_raster(jitter(5e-4), (3, 4)) == (0.5, 20.0)


# what a scan says


def test_the_calibration_is_that_of_the_scan() -> None:
    assert calibration_of(make_scan()) == Calibration(OPTICS, 0.4, 30.0, 0.3125, 800.0, 11.2)
    assert calibration_of(make_scan(thickness_A=None)).thickness_A is None


def test_a_simulated_scan_has_the_calibration_it_was_made_with(small_scan: Scan) -> None:
    """Those of SMALL in conftest.py."""
    made = calibration_of(small_scan)
    assert made.optics == Optics(overfocus_A=60.0)
    assert (made.scan_step_A, made.scan_rotation_deg, made.thickness_A) == (0.73, 0.0, 6.4)
    assert made.k_step_invA == pytest.approx(2 * 2.5 / 64)
    dose = mep.SimulationConfig().dose_e_per_A2
    assert dose is not None
    assert made.dose_e_per_A2 == pytest.approx(dose)
    assert small_scan.counts.sum() == pytest.approx(42 * made.electrons_per_pattern, rel=0.1)


def test_the_dose_is_electrons_an_area_of_one_step_squared() -> None:
    assert calibration_of(make_scan()).dose_e_per_A2 == pytest.approx(800 / 0.16)
    assert Calibration(scan_step_A=2.0, scan_rotation_deg=45.0, electrons_per_pattern=10.0).dose_e_per_A2 == 2.5
    assert Calibration(electrons_per_pattern=10.0).dose_e_per_A2 is None


# what a change changes


@given(shapes, steps, rotations, steps, rotations, shifts)
@quick
def test_step_and_rotation_move_all_positions_but_the_first(
    shape: tuple[int, int], step: float, rotation: float, new_step: float, new_rotation: float, shift: tuple[float, float]
) -> None:
    scan = make_scan(shape, positions_A=shift + raster_positions(shape, step, rotation))
    now = calibration_of(scan)
    assume(abs(new_step - step) > 1e-5)  # what is left of the digits
    changed = calibrate(scan, {"scan_step_A": new_step, "scan_rotation_deg": new_rotation})
    assert_equal_but(scan, changed, "positions_A")
    np.testing.assert_array_equal(changed.positions_A[0], shift)
    np.testing.assert_allclose(changed.positions_A, shift + raster_positions(shape, new_step, new_rotation), atol=1e-9)
    found = calibration_of(changed)
    assert found.scan_step_A == pytest.approx(new_step, abs=1e-6)
    assert found.scan_rotation_deg is not None
    assert_same_angle(found.scan_rotation_deg, new_rotation)
    back = calibrate(changed, now)
    assert np.abs(back.positions_A - scan.positions_A).max() <= 1e-3 * step


def test_the_step_alone_keeps_the_rotation_and_the_other_way_round() -> None:
    scan = make_scan()
    origin = np.array([3.0, -4.0])
    wider = calibrate(scan, {"scan_step_A": 0.8})
    np.testing.assert_allclose(wider.positions_A - origin, 2 * (scan.positions_A - origin), atol=1e-12)
    turned = calibrate(scan, {"scan_rotation_deg": 120})
    (y, x) = (scan.positions_A - origin).T
    np.testing.assert_allclose(turned.positions_A - origin, np.stack([x, -y], axis=1), atol=1e-12)  # by 90 degrees more
    assert (calibration_of(wider).scan_rotation_deg, calibration_of(turned).scan_step_A) == (30.0, 0.4)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"thickness_A": 6.4}, ["thickness_A"]),
        ({"thickness_A": None}, ["thickness_A"]),
        ({"electrons_per_pattern": "1e4"}, ["electrons_per_pattern"]),
        ({"k_step_invA": 0.25}, ["k_step_invA"]),
        ({"optics": {"energy_eV": 300e3, "overfocus_A": 150}}, ["optics"]),
        ({"scan_step_A": 0.5}, ["positions_A"]),
        ({"scan_step_A": 0.5, "optics": {"aberrations": {"C21": 9}}}, ["optics", "positions_A"]),
    ],
)
def test_only_what_was_named_changes(changes: dict[str, Any], names: list[str]) -> None:
    scan = make_scan()
    now, changed = calibration_of(scan), calibrate(scan, changes)
    assert_equal_but(scan, changed, *names)
    expected = to_dict(now)
    for name, value in changes.items():
        if name == "optics":
            aberrations = {**expected["optics"]["aberrations"], **value.get("aberrations", {})}
            expected["optics"] |= {**value, "aberrations": aberrations}
        else:
            expected[name] = None if value is None else float(value)
    assert to_dict(calibration_of(changed)) == expected
    assert calibration_of(scan) == now  # a new scan; the old one is what it was


def test_what_changes_nothing_gives_the_very_same_scan(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(dump_yaml(to_dict(calibration_of(make_scan()))))
    for scan in (make_scan(), make_scan(probe=own_probe())):
        now = calibration_of(scan)
        same = [
            now,
            {},
            {"scan_step_A": 0.4},
            {"scan_rotation_deg": 30, "scan_step_A": 0.4, "thickness_A": "11.2"},
            {"optics": {"Cs_A": "1.2e7"}},
            {"optics": OPTICS},
            asdict(now),
            read_yaml(tmp_path / "c.yaml"),
        ]
        for changes in same:
            assert calibrate(scan, changes) is scan


def test_an_aberration_set_to_none_is_taken_away() -> None:
    scan = make_scan(optics=replace(OPTICS, aberrations={"C12": 20.0, "phi12": 35.0, "C34": 5.0}))
    fewer = calibrate(scan, {"optics": {"aberrations": {"C12": None, "phi12": None, "C21": 9}}})
    assert fewer.optics == replace(OPTICS, aberrations={"C34": 5.0, "C21": 9.0})
    assert_equal_but(scan, fewer, "optics")
    assert calibrate(scan, {"optics": {"aberrations": {"C50": None}}}) is scan
    assert "phi12 is an angle without its C12" in refused(scan, {"optics": {"aberrations": {"C12": None}}})


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"thickness_A": 3.2}, True),
        ({"thickness_A": None}, True),
        ({"electrons_per_pattern": 5.0}, True),
        ({"scan_step_A": 0.7, "scan_rotation_deg": 0.0}, True),
        ({"thickness_A": 3.2, "optics": {"overfocus_A": -70.0}}, True),  # what it was
        ({"k_step_invA": 0.25}, False),
        ({"optics": {"overfocus_A": 10.0}}, False),
        ({"optics": {"aberrations": {"phi12": 30.0}}}, False),
        ({"optics": {"energy_eV": 201e3}, "thickness_A": 3.2}, False),
    ],
)
def test_a_probe_of_its_own_stays_where_optics_and_pixel_do(changes: dict[str, Any], kept: bool) -> None:
    scan = make_scan(probe=own_probe())
    changed = calibrate(scan, changes)
    assert changed is not scan
    if kept:
        assert changed.probe is scan.probe
    else:
        assert changed.probe is None
        made = make_probe(changed.optics, 16, 1 / (16 * changed.k_step_invA))
        np.testing.assert_allclose(changed.get_probe()[0], made, atol=1e-6)


@given(st.floats(-2000, 2000))
@settings(max_examples=20, deadline=None)
def test_the_probe_of_another_defocus_is_that_of_those_optics(overfocus: float) -> None:
    optics = replace(OPTICS, overfocus_A=overfocus)
    probe = calibrate(make_scan(), {"optics": {"overfocus_A": overfocus}}).get_probe()
    assert probe.shape == (1, 16, 16)
    np.testing.assert_allclose(probe[0], make_probe(optics, 16, 0.2), atol=1e-6)


def test_focus_energy_and_pixel_act_on_the_probe_as_they_do_in_a_microscope(small_scan: Scan) -> None:
    def peak(**optics: float) -> float:
        probe = calibrate(small_scan, {"optics": {"Cs_A": 0.0, **optics}}).get_probe()
        return float((np.abs(probe[0]) ** 2).max())

    assert peak(overfocus_A=0.0) > 2 * peak(overfocus_A=60.0) > 3 * peak(overfocus_A=150.0)
    assert peak(overfocus_A=60.0) == pytest.approx(peak(overfocus_A=-60.0))
    # the diffraction limit: area as wavelength squared
    ratio = Optics(energy_eV=80e3).wavelength_A / Optics(energy_eV=300e3).wavelength_A
    assert peak(overfocus_A=0.0) / peak(overfocus_A=0.0, energy_eV=80e3) == pytest.approx(ratio**2, rel=0.05)
    # a detector pixel of half the width: a window of twice the width, and pixels as large
    closer = calibrate(small_scan, {"k_step_invA": small_scan.k_step_invA / 2})
    assert closer.pixel_size_A == pytest.approx(2 * small_scan.pixel_size_A)
    assert np.sum(np.abs(closer.get_probe()) ** 2) == pytest.approx(1, abs=1e-5)


# as a preset


calibrations = st.builds(
    lambda optics, raster, k_step, electrons, thickness: Calibration(optics, *raster, k_step, electrons, thickness),
    st.builds(
        Optics,
        energy_eV=st.floats(1e3, 1e7),
        semiangle_mrad=st.floats(0.01, 200),
        overfocus_A=st.floats(-1e6, 1e6),
        aberrations=st.dictionaries(st.sampled_from(["C12", "C21", "C50"]), st.floats(-1e9, 1e9)),
    ),
    st.just((None, None)) | st.tuples(st.floats(1e-9, 1e4), st.floats(-1e4, 1e4)),
    st.floats(1e-9, 10),
    st.floats(1e-9, 1e30),
    st.none() | st.floats(1e-9, 1e6),
)


@given(calibrations)
@quick
def test_a_calibration_survives_yaml(calibration: Calibration) -> None:
    plain = to_dict(calibration)
    read = yaml.safe_load(dump_yaml(plain))
    assert read == plain
    assert from_dict(Calibration, read) == calibration


@given(shapes, steps, rotations)
@quick
def test_the_calibration_of_any_scan_survives_yaml(shape: tuple[int, int], step: float, rotation: float) -> None:
    """What numpy computed is plain numbers here."""
    scan = make_scan(shape, positions_A=raster_positions(shape, step, rotation))
    now = calibration_of(scan)
    read = yaml.safe_load(dump_yaml(to_dict(now)))
    assert from_dict(Calibration, read) == now
    assert calibrate(scan, read) is scan


def test_the_preset_of_one_scan_fits_another() -> None:
    """A whole calibration: every value goes over, the pattern and where the scan began stay."""
    preset = Calibration(Optics(overfocus_A=9.0), 0.7, -15.0, 0.25, 99.0, None)
    scan = make_scan((4, 2), probe=own_probe())
    changed = calibrate(scan, preset)
    assert calibration_of(changed) == preset
    assert_equal_but(scan, changed, "positions_A", "optics", "k_step_invA", "electrons_per_pattern", "thickness_A", "probe")
    np.testing.assert_array_equal(changed.positions_A[0], (3, -4))


@pytest.mark.parametrize("whole", [True, False])
def test_a_preset_without_a_step_leaves_a_raster_alone(whole: bool) -> None:
    """It comes from a scan whose positions are no raster; they say nothing about those of another."""
    other = make_scan((3, 4), positions_A=snake(), optics=replace(OPTICS, overfocus_A=9.0), thickness_A=3.0)
    preset = calibration_of(other)
    assert (preset.scan_step_A, preset.scan_rotation_deg) == (None, None)
    scan = make_scan()
    changed = calibrate(scan, preset if whole else yaml.safe_load(dump_yaml(to_dict(preset))))
    assert changed.positions_A is scan.positions_A
    assert calibration_of(changed) == replace(preset, scan_step_A=0.4, scan_rotation_deg=30.0)
    nothing: dict[str, Any] = {"scan_step_A": None, "scan_rotation_deg": None}
    for changes in (nothing, replace(calibration_of(scan), **nothing)):
        assert calibrate(scan, changes).positions_A is scan.positions_A


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64])
def test_numpy_scalars_make_a_calibration_of_plain_numbers(kind: type) -> None:
    """As a script that computed them hands them over."""
    scan = make_scan(k_step_invA=kind(1), electrons_per_pattern=kind(800), thickness_A=kind(11))
    now = calibration_of(scan)
    assert {type(v) for v in (now.k_step_invA, now.electrons_per_pattern, now.thickness_A)} == {float}
    read = yaml.safe_load(dump_yaml(to_dict(now)))
    assert from_dict(Calibration, read) == now
    assert (read["k_step_invA"], read["electrons_per_pattern"], read["thickness_A"]) == (1.0, 800.0, 11.0)


@pytest.mark.parametrize("name", ["energy_eV", "overfocus_A", "aberrations"])
def test_numpy_scalars_in_the_optics_do_so_too(name: str) -> None:
    value = {"C12": np.float64(20)} if name == "aberrations" else np.float64(200e3)
    now = calibration_of(make_scan(optics=replace(OPTICS, **{name: value}), k_step_invA=1.0))
    assert from_dict(Calibration, yaml.safe_load(dump_yaml(to_dict(now)))) == now


# what is refused


@pytest.mark.parametrize("rotation", [np.inf, -np.inf, np.nan])
def test_an_infinite_rotation_is_refused_in_one_line(rotation: float) -> None:
    with pytest.raises(InputError, match=f"^scan_rotation_deg is {rotation}; expected a number$"):
        Calibration(scan_step_A=0.5, scan_rotation_deg=rotation)
    message = refused(make_scan(), {"scan_rotation_deg": rotation})
    assert message == f"calibration: field 'scan_rotation_deg': expected a number, got {rotation}"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scan_step": 0.5}, "unknown field 'scan_step' of Calibration; did you mean 'scan_step_A'?"),
        ({"thicknes_A": 5}, "unknown field 'thicknes_A' of Calibration; did you mean 'thickness_A'?"),
        ({"optics": {"overfocus": 50}}, "unknown field 'overfocus' of Optics; did you mean 'overfocus_A'?"),
        ({"overfocus_A": 50}, "unknown field 'overfocus_A' of Calibration; it takes optics, scan_step_A, "),
        ({"optics": {"aberrations": {"C10": 50}}}, "aberration 'C10' is not known; C10 is overfocus_A"),
        ({"optics": {"aberrations": None}}, "field 'aberrations': expected a mapping, got None"),
        ({"optics": 50}, "field 'optics': expected a mapping of names to values, got int"),
        ({"thickness_A": "thin"}, "field 'thickness_A': expected a number, got 'thin'"),
        ({"electrons_per_pattern": None}, "field 'electrons_per_pattern': expected a number, got None"),
        ({"k_step_invA": [1]}, "field 'k_step_invA': expected a number, got [1]"),
        ({"scan_rotation_deg": float("inf")}, "field 'scan_rotation_deg': expected a number, got inf"),
        ({"scan_step_A": 0}, "scan_step_A is 0.0; expected more than 0"),
        ({"scan_step_A": -0.4}, "scan_step_A is -0.4; expected more than 0"),
        ({"k_step_invA": 0}, "k_step_invA is 0.0; expected more than 0"),
        ({"electrons_per_pattern": -1}, "electrons_per_pattern is -1.0; expected more than 0"),
        ({"thickness_A": 0}, "thickness_A is 0.0; expected more than 0"),
        ({"optics": {"energy_eV": 300}}, "energy_eV is 300; expected 1e3 to 1e7"),
        ({"optics": {"semiangle_mrad": 0}}, "semiangle_mrad is 0; expected more than 0"),
        ({"scan_step_A": None}, "scan_step_A is None and scan_rotation_deg is 30.0; give both or neither"),
        ({"scan_rotation_deg": None}, "scan_step_A is 0.4 and scan_rotation_deg is None; give both or neither"),
        # possible, but not for this detector
        ({"k_step_invA": 0.05}, "beyond the detector's 0.400 1/Å"),
        ({"optics": {"semiangle_mrad": 80}}, "semiangle_mrad 80 is 3.190 1/Å, beyond the detector's 2.500 1/Å"),
    ],
)
def test_an_impossible_calibration_is_refused_in_one_line(changes: dict[str, Any], message: str) -> None:
    assert message in refused(make_scan(), changes)


@pytest.mark.parametrize("value", [0.0, -1.0, np.nan, np.inf])
@pytest.mark.parametrize("name", ["scan_step_A", "k_step_invA", "electrons_per_pattern", "thickness_A"])
def test_no_calibration_holds_what_nobody_can_measure(name: str, value: float) -> None:
    good: dict[str, Any] = {"scan_step_A": 0.5, "scan_rotation_deg": 0.0, "thickness_A": 5.0}
    assert Calibration(**good).thickness_A == 5
    with pytest.raises(InputError, match=f"^{name} is {value}; expected more than 0$"):
        Calibration(**{**good, name: value})
