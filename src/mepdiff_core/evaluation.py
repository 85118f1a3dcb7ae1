"""Methods x crystals, doses, thicknesses: simulate, reconstruct, compare; one table, one page, resumable at any point."""

from __future__ import annotations

import contextlib
import csv
import io
import secrets
from collections.abc import Callable, Container, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from mepdiff_core.cluster import ATTEMPTS, dask_client
from mepdiff_core.config import check, dump_yaml, merge, read_yaml, to_dict
from mepdiff_core.crystals import Axis
from mepdiff_core.evaluation_summary import METRICS
from mepdiff_core.evaluation_task import Case, Task, run_method, simulate_case
from mepdiff_core.files import make_folder, write_text
from mepdiff_core.reconstruction import METHODS, choose_device, method_config
from mepdiff_core.runs import sha256, versions
from mepdiff_core.simulate import SimulationConfig

KEY = ("crystal", "axis", "thickness_A", "dose_e_per_A2", "method")
TEXTS = ("crystal", "axis", "method", "failure_class", "error")
COLUMNS = (*KEY, *METRICS, "seconds", "network_calls", "failure_class", "error")
HELDOUT_FRACTION = 0.05
"""Every method leaves out the same patterns here, so that their held-out R-factors can be compared."""


@dataclass(frozen=True)
class EvaluationStep:
    """Progress: ``done`` of ``total`` runs, what goes on now, and the rows of ``results.csv`` so far."""

    done: int
    total: int
    message: str
    rows: tuple[Mapping[str, Any], ...] = ()


def find_cases(
    structures: str | Path,
    axes: Sequence[str],
    n: int | None,
    thicknesses_A: Sequence[float],
    doses_e_per_A2: Sequence[float | None],
) -> list[Case]:
    """Crystal files of a folder (or one file) by name, the first n of them, times axes, thicknesses and doses.

    Raises:
        InputError: no such folder, no CIF files in it, or an unknown axis.
    """
    structures = Path(structures)
    check(structures.exists(), f"{structures}: no such folder")
    files = sorted(structures.glob("*.cif")) if structures.is_dir() else [structures]
    check(len(files) > 0, f"{structures} has no CIF files (*.cif)")
    for axis in axes:
        check(axis in get_args(Axis), f"axis '{axis}' is not known; choose from a, b, c")
    cases = []
    for file in files[:n]:
        for axis in axes:
            for thickness in thicknesses_A:
                for dose in doses_e_per_A2:
                    name = f"{file.stem}_{axis}"
                    name += f"_{thickness:g}A" if len(thicknesses_A) > 1 else ""
                    name += f"_{'noiseless' if dose is None else f'{dose:g}'}" if len(doses_e_per_A2) > 1 else ""
                    cases.append(Case(file.resolve(), axis, thickness, dose, name))  # type: ignore[arg-type]
    return cases


def evaluate(
    structures: str | Path,
    methods: Sequence[str],
    out: str | Path,
    *,
    n: int | None = None,
    axes: Sequence[str] = ("c",),
    thicknesses_A: Sequence[float] = (),
    doses_e_per_A2: Sequence[float | None] = (),
    settings: Mapping[str, Any] | None = None,
    simulation: SimulationConfig | None = None,
    device: str = "auto",
    workers: int = 1,
    scheduler: str | None = None,
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Iterator[EvaluationStep]:
    """Simulate each crystal, reconstruct it with each method, write ``results.csv`` and ``report.html``.

    Args:
        structures: folder of CIF files; methods: names; n: number of crystals at most.
        out: evaluation folder; with ``resume`` an interrupted one: finished rows are kept, an interrupted run goes on. It
            may grow: methods, crystals and axes may be added to those that it has.
        thicknesses_A, doses_e_per_A2: of each crystal, all by all; by default those of the simulation. None: no noise.
        settings: method settings; those under a method's name go to that method, the others to all that have them.
        simulation: how to simulate; axis and seed are set for each crystal.
        workers: processes on this computer; 1 computes in this one.
        scheduler: address of a Dask scheduler, whose workers see the same files, instead.
        progress: called with a line for every state of a run in this process.

    Raises:
        InputError: bad input. A crystal or method that fails is a row with its reason instead.
    """
    for method in methods:
        check(method in METHODS, f"method '{method}' is not known; choose from {', '.join(METHODS)}")
    check(len(methods) > 0, "no methods; give at least one")
    check(workers >= 1, f"workers is {workers}; expected at least 1")
    methods = list(dict.fromkeys(methods))
    simulation = simulation or SimulationConfig(origin_A=None)
    thicknesses = list(dict.fromkeys(thicknesses_A)) or [simulation.thickness_A]
    doses = list(dict.fromkeys(doses_e_per_A2)) or [simulation.dose_e_per_A2]
    for thickness in thicknesses:
        replace(simulation, thickness_A=thickness)
    for dose in doses:
        replace(simulation, dose_e_per_A2=dose)
    cases = find_cases(structures, list(dict.fromkeys(axes)), n, thicknesses, doses)
    choose_device(device)
    per_method = {method: _settings_of(method, settings or {}) for method in methods}
    out = Path(out)
    request = {
        "structures": str(structures),
        "crystals": {case.path.stem: sha256(case.path) for case in cases},
        "simulation": to_dict(simulation),
        "thicknesses_A": thicknesses,
        "doses_e_per_A2": doses,
        "methods": {method: to_dict(method_config(method, values)) for method, values in per_method.items()},
        "versions": versions(),
    }
    with contextlib.ExitStack() as stack:
        distributed = workers > 1 or scheduler is not None
        client = stack.enter_context(dask_client(workers, scheduler)) if distributed else None
        order = {_key({**case.key, "method": m}): i for i, (case, m) in enumerate((c, m) for c in cases for m in methods)}
        rows = sorted(_open_folder(out, request, order, resume), key=lambda r: order[_key(r)])
        known = {_key(row) for row in rows}
        tasks = [Task(out.resolve(), case, simulation, per_method, device) for case in cases]
        missing: list[tuple[Task, list[str]]] = []
        for task in tasks:
            # what one method leaves to another comes first
            left = [m for m in sorted(methods, key="mepdiff".__eq__) if _key({**task.case.key, "method": m}) not in known]
            missing += [(task, left)] if left else []
        total = len(cases) * len(methods)
        loop = _here(missing, progress) if client is None else _elsewhere(client, out.resolve(), missing)
        with contextlib.closing(loop):
            for message, row in loop:
                if row is not None:
                    rows.append({name: row.get(name) for name in COLUMNS})
                    rows.sort(key=lambda r: order[_key(r)])
                    _write_results(out, rows)
                yield EvaluationStep(len(rows), total, message, tuple(rows))
    from mepdiff_core.evaluation_report import write_evaluation

    write_evaluation(out, cases, methods, rows, request)
    yield EvaluationStep(len(rows), total, "report written", tuple(rows))


Told = Generator[tuple[str, dict[str, Any] | None]]
"""What goes on, and a row where one has come to its end."""


def _here(missing: Sequence[tuple[Task, Sequence[str]]], progress: Callable[[str], None] | None) -> Told:
    for task, methods in missing:
        trouble = simulate_case(task, progress)
        for method in methods:
            yield f"{task.case.name}: {method}", None
            yield f"{task.case.name}: {method} done", run_method(task, method, trouble, progress=progress)


def _elsewhere(client: Any, out: Path, missing: Sequence[tuple[Task, Sequence[str]]]) -> Told:
    """The same by Dask's workers, which end their runs within a state when this loop is left."""
    from dask.distributed import KilledWorker, as_completed

    turn = secrets.token_hex(8)
    write_text(out / "turn", turn)
    about: dict[Any, tuple[Task, str]] = {}
    for task, methods in missing:
        task = replace(task, turn=turn)
        scan = client.submit(simulate_case, task, pure=False)
        rows: dict[str, Any] = {}
        for method in methods:
            before = [rows["crystal"]] if method == "mepdiff" and "crystal" in rows else []
            rows[method] = client.submit(run_method, task, method, scan, *before, pure=False)
            about[rows[method]] = task, method
    try:
        yield f"{len(about)} runs are with the scheduler", None
        for future in as_completed(about):
            task, method = about[future]
            try:
                row = future.result()
            except KilledWorker:
                row = {**task.case.key, "method": method, "network_calls": 0}
                row["error"] = (
                    f"{ATTEMPTS} workers died over it; give them more memory or take fewer, and go on with --resume"
                )
            yield f"{task.case.name}: {method} done", row
    finally:
        (out / "turn").unlink(missing_ok=True)
        with contextlib.suppress(Exception):  # a scheduler that is gone has nothing left to cancel
            client.cancel(list(about))


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in KEY)


def _settings_of(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """This method's part of the settings; one that no method here has is an error when its config is made."""
    fields = to_dict(METHODS[method].default)
    shared = {k: v for k, v in settings.items() if k not in METHODS}
    everywhere = {name for other in METHODS.values() for name in to_dict(other.default)}
    mine = {k: v for k, v in shared.items() if k in fields or k not in everywhere}
    own = settings.get(method, {})
    check(isinstance(own, Mapping), f"settings of method {method} must be names and values, got {own!r}")
    return merge(merge({"heldout_fraction": HELDOUT_FRACTION}, mine), own)


def _open_folder(
    out: Path, request: Mapping[str, Any], asked: Container[tuple[Any, ...]], resume: bool
) -> list[dict[str, Any]]:
    """A new folder, or the rows that are finished in an old one, all of which must be asked for again."""
    record = out / "evaluation.yaml"
    rows: list[dict[str, Any]] = []
    if resume:
        check(record.exists(), f"{out} holds no evaluation (no evaluation.yaml); leave out --resume to start one")
        old = read_yaml(record)
        for name in ("simulation", "thicknesses_A", "doses_e_per_A2"):
            _same(out, name, old.get(name), request[name])
        for name in ("crystals", "methods"):
            before = old.get(name) or {}
            _same(out, name, before, before | {k: v for k, v in request[name].items() if k in before})
        rows = [row for row in _read_results(out) if not row["error"]]  # what failed is tried again
        for row in rows:
            check(
                _key(row) in asked,
                f"the evaluation in {out} has {row['crystal']} along {row['axis']} by {row['method']};"
                " ask for that too, or take another folder",
            )
    else:
        make_folder(out)
        (out / "scans").mkdir()
        (out / "runs").mkdir()
    write_text(record, dump_yaml(request))
    return rows


def _same(out: Path, name: str, old: object, new: object) -> None:
    check(old == new, f"the evaluation in {out} has other {name}; use those, or another folder")


def _read_results(out: Path) -> list[dict[str, Any]]:
    results = out / "results.csv"
    if not results.exists():
        return []
    with results.open(newline="", encoding="utf-8") as file:
        return [_parse(row) for row in csv.DictReader(file)]


def _parse(row: Mapping[str, str]) -> dict[str, Any]:
    return {k: v if k in TEXTS else float(v) if v else None for k, v in row.items()} | {
        "network_calls": int(float(row["network_calls"] or 0))
    }


def _write_results(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    write_text(out / "results.csv", table.getvalue())
