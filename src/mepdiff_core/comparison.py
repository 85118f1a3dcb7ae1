"""Several runs on one scan, side by side: slices, depth profiles, patterns, losses, a table, and one page of it all."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mepdiff_core.config import check
from mepdiff_core.run_summary import RunSummary, comparable, read_summary, scan_of
from mepdiff_core.sections import PlacedVolume

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mepdiff_core.scan import Scan

POSITIONS = 4
"""Patterns that are shown, from the first to the last of the scan."""


@dataclass(frozen=True)
class Comparison:
    """Runs on one scan.

    Attributes:
        runs: by the name that pictures and tables give them.
        volumes: the same.
        scans: calibrated as each run was; empty where the scan's file is not found.
    """

    runs: dict[str, RunSummary]
    volumes: dict[str, PlacedVolume] = field(repr=False)
    scans: dict[str, Scan] = field(repr=False)

    @property
    def truth(self) -> PlacedVolume | None:
        """The true volume, where the scan knows it on the grid of the first run's."""
        name, first = next(iter(self.volumes.items()))
        truth = self.scans[name].truth if name in self.scans else None
        if truth is None or truth.phase.shape != first.phase.shape:
            return None
        known = np.allclose(truth.voxel_size_A, first.voxel_size_A, atol=1e-6)
        return PlacedVolume(truth.phase, first.voxel_size_A, first.origin_A) if known else None

    def rows(self) -> list[dict[str, Any]]:
        """Metrics of each run, under its name here as "method"."""
        return [{**run.row(), "method": name} for name, run in self.runs.items()]

    def verdict(self) -> str:
        """Which of them the patterns prefer that none has fitted, or why that cannot be said."""
        from mepdiff_core.evaluation_summary import preferred

        judged = {name: run for name, run in self.runs.items() if run.metrics.get("deviance_heldout") is not None}
        others = [name for name in self.runs if name not in judged]
        words = f"Without figures for held-out patterns: {', '.join(others)}." if others and len(self.runs) > 1 else ""
        if len(judged) < 2:
            return words
        if not comparable([*judged.values()]):
            return f"Held-out patterns cannot decide: the runs held out different ones (fraction or seed). {words}".strip()
        return f"{preferred([row for row in self.rows() if row['method'] in judged])} {words}".strip()

    def slices(self) -> Figure:
        """Slices by depth, one row a volume, the truth first (as in the paper's Figure 9)."""
        from mepdiff_core.figures import slices_figure

        truth, first = self.truth, next(iter(self.volumes.values()))
        phases = {name: placed.phase for name, placed in self.volumes.items()}
        return slices_figure(phases, None if truth is None else truth.phase, first.voxel_size_A)

    def depths(self) -> Figure | None:
        """Depth profiles through columns of the truth; None without a truth."""
        from mepdiff_core.figures import depth_figure

        truth = self.truth
        if truth is None:
            return None
        phases = {name: placed.phase for name, placed in self.volumes.items() if placed.phase.shape == truth.phase.shape}
        return depth_figure(phases, truth.phase, truth.voxel_size_A)

    def patterns(self) -> Figure:
        """Measured patterns beside those that each volume predicts (as in the paper's Figure 11).

        Raises:
            InputError: the scan's file was not found.
        """
        from mepdiff_core.figures import patterns_figure

        check(bool(self.scans), f"{self._input} was not found, so there are no patterns to show; load that scan first")
        scan = next(iter(self.scans.values()))
        indices = np.unique(np.linspace(0, scan.n_patterns - 1, POSITIONS + 2).round().astype(int)[1:-1])
        predicted = {name: self._predict(name, indices) for name in self.volumes}
        labels = [f"position {i // scan.shape[1]}, {i % scan.shape[1]}" for i in indices]
        return patterns_figure(scan.patterns_at(indices).astype(float), predicted, scan.k_step_invA, labels)

    def losses(self) -> Figure:
        """Loss and held-out misfit of each run by step."""
        from mepdiff_core.figures import losses_figure

        histories = {}
        for name, run in self.runs.items():
            with (run.path / "history.csv").open(newline="", encoding="utf-8") as file:
                histories[name] = list(csv.DictReader(file))
        return losses_figure(histories)

    def write_report(self, out: str | Path) -> Path:
        """Write ``report.html`` and its PNGs into a new folder; return the page's path.

        Raises:
            InputError: the folder is not empty, or cannot be written.
        """
        from mepdiff_core.files import make_folder
        from mepdiff_core.page import figure_block, metrics_table, save_figure, write_page

        empty = not Path(out).exists() or (Path(out).is_dir() and not any(Path(out).iterdir()))
        check(empty, f"{out} exists already and is not empty; give another name")
        folder = make_folder(out)
        sections = [("Metrics", f"<p>{self.verdict()}</p>" + metrics_table(self.rows(), ["method", "status"]))]
        pictures: list[tuple[str, str, Figure | None]] = [
            ("Slices", "Phase of slices from the entrance face (left) down, one grey scale.", self.slices()),
            ("Depth", "Phase along the beam through atom columns: what a reconstruction finds hardest.", self.depths()),
            (
                "Convergence",
                "Loss of the fitted patterns, and of those held out; each run's own kind of loss.",
                self.losses(),
            ),
        ]
        if self.scans:
            caption = "Measured and predicted patterns, square root of the electrons in a pixel."
            pictures.insert(2, ("Patterns", caption, self.patterns()))
        for heading, caption, figure in pictures:
            if figure is not None:
                png = save_figure(figure, folder / f"{heading.lower()}.png")
                sections.append((heading, figure_block(png, caption)))
        records = {name: dict(run.record) for name, run in self.runs.items()}
        write_page(folder / "report.html", f"{len(self.runs)} runs on {self._input}", self._lead(), sections, records)
        return folder / "report.html"

    @property
    def _input(self) -> str:
        return str(next(iter(self.runs.values())).record.get("input", "a scan"))

    def _lead(self) -> str:
        scan = next(iter(self.scans.values()), None)
        if scan is None:
            return "The scan's file was not found: no truth, no patterns."
        return f"{scan.shape[0]} × {scan.shape[1]} patterns of {scan.n_pixels} px."

    def _predict(self, name: str, indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, Any]:
        import torch

        from mepdiff_core.forward import ForwardModel

        scan, placed = self.scans[name], self.volumes[name]
        model = ForwardModel(scan, len(placed.phase), placed.voxel_size_A[0])
        found = model.predict(torch.as_tensor(np.array(placed.phase)), indices).cpu().numpy() * scan.electrons_per_pattern
        return np.asarray(found)


def compare(
    runs: Sequence[str | Path | RunSummary], scans: Sequence[str | Path] = (), names: Sequence[str] | None = None
) -> Comparison:
    """Lay runs on one scan side by side.

    Args:
        runs: run folders.
        scans: files that the scan may be, where it is not at the place on record any more; known by its sha256.
        names: what to call the runs; by default the method, or the folder's name where several have one method.

    Raises:
        InputError: no run, runs on different scans, or a run without a volume.
    """
    summaries = [run if isinstance(run, RunSummary) else read_summary(run) for run in runs]
    check(bool(summaries), "no run is given; give the folder of one or several")
    inputs = {run.record["input_sha256"]: str(run.record.get("input", "?")) for run in summaries}
    check(len(inputs) == 1, f"the runs are on different scans ({', '.join(inputs.values())}); choose those on one scan")
    methods = [run.method for run in summaries]
    called = names or [run.method if methods.count(run.method) == 1 else run.name for run in summaries]
    named = dict(zip(called, summaries, strict=True))
    check(len(named) == len(summaries), "two runs have one name and one method; rename one of the folders, or leave it out")
    candidates, found = [Path(path) for path in scans], {}
    known: dict[str, Scan | None] = {}
    for name, run in named.items():
        key = repr((run.record.get("calibration"), run.record.get("probe")))
        if key not in known:
            known[key] = scan_of(run, candidates)
        scan = known[key]
        if scan is not None:
            found[name] = scan
    scans_of_all = found if len(found) == len(named) else {}
    return Comparison(named, {name: run.volume() for name, run in named.items()}, scans_of_all)
