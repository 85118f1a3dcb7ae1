"""The dock "Results": runs of this window and from disk, in a table; their volumes side by side, cut, and taken along."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from napari.utils.notifications import show_info, show_warning
from qtpy.QtCore import QItemSelectionModel, Qt
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QFileDialog,
    QGridLayout,
    QHeaderView,
    QPushButton,
    QTableWidget,
    QTableWidgetItem,
)

from mepdiff_core.comparison import Comparison, compare
from mepdiff_core.config import check
from mepdiff_core.ensemble import Ensemble, read_ensemble
from mepdiff_core.errors import InputError, explain
from mepdiff_core.page import COLUMNS, format_value, save_figure
from mepdiff_core.run_summary import RunSummary, find_runs, read_summary
from mepdiff_core.sections import PlacedVolume
from napari_mepdiff._dialogs import ask_save
from napari_mepdiff._dock import Dock, button, heading, notify, words
from napari_mepdiff._ensemble import LAYERS, show_ensemble
from napari_mepdiff._preferences import last_folder, remember_folder
from napari_mepdiff._profiles import TRUTH, Profiles
from napari_mepdiff._pump import Answerer
from napari_mepdiff._script_window import ScriptWindow, comparing_script
from napari_mepdiff._session import session_of
from napari_mepdiff._side_by_side import RunLayers

TEXTS = ("method", "status", "run")
NUMBERS = (
    *("deviance_heldout", "ssim_2d", "depth_correlation", "r_heldout", "r_factor", "deviance", "deviance_own_heldout"),
    *("ssim_3d", "ssim_atoms", "psnr_dB", "nrmse", "steps"),
)
SHOWN = ("method", "deviance_heldout", "ssim_2d", "depth_correlation", "seconds", "status", *NUMBERS[3:], "run")
"""Columns of the table, so that those seen without scrolling tell which run to believe."""
SHORT = {"deviance_heldout": "held out", "ssim_2d": "SSIM", "depth_correlation": "depth", "r_heldout": "R held out"}
BETTER = {"ssim_2d", "ssim_3d", "ssim_atoms", "psnr_dB", "depth_correlation"}
TABLE_HEIGHT = 190

Question = tuple[Callable[[], Any], Callable[[Any], None]]
"""What to do in the thread, and then in the window with what came out."""


class Results(Dock):
    """Compare runs.

    Args:
        napari_viewer: gets the volumes as layers.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self.layers = RunLayers(napari_viewer)
        self.layers.ended.connect(self._together)
        self.runs: dict[Path, RunSummary] = {}

        grid = QGridLayout()
        grid.setSpacing(4)
        self.open_button = button("Open runs…", "A run folder, or a folder that several are in.", self._open)
        self.forget_button = button("Take off the list", "Nothing is deleted.", self.forget)
        grid.addWidget(self.open_button, 0, 0)
        grid.addWidget(self.forget_button, 0, 1)
        self.column.addLayout(grid)
        self.table = QTableWidget(0, len(SHOWN))
        self.table.setHorizontalHeaderLabels([SHORT.get(name) or COLUMNS.get(name, (name,))[0] for name in SHOWN])
        for number, name in enumerate(SHOWN):
            header = self.table.horizontalHeaderItem(number)
            if header is not None:
                header.setToolTip(_meaning(name))
        self.table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        self.table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        self.table.verticalHeader().hide()
        self.table.horizontalHeader().setSectionResizeMode(QHeaderView.ResizeMode.ResizeToContents)
        self.table.setSortingEnabled(True)
        self.table.sortByColumn(-1, Qt.SortOrder.AscendingOrder)
        self.table.setFixedHeight(TABLE_HEIGHT)
        self.table.itemSelectionChanged.connect(self._chosen_changed)
        self.table.doubleClicked.connect(lambda *_: self.open_layers())
        self.column.addWidget(self.table)
        self.verdict = words()
        self.column.addWidget(self.verdict)

        self.column.addWidget(heading("Look"))
        grid = QGridLayout()
        grid.setSpacing(4)
        self.with_truth = QCheckBox("with the truth, where it is known")
        self.with_truth.setChecked(True)
        self.with_truth.setToolTip("<qt>Show the true volume of a simulated scan beside and among the chosen ones.</qt>")
        self.with_truth.clicked.connect(lambda *_: self._chosen_changed())
        self.column.addWidget(self.with_truth)
        self.entries: dict[str, QPushButton] = {}
        entries = [
            ("Open as layers", "The chosen runs' volumes, in Å.", self.open_layers),
            ("Side by side", "A view for each chosen volume: one camera, one slice, one contrast.", self.side_by_side),
            ("Difference", "The first chosen volume less the second, or less the truth.", self.difference),
            ("Samples", "Mean, spread and each sample of a run that drew several, the best explained first.", self.samples),
        ]
        self._lay(grid, entries)
        self.entries["Side by side"].setCheckable(True)
        self.column.addLayout(grid)
        self.column.addWidget(heading("Depth profile"))
        self.profiles = Profiles(napari_viewer, self.layers)
        self.column.addWidget(self.profiles)

        self.column.addWidget(heading("Take it along"))
        grid = QGridLayout()
        grid.setSpacing(4)
        taking: list[tuple[str, str, Callable[[], object]]] = [
            ("Slices…", "A picture: slices by depth, one row a volume.", lambda: self._picture("slices")),
            ("Patterns…", "A picture: measured patterns and those the volumes predict.", lambda: self._picture("patterns")),
            ("Report…", "A folder with one page on all chosen runs, and its pictures.", self._report),
            ("Open in a script", "A Python script that does this comparison.", self.script),
        ]
        self._lay(grid, taking)
        self.column.addLayout(grid)
        self.column.addStretch(1)

        self._worker: Answerer[Question] = Answerer(_work, self)
        self._worker.answered.connect(self._done)
        self._worker.failed.connect(self._failed)
        self._looker: Answerer[tuple[list[RunSummary], list[Path], list[str]]] = Answerer(_look, self)
        self._looker.answered.connect(self._have_looked)
        self._looker.failed.connect(self._cannot_compare)
        self.session.runs_changed.connect(self._session_changed)
        self._session_changed()

    def _lay(self, grid: QGridLayout, entries: Sequence[tuple[str, str, Callable[[], object]]]) -> None:
        for number, (name, tip, press) in enumerate(entries):
            self.entries[name] = button(name, tip, press)
            grid.addWidget(self.entries[name], number // 2, number % 2)

    # the list

    def open(self, folder: Path) -> None:
        """Put the runs of a folder on the list."""
        try:
            found, refused = find_runs(folder)
        except InputError as error:
            notify(error)
            return
        for line in refused:
            show_warning(line)
        self._add(found)
        remember_folder(folder.parent)

    def forget(self) -> None:
        """Take the chosen runs off the list; files and layers stay."""
        for run in self.chosen():
            del self.runs[run.path]
        self._fill()

    def chosen(self) -> list[RunSummary]:
        """The runs that are selected, from above."""
        return [self.runs[path] for path in self._chosen_paths() if path in self.runs]

    def choose(self, paths: list[Path]) -> None:
        """Select the runs of these folders."""
        self.table.clearSelection()
        model, flags = self.table.selectionModel(), QItemSelectionModel.SelectionFlag
        for row in range(self.table.rowCount()):
            if self.table.item(row, 0).data(Qt.ItemDataRole.UserRole) in paths:
                model.select(self.table.model().index(row, 0), flags.Select | flags.Rows)

    def _open(self) -> None:
        folder = QFileDialog.getExistingDirectory(self, "A run folder, or a folder of runs", str(last_folder()))
        if folder:
            self.open(Path(folder))

    def _session_changed(self) -> None:
        found = []
        for folder in self.session.runs:
            if (folder / "run.yaml").exists():  # not before the run has made its folder
                try:
                    found.append(read_summary(folder))
                except InputError as error:
                    notify(error)
        self._add(found)

    def _add(self, found: list[RunSummary]) -> None:
        self.runs |= {run.path: run for run in found}
        self._fill()

    def _chosen_paths(self) -> list[Path]:
        rows = sorted({index.row() for index in self.table.selectedIndexes()})
        return [self.table.item(row, 0).data(Qt.ItemDataRole.UserRole) for row in rows]

    def _fill(self) -> None:
        chosen = self._chosen_paths()
        self.table.blockSignals(True)
        self.table.setSortingEnabled(False)
        self.table.setRowCount(len(self.runs))
        for row, run in enumerate(self.runs.values()):
            values = run.row() | {"method": self.session.names.get(run.path, run.method)}
            for column, name in enumerate(SHOWN):
                item = _Cell(name, values.get(name), run.name)
                item.setData(Qt.ItemDataRole.UserRole, run.path)
                self.table.setItem(row, column, item)
        for column, name in enumerate(SHOWN):
            missing = all(run.row().get(name) is None for run in self.runs.values())
            self.table.setColumnHidden(column, missing)
        self.table.setSortingEnabled(True)
        self.choose(chosen)
        self.table.blockSignals(False)
        self._chosen_changed()

    def _chosen_changed(self) -> None:
        runs = self.chosen()
        if not self.runs:
            self.verdict.setText("No runs yet: reconstruct a scan, or open run folders.")
        elif not runs:
            self.verdict.setText("Choose runs in the table; Ctrl and Shift choose several. A heading sorts.")
        else:
            self._looker.ask((runs, list(self.session.scans), [self._called(run) for run in runs]))
        self._update_buttons()

    def _update_buttons(self) -> None:
        some = bool(self.chosen())
        for name, entry in self.entries.items():
            together = name == "Side by side" and self.layers.side_by_side
            entry.setEnabled(together or (some and not self._worker.busy))
        self.forget_button.setEnabled(some)

    def _have_looked(self, question: Any, answer: tuple[Comparison, PlacedVolume | None, str]) -> None:
        comparison, truth, verdict = answer
        self.verdict.setText(verdict or "Choose a second run to compare.")
        volumes = {TRUTH: truth} if truth is not None and self.with_truth.isChecked() else {}
        self.profiles.show_volumes(volumes | comparison.volumes)

    def _cannot_compare(self, error: Exception) -> None:
        line = explain(error)
        if line is None:
            notify(error)
            return
        self.verdict.setText(f"{line[:1].upper()}{line[1:]}.")
        self.profiles.show_volumes({})

    # looking

    def open_layers(self) -> None:
        """The chosen volumes as layers."""
        runs = self.chosen()
        self._ask(lambda: [(run, run.volume()) for run in runs], self._show_layers)

    def _called(self, run: RunSummary) -> str:
        """As in Reconstruct; else by its method, or by its folder where several on the list have one method."""
        if run.path in self.session.names:
            return self.session.names[run.path]
        taken = [self.session.names.get(each.path, each.method) for each in self.runs.values()]
        return run.method if taken.count(run.method) == 1 else run.name

    def side_by_side(self) -> None:
        """The chosen volumes in views of their own, or all in one view again."""
        self.entries["Side by side"].setChecked(self.layers.side_by_side)  # a click has changed it already
        if self.layers.side_by_side:
            self.layers.show_together()
        else:
            self._compare(lambda c: (c, c.truth), lambda answer: self._show_side_by_side(*answer))

    def _together(self) -> None:
        self.entries["Side by side"].setChecked(False)
        self._update_buttons()

    def difference(self) -> None:
        """The first chosen volume less the second, or less the truth."""
        self._compare(_difference, lambda answer: self.layers.difference(*answer))

    def samples(self) -> None:
        """Mean, spread and samples of the chosen runs as layers."""
        runs, scans = self.chosen(), list(self.session.scans)
        self._ask(lambda: [(run, read_ensemble(run, scans)) for run in runs], self._show_samples)

    def _show_samples(self, answer: list[tuple[RunSummary, Ensemble]]) -> None:
        for run, ensemble in answer:
            show_ensemble(self._viewer, layer_name(run, self._called(run)), ensemble, run.record)
            self.verdict.setText(f"{LAYERS} {ensemble.words}")

    def _show_layers(self, answer: list[tuple[RunSummary, PlacedVolume]]) -> None:
        for run, placed in answer:
            self.layers.run(run.path, layer_name(run, self._called(run)), placed)

    def _show_side_by_side(self, comparison: Comparison, truth: PlacedVolume | None) -> None:
        runs, volumes = comparison.runs, comparison.volumes
        layers = [self.layers.run(run.path, layer_name(run, name), volumes[name], False) for name, run in runs.items()]
        if truth is not None and self.with_truth.isChecked():
            layers.insert(0, self.layers.truth(layer_name(next(iter(runs.values())), TRUTH), truth))
        if len(layers) < 2:
            layers[0].visible = True
            show_info("Choose two runs or more to see them side by side.")
            return
        self.layers.show_side_by_side(layers)
        self.entries["Side by side"].setChecked(True)

    # taking it along

    def _picture(self, kind: str) -> None:
        path = ask_save(self, f"Save {kind}", f"{kind}.png", "PNG (*.png)")
        if path:
            self.save_picture(kind, path)

    def save_picture(self, kind: str, path: Path) -> None:
        """Write "slices" or "patterns" of the chosen runs as a PNG."""
        self._compare(lambda comparison: save_figure(getattr(comparison, kind)(), path), lambda _: self._saved(path))

    def _report(self) -> None:
        path = ask_save(self, "A new folder for the report", "comparison")
        if path:
            self.save_report(path)

    def save_report(self, path: Path) -> None:
        """Write a page on the chosen runs into a new folder."""
        self._compare(lambda comparison: comparison.write_report(path), self._saved)

    def _saved(self, path: Path) -> None:
        remember_folder(path.parent)
        show_info(f"Saved to {path}.")

    def script(self) -> ScriptWindow:
        """Show a script that compares the chosen runs."""
        text = comparing_script([run.path for run in self.chosen()], self.session.scans)
        window = ScriptWindow(text, "Compare runs", self)
        window.show()
        return window

    # in a thread

    def _compare(self, work: Callable[[Comparison], Any], then: Callable[[Any], None]) -> None:
        """Do something with the comparison of the chosen runs, and then something in the window."""
        runs, scans = self.chosen(), list(self.session.scans)
        names = [self._called(run) for run in runs]
        self._ask(lambda: work(compare(runs, scans, names)), then)

    def _ask(self, work: Callable[[], Any], then: Callable[[Any], None]) -> None:
        if not self._worker.busy:
            self._worker.ask((work, then))
            self._update_buttons()

    def _done(self, question: Question, answer: Any) -> None:
        self._update_buttons()
        question[1](answer)

    def _failed(self, error: Exception) -> None:
        self._update_buttons()
        notify(error)


class _Cell(QTableWidgetItem):
    """A value that sorts as what it is: numbers by size, what is missing last."""

    def __init__(self, name: str, value: Any, run: str) -> None:
        self._value = value if name in TEXTS else None if value is None else float(value)
        super().__init__(format_value(name, self._value))
        self.setToolTip(run)
        if name not in TEXTS:
            self.setTextAlignment(Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter)

    def __lt__(self, other: QTableWidgetItem) -> bool:
        mine, others = self._value, getattr(other, "_value", None)
        if mine is None or others is None:
            return mine is not None
        return bool(mine < others)


def _meaning(name: str) -> str:
    if name == "deviance_heldout":
        return "Poisson deviance a pixel of patterns that were never fitted; less is better, and no truth is needed."
    if name in TEXTS or name in ("steps", "seconds"):
        return {"run": "The run's folder.", "seconds": "Time spent in the loop."}.get(name, name)
    return f"{COLUMNS[name][0]}; {'more' if name in BETTER else 'less'} is better."


def layer_name(run: RunSummary, name: str) -> str:
    """What the layer of a run's volume is called, as Reconstruct calls it."""
    return f"{Path(str(run.record.get('input', 'scan'))).stem}: {name}"


def _difference(comparison: Comparison) -> tuple[str, PlacedVolume]:
    volumes = dict(comparison.volumes)
    if len(volumes) == 1 and comparison.truth is not None:
        volumes[TRUTH] = comparison.truth
    check(len(volumes) == 2, f"difference of {len(volumes)} volumes; choose two runs, or one whose truth is known")
    (name, one), (other, two) = volumes.items()
    return f"{name} less {other}", one.less(two)


def _work(question: Question) -> Any:
    return question[0]()


def _look(question: tuple[list[RunSummary], list[Path], list[str]]) -> tuple[Comparison, PlacedVolume | None, str]:
    comparison = compare(*question)
    return comparison, comparison.truth, comparison.verdict()
