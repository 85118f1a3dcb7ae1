"""Samplers in the window: their layers, guidance changed on the way, looking back, movies, several at once, ensembles."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

pytest.importorskip("napari")
from napari.utils.notifications import Notification, notification_manager
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QPushButton

from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.reconstruction import METHODS
from mepdiff_core.scan import Scan
from mepdiff_core.states import SampleState, State
from mepdiff_core.unet import UNet, UNetConfig
from mepdiff_core.weights import PriorConfig, save_prior
from napari_mepdiff import _preferences
from napari_mepdiff._all_steps import open_all_steps
from napari_mepdiff._load import LoadScan
from napari_mepdiff._preferences import preferences
from napari_mepdiff._prior_chooser import PriorChooser
from napari_mepdiff._queue import KEPT
from napari_mepdiff._reconstruct import Reconstruct

TINY = PriorConfig(UNetConfig((8,), (16,), blocks=1, head_channels=8, embedding=16), DiffusionConfig(), (4, 16, 16))


@pytest.fixture(scope="module")
def prior(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    save_prior(path, UNet(TINY.network).state_dict(), TINY, {"steps": 3, "data": "prototypes"})
    return path


@dataclass
class Window:
    viewer: Any
    dock: Reconstruct
    bot: Any
    said: list[Notification]

    def wait(self, until: Callable[[], bool], seconds: float = 30) -> None:
        self.bot.waitUntil(until, timeout=int(seconds * 1000))

    def press(self, button: QPushButton) -> None:
        assert button.isEnabled(), button.toolTip()
        self.bot.mouseClick(button, Qt.MouseButton.LeftButton)

    def layer(self, name: str) -> Any:
        return next((each for each in self.viewer.layers if each.name == name), None)

    def steer(self, name: str, text: str) -> None:
        field = self.dock.steer.fields[name]
        field.selectAll()
        self.bot.keyClicks(field, text)
        self.bot.keyClick(field, Qt.Key.Key_Return)


@pytest.fixture
def window(
    make_napari_viewer_proxy: Any,
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    small_file: Path,
    prior: Path,
) -> Iterator[Window]:
    """Reconstruct with a scan, dps and a prior chosen."""
    monkeypatch.setattr(_preferences, "_forms_path", lambda: tmp_path / "forms.yaml")
    page = preferences()
    before = {name: getattr(page, name) for name in ("device", "runs_folder", "last_folder", "stream_rate")}
    page.runs_folder, page.last_folder, page.device, page.stream_rate = str(tmp_path / "runs"), str(tmp_path), "cpu", 50.0
    said: list[Notification] = []
    notification_manager.notification_ready.connect(said.append)
    viewer = make_napari_viewer_proxy()
    load, _, dock, *_ = open_all_steps(viewer)
    assert isinstance(load, LoadScan)
    load.open(small_file)
    qtbot.waitUntil(lambda: load.session.path == small_file, timeout=20000)
    load.confirm.click()
    dock.method.setCurrentText("dps")
    dock.prior.choose(prior)
    dock.parent().raise_()
    yield Window(viewer, dock, qtbot, said)
    notification_manager.notification_ready.disconnect(said.append)
    for job in dock.queue.jobs:
        job.cancel()
        job.join(10)
    for name, value in before.items():
        setattr(page, name, value)


class Sampler:
    """A sampler that counts: each step waits to be let through."""

    def __init__(self, steps: int = 6, samples: int = 1) -> None:
        self.steps, self.samples = steps, samples
        self.guidance: list[float] = []
        self._allowed = threading.Semaphore(0)

    def let(self, steps: int = 1) -> None:
        self._allowed.release(steps)

    def loop(self, scan: Scan, config: Any, device: Any, start: Any, checkpoint: Any, steering: Any) -> Iterator[State]:
        assert scan.truth is not None
        truth = scan.truth.phase.astype(np.float32)
        lit = np.zeros(truth.shape[1:], bool)
        lit[20:-20, 20:-20] = True
        first = 0 if checkpoint is None else int(checkpoint["step"])
        for step in range(first + 1, self.steps + 1):
            steering.begin(step)
            self._allowed.acquire(timeout=40)  # longer than any test waits: it takes no step by itself
            time.sleep(0.01)  # two of them take turns
            self.guidance.append(steering.now(config).guidance_scale)
            samples = np.stack([truth * (0.5 + 0.5 * k) for k in range(self.samples)]) if self.samples > 1 else None
            yield SampleState(
                step,
                self.steps,
                np.full(truth.shape, step, np.float32),
                1 / step,
                0.1 * step,
                step,
                heldout=2 / step,
                sigma=10.0 / step,
                note=steering.note,
                samples=samples,
                checkpoint={"step": np.array(step)},
                log_snr=-2 * np.log(10.0 / step),
                noisy=np.full(truth.shape, -step, np.float32),
                network_s=0.25,
                physics_s=0.5,
                illuminated=lit,
            )


def use(monkeypatch: pytest.MonkeyPatch, sampler: Sampler) -> None:
    monkeypatch.setitem(METHODS, "dps", replace(METHODS["dps"], run=sampler.loop))


def test_denoised_and_noisy_form_beside_each_other(
    window: Window, monkeypatch: pytest.MonkeyPatch, small_scan: Scan
) -> None:
    sampler = Sampler()
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    sampler.let(3)
    window.wait(lambda: len(dock._rows) == 3 and window.layer("small: dps, illuminated") is not None)
    window.wait(lambda: float(window.layer("small: dps").data.max()) == 3)
    denoised, noisy = window.layer("small: dps"), window.layer("small: dps, noisy")
    assert float(noisy.data.min()) == -3
    assert noisy.translate[2] + noisy.data.shape[2] * 0.2 < denoised.translate[2]
    assert {str(unit) for layer in window.viewer.layers for unit in layer.units} == {"angstrom"}
    assert "σ 3.33, log-SNR -2.41. This step: 0.25 s in the network, 0.50 s" in dock.watch.noise.text()
    assert [*dock.watch.times._lines["network"].getData()[1]] == [0.25] * 3
    assert [*dock.watch.curves._lines["held out"].getData()[1]] == [2 / step for step in (1, 2, 3)]
    outline = window.layer("small: dps, illuminated")
    assert small_scan.truth is not None
    low, _ = outline.extent.world
    _, y, x = small_scan.truth.origin_A
    np.testing.assert_allclose(low[-2:], (y + 20 * 0.2, x + 20 * 0.2), atol=0.25)
    depths = sorted({float(outline.data_to_world(ring[0])[0]) for ring in outline.data})
    np.testing.assert_allclose(depths, 1.6 * (np.arange(len(small_scan.truth.phase)) + 0.5), atol=1e-6)  # a ring a slice
    sampler.let(10)
    window.wait(lambda: dock.job is None)
    assert window.said == []


def test_guidance_changes_from_the_next_step_on(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler()
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    sampler.let(2)
    window.wait(lambda: len(dock._rows) == 2 and not dock.steer.isHidden())
    window.steer("guidance_scale", "70")
    assert "from the next step on" in dock.steer.said.text()
    sampler.let(2)
    window.wait(lambda: len(dock._rows) == 4)
    window.steer("guidance_scale", "-3")
    assert "guidance_scale is -3; expected 0 or more" in window.said[-1].message
    sampler.let(10)
    window.wait(lambda: dock.job is None)
    # what is asked for while a step is under way waits for the one after it
    assert sampler.guidance == [5000.0, 5000.0, 5000.0, 70.0, 70.0, 70.0]
    assert dock.task is not None
    record = yaml.safe_load((dock.task.out / "run.yaml").read_text())
    assert record["changes"] == [{"step": 4, "guidance_scale": 70.0}]
    assert "guidance_scale 70 from here on" in (dock.task.out / "history.csv").read_text()
    assert dock.steer.isHidden()


def test_a_slider_leads_back_and_the_run_goes_on(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler()
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    sampler.let(3)
    window.wait(lambda: dock.playback.slider.maximum() == 2)
    dock.playback.slider.setValue(0)
    layer = window.layer("small: dps")
    assert float(layer.data.max()) == 1
    assert float(window.layer("small: dps, noisy").data.max()) == -1
    assert dock.playback.place.text() == "step 1, σ 10"
    sampler.let(1)
    window.wait(lambda: dock.playback.slider.maximum() == 3)
    assert float(layer.data.max()) == 1
    assert dock.playback.slider.value() == 0
    dock.playback.slider.setValue(3)
    assert float(layer.data.max()) == 4
    sampler.let(10)
    window.wait(lambda: dock.job is None)
    assert float(layer.data.max()) == 6


def test_movies_of_slices_and_of_the_view(window: Window, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    sampler = Sampler()
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    sampler.let(10)
    window.wait(lambda: dock.job is None)
    dock.playback.movie_of_slices(tmp_path / "slices.gif")
    assert not dock.playback.cancel.isHidden()
    window.wait(lambda: not dock.playback.filming)
    with Image.open(tmp_path / "slices.gif") as movie:
        assert movie.n_frames == 6
    dock.playback.movie_of_view(tmp_path / "view.gif")
    window.wait(lambda: not dock.playback.filming)
    with Image.open(tmp_path / "view.gif") as movie:
        assert movie.size == window.viewer.screenshot(canvas_only=True, flash=False).shape[1::-1]
    assert float(window.layer("small: dps").data.max()) == 6  # back at the newest
    dock.playback.movie_of_view(tmp_path / "stopped.gif")
    window.press(dock.playback.cancel)
    assert not dock.playback.filming
    assert not (tmp_path / "stopped.gif").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_samples_end_as_layers_ranked_with_words_on_their_spread(
    window: Window, monkeypatch: pytest.MonkeyPatch, small_scan: Scan
) -> None:
    sampler = Sampler(steps=2, samples=3)
    use(monkeypatch, sampler)
    window.press(window.dock.run_button)
    sampler.let(5)
    window.wait(lambda: window.dock.job is None)
    assert small_scan.truth is not None
    truth = small_scan.truth.phase
    best = window.layer("small: dps, sample 1")
    np.testing.assert_allclose(best.data, truth, atol=1e-6)  # drawn as the second of three
    told = re.search(r"sample by sample: ([\d., ]+)\.", window.dock.status.text())
    assert told is not None
    deviances = [float(word) for word in told[1].split(", ")]
    assert len(deviances) == 3
    assert deviances == sorted(deviances)
    np.testing.assert_allclose(window.layer("small: dps, mean").data, truth, atol=1e-6)
    np.testing.assert_allclose(window.layer("small: dps, spread").data, 0.5 * truth, atol=1e-6)
    assert not best.visible
    assert "Measured against this scan's truth" in window.dock.status.text()


def test_two_run_side_by_side_each_with_its_own_pause_and_stop(
    window: Window, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sampler = Sampler(steps=1000)
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    window.press(dock.run_button)
    first, second = dock.queue.tasks
    assert second.status == "waiting"
    dock.queue_view.at_once.setValue(2)
    assert second.status == "running"
    sampler.let(2000)
    window.wait(lambda: len(first.rows) > 2 and len(second.rows) > 2)
    assert "GB taken" in dock.queue_view.memory.text()
    assert "step" in dock.queue_view.list.item(1).text()
    dock.queue_view.list.setCurrentRow(1)
    assert dock.task is second
    window.press(dock.pause_button)
    assert (first.status, second.status) == ("running", "paused")
    window.press(dock.queue_view.beside)
    assert window.viewer.canvas.grid.enabled
    shown = [layer.name for layer in window.viewer.layers if layer.visible]
    assert sorted(shown) == ["small: dps", "small: dps 2", "small: truth"]  # in the order their first states came
    window.press(dock.run_button)
    window.press(dock.stop_button)  # the second makes room for a third, which gets a view for its volume alone
    window.wait(lambda: len(dock.queue.tasks[2].rows) > 2 and window.layer("small: dps 3, illuminated") is not None)
    shown = [layer.name for layer in window.viewer.layers if layer.visible]
    assert sorted(shown) == ["small: dps", "small: dps 2", "small: dps 3", "small: truth"]
    dock.queue_view.list.setCurrentRow(2)
    window.press(dock.stop_button)
    window.press(dock.queue_view.beside)
    for row in (1, 0):  # the run that is chosen is the one to be seen: both lie in the same place
        dock.queue_view.list.setCurrentRow(row)
        assert [task.volume.layer.visible for task in (first, second)] == [row == 0, row == 1]
        assert [task._outline.visible for task in (first, second)] == [row == 0, row == 1]
    order = window.viewer.layers.index
    for task in (first, second):  # an outline is above the volume that would cover it
        assert order(task._outline) > order(task.volume.layer)
    window.press(dock.stop_button)
    window.wait(lambda: first.job not in dock.queue.jobs)  # ended, and the window has heard of it
    assert "Stopped." in dock.status.text()
    window.wait(lambda: not dock.queue.jobs)
    assert {yaml.safe_load((task.out / "run.yaml").read_text())["status"] for task in (first, second)} == {"stopped"}


def test_a_run_that_waits_is_taken_out_of_the_queue(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(steps=3)
    use(monkeypatch, sampler)
    dock = window.dock
    for _ in range(3):
        window.press(dock.run_button)
    _, second, third = dock.queue.tasks
    dock.show_task(second)
    assert dock.status.text() == "Waits for its turn: 1 running, 2 in the queue."
    window.press(dock.stop_button)
    assert dock.status.text() == "Taken out of the queue."
    assert not second.out.exists()
    sampler.let(50)
    window.wait(lambda: third.job.ended and not dock.queue.jobs)
    assert [task.status for task in dock.queue.tasks] == ["finished", "stopped", "finished"]


def test_a_run_stays_in_the_queue_until_the_window_has_told_of_its_end(
    window: Window, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampler = Sampler(steps=3)
    use(monkeypatch, sampler)
    dock = window.dock
    window.press(dock.run_button)
    window.press(dock.run_button)
    first, second = dock.queue.tasks
    sampler.let(50)
    first.job.join(30)  # over, and the window, which is not asked meanwhile, has not heard of it
    assert first.job.ended
    dock.show_task(second)
    dock.stop()  # another one's end
    assert first.job in dock.queue.jobs
    dock.show_task(first)
    window.wait(lambda: not dock.queue.jobs)
    assert "Finished." in dock.status.text()


def test_old_runs_leave_the_queue_and_stay_in_results(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(steps=1)
    use(monkeypatch, sampler)
    sampler.let(1000)
    dock = window.dock
    for _ in range(KEPT + 3):
        dock.run()
        window.wait(lambda: not dock.queue.jobs)
    assert len(dock.queue.tasks) == KEPT + 1  # and the one that is shown
    assert dock.queue_view.list.count() == KEPT + 1
    assert dock.task is dock.queue.tasks[-1]
    assert len(dock.session.runs) == KEPT + 3
    assert len([layer for layer in window.viewer.layers if layer.name.startswith("small: dps")]) >= KEPT + 3


def test_closing_the_dock_stops_all_and_leaves_no_thread(window: Window, monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = Sampler(steps=1000)
    use(monkeypatch, sampler)
    dock = window.dock
    dock.queue_view.at_once.setValue(2)
    for _ in range(3):
        window.press(dock.run_button)
    tasks = dock.queue.tasks
    sampler.let(3000)
    window.wait(lambda: all(len(task.rows) > 0 for task in tasks[:2]))
    jobs = [task.job for task in tasks]
    dock.parent().destroyOnClose()
    window.wait(lambda: all(job.ended for job in jobs), 10)
    assert [job.status for job in jobs] == ["stopped"] * 3
    time.sleep(0.05)
    assert not [t for t in threading.enumerate() if t.name.startswith("mepdiff dps")]


def test_the_sampler_itself_runs_with_the_chosen_prior(window: Window, prior: Path) -> None:
    dock = window.dock
    assert dock.form is not None
    for name, text in (("steps", "2"), ("batch_size", "8")):
        dock.form.fields[name].setText(text)
        dock.form._edited()
    window.press(dock.run_button)
    window.wait(lambda: dock.job is None, 60)
    assert "Finished. 2 steps" in dock.status.text()
    assert dock.task is not None
    record = yaml.safe_load((dock.task.out / "run.yaml").read_text())
    assert record["prior"]["path"] == str(prior)
    assert record["input_path"] == str(dock.session.path)


# choosing a prior


def test_a_priors_card_is_on_hover_and_files_are_remembered(window: Window, prior: Path, qtbot: Any) -> None:
    chooser = window.dock.prior
    assert chooser.value() == str(prior)
    for words in ("parameters", "4 x 16 x 16 voxels of 1.6 x 0.2 x 0.2 Å", "data: prototypes", "steps: 3"):
        assert words in chooser.box.toolTip()
    again = PriorChooser()
    qtbot.addWidget(again)
    assert [again.box.itemData(i) for i in range(again.box.count())] == ["embedded", str(prior)]


def test_without_a_prior_samplers_do_not_run_and_say_why(window: Window, tmp_path: Path) -> None:
    dock = window.dock
    (tmp_path / "wrong.safetensors").write_bytes(b"nothing")
    dock.prior.choose(tmp_path / "wrong.safetensors")
    assert not dock.run_button.isEnabled()
    assert "no safetensors file" in dock.run_button.toolTip()
    assert "no safetensors file" in dock.prior.line.text()
    dock.method.setCurrentText("adam-best")
    assert dock.prior.isHidden()
    assert dock.run_button.isEnabled()
