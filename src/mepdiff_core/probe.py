"""Probe fit: one probe and a volume for each scan, together, by Adam; then the probe is held fixed.

Source: MEP-Diffusion, appendix C (32 scans of a validation set, taken under one probe condition).
"""

from __future__ import annotations

import io
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from mepdiff_core.baselines import check_finite
from mepdiff_core.batches import make_batches
from mepdiff_core.config import check
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.files import atomic_path
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import make_likelihood
from mepdiff_core.refinement import ProbeSpectrum
from mepdiff_core.scan import Scan, specimen_slices
from mepdiff_core.settings import ModelConfig
from mepdiff_core.states import Checkpoint, ProbeState, Refined


def fit_probe(
    scans: Sequence[Scan],
    config: ProbeFitConfig | None = None,
    device: torch.device | str = "cpu",
    checkpoint: Checkpoint | None = None,
) -> Iterator[ProbeState]:
    """Fit one probe to several scans, a state an iteration.

    Args:
        scans: taken under the same probe condition: same pattern size and calibration.
        config: settings.
        device: torch device.
        checkpoint: ``State.checkpoint`` of an earlier, equal fit.

    Raises:
        InputError: no scans, or scans of different size, energy or calibration. Diverged: as for reconstructions.
    """
    config = config or ProbeFitConfig()
    check(len(scans) > 0, "no scans; give at least one")
    first = scans[0]
    for scan in scans[1:]:
        check(
            scan.optics == first.optics,
            f"the scans have different optics ({scan.optics} beside {first.optics}); one probe cannot fit both",
        )
        check(
            scan.n_pixels == first.n_pixels and math.isclose(scan.k_step_invA, first.k_step_invA, rel_tol=1e-6),
            f"the scans differ: {scan.n_pixels} px of {scan.k_step_invA:g} 1/Å beside {first.n_pixels} px of "
            f"{first.k_step_invA:g} 1/Å; one probe cannot fit both",
        )
    likelihood = make_likelihood(config.likelihood)
    models = []
    for scan in scans:
        slices = specimen_slices(scan, config.slices, config.slice_thickness_A)
        models.append(ForwardModel(scan, slices, config.slice_thickness_A, ModelConfig(), first.get_probe(), device))
    device = models[0].device

    shared = ProbeSpectrum(models[0], first, config.support)
    spectrum = shared.parameter
    volumes = [torch.nn.Parameter(torch.zeros(m.volume_shape, device=device)) for m in models]
    probe_optimizer = torch.optim.Adam([spectrum], lr=config.probe_learning_rate, betas=(0.9, 0.99))
    optimizers = [torch.optim.Adam([v], lr=config.learning_rate) for v in volumes]
    tensors = {"spectrum": (spectrum, probe_optimizer)} | {
        f"volume_{i}": (v, o) for i, (v, o) in enumerate(zip(volumes, optimizers, strict=True))
    }
    done, seconds = 0, 0.0
    if checkpoint is not None:
        done, seconds = int(checkpoint["step"]), float(checkpoint["seconds"])
        for name, (parameter, optimizer) in tensors.items():
            arrays = {key: torch.as_tensor(np.array(checkpoint[f"{name}.{key}"])) for key in ("value", *_MOMENTS, "steps")}
            parameter.data.copy_(arrays["value"])
            optimizer.state[parameter] = {"step": arrays["steps"], **{key: arrays[key].to(device) for key in _MOMENTS}}

    for step in range(done + 1, config.iterations + 1):
        began = time.perf_counter()
        for group in probe_optimizer.param_groups:
            group["lr"] = config.probe_learning_rate * 0.1 ** ((step - 1) / max(1, config.iterations - 1))
        losses = []
        for index, (model, volume, optimizer) in enumerate(zip(models, volumes, optimizers, strict=True)):
            rng = np.random.default_rng([config.seed, 3, index, step])
            for batch in make_batches(np.arange(model.n_patterns), config.batch_size, rng):
                model.multislice.set_probe(shared.probe())
                loss, gradient, by_probe = model.loss_and_gradient(volume.detach(), batch, likelihood, want_probe=True)
                if not math.isfinite(float(loss)):
                    raise Diverged(f"the probe fit diverged in iteration {step}; lower probe_learning_rate or learning_rate")
                assert by_probe is not None
                losses.append(float(loss))
                volume.grad = gradient
                optimizer.step()
                shared.set_gradient(by_probe)
                probe_optimizer.step()
                shared.normalise()
                with torch.no_grad():
                    if config.positivity:
                        volume.clamp_(min=0)
            check_finite(volume, step)
        seconds += time.perf_counter() - began
        probe = shared.probe().cpu().numpy().astype(np.complex64)
        saved: dict[str, npt.NDArray[np.generic]] = {"step": np.array(step), "seconds": np.array(seconds)}
        for name, (parameter, optimizer) in tensors.items():
            saved[f"{name}.value"] = np.array(parameter.detach().cpu().numpy())
            saved[f"{name}.steps"] = np.array(float(optimizer.state[parameter]["step"]), np.float32)
            for key in _MOMENTS:
                saved[f"{name}.{key}"] = np.array(optimizer.state[parameter][key].cpu().numpy())
        yield ProbeState(
            step=step,
            total=config.iterations,
            volume=np.array(volumes[0].detach().cpu().numpy()),
            volume_step=step,
            loss=float(np.mean(losses)),
            seconds=seconds,
            checkpoint=saved,
            probe=probe,
        )


_MOMENTS = ("exp_avg", "exp_avg_sq")


def probe_overlap(a: npt.NDArray[np.complexfloating], b: npt.NDArray[np.complexfloating]) -> float:
    """How much two probes are the same, 0 to 1: |<a, b>|² of their strongest modes, at the shift where it is largest.

    A common shift of probe and specimen changes no pattern, so it is taken out (to a hundredth of a pixel).

    Args:
        a, b: (modes, y, x).
    """
    strongest = [p[int(np.argmax(np.sum(np.abs(p) ** 2, axis=(1, 2))))] for p in (a, b)]
    first, second = (np.fft.fft2(p / np.linalg.norm(p)) for p in strongest)
    product = first.conj() * second / first.size
    n = first.shape[-1]
    coarse = np.abs(np.fft.ifft2(product)) * n * n
    centre = np.array(np.unravel_index(int(np.argmax(coarse)), coarse.shape), float)
    k = np.fft.fftfreq(n)
    best = float(coarse.max())
    for width in (0.5, 0.05):
        offsets = np.linspace(-width, width, 11)
        rows = np.exp(2j * np.pi * np.outer(centre[0] + offsets, k))
        columns = np.exp(2j * np.pi * np.outer(k, centre[1] + offsets))
        values = np.abs(rows @ product @ columns)
        i, j = np.unravel_index(int(np.argmax(values)), values.shape)
        best = max(best, float(values.max()))
        centre += np.array([offsets[i], offsets[j]])
    return best**2


def save_probe(probe: npt.NDArray[np.complex64], scan: Scan, path: str | Path) -> None:
    """Write a probe file: ``/probe`` (modes, y, x) complex64 with the pixel size and the energy it belongs to."""
    _write(path, probe, scan.pixel_size_A, scan.optics.energy_eV, None)


def save_refined(refined: Refined, path: str | Path) -> None:
    """Write a probe file that also holds ``/positions_A`` (n, 2) as (y, x), Å."""
    _write(path, refined.probe, refined.pixel_size_A, refined.energy_eV, refined.positions_A)


def _write(
    path: str | Path,
    probe: npt.NDArray[np.complex64],
    pixel_size_A: float,
    energy_eV: float,
    positions_A: npt.NDArray[np.float64] | None,
) -> None:
    import h5py

    buffer = io.BytesIO()  # as for scans: a full disk must not take HDF5, and the process, down
    with h5py.File(buffer, "w") as file:
        file.attrs["format"] = "mepdiff-probe"
        data = file.create_dataset("probe", data=probe)
        data.attrs["pixel_size_A"] = pixel_size_A
        data.attrs["energy_eV"] = energy_eV
        if positions_A is not None:
            file.create_dataset("positions_A", data=positions_A).attrs["axes"] = "y, x"
    with atomic_path(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_refined(path: str | Path) -> Refined:
    """What ``save_refined`` wrote.

    Raises:
        InputError: no such file, or a probe file without positions.
    """
    import h5py

    check(Path(path).exists(), f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            check("positions_A" in file, f"{path} holds no positions; give the refined.h5 of a run that has refined them")
            data = file["probe"]
            probe, positions = data[()].astype(np.complex64), file["positions_A"][()].astype(np.float64)
            return Refined(probe, positions, float(data.attrs["pixel_size_A"]), float(data.attrs["energy_eV"]))
    except (OSError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} cannot be read as a file of refined positions ({' '.join(str(error).split())})") from None


def with_positions(scan: Scan, path: str | Path) -> Scan:
    """The scan with the positions that a run has found put in.

    Raises:
        InputError: no such file, or positions of another scan.
    """
    positions = load_refined(path).positions_A
    check(
        positions.shape == scan.positions_A.shape,
        f"{path} holds {len(positions)} positions; the scan has {scan.n_patterns}",
    )
    return replace(scan, positions_A=positions)


def with_probe(scan: Scan, path: str | Path) -> Scan:
    """The scan with the probe of a probe file put in.

    Raises:
        InputError: not a probe file, or a probe of another size, pixel or energy.
    """
    import h5py

    check(Path(path).exists(), f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            data = file["probe"]
            probe = data[()].astype(np.complex64)
            pixel, energy = float(data.attrs["pixel_size_A"]), float(data.attrs["energy_eV"])
    except (OSError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read as a probe file ({' '.join(str(error).split())})") from None
    check(
        math.isclose(pixel, scan.pixel_size_A, rel_tol=1e-4) and energy == scan.optics.energy_eV,
        f"{path} holds a probe of {pixel:g} Å pixels at {energy:g} eV; the scan has {scan.pixel_size_A:g} Å at "
        f"{scan.optics.energy_eV:g} eV",
    )
    try:
        return replace(scan, probe=probe)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
