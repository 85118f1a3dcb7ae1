"""Evaluations over doses and thicknesses, by workers elsewhere, and a crystal that is solved once."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from mepdiff_core import candidates, reconstruction
from mepdiff_core.cli import main
from mepdiff_core.errors import InputError
from mepdiff_core.evaluation import evaluate, find_cases
from mepdiff_core.evaluation_task import ANSWER, Superseded, Task, run_method, simulate_case
from mepdiff_core.scan import Scan, load_scan
from mepdiff_core.simulate import SimulationConfig
from mepdiff_core.states import CrystalState

Capture = pytest.CaptureFixture[str]
CRYSTAL = (resources.files("mepdiff_core") / "data" / "SrTiO3.cif").read_text()
QUICK = {"engine": "fast", "iterations": 2, "patience": None}
TINY: dict[str, Any] = {"origin_A": None, "scan_shape": (2, 3), "detector_pixels": 64, "thickness_A": 3.2}


@pytest.fixture
def structures(tmp_path: Path) -> Path:
    folder = tmp_path / "cifs"
    folder.mkdir()
    (folder / "one.cif").write_text(CRYSTAL)
    (folder / "two.cif").write_text(CRYSTAL.replace("3.905", "4.1"))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    with (path / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_dose_and_thickness_is_a_row(structures: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "sweep"
    (tmp_path / "small.yaml").write_text("scan_shape: [2, 3]\ndetector_pixels: 64\n")
    options = ["--structures", str(structures), "--out", str(out), "--simulation", str(tmp_path / "small.yaml"), "--n", "1"]
    options += ["--set", "engine=fast", "--steps", "2", "--dose", "1e5,none", "--thickness", "3.2,6.4"]
    assert main(["evaluate", *options, "--methods", "adam,adam-best"]) == 0
    rows = table(out)
    seen = [(float(r["thickness_A"]), r["dose_e_per_A2"] and float(r["dose_e_per_A2"]), r["method"]) for r in rows]
    assert seen == [(t, d, m) for t in (3.2, 6.4) for d in (1e5, "") for m in ("adam", "adam-best")]
    assert {r["error"] for r in rows} == {""}
    scans = {path.stem: load_scan(path) for path in (out / "scans").iterdir()}
    thin, thick = scans["one_c_3.2A_100000"], scans["one_c_6.4A_noiseless"]
    assert (thin.thickness_A, thick.thickness_A) == (3.2, 6.4)
    assert thin.electrons_per_pattern == pytest.approx(1e5 * 0.512**2)
    assert thick.electrons_per_pattern == 1.0
    assert {s.info["simulation"]["origin_A"][0] for s in scans.values()} == {thin.info["simulation"]["origin_A"][0]}
    shown = capsys.readouterr().out
    assert "3.2 Å, no noise: SSIM of slices of 1 specimen" in shown
    assert (out / "sweep.png").exists()
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "Dose and thickness" in page
    assert "6.4 Å, 1e+05 e/Å²" in page

    assert main(["evaluate", *options, "--methods", "adam,adam-best", "--resume", "--dose", "1e5"]) == 2
    assert "has other doses_e_per_A2" in capsys.readouterr().err
    for option, text, words in (
        ("--dose", "1e5,many", "--dose is '1e5,many'; expected numbers with commas between them"),
        ("--dose", "-3", "dose_e_per_A2 is -3.0; expected > 0"),
        ("--thickness", "3", "thickness_A 3 is not a whole number of slices"),
        ("--thickness", "none", "--thickness is 'none'; expected numbers"),
    ):
        assert main(["evaluate", *options[:2], "--out", str(tmp_path / "no"), f"{option}={text}"]) == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "no").exists()


def test_an_evaluation_grows(structures: Path, tmp_path: Path) -> None:
    """Methods, crystals and axes are added and nothing is done twice; less, or other settings, are refused."""
    out = tmp_path / "ev"

    def ask(methods: list[str], axes: str, n: int, **settings: Any) -> list[dict[str, str]]:
        simulation = SimulationConfig(**TINY)
        request: dict[str, Any] = {"axes": axes, "n": n, "settings": QUICK | settings, "simulation": simulation}
        list(evaluate(structures, methods, out, resume=out.exists(), **request))
        return table(out)

    (first,) = ask(["adam"], "a", 1)
    grown = ask(["adam-best", "adam"], "ca", 2)
    assert [(r["crystal"], r["axis"], r["method"]) for r in grown] == [
        (crystal, axis, method) for crystal in ("one", "two") for axis in "ca" for method in ("adam-best", "adam")
    ]
    assert first in grown  # its seconds too
    assert {r["error"] for r in grown} == {""}
    for change, words in (
        (lambda: ask(["adam"], "ca", 2), "has one along c by adam-best; ask for that too, or take another folder"),
        (lambda: ask(["adam-best", "adam"], "a", 2), "has one along c by adam-best; ask for that too"),
        (lambda: ask(["adam-best", "adam"], "ca", 1), "has two along c by adam-best; ask for that too"),
        (lambda: ask(["adam-best", "adam"], "ca", 2, iterations=3), "has other methods; use those, or another folder"),
    ):
        with pytest.raises(InputError, match=words):
            change()
        assert table(out) == grown
    (structures / "one.cif").write_text(CRYSTAL.replace("3.905", "3.9"))
    with pytest.raises(InputError, match="has other crystals; use those, or another folder"):
        ask(["adam-best", "adam"], "ca", 2)


def test_workers_elsewhere_give_the_same_table(structures: Path, tmp_path: Path, capsys: Capture) -> None:
    """One method fails on every crystal: a row with its reason; interrupted, the rest is done and nothing twice."""
    from dask.distributed import LocalCluster

    (structures / "three.cif").write_text("no crystal")
    request: dict[str, Any] = {
        "settings": {**QUICK, "dps": {"prior": "no.safetensors"}},
        "simulation": SimulationConfig(**TINY),
    }
    methods = ["adam", "dps"]
    here, there = tmp_path / "here", tmp_path / "there"
    list(evaluate(structures, methods, here, **request))
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address="127.0.0.1:0", silence_logs=50) as cluster:
        request["scheduler"] = cluster.scheduler_address
        loop = evaluate(structures, methods, there, **request)
        for step in loop:
            if step.rows:
                break
        assert (there / "turn").exists()
        loop.close()  # type: ignore[attr-defined]
        assert not (there / "turn").exists()
        kept = table(there)
        assert len(kept) == 1
        *_, last = evaluate(structures, methods, there, resume=True, **request)
    rows = table(there)
    assert len(rows) == len(last.rows) == 6
    for one, other in zip(table(here), rows, strict=True):
        assert one | {"seconds": ""} == other | {"seconds": ""}
    assert {r["error"] for r in rows if r["method"] == "dps" and r["crystal"] != "three"} == {"no.safetensors: no such file"}
    assert all("three.cif" in r["error"] for r in rows if r["crystal"] == "three")
    if not kept[0]["error"]:
        assert kept[0] in rows
    assert (there / "report.html").exists()
    options = ["--structures", str(structures), "--out", str(tmp_path / "no"), "--scheduler", "tcp://127.0.0.1:9"]
    assert main(["evaluate", *options]) == 2
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_a_task_that_is_not_wanted_any_more_ends_within_a_state(structures: Path, tmp_path: Path) -> None:
    for name in ("scans", "runs"):
        (tmp_path / name).mkdir()
    (case,) = find_cases(structures / "one.cif", ["c"], None, [3.2], [1e6])
    task = Task(tmp_path, case, SimulationConfig(**TINY), {"adam": QUICK | {"iterations": 50}}, "cpu", "mine")
    with pytest.raises(Superseded):
        simulate_case(task)
    (tmp_path / "turn").write_text("mine")
    assert simulate_case(task) == ""

    def stop(message: str) -> None:
        if "step 3" in message:
            (tmp_path / "turn").write_text("another's")

    with pytest.raises(Superseded):
        run_method(task, "adam", "", progress=stop)
    record = yaml.safe_load((task.run("adam") / "run.yaml").read_text())
    assert record["status"] == "stopped"
    (tmp_path / "turn").write_text("mine")
    seen: list[str] = []
    row = run_method(task, "adam", "", progress=seen.append)
    assert row["error"] == ""
    assert "step 5 of 50" in seen[0]  # the fourth was its last


@pytest.mark.parametrize("same", [True, False])
def test_a_crystal_is_solved_once(same: bool, structures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the solver, which takes minutes: the truth, explained. mepdiff's answer and seconds are the solver's."""
    asked: list[int] = []

    def run_crystal(scan: Scan, config: Any, *rest: Any) -> Iterator[CrystalState]:
        asked.append(config.rounds)
        assert scan.truth is not None
        for step in (1, 2):
            yield CrystalState(
                step=step,
                total=2,
                volume=np.array(scan.truth.phase),
                volume_step=step,
                loss=1.0,
                heldout=900.0,
                seconds=40.0 * step,
                stage="posterior",
                explained=step == 2,
                verdict="All is well." if step == 2 else "",
            )

    monkeypatch.setattr(candidates, "run_crystal", run_crystal)
    solver = reconstruction.METHODS["crystal"]
    monkeypatch.setitem(
        reconstruction.METHODS,
        "crystal",
        reconstruction.Method(solver.summary, solver.default, lambda *a, **k: run_crystal(*a)),
    )
    settings: dict[str, Any] = {} if same else {"crystal": {"rounds": 2}}
    *_, step = evaluate(
        structures / "one.cif",
        ["mepdiff", "crystal"],
        tmp_path / "ev",
        settings=settings,
        simulation=SimulationConfig(**TINY),
    )
    assert asked == ([3] if same else [2, 3])
    assert (tmp_path / "ev" / "runs" / "one_c_crystal" / ANSWER).exists()
    mepdiff, crystal = step.rows
    assert (mepdiff["method"], crystal["method"]) == ("mepdiff", "crystal")
    for name in ("ssim_2d", "seconds", "deviance_own_heldout", "error", "failure_class"):
        assert mepdiff[name] == crystal[name]
    assert mepdiff["seconds"] == 80.0
    assert mepdiff["failure_class"] == "near perfect"
    record = yaml.safe_load((tmp_path / "ev" / "runs" / "one_c_mepdiff" / "run.yaml").read_text())
    assert record["verdict"] == "All is well."
    assert ("solved" in record) is same
