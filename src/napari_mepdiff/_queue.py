"""Several reconstructions in one window: in a queue, or some at once; and what memory they leave."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari.utils.notifications import show_info
from qtpy.QtCore import QObject, QTimer, Signal
from qtpy.QtWidgets import QFormLayout, QLabel, QListWidget, QSpinBox, QVBoxLayout, QWidget

from mepdiff_core.jobs import Job
from mepdiff_core.memory import memory_in_words
from mepdiff_core.sections import PlacedVolume
from napari_mepdiff._dock import button, words
from napari_mepdiff._export import Request
from napari_mepdiff._session import session_of
from napari_mepdiff._side_by_side import RunLayers
from napari_mepdiff._task import Task

LOOK_MS = 1000
LIST_HEIGHT = 84
KEPT = 6
"""Tasks that have ended and are kept here with their scans and states; older ones are in Results, and their layers stay."""


class Queue(QObject):
    """Tasks in the order they were asked for; so many run at once.

    Attributes:
        changed: signal; a task has come, begun, come further, or ended.
        tasks: all of this window.
        jobs: of those that have not ended, for somebody who has to stop them all.
        at_once: how many run side by side.
        shown: the one that a dock shows, which is kept.
    """

    changed = Signal()

    def __init__(self, viewer: Any, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.viewer = viewer
        self.tasks: list[Task] = []
        self.jobs: list[Job[Any, Any]] = []
        self.at_once = 1
        self.shown: Task | None = None

    def add(self, request: Request, out: Path, before: Task | None = None) -> Task:
        """Ask for a reconstruction; with ``before``, go on with that one, in its place."""
        task = Task(self.viewer, request, session_of(self.viewer).name_run(out, request.method), out, before, self)
        task.in_front = self.shown is None or self.shown is before
        task.advanced.connect(self.changed)
        task.ended.connect(self._ended)
        if before is None:
            self.tasks.append(task)
        else:
            self.tasks[self.tasks.index(before)] = task
            before.close()
        self.jobs.append(task.job)
        self._fill()
        return task

    def set_at_once(self, count: int) -> None:
        """Run so many side by side; those that run already go on."""
        self.at_once = count
        self._fill()

    def put_in_front(self, shown: Task | None) -> None:
        """Hide the layers of all other runs, unless they stand side by side: they lie in the same place."""
        if not self.viewer.canvas.grid.enabled:
            for task in self.tasks:
                task.put_in_front(task is shown)

    @property
    def waiting(self) -> list[Task]:
        """Tasks that have not begun."""
        return [task for task in self.tasks if task.status == "waiting"]

    @property
    def running(self) -> list[Task]:
        """Tasks that have begun and not ended, paused ones too."""
        return [task for task in self.tasks if task.job in self.jobs and task.status != "waiting"]

    def _fill(self) -> None:
        for task in self.waiting[: max(0, self.at_once - len(self.running))]:
            task.start()
        self.changed.emit()

    def _ended(self) -> None:
        self.jobs[:] = [task.job for task in self.tasks if task.job in self.jobs and not task.over]
        over = [task for task in self.tasks if task.over and task is not self.shown]
        for task in over[: max(0, len(over) - KEPT)]:
            self.tasks.remove(task)
            task.close()
            task.deleteLater()
        self._fill()


class QueueView(QWidget):
    """The queue as a list; the task that is chosen is the one the dock shows.

    Args:
        queue: whose tasks.

    Attributes:
        chosen: signal; a person has chosen another task.
    """

    chosen = Signal(object)

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self._queue = queue
        column = QVBoxLayout(self)
        column.setContentsMargins(0, 0, 0, 0)
        column.setSpacing(4)
        self.list = QListWidget()
        self.list.setFixedHeight(LIST_HEIGHT)
        self.list.setToolTip(
            "<qt>Click a run to see its volume, and its course below; Pause and Stop are for the one that is shown.</qt>"
        )
        self.list.currentRowChanged.connect(self._chosen)
        column.addWidget(self.list)
        form = QFormLayout()
        form.setContentsMargins(0, 0, 0, 0)
        self.at_once = QSpinBox()
        self.at_once.setRange(1, 8)
        self.at_once.setValue(queue.at_once)
        self.at_once.setToolTip("<qt>How many run at the same time; they share the device. The others wait their turn.</qt>")
        self.at_once.valueChanged.connect(queue.set_at_once)
        form.addRow(QLabel("run at once"), self.at_once)
        column.addLayout(form)
        self.beside = button(
            "Side by side",
            "A view for the volume of each run, as they form, and for the truth where it is known.",
            self._side_by_side,
        )
        self.beside.setCheckable(True)
        column.addWidget(self.beside)
        self._layers = RunLayers(queue.viewer)
        self._layers.ended.connect(self._together)
        self.memory = words()
        column.addWidget(self.memory)
        self._timer = QTimer(self)
        self._timer.timeout.connect(self._look)
        queue.changed.connect(self._refresh)

    def show_task(self, task: Task) -> None:
        """Mark the task that is shown."""
        self._refresh()
        self.list.blockSignals(True)
        self.list.setCurrentRow(self._queue.tasks.index(task))
        self.list.blockSignals(False)

    def _refresh(self) -> None:
        tasks = self._queue.tasks
        self.list.blockSignals(True)
        while self.list.count() < len(tasks):
            self.list.addItem("")
        while self.list.count() > len(tasks):
            self.list.takeItem(0)
        for row, task in enumerate(tasks):
            item = self.list.item(row)
            if item is not None and item.text() != task.line:
                item.setText(task.line)
        self.list.blockSignals(False)
        if self._queue.jobs and not self._timer.isActive():
            self._look()
            self._timer.start(LOOK_MS)
        elif not self._queue.jobs:
            self._timer.stop()
        if self._layers.side_by_side:
            self._layers.join(self._volumes())

    def _volumes(self) -> list[Any]:
        return [task.volume.layer for task in self._queue.tasks if task.volume is not None and task.volume.there]

    def _together(self) -> None:
        self._queue.put_in_front(self._queue.shown)
        self.beside.setChecked(False)

    def _side_by_side(self) -> None:
        if self._layers.side_by_side:
            self._layers.show_together()
        else:
            layers = self._volumes()
            scans = {task.request.scan: task.run.scan for task in self._queue.tasks if task.run is not None}
            truths = {path: scan.truth for path, scan in scans.items() if scan.truth is not None}
            if len(layers) + len(truths) > 1 and layers:
                for path, truth in truths.items():
                    placed = PlacedVolume(truth.phase, truth.voxel_size_A, truth.origin_A)
                    layers.insert(0, self._layers.truth(f"{path.stem}: truth", placed))
                self._layers.show_side_by_side(layers)
            else:
                show_info("There are no two volumes yet to see side by side.")
        self.beside.setChecked(self._layers.side_by_side)

    def _look(self) -> None:
        devices = {str(task.run.device) for task in self._queue.running if task.run is not None} or {"cpu"}
        self.memory.setText(" ".join(memory_in_words(device) for device in sorted(devices)))

    def _chosen(self, row: int) -> None:
        if 0 <= row < len(self._queue.tasks):
            self.chosen.emit(self._queue.tasks[row])
