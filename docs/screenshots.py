"""The screenshots of docs/plugin.md: a session on the sample scan, with pictures on the way.

QT_QPA_PLATFORM=xcb xvfb-run -a -s "-screen 0 1600x1000x24" python docs/screenshots.py
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

IMAGES = Path(__file__).parent / "images"
SIZE = (1400, 900)
DOCK_WIDTH = 350


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        take(Path(folder))


def take(folder: Path) -> None:
    import napari
    from qtpy.QtCore import QEventLoop, Qt, QTimer
    from qtpy.QtWidgets import QMainWindow

    from napari_mepdiff._all_steps import open_all_steps
    from napari_mepdiff._preferences import preferences

    def spin(seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        loop, look, end = QEventLoop(), QTimer(), QTimer()
        look.timeout.connect(lambda: loop.quit() if until() else None)
        end.timeout.connect(loop.quit)
        look.start(50)
        end.start(round(1000 * seconds))
        loop.exec()

    def shoot(name: str) -> None:
        spin(0.5)
        viewer.screenshot(str(IMAGES / f"{name}.png"), canvas_only=False, size=None)

    viewer = napari.Viewer(show_welcome_screen=False)
    preferences().runs_folder = "~/mepdiff-runs"
    window = next(w for w in napari.qt.get_qapp().topLevelWidgets() if isinstance(w, QMainWindow))
    window.resize(*SIZE)
    viewer.open_sample("napari-mepdiff", "strontium_titanate")
    load, optics, reconstruct, *_ = open_all_steps(viewer)
    window.resizeDocks([load.parent()], [DOCK_WIDTH], Qt.Orientation.Horizontal)
    load.path.setText("SrTiO3.h5")
    spin(3)
    shoot("window-load")

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
    reconstruct.form.fields["engine"].set_value("fast")
    reconstruct.form._edited()
    reconstruct.run_button.click()
    spin(120, lambda: len(reconstruct._rows) >= 25)
    reconstruct.folder.setText("Runs are kept in ~/mepdiff-runs")
    shoot("window-running")
    spin(300, lambda: reconstruct.job is None)
    reconstruct.folder.setText("Runs are kept in ~/mepdiff-runs")
    viewer.theme = "light"
    viewer.dims.ndisplay = 2
    viewer.dims.set_current_step(0, 3)
    viewer.reset_view()
    reconstruct.settings.unfold(True)
    shoot("window-finished-light")
    viewer.close()


if __name__ == "__main__":
    main()
