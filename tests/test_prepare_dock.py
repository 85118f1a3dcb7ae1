"""Preparing a scan in the window, and undoing it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from napari.utils.notifications import Notification, notification_manager
from qtpy.QtCore import Qt

from mepdiff_core.calibration import calibrate
from mepdiff_core.patterns import shift
from mepdiff_core.scan import Scan, load_scan, save_scan
from napari_mepdiff._load import LoadScan
from napari_mepdiff._optics import OpticsAndScan
from napari_mepdiff._preferences import preferences


@pytest.fixture
def docks(
    make_napari_viewer_proxy: Any, qtbot: Any, small_scan: Scan, tmp_path: Path
) -> Iterator[tuple[Any, LoadScan, OpticsAndScan, list[Notification]]]:
    """Load scan and Optics and scan, with a scan that is shifted by (2, -1) px and turned wrongly."""
    page = preferences()
    before = {name: getattr(page, name) for name in ("runs_folder", "stream_rate")}
    page.runs_folder, page.stream_rate = str(tmp_path / "runs"), 50.0
    spoilt = replace(small_scan, counts=shift(small_scan.counts, (2, -1)))
    save_scan(calibrate(spoilt, {"scan_rotation_deg": 40.0}), tmp_path / "raw.h5")
    viewer, said = make_napari_viewer_proxy(), []
    notification_manager.notification_ready.connect(said.append)
    load, optics = LoadScan(viewer), OpticsAndScan(viewer)
    qtbot.addWidget(load)
    qtbot.addWidget(optics)
    load.open(tmp_path / "raw.h5")
    qtbot.waitUntil(lambda: load.mean.image.image is not None, timeout=20_000)
    yield viewer, load, optics, said
    notification_manager.notification_ready.disconnect(said.append)
    for name, value in before.items():
        setattr(page, name, value)


def test_a_scan_is_prepared_and_undone(docks: Any, qtbot: Any, small_scan: Scan, tmp_path: Path) -> None:
    viewer, load, optics, said = docks
    session, prepare = optics.session, optics.prepare
    raw, layers = session.scan_in_file, len(viewer.layers)
    session.set_calibration(replace(session.calibration, thickness_A=7.0), 3)
    prepare.form.fields["centre"].set_value("mean")
    prepare.form.fields["subpixel"].set_value("leave")
    prepare.form.fields["rotation"].set_value("find")
    picture = optics.aperture.image.image.copy()
    qtbot.mouseClick(prepare.apply, Qt.MouseButton.LeftButton)
    assert prepare.apply.text() == "Stop"
    qtbot.waitUntil(lambda: not optics._preparing, timeout=30_000)
    assert said == []
    assert session.scan_in_file is not raw
    inner = (..., slice(4, 60), slice(4, 60))
    assert np.array_equal(session.scan_in_file.counts[inner], small_scan.counts[inner])
    assert not np.array_equal(optics.aperture.image.image, picture)
    assert "centred by whole pixels" in prepare.done.text()
    assert (session.slices, session.calibration.thickness_A) == (3, 7.0)  # corrections made before stay
    assert abs(session.calibration.scan_rotation_deg) < 8  # 6 x 7 positions: not the 40 degrees it was told
    (written,) = (tmp_path / "runs").glob("raw-prepared-*.h5")
    assert session.path == written
    assert load_scan(written).info["prepared"] == session.scan_in_file.info["prepared"]
    shown = [la for la in viewer.layers if la.visible and "dark field" in la.name]
    assert [la.name for la in shown] == [f"{written.stem}: virtual dark field"]
    assert load.path.text() == str(written)

    qtbot.mouseClick(prepare.undo, Qt.MouseButton.LeftButton)
    assert session.scan_in_file is raw
    assert (session.slices, session.calibration.thickness_A) == (3, 7.0)
    assert len(viewer.layers) == layers
    assert [la.visible for la in viewer.layers if "dark field" in la.name] == [True]
    assert np.array_equal(optics.aperture.image.image, picture)
    assert not prepare.undo.isEnabled()


def test_what_cannot_be_is_told_and_changes_nothing(docks: Any, qtbot: Any) -> None:
    _, _, optics, said = docks
    raw = optics.session.scan_in_file
    qtbot.mouseClick(optics.prepare.apply, Qt.MouseButton.LeftButton)
    assert "nothing to do yet" in said[-1].message
    optics.prepare.form.fields["scan_crop"].setText("0, 3, 0, 9")
    optics.prepare.form._edited()
    qtbot.mouseClick(optics.prepare.apply, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not optics._preparing, timeout=30_000)
    assert "scan_crop is [0, 3, 0, 9]; the scan has 6 x 7 positions" in said[-1].message
    assert optics.session.scan_in_file is raw
    optics.prepare.form.fields["scan_crop"].setText("3, 3, 0, 9")
    optics.prepare.form._edited()
    assert not optics.prepare.apply.isEnabled()
    assert "expected first row" in optics.prepare.form.error
