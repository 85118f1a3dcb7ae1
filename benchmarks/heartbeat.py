"""Does the window stay alive while a job streams states, and what does the window cost the job?

A synthetic method yields some 200 states a second of the sample scan's volume (each step transforms the volume, as a
reconstruction would). The same job, run folder and all, runs in turn without a window; in the window's Reconstruct dock; and
there while a timer of 5 ms notes when the main thread comes to it, which is work of its own. Printed, with the slices shown
(2D) and the volume (3D): the job's time in the window over its time alone, and the gaps between the beats. Then two such
jobs run side by side, one of them as a sampler does, with its noisy state in a layer of its own.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/heartbeat.py

Without a graphics card Xvfb draws on the CPU, with all cores: then the 3D view competes with the job for them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

STATES = 1500


RATE = 200
transforms = 1
"""A step; set so that some RATE steps take a second."""


def synthetic(scan: Any, config: Any, device: Any, start: Any, checkpoint: Any) -> Iterator[Any]:
    """States of a volume that grows towards the truth, each after some milliseconds of work; with a seed, a sampler's."""
    import numpy as np
    import torch

    from mepdiff_core.states import SampleState, State

    truth = torch.as_tensor(np.array(scan.truth.phase))
    lit = np.ones(truth.shape[1:], bool)
    began = time.perf_counter()
    for step in range(1, config.iterations + 1):
        volume = truth * (step / config.iterations)
        for _ in range(transforms):
            volume = torch.fft.irfft2(torch.fft.rfft2(volume), s=volume.shape[-2:])
        values = {
            "step": step,
            "total": config.iterations,
            "volume": volume.numpy(),
            "loss": 1 / step,
            "seconds": time.perf_counter() - began,
            "volume_step": step,
        }
        if config.seed:
            sigma = 10 / step
            yield SampleState(**values, sigma=sigma, log_snr=0.0, noisy=volume.numpy() + sigma, illuminated=lit)
        else:
            yield State(**values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=5, help="headless and window runs, in turn")
    parser.add_argument("--states", type=int, default=STATES)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        measure(folder, arguments.pairs, arguments.states)


def open_window(folder: str) -> tuple[Any, Any]:
    """A viewer with the sample scan confirmed, and its Reconstruct dock; runs of one thread go below a folder."""
    import napari

    from napari_mepdiff._all_steps import open_all_steps
    from napari_mepdiff._preferences import preferences

    viewer = napari.Viewer(show_welcome_screen=False)
    preferences().runs_folder = f"{folder}/runs"
    preferences().threads = 1
    viewer.open_sample("napari-mepdiff", "strontium_titanate")
    load, _, dock, *_ = open_all_steps(viewer)
    dock.parent().raise_()
    load.confirm.click()
    return viewer, dock


def measure(folder: str, pairs: int, states: int) -> None:
    import numpy as np
    import torch
    from qtpy.QtCore import QEventLoop, QTimer

    from mepdiff_core.jobs import Job
    from mepdiff_core.reconstruction import METHODS, Method
    from mepdiff_core.runs import Run
    from mepdiff_core.settings import AdamConfig
    from napari_mepdiff._sample_data import SAMPLE
    from napari_mepdiff._task import Task, record

    torch.set_num_threads(1)
    METHODS["synthetic"] = Method("a benchmark", AdamConfig(iterations=states), synthetic)
    viewer, dock = open_window(folder)
    dock.method.setCurrentText("synthetic")
    beats: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))

    def headless(number: int) -> float:
        def loop() -> Iterator[Any]:
            return Run(SAMPLE, f"{folder}/alone-{number}", "synthetic", device="cpu").states()

        job: Job[Any, Any] = Job(loop, record)
        job.start()
        job.join()
        return pace(job.take_records())

    def pace(rows: list[Any]) -> float:
        """Seconds for all states, from the second one to the last: without start and report."""
        return (rows[-1].seconds - rows[1].seconds) / (rows[-1].step - rows[1].step) * states

    def spin(until: Any) -> None:
        """Qt's own event loop, as in a running window."""
        loop, looking = QEventLoop(), QTimer()
        looking.timeout.connect(lambda: loop.quit() if until() else None)
        looking.start(50)
        loop.exec()

    def in_window(beating: bool) -> tuple[float, np.ndarray]:
        dock.run()
        return watched([dock.queue.tasks[-1]], beating)

    def two_in_window() -> tuple[float, np.ndarray]:
        dock.queue_view.at_once.setValue(2)
        for seed in (0, 1):
            dock.form.fields["seed"].set_value(seed)
            dock.form._edited()
            dock.run()
        dock.form.fields["seed"].set_value(0)
        dock.form._edited()
        return watched(dock.queue.tasks[-2:], True)

    def watched(tasks: list[Any], beating: bool) -> tuple[float, np.ndarray]:
        """Seconds for a job's states, and the gaps between beats while all of these jobs stream."""
        spin(lambda: all(len(task.rows) > 1 for task in tasks))
        beats.clear()
        if beating:
            timer.start(5)
        spin(lambda: any(task.rows[-1].step == states or task.job.ended for task in tasks))
        timer.stop()
        spin(lambda: not dock.queue.jobs)
        while len(viewer.layers) > 2:
            viewer.layers.pop()
        return max(pace(task.rows) for task in tasks), 1e3 * np.diff(beats)

    def in_words(gaps: np.ndarray) -> str:
        return f"{np.median(gaps):15.1f} {np.percentile(gaps, 95):6.1f} {gaps.max():7.1f}"

    global transforms
    while headless(-transforms) * RATE < states:
        transforms += 1
    in_window(False)
    print(f"{transforms} transforms a step")
    print(" view  alone s  window s  ratio  states/s  gap ms: median    p95     max")
    for dimensions in (2, 3):
        viewer.dims.ndisplay = dimensions
        Task._look_in_3d = lambda self: None
        for number in range(pairs):
            alone = headless(10 * number + dimensions)
            seconds, _ = in_window(False)
            _, gaps = in_window(True)
            ratio = f"{seconds / alone:6.3f} {states / seconds:9.0f}"
            print(f"{dimensions:>4}D {alone:8.2f} {seconds:9.2f} {ratio} {in_words(gaps)}", flush=True)
            seconds, gaps = two_in_window()
            print(
                f"{dimensions:>4}D  two jobs {seconds:8.2f} {'':6} {2 * states / seconds:9.0f} {in_words(gaps)}", flush=True
            )
    viewer.close()


if __name__ == "__main__":
    main()
