"""What the docks of one viewer share: the scan, its calibration and probe, and the pattern that is looked at."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject, Signal

from mepdiff_core.calibration import Calibration, calibrate, calibration_of
from mepdiff_core.config import to_dict
from mepdiff_core.scan import Scan
from napari_mepdiff._export import changed

_sessions: dict[int, Session] = {}


class Session(QObject):
    """The scan that a viewer's docks work on.

    Attributes:
        loaded: signal; another scan is there.
        changed: signal; its calibration, slices, probe or confirmation is another.
        pattern_changed: signal; another pattern is looked at.
        runs_changed: signal; a run of this window has begun, or has come further.
        path, scan_in_file: the scan as it was read.
        calibration: what it is taken to have been measured with.
        confirmed: whether a person has said that the calibration is right.
        slices: how many the specimen is cut into.
        probe_path: a probe file used instead of the scan's own probe.
        pattern: index of the pattern that is looked at.
        runs: folders of the runs of this window, in the order they began.
        names: what these are called, by folder: their methods, numbered where there are several of one.
        scans: files of all scans that were loaded, the last one first.
    """

    loaded = Signal()
    changed = Signal()
    pattern_changed = Signal()
    runs_changed = Signal()

    def __init__(self) -> None:
        super().__init__()
        self.path: Path | None = None
        self.scan_in_file: Scan | None = None
        self.calibration: Calibration | None = None
        self.confirmed = False
        self.slices = 1
        self.probe_path: Path | None = None
        self.pattern = 0
        self.runs: list[Path] = []
        self.names: dict[Path, str] = {}
        self.scans: list[Path] = []

    def show_scan(self, path: Path, scan: Scan) -> None:
        """Take up another scan, with the calibration its file gives."""
        self.path, self.scan_in_file, self.calibration = path, scan, calibration_of(scan)
        self.confirmed, self.probe_path = False, None
        self.scans = [path, *(known for known in self.scans if known != path)]
        self.slices = suggested_slices(scan)
        self.pattern = scan.n_patterns // 2 + scan.shape[1] // 2 * (scan.shape[0] % 2 == 0)
        self.loaded.emit()
        self.changed.emit()

    def set_calibration(self, calibration: Calibration, slices: int) -> None:
        """Correct the calibration; a fitted probe of other optics is put aside."""
        before = self.calibration
        if (calibration, slices) == (before, self.slices):
            return
        if before is not None and (calibration.optics, calibration.k_step_invA) != (before.optics, before.k_step_invA):
            self.probe_path = None
        self.calibration, self.slices = calibration, slices
        self.changed.emit()

    def set_probe(self, path: Path | None) -> None:
        """Use a probe file, or the scan's own probe again."""
        self.probe_path = path
        self.changed.emit()

    def confirm(self) -> None:
        """The calibration is right."""
        self.confirmed = True
        self.changed.emit()

    def set_pattern(self, index: int) -> None:
        """Look at another pattern."""
        if self.scan_in_file is not None and index != self.pattern:
            self.pattern = min(max(index, 0), self.scan_in_file.n_patterns - 1)
            self.pattern_changed.emit()

    def name_run(self, folder: Path, method: str) -> str:
        """What a run of this window is called from now on."""
        if folder not in self.names:
            others, number, name = set(self.names.values()), 1, method
            while name in others:
                number += 1
                name = f"{method} {number}"
            self.names[folder] = name
        return self.names[folder]

    def add_run(self, folder: Path) -> None:
        """A run of this window has begun, has come further, or has ended."""
        if folder not in self.runs:
            self.runs.append(folder)
        self.runs_changed.emit()

    def scan(self) -> Scan:
        """The scan with its calibration put in, without the probe file.

        Raises:
            InputError: the calibration does not fit the scan.
        """
        assert self.scan_in_file is not None
        assert self.calibration is not None
        return calibrate(self.scan_in_file, self.calibration)

    def calibration_changes(self) -> dict[str, Any]:
        """What a person has changed of the file's calibration, as ``mepdiff_core.calibrate`` takes it."""
        if self.scan_in_file is None or self.calibration is None:
            return {}
        return changed(to_dict(calibration_of(self.scan_in_file)), to_dict(self.calibration))

    def specimen_settings(self) -> dict[str, Any]:
        """The slices, as a method's settings."""
        thickness = None if self.calibration is None else self.calibration.thickness_A
        if thickness is None:
            return {"slices": self.slices}
        return {"slices": self.slices, "slice_thickness_A": thickness / self.slices}


def session_of(viewer: Any) -> Session:
    """The one session of a viewer."""
    model = getattr(viewer, "__wrapped__", viewer)
    key = id(model)
    if key not in _sessions:
        _sessions[key] = Session()
        weakref.finalize(model, _sessions.pop, key, None)
    return _sessions[key]


def suggested_slices(scan: Scan, slice_thickness_A: float = 1.6) -> int:
    """As many slices as the truth has, else of about that thickness."""
    if scan.truth is not None:
        return len(scan.truth.phase)
    return 1 if scan.thickness_A is None else max(1, round(scan.thickness_A / slice_thickness_A))
