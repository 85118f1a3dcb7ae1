"""A run of the crystal solver, whatever the solver finds: its settings, states, files, report and command."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import yaml

from mepdiff_core.cell_report import Answer, cell_section, symmetry_of
from mepdiff_core.cif_cells import read_cell, write_cif
from mepdiff_core.cli import main
from mepdiff_core.config import from_dict, parse_assignments, to_dict
from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError, Refused
from mepdiff_core.reconstruction import DEFAULT_METHOD, METHODS, method_config
from mepdiff_core.runs import HISTORY, Run
from mepdiff_core.scan import Scan
from mepdiff_core.settings import AdamConfig, CrystalConfig, parse_composition
from mepdiff_core.states import CrystalState
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.unit_cell import UnitCell, from_crystal, match
from mepdiff_core.volume_files import read_volume

VERDICT = "Two structures are equally likely: the depth of Sr is not told apart."
STEPS = CrystalSteps(np.eye(30), np.ones((30, 30)), np.zeros(2), np.array(0.2)).with_lattice(3.9 * np.eye(2), np.ones(2))
STARTED = ("projection", "depth", "posterior")
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def cell(perovskite: Crystal) -> UnitCell:
    """The true cell of ``small_scan``, with a spread and a site that is not sure."""
    true = from_crystal(perovskite, "c", (0.3, 0.2, 0.4), 6.4)
    spread = np.tile([0.2, 0.03, 0.04], (5, 1))
    spread[4] = np.nan
    candidates = (((38, 0.7), (20, 0.29), (0, 0.01)), *true.candidates[1:])
    return replace(true, spread_A=spread, candidates=candidates)


def solver(cell: UnitCell | None, stop_at: int | None = None, samples: int = 3, second: bool = True) -> Any:
    """A loop that yields what the solver would, and the configs that it was given."""
    asked: list[CrystalConfig] = []

    def loop(scan: Scan, config: CrystalConfig, device: Any, start: Any, checkpoint: Any) -> Iterator[CrystalState]:
        assert start is None
        assert not checkpoint
        asked.append(config)
        assert scan.truth is not None
        truth = scan.truth.phase
        for step, stage in enumerate(STARTED, 1):
            if step == stop_at:
                raise KeyboardInterrupt
            last = step == len(STARTED)
            drawn = np.stack([truth + 0.1 * k for k in range(samples)]).astype(np.float32) if last and samples else None
            yield CrystalState(
                step=step,
                total=3,
                volume=np.full(truth.shape, step / 10, np.float32) if not last else truth.astype(np.float32),
                loss=float("nan") if step == 1 else 10.0 / step,
                seconds=0.1 * step,
                volume_step=step,
                heldout=None if step == 1 else 12.0 / step,
                note=f"stage {stage}",
                cell=None if step == 1 else cell,
                temperature=4.0 / step,
                accepted=step,
                stage=stage,
                samples=drawn,
                alternative=cell if last and second else None,
                verdict=VERDICT if last else "",
                steps=STEPS,
            )

    loop.asked = asked  # type: ignore[attr-defined]
    return loop


def use(monkeypatch: pytest.MonkeyPatch, loop: Any) -> Any:
    monkeypatch.setitem(METHODS, "crystal", replace(METHODS["crystal"], run=loop))
    return loop.asked


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


# settings and states


def test_the_method_is_known_and_the_first_that_the_default_asks() -> None:
    assert DEFAULT_METHOD == "mepdiff"
    config = method_config("crystal", {"composition": "LiMnPO4", "lattice_A": [4.65, 4.7], "angle_deg": 90})
    assert isinstance(config, CrystalConfig)
    assert (config.lattice_A, config.angle_deg, config.rounds, config.samples) == ((4.65, 4.7), 90.0, 3, 8)
    assert method_config("crystal", config) is config
    assert from_dict(CrystalConfig, to_dict(config)) == config
    with pytest.raises(InputError, match="method adam takes AdamConfig, got CrystalConfig"):
        method_config("adam", config)
    with pytest.raises(InputError, match="method crystal takes CrystalConfig, got AdamConfig"):
        method_config("crystal", AdamConfig())


@pytest.mark.parametrize(
    ("formula", "counts"),
    [
        ("LiMnPO4", {3: 1, 25: 1, 15: 1, 8: 4}),
        ("Ca(OH)2", {20: 1, 8: 2, 1: 2}),
        (" Li Mn P O4 ", {3: 1, 25: 1, 15: 1, 8: 4}),
    ],
)
def test_a_composition_is_a_formula(formula: str, counts: dict[int, int]) -> None:
    assert parse_composition(formula) == counts


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"composition": "LiMnPo5x"}, "composition is 'LiMnPo5x'; expected a formula"),
        ({"composition": "PuO2"}, "up to Z = 92"),
        ({"composition": ""}, "composition is ''"),
        ({"lattice_A": [4, 4]}, "lattice_A and angle_deg go together"),
        ({"angle_deg": 90}, "lattice_A and angle_deg go together"),
        ({"lattice_A": [4, -4], "angle_deg": 90}, "lattice_A is [4.0, -4.0]; expected two lengths above 0"),
        ({"lattice_A": [4, 4], "angle_deg": 180}, "angle_deg is 180.0"),
        ({"lattice_A": [4, 4, 4], "angle_deg": 90}, "expected 2 values"),
        ({"period_A": 0}, "period_A is 0.0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"patterns": 0}, "patterns is 0"),
        ({"samples": -1}, "samples is -1"),
        ({"axis": "d"}, "choose from a, b, c"),
        ({"start": "a.cif", "composition": "SrTiO3"}, "start says what composition is"),
        ({"heldout_fraction": 0.9}, "heldout_fraction is 0.9"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=re.escape(reason)):
        method_config("crystal", settings)


def test_samples_have_mean_and_spread() -> None:
    samples = np.random.default_rng(0).normal(size=(5, 2, 3, 4)).astype(np.float32)
    state = CrystalState(1, 1, samples[0].copy(), 0.0, 0.0, 1, samples=samples)
    mean, spread = state.mean(), state.spread()
    assert mean is not None
    assert spread is not None
    np.testing.assert_allclose(mean, samples.mean(0), atol=1e-6)
    np.testing.assert_allclose(spread, samples.std(0, ddof=1), rtol=1e-5)
    assert not samples.flags.writeable
    one = CrystalState(1, 1, samples[0].copy(), 0.0, 0.0, 1, samples=samples[:1])
    assert one.spread() is None
    assert CrystalState(1, 1, samples[0].copy(), 0.0, 0.0, 1).mean() is None


# the cell in files


def test_a_cell_is_read_back_from_its_cif(cell: UnitCell, tmp_path: Path) -> None:
    write_cif(tmp_path / "c.cif", cell)
    back = read_cell(tmp_path / "c.cif")
    agreement = match(back, cell, (6.4, 12.0, 12.0))
    assert (agreement.matched, agreement.extra, agreement.right_species) == (1, 0, 1)
    assert agreement.rms_in_plane_A < 1e-4
    assert agreement.rms_depth_A < 1e-4
    np.testing.assert_allclose(back.spread_A, cell.spread_A, rtol=0.02)
    assert back.candidates == cell.candidates
    diagonal = replace(cell, lattice_A=np.array([[0, 3.905, 3.9046], [0, 3.9051, -3.9049], [3.905, 0, 0]]))
    write_cif(tmp_path / "d.cif", diagonal)
    shared = np.sqrt((0.03**2 + 0.04**2) / 2)
    np.testing.assert_allclose(read_cell(tmp_path / "d.cif").spread_A[:4, 1:], shared, rtol=0.05)
    assert (back.periodic_along_beam, back.thickness_A) == (True, 6.4)
    turned = replace(cell, lattice_A=np.array([[0, 2, 3.5], [0, 3, -1.5], [3.905, 0, 0]]))
    write_cif(tmp_path / "t.cif", turned)
    np.testing.assert_allclose(
        read_cell(tmp_path / "t.cif").fractional_spread, turned.right_handed.fractional_spread, rtol=0.02
    )


def test_other_files_are_no_cells(tmp_path: Path, perovskite: Crystal) -> None:
    write_cif(tmp_path / "plain.cif", perovskite)
    with pytest.raises(InputError, match=r"plain\.cif is no unit cell that mepdiff found"):
        read_cell(tmp_path / "plain.cif")
    with pytest.raises(InputError, match=r"none\.cif cannot be read"):
        read_cell(tmp_path / "none.cif")


def test_symmetry_in_words(cell: UnitCell) -> None:
    assert symmetry_of(cell) == "221 Pm-3m within 0.2 Å"
    moved = cell.positions_A + np.random.default_rng(0).normal(size=(5, 3)) * 0.5
    assert "none found" in symmetry_of(replace(cell, positions_A=moved))
    slab = replace(cell, periodic_along_beam=False, lattice_A=cell.lattice_A * [[1], [1], [6.4 / 3.905]])
    assert "no period along the beam" in symmetry_of(slab)


def test_without_a_cell_the_section_says_so(tmp_path: Path) -> None:
    text = cell_section(tmp_path, Answer(None, None, "No <lattice>: no crystal."), {"loss": float("nan")})
    assert "No &lt;lattice&gt;: no crystal." in text
    assert "No unit cell was found" in text
    assert "misfit" not in text
    assert list(tmp_path.iterdir()) == []


# the run folder


def test_a_run_leaves_cells_samples_and_a_verdict(
    small_file: Path, small_scan: Scan, cell: UnitCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, solver(cell))
    out = tmp_path / "run"
    run = Run(small_file, out, "crystal", {"seed": 3}, "cpu")
    assert len(list(run.states())) == 3
    history = table(out / "history.csv")
    assert [*history[0]] == [*HISTORY, "stage", "temperature", "accepted"]
    assert [(r["stage"], r["temperature"], r["accepted"]) for r in history][1] == ("depth", "2.0", "2")
    assert match(read_cell(out / "crystal.cif"), cell, (6.4, 9, 9)).matched == 1
    assert (out / "crystal-2.cif").exists()
    with tifffile.TiffFile(out / "samples.ome.tif") as file:
        assert (file.series[0].axes, file.series[0].shape[0]) == ("TZYX", 3)
        assert file.series[0].dtype == np.float32
        pixels = tifffile.xml2dict(file.ome_metadata)["OME"]["Image"]["Pixels"]
        assert [p["PositionZ"] for p in pixels["Plane"]][:4] == [p["PositionZ"] for p in pixels["Plane"]][4:8]
    assert small_scan.truth is not None
    np.testing.assert_allclose(read_volume(out / "mean.ome.tif"), small_scan.truth.phase + 0.1, atol=1e-6)
    np.testing.assert_allclose(read_volume(out / "std.ome.tif"), 0.1, atol=1e-5)

    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["verdict"] == VERDICT
    assert metrics["loss"] == pytest.approx(10 / 3)
    assert metrics["loss_heldout"] == pytest.approx(4)
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in (
        "Unit cell",
        "How it was found",
        VERDICT,
        "221 Pm-3m",
        "a = 3.905 Å",
        "Sr 0.70, Ca 0.29",
        "3.3333 nats",
        "crystal-2.cif",
    ):
        assert text in page
    assert "for it, an inverse crime in part" in page
    assert {"cell.png", "cell-2.png", "steps.png"} < {p.name for p in out.iterdir()}

    # the report is made again from what the folder holds
    before = (out / "report.html").read_text(encoding="utf-8")
    (out / "report.html").unlink()
    again = Run(small_file, out, "crystal", None, "cpu", resume=True)
    assert list(again.states()) == []
    assert again.metrics == run.metrics
    pages = (re.sub('base64,[^"]*', "", page) for page in (before, (out / "report.html").read_text(encoding="utf-8")))
    assert next(pages) == next(pages)  # but for the picture of a cell whose file is rounded


def test_what_was_not_found_leaves_no_file(small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, solver(None, samples=0, second=False))
    run = Run(small_file, tmp_path / "run", "crystal", None, "cpu")
    list(run.states())
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.suffix == ".cif" or p.name.startswith("samples")]
    assert "No unit cell was found" in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert run.metrics["verdict"] == VERDICT


def test_other_methods_have_the_history_they_had(small_file: Path, tmp_path: Path) -> None:
    run = Run(small_file, tmp_path / "run", "adam", {"iterations": 1, "engine": "fast"}, "cpu")
    list(run.states())
    assert tuple(table(tmp_path / "run" / "history.csv")[0]) == HISTORY
    assert "verdict" not in run.metrics
    assert "verdict" not in run.folder.record


# the command


@pytest.fixture
def folder(small_file: Path, perovskite: Crystal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("scan.h5").write_bytes(small_file.read_bytes())
    write_cif("known.cif", perovskite)
    Path("broken.cif").write_text("no CIF at all")
    return tmp_path


CRYSTAL = ["reconstruct", "scan.h5", "--method", "crystal", "--device", "cpu", "--out", "run"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--composition", "LiMnPO4"], {"composition": "LiMnPO4"}),
        (["--lattice", "4.65,4.7,90"], {"lattice_A": (4.65, 4.7), "angle_deg": 90.0}),
        (["--lattice", "4.65 4.7  120"], {"lattice_A": (4.65, 4.7), "angle_deg": 120.0}),
        (["--start", "known.cif", "--axis", "b"], {"start": "known.cif", "axis": "b"}),
        (["--steps", "2", "--samples", "0", "--seed", "5"], {"rounds": 2, "samples": 0, "seed": 5}),
    ],
)
def test_options_fill_the_config(
    folder: Path, cell: UnitCell, options: list[str], expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = use(monkeypatch, solver(cell, samples=0))
    assert main([*CRYSTAL, *options]) == 0
    assert asked == [CrystalConfig(**expected)]


def test_the_last_words_are_the_verdict_and_the_files(
    folder: Path, cell: UnitCell, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use(monkeypatch, solver(cell))
    assert main(CRYSTAL) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[-4:] == [VERDICT, "run/crystal.cif", "run/crystal-2.cif", "run/report.html"]
    assert "nan" not in shown.err
    assert "stage posterior" in shown.err
    assert main([*CRYSTAL[:-1], "again", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == VERDICT


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            ["--composition", "SrTiO3"],
            "--composition is for the methods crystal and mepdiff, not for adam; leave it out, or take",
        ),
        (["--lattice", "4,4,90"], "--lattice is for the methods crystal and mepdiff, not for adam"),
        (["--axis", "c"], "--axis is for the methods crystal and mepdiff, not for adam"),
        (["--engine", "fast", "--method", "crystal"], "--engine is for the methods dps, proximal, mepdiff, adam, lbfgs and"),
        (["--samples", "2"], "--samples is for the methods crystal, dps, proximal and mepdiff, not for adam"),
        (["--start", "known.cif"], "--start known.cif: a CIF file is for the methods crystal and mepdiff, not for adam"),
    ],
)
def test_other_methods_refuse_what_is_known_of_a_crystal(
    folder: Path, options: list[str], reason: str, capsys: Capture
) -> None:
    assert main(["reconstruct", "scan.h5", "--method", "adam", "--out", "run", *options]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert reason in shown.err
    assert not Path("run").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--composition", "Nonsense9"], "composition is 'Nonsense9'"),
        (["--start", "broken.cif"], "broken.cif"),
        (["--start", "nowhere.cif"], "nowhere.cif"),
        (["--start", "known.cif", "--lattice", "4,4,90"], "start says what lattice_A is"),
        (["--lattice", "4,4,0"], "angle_deg is 0"),
    ],
)
def test_bad_input_is_one_line(
    folder: Path, cell: UnitCell, options: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use(monkeypatch, solver(cell))
    assert main([*CRYSTAL, *options]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert reason in shown.err
    assert not Path("run").exists()


def test_a_lattice_is_three_numbers(folder: Path, capsys: Capture) -> None:
    for text in ("4.65,4.7", "4,4,x", "1,2,3,4", ""):
        with pytest.raises(SystemExit) as stopped:
            main([*CRYSTAL, "--lattice", text])
        assert stopped.value.code == 2
        assert "expected A,B,ANGLE like 4.65,4.65,90" in capsys.readouterr().err


def test_ctrl_c_keeps_what_there_is(folder: Path, cell: UnitCell, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    use(monkeypatch, solver(cell, stop_at=3))
    assert main([*CRYSTAL, "--start", "known.cif"]) == 0
    command = "mepdiff reconstruct scan.h5 --method crystal --out run --resume"
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == f"mepdiff: stopped; run keeps what was found; begin again with: {command}"
    kept = {"crystal.cif", "steps.safetensors", "volume.ome.tif", "history.csv", "run.yaml"}
    assert kept == {p.name for p in Path("run").iterdir()}
    assert [row["stage"] for row in table(Path("run/history.csv"))] == ["projection", "depth"]

    asked = use(monkeypatch, solver(None, samples=0, second=False))
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert main(["reconstruct", "../scan.h5", "--method", "crystal", "--out", "../run", "--resume"]) == 0
    assert asked[0].start == str(folder / "known.cif")
    assert [row["step"] for row in table(Path("../run/history.csv"))] == ["1", "2", "3"]
    assert not Path("../run/crystal.cif").exists()  # of the first start
    assert yaml.safe_load(Path("../run/run.yaml").read_text())["verdict"] == VERDICT


@pytest.mark.parametrize("foreign", [False, True])
def test_a_run_refused_on_the_way_leaves_nothing_but_what_others_put_there(
    folder: Path, cell: UnitCell, monkeypatch: pytest.MonkeyPatch, capsys: Capture, foreign: bool
) -> None:
    """The projection had to be seen first; the same folder takes the next try."""
    whole = solver(cell)

    def loop(*given: Any) -> Iterator[CrystalState]:
        states = whole(*given)
        yield next(states)
        assert Path("run/volume.ome.tif").exists()
        assert Path("run/steps.safetensors").exists()
        if foreign:
            Path("run/notes.txt").touch()
        raise Refused("the lattice does not fit the projection")

    monkeypatch.setitem(METHODS, "crystal", replace(METHODS["crystal"], run=loop))
    command = ["reconstruct", "scan.h5", "--method", "crystal", "--lattice", "3.9,4.4,90", "--out", "run"]
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "mepdiff: the lattice does not fit the projection"
    if foreign:
        assert [path.name for path in Path("run").iterdir()] == ["notes.txt"]
    else:
        assert not Path("run").exists()
        use(monkeypatch, whole)
        assert main(command) == 0


def test_a_start_file_that_has_changed_is_refused(
    folder: Path, cell: UnitCell, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    use(monkeypatch, solver(cell, stop_at=2))
    assert main([*CRYSTAL, "--start", "known.cif"]) == 0
    Path("known.cif").write_text(Path("known.cif").read_text() + "\n# another\n")
    assert read_crystal("known.cif").formula == "O3SrTi"
    assert main(["reconstruct", "scan.h5", "--method", "crystal", "--out", "run", "--resume"]) == 2
    assert "known.cif, the structure of this run, has changed" in capsys.readouterr().err


# the window's words


@pytest.mark.parametrize(
    "text", ["LiMnPO4", "NO", "No", "Y", "null", "1e5", "/a b/c: d.cif", "/Å 'x' \"y\"#\n.cif", "~", ""]
)
def test_text_comes_through_a_command_line(text: str) -> None:
    pytest.importorskip("qtpy")
    from napari_mepdiff._export import in_yaml

    assert "\n" not in in_yaml(text)
    assert parse_assignments([f"text={in_yaml(text)}"]) == {"text": text}
