"""The page of an evaluation: its tables, and pictures like the paper's Figures 9, 10 and 11."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core import figures
from mepdiff_core.evaluation_summary import (
    best_of,
    classes,
    condition_of,
    conditions,
    headline,
    in_common,
    in_words,
    interval,
    preferred,
    summarize,
)
from mepdiff_core.evaluation_task import Case
from mepdiff_core.metrics import FailureClass
from mepdiff_core.page import figure_block, metrics_table, save_figure, write_page
from mepdiff_core.report import judging_model, provenance
from mepdiff_core.scan import Scan, load_scan
from mepdiff_core.volume_files import read_volume

PATTERNS = 4
"""So many specimens' patterns are shown."""
EXAMPLES = 2
"""So many specimens of each outcome are shown."""
Volume = npt.NDArray[np.floating]


def write_evaluation(
    out: Path,
    cases: Sequence[Case],
    methods: Sequence[str],
    rows: Sequence[Mapping[str, Any]],
    request: Mapping[str, Any],
) -> None:
    """``report.html`` and its PNGs.

    Args:
        out: the evaluation's folder; rows: those of ``results.csv``; request: how it was computed.
    """
    several = len(conditions(rows)) > 1
    words = "".join(f"<p>{html.escape(line)}</p>" for line in headline(rows, methods).splitlines())
    sections = [("Methods", words + metrics_table(summarize(rows, methods), ["specimens", "method", "over"]))]
    if several:
        caption = (
            "By dose and thickness: mean over the specimens that all methods finished, and its bootstrap interval of 95 %."
        )
        png = save_figure(figures.sweep_figure(sweep(rows, methods)), out / "sweep.png")
        sections.append(("Dose and thickness", figure_block(png, caption)))
    outcomes = metrics_table(classes(rows, methods), ["specimens", "method", *get_args(FailureClass)])
    base, best = best_of(rows, methods)
    done = {case.name: [row for row in rows if _is(row, case) and not row["error"]] for case in cases}
    sections.append(("What became of them", outcomes + _examples(out, cases, best or base, done, several)))
    pictured = [case for case in cases if {base, best} - {None} <= {row["method"] for row in done[case.name]}]
    if pictured and (base or best):
        sections.append(("Diffraction patterns", _patterns(out, pictured, [m for m in (base, best) if m], several)))
    leading = ["crystal", "axis", "specimens", "method", "failure_class", "error"]
    sections.append(("Every specimen", metrics_table([_named(row, several) for row in rows], leading)))
    for case in cases:
        found = [m for m in methods if any(row["method"] == m for row in done[case.name])]
        if found:
            sections.append((_title(case, several), _case(out, case, found, preferred(done[case.name]))))
    lead = f"{_count(len(cases), 'specimen')}, {_count(len(methods), 'method')}."
    made = next((case for case in cases if done[case.name]), None)
    if made is not None:
        lead += provenance(load_scan(out / "scans" / f"{made.name}.h5"), rows)
    write_page(out / "report.html", "Methods × crystals", lead, sections, request)


def sweep(rows: Sequence[Mapping[str, Any]], methods: Sequence[str]) -> figures.Sweep:
    """SSIM of slices by thickness, method and dose: mean and interval."""
    found: figures.Sweep = {}
    for condition in conditions(rows):
        thickness, dose = condition
        here = [row for row in rows if condition_of(row) == condition]
        for method, mine in in_common(here, methods).items():
            values = [float(row["ssim_2d"]) for row in mine if row.get("ssim_2d") not in (None, "")]
            if values:
                low, high = interval(values)
                place = found.setdefault(method, [])
                place.append((float(thickness or 0), dose, float(np.mean(values)), low, high))
    return found


def _is(row: Mapping[str, Any], case: Case) -> bool:
    return all(row[name] == value for name, value in case.key.items())


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _named(row: Mapping[str, Any], several: bool) -> dict[str, Any]:
    return {**row, "specimens": in_words(condition_of(row)) if several else ""}


def _title(case: Case, several: bool) -> str:
    where = f", {in_words((case.thickness_A, case.dose_e_per_A2))}" if several else ""
    return f"{case.path.stem}, {case.axis}{where}"


def _read(out: Path, case: Case, method: str) -> tuple[Scan, Volume]:
    return load_scan(out / "scans" / f"{case.name}.h5"), read_volume(
        out / "runs" / f"{case.name}_{method}" / "volume.ome.tif"
    )


def _examples(
    out: Path, cases: Sequence[Case], method: str | None, done: Mapping[str, Sequence[Mapping[str, Any]]], several: bool
) -> str:
    """Specimens of every outcome of one method, reconstruction beside truth (the paper's Figures 9 and 10)."""
    shown: list[tuple[str, Volume, Volume]] = []
    depth = 0.0
    for outcome in get_args(FailureClass):
        of_class = [
            c for c in cases for row in done[c.name] if row["method"] == method and row.get("failure_class") == outcome
        ]
        for case in of_class[:EXAMPLES]:
            assert method is not None
            scan, volume = _read(out, case, method)
            assert scan.truth is not None
            depth = scan.truth.voxel_size_A[0]
            where = f"{in_words((case.thickness_A, case.dose_e_per_A2))}\n" if several else ""
            shown.append((f"{_title(case, False)}\n{where}{outcome}", volume, scan.truth.phase))
    if not shown:
        return ""
    png = save_figure(figures.outcomes_figure(shown, depth), out / "outcomes.png")
    return figure_block(png, f"{method}, at most {EXAMPLES} specimens of each outcome: truth above, reconstruction below.")


def _patterns(out: Path, cases: Sequence[Case], methods: Sequence[str], several: bool) -> str:
    """Measured beside predicted patterns of some specimens (the paper's Figure 11)."""
    picked = [cases[i] for i in np.unique(np.linspace(0, len(cases) - 1, min(PATTERNS, len(cases))).round().astype(int))]
    measured: list[Volume] = []
    predicted: dict[str, list[Volume]] = {method: [] for method in methods}
    step = 0.0
    for case in picked:
        for method in methods:
            scan, volume = _read(out, case, method)
            step, index = scan.k_step_invA, np.array([scan.n_patterns // 2 + scan.shape[1] // 2]) % scan.n_patterns
            assert scan.truth is not None
            model = judging_model(scan, volume, scan.truth.voxel_size_A[0], torch.device("cpu"))
            pattern = model.predict(torch.as_tensor(np.array(volume)), index).numpy()[0] * scan.electrons_per_pattern
            predicted[method].append(pattern)
        measured.append(scan.patterns_at(index)[0].astype(float))
    stacks = {method: np.stack(found) for method, found in predicted.items()}
    labels = [_title(case, several) for case in picked]
    png = save_figure(figures.patterns_figure(np.stack(measured), stacks, step, labels), out / "patterns.png")
    return figure_block(png, "One measured pattern of each specimen, and what the reconstructions predict for it.")


def _case(out: Path, case: Case, methods: Sequence[str], words: str) -> str:
    volumes = {method: _read(out, case, method)[1] for method in methods}
    scan = load_scan(out / "scans" / f"{case.name}.h5")
    assert scan.truth is not None
    truth, voxel = scan.truth.phase, scan.truth.voxel_size_A
    png = save_figure(figures.slices_figure(volumes, truth, voxel), out / f"slices_{case.name}.png")
    caption = f"{scan.info.get('formula')} along {case.axis}: slices from the entrance face (left) down, one grey scale."
    text = f"<p>{html.escape(words)}</p>{figure_block(png, caption)}"
    png = save_figure(figures.depth_figure(volumes, truth, voxel), out / f"depth_{case.name}.png")
    return text + figure_block(png, "Phase along the beam through atom columns.")
