"""Positions and probe found together with the specimen, by the gradients of the same misfit.

Source: position correction by gradients, Thibault & Guizar-Sicairos, New J. Phys. 14 (2012) 063004. A shift of all
positions together is a shift of the specimen, so their mean stays where it is.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.batches import Indices
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import Likelihood
from mepdiff_core.multislice import Further, Wanted
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ModelConfig, RefineConfig
from mepdiff_core.states import Checkpoint, Refined

_MOMENTS = ("exp_avg", "exp_avg_sq")
FAINT_MODE = 0.01
"""Part of the beam that a mode begins with."""


def refined_model(
    scan: Scan,
    slices: int,
    slice_thickness_A: float,
    config: ModelConfig,
    refined: Refined | None,
    device: torch.device | str = "cpu",
) -> ForwardModel:
    """The model of a scan through so many slices, with the probe and the positions that were found, if any."""
    probe, positions = (None, None) if refined is None else (refined.probe, refined.positions_A)
    return ForwardModel(scan, slices, slice_thickness_A, config, probe, device, positions_A=positions)


class ProbeSpectrum:
    """A probe as a free spectrum inside the support, in units of its mean amplitude inside the aperture.

    Attributes:
        parameter: (modes, n, n, 2) real and imaginary parts, zero frequency at the corner.
    """

    def __init__(self, model: ForwardModel, scan: Scan, support: float, modes: int = 1) -> None:
        n, radius = model.multislice.n, scan.optics.k_aperture_invA
        k = torch.fft.fftfreq(n, model.pixel_size_A, device=model.device, dtype=model.real_dtype)
        self._support = (k[:, None] ** 2 + k[None, :] ** 2).sqrt() <= support * radius
        self._unit = 1 / math.sqrt(math.pi * (radius * n * model.pixel_size_A) ** 2)
        start = torch.fft.fft2(model.multislice.probe, norm="ortho") * self._support
        start = _with_modes(start, k / radius, modes)
        self.parameter = torch.nn.Parameter(torch.view_as_real(start / self._unit).clone())

    def probe(self) -> Tensor:
        """(modes, n, n) complex, in real space."""
        spectrum = torch.view_as_complex(self.parameter.detach())
        probe: Tensor = torch.fft.ifft2(spectrum * self._unit, norm="ortho")
        return probe

    def set_gradient(self, by_probe: Tensor) -> None:
        """Take over a gradient by the probe in real space."""
        spectrum = torch.fft.fft2(by_probe, norm="ortho") * self._support * self._unit
        self.parameter.grad = torch.view_as_real(spectrum).contiguous()

    def normalise(self) -> None:
        """The beam's electrons are known: the probe's intensity stays 1."""
        with torch.no_grad():
            self.parameter.div_(self._unit * self.parameter.square().sum().sqrt())


def _with_modes(spectra: Tensor, k: Tensor, modes: int) -> Tensor:
    """Spectra (modes, n, n) with faint ones added, orthogonal to all others: the strongest times 1, ky, kx, ky², ...

    Those are the modes of a small source, whatever its shape. k is in units of the aperture's radius.
    """
    strongest = spectra[int(spectra.abs().square().sum((1, 2)).argmax())]
    powers = [(degree - x, x) for degree in range(1, 5) for x in range(degree + 1)]
    found = list(spectra)
    for y, x in powers[: max(0, modes - len(spectra))]:
        mode = strongest * k[:, None] ** y * k[None, :] ** x
        for other in found:
            mode = mode - other * (other.conj() * mode).sum() / other.abs().square().sum()
        found.append(mode / mode.abs().square().sum().sqrt() * math.sqrt(FAINT_MODE))
    total = torch.stack(found)
    return total / total.abs().square().sum().sqrt() if len(total) > len(spectra) else spectra


class Refinement:
    """Adam on positions (a step a pass) and on the probe (a step a mini-batch) beside that on the volume.

    Args:
        model: its probe and positions are changed in place.
        scan: what the model was made from.
        config: rates; what has none stays.
        held: patterns kept out of the fit: their positions are refined too, two numbers a pattern, or their misfit would
            judge positions that nobody has corrected.
    """

    def __init__(self, model: ForwardModel, scan: Scan, config: RefineConfig, held: Indices) -> None:
        self._model, self._scan, self._config, self._held = model, scan, config, held
        self._pass = 1
        self._start = model.multislice.shifts.detach().to("cpu", torch.float64).clone()
        self._shifts = torch.nn.Parameter(self._start.clone())
        self._shifts.grad = torch.zeros_like(self._shifts)
        self._spectrum = ProbeSpectrum(model, scan, config.probe_support, config.probe_modes)
        if config.probe_modes > len(model.multislice.probe):
            model.multislice.set_probe(self._spectrum.probe())
        rate = config.position_rate_A / model.pixel_size_A
        self._optimizers = {
            "shifts": (self._shifts, torch.optim.Adam([self._shifts], lr=rate, betas=(0.8, 0.9))),
            "probe": (
                self._spectrum.parameter,
                torch.optim.Adam([self._spectrum.parameter], lr=config.probe_rate, betas=(0.9, 0.99)),
            ),
        }

    def wanted(self) -> tuple[Wanted, ...]:
        """Which gradients this pass needs."""
        if self._pass < self._config.start:
            return ()
        names: list[Wanted] = ["probe"] if self._config.probe_rate > 0 else []
        return (*names, "shifts") if self._config.position_rate_A > 0 else tuple(names)

    def take(self, indices: Indices, found: Further) -> None:
        """The gradients of a mini-batch: the probe takes a step, positions wait for the end of the pass."""
        if found.shifts is not None:
            assert self._shifts.grad is not None
            self._shifts.grad[torch.as_tensor(indices)] += found.shifts
        if found.probe is not None:
            self._spectrum.set_gradient(found.probe)
            self._optimizers["probe"][1].step()
            self._spectrum.normalise()
            self._model.multislice.set_probe(self._spectrum.probe())

    def end_pass(self, step: int, volume: Tensor, likelihood: Likelihood) -> None:
        """The positions take their step; ``step`` is the pass that ends."""
        wanted, self._pass = self.wanted(), step + 1
        if "shifts" not in wanted:
            return
        assert self._shifts.grad is not None
        if len(self._held):
            only: tuple[Wanted, ...] = ("shifts",)
            _, _, found = self._model.gradients(volume, self._held, likelihood, only)
            assert found.shifts is not None
            self._shifts.grad[torch.as_tensor(self._held)] += found.shifts
        self._optimizers["shifts"][1].step()
        self._shifts.grad.zero_()
        with torch.no_grad():
            self._shifts.sub_((self._shifts - self._start).mean(0))
        self._apply_shifts()

    def result(self) -> Refined:
        """What was found so far."""
        waves, pixel = self._model.multislice, self._model.pixel_size_A
        moved = (self._shifts.detach() - self._start).numpy() * pixel
        probe = orthogonal_modes(waves.probe.detach().cpu().numpy())
        return Refined(probe, self._scan.positions_A + moved, pixel, self._scan.optics.energy_eV)

    def checkpoint(self) -> dict[str, npt.NDArray[np.generic]]:
        """All there is to go on from, by name."""
        saved: dict[str, npt.NDArray[np.generic]] = {"refine.pass": np.array(self._pass)}
        for name, (parameter, optimizer) in self._optimizers.items():
            saved[f"refine.{name}"] = np.array(parameter.detach().cpu().numpy())
            state = optimizer.state.get(parameter)
            if state:
                saved[f"refine.{name}.step"] = np.array(float(state["step"]), np.float32)
                saved |= {f"refine.{name}.{key}": np.array(state[key].cpu().numpy()) for key in _MOMENTS}
        return saved

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from there."""
        self._pass = int(checkpoint["refine.pass"])
        for name, (parameter, optimizer) in self._optimizers.items():
            parameter.data.copy_(torch.as_tensor(np.array(checkpoint[f"refine.{name}"])))
            if f"refine.{name}.step" in checkpoint:
                moments = {key: torch.as_tensor(np.array(checkpoint[f"refine.{name}.{key}"])) for key in _MOMENTS}
                optimizer.state[parameter] = {
                    "step": torch.as_tensor(np.array(checkpoint[f"refine.{name}.step"])),
                    **{key: value.to(parameter.device) for key, value in moments.items()},
                }
        if "refine.probe.step" in checkpoint:
            self._model.multislice.set_probe(self._spectrum.probe())
        self._apply_shifts()

    def _apply_shifts(self) -> None:
        waves = self._model.multislice
        waves.shifts = self._shifts.detach().to(waves.device, waves.real_dtype)


def orthogonal_modes(probe: npt.NDArray[np.complexfloating]) -> npt.NDArray[np.complex64]:
    """The same incoherent probe, (modes, y, x), as orthogonal modes, the strongest first."""
    if len(probe) == 1:
        return np.array(probe, np.complex64)
    _, strengths, modes = np.linalg.svd(probe.reshape(len(probe), -1), full_matrices=False)
    return np.asarray((strengths[:, None] * modes).reshape(probe.shape), np.complex64)
