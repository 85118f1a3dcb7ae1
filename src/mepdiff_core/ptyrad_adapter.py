"""PtyRAD's own forward model, losses and constraints on our arrays (this is the only file that imports ptyrad).

PtyRAD's defaults alter data silently (random position offsets, patterns scaled to a maximum of 1, object blur, amplitude
and probe optimised), so every setting its model reads is given here in full, with nothing left to a default.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.config import check
from mepdiff_core.files import atomic_path
from mepdiff_core.forward import ForwardModel
from mepdiff_core.likelihood import INTENSITY_FLOOR, Poisson
from mepdiff_core.settings import Constraints

CHUNK = 32
"""Patterns that PtyRAD predicts at once where no gradient is asked for."""
Optimizable = ("obja", "objp", "obj_tilts", "slice_thickness", "probe", "probe_pos_shifts")


def import_torchvision() -> None:
    """Import torchvision also where its compiled operators cannot load.

    A torchvision built for CUDA beside a torch built for the CPU fails on import, for two operators that PtyRAD (which uses
    its Gaussian blur alone) never calls. Declaring them lets the rest of the package load.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "does not exist" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


class PtyRADEngine:
    """Loss, gradient and constraints from PtyRAD's PtychoModel, CombinedLoss and CombinedConstraint.

    It takes geometry, probe, propagator and patterns from a ``ForwardModel``, so that both see the same scan.
    """

    def __init__(
        self, model: ForwardModel, likelihood: Literal["amplitude", "poisson"], constraints: Constraints | None = None
    ) -> None:
        import_torchvision()
        from ptyrad.core.constraints import CombinedConstraint
        from ptyrad.core.losses import CombinedLoss
        from ptyrad.core.models.ptycho import PtychoModel

        check(
            model.config.window == 1 and model.config.sampling == 1,
            "PtyRAD models the detector's own window and pixel; use engine fast for model window or sampling above 1",
        )
        check(
            model.patterns.held is not None,
            f"PtyRAD holds all {model.n_patterns} patterns in memory, and these are too large; use engine=fast",
        )
        check(model.patterns.seen is None, "PtyRAD believes every pixel, and the scan has blind ones; use engine=fast")
        assert model.patterns.held is not None
        waves = model.multislice
        device = str(waves.device)
        patterns = torch.fft.fftshift(model.patterns.held, dim=(-2, -1)).cpu().numpy()
        n_positions, n = len(patterns), waves.n
        init: dict[str, Any] = {
            "measurements": patterns,
            "obj": np.ones((1, *model.volume_shape), np.complex64),
            "obj_tilts": np.zeros((1, 2), np.float32),
            "slice_thickness": model.slice_thickness_A,
            "probe": waves.probe.cpu().numpy(),
            "probe_pos_shifts": waves.shifts.cpu().numpy(),
            "omode_occu": np.ones(1, np.float32),
            "H": waves.transfer.cpu().numpy(),
            "N_scan_slow": n_positions,
            "N_scan_fast": 1,
            "crop_pos": waves.corners,
            "dx": model.field.pixel_size_A,
            "dk": 1 / (model.field.pixel_size_A * n),
            "lambd": 1.0,  # read only where thickness is optimised, which it is not
            "random_seed": None,
            "length_unit": "Ang",
            "scan_affine": None,
            "meas_Npix": n,
            "simu_Npix": n,
            "simu_match_mode": None,
            "recon_provenance": None,
        }
        update = {name: {"lr": 0.0, "start_iter": None, "end_iter": None} for name in Optimizable}
        update["objp"] = {
            "lr": 1.0,
            "start_iter": 1,
            "end_iter": None,
        }  # the learning rate is the optimiser's, not read here
        params: dict[str, Any] = {
            "detector_blur_std": None,
            "preload_data": True,
            "update_params": update,
            "optimizer_params": {"name": "none", "configs": {}, "load_state": None},
            "scheduler_params": None,
        }
        self.model = PtychoModel(init, params, device=device)
        self.loss_function = CombinedLoss(_loss_params(likelihood), device=device)
        self.constraint_function = CombinedConstraint(_constraint_params(constraints or Constraints()), device=device)

    def loss_and_gradient(self, volume: Tensor, indices: npt.NDArray[np.integer]) -> tuple[float, Tensor]:
        """PtyRAD's loss over these patterns and its gradient by the phase; volume (slices, y, x)."""
        self.model.opt_objp.data.copy_(volume[None])
        self.model.opt_objp.grad = None
        if not self.model.get_measurements(indices).any():
            return 0.0, torch.zeros_like(volume)  # as ours: a mini-batch without an electron says nothing
        loss = self._loss(indices)
        loss.backward()
        self.model.clear_cache()
        gradient = self.model.opt_objp.grad
        assert gradient is not None
        return float(loss.detach()), gradient[0]

    def loss(self, volume: Tensor, indices: npt.NDArray[np.integer]) -> float:
        """PtyRAD's loss over these patterns."""
        measured = self.model.get_measurements(indices)
        if not measured.any():
            return 0.0
        unused = torch.zeros(1, 1, 1, 1, 1, device=measured.device)  # object patches, which no loss in use looks at
        with torch.no_grad():
            predicted = self.predict(volume, indices)
            return float(self.loss_function(predicted, measured, unused, unused, self.model.omode_occu)[0])

    def predict(self, volume: Tensor, indices: npt.NDArray[np.integer]) -> Tensor:
        """PtyRAD's patterns, (positions, ky, kx), fractions of the beam."""
        with torch.no_grad():
            self.model.opt_objp.data.copy_(volume[None])
            # PtyRAD takes the whole batch at once, several gigabytes for a scan
            parts = [self.model(indices[first : first + CHUNK]) for first in range(0, len(indices), CHUNK)]
            self.model.clear_cache()
        return torch.cat(parts)

    def constrain(self, volume: Tensor, iteration: int) -> Tensor:
        """The volume after PtyRAD's constraints, as at the end of its iteration."""
        self.model.opt_objp.data.copy_(volume[None])
        self.constraint_function(self.model, iteration)
        constrained: Tensor = self.model.opt_objp.data[0].clone()
        return constrained

    def _loss(self, indices: npt.NDArray[np.integer]) -> Tensor:
        predicted = self.model(indices)
        amplitude, phase = self.model._current_object_patches
        measured = self.model.get_measurements(indices)
        total: Tensor = self.loss_function(predicted, measured, amplitude, phase, self.model.omode_occu)[0]
        return total


class Constrainer:
    """PtyRAD's constraints alone, for a volume that another forward model updates."""

    def __init__(self, constraints: Constraints, device: torch.device) -> None:
        import_torchvision()
        from ptyrad.core.constraints import CombinedConstraint

        self._function = CombinedConstraint(_constraint_params(constraints), device=str(device))

    def constrain(self, volume: Tensor, iteration: int) -> Tensor:
        """The volume after PtyRAD's constraints, as at the end of its iteration."""

        class Model:
            opt_objp = volume[None].clone()

        self._function(Model, iteration)
        return Model.opt_objp[0]


def _loss_params(likelihood: str) -> dict[str, dict[str, Any]]:
    # PtyRAD's forward model has added its floor already when its loss adds eps
    return {
        "loss_single": {"state": likelihood == "amplitude", "weight": 1.0, "dp_pow": 0.5},
        "loss_poissn": {
            "state": likelihood == "poisson",
            "weight": 1.0,
            "dp_pow": 1.0,
            "eps": Poisson().background - INTENSITY_FLOOR,
        },
        "loss_pacbed": {"state": False, "weight": 0.0, "dp_pow": 0.2},
        "loss_sparse": {"state": False, "weight": 0.0, "ln_order": 1},
        "loss_simlar": {"state": False, "weight": 0.0, "obj_type": "both", "scale_factor": [1, 1, 1], "blur_std": 1},
    }


def _constraint_params(constraints: Constraints) -> dict[str, dict[str, Any]]:
    names = (
        *(
            "ortho_pmode",
            "probe_mask_k",
            "probe_mask_r",
            "fix_probe_int",
            "obj_rblur",
            "obj_zblur",
            "kr_filter",
            "kz_filter",
        ),
        *("kr_thresh", "complex_ratio", "mirrored_amp", "obj_z_recenter", "obja_thresh", "objp_postiv", "pos_recenter"),
        "tilt_smooth",
    )
    params: dict[str, dict[str, Any]] = {name: {"start_iter": None, "step": 1, "end_iter": None} for name in names}
    if constraints.depth_blur_slices > 0:
        kernel = 2 * max(2, round(3 * constraints.depth_blur_slices)) + 1
        params["obj_zblur"].update(start_iter=1, obj_type="phase", kernel_size=kernel, std=constraints.depth_blur_slices)
    if constraints.kz_beta > 0:
        params["kz_filter"].update(start_iter=1, obj_type="phase", beta=constraints.kz_beta, alpha=constraints.kz_alpha)
    if constraints.positivity:
        params["objp_postiv"].update(start_iter=1, relax=0.0, mode="clip_neg")
    return params


def write_result(model: ForwardModel, volume: npt.NDArray[np.floating], path: str | Path, losses: Sequence[float]) -> None:
    """Write a volume as PtyRAD writes its results (its HDF5 "model"), by PtyRAD itself; it can go on from there.

    Args:
        model: gives positions, probe and geometry; of window and sampling 1.
        volume: (slices, y, x) on the scan's object field, rad.
        losses: of each pass.

    Raises:
        InputError: a model that PtyRAD does not have, or a file that cannot be written.
    """
    from ptyrad.io.save import make_save_dict, save_dict_to_hdf5

    check(
        volume.shape == model.volume_shape,
        f"the volume has shape {volume.shape}; this scan's object field needs {model.volume_shape}",
    )
    theirs = PtyRADEngine(model, "amplitude").model
    theirs.opt_objp.data.copy_(torch.as_tensor(np.array(volume, np.float32))[None])
    theirs.loss_iters = [(number + 1, float(loss)) for number, loss in enumerate(losses)]
    theirs.iter_times = [0.0]
    # their rules for what to save, of their parameters; the rest of these is on record in the run folder
    params = {"recon_params": {"save_result": ["model"]}}
    everything = np.arange(len(model.multislice.corners))
    last = {"loss_single": [float(losses[-1]) if losses else 0.0]}
    with atomic_path(path) as temporary:
        saved = make_save_dict(Path(path).name, theirs, params, None, None, len(losses), everything, last)
        save_dict_to_hdf5(saved, str(temporary))
