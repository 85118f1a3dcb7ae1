"""The screenshots and the movie of docs/plugin.md: a session on the sample scan, with pictures on the way.

QT_QPA_PLATFORM=xcb xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import mepdiff_core

if TYPE_CHECKING:
    from mepdiff_core.scan import Scan

IMAGES = Path(__file__).parent / "images"
SIZE = (1400, 900)
DOCK_WIDTH = 350


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        take(Path(folder))


def write_hspy(path: Path, scan: Scan) -> Path:
    """A scan as HyperSpy would save it, with beam energy and scan step, without a camera length."""
    from rsciio.hspy import file_writer

    scales = [(0.05, "nm")] * 2 + [(1.0, "")] * 2
    axes = [
        {
            "name": name,
            "size": n,
            "scale": s,
            "offset": 0.0,
            "units": u,
            "navigate": name in "yx",
            "_type": "UniformDataAxis",
        }
        for name, n, (s, u) in zip(("y", "x", "ky", "kx"), scan.counts.shape, scales, strict=True)
    ]
    signal = {
        "data": scan.counts,
        "axes": axes,
        "metadata": {"General": {"title": "scan"}, "Acquisition_instrument": {"TEM": {"beam_energy": 300.0}}},
        "original_metadata": {},
        "attributes": {"_lazy": False},
        "package_info": {},
        "learning_results": {},
        "models": {},
        "tmp_parameters": {},
    }
    file_writer(str(path), signal)
    return path


def write_scan(path: Path) -> Path:
    """The scan that ``mepdiff demo`` makes: of 24 x 24 patterns, enough for the crystal solver to find the atoms."""
    from mepdiff_core.scan import save_scan
    from mepdiff_core.simulate import SimulationConfig, simulate_scan
    from mepdiff_core.structure_files import read_crystal

    crystal = read_crystal(Path(mepdiff_core.__file__).parent / "data" / "SrTiO3.cif")
    save_scan(simulate_scan(crystal, SimulationConfig(scan_shape=(24, 24))), path)
    return path


def take(folder: Path) -> None:
    import napari
    from napari._qt.dialogs.qt_notification import NapariQtNotification
    from qtpy.QtCore import QEventLoop, Qt, QTimer
    from qtpy.QtWidgets import QMainWindow, QScrollArea

    from napari_mepdiff._all_steps import open_all_steps
    from napari_mepdiff._preferences import preferences
    from napari_mepdiff._reconstruct import breakable
    from napari_mepdiff._sample_prior import SamplePrior

    def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        loop, look, end = QEventLoop(), QTimer(), QTimer()
        look.timeout.connect(lambda: loop.quit() if until() else None)
        end.timeout.connect(loop.quit)
        look.start(50)
        end.start(round(1000 * seconds))
        loop.exec()

    def shoot(name: str) -> None:
        for each in window.findChildren(NapariQtNotification):
            each.close()
        spin(0.5)
        for dock in (load, optics, reconstruct, results):
            if hasattr(dock, "folder"):
                dock.folder.setText("Runs are kept in ~/mepdiff-runs")
        viewer.screenshot(str(IMAGES / f"{name}.png"), canvas_only=False, size=None)

    def scroll(dock: object, part: float) -> None:
        bar = dock.findChild(QScrollArea).verticalScrollBar()
        bar.setValue(round(part * bar.maximum()))

    def flat(layer_slice: int) -> None:
        viewer.dims.ndisplay = 2
        viewer.dims.set_current_step(0, layer_slice)
        viewer.reset_view()

    viewer = napari.Viewer(show_welcome_screen=False)
    preferences().runs_folder = "~/mepdiff-runs"
    window = next(w for w in napari.qt.get_qapp().topLevelWidgets() if isinstance(w, QMainWindow))
    window.resize(*SIZE)
    viewer.open_sample("napari-mepdiff", "strontium_titanate")
    load, optics, reconstruct, results = open_all_steps(viewer)
    window.resizeDocks([load.parent()], [DOCK_WIDTH], Qt.Orientation.Horizontal)
    load.path.setText("SrTiO3.h5")
    spin(3)
    shoot("window-load")

    foreign = write_hspy(folder / "scan.hspy", load.session.scan_in_file)
    load.open(foreign)
    spin(10, lambda: load.convert.offer is not None)
    load.path.setText("scan.hspy")
    load.convert.out.setText("~/mepdiff-runs/scan.h5")
    shoot("window-convert")
    load.convert.hide()

    load.confirm.click()
    optics.parent().raise_()
    optics.form.fields["optics.overfocus_A"].setText("120 Å")
    optics.form._edited()
    shoot("window-optics")
    optics.form.fields["optics.semiangle_mrad"].setText("80 mrad")
    optics.form._edited()
    shoot("window-impossible")
    optics._reset()

    preferences().runs_folder = str(folder / "runs")
    reconstruct.parent().raise_()
    reconstruct.method.setCurrentText("adam-best")
    reconstruct.form.fields["engine"].set_value("fast")
    reconstruct.form._edited()
    reconstruct.run_button.click()
    spin(120, lambda: len(reconstruct._rows) >= 25)
    shoot("window-running")
    spin(300, lambda: reconstruct.job is None)

    reconstruct.method.setCurrentText("proximal")
    reconstruct.form.fields["samples"].set_value(2)
    reconstruct.form._edited()
    reconstruct.run_button.click()
    sampler = reconstruct.task
    spin(60, lambda: sampler.run is not None and len(sampler.rows) >= 8)
    reconstruct.steer.fields["openness"].setText("2")
    reconstruct.steer.fields["openness"].returnPressed.emit()
    spin(120, lambda: len(sampler.rows) >= 16)
    scroll(reconstruct, 0.45)
    shoot("window-sampler")

    reconstruct.queue_view.at_once.setValue(2)
    reconstruct.method.setCurrentText("adam-best")
    reconstruct.form.fields["patience"].set_value(None)
    reconstruct.form._edited()
    reconstruct.run_button.click()
    spin(60, lambda: len(reconstruct.task.rows) >= 12)
    viewer.layers.remove(reconstruct.queue.tasks[0].volume.layer)
    reconstruct.queue_view.beside.click()
    viewer.scene.camera.angles = (0.0, 6.0, 14.0)
    scroll(reconstruct, 0.0)
    shoot("window-queue")
    reconstruct.stop_button.click()
    reconstruct.queue_view.beside.click()
    reconstruct.show_task(sampler)
    spin(240, lambda: not reconstruct.queue.jobs)
    flat(3)
    scroll(reconstruct, 0.0)
    shoot("window-sampler-finished")

    results.parent().raise_()
    results.choose([task.out for task in reconstruct.queue.tasks[:2]])
    spin(20, lambda: not results._looker._timer.isActive())
    results.side_by_side()
    spin(20, lambda: not results._worker._timer.isActive())
    flat(3)
    viewer.reset_view(layers=[layer for layer in viewer.layers if layer.visible])
    results.profiles.pick.click()
    truth = results.profiles._volumes["truth"]
    y, x = divmod(int(truth.phase.sum(0)[40:60, 40:60].argmax()), 20)
    results.profiles.show_column(
        *(o + (n + 40) * d for o, d, n in zip(truth.origin_A[1:], truth.voxel_size_A[1:], (y, x), strict=True))
    )
    shoot("window-results")
    results.side_by_side()
    viewer.theme = "light"
    shoot("window-finished-light")
    viewer.theme = "dark"

    load.open(write_scan(folder / "demo.h5"))
    spin(60, lambda: load.session.path == folder / "demo.h5")
    load.confirm.click()
    reconstruct.method.setCurrentText("crystal")
    reconstruct.form.fields["samples"].set_value(0)
    reconstruct.form._edited()
    reconstruct.run_button.click()
    spin(600, lambda: reconstruct.job is None)
    reconstruct.playback.movie_of_slices(IMAGES / "crystal-forming.gif")
    spin(60, lambda: not reconstruct.playback.filming)

    viewer.layers.clear()
    crystals = SamplePrior(viewer)
    viewer.window.add_dock_widget(crystals, name="Sample crystals from the prior")
    for dock in (load, optics, reconstruct, results):
        dock.parent().hide()
    window.resizeDocks([crystals.parent()], [DOCK_WIDTH], Qt.Orientation.Horizontal)
    crystals.run_button.click()
    spin(300, lambda: not crystals.jobs)
    crystals.status.setText(crystals.status.text().replace(breakable(folder / "runs"), "~/mepdiff-runs"))
    viewer.reset_view()
    viewer.scene.camera.angles = (0.0, 6.0, 14.0)
    shoot("window-crystals")
    viewer.close()


if __name__ == "__main__":
    main()
