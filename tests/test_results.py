"""The dock Results, driven as a person does: open, sort, choose, look, cut, export."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from napari.utils.notifications import Notification, notification_manager
from napari.utils.theme import get_theme
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QPushButton

from mepdiff_core.run_summary import read_summary
from mepdiff_core.runs import Run
from mepdiff_core.scan import Scan
from mepdiff_core.sections import PlacedVolume
from mepdiff_core.volume_files import write_volume
from napari_mepdiff import _preferences
from napari_mepdiff._all_steps import open_all_steps
from napari_mepdiff._preferences import preferences
from napari_mepdiff._profiles import LINE_LAYER, TRUTH
from napari_mepdiff._results import SHOWN, Results
from napari_mepdiff._script_window import ScriptWindow
from napari_mepdiff._side_by_side import RunLayers


@pytest.fixture(scope="module")
def runs(small_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three runs on one scan, in a folder."""
    folder = tmp_path_factory.mktemp("runs")
    for name, method, steps in (("few", "adam-best", 2), ("more", "adam-best", 12), ("plain", "adam", 3)):
        list(Run(small_file, folder / name, method, {"engine": "fast", "iterations": steps}, "cpu").states())
    return folder


@dataclass
class Window:
    """A viewer with the dock."""

    viewer: Any
    results: Results
    bot: Any
    said: list[Notification]

    def press(self, button: QPushButton) -> None:
        assert button.isEnabled(), button.toolTip()
        self.bot.mouseClick(button, Qt.MouseButton.LeftButton)

    def do(self, name: str) -> None:
        self.press(self.results.entries[name])
        self.settle()

    def choose(self, *paths: Path) -> None:
        self.results.choose([*paths])
        self.settle()

    def settle(self) -> None:
        for answerer in (self.results._looker, self.results._worker):
            self.bot.waitUntil(lambda answerer=answerer: not answerer._timer.isActive(), timeout=30000)

    def layer(self, name: str) -> Any:
        return next((each for each in self.viewer.layers if each.name == name), None)

    def column(self, name: str) -> list[str]:
        table = self.results.table
        return [table.item(row, SHOWN.index(name)).text() for row in range(table.rowCount())]


@pytest.fixture
def window(make_napari_viewer_proxy: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Window]:
    monkeypatch.setattr(_preferences, "_forms_path", lambda: tmp_path / "forms.yaml")
    before = preferences().last_folder
    said: list[Notification] = []
    notification_manager.notification_ready.connect(said.append)
    viewer = make_napari_viewer_proxy()
    results = open_all_steps(viewer)[3]
    results.parent().raise_()
    yield Window(viewer, results, qtbot, said)
    notification_manager.notification_ready.disconnect(said.append)
    preferences().last_folder = before


def test_runs_are_listed_with_their_metrics_and_sort_as_numbers(window: Window, runs: Path) -> None:
    window.results.open(runs)
    assert sorted(window.column("run")) == ["few", "more", "plain"]
    window.results.table.sortByColumn(SHOWN.index("seconds"), Qt.SortOrder.DescendingOrder)
    seconds = {name: read_summary(runs / name).metrics["seconds"] for name in ("few", "more", "plain")}
    assert window.column("run") == sorted(seconds, key=lambda name: -seconds[name])
    window.results.table.sortByColumn(SHOWN.index("deviance_heldout"), Qt.SortOrder.AscendingOrder)
    assert window.column("run")[2] == "plain"  # held none out
    assert window.column("deviance_heldout")[2] == "–"
    best, worst = (read_summary(runs / name).metrics["deviance_heldout"] for name in window.column("run")[:2])
    assert best < worst
    window.choose(runs / "few", runs / "more")
    assert f"prefer {window.column('run')[0]}" in window.results.verdict.text()
    window.press(window.results.forget_button)
    assert window.column("run") == ["plain"]
    assert (runs / "few").exists()


def test_a_folder_without_runs_is_one_notification(window: Window, tmp_path: Path) -> None:
    window.results.open(tmp_path)
    assert len(window.said) == 1
    assert "holds no runs" in window.said[0].message


def test_volumes_open_where_they_lie(window: Window, runs: Path, small_scan: Scan) -> None:
    window.results.open(runs)
    window.choose(runs / "few", runs / "plain")
    window.do("Open as layers")
    window.do("Open as layers")
    assert [layer.name for layer in window.viewer.layers] == ["small: few", "small: adam"]
    layer = window.layer("small: adam")
    np.testing.assert_array_equal(layer.data, read_summary(runs / "plain").volume().phase)
    assert small_scan.truth is not None
    np.testing.assert_allclose(layer.translate, small_scan.truth.origin_A, atol=1e-9)
    assert {str(unit) for unit in layer.units} == {"angstrom"}


def test_side_by_side_and_back(window: Window, runs: Path, small_file: Path, small_scan: Scan) -> None:
    window.viewer.open(str(small_file), plugin="napari-mepdiff")
    before = {layer.name: layer.visible for layer in window.viewer.layers}
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    window.do("Side by side")
    shown = [layer for layer in window.viewer.layers if layer.visible]
    assert [layer.name for layer in shown] == ["small: truth", "small: few", "small: more"]
    assert window.viewer.canvas.grid.enabled
    assert window.viewer.canvas.grid.actual_shape(window.viewer.layers) == (2, 2)
    assert len({tuple(layer.translate) for layer in shown}) == 1  # one camera sees the same place of each
    assert len({tuple(layer.contrast_limits) for layer in shown}) == 1
    assert small_scan.truth is not None
    np.testing.assert_array_equal(shown[0].data, small_scan.truth.phase)
    window.press(window.results.entries["Side by side"])
    assert not window.viewer.canvas.grid.enabled
    assert all(window.layer(name).visible == visible for name, visible in before.items())
    assert window.layer("small: truth") is None  # one lies beside already
    assert [window.layer(f"small: {name}").visible for name in ("few", "more")] == [True, False]  # in the same place
    window.do("Side by side")
    window.viewer.canvas.grid.enabled = False  # napari's own button
    assert not window.results.entries["Side by side"].isChecked()
    assert [window.layer(f"small: {name}").visible for name in ("few", "more")] == [True, False]


def test_side_by_side_while_somebody_else_has_them_so(window: Window, runs: Path, small_file: Path) -> None:
    """Reconstruct has the same truth in its own views, and takes it away when these end."""
    window.viewer.open(str(small_file), plugin="napari-mepdiff")
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    window.do("Side by side")
    truth, few, more = (layer for layer in window.viewer.layers if layer.visible)
    window.press(window.results.entries["Side by side"])
    others = RunLayers(window.viewer)
    truth = others.truth(truth.name, PlacedVolume(truth.data, tuple(truth.scale), tuple(truth.translate)))
    others.show_side_by_side([truth, few])
    window.do("Side by side")
    assert not others.side_by_side
    assert [layer.name for layer in window.viewer.layers if layer.visible] == ["small: truth", "small: few", "small: more"]
    others.show_side_by_side([truth, more])
    assert not window.results.entries["Side by side"].isChecked()
    assert [layer for layer in window.viewer.layers if layer.visible] == [truth, more]
    others.show_together()
    assert window.layer("small: truth") is None
    assert len([layer for layer in window.viewer.layers if layer.name in (few.name, more.name) and layer.visible]) == 1


def test_the_difference_of_two_and_to_the_truth(window: Window, runs: Path, small_scan: Scan) -> None:
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    window.do("Difference")
    few, more = (read_summary(runs / name).volume() for name in ("few", "more"))
    names = [layer.name for layer in window.viewer.layers]
    first, second = (few, more) if names == ["few less more"] else (more, few)
    np.testing.assert_array_equal(window.viewer.layers[0].data, first.less(second).phase)
    low, high = window.viewer.layers[0].contrast_limits
    assert low == -high
    window.choose(runs / "plain")
    window.do("Difference")
    assert small_scan.truth is not None
    found = window.layer("adam less truth").data
    np.testing.assert_allclose(found.mean(), 0, atol=1e-6)
    error = np.sqrt(np.mean((read_summary(runs / "plain").volume().phase - small_scan.truth.phase) ** 2))
    assert found.std() <= error
    window.choose(runs / "few", runs / "more", runs / "plain")
    window.do("Difference")
    assert "difference of 3 volumes" in window.said[-1].message


def test_a_click_shows_the_column_of_every_volume(window: Window, runs: Path, small_file: Path, small_scan: Scan) -> None:
    window.viewer.open(str(small_file), plugin="napari-mepdiff")
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    profiles = window.results.profiles
    window.press(profiles.pick)
    assert window.viewer.dims.ndisplay == 2
    truth = window.layer("small: ground truth")
    _, y, x = truth.data_to_world((0, 31, 28))  # of the truth that lies beside
    for callback in window.viewer.mouse_drag_callbacks:
        callback(window.viewer, type("Press", (), {"position": (0.0, y, x)})())
    drawn = {name: line.getData() for name, line in profiles.curves._lines.items()}
    assert sorted(drawn) == sorted(["few", "more", TRUTH])
    assert small_scan.truth is not None
    np.testing.assert_allclose(drawn[TRUTH][1], small_scan.truth.phase[:, 31, 28], atol=1e-6)
    np.testing.assert_allclose(drawn["few"][1], read_summary(runs / "few").volume().phase[:, 31, 28], atol=1e-6)
    np.testing.assert_allclose(drawn["few"][0], [0.8, 2.4, 4.0, 5.6])
    assert profiles.curves.view.getAxis("left").autoSIPrefixScale == 1  # rad, also where they are small
    for theme in ("light", "dark"):  # a line without a colour of its own is read on both
        window.viewer.theme = theme
        ink = get_theme(theme).text.as_rgb_tuple()[:3]
        assert profiles.curves._lines[TRUTH].opts["pen"].color().getRgb()[:3] == ink
        assert profiles.curves.view.getAxis("left").autoSIPrefixScale == 1
    window.results.with_truth.click()
    window.settle()
    assert TRUTH not in profiles.curves._lines


def test_a_line_cuts_every_volume(window: Window, runs: Path) -> None:
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    window.do("Open as layers")
    profiles = window.results.profiles
    window.press(profiles.draw)
    start, end = (-2.0, -3.0), (6.0, 3.0)
    window.layer(LINE_LAYER).add_lines(np.array([start, end]))
    few = read_summary(runs / "few").volume()
    _, cut = few.section(start, end)
    np.testing.assert_allclose(profiles.curves._lines["few"].getData()[1], cut.mean(1), atol=1e-6)
    shown = [pane for pane in profiles.panes if not pane.isHidden()]
    assert [pane.title.text() for pane in shown] == [*profiles._volumes]
    assert shown[-1].image.image.shape == (8 * 4, cut.shape[1])  # 1.6 Å and 0.2 Å: square in Å
    assert profiles.place.text() == "Mean along a line of 10.0 Å, and the sections under it."
    window.layer(LINE_LAYER).add_lines(np.array([(90.0, 90.0), (96.0, 98.0)]))
    assert profiles.place.text() == "A line of 10.0 Å: none of the chosen volumes is under it."


def test_pictures_and_the_report_are_written(window: Window, runs: Path, tmp_path: Path) -> None:
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    for kind in ("slices", "patterns"):
        window.results.save_picture(kind, tmp_path / f"{kind}.png")
        window.settle()
        assert (tmp_path / f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    window.results.save_report(tmp_path / "report")
    window.settle()
    assert "prefer" in (tmp_path / "report" / "report.html").read_text()
    window.results.save_report(tmp_path / "report")
    window.settle()
    assert "exists already and is not empty" in window.said[-1].message


def test_the_script_runs(
    window: Window, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    window.results.open(runs)
    window.choose(runs / "few", runs / "more")
    window.do("Open in a script")
    shown = window.results.findChild(ScriptWindow)
    shown.save(tmp_path / "compare.py")
    monkeypatch.chdir(tmp_path)
    exec((tmp_path / "compare.py").read_text(), {})
    assert "prefer" in capsys.readouterr().out
    assert (tmp_path / "slices.png").exists()
    assert (tmp_path / "patterns.png").exists()
    shown.close()


def test_nothing_is_there_before_a_choice(window: Window, runs: Path) -> None:
    assert "No runs yet" in window.results.verdict.text()
    assert not any(entry.isEnabled() for entry in window.results.entries.values())
    window.results.open(runs)
    assert "Choose runs" in window.results.verdict.text()
    for each in window.results.findChildren(QPushButton):
        assert each.toolTip(), each.text()


def test_samples_of_a_run_from_disk(window: Window, runs: Path, small_scan: Scan, tmp_path: Path) -> None:
    folder = tmp_path / "sampled"
    shutil.copytree(runs / "few", folder)
    assert small_scan.truth is not None
    truth = small_scan.truth.phase.astype(np.float32)
    record = read_summary(folder).record
    grid = tuple(record["voxel_size_A"]), tuple(record["origin_A"])
    write_volume(folder / "samples.ome.tif", np.stack([0.4 * truth, truth]), *grid)
    window.results.open(folder)
    window.results.open(runs)
    window.choose(folder)
    window.do("Samples")
    names = [layer.name for layer in window.viewer.layers]
    assert names == [f"small: sampled, {kind}" for kind in ("mean", "spread", "sample 1", "sample 2")]
    np.testing.assert_allclose(window.layer("small: sampled, mean").data, 0.7 * truth, atol=1e-6)
    np.testing.assert_allclose(window.layer("small: sampled, sample 1").data, truth, atol=1e-6)
    assert "Measured against this scan's truth" in window.results.verdict.text()
    window.choose(runs / "few")
    window.do("Samples")
    assert "few drew fewer than two samples" in window.said[-1].message
