"""Multislice electron ptychography with priors: simulate, reconstruct, compare. Headless; imports no heavy library."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "Optics": "optics",
    "Scan": "scan",
    "load_scan": "scan",
    "save_scan": "scan",
    "Calibration": "calibration",
    "calibrate": "calibration",
    "SimulationConfig": "simulate",
    "simulate_scan": "simulate",
    "ModelConfig": "settings",
    "AdamConfig": "settings",
    "Constraints": "settings",
    "RefineConfig": "settings",
    "PrepareConfig": "prepare_config",
    "prepare": "preparation",
    "CrystalConfig": "settings",
    "LBFGSConfig": "settings",
    "State": "states",
    "CrystalState": "states",
    "reconstruct": "reconstruction",
    "ProbeFitConfig": "fit_settings",
    "fit_probe": "probe",
    "evaluate": "evaluation",
    "TrainConfig": "train_config",
    "SampleConfig": "sample",
    "load_prior": "weights",
    "sample_prior": "sample",
    "Job": "jobs",
    "InputError": "errors",
}
__all__ = [*_PUBLIC]

if TYPE_CHECKING:
    from mepdiff_core.calibration import Calibration, calibrate
    from mepdiff_core.errors import InputError
    from mepdiff_core.evaluation import evaluate
    from mepdiff_core.fit_settings import ProbeFitConfig
    from mepdiff_core.jobs import Job
    from mepdiff_core.optics import Optics
    from mepdiff_core.preparation import prepare
    from mepdiff_core.prepare_config import PrepareConfig
    from mepdiff_core.probe import fit_probe
    from mepdiff_core.reconstruction import reconstruct
    from mepdiff_core.sample import SampleConfig, sample_prior
    from mepdiff_core.scan import Scan, load_scan, save_scan
    from mepdiff_core.settings import AdamConfig, Constraints, CrystalConfig, LBFGSConfig, ModelConfig, RefineConfig
    from mepdiff_core.simulate import SimulationConfig, simulate_scan
    from mepdiff_core.states import CrystalState, State
    from mepdiff_core.train_config import TrainConfig
    from mepdiff_core.weights import load_prior


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"mepdiff_core.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'mepdiff_core' has no attribute '{name}'")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
