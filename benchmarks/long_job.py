"""Does a job of an hour grow in memory, or hold up the window more and more?

Two jobs run side by side in the window's Reconstruct dock, run folders and all: PtyRAD's Adam on the sample scan, pass
after pass, and a synthetic sampler that streams some 20 states a second, each with its noisy state. After a first minute,
every few minutes are printed: the states so far, the memory of the process, and the gaps between the beats of a timer of
5 ms in the main thread since the line before.

    xvfb-run -a -s "-screen 0 1600x1000x24" python benchmarks/long_job.py --minutes 60
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from heartbeat import open_window, synthetic

RATE = 20


def streaming(*arguments: Any) -> Iterator[Any]:
    """The states of ``synthetic``, some RATE a second."""
    for state in synthetic(*arguments):
        yield state
        time.sleep(1 / RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--every", type=float, default=5, help="minutes between two lines")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_CONFIG"] = f"{folder}/settings.yaml"
        measure(folder, arguments.minutes, arguments.every)


def measure(folder: str, minutes: float, every: float) -> None:
    import numpy as np
    import psutil
    from qtpy.QtCore import QEventLoop, QTimer

    from mepdiff_core.reconstruction import METHODS, Method
    from mepdiff_core.settings import AdamConfig

    endless = AdamConfig(iterations=10_000_000, engine="fast", seed=1)
    METHODS["synthetic"] = Method("a benchmark", endless, streaming)
    viewer, dock = open_window(folder)
    dock.queue_view.at_once.setValue(2)
    for method in ("synthetic", "adam"):
        dock.method.setCurrentText(method)
        dock.form.set_value(endless)
        dock.form._edited()
        dock.run()
    beats: list[float] = []
    timer = QTimer()
    timer.timeout.connect(lambda: beats.append(time.perf_counter()))
    timer.start(5)

    def spin(seconds: float) -> None:
        loop = QEventLoop()
        QTimer.singleShot(round(1000 * seconds), loop.quit)
        loop.exec()

    began, lines = time.perf_counter(), 0
    print("minutes   states: synthetic    Adam   memory MB   gap ms: median    p95     max", flush=True)
    while True:
        at = min(1.0 if not lines else lines * every, minutes)
        spin(max(0.0, 60 * at - (time.perf_counter() - began)))
        lines += 1
        passed = (time.perf_counter() - began) / 60
        gaps = 1e3 * np.diff(beats)
        beats.clear()
        steps = [task.rows[-1].step if task.rows else 0 for task in dock.queue.tasks]
        memory = psutil.Process().memory_info().rss / 1e6
        print(
            f"{passed:7.1f} {steps[0]:19} {steps[1]:7} {memory:11.0f} {np.median(gaps):16.1f}"
            f" {np.percentile(gaps, 95):6.1f} {gaps.max():7.1f}",
            flush=True,
        )
        if at == minutes:
            break
    for task in dock.queue.tasks:
        task.stop()
    while dock.queue.jobs:
        spin(0.2)
    print("; ".join(task.line for task in dock.queue.tasks))
    viewer.close()


if __name__ == "__main__":
    main()
