"""What real experiments do to a scan, done on purpose, found and mended: parameter errors and SSIM beside the clean scan's.

    python benchmarks/science/real_conditions.py

SrTiO3, simulated with its atoms at 0.1 Å in a window twice as wide; 14 x 14 positions 0.512 Å apart, turned by 25 degrees,
64 px to 2.5 1/Å, 60 Å over focus, 9.6 Å thick, 1e6 e/Å². Reconstructed by adam-best on the fast engine, once as it is and
once mended. (The tilt is that of the forward model on finer pixels, for simulations have none.)
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core.baselines import run_adam
from mepdiff_core.calibration import calibrate, calibration_of
from mepdiff_core.fit_settings import ThicknessConfig
from mepdiff_core.forward import ForwardModel
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.optics import Optics
from mepdiff_core.preparation import cut_truth, prepare
from mepdiff_core.prepare_config import PrepareConfig
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ADAM_BEST, AdamConfig, ModelConfig, RefineConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.thickness import fit_thickness

ROTATION, SHIFT, DRIFT_A, SOURCE_A, TILT, GAIN, PEDESTAL = 25.0, (2.5, -1.5), 0.3, 0.25, (5.0, -3.0), 0.25, 6.0
VORTEX, SIZES_A = 0.25, (0.0, 0.15, 0.25, 0.35, 0.5)
DEAD, HOT = [(30, 33), (30, 34), (22, 40), (35, 27)], [(12, 50), (32, 32), (45, 20)]
CONFIG = SimulationConfig(
    optics=Optics(overfocus_A=60.0),
    scan_shape=(18, 18),
    scan_step_A=0.512,
    scan_rotation_deg=ROTATION,
    detector_pixels=64,
    thickness_A=9.6,
    origin_A=(0.3, 0.2, 0.4),
)
INNER = slice(2, 16)


@dataclass(frozen=True)
class Case:
    """One thing that goes wrong.

    Attributes:
        spoil: of the clean scan.
        mend: what is done against it, of the settings for mepdiff prepare.
        config: of the reconstruction.
        found: how far from the truth what was found is, in words.
    """

    name: str
    spoil: Callable[[Scan], Scan]
    mend: PrepareConfig
    config: AdamConfig
    found: Callable[[Scan, Any], str]


def inner(big: Scan, counts: np.ndarray | None = None) -> Scan:
    """The middle of the scan; the truth reaches farther than it."""
    positions = big.positions_A.reshape(18, 18, 2)[INNER, INNER].reshape(-1, 2)
    part = replace(big, counts=(big.counts if counts is None else counts)[INNER, INNER], positions_A=positions, truth=None)
    return replace(part, truth=cut_truth(big, part))


def blurred(crystal: Path) -> np.ndarray:
    """Counts of a Gaussian source, as the sum of point sources."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(3)
    places, weights = nodes * SOURCE_A / np.sqrt(8 * np.log(2)), weights / weights.sum()
    total = 0.0
    for y, wy in zip(places, weights, strict=True):
        for x, wx in zip(places, weights, strict=True):
            origin = (CONFIG.origin_A[0], CONFIG.origin_A[1] + y, CONFIG.origin_A[2] + x)
            total = total + wy * wx * simulate_scan(crystal, replace(CONFIG, origin_A=origin, dose_e_per_A2=None)).counts
    electrons = CONFIG.dose_e_per_A2 * CONFIG.scan_step_A**2
    return np.random.default_rng(1).poisson(np.asarray(total, np.float64) * electrons)


def two_modes(scan: Scan) -> npt.NDArray[np.complex64]:
    """The scan's probe and a vortex that holds a part of the beam, (2, y, x)."""
    first = scan.get_probe()[0]
    k = np.arange(scan.n_pixels) - scan.n_pixels // 2
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(first))) * (k[:, None] + 1j * k)
    second = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum)))
    second /= np.linalg.norm(second)
    return np.stack([np.sqrt(1 - VORTEX) * first, np.sqrt(VORTEX) * second]).astype(np.complex64)


def mixed(scan: Scan) -> Scan:
    """A beam of two modes."""
    assert scan.truth is not None
    model = ForwardModel(scan, len(scan.truth.phase), 1.6, probe=two_modes(scan))
    patterns = model.predict(torch.as_tensor(scan.truth.phase), np.arange(scan.n_patterns)).numpy()
    counts = np.random.default_rng(5).poisson(patterns * scan.electrons_per_pattern)
    return replace(scan, counts=counts.reshape(scan.counts.shape))


def shifted(crystal: Path) -> np.ndarray:
    """Counts of a detector that lies off by halves of a pixel: every other pixel of one twice as fine."""
    fine = simulate_scan(crystal, replace(CONFIG, detector_pixels=128, window=1, dose_e_per_A2=None)).counts
    half = 4 * np.roll(fine, (1, 1), (2, 3))[..., ::2, ::2]
    electrons = CONFIG.dose_e_per_A2 * CONFIG.scan_step_A**2
    return np.random.default_rng(4).poisson(np.roll(half, (2, -2), (2, 3)).astype(np.float64) * electrons)


def drifted(scan: Scan) -> tuple[Scan, np.ndarray]:
    """Positions on record that are wrong by a random walk."""
    walk = np.cumsum(np.random.default_rng(2).normal(0, 1, (scan.n_patterns, 2)), axis=0)
    walk -= walk.mean(0)
    walk *= DRIFT_A / np.sqrt(np.mean(np.sum(walk**2, axis=1)))
    return replace(scan, positions_A=scan.positions_A + walk), walk


def tilted(scan: Scan, times: int = 1) -> Scan:
    """A tilted specimen, some times as thick."""
    assert scan.truth is not None
    phase = np.concatenate([scan.truth.phase] * times)
    model = ForwardModel(scan, len(phase), 1.6, ModelConfig(sampling=2, tilt_mrad=TILT))
    patterns = model.predict(torch.as_tensor(phase), np.arange(scan.n_patterns)).numpy()
    counts = np.random.default_rng(3).poisson(patterns * scan.electrons_per_pattern)
    return replace(scan, counts=counts.reshape(scan.counts.shape))


def faulty(scan: Scan) -> Scan:
    counts = scan.counts.astype(np.int64)
    for y, x in DEAD:
        counts[..., y, x] = 0
    for y, x in HOT:
        counts[..., y, x] = 2 * counts[..., y, x] + 700
    return replace(scan, counts=counts)


def cases(big: Scan, crystal: Path, best: AdamConfig) -> list[Case]:
    refine = replace(best, refine=RefineConfig(position_rate_A=0.05))
    modes = replace(best, refine=RefineConfig(probe_rate=0.02, probe_modes=2))
    wide = inner(big, blurred(crystal))
    *_, end = fit_thickness(wide, ThicknessConfig(9.6, 9.6, 1, slice_thickness_A=3.2, source_sizes_A=SIZES_A))
    source = end.best()
    blur = replace(best, model=ModelConfig(probe_modes=source.probe_modes, source_size_A=source.source_size_A))
    walk = drifted(inner(big))[1]
    lean = replace(best, model=ModelConfig(tilt_mrad=TILT))

    def value(name: str) -> Callable[[Scan, Any], Any]:
        return lambda scan, _: scan.info["prepared"][-1]["found"][name]

    def left(scan: Scan, state: Any) -> str:
        rest = state.refined.positions_A - (scan.positions_A - walk)
        return f"{np.sqrt(np.mean(np.sum((rest - rest.mean(0)) ** 2, axis=1))):.3f} Å rms left of {DRIFT_A} Å"

    def two(scan: Scan, state: Any) -> str:
        found, true = (probe.reshape(len(probe), -1) for probe in (state.refined.probe, two_modes(scan)))
        fidelity = np.linalg.svd(found.conj() @ true.T, compute_uv=False).sum() ** 2
        return f"{np.sum(np.abs(found[1]) ** 2):.1%} in the second, fidelity {fidelity:.3f}"

    def pixels(scan: Scan, _: Any) -> str:
        found = scan.info["prepared"][-1]["found"]
        right = [
            sorted(map(tuple, found[f"{kind}_pixels"])) == sorted(true) for kind, true in (("dead", DEAD), ("hot", HOT))
        ]
        return f"{len(DEAD)} dead and {len(HOT)} hot pixels: {'all, and no other' if all(right) else 'not all'}"

    def tilt(scan: Scan, _: Any) -> str:
        words = []
        for times in (1, 2, 4):
            config = ThicknessConfig(9.6 * times, 9.6 * times, 1, slice_thickness_A=3.2, tilt=True)
            *_, end = fit_thickness(tilted(inner(big), times), config)
            off = np.subtract(end.best().tilt_mrad, TILT)
            words.append(f"{off[0]:+.1f}, {off[1]:+.1f} mrad off in {9.6 * times:.3g} Å")
        return "; ".join(words)

    keep = PrepareConfig()
    return [
        Case("nothing", lambda s: s, keep, best, lambda s, r: ""),
        Case(
            "rotation 25°, told 0°",
            lambda s: calibrate(s, {"scan_rotation_deg": 0.0}),
            PrepareConfig(rotation="find"),
            best,
            lambda s, r: f"{calibration_of(s).scan_rotation_deg - ROTATION:+.2f}° off",
        ),
        Case(
            "patterns mirrored too",
            lambda s: calibrate(replace(s, counts=s.counts.swapaxes(2, 3)), {"scan_rotation_deg": 0.0}),
            PrepareConfig(rotation="mirror"),
            best,
            lambda s, r: f"{calibration_of(s).scan_rotation_deg - ROTATION:+.2f}° off, mirroring {value('mirrored')(s, r)}",
        ),
        Case(
            "patterns shifted by 2.5, -1.5 px",
            lambda s: inner(big, shifted(crystal)),
            PrepareConfig(centre="mean"),
            best,
            lambda s, r: "{:+.2f}, {:+.2f} px off".format(*np.add(value("mean_shift_px")(s, r), SHIFT)),
        ),
        Case("positions drift, 0.3 Å rms", lambda s: drifted(s)[0], keep, refine, left),
        Case(f"two probe modes, {VORTEX:.0%} in a vortex", mixed, keep, modes, two),
        Case(
            f"source of {SOURCE_A} Å",
            lambda s: wide,
            keep,
            blur,
            lambda s, r: f"{source.source_size_A:g} Å of {', '.join(f'{size:g}' for size in SIZES_A)}",
        ),
        Case("tilt of 5, -3 mrad", tilted, keep, lean, tilt),
        Case("dead and hot pixels", faulty, PrepareConfig(fill_bad_pixels=True), best, pixels),
        Case(
            "4 counts an electron, background 6",
            lambda s: replace(s, counts=s.counts / GAIN + PEDESTAL),
            PrepareConfig(background=None, electrons_per_count=None, beam="sum"),
            best,
            lambda s, r: (
                f"gain {100 * (value('electrons_per_count')(s, r) / GAIN - 1):+.1f} %, "
                f"background {value('background')(s, r) - PEDESTAL:+.2f} counts"
            ),
        ),
        Case(
            "detector pixel told 10 % small",
            lambda s: replace(s, k_step_invA=0.9 * s.k_step_invA),
            PrepareConfig(calibrate="k_step"),
            best,
            lambda s, r: f"{100 * (s.k_step_invA * 32 / 2.5 - 1):+.2f} %",
        ),
    ]


def score(big: Scan, scan: Scan, config: AdamConfig) -> tuple[float | None, Any]:
    """SSIM of slices against the truth where it can be laid over the scan, and the last state."""
    *_, state = run_adam(scan, config)
    # a pixel that is off by a fraction of a percent is another grid on paper alone
    near = replace(scan, k_step_invA=big.k_step_invA) if abs(scan.k_step_invA / big.k_step_invA - 1) < 0.01 else scan
    truth = cut_truth(big, replace(near, truth=None))
    if truth is None:
        return None, state
    height, width = np.minimum(truth.phase.shape[1:], state.volume.shape[1:])
    return volume_metrics(state.volume[:, :height, :width], truth.phase[:, :height, :width])["ssim_2d"], state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=80, help="passes over the patterns (default 80)")
    arguments = parser.parse_args()
    best = replace(ADAM_BEST, engine="fast", iterations=arguments.steps, patience=None, slices=6)
    with resources.as_file(resources.files("mepdiff_core").joinpath("data/SrTiO3.cif")) as crystal:
        big = simulate_scan(crystal, CONFIG)
        clean = None
        print("| what is wrong | found, to | SSIM as it is | SSIM mended | of the clean scan's |")
        print("|---|---|---:|---:|---:|")
        for case in cases(big, crystal, best):
            raw = case.spoil(inner(big))
            before, _ = score(big, raw, best)
            ready = prepare(raw, case.mend) if case.mend != PrepareConfig() else raw
            after, state = (before, None) if case.name == "nothing" else score(big, ready, case.config)
            clean = clean or after
            shown = [f"{v:.3f}" if v is not None else "–" for v in (before, after)]
            share = f"{100 * after / clean:.0f} %" if after is not None and clean else "–"
            print(f"| {case.name} | {case.found(ready, state)} | {shown[0]} | {shown[1]} | {share} |", flush=True)


if __name__ == "__main__":
    main()
