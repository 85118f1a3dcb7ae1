"""The dock "Load scan": a file, a look at its patterns, and its calibration, confirmed; other formats become scans first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QFileDialog, QGridLayout, QHBoxLayout, QLineEdit, QPushButton

from mepdiff_core.errors import InputError
from mepdiff_core.readers import FILE_PATTERNS, is_foreign
from mepdiff_core.scan import Scan, load_scan
from mepdiff_core.virtual import counts_histogram, detector_mask, mean_pattern, virtual_image
from napari_mepdiff._convert import ConvertFile
from napari_mepdiff._dock import Dock, button, heading, notify, words
from napari_mepdiff._layers import KEY, scan_layers
from napari_mepdiff._plots import Curves, Pane, Ring, follow_theme
from napari_mepdiff._preferences import last_folder, remember_folder
from napari_mepdiff._pump import Answerer
from napari_mepdiff._session import session_of
from napari_mepdiff._units import show_quantity

CONFIRM = "Calibration is right: use this scan"
BRIGHT, DARK = "#46b1e1", "#f0a030"
JOIN_S = 5.0

Loaded = tuple[Path, Scan, npt.NDArray[np.float64], tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]]


class LoadScan(Dock):
    """Choose a scan, look at it, confirm its calibration.

    Args:
        napari_viewer: gets the scan's layers.
    """

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self._viewer = napari_viewer
        self.session = session_of(napari_viewer)
        self._reader: Answerer[Path] = Answerer(_read, self)
        self._reader.answered.connect(self._have_read)
        self._reader.failed.connect(self._could_not_read)
        self._imager: Answerer[Any] = Answerer(_virtual_images, self)
        self._imager.answered.connect(self._have_images)
        self._imager.failed.connect(notify)
        self._looker: Answerer[Any] = Answerer(_look, self)
        self._looker.answered.connect(self._have_looked)
        self._looker.failed.connect(notify)

        row = QHBoxLayout()
        self.path = QLineEdit()
        self.path.setPlaceholderText("a scan file, or what the microscope wrote")
        self.path.setToolTip(
            "<qt>A scan file (.h5), or a file of a microscope, from which a scan file is made. Enter loads it.</qt>"
        )
        self.path.returnPressed.connect(lambda: self.open(Path(self.path.text()).expanduser()))
        self.browse = button("Browse…", "Choose a scan file, or a file of a microscope.", self._browse)
        row.addWidget(self.path, 1)
        row.addWidget(self.browse)
        self.column.addLayout(row)
        self.format = words("Format: mepdiff scan (HDF5), with optics and calibration.")
        self.column.addWidget(self.format)
        self.convert = ConvertFile()
        self.convert.made.connect(self.open)
        self.column.addWidget(self.convert)
        convert = self.convert
        self.on_close(lambda: convert.stop(JOIN_S))

        tip = "Drag the circles: the blue disk is the bright-field detector, the orange ring the dark-field detector."
        self.mean = Pane("mean pattern", f"Mean of all patterns, square root of the counts. {tip}", "CET-L1")
        self.single = Pane("pattern", "The pattern under the mouse in the virtual images, square root of the counts.")
        self.bright = Pane("virtual bright field", "Counts on the blue disk at every position. Click: keep this pattern.")
        self.dark = Pane("virtual dark field", "Counts on the orange ring at every position. Click: keep this pattern.")
        self.histogram = Curves("counts in a pixel", "pixels", height=110, log_y=True)
        grid = QGridLayout()
        grid.setSpacing(4)
        for i, pane in enumerate((self.mean, self.single, self.bright, self.dark)):
            grid.addWidget(pane, i // 2, i % 2)
            grid.setColumnStretch(i % 2, 1)
        self.column.addLayout(grid)
        self.column.addWidget(self.histogram)
        self.histogram.hide()
        follow_theme(napari_viewer, self.mean, self.single, self.bright, self.dark, self.histogram)

        self.disk = Ring(0.5, BRIGHT)
        self.inner = Ring(0.6, DARK, movable=False)
        self.outer = Ring(1.0, DARK)
        for ring in (self.outer, self.inner, self.disk):
            self.mean.view.addItem(ring)
            ring.sigRegionChanged.connect(self._detectors_moved)
            ring.hide()
        for pane in (self.bright, self.dark):
            pane.hovered.connect(self._hovered)
            pane.clicked.connect(self._hovered)

        self.column.addWidget(heading("Calibration"))
        self.calibration = words("No scan yet: choose a file above, drop one on the window, or try File > Open Sample.")
        self.column.addWidget(self.calibration)
        self.confirm = QPushButton(CONFIRM)
        self.confirm.setToolTip("<qt>Corrections can be made in Optics and scan, before or after.</qt>")
        self.confirm.clicked.connect(lambda *_: self._confirm())
        self.column.addWidget(self.confirm)
        self.column.addStretch(1)

        self.session.loaded.connect(self._loaded)
        self.session.changed.connect(self._show_calibration)
        self.session.pattern_changed.connect(self._show_pattern)
        napari_viewer.layers.events.inserted.connect(self._layer_inserted)
        self._loaded()
        if self.session.scan_in_file is None:
            for layer in napari_viewer.layers:
                self._take_layer(layer)

    def open(self, path: Path) -> None:
        """Read a file; the layers and the look at it come when it is read."""
        self.path.setText(str(path))
        if is_foreign(path):
            self.format.setText("Format: another than ours. What is missing is asked for; then a scan file is made of it.")
            self.convert.look(path)
            return
        self.convert.hide()
        self.format.setText(f"Reading {path.name} …")
        self._reader.ask(path)

    def _browse(self) -> None:
        kinds = f"Scans ({' '.join(FILE_PATTERNS)});;All files (*)"
        name, _ = QFileDialog.getOpenFileName(self, "Load scan", str(last_folder()), kinds)
        if name:
            remember_folder(Path(name).parent)
            self.open(Path(name))

    def _have_read(self, path: Path, scan: Scan) -> None:
        for data, settings, _ in scan_layers(scan, path):
            self._viewer.add_image(data, **settings)
        if self.session.scan_in_file is not scan:  # taken up when its layer came
            self.session.show_scan(path, scan)

    def _could_not_read(self, error: Exception) -> None:
        self.format.setText("Nothing was loaded; the scan before is still here." if self.session.path else "No scan yet.")
        self.path.setText(str(self.session.path or ""))
        notify(error)

    def _layer_inserted(self, event: Any) -> None:
        if "scan" in (event.value.metadata.get(KEY) or {}):
            for other in self._viewer.layers:  # what belongs to the scan before lies in the same place
                if other != event.value and KEY in other.metadata:
                    other.visible = False
        self._take_layer(event.value)

    def _take_layer(self, layer: Any) -> None:
        mine = layer.metadata.get(KEY) or {}
        if "scan" in mine and mine["scan"] is not self.session.scan_in_file:
            self.session.show_scan(Path(mine["path"]), mine["scan"])

    def _loaded(self) -> None:
        scan, path = self.session.scan_in_file, self.session.path
        if scan is None or path is None:
            self.confirm.setEnabled(False)
            return
        self.path.setText(str(path))
        self.path.setCursorPosition(len(str(path)))
        if self.convert.job is None:
            self.convert.hide()
        self.format.setText("Format: mepdiff scan (HDF5).")
        k = scan.optics.k_aperture_invA
        outer = min(3 * k, 0.98 * scan.k_max_invA)
        self.disk.place((0.0, 0.0), k)
        self.inner.place((0.0, 0.0), min(1.1 * k, 0.9 * outer))
        self.outer.place((0.0, 0.0), outer)
        self._looker.ask(scan)
        QTimer.singleShot(0, self._fit_view)  # the truth's layer comes after the one that was met here
        self._detectors_moved()
        self._show_pattern()

    def _fit_view(self) -> None:
        if self._viewer.layers:
            self._viewer.reset_view()

    def _have_looked(self, scan: Scan, looked: Any) -> None:
        if scan is not self.session.scan_in_file:
            return
        mean, (edges, numbers) = looked
        self.mean.show_image(np.sqrt(mean), 2 * scan.k_max_invA)
        for ring in (self.disk, self.inner, self.outer):
            ring.show()
        self.histogram.show_bars(edges, numbers)
        self.histogram.show()

    def _detectors_moved(self, ring: Any = None) -> None:
        scan = self.session.scan_in_file
        if scan is None:
            return
        if ring is self.inner or ring is self.outer:
            other = self.inner if ring is self.outer else self.outer
            other.place(ring.centre, other.radius)
        self._imager.ask(
            (scan, self.disk.radius, self.disk.centre, sorted((self.inner.radius, self.outer.radius)), self.outer.centre)
        )

    def _have_images(self, question: Any, images: Any) -> None:
        if question[0] is not self.session.scan_in_file:
            return
        bright, dark = images
        self.bright.show_image(bright)
        self.dark.show_image(dark)

    def _hovered(self, row: int, column: int) -> None:
        scan = self.session.scan_in_file
        if scan is not None:
            self.session.set_pattern(row * scan.shape[1] + column)

    def _show_pattern(self) -> None:
        scan = self.session.scan_in_file
        if scan is None:
            return
        row, column = divmod(self.session.pattern, scan.shape[1])
        self.single.title.setText(f"pattern {row}, {column}")
        self.single.show_image(np.sqrt(scan.counts[row, column].astype(np.float32)), 2 * scan.k_max_invA)

    def _show_calibration(self) -> None:
        scan, calibration = self.session.scan_in_file, self.session.calibration
        if scan is None or calibration is None:
            return
        optics, dose = calibration.optics, calibration.dose_e_per_A2
        unknown, k_max = "not known", calibration.k_step_invA * scan.n_pixels / 2
        step = (
            f"{show_quantity(calibration.scan_step_A, 'Å')}, turned by {calibration.scan_rotation_deg:g}°"
            if calibration.scan_step_A is not None
            else "positions of the file, no raster"
        )
        rows = [
            ("patterns", f"{scan.shape[0]} × {scan.shape[1]} of {scan.n_pixels} × {scan.n_pixels} px"),
            ("detector pixel", f"{calibration.k_step_invA:.6g} 1/Å, out to {k_max:.4g} 1/Å"),
            ("scan step", step),
            ("beam", f"{show_quantity(optics.energy_eV, 'eV')}, {optics.semiangle_mrad:g} mrad"),
            ("over focus", show_quantity(optics.overfocus_A, "Å")),
            ("electrons", f"{calibration.electrons_per_pattern:,.6g} a pattern" + (f", {dose:.3g} e/Å²" if dose else "")),
            ("thickness", unknown if calibration.thickness_A is None else show_quantity(calibration.thickness_A, "Å")),
        ]
        cells = "".join(f"<tr><td>{name}&nbsp;&nbsp;</td><td>{value}</td></tr>" for name, value in rows)
        changed = "<p><i>Corrected by you in Optics and scan.</i></p>" if self.session.calibration_changes() else ""
        self.calibration.setText(f"<table>{cells}</table>{changed}")
        self.confirm.setEnabled(not self.session.confirmed)
        self.confirm.setText("In use. Next: Optics and scan, or Reconstruct" if self.session.confirmed else CONFIRM)

    def _confirm(self) -> None:
        try:
            self.session.scan()
        except InputError as error:
            notify(error)
            return
        self.session.confirm()


def _read(path: Path) -> Scan:
    return load_scan(path)


def _look(scan: Scan) -> Any:
    return mean_pattern(scan.counts), counts_histogram(scan.counts)


def _virtual_images(question: Any) -> Any:
    scan, radius, centre, (inner, outer), ring_centre = question
    n, step = scan.n_pixels, scan.k_step_invA
    disk = detector_mask(n, step, 0.0, max(radius, step), centre)
    ring = detector_mask(n, step, inner, max(outer, inner + step), ring_centre)
    return virtual_image(scan.counts, disk), virtual_image(scan.counts, ring)
