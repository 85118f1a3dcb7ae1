"""The dock that draws crystals from a prior alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("napari")
from qtpy.QtCore import Qt

from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.volume_files import read_volume
from mepdiff_core.weights import PriorConfig, save_prior
from napari_mepdiff import _preferences
from napari_mepdiff._preferences import preferences
from napari_mepdiff._sample_prior import GAP, SamplePrior, side_by_side

TINY = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16), DiffusionConfig(), (2, 8, 8))


@pytest.fixture
def dock(make_napari_viewer_proxy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SamplePrior]:
    monkeypatch.setattr(_preferences, "_forms_path", lambda: tmp_path / "forms.yaml")
    page = preferences()
    before = {name: getattr(page, name) for name in ("device", "runs_folder", "last_folder")}
    page.runs_folder, page.last_folder, page.device = str(tmp_path / "runs"), str(tmp_path), "cpu"
    torch.manual_seed(0)
    save_prior(tmp_path / "prior.safetensors", UNet(TINY.network).state_dict(), TINY, {})
    viewer = make_napari_viewer_proxy()
    viewer.window.add_plugin_dock_widget("napari-mepdiff", "Sample crystals from the prior")
    made = next(widget for name, widget in viewer.window.dock_widgets.items() if name.startswith("Sample crystals"))
    made.prior.choose(tmp_path / "prior.safetensors")
    yield made
    for job in made.jobs:
        job.cancel()
        job.join(10)
    for name, value in before.items():
        setattr(page, name, value)


def test_crystals_form_beside_each_other_and_are_kept(dock: SamplePrior, qtbot: Any, tmp_path: Path) -> None:
    dock.form.fields["n"].setText("3")
    dock.form.fields["steps"].setText("4")
    dock.form._edited()
    qtbot.mouseClick(dock.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.job is None, timeout=30000)
    assert "Finished" in dock.status.text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "sheet.png").exists()
    drawn = read_volume(folder / "samples.ome.tif", samples=True)
    assert drawn.shape == (3, 2, 8, 8)
    (layer,) = dock._viewer.layers
    assert layer.data.shape == (2, 16 + GAP, 16 + GAP)
    for sample, (y, x) in zip(drawn, ((0, 0), (0, 8 + GAP), (8 + GAP, 0)), strict=True):
        np.testing.assert_array_equal(layer.data[:, y : y + 8, x : x + 8], sample)
    np.testing.assert_allclose(layer.scale, (1.6, 0.2, 0.2))
    assert {str(unit) for unit in layer.units} == {"angstrom"}


def test_crystals_cover_nothing_that_is_there(dock: SamplePrior, qtbot: Any) -> None:
    dock._viewer.add_image(np.ones((3, 20, 30)), scale=(1.6, 0.2, 0.2), translate=(0, -5, 7), units=("angstrom",) * 3)
    dock._viewer.add_image(np.ones((3, 99, 99)), visible=False, units=("angstrom",) * 3)
    dock.form.fields["steps"].setText("2")
    dock.form._edited()
    dock.run()
    qtbot.waitUntil(lambda: dock.job is None, timeout=30000)
    there, _, crystals = dock._viewer.layers
    assert crystals.extent.world[0, 1] > there.extent.world[1, 1]
    assert crystals.extent.world[0, 2] == pytest.approx(there.extent.world[0, 2], abs=0.2)


def test_it_stops_within_a_step_and_keeps_what_was_reached(dock: SamplePrior, qtbot: Any, tmp_path: Path) -> None:
    dock.form.fields["steps"].setText("100000")
    dock.form._edited()
    qtbot.mouseClick(dock.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock._row is not None, timeout=30000)
    qtbot.mouseClick(dock.stop_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.job is None, timeout=5000)
    assert "Stopped." in dock.status.text()
    (folder,) = (tmp_path / "runs").iterdir()
    assert read_volume(folder / "samples.ome.tif", samples=True).shape == (4, 2, 8, 8)


def test_closing_the_dock_stops_it(dock: SamplePrior, qtbot: Any) -> None:
    dock.form.fields["steps"].setText("100000")
    dock.form._edited()
    dock.run()
    qtbot.waitUntil(lambda: dock._row is not None, timeout=30000)
    job = dock.job
    assert job is not None
    dock.parent().destroyOnClose()
    qtbot.waitUntil(lambda: job.ended, timeout=5000)
    assert job.status == "stopped"


def test_without_a_prior_it_says_why(dock: SamplePrior, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_bytes(b"")
    dock.prior.choose(tmp_path / "wrong")
    assert not dock.run_button.isEnabled()
    assert "no safetensors file" in dock.run_button.toolTip()


def test_crystals_lie_in_a_square() -> None:
    samples = np.arange(1, 6, dtype=np.float32)[:, None, None, None] * np.ones((1, 2, 3, 5), np.float32)
    square = side_by_side(samples)
    assert square.shape == (2, 2 * 3 + GAP, 3 * 5 + 2 * GAP)
    assert square[0, 0, 0] == 1
    assert square[1, -1, -1] == 0  # the sixth place
    assert square[0, 3 + GAP, 5 + GAP] == 5
    assert square.sum() == samples.sum()
