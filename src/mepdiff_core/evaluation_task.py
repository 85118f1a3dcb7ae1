"""One specimen of an evaluation simulated, one method run on it: what a worker does, here or elsewhere."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mepdiff_core.arrays import save_arrays
from mepdiff_core.candidates import remembered
from mepdiff_core.crystals import Axis
from mepdiff_core.errors import InputError
from mepdiff_core.reconstruction import method_config
from mepdiff_core.runs import Run
from mepdiff_core.scan import save_scan
from mepdiff_core.settings import MepdiffConfig
from mepdiff_core.simulate import SimulationConfig, simulate_steps
from mepdiff_core.states import CrystalState, State

ANSWER = "answer.safetensors"
"""In the folder of a finished crystal run: what the method mepdiff goes on from, instead of solving the crystal again."""
Progress = Callable[[str], None]


class Superseded(Exception):
    """The evaluation that this task is of was stopped, or begun anew."""


@dataclass(frozen=True)
class Case:
    """One specimen: a crystal file along one axis, so thick, under so many electrons.

    Attributes:
        name: of its files; dose_e_per_A2: None without noise.
    """

    path: Path
    axis: Axis
    thickness_A: float
    dose_e_per_A2: float | None
    name: str

    @property
    def number(self) -> int:
        """A seed of its own, the same whatever else is evaluated: a crystal's place under the beam is one for all doses."""
        return zlib.crc32(f"{self.path.stem}_{self.axis}".encode()) % 2**31

    @property
    def key(self) -> dict[str, Any]:
        """What tells its rows from others'."""
        return {
            "crystal": self.path.stem,
            "axis": self.axis,
            "thickness_A": self.thickness_A,
            "dose_e_per_A2": self.dose_e_per_A2,
        }


@dataclass(frozen=True)
class Task:
    """A case and what to do with it.

    Attributes:
        folder: of the evaluation; turn: what its file ``turn`` says as long as this task is wanted, "" for always.
        settings: of each method that is evaluated.
    """

    folder: Path
    case: Case
    simulation: SimulationConfig
    settings: Mapping[str, Mapping[str, Any]]
    device: str
    turn: str = ""

    @property
    def scan(self) -> Path:
        return self.folder / "scans" / f"{self.case.name}.h5"

    def run(self, method: str) -> Path:
        """The folder of a method's run."""
        return self.folder / "runs" / f"{self.case.name}_{method}"

    def go_on(self) -> None:
        """Raises: Superseded."""
        turn = self.folder / "turn"
        if self.turn and (not turn.exists() or turn.read_text(encoding="utf-8") != self.turn):
            raise Superseded


def simulate_case(task: Task, progress: Progress | None = None) -> str:
    """Simulate the case, unless that is done; "" or the reason why it cannot be."""
    case, simulation = task.case, task.simulation
    try:
        if task.scan.exists():
            return ""
        config = replace(
            simulation,
            axis=case.axis,
            thickness_A=case.thickness_A,
            dose_e_per_A2=case.dose_e_per_A2,
            seed=simulation.seed + case.number,
        )
        for step in simulate_steps(case.path, config):
            task.go_on()
            if step.scan is not None:
                save_scan(step.scan, task.scan)
            elif progress:
                progress(f"{case.name}: simulating pattern {step.step} of {step.total}")
    except Superseded:
        raise
    except Exception as error:
        return _reason(error)
    return ""


def run_method(task: Task, method: str, trouble: str, *before: object, progress: Progress | None = None) -> dict[str, Any]:
    """Reconstruct a case, or go on with that; the method's row of the table, with the reason where it fails.

    Args:
        trouble: what ``simulate_case`` said; before: rows that had to be there first.
    """
    row = {**task.case.key, "method": method, "network_calls": 0, "error": trouble}
    if trouble:
        return row
    folder = task.run(method)
    solved = task.run("crystal") / ANSWER if method == "mepdiff" and _same_crystal(task.settings) else None
    if solved is not None and not solved.exists():
        solved = None
    try:
        resume = (folder / "run.yaml").exists()
        run = Run(task.scan, folder, method, task.settings[method], task.device, resume=resume, solved=solved)
        last: State | None = None
        for state in run.states():
            task.go_on()
            if progress:
                progress(f"{task.case.name}: {method} step {state.step} of {state.total}, loss {state.loss:.5g}")
            last = state
        if method == "crystal" and isinstance(last, CrystalState):
            save_arrays(remembered(last), folder / ANSWER)
    except Superseded:
        raise
    except Exception as error:
        # one crystal's trouble, whatever it is, is its row and not the end of the others
        return row | {"error": _reason(error)}
    return row | run.metrics


def _same_crystal(settings: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether mepdiff would solve just the crystal that the method crystal solves."""
    if not {"crystal", "mepdiff"} <= settings.keys():
        return False
    mine = method_config("mepdiff", settings["mepdiff"])
    if not isinstance(mine, MepdiffConfig) or mine.refine.active:
        return False
    return mine.solver == method_config("crystal", settings["crystal"])


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if isinstance(error, InputError) else f"{type(error).__name__}: {text}"
