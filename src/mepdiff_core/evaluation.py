"""Methods x crystals: simulate, reconstruct, compare; one table, one page, resumable at any point."""

from __future__ import annotations

import csv
import io
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from mepdiff_core.config import check, dump_yaml, merge, read_yaml, to_dict
from mepdiff_core.crystals import Axis
from mepdiff_core.errors import InputError
from mepdiff_core.files import make_folder, write_text
from mepdiff_core.metrics import FailureClass
from mepdiff_core.reconstruction import METHODS, choose_device, method_config
from mepdiff_core.runs import Run, sha256, versions
from mepdiff_core.scan import load_scan, save_scan
from mepdiff_core.simulate import SimulationConfig, simulate_steps

METRICS = (
    *("ssim_2d", "ssim_3d", "ssim_atoms", "psnr_dB", "nrmse", "nrmse_atoms", "depth_correlation"),
    *("r_factor", "r_heldout", "deviance", "deviance_heldout", "deviance_own_heldout"),
)
COLUMNS = ("crystal", "axis", "method", *METRICS, "seconds", "network_calls", "failure_class", "error")
BASELINES = ("adam", "lbfgs", "adam-best")
HELDOUT_FRACTION = 0.05
"""Every method leaves out the same patterns here, so that their held-out R-factors can be compared."""


@dataclass(frozen=True)
class Case:
    """One crystal file along one axis."""

    path: Path
    axis: Axis

    @property
    def name(self) -> str:
        return f"{self.path.stem}_{self.axis}"

    @property
    def number(self) -> int:
        """A seed of its own, the same whatever other crystals are evaluated beside it."""
        return zlib.crc32(self.name.encode()) % 2**31


@dataclass(frozen=True)
class EvaluationStep:
    """Progress: ``done`` of ``total`` runs, what goes on now, and the rows of ``results.csv`` so far."""

    done: int
    total: int
    message: str
    rows: tuple[Mapping[str, Any], ...] = ()


def find_cases(structures: str | Path, axes: Sequence[str], n: int | None) -> list[Case]:
    """Crystal files of a folder (or one file) by name, the first n of them, times axes.

    Raises:
        InputError: no such folder, no CIF files in it, or an unknown axis.
    """
    structures = Path(structures)
    check(structures.exists(), f"{structures}: no such folder")
    files = sorted(structures.glob("*.cif")) if structures.is_dir() else [structures]
    check(len(files) > 0, f"{structures} has no CIF files (*.cif)")
    for axis in axes:
        check(axis in get_args(Axis), f"axis '{axis}' is not known; choose from a, b, c")
    return [Case(file, axis) for file in files[:n] for axis in axes]  # type: ignore[arg-type]


def evaluate(
    structures: str | Path,
    methods: Sequence[str],
    out: str | Path,
    *,
    n: int | None = None,
    axes: Sequence[str] = ("c",),
    settings: Mapping[str, Any] | None = None,
    simulation: SimulationConfig | None = None,
    device: str = "auto",
    resume: bool = False,
    progress: Callable[[str], None] | None = None,
) -> Iterator[EvaluationStep]:
    """Simulate each crystal, reconstruct it with each method, write ``results.csv`` and ``report.html``.

    Args:
        structures: folder of CIF files; methods: names; n: number of crystals at most.
        out: evaluation folder; with ``resume`` an interrupted one: finished rows are kept, an interrupted run goes on.
        settings: method settings; those under a method's name go to that method, the others to all that have them.
        simulation: how to simulate; axis and seed are set for each crystal.
        progress: called with a line for every state of a run.

    Raises:
        InputError: bad input. A crystal or method that fails is a row with its reason instead.
    """
    for method in methods:
        check(method in METHODS, f"method '{method}' is not known; choose from {', '.join(METHODS)}")
    check(len(methods) > 0, "no methods; give at least one")
    methods = list(dict.fromkeys(methods))
    cases = find_cases(structures, list(dict.fromkeys(axes)), n)
    choose_device(device)
    simulation = simulation or SimulationConfig(origin_A=None)
    per_method = {method: _settings_of(method, settings or {}) for method in methods}
    out = Path(out)
    request = {
        "structures": str(structures),
        "crystals": {case.path.stem: sha256(case.path) for case in cases},
        "simulation": to_dict(simulation),
        "methods": {method: to_dict(method_config(method, values)) for method, values in per_method.items()},
        "versions": versions(),
    }
    rows = _open_folder(out, request, resume)
    known = {(row["crystal"], row["axis"], row["method"]) for row in rows}
    total = len(cases) * len(methods)

    for case in cases:
        scan_path = out / "scans" / f"{case.name}.h5"
        for method in methods:
            key = (case.path.stem, case.axis, method)
            if key in known:
                continue
            row: dict[str, Any] = {
                "crystal": case.path.stem,
                "axis": case.axis,
                "method": method,
                "network_calls": 0,
                "error": "",
            }
            try:
                if not scan_path.exists():
                    config = replace(simulation, axis=case.axis, seed=simulation.seed + case.number)
                    for step in simulate_steps(case.path, config):
                        if step.scan is not None:
                            save_scan(step.scan, scan_path)
                        elif progress:
                            progress(f"{case.name}: simulating pattern {step.step} of {step.total}")
                yield EvaluationStep(len(rows), total, f"{case.name}: {method}")
                folder = out / "runs" / f"{case.name}_{method}"
                run = Run(scan_path, folder, method, per_method[method], device, resume=(folder / "run.yaml").exists())
                for state in run.states():
                    if progress:
                        progress(f"{case.name}: {method} step {state.step} of {state.total}, loss {state.loss:.5g}")
                row |= {k: v for k, v in run.metrics.items() if k in COLUMNS}
            except Exception as error:
                # one crystal's trouble, whatever it is, is its row and not the end of the others
                reason = " ".join(str(error).split())
                row["error"] = reason if isinstance(error, InputError) else f"{type(error).__name__}: {reason}"
            rows.append(row)
            _write_results(out, rows)
            yield EvaluationStep(len(rows), total, f"{case.name}: {method} done", tuple(rows))
    _write_summary(out, cases, methods, rows, request)
    yield EvaluationStep(len(rows), total, "report written", tuple(rows))


def _settings_of(method: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """This method's part of the settings; one that no method here has is an error when its config is made."""
    fields = to_dict(METHODS[method].default)
    shared = {k: v for k, v in settings.items() if k not in METHODS}
    everywhere = {name for other in METHODS.values() for name in to_dict(other.default)}
    mine = {k: v for k, v in shared.items() if k in fields or k not in everywhere}
    own = settings.get(method, {})
    check(isinstance(own, Mapping), f"settings of method {method} must be names and values, got {own!r}")
    return merge(merge({"heldout_fraction": HELDOUT_FRACTION}, mine), own)


def _open_folder(out: Path, request: Mapping[str, Any], resume: bool) -> list[dict[str, Any]]:
    record = out / "evaluation.yaml"
    if resume:
        check(record.exists(), f"{out} holds no evaluation (no evaluation.yaml); leave out --resume to start one")
        old = read_yaml(record)
        for name in ("crystals", "simulation", "methods"):
            check(
                old.get(name) == request[name],
                f"the evaluation in {out} has other {name}; use those, or another folder",
            )
        results = out / "results.csv"
        if not results.exists():
            return []
        with results.open(newline="", encoding="utf-8") as file:
            rows = [_parse(row) for row in csv.DictReader(file)]
        return [row for row in rows if not row["error"]]  # what failed is tried again
    make_folder(out)
    (out / "scans").mkdir()
    (out / "runs").mkdir()
    write_text(record, dump_yaml(request))
    return []


def _parse(row: Mapping[str, str]) -> dict[str, Any]:
    text = {"crystal", "axis", "method", "failure_class", "error"}
    return {k: v if k in text else float(v) if v else None for k, v in row.items()} | {
        "network_calls": int(float(row["network_calls"] or 0))
    }


def _write_results(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table = io.StringIO()
    writer = csv.DictWriter(table, COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    writer.writerows([{k: "" if v is None else v for k, v in row.items()} for row in rows])
    write_text(out / "results.csv", table.getvalue())


def in_common(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> dict[str, list[Mapping[str, Any]]]:
    """By method, its rows of the crystals that all methods finished, in the same order."""
    finished = {m: {(r["crystal"], r["axis"]): r for r in rows if r["method"] == m and not r["error"]} for m in methods}
    common = sorted(set.intersection(*map(set, finished.values()))) if finished else []
    return {method: [found[key] for key in common] for method, found in finished.items()}


def summarize(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and median of every metric for each method over the crystals that all methods finished."""
    numeric = (*METRICS, "seconds")
    summary = []
    for method, mine in in_common(rows, methods).items():
        for label, function in (("mean", np.mean), ("median", np.median)):
            values = {c: [float(r[c]) for r in mine if r.get(c) not in (None, "")] for c in numeric}
            summary.append(
                {
                    "method": method,
                    "over": f"{label} of {len(mine)}",
                    **{c: float(function(v)) for c, v in values.items() if v},
                }
            )
    return summary


def interval(values: Sequence[float], draws: int = 2000) -> tuple[float, float]:
    """2.5 and 97.5 % of the means of ``draws`` bootstrap samples, always the same ones.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    array = np.asarray(values, float)
    means = array[np.random.default_rng(0).integers(len(array), size=(draws, len(array)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def headline(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> str:
    """In words, what each method's mean SSIM is, and what the best gains over the best baseline; "" without any SSIM."""
    scores = {
        method: [float(r["ssim_2d"]) for r in mine]
        for method, mine in in_common(rows, methods).items()
        if mine and all(r.get("ssim_2d") not in (None, "") for r in mine)
    }
    if not scores:
        return ""
    means = {method: float(np.mean(values)) for method, values in scores.items()}
    count = len(next(iter(scores.values())))
    words = []
    for method, values in scores.items():
        low, high = interval(values)
        words.append(f"{method} {means[method]:.3f} ({low:.3f} to {high:.3f})")
    text = f"Mean SSIM of slices over {count} specimens, with bootstrap intervals of 95 %: {', '.join(words)}."
    baselines = {m: v for m, v in means.items() if m in BASELINES}
    others = {m: v for m, v in means.items() if m not in BASELINES}
    if baselines and others:
        base, best = max(baselines, key=baselines.__getitem__), max(others, key=others.__getitem__)
        ratios = np.array(scores[best]) - np.array(scores[base])
        low, high = interval(ratios.tolist())
        text += (
            f" {best} has {means[best] / means[base]:.2f} times the SSIM of the best baseline, {base}"
            f" ({100 * (means[best] / means[base] - 1):+.1f} %); the difference is {float(ratios.mean()):+.3f}"
            f" ({low:+.3f} to {high:+.3f})."
        )
    return text


def classes(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> list[dict[str, Any]]:
    """By method, how many of the crystals that all methods finished came out in which of the paper's classes."""
    table = []
    for method, mine in in_common(rows, methods).items():
        counts = Counter(str(r.get("failure_class") or "") for r in mine)
        table.append({"method": method, **{name: str(counts[name]) for name in get_args(FailureClass)}})
    return table


def preferred(rows: Sequence[Mapping[str, Any]]) -> str:
    """In words, which of several answers for one scan the patterns held out prefer; "" where they can't say.

    Each answer is judged by the better of two models: the common one of volumes, and the one that made it.
    """
    deviances = {
        r["method"]: min(float(r[name]) for name in ("deviance_heldout", "deviance_own_heldout") if r.get(name) is not None)
        for r in rows
        if r.get("deviance_heldout") is not None
    }
    if len(deviances) < 2:
        return ""
    (best, least), (second, next_) = sorted(deviances.items(), key=lambda item: item[1])[:2]
    words = f"The patterns held out prefer {best}: deviance {least:.4f} a pixel against {next_:.4f} of {second}."
    if best != "crystal" and "crystal" in deviances:
        words += f" The crystal solver's, {deviances['crystal']:.4f}, is above a baseline's: do not believe its atoms."
    return words


def _write_summary(
    out: Path, cases: Sequence[Case], methods: Sequence[str], rows: Sequence[Mapping[str, Any]], request: Mapping[str, Any]
) -> None:
    from mepdiff_core import figures
    from mepdiff_core.page import figure_block, metrics_table, save_figure, write_page
    from mepdiff_core.volume_files import read_volume

    outcomes = metrics_table(classes(rows, methods), ["method", *get_args(FailureClass)])
    sections = [
        ("Methods", f"<p>{headline(rows, methods)}</p>" + metrics_table(summarize(rows, methods), ["method", "over"])),
        ("What became of them", outcomes),
        ("Every crystal", metrics_table(rows, ["crystal", "axis", "method", "failure_class", "error"])),
    ]
    for case in cases:
        done = [
            m
            for m in methods
            if any(
                r["crystal"] == case.path.stem and r["axis"] == case.axis and r["method"] == m and not r["error"]
                for r in rows
            )
        ]
        if not done:
            continue
        scan = load_scan(out / "scans" / f"{case.name}.h5")
        volumes = {m: read_volume(out / "runs" / f"{case.name}_{m}" / "volume.ome.tif") for m in done}
        assert scan.truth is not None
        figure = figures.slices_figure(volumes, scan.truth.phase, scan.truth.voxel_size_A)
        png = save_figure(figure, out / f"slices_{case.name}.png")
        caption = f"{scan.info.get('formula')} along {case.axis}: slices from the entrance face (left) down, one grey scale."
        words = preferred([r for r in rows if (r["crystal"], r["axis"]) == (case.path.stem, case.axis) and not r["error"]])
        sections.append((f"{case.path.stem}, {case.axis}", f"<p>{words}</p>{figure_block(png, caption)}"))
    lead = (
        f"{len(cases)} specimens, {len(methods)} methods; simulated with abTEM at 0.1 Å, modelled at the detector's pixel."
    )
    write_page(out / "report.html", "Methods × crystals", lead, sections, request)
