"""The window, driven as a person does: type, click, drop, watch, stop."""

from __future__ import annotations

import ctypes
import gc
import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
import yaml

import vendor_files as vendor

pytest.importorskip("napari")
from napari.utils.notifications import Notification, notification_manager
from qtpy.QtCore import QCoreApplication, QEvent, Qt
from qtpy.QtGui import QGuiApplication
from qtpy.QtWidgets import QLabel, QPushButton

from mepdiff_core.crystals import Crystal
from mepdiff_core.errors import InputError, Refused
from mepdiff_core.file_calibration import FileCalibration, KnownOptics
from mepdiff_core.optics import make_probe
from mepdiff_core.reconstruction import METHODS
from mepdiff_core.scan import Scan, load_scan, save_scan
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.states import CrystalState, State
from mepdiff_core.unit_cell import from_crystal
from napari_mepdiff import _preferences
from napari_mepdiff._all_steps import STEPS, AllSteps, open_all_steps
from napari_mepdiff._dock import WIDTH
from napari_mepdiff._form import INVALID_STYLE
from napari_mepdiff._load import LoadScan
from napari_mepdiff._optics import OpticsAndScan
from napari_mepdiff._preferences import preferences
from napari_mepdiff._queue import KEPT
from napari_mepdiff._reconstruct import Reconstruct
from napari_mepdiff._sample_data import SAMPLE

PLUGIN = "napari-mepdiff"


@dataclass
class Window:
    """A viewer with the three docks."""

    viewer: Any
    load: LoadScan
    optics: OpticsAndScan
    reconstruct: Reconstruct
    bot: Any
    said: list[Notification]

    def wait(self, until: Callable[[], bool], seconds: float = 30) -> None:
        self.bot.waitUntil(until, timeout=int(seconds * 1000))

    def open(self, path: Path) -> None:
        """Type the name, press Enter, confirm the calibration."""
        self.load.path.setText(str(path))
        self.bot.keyClick(self.load.path, Qt.Key.Key_Return)
        self.wait(lambda: self.load.session.path == path and self.load.mean.image.image is not None)
        self.press(self.load.confirm)

    def press(self, button: QPushButton) -> None:
        assert button.isEnabled(), button.toolTip()
        self.bot.mouseClick(button, Qt.MouseButton.LeftButton)

    def type(self, dock: OpticsAndScan | Reconstruct, name: str, text: str) -> None:
        """Put a text into a field of the dock's form."""
        field = dock.form.fields[name]  # type: ignore[union-attr]
        field.selectAll()
        self.bot.keyClicks(field, text)
        if not text:
            self.bot.keyClick(field, Qt.Key.Key_Delete)

    def run_to_end(self) -> None:
        self.press(self.reconstruct.run_button)
        self.wait(lambda: self.reconstruct.job is None, 60)

    def layer(self, part: str) -> Any:
        return next((each for each in self.viewer.layers if part in each.name), None)


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Settings of their own, in a folder of their own."""
    monkeypatch.setattr(_preferences, "_forms_path", lambda: tmp_path / "settings" / "forms.yaml")
    page = preferences()
    before = {name: getattr(page, name) for name in ("device", "threads", "stream_rate", "runs_folder", "last_folder")}
    page.runs_folder, page.last_folder, page.device, page.stream_rate = str(tmp_path / "runs"), str(tmp_path), "cpu", 50.0
    yield tmp_path
    for name, value in before.items():
        setattr(page, name, value)


@pytest.fixture
def window(make_napari_viewer_proxy: Any, qtbot: Any, settings: Path) -> Iterator[Window]:
    """A window with all steps open."""
    said: list[Notification] = []
    notification_manager.notification_ready.connect(said.append)
    viewer = make_napari_viewer_proxy()
    made = Window(viewer, *open_all_steps(viewer)[:3], qtbot, said)
    made.reconstruct.method.setCurrentText("adam-best")
    yield made
    notification_manager.notification_ready.disconnect(said.append)
    for job in made.reconstruct._jobs if made.reconstruct is not None else ():
        job.cancel()
        job.join(10)


def counting(limit: int | None = None, pause_s: float = 0.0, failure: Exception | None = None) -> Any:
    """A method that counts instead of reconstructing; it fails after three steps where it is told how."""

    def loop(scan: Scan, config: Any, device: Any, start: Any, checkpoint: Any) -> Iterator[State]:
        assert scan.truth is not None
        shape = (config.slices or 4, *scan.truth.phase.shape[1:])
        total = limit or config.iterations
        first = 0 if checkpoint is None else int(checkpoint["step"])
        for step in range(first + 1, total + 1):
            if failure is not None and step == 4:
                raise failure
            time.sleep(pause_s)
            volume = np.full(shape, step, np.float32)
            yield State(step, total, volume, 1 / step, 0.01 * step, step, checkpoint={"step": np.array(step)})

    return loop


def use(monkeypatch: pytest.MonkeyPatch, loop: Any) -> None:
    """Let adam-best run this loop."""
    monkeypatch.setitem(METHODS, "adam-best", replace(METHODS["adam-best"], run=loop))


def texts(said: list[Notification]) -> list[str]:
    return [n.message for n in said]


# the manifest


def test_every_step_is_in_the_menu_and_the_docks_open_in_order(make_napari_viewer: Any, qtbot: Any, settings: Path) -> None:
    viewer = make_napari_viewer()
    viewer.window.add_plugin_dock_widget(PLUGIN, "All steps")
    names = [f"{step} (MEP-Diffusion)" for step in STEPS]
    qtbot.waitUntil(lambda: [*viewer.window.dock_widgets] == names, timeout=5000)
    assert not any(isinstance(w, AllSteps) for w in viewer.window.dock_widgets.values())
    again = open_all_steps(viewer)
    assert [*viewer.window.dock_widgets.values()] == again


def test_napari_knows_reader_writers_sample_and_preferences(settings: Path) -> None:
    from npe2 import PluginManager

    manifest = PluginManager.instance().get_manifest(PLUGIN)
    assert manifest.display_name == "MEP-Diffusion"
    assert [w.display_name for w in manifest.contributions.widgets] == [
        "All steps",
        *STEPS,
        "Sample crystals from the prior",
    ]
    assert {e for w in manifest.contributions.writers for e in w.filename_extensions} == {".ome.tif", ".ome.tiff", ".run"}
    assert manifest.contributions.sample_data[0].key == "strontium_titanate"
    assert preferences().stream_rate == 50.0


# load scan


def test_a_typed_path_is_loaded_looked_at_and_confirmed(window: Window, small_file: Path, small_scan: Scan) -> None:
    assert not window.load.confirm.isEnabled()
    assert not window.reconstruct.run_button.isEnabled()
    window.open(small_file)
    window.wait(lambda: window.load.dark.image.image is not None)
    np.testing.assert_allclose(window.load.mean.image.image, np.sqrt(small_scan.counts.mean((0, 1))), rtol=1e-5)
    k = np.hypot(*np.meshgrid(*2 * [(np.arange(64) - 32) * small_scan.k_step_invA]))
    bright = small_scan.counts[:, :, k <= small_scan.optics.k_aperture_invA].sum(-1)
    np.testing.assert_allclose(window.load.bright.image.image, bright)
    assert "6 × 7 of 64 × 64 px" in window.load.calibration.text()
    assert "300 keV, 21.4 mrad" in window.load.calibration.text()
    assert window.reconstruct.run_button.isEnabled()
    overview, truth = window.layer("virtual dark field"), window.layer("ground truth")
    assert {str(u) for layer in (overview, truth) for u in layer.units} == {"angstrom"}
    np.testing.assert_allclose(overview.data_to_world((5, 6)), small_scan.positions_A[-1], atol=1e-9)


def test_dragging_a_detector_changes_its_image(window: Window, small_file: Path, small_scan: Scan) -> None:
    window.open(small_file)
    window.wait(lambda: window.load.bright.image.image is not None)
    window.load.disk.setPos((0.2, 0.4))  # as dragging does
    k = (np.arange(64) - 32) * small_scan.k_step_invA
    y, x = window.load.disk.centre
    mask = np.hypot(k[:, None] - y, k[None, :] - x) <= window.load.disk.radius
    expected = small_scan.counts[:, :, mask].sum(-1)
    window.wait(lambda: np.array_equal(window.load.bright.image.image, expected))
    before = window.load.inner.centre
    window.load.outer.setPos((-1.0, -1.5))
    assert window.load.inner.centre == pytest.approx(window.load.outer.centre)
    assert window.load.inner.centre != before


def test_the_pattern_under_the_mouse_is_shown_everywhere(window: Window, small_file: Path, small_scan: Scan) -> None:
    window.open(small_file)
    window.load.bright.hovered.emit(2, 5)
    np.testing.assert_allclose(window.load.single.image.image, np.sqrt(small_scan.counts[2, 5]), rtol=1e-6)
    np.testing.assert_allclose(window.reconstruct.watch.measured.image.image, np.sqrt(small_scan.counts[2, 5]), rtol=1e-6)


def test_a_dropped_file_and_the_sample_are_taken_up(window: Window, small_file: Path) -> None:
    window.viewer.open(str(small_file), plugin=PLUGIN)
    assert window.load.session.path == small_file
    window.viewer.open_sample(PLUGIN, "strontium_titanate")
    assert window.load.session.path == SAMPLE
    assert not window.load.session.confirmed
    assert window.layer("SrTiO3: ground truth").data.shape == (8, 102, 102)
    shown = [layer.name for layer in window.viewer.layers if layer.visible]  # those before lie in the same place
    assert shown == ["SrTiO3: virtual dark field", "SrTiO3: ground truth"]


def test_docks_opened_later_find_the_scan_that_is_there(make_napari_viewer_proxy: Any, settings: Path) -> None:
    viewer = make_napari_viewer_proxy()
    viewer.open_sample(PLUGIN, "strontium_titanate")
    _, optics, *_ = open_all_steps(viewer)
    assert optics.session.path == SAMPLE
    assert optics.form.fields["optics.overfocus_A"].text() == "60 Å"


@pytest.mark.parametrize("content", [b"", b"no HDF5 at all"])
def test_a_file_that_is_no_scan_is_one_notification(
    window: Window, small_file: Path, tmp_path: Path, content: bytes
) -> None:
    window.open(small_file)
    wrong = tmp_path / "wrong.h5"
    wrong.write_bytes(content)
    window.load.path.setText(str(wrong))
    window.bot.keyClick(window.load.path, Qt.Key.Key_Return)
    window.wait(lambda: len(window.said) > 0)
    assert len(window.said) == 1
    assert "wrong.h5" in window.said[0].message
    assert window.load.path.text() == str(small_file)
    assert len(window.viewer.layers) == 2


def test_other_hdf5_files_are_left_to_other_readers(settings: Path, tmp_path: Path) -> None:
    import h5py

    from napari_mepdiff._reader import get_reader

    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["data"] = np.zeros(3)
    assert get_reader(str(tmp_path / "other.h5")) is None
    assert get_reader([str(SAMPLE), str(tmp_path / "other.h5")]) is None
    assert get_reader(str(SAMPLE)) is not None


# optics and scan


def test_units_are_understood_and_the_probe_follows(window: Window, small_file: Path, small_scan: Scan) -> None:
    window.open(small_file)
    window.type(window.optics, "optics.overfocus_A", "10 nm")
    calibration = window.optics.session.calibration
    assert calibration is not None
    assert calibration.optics.overfocus_A == pytest.approx(100)
    expected = np.abs(make_probe(replace(small_scan.optics, overfocus_A=100.0), 64, small_scan.pixel_size_A)) ** 2
    np.testing.assert_allclose(window.optics.probe.image.image, expected, rtol=1e-3, atol=1e-7)
    window.type(window.optics, "optics.energy_eV", "200 kV")
    radius = float(np.max(window.optics.aperture.circle.getData()[0]))
    assert radius == pytest.approx(21.4e-3 / 0.025079, rel=1e-3)
    assert window.optics.session.calibration_changes() == {"optics": {"energy_eV": 200e3, "overfocus_A": 100.0}}
    assert "your corrections" in window.optics.source.text()
    window.optics._reset()
    assert window.optics.session.calibration_changes() == {}


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("optics.semiangle_mrad", "80", "beyond the detector"),
        ("optics.energy_eV", "12 Å", "no unit that converts to eV"),
        ("scan_step_A", "-1", "scan step is -1.0; expected more than 0"),
        ("thickness_A", "twelve", "'twelve' is no number"),
        ("electrons_per_pattern", "0", "expected more than 0"),
    ],
)
def test_what_is_impossible_is_red_with_its_reason(
    window: Window, small_file: Path, name: str, text: str, reason: str
) -> None:
    window.open(small_file)
    before = window.optics.session.calibration
    field = window.optics.form.fields[name]
    field.setText(text)  # at once, as pasting does: half of an impossible number can be a possible one
    field.textEdited.emit(text)
    assert field.styleSheet() == INVALID_STYLE
    assert reason in field.toolTip()
    assert reason in window.optics.form.error
    assert window.optics.session.calibration == before
    window.optics._reset()
    assert field.styleSheet() == ""
    assert window.optics.form.error == ""


def test_aberrations_come_and_go(window: Window, small_file: Path) -> None:
    window.open(small_file)
    window.type(window.optics, "optics.aberrations.C12", "2 nm")
    window.type(window.optics, "optics.aberrations.phi12", "30")
    assert window.optics.session.calibration_changes() == {"optics": {"aberrations": {"C12": 20.0, "phi12": 30.0}}}
    window.type(window.optics, "optics.aberrations.C12", "")
    assert "angle without its C12" in window.optics.form.error
    window.type(window.optics, "optics.aberrations.phi12", "")
    assert window.optics.session.calibration_changes() == {}


def test_dose_slices_and_thickness_go_together(window: Window, small_file: Path, small_scan: Scan) -> None:
    window.open(small_file)
    assert window.optics.slices.value() == 4
    window.optics.dose.selectAll()
    window.bot.keyClicks(window.optics.dose, "5e5")
    assert window.optics.session.calibration.electrons_per_pattern == pytest.approx(5e5 * 0.73**2)  # type: ignore[union-attr]
    window.optics.slices.setValue(2)
    request = window.reconstruct.request()
    assert (request.config.slices, request.config.slice_thickness_A) == (2, pytest.approx(3.2))


def test_a_dose_beyond_all_numbers_is_refused(window: Window, small_file: Path) -> None:
    window.open(small_file)
    before = window.optics.session.calibration
    window.optics.dose.setText("1e400")
    window.optics.dose.textEdited.emit("1e400")
    assert window.optics.dose.styleSheet() == INVALID_STYLE
    assert window.optics.session.calibration == before


def test_a_preset_without_aberrations_takes_them_away(window: Window, small_file: Path, tmp_path: Path) -> None:
    window.open(small_file)
    window.optics.save_preset(tmp_path / "plain.yaml")
    window.type(window.optics, "optics.aberrations.C12", "20")
    window.optics.load_preset(tmp_path / "plain.yaml")
    assert window.optics.session.calibration_changes() == {}


def test_a_scan_of_one_pattern_is_shown(window: Window, small_scan: Scan, tmp_path: Path) -> None:
    truth = None
    one = replace(small_scan, counts=small_scan.counts[:1, :1], positions_A=small_scan.positions_A[:1], truth=truth)
    save_scan(one, tmp_path / "one.h5")
    window.open(tmp_path / "one.h5")
    assert np.isfinite(window.layer("virtual dark field").world_to_data((0.0, 0.0))).all()


def test_settings_that_cannot_be_kept_do_not_stop_a_run(
    window: Window, small_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, counting(2))
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(_preferences, "_forms_path", lambda: tmp_path / "file" / "forms.yaml")
    window.open(small_file)
    window.run_to_end()
    assert len(window.said) == 1
    assert "cannot be written" in window.said[0].message
    assert window.layer("adam-best") is not None


def test_a_preset_is_saved_and_loaded(window: Window, small_file: Path, tmp_path: Path) -> None:
    window.open(small_file)
    window.type(window.optics, "optics.Cs_A", "1 µm")
    window.optics.save_preset(tmp_path / "optics.yaml")
    assert yaml.safe_load((tmp_path / "optics.yaml").read_text())["optics"]["Cs_A"] == 1e4
    window.optics._reset()
    window.optics.load_preset(tmp_path / "optics.yaml")
    assert window.optics.session.calibration.optics.Cs_A == 1e4  # type: ignore[union-attr]
    (tmp_path / "typo.yaml").write_text("optics: {Cs: 3}")
    window.optics.load_preset(tmp_path / "typo.yaml")
    assert texts(window.said)[-1].endswith("unknown field 'Cs' of Optics; did you mean 'Cs_A'?")
    assert window.optics.session.calibration.optics.Cs_A == 1e4  # type: ignore[union-attr]


def test_the_probe_is_fitted_and_used(window: Window, small_file: Path, tmp_path: Path) -> None:
    window.open(small_file)
    window.optics.passes.setValue(2)
    window.press(window.optics.fit)
    assert window.optics.fit.text() == "Stop"
    window.wait(lambda: window.optics.session.probe_path is not None, 60)
    path = window.optics.session.probe_path
    assert path is not None
    assert path.parent == tmp_path / "runs"
    assert "fitted" in window.optics.probe_source.text()
    assert window.reconstruct.request().probe == path
    window.type(window.optics, "optics.overfocus_A", "70")  # that probe is of other optics
    assert window.optics.session.probe_path is None


# reconstruct


def test_a_run_forms_in_a_layer_of_its_own(window: Window, small_file: Path, small_scan: Scan, tmp_path: Path) -> None:
    window.open(small_file)
    window.type(window.reconstruct, "iterations", "3")
    window.reconstruct.form.fields["engine"].set_value("fast")  # type: ignore[union-attr]
    window.run_to_end()
    dock, layer = window.reconstruct, window.layer("adam-best")
    (folder,) = (tmp_path / "runs").iterdir()
    np.testing.assert_array_equal(layer.data, tifffile.imread(folder / "volume.ome.tif"))
    assert layer.data.shape == small_scan.truth.phase.shape  # type: ignore[union-attr]
    np.testing.assert_allclose(layer.scale, (1.6, 0.2, 0.2))
    np.testing.assert_allclose(layer.translate, small_scan.truth.origin_A, atol=1e-9)  # type: ignore[union-attr]
    truth = window.layer("ground truth")
    assert {str(u) for u in layer.units} == {"angstrom"}
    assert tuple(layer.contrast_limits) == tuple(truth.contrast_limits)
    assert truth.translate[2] > layer.translate[2] + layer.data.shape[2] * 0.2
    assert [row[0] for row in dock._rows] == [1, 2, 3]
    x, y = dock.watch.curves._lines["loss"].getData()
    assert [*x] == [1, 2, 3]
    assert [*y] == [row[2] for row in dock._rows]
    assert "Finished. 3 steps" in dock.status.text()
    assert "SSIM" in dock.status.text()
    assert "report.html" in dock.status.text()
    assert (folder / "report.html").exists()
    watch = dock.watch
    window.wait(lambda: watch.predicted.image.image is not None and not watch._predictor.busy)
    predicted, measured = watch.predicted.image.image, watch.measured.image.image
    assert np.corrcoef(predicted.ravel(), measured.ravel())[0, 1] > 0.9
    assert window.said == []


def test_a_crystal_run_ends_with_its_spread_and_its_limits(
    window: Window, small_file: Path, perovskite: Crystal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    cell = from_crystal(perovskite, "c", (0.3, 0.2, 0.4), 6.4)
    asked: list[CrystalConfig] = []

    def loop(scan: Scan, config: CrystalConfig, device: Any, start: Any, checkpoint: Any) -> Iterator[State]:
        assert scan.truth is not None
        asked.append(config)
        truth = scan.truth.phase.astype(np.float32)
        even = np.repeat(truth.mean(0, keepdims=True), len(truth), 0)
        yield CrystalState(1, 2, even, float("nan"), 0.1, 1, note="projection", stage="projection")
        samples = np.stack([truth - 0.1, truth + 0.1])
        yield CrystalState(2, 2, truth, 3.0, 0.2, 2, cell=cell, stage="posterior", samples=samples, verdict="It is right.")

    monkeypatch.setitem(METHODS, "crystal", replace(METHODS["crystal"], run=loop))
    window.open(small_file)
    dock = window.reconstruct
    dock.method.setCurrentText("crystal")
    assert dock.form is not None
    window.type(dock, "composition", "SrTi")
    assert dock.form.error == ""
    window.type(dock, "composition", "SrTi03")
    assert "composition is 'SrTi03'" in dock.form.error
    window.type(dock, "composition", "SrTiO3")
    window.type(dock, "lattice_A", "3.905, 0.3905 nm")
    assert "go together" in dock.form.error
    window.type(dock, "angle_deg", "90")
    window.run_to_end()
    assert (asked[0].composition, asked[0].lattice_A, asked[0].angle_deg) == ("SrTiO3", (3.905, pytest.approx(3.905)), 90.0)
    assert "Finished. 2 steps" in dock.status.text()
    assert texts(window.said) == ["It is right."]
    truth = window.layer("ground truth").data
    np.testing.assert_allclose(window.layer("small: crystal").data, truth)
    np.testing.assert_allclose(window.layer("crystal, mean").data, truth, atol=1e-6)
    np.testing.assert_allclose(window.layer("crystal, spread").data, 0.1 * 2**0.5, atol=1e-5)
    assert [*dock.watch.curves._lines["loss"].getData()[0]] == [2]
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "crystal.cif").exists()


def test_pause_waits_resume_goes_on_stop_stops_and_continue_goes_on(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, counting(10**6, pause_s=0.02))
    window.open(small_file)
    dock = window.reconstruct
    window.press(dock.run_button)
    window.wait(lambda: len(dock._rows) > 3)
    window.press(dock.pause_button)
    assert dock.pause_button.text() == "Resume"
    window.bot.wait(1500)  # the step under way, and the look at it, which a slow window puts off by up to a second
    job, held = dock.job, dock._rows[-1][0]
    assert job is not None
    window.bot.wait(300)
    assert dock._rows[-1][0] == held
    assert job.take_records() == []
    window.press(dock.pause_button)
    window.wait(lambda: dock._rows[-1][0] > held + 2)
    window.press(dock.stop_button)
    window.wait(lambda: dock.job is None, 2)
    reached = dock._rows[-1][0]
    assert "Stopped." in dock.status.text()
    assert float(window.layer("adam-best").data.max()) == reached
    assert dock.pause_button.text() == "Continue"
    window.press(dock.pause_button)
    window.wait(lambda: dock._rows[-1][0] > reached + 2)
    window.press(dock.stop_button)
    window.wait(lambda: dock.job is None, 2)
    assert [row[0] for row in dock._rows] == [*range(1, dock._rows[-1][0] + 1)]
    assert len([*(tmp_path / "runs").iterdir()]) == 1
    assert len([layer for layer in window.viewer.layers if "adam-best" in layer.name]) == 1


def test_run_twice_is_one_after_the_other_with_a_layer_each(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, counting(5, pause_s=0.05))
    window.open(small_file)
    dock = window.reconstruct
    window.press(dock.run_button)
    assert dock.run_button.text() == "Add to queue"
    window.press(dock.run_button)
    first, second = dock.queue.tasks
    assert dock.task is first
    assert (first.status, second.status) == ("running", "waiting")
    assert not dock.jobs_section.isHidden()
    window.wait(lambda: second.status == "running")
    assert first.status == "finished"
    window.wait(lambda: second.job.ended and not dock.queue.jobs)
    assert len([layer for layer in window.viewer.layers if "adam-best" in layer.name]) == 2
    assert len([*(tmp_path / "runs").iterdir()]) == 2
    assert dock.session.runs == [first.out, second.out]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ValueError("a fault of ours"), "ValueError: a fault of ours. This is a fault of mepdiff; please report it."),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory (CUDA out of memory."),
        (MemoryError("too much"), "out of memory (too much); take fewer patterns"),
        (InputError("the disk is full; free some space"), "the disk is full; free some space"),
        (OSError(28, "No space left on device"), "No space left on device; check the path"),
    ],
)
def test_a_failure_is_one_notification_and_the_volume_stays(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception, words: str
) -> None:
    use(monkeypatch, counting(failure=failure))
    window.open(small_file)
    window.run_to_end()
    assert len(window.said) == 1
    assert words in window.said[0].message
    assert float(window.layer("adam-best").data.max()) == 3
    assert "Failed. What was reached stays" in window.reconstruct.status.text()
    assert window.reconstruct.run_button.isEnabled()


def test_what_is_refused_on_the_way_leaves_no_folder_to_go_on_with(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, counting(failure=Refused("the lattice does not fit")))
    window.open(small_file)
    window.run_to_end()
    dock = window.reconstruct
    assert texts(window.said) == ["the lattice does not fit"]
    assert list((tmp_path / "runs").iterdir()) == []
    assert dock.folder.text().replace("\u200b", "").endswith("/runs")
    assert float(window.layer("adam-best").data.max()) == 3  # to look at
    assert dock.run_button.isEnabled()
    assert not dock.pause_button.isEnabled()
    assert not dock.entries["Save run…"].isEnabled()


def test_a_disk_that_fills_loses_no_volume(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from mepdiff_core import files

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    use(monkeypatch, counting(10**6, pause_s=0.02))
    window.open(small_file)
    window.press(window.reconstruct.run_button)
    window.wait(lambda: len(window.reconstruct._rows) > 3)
    monkeypatch.setattr(files.os, "fsync", full)
    window.press(window.reconstruct.stop_button)
    window.wait(lambda: window.reconstruct.job is None)
    assert len(window.said) == 1
    assert "the disk is full" in window.said[0].message
    assert float(window.layer("adam-best").data.max()) == window.reconstruct._rows[-1][0]
    assert not [p for p in tmp_path.rglob(".*") if p.is_file()]


def test_a_file_that_vanishes_is_one_notification(window: Window, small_scan: Scan, tmp_path: Path) -> None:
    path = tmp_path / "gone.h5"
    save_scan(small_scan, path)
    window.open(path)
    path.unlink()
    window.run_to_end()
    assert texts(window.said) == [f"{path}: no such file"]
    assert window.reconstruct.run_button.isEnabled()


def test_a_runs_folder_that_cannot_be_made_is_one_notification(window: Window, small_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    preferences().runs_folder = str(tmp_path / "file")
    window.open(small_file)
    window.run_to_end()
    assert len(window.said) == 1
    assert "cannot be written" in window.said[0].message


def test_a_removed_layer_comes_back(window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, counting(10**6, pause_s=0.02))
    window.open(small_file)
    dock = window.reconstruct
    window.press(dock.run_button)
    window.wait(lambda: window.layer("adam-best") is not None)
    window.viewer.layers.remove(window.layer("adam-best"))
    assert len(window.said) == 1
    reached = dock._rows[-1][0]
    window.wait(lambda: dock._rows[-1][0] > reached + 2)
    assert window.layer("adam-best") is None
    window.press(dock.show_button)
    assert float(window.layer("adam-best").data.max()) > reached
    window.press(dock.stop_button)
    window.wait(lambda: dock.job is None)
    assert float(window.layer("adam-best").data.max()) == dock._rows[-1][0]


def test_closing_the_dock_stops_the_job(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(monkeypatch, counting(10**6, pause_s=0.02))
    window.open(small_file)
    window.press(window.reconstruct.run_button)
    window.wait(lambda: window.layer("adam-best") is not None)
    job, dock = window.reconstruct.job, window.reconstruct.parent()
    assert job is not None
    dock.hide()  # a hidden dock goes on
    window.bot.wait(100)
    assert job.status == "running"
    dock.destroyOnClose()
    window.wait(lambda: job.ended, 3)
    assert job.status == "stopped"
    assert float(window.layer("adam-best").data.max()) > 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert yaml.safe_load((folder / "run.yaml").read_text())["status"] == "stopped"


def test_closing_the_window_stops_the_job(
    make_napari_viewer: Any, qtbot: Any, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, counting(10**6, pause_s=0.02))
    viewer = make_napari_viewer()
    viewer.open_sample(PLUGIN, "strontium_titanate")
    load, _, dock, *_ = open_all_steps(viewer)
    load.confirm.click()
    dock.method.setCurrentText("adam-best")
    dock.run()
    qtbot.waitUntil(lambda: len(dock._rows) > 2, timeout=30000)
    job = dock.job
    viewer.close()
    qtbot.waitUntil(lambda: job.ended, timeout=5000)
    assert job.status == "stopped"


def resident_memory() -> float:
    """MB of this process, once glibc's allocator has given back the tens of MB that it keeps free, now more, now less."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    return psutil.Process().memory_info().rss / 1e6


@pytest.mark.alone
def test_a_hundred_starts_and_stops_leave_nothing_behind(
    window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, counting(10**6, pause_s=0.001))
    window.open(small_file)
    dock = window.reconstruct
    memory, jobs = [], []
    for cycle in range(100):
        dock.run()
        window.wait(lambda: len(dock._rows) > 1)
        jobs.append(weakref.ref(dock.job))
        dock.stop()
        window.wait(lambda: dock.job is None)
        if cycle % 5 == 4:
            while window.layer("adam-best") is not None:
                window.viewer.layers.remove(window.layer("adam-best"))
            gc.collect()
            memory.append(resident_memory())
    assert not [t for t in threading.enumerate() if t.name.startswith("mepdiff") and t.name != "mepdiff answers"]
    assert sum(job() is not None for job in jobs) <= KEPT + 1  # the runs to go back to, and the last
    assert median(memory[15:]) - median(memory[5:10]) < 20, memory
    assert window.said == []


# taking it along


def test_widgets_of_a_closed_dock_are_freed(window: Window, small_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, counting(limit=3))
    held = work_through(window, small_file)
    assert len(held) == len(STEPS) + 7
    window.load = window.optics = window.reconstruct = None  # type: ignore[assignment]
    for step in STEPS:
        dock_of(window, step).parent().destroyOnClose()

    def freed() -> bool:
        QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)  # as the main loop of an application would
        gc.collect()
        return not any(each() is not None for each in held.values())

    window.wait(freed, 10)


def dock_of(window: Window, step: str) -> Any:
    """A dock's widget, without the proxy that napari puts round it."""
    return window.viewer.window.dock_widgets[f"{step} (MEP-Diffusion)"].__wrapped__


def work_through(window: Window, path: Path) -> dict[str, Any]:
    """Use every dock; weak references to them and to their larger parts."""
    window.open(path)
    window.run_to_end()
    docks = [dock_of(window, step) for step in STEPS]
    reconstruct, results = docks[2], docks[3]
    results.choose([*results.runs])
    window.wait(lambda: results.verdict.text().startswith("Choose a second run"))
    results.profiles.show_column(3.0, 3.0)
    results.script().close()
    parts = [docks[0].convert, docks[1].prepare, results.profiles]
    parts += [reconstruct.queue, reconstruct.task, reconstruct.watch, reconstruct.playback]
    return {type(each).__name__: weakref.ref(each) for each in (*docks, *parts)}


def test_what_is_copied_runs_and_gives_the_same_volume(window: Window, small_file: Path, tmp_path: Path) -> None:
    import shlex

    from mepdiff_core.cli import main

    window.open(small_file)
    window.type(window.optics, "optics.overfocus_A", "6.5 nm")
    window.type(window.optics, "optics.aberrations.C12", "5")
    window.type(window.reconstruct, "iterations", "2")
    window.reconstruct.form.fields["engine"].set_value("fast")  # type: ignore[union-attr]
    window.run_to_end()
    volume = window.layer("adam-best").data
    window.press(window.reconstruct.entries["Copy as command"])
    command = shlex.split(QGuiApplication.clipboard().text())
    command[command.index("--out") + 1] = str(tmp_path / "by-command")
    assert command[0] == "mepdiff"
    assert main(command[1:]) == 0
    np.testing.assert_allclose(tifffile.imread(tmp_path / "by-command" / "volume.ome.tif"), volume, atol=1e-5)
    window.press(window.reconstruct.entries["Copy as Python"])
    scope: dict[str, Any] = {}
    exec(QGuiApplication.clipboard().text(), scope)
    np.testing.assert_allclose(scope["state"].volume, volume, atol=1e-5)


def test_a_config_is_saved_and_loaded(window: Window, small_file: Path, tmp_path: Path) -> None:
    window.open(small_file)
    window.type(window.reconstruct, "learning_rate", "7e-4")
    window.type(window.reconstruct, "constraints.depth_blur_slices", "0.5")
    window.reconstruct.take_along.save_config(tmp_path / "config.yaml")
    kept = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert (kept["learning_rate"], kept["slices"], kept["constraints"]["depth_blur_slices"]) == (7e-4, 4, 0.5)
    window.type(window.reconstruct, "learning_rate", "1e-3")
    window.reconstruct.take_along.load_config(tmp_path / "config.yaml")
    assert window.reconstruct.request().config.learning_rate == 7e-4  # type: ignore[union-attr]
    assert window.reconstruct.settings.heading.text() == "Settings (2 changed)"


def test_layers_are_saved_as_ome_tiff_and_as_run_folder(window: Window, small_file: Path, tmp_path: Path) -> None:
    window.open(small_file)
    window.type(window.reconstruct, "iterations", "2")
    window.reconstruct.form.fields["engine"].set_value("fast")  # type: ignore[union-attr]
    window.run_to_end()
    layer = window.layer("adam-best")
    layer.save(str(tmp_path / "volume.ome.tif"), plugin=PLUGIN)
    with tifffile.TiffFile(tmp_path / "volume.ome.tif") as file:
        np.testing.assert_array_equal(file.asarray(), layer.data)
        assert 'PhysicalSizeZ="1.6"' in str(file.ome_metadata)
        assert 'PhysicalSizeXUnit="Å"' in str(file.ome_metadata)
    layer.save(str(tmp_path / "kept.run"), plugin=PLUGIN)
    names = {p.name for p in (tmp_path / "kept.run").iterdir()}
    assert {"run.yaml", "history.csv", "volume.ome.tif", "metrics.json", "report.html"} <= names
    window.reconstruct.take_along.save_run(tmp_path / "again")
    assert {p.name for p in (tmp_path / "again").iterdir()} == names
    window.reconstruct.take_along.save_run(tmp_path / "again")
    assert "exists already" in window.said[-1].message


def test_a_layer_of_another_origin_is_no_run_folder(settings: Path, tmp_path: Path) -> None:
    from napari_mepdiff._writer import write_ome_tiff, write_run_folder

    with pytest.raises(InputError, match="no reconstruction of mepdiff"):
        write_run_folder(str(tmp_path / "x.run"), np.zeros((2, 3, 3)), {"metadata": {}})
    with pytest.raises(InputError, match=r"takes volumes \(z, y, x\)"):
        write_ome_tiff(str(tmp_path / "x.ome.tif"), np.zeros((3, 3)), {})


# what outlives a session


def test_settings_survive_a_restart(
    window: Window, small_file: Path, make_napari_viewer_proxy: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(monkeypatch, counting(2))
    window.open(small_file)
    window.reconstruct.method.setCurrentText("adam")
    window.type(window.reconstruct, "iterations", "7")
    window.reconstruct.method.setCurrentText("adam-best")
    window.type(window.reconstruct, "learning_rate", "0.003")
    window.run_to_end()
    again = Reconstruct(make_napari_viewer_proxy())
    window.bot.addWidget(again)
    assert again.form is not None
    assert again.method.currentText() == "adam-best"
    assert again.form.value().learning_rate == 0.003
    again.method.setCurrentText("adam")
    assert again.form.value().iterations == 7
    assert again.device.currentText() == "cpu"


def test_a_damaged_settings_file_is_no_reason_to_refuse_work(settings: Path) -> None:
    path = settings / "settings" / "forms.yaml"
    path.parent.mkdir()
    path.write_text("reconstruct: [not, a, mapping")
    assert _preferences.recall("reconstruct") == {}
    _preferences.remember("reconstruct", {"method": "adam"})
    assert _preferences.recall("reconstruct") == {"method": "adam"}


# looks


@pytest.mark.parametrize("theme", ["dark", "light"])
def test_plots_follow_the_theme(window: Window, theme: str) -> None:
    from napari.utils.theme import get_theme

    window.viewer.theme = theme
    expected = get_theme(theme).background.as_rgb_tuple()[:3]
    for plot in (window.load.mean, window.load.histogram, window.optics.probe, window.reconstruct.watch.curves):
        assert plot.view.backgroundBrush().color().getRgb()[:3] == expected


def test_every_dock_fits_its_width(window: Window, small_file: Path) -> None:
    window.open(small_file)
    for dock in (window.load, window.optics, window.reconstruct):
        assert dock.column.parentWidget().minimumSizeHint().width() <= WIDTH, dock
        for label in dock.findChildren(QLabel):
            words = max((label.fontMetrics().horizontalAdvance(w) for w in re.split(r"[\s\u200b]", label.text())), default=0)
            assert label.wordWrap() or label.sizeHint().width() <= WIDTH, label.text()
            assert words <= WIDTH or "<" in label.text(), label.text()


def test_every_field_says_what_it_means(window: Window, small_file: Path) -> None:
    window.open(small_file)
    for method in METHODS:
        window.reconstruct.method.setCurrentText(method)
        for name, field in window.reconstruct.form.fields.items():  # type: ignore[union-attr]
            assert len(field.toolTip()) > 15, name
    for name, field in window.optics.form.fields.items():
        assert len(field.toolTip()) > 15, name
    for each in window.reconstruct.findChildren(QPushButton):
        assert each.toolTip(), each.text()


def test_no_torch_before_the_first_run() -> None:
    import json
    import subprocess
    import sys

    code = (
        "import json, sys, napari\n"
        "viewer = napari.Viewer(show=False)\n"
        "from napari_mepdiff._all_steps import open_all_steps\n"
        "viewer.open_sample('napari-mepdiff', 'strontium_titanate')\n"
        "open_all_steps(viewer)[0].confirm.click()\n"
        "print(json.dumps(['torch' in sys.modules, 'ptyrad' in sys.modules, 'abtem' in sys.modules]))\n"
        "viewer.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == [False, False, False]


def test_the_sample_is_what_it_says(settings: Path) -> None:
    from importlib import resources

    from mepdiff_core.config import from_dict
    from mepdiff_core.simulate import SimulationConfig, simulate_scan

    sample = load_scan(SAMPLE)
    config = from_dict(SimulationConfig, sample.info["simulation"])
    crystal = resources.files("mepdiff_core") / "data" / "SrTiO3.cif"
    with resources.as_file(crystal) as path:
        again = simulate_scan(path, replace(config, scan_shape=(1, 2)))
    # another number of positions draws other noise and another field: the dose and the mean pattern must agree
    assert again.electrons_per_pattern == sample.electrons_per_pattern
    first = np.sqrt(sample.counts[0, :2].astype(float)), np.sqrt(again.counts[0].astype(float))
    assert np.abs(first[0] - first[1]).mean() < 0.5


# files of microscopes


def test_a_microscopes_file_asks_for_what_is_missing_and_becomes_a_scan(window: Window, tmp_path: Path) -> None:
    counts = vendor.make_counts()
    vendor.write_dm(tmp_path / "scan.dm4", counts)
    window.viewer.open(str(tmp_path / "scan.dm4"), plugin=PLUGIN)
    form = window.load.convert
    window.wait(lambda: form.offer is not None)
    assert "Gatan DM" in form.text.text()
    assert "Microscope Info, Voltage" in form.text.text()
    assert form.form.fields["optics.energy_eV"].text() == "200 keV"  # type: ignore[union-attr]
    assert "semi-convergence angle" in form.missing.text()
    assert not form.make.isEnabled()
    for name, text in (("optics.semiangle_mrad", "10"), ("optics.overfocus_A", "3 nm")):
        field = form.form.fields[name]
        field.selectAll()  # type: ignore[union-attr]
        window.bot.keyClicks(field, text)
    assert form.missing.text() == ""
    window.press(form.make)
    window.wait(lambda: window.load.session.path == tmp_path / "runs" / "scan.h5")
    scan = load_scan(tmp_path / "runs" / "scan.h5")
    np.testing.assert_array_equal(scan.counts, counts * np.float32(0.25))
    assert scan.optics.overfocus_A == 30
    assert form.isHidden()
    assert not window.said


def test_a_conversion_that_is_stopped_leaves_nothing(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mepdiff_core.raw_scan.BLOCK_BYTES", 1)
    np.save(tmp_path / "scan.npy", vendor.make_counts((40, 40, 16, 16)))
    window.load.open(tmp_path / "scan.npy")
    form = window.load.convert
    window.wait(lambda: form.offer is not None)
    optics = KnownOptics(200e3, 10.0, 0.0)
    form.form.set_value(FileCalibration(optics, 0.5, 0.0, 0.08, None, 1.0))
    form._update()
    window.press(form.make)
    window.wait(lambda: form.progress.value() > 3)
    window.press(form.make)
    window.wait(lambda: form.job is None)
    assert list((tmp_path / "runs").iterdir()) == []
    assert form.make.text() == "Calibration is right: make a scan file"
    assert not window.said


def test_a_stack_asks_for_its_scan_shape(window: Window, tmp_path: Path) -> None:
    counts = vendor.make_counts()
    np.save(tmp_path / "stack.npy", counts.reshape(12, 16, 16))
    window.load.open(tmp_path / "stack.npy")
    form = window.load.convert
    window.wait(lambda: form.offer is not None)
    assert "12 patterns in one row" in form.missing.text()
    window.bot.keyClicks(form.options.fields["scan_shape"], "3, 4")
    form._look_again()
    window.wait(lambda: form.offer is not None and form.offer.options.scan_shape == (3, 4))
    assert "3 × 4 patterns" in form.text.text()
    assert "patterns in one row" not in form.missing.text()


def test_a_file_of_several_arrays_asks_which(window: Window, tmp_path: Path) -> None:
    import h5py

    counts = vendor.make_counts()
    with h5py.File(tmp_path / "two.h5", "w") as file:
        file["one"], file["two"] = counts, counts + 1
    window.viewer.open(str(tmp_path / "two.h5"), plugin=PLUGIN)
    form = window.load.convert
    window.wait(lambda: len(window.said) > 0)
    assert "several arrays" in form.text.text()
    assert not form.make.isEnabled()
    window.bot.keyClicks(form.options.fields["key"], "two")
    form._look_again()
    window.wait(lambda: form.offer is not None)
    np.testing.assert_allclose(form.offer.mean, counts.reshape(12, 16, 16).mean(axis=0) + 1)  # type: ignore[union-attr]


def test_stacks_that_may_be_anything_are_left_to_other_readers(settings: Path, tmp_path: Path) -> None:
    from napari_mepdiff._reader import get_reader

    tifffile.imwrite(tmp_path / "stack.tif", np.zeros((5, 16, 16), np.uint16))
    assert get_reader(str(tmp_path / "stack.tif")) is None
    (tmp_path / "empty").mkdir()
    assert get_reader(str(tmp_path / "empty")) is None
    vendor.write_blockfile(tmp_path / "scan.blo", vendor.make_counts())
    assert get_reader(str(tmp_path / "scan.blo")) is not None
