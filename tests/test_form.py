"""Numbers with units, and forms of every config: what is put in, typed, refused and given back."""

from __future__ import annotations

import html
import math
import re
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from strategies import adams, calibrations, constraints, crystals, finite, lbfgs, models, positive, probe_fits

pytest.importorskip("napari")
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFormLayout, QLabel, QSpinBox, QWidget

from mepdiff_core.calibration import Calibration
from mepdiff_core.config import check, describe
from mepdiff_core.errors import InputError
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.optics import ABERRATION_ORDERS, Optics
from mepdiff_core.settings import ADAM_BEST, AdamConfig, Constraints, CrystalConfig, LBFGSConfig, ModelConfig
from mepdiff_core.simulate import SimulationConfig
from napari_mepdiff._form import (
    INVALID_STYLE,
    CheckField,
    ChoiceField,
    ConfigForm,
    Section,
    TextField,
    label_of,
    make_field,
)
from napari_mepdiff._units import read_quantity, show_duration, show_quantity, unit_of

UNITS = ["Å", "1/Å", "eV", "mrad", "°", "e/Å²", ""]
COEFFICIENTS = [
    name
    for n, m in ABERRATION_ORDERS
    if (n, m) not in ((1, 0), (3, 0))
    for name in ([f"C{n}{m}", f"phi{n}{m}"] if m else [f"C{n}{m}"])
]
NAMES = {"optics.aberrations": COEFFICIENTS}
CONFIGS = [
    (ModelConfig(), models),
    (Constraints(), constraints),
    (AdamConfig(), adams),
    (ADAM_BEST, adams),
    (LBFGSConfig(), lbfgs),
    (CrystalConfig(), crystals()),
    (ProbeFitConfig(), probe_fits),
    (Calibration(), calibrations),
]
each_config = pytest.mark.parametrize(("default", "configs"), CONFIGS, ids=lambda v: type(v).__name__)
quick = settings(max_examples=40, deadline=None)


def make_form(qtbot: Any, default: Any, **options: Any) -> ConfigForm:
    form = ConfigForm(default, **{"names": NAMES, **options})
    qtbot.addWidget(form)
    return form


def listen(signal: Any) -> list[tuple[Any, ...]]:
    """What the signal brings from now on."""
    heard: list[tuple[Any, ...]] = []
    signal.connect(lambda *values: heard.append(values))
    return heard


def paste(form: ConfigForm, name: str, text: str) -> None:
    """Put a text into a field at once."""
    line = form.fields[name]
    line.setText(text)
    line.textEdited.emit(text)


def leave(form: ConfigForm) -> None:
    """Press Enter in every line, or go on to the next."""
    for line in form.fields.values():
        if isinstance(line, TextField):
            line.editingFinished.emit()


def red(form: ConfigForm) -> set[str]:
    """The fields that are marked."""
    assert {line.styleSheet() for line in form.fields.values()} <= {"", INVALID_STYLE}
    return {name for name, line in form.fields.items() if line.styleSheet()}


def message(form: ConfigForm) -> str:
    """What can be read under the rows."""
    label = form.findChild(QLabel, "form_error")
    return label.text() if label.isVisibleTo(form) else ""


def plain(tooltip: str) -> str:
    """A tooltip without its tags."""
    return " ".join(html.unescape(re.sub(r"</?(qt|br|b|p) ?/?>", " ", tooltip)).split())


def refusal(form: ConfigForm) -> str:
    with pytest.raises(InputError) as error:
        form.value()
    return str(error.value)


# units


@pytest.mark.parametrize("unit", UNITS)
@given(st.floats(-1e300, 1e300))
@example(0.0)
@example(99999.9999999)
@example(-999.9999999999)
@example(5e-324)
@settings(max_examples=100, deadline=None)
def test_what_is_shown_reads_back_to_nine_digits(unit: str, value: float) -> None:
    text = show_quantity(value, unit)
    assert len(re.sub(r"^-|\.|e.*| .*", "", text).strip("0")) <= 9
    back = read_quantity(text, unit)
    assert back == pytest.approx(value, rel=5.1e-9, abs=0)
    assert read_quantity(show_quantity(back, unit), unit) == pytest.approx(back, rel=1e-15, abs=0)  # and stays there


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0, "Å", "0 Å"),
        (200.0, "Å", "200 Å"),
        (-20.5, "Å", "-20.5 Å"),
        (5000.0, "Å", "5000 Å"),
        (99_999.0, "Å", "99999 Å"),
        (1e5, "Å", "10 µm"),
        (-1.2e7, "Å", "-1200 µm"),
        (1e8, "Å", "10 mm"),
        (0.0390625, "1/Å", "0.0390625 1/Å"),
        (300e3, "eV", "300 keV"),
        (1234.5, "eV", "1.2345 keV"),
        (999.0, "eV", "999 eV"),
        (0.5, "eV", "0.5 eV"),
        (1e6, "eV", "1000 keV"),
        (21.4, "mrad", "21.4 mrad"),
        (-30.0, "°", "-30 °"),
        (1e6, "e/Å²", "1000000 e/Å²"),
        (0.1 + 0.2, "", "0.3"),
        (5e-4, "", "0.0005"),
        (1 / 3, "", "0.333333333"),
        (1e-9, "", "1e-09"),
    ],
)
def test_numbers_are_shown_as_people_write_them(value: float, unit: str, text: str) -> None:
    assert show_quantity(value, unit) == text
    assert read_quantity(text, unit) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize(
    ("text", "unit", "value"),
    [
        ("12", "Å", 12),
        (" 12 ", "Å", 12),
        ("12 Å", "Å", 12),
        ("12Å", "Å", 12),
        ("12 \u212b", "Å", 12),  # the sign of the unit
        ("12 A\u030a", "Å", 12),  # an A and a ring
        ("200 A", "Å", 200),
        ("200A", "Å", 200),
        ("200 angstrom", "Å", 200),
        ("10 nm", "Å", 100),
        ("-20nm", "Å", -200),
        ("+5", "Å", 5),
        ("−3", "Å", -3),
        ("−3 nm", "Å", -30),
        ("1,5", "Å", 1.5),
        ("-1,5 nm", "Å", -15),
        (".5", "Å", 0.5),
        ("5.", "Å", 5),
        ("5 pm", "Å", 0.05),
        ("500 µm", "Å", 5e6),
        ("500 μm", "Å", 5e6),  # the Greek letter
        ("500 um", "Å", 5e6),
        ("1.2 mm", "Å", 1.2e7),
        ("1e-3 m", "Å", 1e7),
        ("5e3", "Å", 5000),
        ("5E+3 A", "Å", 5000),
        ("5e3nm", "Å", 5e4),
        ("300 kV", "eV", 300e3),
        ("300kV", "eV", 300e3),
        ("300 keV", "eV", 300e3),
        ("0.3 MeV", "eV", 300e3),
        ("0,3 MV", "eV", 300e3),
        ("300000", "eV", 300e3),
        ("3e5 eV", "eV", 300e3),
        ("300000 V", "eV", 300e3),
        ("0.4 1/nm", "1/Å", 0.04),
        ("0.4 nm^-1", "1/Å", 0.04),
        ("0.4 nm**-1", "1/Å", 0.04),
        ("0.4 nm⁻¹", "1/Å", 0.04),
        ("0.04 Å⁻¹", "1/Å", 0.04),
        ("0.04 1/Å", "1/Å", 0.04),
        ("0.04 1/A", "1/Å", 0.04),
        ("0.04 A^-1", "1/Å", 0.04),
        ("0.04", "1/Å", 0.04),
        ("21.4", "mrad", 21.4),
        ("21.4 mrad", "mrad", 21.4),
        ("2 rad", "mrad", 2000),
        ("1 deg", "mrad", 1000 * math.pi / 180),
        ("1°", "mrad", 1000 * math.pi / 180),
        ("30°", "°", 30),
        ("30 °", "°", 30),
        ("30 deg", "°", 30),
        ("-30 degrees", "°", -30),
        ("1 rad", "°", 180 / math.pi),
        ("1e6 e/Å²", "e/Å²", 1e6),
        ("1e6", "e/Å²", 1e6),
        ("0,05", "", 0.05),
        ("5e-4", "", 5e-4),
    ],
)
def test_what_people_type_is_understood(text: str, unit: str, value: float) -> None:
    assert read_quantity(text, unit) == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "unit", "reason"),
    [
        ("", "Å", "'' is no number in Å"),
        ("   ", "", "'   ' is no number"),
        ("twelve", "Å", "'twelve' is no number in Å"),
        ("nm", "Å", "'nm' is no number in Å"),
        ("nan", "", "'nan' is no number"),
        ("inf", "mrad", "'inf' is no number in mrad"),
        ("--5", "Å", "'--5' is no number in Å"),
        ("+-5", "Å", "'+-5' is no number in Å"),
        (".", "Å", "'.' is no number in Å"),
        ("e5", "Å", "'e5' is no number in Å"),
        ("1 000", "Å", "'000' is no unit that converts to Å"),
        ("1.000.000", "Å", "'.000' is no unit that converts to Å"),
        ("1,000,000", "Å", "'1,000,000' can be read in two ways; write it without a comma"),
        ("5 6", "Å", "'6' is no unit that converts to Å"),
        ("1/3", "Å", "'/3' is no unit that converts to Å"),
        ("5e", "Å", "'e' is no unit that converts to Å"),
        ("0x10", "Å", "'x10' is no unit that converts to Å"),
        ("5 kg", "Å", "'kg' is no unit that converts to Å"),
        ("5 kV", "Å", "'kV' is no unit that converts to Å"),
        ("5 1/nm", "Å", "'1/nm' is no unit that converts to Å"),
        ("5 nm²", "Å", "'nm²' is no unit that converts to Å"),
        ("5 furlong per", "Å", "'furlong per' is no unit that converts to Å"),
        ("5 nm nm", "Å", "'nm nm' is no unit that converts to Å"),
        ("5 nm + 3", "Å", "'nm + 3' is no unit that converts to Å"),
        ("5 (nm", "Å", "'(nm' is no unit that converts to Å"),
        ("12 Å", "eV", "'Å' is no unit that converts to eV"),
        ("300 k", "eV", "'k' is no unit that converts to eV"),
        ("300 mV", "eV", "'mV' is no unit that converts to eV"),
        ("5 nm", "1/Å", "'nm' is no unit that converts to 1/Å"),
        ("5 Å", "mrad", "'Å' is no unit that converts to mrad"),
        ("20 °C", "°", "'°C' is no unit that converts to °"),
        ("5 %", "", "'5 %': expected a number without a unit"),
        ("5 Å", "", "'5 Å': expected a number without a unit"),
        ("5 Å", "e/Å²", "'5 Å': expected a number in e/Å²"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, unit: str, reason: str) -> None:
    with pytest.raises(InputError) as error:
        read_quantity(text, unit)
    assert str(error.value) == reason


@given(st.text("0123456789.eE+-, nmkMVÅAµ°radg/()²⁻¹_'\"%", max_size=12), st.sampled_from(UNITS))
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_number_or_refused_in_one_line(text: str, unit: str) -> None:
    try:
        assert isinstance(read_quantity(text, unit), float)
    except InputError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017


@pytest.mark.parametrize(
    ("name", "unit", "label"),
    [
        ("overfocus_A", "Å", "overfocus"),
        ("slice_thickness_A", "Å", "slice thickness"),
        ("k_step_invA", "1/Å", "k step"),
        ("energy_eV", "eV", "energy"),
        ("semiangle_mrad", "mrad", "semiangle"),
        ("scan_rotation_deg", "°", "scan rotation"),
        ("dose_e_per_A2", "e/Å²", "dose"),
        ("electrons_per_pattern", "", "electrons per pattern"),
        ("iterations", "", "iterations"),
        ("A", "", "A"),
        ("C12", "", "C12"),
    ],
)
def test_the_end_of_a_name_is_its_unit(name: str, unit: str, label: str) -> None:
    assert unit_of(name) == unit
    assert label_of(name) == label


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.25, "0.2 s"),
        (0.96, "1.0 s"),
        (1.4, "1 s"),
        (45, "45 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599, "59 min 59 s"),
        (3599.7, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (100 * 3600, "100 h 0 min"),
    ],
)
def test_times_are_shown_as_people_say_them(seconds: float, text: str) -> None:
    assert show_duration(seconds) == text


@given(st.floats(0, 1e6))
@settings(max_examples=200, deadline=None)
def test_a_shown_time_is_the_time(seconds: float) -> None:
    text = show_duration(seconds)
    assert re.fullmatch(r"\d\.\d s|\d+ s|\d+ min \d+ s|\d+ h \d+ min", text)
    parts = [(float(number), unit) for number, unit in re.findall(r"(\S+) (s|min|h)", text)]
    assert all(number < 60 for number, unit in parts if unit != "h")
    size = {"s": 1, "min": 60, "h": 3600}
    shown = sum(number * size[unit] for number, unit in parts)
    assert abs(shown - seconds) <= (0.051 if seconds < 1 else 0.5 if seconds < 3599 else 60)


# what is put in comes out


@each_config
def test_a_config_comes_out_as_it_was_put_in(qtbot: Any, default: Any, configs: st.SearchStrategy[Any]) -> None:
    """Although a line shows nine digits of seventeen; nobody is told, since nobody typed."""
    form = make_form(qtbot, default)
    assert form.value() == default
    heard = listen(form.value_changed)

    @given(configs)
    @quick
    def round_trip(config: Any) -> None:
        form.set_value(config)
        assert (form.value(), form.error, message(form), red(form)) == (config, "", "", set())
        assert type(form.value()) is type(config)
        leave(form)
        assert form.value() == config

    round_trip()
    assert heard == []


@each_config
def test_fields_that_were_not_touched_keep_every_digit(qtbot: Any, default: Any, configs: st.SearchStrategy[Any]) -> None:
    """While one after the other is typed anew, the rest stays."""
    form = make_form(qtbot, default)

    @given(configs, st.data())
    @quick
    def edit(config: Any, data: st.DataObject) -> None:
        form.set_value(config)
        lines = [n for n, line in form.fields.items() if isinstance(line, TextField) and n != "start"]  # a file's name
        name = data.draw(st.sampled_from(lines))
        before = form.fields[name].text()
        paste(form, name, "nonsense")
        assert form.error
        assert name in red(form)
        leave(form)
        assert form.fields[name].text() == "nonsense"  # to be corrected, not lost
        paste(form, name, before)
        assert form.value() == config

    edit()


def test_a_line_shows_nine_digits_and_keeps_seventeen(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    form.set_value(AdamConfig(learning_rate=0.1 + 0.2, slice_thickness_A=math.pi))
    rate, thickness = form.fields["learning_rate"], form.fields["slice_thickness_A"]
    assert (rate.text(), thickness.text()) == ("0.3", "3.14159265 Å")
    leave(form)
    paste(form, "iterations", "3")
    assert form.value().learning_rate == 0.30000000000000004
    assert form.value().slice_thickness_A == math.pi
    paste(form, "learning_rate", "0.31")
    leave(form)
    paste(form, "learning_rate", "0.3")
    assert form.value().learning_rate == 0.3  # typed: what it says
    assert form.value().slice_thickness_A == math.pi


@pytest.mark.parametrize("unit", ["", " Å", " nm"])
def test_every_digit_that_was_typed_counts(qtbot: Any, unit: str) -> None:
    form = make_form(qtbot, ProbeFitConfig())

    @given(st.floats(1e-300, 1e300))
    @quick
    def typed(value: float) -> None:
        paste(form, "slice_thickness_A", f"{value!r}{unit}")
        expected = value * (10 if unit == " nm" else 1)
        assert form.value().slice_thickness_A == expected
        leave(form)
        assert form.value().slice_thickness_A == expected
        assert form.fields["slice_thickness_A"].text() == show_quantity(expected, "Å")

    typed()


def test_no_config_of_another_form_is_left_behind(qtbot: Any) -> None:
    """Aberrations, optional fields, and red from an edit before."""
    form = make_form(qtbot, Calibration())
    first = Calibration(Optics(aberrations={"C12": 1.0, "phi12": 2.0, "C50": 3.0}), 0.5, 30.0, thickness_A=5.0)
    form.set_value(first)
    paste(form, "thickness_A", "thin")
    paste(form, "optics.aberrations.C21", "4")
    assert form.error
    form.set_value(Calibration())
    assert (form.value(), form.error, red(form)) == (Calibration(), "", set())
    assert {form.fields[f"optics.aberrations.{name}"].text() for name in COEFFICIENTS} == {""}
    form.set_value(first)
    assert form.value() == first


# every kind of field

ADAM, LBFGS = AdamConfig(heldout_fraction=0.1), LBFGSConfig()
CALIBRATION = Calibration(scan_step_A=1.0, scan_rotation_deg=0.0)


@pytest.mark.parametrize(
    ("default", "name", "text", "value", "tidy"),
    [
        # whole numbers
        (ADAM, "iterations", "7", 7, "7"),
        (ADAM, "iterations", "+7", 7, "7"),
        (ADAM, "iterations", " 7 ", 7, "7"),
        (ADAM, "iterations", "7.0", 7, "7"),
        (ADAM, "iterations", "7.", 7, "7"),
        (ADAM, "seed", "0", 0, "0"),
        (ADAM, "seed", "9223372036854775808", 2**63, "9223372036854775808"),
        (ADAM, "model.window", "2", 2, "2"),
        # whole numbers or nothing
        (ADAM, "slices", "12", 12, "12"),
        (ADAM, "slices", "", None, ""),
        (ADAM, "slices", "  ", None, ""),
        (ADAM_BEST, "patience", "", None, ""),
        (ADAM_BEST, "patience", "9", 9, "9"),
        # numbers
        (ADAM, "learning_rate", "5e-3", 0.005, "0.005"),
        (ADAM, "learning_rate", "0,005", 0.005, "0.005"),
        (ADAM, "learning_rate", "2", 2.0, "2"),
        (ADAM, "constraints.kz_beta", "0", 0.0, "0"),
        (ADAM, "slice_thickness_A", "0.25 nm", 2.5, "2.5 Å"),
        (CALIBRATION, "optics.energy_eV", "200 kV", 200e3, "200 keV"),
        (CALIBRATION, "optics.semiangle_mrad", "0.5 rad", None, None),
        (CALIBRATION, "optics.semiangle_mrad", "0.02 rad", 20.0, "20 mrad"),
        (CALIBRATION, "optics.overfocus_A", "−12 nm", -120.0, "-120 Å"),
        (CALIBRATION, "optics.Cs_A", "1.2 mm", 1.2e7, "1200 µm"),
        (CALIBRATION, "k_step_invA", "0.05 Å⁻¹", 0.05, "0.05 1/Å"),
        # numbers or nothing
        (CALIBRATION, "scan_rotation_deg", "-30", -30.0, "-30 °"),
        (CALIBRATION, "thickness_A", "12 nm", 120.0, "120 Å"),
        (Calibration(thickness_A=5.0), "thickness_A", "", None, ""),
        # lists
        (LBFGS, "learning_rates", "2", (2.0,), "2"),
        (LBFGS, "learning_rates", "2, 0.5", (2.0, 0.5), "2, 0.5"),
        (LBFGS, "learning_rates", "[2,0.5,1e-3]", (2.0, 0.5, 1e-3), "2, 0.5, 0.001"),
        (LBFGS, "learning_rates", " ( 2 , 0.5 , ) ", (2.0, 0.5), "2, 0.5"),
        (SimulationConfig(), "scan_shape", "5, 6", (5, 6), "5, 6"),
        (SimulationConfig(), "origin_A", "1 nm, −2, 3 Å", (10.0, -2.0, 3.0), "10 Å, -2 Å, 3 Å"),
        (SimulationConfig(), "origin_A", "", None, ""),
        (SimulationConfig(), "dose_e_per_A2", "", None, ""),
        (SimulationConfig(), "dose_e_per_A2", "2e5", 2e5, "200000 e/Å²"),
    ],
)
def test_what_is_typed_is_the_value(qtbot: Any, default: Any, name: str, text: str, value: Any, tidy: str | None) -> None:
    form = make_form(qtbot, default)
    paste(form, name, text)
    if tidy is None:
        assert refusal(form)
        return
    expected = default
    *parents, last = name.split(".")
    nested = replace(getattr(default, parents[0]), **{last: value}) if parents else value
    expected = replace(default, **{parents[0] if parents else last: nested})
    assert form.error == ""
    assert form.value() == expected
    got = getattr(getattr(form.value(), parents[0]) if parents else form.value(), last)
    assert type(got) is type(value)
    assert not isinstance(got, tuple) or [type(v) for v in got] == [type(v) for v in value]
    leave(form)
    assert form.fields[name].text() == tidy
    assert form.value() == expected


def test_ticks_and_choices_are_set_by_hand(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    heard = listen(form.value_changed)
    qtbot.keyClick(form.fields["reshuffle"], Qt.Key.Key_Space)
    assert form.value() == AdamConfig(reshuffle=True)
    qtbot.keyClick(form.fields["constraints.positivity"], Qt.Key.Key_Space)
    qtbot.keyClick(form.fields["engine"], Qt.Key.Key_Down)
    qtbot.keyClick(form.fields["likelihood"], Qt.Key.Key_P)
    changed = AdamConfig(reshuffle=True, constraints=Constraints(positivity=True), engine="fast", likelihood="poisson")
    assert form.value() == changed
    qtbot.keyClick(form.fields["engine"], Qt.Key.Key_Up)
    qtbot.keyClick(form.fields["reshuffle"], Qt.Key.Key_Space)
    assert form.value() == replace(changed, engine="ptyrad", reshuffle=False)
    assert len(heard) == 6


def test_typing_key_by_key_is_heard_key_by_key(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    line, values = form.fields["optics.overfocus_A"], []
    form.value_changed.connect(lambda: values.append(None if form.error else form.value().optics.overfocus_A))
    line.selectAll()
    qtbot.keyClicks(line, "-10 nm")
    assert values == [None, -1.0, -10.0, -10.0, None, -100.0]  # "-" is nothing yet, and n no unit
    assert line.text() == "-10 nm"  # not under the person's hands
    qtbot.keyClick(line, Qt.Key.Key_Return)
    assert line.text() == "-100 Å"
    assert len(values) == 6


@pytest.mark.parametrize(
    ("hint", "kind"),
    [
        (bool, CheckField),
        (Literal["a", "b"], ChoiceField),
        (int, TextField),
        (float, TextField),
        (int | None, TextField),
        (float | None, TextField),
        (tuple[float, ...], TextField),
        (tuple[float, float] | None, TextField),
    ],
)
def test_every_annotation_has_its_field(qtbot: Any, hint: Any, kind: type) -> None:
    made = make_field("name", hint)
    qtbot.addWidget(made)
    assert type(made) is kind


@pytest.mark.parametrize(
    ("hint", "values"),
    [
        (bool, [True, False, True]),
        (Literal["none", "strong_wolfe"], ["strong_wolfe", "none"]),
        (Literal[1, "1", 2], ["1", 2, 1]),  # by place, not by word
        (int, [0, -3, 2**70]),
        (int | None, [5, None, 0, None]),
        (float, [0.1, 1 / 3, -1e300, 5e-324, 7]),
        (float | None, [1 / 3, None, 0.0]),
        (tuple[float, ...], [[1 / 3, 2.0], [], [0.1]]),
        (tuple[float, float] | None, [None, [1 / 3, 1e9], None]),
    ],
)
def test_a_field_gives_back_what_it_was_given(qtbot: Any, hint: Any, values: list[Any]) -> None:
    made = make_field("width_A", hint)
    qtbot.addWidget(made)
    heard = listen(made.edited)
    for value in values:
        made.set_value(value)
        assert (made.value(), type(made.value())) == (value, type(value))
    assert heard == []


def test_an_empty_line_says_what_nothing_means(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    assert form.fields["thickness_A"].placeholderText() == "automatic"
    assert form.fields["optics.aberrations.C12"].placeholderText() == "0"
    assert form.fields["optics.overfocus_A"].placeholderText() == ""
    made = TextField("dose_e_per_A2", float | None, missing="needs a raster")
    qtbot.addWidget(made)
    assert made.placeholderText() == "needs a raster"
    assert made.value() is None


# hidden fields


@pytest.mark.parametrize(
    "hide", [("slices", "slice_thickness_A"), ("constraints", "patience"), ("model.window", "constraints.kz_beta", "engine")]
)
def test_hidden_fields_keep_their_values(qtbot: Any, hide: tuple[str, ...]) -> None:
    form = make_form(qtbot, AdamConfig(), hide=hide)
    assert not [n for n in form.fields if n in hide or n.partition(".")[0] in hide]
    assert len(form.fields) > 10

    @given(adams)
    @quick
    def keeps(config: AdamConfig) -> None:
        form.set_value(config)
        assert form.value() == config
        paste(form, "iterations", "3")
        assert form.value() == replace(config, iterations=3)

    keeps()


def test_a_fault_in_a_hidden_field_is_still_said(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig(heldout_fraction=0.1, patience=3), hide=("patience",))
    paste(form, "heldout_fraction", "0")
    assert "patience needs held-out patterns" in message(form)
    assert red(form) == {"heldout_fraction"}


# names to numbers


def test_every_aberration_has_a_line(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    assert [n.rpartition(".")[2] for n in form.fields if "aberrations" in n] == COEFFICIENTS

    @given(st.dictionaries(st.sampled_from([n for n in COEFFICIENTS if n[0] == "C"]), finite))
    @quick
    def typed(values: dict[str, float]) -> None:
        form.set_value(Calibration())
        for name, value in values.items():
            paste(form, f"optics.aberrations.{name}", repr(value))
        assert form.value() == Calibration(Optics(aberrations=values))
        for name in values:
            paste(form, f"optics.aberrations.{name}", "")
        assert form.value() == Calibration()

    typed()


def test_no_aberration_is_another_thing_than_one_of_zero(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    paste(form, "optics.aberrations.C12", "0")
    paste(form, "optics.aberrations.phi12", "0")
    assert form.value().optics.aberrations == {"C12": 0.0, "phi12": 0.0}
    leave(form)
    assert (form.fields["optics.aberrations.C12"].text(), form.fields["optics.aberrations.phi12"].text()) == ("0 Å", "0 °")
    form.set_value(form.value())
    assert form.value().optics.aberrations == {"C12": 0.0, "phi12": 0.0}


def test_magnitudes_are_lengths_and_phis_are_angles(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    paste(form, "optics.aberrations.C34", "2 µm")
    paste(form, "optics.aberrations.phi34", "1 rad")
    assert form.value().optics.aberrations == {"C34": 2e4, "phi34": pytest.approx(180 / math.pi)}
    paste(form, "optics.aberrations.phi34", "1 nm")
    assert message(form) == "phi34: 'nm' is no unit that converts to °"


def test_names_without_a_line_are_kept(qtbot: Any) -> None:
    config = Calibration(Optics(aberrations={"C12": 1.0, "C50": 1 / 3}))
    some = {"names": {"optics.aberrations": ["C12", "C21"]}}
    for options in (some, {"hide": ("optics.aberrations",)}, {"hide": ("optics.aberrations",), "names": {}}):
        form = make_form(qtbot, config, **options)
        assert form.value() == config
        paste(form, "optics.overfocus_A", "7")
        assert form.value() == replace(config, optics=replace(config.optics, overfocus_A=7.0))
    form = make_form(qtbot, Calibration(), **some)
    form.set_value(config)
    paste(form, "optics.aberrations.C12", "")
    assert form.value().optics.aberrations == {"C50": 1 / 3}


# what is impossible


@pytest.mark.parametrize(
    ("default", "name", "text", "reason", "marked"),
    [
        (ADAM, "iterations", "0", "iterations is 0; expected at least 1", ["iterations"]),
        (ADAM, "iterations", "-3", "iterations is -3; expected at least 1", ["iterations"]),
        (ADAM, "iterations", "", "'iterations': expected a whole number, got ''", ["iterations"]),
        (ADAM, "iterations", "ten", "'iterations': expected a whole number, got 'ten'", ["iterations"]),
        (ADAM, "iterations", "2.5", "'iterations': expected a whole number, got '2.5'", ["iterations"]),
        (ADAM, "iterations", "1e3", "'iterations': expected a whole number, got '1e3'", ["iterations"]),
        (ADAM, "iterations", "true", "'iterations': expected a whole number, got 'true'", ["iterations"]),
        (ADAM, "iterations", "0x10", "'iterations': expected a whole number, got '0x10'", ["iterations"]),
        (ADAM, "slices", "1001", "slices is 1001; expected 1 to 1000", ["slices"]),
        (ADAM, "slices", "few", "'slices': expected a whole number, got 'few'", ["slices"]),
        (ADAM, "learning_rate", "", "learning rate: '' is no number", ["learning_rate"]),
        (ADAM, "learning_rate", "0", "learning rate is 0; expected more than 0", ["learning_rate"]),
        (ADAM, "learning_rate", "1e400", "'learning rate': expected a number, got inf", ["learning_rate"]),
        (ADAM, "learning_rate", "5 %", "learning rate: '5 %': expected a number without a unit", ["learning_rate"]),
        (ADAM, "slice_thickness_A", "2 kV", "slice thickness: 'kV' is no unit that converts to Å", ["slice_thickness_A"]),
        (ADAM, "slice_thickness_A", "", "slice thickness: '' is no number in Å", ["slice_thickness_A"]),
        (ADAM, "model.window", "9", "model window is 9; expected 1 to 8", ["model.window"]),
        (ADAM, "model.sampling", "two", "'model': field 'sampling': expected a whole number, got 'two'", ["model.sampling"]),
        (ADAM, "constraints.kz_beta", "-1", "kz beta is -1; expected 0 or more", ["constraints.kz_beta"]),
        (AdamConfig(), "patience", "3", "patience needs held-out patterns", ["patience", "heldout_fraction"]),
        (LBFGS, "inner_iterations", "0", "inner iterations is 0; expected at least 1", ["inner_iterations"]),
        (LBFGS, "learning_rates", "", "learning rates is []; expected numbers above 0", ["learning_rates"]),
        (LBFGS, "learning_rates", "1, 0", "learning rates is [1.0, 0.0]; expected numbers above 0", ["learning_rates"]),
        (LBFGS, "learning_rates", "1; 2", "learning rates: '1; 2': expected a number without a unit", ["learning_rates"]),
        (LBFGS, "learning_rates", "1, a", "learning rates: ' a' is no number", ["learning_rates"]),
        (SimulationConfig(), "scan_shape", "5", "'scan shape': expected 2 values, got [5.0]", ["scan_shape"]),
        (SimulationConfig(), "scan_shape", "5.5, 6", "'scan shape': expected a whole number, got 5.5", ["scan_shape"]),
        (SimulationConfig(), "origin_A", "1, 2", "'origin': expected 3 values, got [1.0, 2.0]", ["origin_A"]),
        (ProbeFitConfig(), "support", "0.9", "support is 0.9; expected at least 1", ["support"]),
        (CALIBRATION, "scan_step_A", "-1", "scan step is -1.0; expected more than 0", ["scan_step_A"]),
        (
            CALIBRATION,
            "scan_step_A",
            "",
            "scan step is None and scan rotation is 0.0; give both or neither",
            ["scan_step_A", "scan_rotation_deg"],
        ),
        (CALIBRATION, "scan_rotation_deg", "1e999", "'scan rotation': expected a number, got inf", ["scan_rotation_deg"]),
        (CALIBRATION, "optics.energy_eV", "300", "energy is 300; expected 1e3 to 1e7", ["optics.energy_eV"]),
        (CALIBRATION, "optics.energy_eV", "12 Å", "energy: 'Å' is no unit that converts to eV", ["optics.energy_eV"]),
        (CALIBRATION, "optics.semiangle_mrad", "1 rad", "semiangle is 1000; expected", ["optics.semiangle_mrad"]),
        (
            CALIBRATION,
            "optics.aberrations.phi12",
            "3",
            "aberration phi12 is an angle without its C12; give both",
            ["optics.aberrations.phi12", "optics.aberrations.C12"],
        ),
        (CALIBRATION, "optics.aberrations.C12", "x", "C12: 'x' is no number in Å", ["optics.aberrations.C12"]),
    ],
)
def test_what_is_impossible_is_said_and_marked_until_it_is_put_right(
    qtbot: Any, default: Any, name: str, text: str, reason: str, marked: list[str]
) -> None:
    form = make_form(qtbot, default)
    heard = listen(form.value_changed)
    right = form.fields[name].text()
    meanings = {n: line.toolTip() for n, line in form.fields.items()}
    paste(form, name, text)
    assert form.error.startswith(reason)
    assert message(form) == form.error
    assert red(form) == set(marked)
    for n, line in form.fields.items():
        assert (form.error in plain(line.toolTip())) == (n in marked)
        assert plain(meanings[n]) in plain(line.toolTip())
    refusal(form)
    assert not form.validate()
    assert len(heard) == 1  # who shows the value has to know that there is none

    paste(form, name, right)
    assert (form.value(), form.error, message(form), red(form)) == (default, "", "", set())
    assert {n: line.toolTip() for n, line in form.fields.items()} == meanings
    assert form.validate()
    assert len(heard) == 2


def test_the_tooltip_of_a_red_field_shows_no_tags(qtbot: Any) -> None:
    form = make_form(qtbot, CALIBRATION)
    paste(form, "scan_step_A", "-1")
    for name in ("thickness_A", "scan_step_A"):
        assert "<qt>" in form.fields[name].toolTip()
        assert Qt.mightBeRichText(form.fields[name].toolTip()), name


def test_an_aberration_that_is_no_number_is_marked(qtbot: Any) -> None:
    form = make_form(qtbot, CALIBRATION)
    paste(form, "optics.aberrations.C12", "1e400")
    assert form.error
    assert red(form) == {"optics.aberrations.C12"}


def test_a_leading_zero_is_no_sign_of_octal_numbers(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    paste(form, "iterations", "010")
    assert form.error or form.value().iterations == 10


def test_of_two_faults_each_is_marked_and_the_first_is_said(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    paste(form, "learning_rate", "fast")
    paste(form, "slice_thickness_A", "5 kg")
    assert red(form) == {"learning_rate", "slice_thickness_A"}
    assert message(form) == "learning rate: 'fast' is no number"
    paste(form, "learning_rate", "1")
    assert red(form) == {"slice_thickness_A"}
    assert message(form) == "slice thickness: 'kg' is no unit that converts to Å"
    paste(form, "iterations", "0")
    paste(form, "slice_thickness_A", "2")
    assert (red(form), message(form)) == ({"iterations"}, "iterations is 0; expected at least 1")
    paste(form, "iterations", "1")
    assert form.value() == AdamConfig(iterations=1, learning_rate=1.0, slice_thickness_A=2.0)


def test_a_config_put_in_takes_every_fault_away(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    paste(form, "learning_rate", "fast")
    paste(form, "iterations", "0")
    form.set_value(ADAM_BEST)
    assert (form.value(), form.error, message(form), red(form)) == (ADAM_BEST, "", "", set())


def test_a_further_condition_is_asked_too(qtbot: Any) -> None:
    """As Optics and scan asks whether the aperture lies on the detector."""
    asked = []

    def fits(config: AdamConfig) -> None:
        asked.append(config)
        check(config.batch_size <= 42, f"batch_size is {config.batch_size}; the scan has 42 patterns")

    form = make_form(qtbot, AdamConfig(), check=fits)
    assert asked[-1] == AdamConfig()
    paste(form, "batch_size", "43")
    assert refusal(form) == "batch_size is 43; the scan has 42 patterns"
    assert (message(form), red(form)) == ("batch size is 43; the scan has 42 patterns", {"batch_size"})
    asked.clear()
    paste(form, "batch_size", "0")
    assert asked == []  # only about configs
    form.set_value(AdamConfig(batch_size=99))
    assert form.error
    form.set_value(AdamConfig(batch_size=42))
    assert form.value().batch_size == 42


def test_a_fault_that_names_no_field_is_said_all_the_same(qtbot: Any) -> None:
    form = make_form(qtbot, ModelConfig(), check=lambda config: check(config.window == 1, "this is too much"))
    paste(form, "window", "2")
    assert (message(form), red(form)) == ("this is too much", set())


# signals


def test_only_a_person_is_heard(qtbot: Any) -> None:
    form = make_form(qtbot, AdamConfig())
    heard = listen(form.value_changed)
    form.set_value(ADAM_BEST)
    form.validate()
    form.fields["iterations"].setText("9")
    form.fields["engine"].setCurrentIndex(1)
    form.fields["reshuffle"].setChecked(False)
    leave(form)
    assert heard == []
    paste(form, "iterations", "10")
    assert heard == [()]


def test_a_listener_may_put_a_value_in_return(qtbot: Any) -> None:
    """As a dose that is typed sets the electrons; it does not go round in circles."""
    form = make_form(qtbot, AdamConfig())
    heard = listen(form.value_changed)
    form.value_changed.connect(lambda: form.set_value(replace(form.value(), batch_size=7)))
    paste(form, "iterations", "10")
    assert form.value() == AdamConfig(iterations=10, batch_size=7)
    assert len(heard) == 1


# labels and sections


def rows_of(form: ConfigForm) -> dict[str, QLabel]:
    """The label of every field."""
    labels = {label.buddy(): label for label in form.findChildren(QLabel) if label.buddy() is not None}
    return {name: labels[line] for name, line in form.fields.items()}


@each_config
def test_every_field_has_a_label_and_its_meaning(qtbot: Any, default: Any, configs: object) -> None:
    form = make_form(qtbot, default)
    meanings = {name: meaning for name, _, meaning in describe(default)}
    for name, label in rows_of(form).items():
        parent, _, last = name.rpartition(".")
        assert label.text() == label_of(last)
        assert "_" not in label.text()
        meaning = meanings.get(name) or meanings[parent]
        assert meaning, name
        unit = unit_of(last) or ("Å" if last in COEFFICIENTS and last[0] == "C" else "")
        for tip in (form.fields[name].toolTip(), label.toolTip()):
            assert f"<qt>{meaning[0].upper()}{meaning[1:]}" in tip
            assert (f"A bare number is in {unit};" in tip) if unit else ("bare number" not in tip)
        assert form.fields[name].objectName() == name


def test_labels_are_words(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration())
    texts = {name: label.text() for name, label in rows_of(form).items()}
    assert texts["optics.energy_eV"] == "energy"
    assert texts["scan_step_A"] == "scan step"
    assert texts["k_step_invA"] == "k step"
    assert texts["electrons_per_pattern"] == "electrons per pattern"
    assert texts["optics.aberrations.phi12"] == "phi12"
    assert [s.heading.text() for s in form.findChildren(Section)] == ["optics", "further aberrations"]


def is_seen(form: ConfigForm, name: str) -> bool:
    return bool(form.fields[name].isVisibleTo(form))


def test_sections_of_a_form_are_folded_unless_they_are_opened(qtbot: Any) -> None:
    form = make_form(qtbot, Calibration(), opened=("optics",))
    assert is_seen(form, "optics.energy_eV")
    assert not is_seen(form, "optics.aberrations.C12")
    assert is_seen(form, "thickness_A")
    form = make_form(qtbot, AdamConfig())
    assert [is_seen(form, n) for n in ("model.window", "constraints.kz_beta", "iterations")] == [False, False, True]
    form = make_form(qtbot, Calibration(), opened=("optics", "optics.aberrations"))
    sections = form.findChildren(Section)
    sections[0].unfold(False)
    assert not is_seen(form, "optics.energy_eV")
    assert form.value() == Calibration()  # unseen is not gone


def test_a_section_folds_by_its_heading(qtbot: Any) -> None:
    section, content, other = Section("Settings"), QWidget(), QWidget()
    qtbot.addWidget(section)
    section.set_content(content)
    section.show()
    arrows = []
    for expected in (False, True, False, True):
        assert content.isVisible() == section.heading.isChecked() == expected
        arrows.append(section.heading.arrowType())
        qtbot.mouseClick(section.heading, Qt.MouseButton.LeftButton)
    assert arrows == 2 * [Qt.ArrowType.RightArrow, Qt.ArrowType.DownArrow]
    section.unfold(True)
    assert content.isVisible()
    with qtbot.waitSignal(content.destroyed):
        section.set_content(other)
    assert other.isVisible()  # as open as what was there before
    section.unfold(False)
    assert not other.isVisible()
    assert section.heading.text() == "Settings"


def test_further_rows_come_after_those_of_the_config(qtbot: Any) -> None:
    form = make_form(qtbot, ModelConfig())
    slices, dose = QSpinBox(), TextField("dose_e_per_A2", float | None)
    form.add_row("slices", slices)
    form.add_row("dose", dose)
    layout = form.layout()
    assert isinstance(layout, QFormLayout)
    role = QFormLayout.ItemRole
    widgets = [
        (layout.itemAt(row, role.FieldRole) or layout.itemAt(row, role.SpanningRole)).widget()
        for row in range(layout.rowCount())
    ]
    assert widgets == [*form.fields.values(), slices, dose, form.findChild(QLabel, "form_error")]
    assert [layout.labelForField(w).text() for w in (slices, dose)] == ["slices", "dose"]
    assert set(form.fields) == {
        "window",
        "sampling",
        "paraxial",
        "probe_modes",
        "source_size_A",
        "tilt_mrad",
    }  # they are no part of the value
    assert form.value() == ModelConfig()


@dataclass(frozen=True)
class Inner:
    """Something within.

    Attributes:
        deep: how deep.
    """

    deep: float = 1.0


@dataclass(frozen=True)
class Middle:
    """Something between.

    Attributes:
        inner: what is within.
        flag: yes or no.
    """

    inner: Inner = field(default_factory=Inner)
    flag: bool = False


@dataclass(frozen=True)
class Outer:
    """A config of three storeys.

    Attributes:
        middle: what is between.
        name_A: its own unit, its own nothing.
    """

    middle: Middle = field(default_factory=Middle)
    name_A: float | None = None

    def __post_init__(self) -> None:
        check(self.middle.inner.deep > 0, f"deep is {self.middle.inner.deep:g}; expected more than 0")


def test_configs_within_configs_within_configs(qtbot: Any) -> None:
    form = make_form(qtbot, Outer(), opened=("middle.inner",))
    assert list(form.fields) == ["middle.inner.deep", "middle.flag", "name_A"]

    @given(st.builds(Outer, st.builds(Middle, st.builds(Inner, positive), st.booleans()), st.none() | finite))
    @quick
    def round_trip(config: Outer) -> None:
        form.set_value(config)
        assert form.value() == config

    round_trip()
    paste(form, "middle.inner.deep", "0")
    assert (message(form), red(form)) == ("deep is 0; expected more than 0", {"middle.inner.deep"})
    form = make_form(qtbot, Outer(Middle(Inner(3.0), True)), hide=("middle.inner",))
    qtbot.keyClick(form.fields["middle.flag"], Qt.Key.Key_Space)
    assert form.value() == Outer(Middle(Inner(3.0), False))
