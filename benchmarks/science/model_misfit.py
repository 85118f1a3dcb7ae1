"""How well each way to model a scan explains it AT THE TRUTH: the error that bounds what any method can know about depth.

    python benchmarks/science/model_misfit.py --structures DIR --out model_misfit.csv

For each crystal a scan is simulated with abTEM's potentials at 0.1 Å, with and without noise. The true phase volume at
0.2 Å is put into each model; R and rel compare with the noise-free patterns, the misfit in nats with the noisy ones,
beside a model that is exact (the noise-free patterns themselves).
"""

from __future__ import annotations

import argparse
import csv
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from mepdiff_core.crystals import cut_box
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Poisson
from mepdiff_core.metrics import r_factor
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.structure_files import read_crystal
from mepdiff_core.volumes import SEAM_MARGIN_A, render_phase

MODELS = {
    "0.2 Å, 128 px": ModelConfig(),
    "the same, paraxial": ModelConfig(paraxial=True),
    "window x 2": ModelConfig(window=2),
    "window x 3": ModelConfig(window=3),
    "0.1 Å inside": ModelConfig(sampling=2),
    "window x 2, 0.1 Å inside": ModelConfig(window=2, sampling=2),
}


def nats(intensity: np.ndarray, scan: Scan, indices: np.ndarray) -> float:
    """Negative log-likelihood of the noisy patterns, with the background of 1e-7 of the beam a pixel, float64."""
    expected = (intensity.astype(np.float64) + Poisson().background) * scan.electrons_per_pattern
    return float(np.sum(expected - scan.patterns()[indices] * np.log(expected)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--structures", type=Path, required=True)
    parser.add_argument("--crystals", default="SrTiO3,LaMoO4,LiCoO2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=14, help="take every n-th pattern")
    arguments = parser.parse_args()
    with arguments.out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["crystal", "model", "R_percent", "rel_percent", "nats_above_exact", "patterns"])
        for name in arguments.crystals.split(","):
            config = SimulationConfig(origin_A=(0.0, 0.3, 0.7))
            path = arguments.structures / f"{name}.cif"
            clean = simulate_scan(path, replace(config, dose_e_per_A2=None))
            noisy = simulate_scan(path, config)
            indices = np.arange(0, clean.n_patterns, arguments.every)
            measured = clean.patterns()[indices].astype(np.float64)
            exact = nats(measured, noisy, indices)
            predictions = {}
            for label, model_config in MODELS.items():
                model = ForwardModel(clean, 8, 1.6, model_config)
                volume = wide_truth(path, config, model.margin, clean)
                predictions[label] = model.predict(torch.tensor(volume), indices).numpy()
            predictions["0.2 Å, 128 px, probe fitted"] = with_fitted_probe(noisy, indices)
            predictions["window x 2, volume at 0.1 Å"] = with_fine_volume(path, config, clean, indices)
            for label, predicted in predictions.items():
                rel = np.linalg.norm(predicted - measured) / np.linalg.norm(measured)
                difference = nats(predicted, noisy, indices) - exact
                row = [f"{100 * r_factor(predicted, measured):.2f}", f"{100 * rel:.2f}", f"{difference:.0f}", len(indices)]
                writer.writerow([name, label, *row])
                print(name, label, *row, file=sys.stderr)
                file.flush()


def wide_truth(path: Path, config: SimulationConfig, margin: int, scan: Scan, factor: int = 1) -> np.ndarray:
    """The true volume over a field wider by ``margin`` pixels on each side, rendered on a grid ``factor`` times finer."""
    assert scan.truth is not None
    assert config.origin_A is not None
    pixel, seam = scan.pixel_size_A, round(SEAM_MARGIN_A / scan.pixel_size_A)
    pad = margin + seam
    height, width = (n + 2 * pad for n in scan.truth.phase.shape[1:])
    z, y, x = config.origin_A
    start = (z, y + scan.truth.origin_A[1] - pad * pixel, x + scan.truth.origin_A[2] - pad * pixel)
    box = cut_box(read_crystal(path), config.axis, (config.thickness_A, height * pixel, width * pixel), start)
    wide = render_phase(box, scan.optics.energy_eV, (height * factor, width * factor), config.slice_thickness_A)
    inner = slice(seam * factor, -seam * factor)
    return wide[:, inner, inner].astype(np.float32)


def with_fine_volume(path: Path, config: SimulationConfig, scan: Scan, indices: np.ndarray) -> np.ndarray:
    """The widest model with the truth rendered at 0.1 Å, which no volume at 0.2 Å holds: what is left is its band limit."""
    model = ForwardModel(scan, 8, 1.6, ModelConfig(window=2, sampling=2))
    fine = torch.tensor(wide_truth(path, config, model.margin, scan, factor=2))
    transmission = torch.polar(torch.ones_like(fine), fine)[None]
    with torch.no_grad():
        parts = [
            model.multislice.intensity(model.multislice.exit_spectrum(transmission, indices[i : i + 8])[0])[0]
            for i in range(0, len(indices), 8)
        ]
    return torch.fft.fftshift(torch.cat(parts), dim=(-2, -1)).numpy()


def with_fitted_probe(scan: Scan, indices: np.ndarray, iterations: int = 100) -> np.ndarray:
    """The 0.2 Å model with the probe fitted at the truth, on the patterns that are not judged."""
    assert scan.truth is not None
    model, volume = ForwardModel(scan, 8, 1.6), torch.tensor(scan.truth.phase)
    others = np.setdiff1d(np.arange(scan.n_patterns), indices)
    probe = torch.nn.Parameter(torch.view_as_real(model.multislice.probe.clone()))
    optimizer = torch.optim.Adam([probe], lr=3e-6)
    rng = np.random.default_rng(0)
    for _ in range(iterations):
        _, _, gradient = model.loss_and_gradient(volume, rng.choice(others, 64, replace=False), Poisson(), want_probe=True)
        assert gradient is not None
        probe.grad = torch.view_as_real(gradient)
        optimizer.step()
        model.multislice.set_probe(torch.view_as_complex(probe.detach()))
    return model.predict(volume, indices).numpy()


if __name__ == "__main__":
    main()
