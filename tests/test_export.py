"""What the window copies, read back as a shell, the command line and Python read it."""

from __future__ import annotations

import argparse
import ast
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.calibration import Calibration, calibrate, calibration_of
from mepdiff_core.cli import make_parser
from mepdiff_core.cli.common import read_settings
from mepdiff_core.config import merge, parse_assignments, to_dict
from mepdiff_core.optics import Optics
from mepdiff_core.reconstruction import MethodConfig, method_config
from mepdiff_core.scan import Scan, raster_positions
from mepdiff_core.settings import ADAM_BEST, AdamConfig, Constraints, LBFGSConfig, ModelConfig
from napari_mepdiff._export import Request, as_command, as_python, changed, flat, in_yaml
from strategies import ABERRATIONS, adams, crystals, finite, lbfgs

quick = settings(max_examples=80, deadline=None)

methods = st.tuples(st.sampled_from(["adam", "adam-best"]), adams) | st.tuples(st.just("lbfgs"), lbfgs)
methods |= st.tuples(st.just("crystal"), crystals())
# every sign that a file's name can have
names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1, max_size=30)
paths = st.lists(names, min_size=1, max_size=3).map(lambda parts: Path("/", *parts))
AWKWARD = [
    "/data/my scans/SrTiO3 (2).h5",
    '/it\'s/a "scan".h5',
    "/$HOME/`date`/*?[a]~{b,c}&;|<>#!.h5",
    "/back\\slash\\n.h5",
    "/new\nline\ttab.h5",
    "/Å/µm/日本.h5",
    "/'/\"/'''.h5",
    "/-x/--out.h5",
    "/a=b.h5",
    "/ leading and trailing .h5 ",
    "relative/scan.h5",
]


def parsed(command: str) -> argparse.Namespace:
    """A command line as the shell splits it and mepdiff takes it."""
    program, *words = shlex.split(command)
    assert program == "mepdiff"
    return make_parser().parse_args(words)


def config_of(arguments: argparse.Namespace) -> MethodConfig:
    return method_config(arguments.method, read_settings(arguments))


def calibration_in(arguments: argparse.Namespace) -> dict[str, Any]:
    return parse_assignments(arguments.calibrate, "--calibrate")


@pytest.fixture(scope="module")
def scan() -> Scan:
    """A raster of 2 x 3 patterns whose detector sees far, with two aberrations."""
    optics = Optics(200e3, 18.0, -70.0, 1.2e7, {"C12": 20.0, "phi12": 35.0})
    positions = raster_positions((2, 3), 0.4, 30.0)
    return Scan(np.ones((2, 3, 16, 16), np.uint16), positions, optics, 1.5, 800.0, 11.2)


@st.composite
def fitting_calibrations(draw: st.DrawFn) -> Calibration:
    """Such that any aperture lies on the detector of ``scan``."""
    aberrations = {}
    for n, m in draw(st.lists(st.sampled_from(ABERRATIONS), max_size=3, unique=True)):
        aberrations[f"C{n}{m}"] = draw(st.floats(-1e9, 1e9))
        if m and draw(st.booleans()):
            aberrations[f"phi{n}{m}"] = draw(st.floats(-360, 360))
    angle = draw(st.floats(0.01, 50))
    optics = Optics(draw(st.floats(3e4, 1e6)), angle, draw(finite), draw(finite), aberrations)
    electrons, thickness = draw(st.floats(1e-9, 1e30)), draw(st.none() | st.floats(1e-9, 1e9))
    step, rotation = draw(st.floats(1e-3, 1e3)), draw(st.floats(-360, 360))
    return Calibration(optics, step, rotation, draw(st.floats(1.5, 10)), electrons, thickness)


def assert_same_scan(a: Scan, b: Scan) -> None:
    assert (a.optics, a.k_step_invA) == (b.optics, b.k_step_invA)
    assert (a.electrons_per_pattern, a.thickness_A) == (b.electrons_per_pattern, b.thickness_A)
    np.testing.assert_array_equal(a.positions_A, b.positions_A)


# as a command


@given(methods)
@quick
def test_the_command_line_reads_the_same_settings(method: tuple[str, MethodConfig]) -> None:
    name, config = method
    arguments = parsed(as_command(Request(Path("/scan.h5"), name, config)))
    assert (arguments.scan, arguments.method, arguments.out) == ("/scan.h5", name, "run")
    assert config_of(arguments) == config


@given(fitting_calibrations())
@quick
def test_the_command_line_reads_the_same_calibration(scan: Scan, calibration: Calibration) -> None:
    changes = changed(to_dict(calibration_of(scan)), to_dict(calibration))
    arguments = parsed(as_command(Request(Path("/scan.h5"), "adam", AdamConfig(), calibration=changes)))
    assert_same_scan(calibrate(scan, calibration_in(arguments)), calibrate(scan, calibration))


def test_aberrations_that_were_taken_away_are_so_by_the_command_too(scan: Scan) -> None:
    now = calibration_of(scan)
    fewer = replace(now, optics=replace(now.optics, aberrations={"C21": 3.0}))
    changes = changed(to_dict(now), to_dict(fewer))
    command = as_command(Request(Path("/scan.h5"), "adam", AdamConfig(), calibration=changes))
    for words in ("aberrations.C12=null", "aberrations.phi12=null", "aberrations.C21=3.0"):
        assert f"--calibrate optics.{words}" in command
    assert command.count("--calibrate") == 3
    assert calibration_of(calibrate(scan, calibration_in(parsed(command)))) == fewer


@given(paths, paths, names)
@quick
def test_any_path_comes_through_the_shell(path: Path, probe: Path, out: str) -> None:
    out = f"/{out}"
    arguments = parsed(as_command(Request(path, "adam", AdamConfig(), probe=probe), out))
    assert (Path(arguments.scan), Path(arguments.probe), arguments.out) == (path, probe, out)


def test_a_real_shell_splits_it_as_meant() -> None:
    for path in AWKWARD:
        request = Request(Path(path), "adam-best", ADAM_BEST, "cuda:1", {"thickness_A": None}, Path(path))
        words = as_command(request, path).partition(" ")[2]
        show = f"{shlex.quote(sys.executable)} -c 'import sys; print(ascii(sys.argv[1:]))' {words}"
        done = subprocess.run(["sh", "-c", show], capture_output=True, text=True, check=True)
        expected = ["reconstruct", path, "--method", "adam-best", "--out", path, "--device", "cuda:1"]
        assert ast.literal_eval(done.stdout) == [*expected, "--probe", path, "--calibrate", "thickness_A=null"]


def test_what_is_as_by_default_is_not_said() -> None:
    plain = as_command(Request(Path("a.h5"), "adam-best", ADAM_BEST))
    assert plain == "mepdiff reconstruct a.h5 --method adam-best --out run"
    assert as_command(Request(Path("a.h5"), "lbfgs", LBFGSConfig(), calibration={}), "b").endswith("--method lbfgs --out b")
    config = replace(ADAM_BEST, patience=None, constraints=replace(ADAM_BEST.constraints, positivity=False))
    command = as_command(Request(Path("a.h5"), "adam-best", config, "cpu"))
    assert command.partition("--out run ")[2] == "--device cpu --set constraints.positivity=false --set patience=null"


def test_every_kind_of_setting_is_worded_as_yaml() -> None:
    config = LBFGSConfig((1e-20, 3.0), 7, line_search="strong_wolfe", slices=3, model=ModelConfig(2, paraxial=True))
    arguments = parsed(as_command(Request(Path("a.h5"), "lbfgs", config)))
    assert arguments.set == [
        "learning_rates=[1e-20, 3.0]",
        "iterations=7",
        "line_search=strong_wolfe",
        "slices=3",
        "model.window=2",
        "model.paraxial=true",
    ]
    assert config_of(arguments) == config


# as Python


class Followed(ModuleType):
    """Stands for ``mepdiff_core`` and notes what a script asks it to do."""

    def __init__(self) -> None:
        super().__init__("mepdiff_core")
        self.calls: list[tuple[Any, ...]] = []

    def load_scan(self, path: str) -> str:
        self.calls.append(("load", path))
        return "scan"

    def calibrate(self, scan: str, changes: Mapping[str, Any]) -> str:
        self.calls.append(("calibrate", scan, changes))
        return "calibrated"

    def with_probe(self, scan: str, path: str) -> str:
        self.calls.append(("probe", scan, path))
        return "probed"

    def reconstruct(self, scan: str, method: str, *, config: Mapping[str, Any], device: str) -> Iterator[Any]:
        self.calls.append(("reconstruct", scan, method, config, device))
        yield SimpleNamespace(step=1, loss=0.5, heldout=None, volume=np.zeros((2, 3, 4)))


def follow(script: str) -> list[tuple[Any, ...]]:
    """What a script does."""
    core = Followed()
    with patch.dict(sys.modules, {"mepdiff_core": core, "mepdiff_core.probe": core}):
        exec(compile(script, "script", "exec"), {})
    return core.calls


def literals(script: str) -> dict[str, Any]:
    """The values that a script writes out: those of its names, and the last argument of its calls."""
    found: dict[str, Any] = {}
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            found[ast.unparse(node.targets[0])] = ast.literal_eval(node.value)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[-1], (ast.Dict, ast.Constant)):
            found[ast.unparse(node.func)] = ast.literal_eval(node.args[-1])
    return found


@given(methods, paths, st.none() | paths, fitting_calibrations(), st.sampled_from(["auto", "cpu", "cuda:1"]))
@quick
def test_the_script_does_the_same(
    scan: Scan, method: tuple[str, MethodConfig], path: Path, probe: Path | None, calibration: Calibration, device: str
) -> None:
    name, config = method
    changes = changed(to_dict(calibration_of(scan)), to_dict(calibration))
    script = as_python(Request(path, name, config, device, changes, probe))
    (first, load), (second, before, values), *rest = follow(script)
    assert (first, Path(load), second, before) == ("load", path, "calibrate", "scan")
    assert values == changes
    assert_same_scan(calibrate(scan, values), calibrate(scan, calibration))
    if probe is not None:
        assert rest.pop(0) == ("probe", "calibrated", str(probe))
    ((last, on, asked, given_settings, where),) = rest
    assert (last, on, asked, where) == ("reconstruct", "calibrated" if probe is None else "probed", name, device)
    assert method_config(name, given_settings) == config


@given(methods, paths)
@quick
def test_its_literals_are_the_values(method: tuple[str, MethodConfig], path: Path) -> None:
    name, config = method
    request = Request(path, name, config, calibration={"thickness_A": None, "optics": {"Cs_A": -1e-300}})
    found = literals(as_python(request))
    assert found["settings"] == request.settings()
    assert method_config(name, found["settings"]) == config
    assert found["mep.calibrate"] == request.calibration
    assert found["mep.load_scan"] == str(path)


def test_a_short_request_is_a_short_script(capsys: pytest.CaptureFixture[str]) -> None:
    script = as_python(Request(Path("scan.h5"), "adam-best", ADAM_BEST))
    assert "calibrate" not in script
    assert "probe" not in script
    assert script.startswith("import mepdiff_core as mep\n\nscan = mep.load_scan('scan.h5')\nsettings = {}\n")
    assert script.endswith("\n")
    assert follow(script) == [("load", "scan.h5"), ("reconstruct", "scan", "adam-best", {}, "auto")]
    assert capsys.readouterr().out == "1 0.5 None (2, 3, 4)\n"


@pytest.mark.parametrize("path", AWKWARD)
def test_paths_with_quotes_are_still_python(path: str) -> None:
    calls = follow(as_python(Request(Path(path), "adam", AdamConfig(), probe=Path(path))))
    assert calls[:2] == [("load", path), ("probe", "scan", path)]


def test_a_script_of_many_settings_has_lines_that_are_read() -> None:
    config = AdamConfig(
        7, 8, 9e-3, True, "poisson", Constraints(True, 1.5, 0.5, 2.0), 0.1, 4, 5, 1.1, "fast", ModelConfig(2)
    )
    script = as_python(Request(Path("scan.h5"), "adam", config))
    assert max(len(line) for line in script.splitlines()) <= 110
    assert method_config("adam", literals(script)["settings"]) == config


# what differs


scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.sampled_from(["fast", "poisson"])
words = st.text("abcXYZ_0", min_size=1, max_size=3)
branches = st.recursive(scalars, lambda inner: st.dictionaries(words, inner, max_size=3))
trees = st.dictionaries(words, branches, max_size=4)


def without_nothing(values: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is None."""
    inner = {k: without_nothing(v) if isinstance(v, Mapping) else v for k, v in values.items()}
    return {k: v for k, v in inner.items() if v is not None}


@given(trees, trees)
@settings(max_examples=200, deadline=None)
def test_the_change_put_over_what_was_gives_what_is(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert without_nothing(merge(before, changed(before, after))) == without_nothing(after)
    assert changed(before, before) == {}


@given(adams, adams)
@quick
def test_only_what_differs_is_a_change(before: AdamConfig, after: AdamConfig) -> None:
    old, new = dict(flat(to_dict(before))), dict(flat(to_dict(after)))
    assert dict(flat(changed(to_dict(before), to_dict(after)))) == {k: v for k, v in new.items() if v != old[k]}


def test_changes_worked_out_by_hand() -> None:
    before = {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 3}, "g": None}
    assert changed(before, {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 3}, "g": None}) == {}
    assert changed(before, {"a": 2, "b": {"c": 2, "d": [2, 1]}, "e": {"f": 3}, "g": None}) == {"a": 2, "b": {"d": [2, 1]}}
    assert changed(before, {"a": 1, "b": {"c": 5}, "e": {}}) == {"g": None, "b": {"d": None, "c": 5}, "e": {"f": None}}
    assert changed(before, {**before, "a": None, "g": 0}) == {"a": None, "g": 0}
    assert changed(before, {**before, "e": 7, "a": {"new": 1}}) == {"e": 7, "a": {"new": 1}}
    assert changed({}, {"x": {"y": 1}}) == {"x": {"y": 1}}
    assert before == {"a": 1, "b": {"c": 2, "d": [1, 2]}, "e": {"f": 3}, "g": None}


def test_flat_names_are_dotted_and_in_order() -> None:
    values = {"a": 1, "b": {"c": {"d": 2}, "e": [1, {"f": 2}]}, "g": None, "h": {}}
    assert flat(values) == [("a", 1), ("b.c.d", 2), ("b.e", [1, {"f": 2}]), ("g", None)]
    assert flat(values["b"], "x.") == [("x.c.d", 2), ("x.e", [1, {"f": 2}])]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        (True, "true"),
        (False, "false"),
        (0, "0"),
        (-7, "-7"),
        (2**63, "9223372036854775808"),
        (1.0, "1.0"),
        (-0.1, "-0.1"),
        (5e-4, "0.0005"),
        ("fast", "fast"),
        ("none", "none"),
        ([], "[]"),
        ([1.0, 0.1], "[1.0, 0.1]"),
        ((1, None, True, "a"), "[1, null, true, a]"),
        ([[1, 2], [3]], "[[1, 2], [3]]"),
    ],
)
def test_values_in_yaml(value: Any, text: str) -> None:
    assert in_yaml(value) == text
    assert yaml.safe_load(text) == (list(value) if isinstance(value, tuple) else value)


@given(finite)
@quick
def test_every_number_keeps_its_digits(value: float) -> None:
    """YAML takes 1e-09 for a word; configs take the word for the number."""
    assert float(yaml.safe_load(in_yaml(value))) == value
    assert [float(v) for v in yaml.safe_load(in_yaml([value, -value]))] == [value, -value]


@given(trees.map(without_nothing))
@quick
def test_assignments_of_flat_names_are_the_tree(tree: dict[str, Any]) -> None:
    def as_read(value: Any) -> Any:
        return float(value) if isinstance(value, str) and value[-1].isdigit() else value

    read = dict(flat(parse_assignments(f"{name}={in_yaml(value)}" for name, value in flat(tree))))
    expected = {name: value for name, value in flat(tree) if value not in (float("inf"), -float("inf"))}
    assert {name: as_read(value) for name, value in read.items() if name in expected} == expected
    assert read.keys() == {name for name, _ in flat(tree)}
