"""The default method where the beam is not what the record says: drift, two modes, a tilt, a beam stop; SSIM and seconds.

    python benchmarks/science/default_under_real_conditions.py [--crystal SrTiO3.cif]

A planted cell, strontium and oxygen as in CsCl with a = 3.2 Å, through 6.4 Å; 14 x 14 positions 0.6 Å apart, 64 px, 100 Å
over focus. Composition and period are told. With --crystal a crystal of which nothing is told, through 12.8 Å, under the
paper's optics in patterns of 128 px. What goes wrong and what mends it are those of real_conditions.py.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from real_conditions import TILT, drifted, inner, mixed, tilted

from mepdiff_core.candidates import run_mepdiff
from mepdiff_core.crystals import Crystal
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.optics import Optics
from mepdiff_core.preparation import cut_truth
from mepdiff_core.scan import Scan
from mepdiff_core.settings import CrystalConfig, MepdiffConfig, ModelConfig, RefineConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.states import CrystalState
from mepdiff_core.structure_files import read_crystal

PLANTED = Crystal("SrO", 3.2 * np.eye(3), np.array([38, 8]), np.array([[0, 0, 0], [0.5, 0.5, 0.5]]))
SCAN = SimulationConfig(
    optics=Optics(overfocus_A=100.0),
    scan_shape=(18, 18),
    scan_step_A=0.6,
    detector_pixels=64,
    thickness_A=6.4,
    origin_A=(0.3, 0.2, 0.4),
    seed=3,
)
KNOWN = CrystalConfig(rounds=1, patterns=12, samples=0, composition="SrO", period_A=3.2)
AS_IT_IS = MepdiffConfig(slices=4, crystal=KNOWN)
PAPERS_SCAN = SimulationConfig(scan_shape=(18, 18), origin_A=(0.3, 0.2, 0.4), seed=3)
NOTHING_TOLD = MepdiffConfig(crystal=CrystalConfig(samples=0))
DRIFT = RefineConfig(position_rate_A=0.05)
MODES = RefineConfig(probe_rate=0.05, probe_modes=2)


@dataclass(frozen=True)
class Case:
    """Attributes: ``name``; ``spoil`` of the clean scan; ``mend``: settings that are told or find what is wrong."""

    name: str
    spoil: Callable[[Scan], Scan]
    mend: dict[str, Any] = field(default_factory=dict)


def behind_a_stop(scan: Scan) -> Scan:
    """The arm of a beam stop from the edge to beyond the middle, with nonsense behind it, known as blind."""
    blind = np.zeros((scan.n_pixels,) * 2, bool)
    middle, half = scan.n_pixels // 2, scan.n_pixels // 32
    blind[middle - half : middle + half, : middle + half] = True
    nonsense = np.random.default_rng(0).integers(0, 4000, scan.counts.shape)
    return replace(scan, counts=np.where(blind, nonsense, scan.counts), blind=blind)


CASES = [
    Case("nothing", lambda scan: scan),
    Case("beam stop, blind", behind_a_stop),
    Case("positions drift, 0.3 Å rms", lambda scan: drifted(scan)[0], {"refine": DRIFT}),
    Case("two probe modes, 25 % in a vortex", mixed, {"refine": MODES, "refine_passes": 40}),
    Case("tilt of 5, -3 mrad", tilted, {"model": ModelConfig(tilt_mrad=TILT)}),
]


def solve(big: Scan, scan: Scan, config: MepdiffConfig) -> tuple[float, str, float]:
    """SSIM of slices, what the answer is in a word, and the seconds it took."""
    began = time.perf_counter()
    *_, state = run_mepdiff(scan, config)
    truth = cut_truth(big, replace(scan, truth=None))
    assert truth is not None
    height, width = np.minimum(truth.phase.shape[1:], state.volume.shape[1:])
    ssim = volume_metrics(state.volume[:, :height, :width], truth.phase[:, :height, :width])["ssim_2d"]
    formula = state.cell.formula if isinstance(state, CrystalState) and state.cell is not None else "the prior's volume"
    return ssim, formula, time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crystal", type=Path, help="a CIF file of which nothing is told, instead of the planted cell")
    parser.add_argument("--as-it-is", action="store_true", help="also without what mends it")
    arguments = parser.parse_args()
    if arguments.crystal:
        big, known = simulate_scan(read_crystal(arguments.crystal), PAPERS_SCAN), NOTHING_TOLD
    else:
        big, known = simulate_scan(PLANTED, SCAN), AS_IT_IS
    clean = None
    print("| what is wrong | SSIM as it is | SSIM mended | of the clean scan's | answer | seconds |")
    print("|---|---:|---:|---:|---|---:|")
    for case in CASES:
        scan = case.spoil(inner(big))
        before = ""
        if arguments.as_it_is and case.mend:
            ssim, formula, _ = solve(big, scan, known)
            before = f"{ssim:.3f}, {formula}"
        ssim, formula, seconds = solve(big, scan, replace(known, **case.mend))
        clean = clean or ssim
        print(
            f"| {case.name} | {before} | {ssim:.3f} | {100 * ssim / clean:.0f} % | {formula} | {seconds:.0f} |", flush=True
        )


if __name__ == "__main__":
    main()
