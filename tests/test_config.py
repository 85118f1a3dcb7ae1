"""Configs: what goes in comes out, and a mistake is named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.config import dump_yaml, from_dict, merge, parse_assignments, read_yaml, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.optics import Optics
from mepdiff_core.settings import ADAM_BEST, AdamConfig, LBFGSConfig, ModelConfig
from mepdiff_core.simulate import SimulationConfig
from strategies import adams, finite, optics

positive = st.floats(1e-9, 1e9)


@st.composite
def simulations(draw: st.DrawFn) -> SimulationConfig:
    thickness = draw(positive)
    return SimulationConfig(
        optics=Optics(overfocus_A=draw(finite)),
        scan_shape=draw(st.tuples(st.integers(1, 10**6), st.integers(1, 10**6))),
        scan_step_A=draw(st.floats(1e-9, 1e4)),
        scan_rotation_deg=draw(finite),
        k_max_invA=draw(st.floats(1.2, 20)),
        detector_pixels=2 * draw(st.integers(4, 512)),
        dose_e_per_A2=draw(st.none() | positive),
        thickness_A=thickness,
        slice_thickness_A=thickness / draw(st.sampled_from([1, 2, 4])),
        axis=draw(st.sampled_from(["a", "b", "c"])),
        origin_A=draw(st.none() | st.tuples(finite, finite, finite)),
        seed=draw(st.integers(0, 2**63)),
    )


@given(optics | simulations() | adams)
@settings(max_examples=150, deadline=None)
def test_a_config_survives_a_mapping_and_yaml(config: Any) -> None:
    plain = to_dict(config)
    assert from_dict(type(config), plain) == config
    read = yaml.safe_load(dump_yaml(plain))
    assert read == plain
    assert from_dict(type(config), read) == config
    assert list(read) == [f.name for f in fields(config)]


def test_plain_values_are_those_yaml_and_json_know() -> None:
    plain = to_dict(SimulationConfig(optics=Optics(aberrations={"C12": 2.0})))
    assert plain["scan_shape"] == [26, 26]
    assert type(plain["scan_shape"]) is list
    assert type(plain["optics"]) is dict
    assert plain["optics"]["aberrations"] == {"C12": 2.0}


def test_missing_fields_keep_their_defaults() -> None:
    assert from_dict(Optics, {}) == Optics()
    assert from_dict(SimulationConfig, {"optics": {"Cs_A": 1}}) == SimulationConfig(optics=Optics(Cs_A=1.0))


@pytest.mark.parametrize(
    ("cls", "values", "wrong", "right"),
    [
        (Optics, {"overfocus": 3}, "overfocus", "overfocus_A"),
        (Optics, {"energy_ev": 3}, "energy_ev", "energy_eV"),
        (AdamConfig, {"iteration": 3}, "iteration", "iterations"),
        (SimulationConfig, {"optics": {"semiangel_mrad": 20}}, "semiangel_mrad", "semiangle_mrad"),
        (AdamConfig, {"constraints": {"positivty": True}}, "positivty", "positivity"),
        (LBFGSConfig, {"learning_rate": 0.1}, "learning_rate", "learning_rates"),
    ],
)
def test_an_unknown_field_is_named_with_the_nearest_one(cls: type, values: dict[str, Any], wrong: str, right: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(cls, values, "my.yaml")
    assert str(error.value).startswith("my.yaml: ")
    assert f"unknown field '{wrong}'" in str(error.value)
    assert f"did you mean '{right}'?" in str(error.value)


def test_an_unknown_field_with_nothing_near_lists_them_all() -> None:
    with pytest.raises(InputError, match=r"unknown field 'zzz' of Optics; it takes energy_eV, .*aberrations") as error:
        from_dict(Optics, {"zzz": 1})
    assert "did you mean" not in str(error.value)


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (Optics, {"Cs_A": "much"}, "field 'Cs_A': expected a number, got 'much'"),
        (Optics, {"Cs_A": True}, "field 'Cs_A': expected a number, got True"),
        (Optics, {"Cs_A": None}, "field 'Cs_A': expected a number, got None"),
        (Optics, {"Cs_A": [1.0]}, "field 'Cs_A': expected a number"),
        (Optics, {"Cs_A": math.nan}, "field 'Cs_A': expected a number, got nan"),
        (Optics, {"Cs_A": math.inf}, "field 'Cs_A': expected a number, got inf"),
        (Optics, {"Cs_A": "nan"}, "field 'Cs_A': expected a number"),
        (Optics, {"Cs_A": 10**400}, "field 'Cs_A': expected a number"),
        (Optics, {"aberrations": 5}, "field 'aberrations': expected a mapping, got 5"),
        (Optics, {"aberrations": {"C12": "x"}}, "field 'aberrations' C12: expected a number"),
        (Optics, {"aberrations": {"C99": 1.0}}, "aberration 'C99' is not known"),
        (AdamConfig, {"iterations": 2.5}, "field 'iterations': expected a whole number, got 2.5"),
        (AdamConfig, {"iterations": True}, "field 'iterations': expected a whole number, got True"),
        (AdamConfig, {"iterations": "ten"}, "field 'iterations': expected a whole number, got 'ten'"),
        (AdamConfig, {"reshuffle": 1}, "field 'reshuffle': expected bool, got 1"),
        (AdamConfig, {"engine": "slow"}, "field 'engine': got 'slow'; choose from ptyrad, fast"),
        (AdamConfig, {"constraints": [1]}, "field 'constraints': expected a mapping of names to values, got list"),
        (SimulationConfig, {"scan_shape": 26}, "field 'scan_shape': expected a list, got 26"),
        (SimulationConfig, {"scan_shape": [26]}, "field 'scan_shape': expected 2 values, got [26]"),
        (SimulationConfig, {"scan_shape": [26, "x"]}, "field 'scan_shape': expected a whole number, got 'x'"),
        (LBFGSConfig, {"learning_rates": 1.0}, "field 'learning_rates': expected a list, got 1.0"),
        (LBFGSConfig, {"learning_rates": []}, "learning_rates is []"),
    ],
)
def test_a_wrong_value_is_named(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as error:
        from_dict(cls, values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_no_mapping_is_refused() -> None:
    with pytest.raises(InputError, match="here: expected a mapping of names to values, got list"):
        from_dict(Optics, [1, 2], "here")  # type: ignore[arg-type]


@dataclass(frozen=True)
class Kinds:
    """A field of each kind, two of them without a default."""

    number: float
    whole: int
    maybe: float | None = None
    flag: bool = False
    word: str = ""
    choice: Literal["x", "y"] = "x"
    pair: tuple[int, float] = (1, 1.0)
    many: tuple[float, ...] = ()
    table: Mapping[str, float] = field(default_factory=dict)
    nested: Optics | None = None


def test_every_kind_of_field_is_converted_to_its_type() -> None:
    values = {
        "number": 3,
        "whole": 4.0,
        "maybe": "1e6",
        "flag": True,
        "word": "w",
        "choice": "y",
        "pair": [5, 6],
        "many": [1, "2e3"],
        "table": {"a": 1},
        "nested": {"Cs_A": 7},
    }
    made = from_dict(Kinds, values)
    expected = Kinds(3.0, 4, 1e6, True, "w", "y", (5, 6.0), (1.0, 2000.0), {"a": 1.0}, Optics(Cs_A=7.0))
    assert made == expected
    assert [type(made.number), type(made.whole), type(made.pair[1])] == [float, int, float]


def test_a_field_without_a_default_must_be_given() -> None:
    with pytest.raises(InputError, match=r"Kinds lacks a value: .*whole"):
        from_dict(Kinds, {"number": 1.0})


@pytest.mark.parametrize("text", ["1e6", "1E6", "1.0e6", "1000000", "1e+6"])
def test_scientific_notation_in_yaml_is_a_number(tmp_path: Path, text: str) -> None:
    """YAML itself reads 1e6 as a string."""
    path = tmp_path / "optics.yaml"
    path.write_text(f"energy_eV: {text}\n")
    made = from_dict(Optics, read_yaml(path))
    assert made.energy_eV == 1e6
    assert type(made.energy_eV) is float


def test_assignments_nest_and_read_yaml_values() -> None:
    made = parse_assignments(["a.b=1", "a.c=[2, 3.5]", "d=true", "e=null", "f=some words", "g=", "h=x=y", "a.i.j=1e6"])
    assert made == {
        "a": {"b": 1, "c": [2, 3.5], "i": {"j": "1e6"}},
        "d": True,
        "e": None,
        "f": "some words",
        "g": None,
        "h": "x=y",
    }
    assert parse_assignments(["a=1", "a=2"]) == {"a": 2}
    assert parse_assignments([]) == {}


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (["a"], "--set a: expected name=value"),
        (["=1"], "--set =1: expected name=value"),
        (["a=[1"], "--set a=[1: '[1' is not a value YAML can read"),
        (["a=2020-99-99"], "'2020-99-99' is not a value YAML can read"),
        (["a=1", "a.b=2"], "--set a.b=2: 'a' was set to a value before"),
    ],
)
def test_a_bad_assignment_is_named(items: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        parse_assignments(items)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_merge_goes_field_by_field_and_leaves_its_arguments_alone() -> None:
    base = {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}
    over = {"b": {"d": {"h": 5}, "c": 6}, "f": None, "i": 7}
    assert merge(base, over) == {"a": 1, "b": {"c": 6, "d": {"e": 3, "h": 5}}, "f": None, "i": 7}
    assert base == {"a": 1, "b": {"c": 2, "d": {"e": 3}}, "f": {"g": 4}}
    assert over == {"b": {"d": {"h": 5}, "c": 6}, "f": None, "i": 7}


def test_settings_merged_over_a_preset_change_only_what_they_name() -> None:
    settings_ = parse_assignments(["constraints.positivity=false", "seed=3"])
    made = from_dict(AdamConfig, merge(to_dict(ADAM_BEST), settings_))
    assert made == replace(ADAM_BEST, constraints=replace(ADAM_BEST.constraints, positivity=False), seed=3)
    assert made.model == ModelConfig()


def test_an_empty_yaml_file_is_an_empty_mapping(tmp_path: Path) -> None:
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing yet\n")
    assert read_yaml(path) == {}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1\nb: 2\n", "not valid YAML"),
        (b"a: 2020-99-99\n", "not valid YAML"),
        (b"- 1\n- 2\n", "expected a mapping of names to values, got list"),
        (b"just text\n", "expected a mapping of names to values, got str"),
        (b"a: \xff\xfe\n", "cannot be read"),
        (b"a: !!python/object/apply:os.getcwd []\n", "not valid YAML"),
    ],
)
def test_a_bad_yaml_file_is_an_error_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as error:
        read_yaml(path)
    assert str(error.value).startswith(str(path))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_missing_or_unreadable_yaml_file_is_an_error(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_yaml(path)
