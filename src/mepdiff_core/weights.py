"""A prior as one safetensors file: the network's weights, and in its metadata all that it takes to use them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.arrays import Kind
from mepdiff_core.config import check, from_dict, to_dict
from mepdiff_core.diffusion import DiffusionConfig, denoiser
from mepdiff_core.errors import InputError
from mepdiff_core.settings import EMBEDDED
from mepdiff_core.unet import UNet, UNetConfig

PRIOR = Kind("mepdiff-prior", 1, "prior of mepdiff")


@dataclass(frozen=True)
class PriorConfig:
    """What a prior is and what its volumes are.

    Attributes:
        network: its architecture.
        diffusion: how it was taught; ``data_scale`` of it is what volumes in rad are multiplied by.
        shape: (z, y, x) voxels of the crops it was trained on.
        voxel_size_A: (z, y, x) of its voxels, Å.
        energy_eV: of the beam that volts were turned into radians by.
    """

    network: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    shape: tuple[int, int, int] = (8, 64, 64)
    voxel_size_A: tuple[float, float, float] = (1.6, 0.2, 0.2)
    energy_eV: float = 300e3


@dataclass(frozen=True)
class Prior:
    """A trained network, ready to sample from.

    Attributes:
        config: what it is.
        network: in evaluation mode, on its device.
        training: what is on record of its training: data, steps, images, validation loss by log-SNR.
        sha256: of its weights.
    """

    config: PriorConfig
    network: UNet = field(repr=False)
    training: Mapping[str, Any]
    sha256: str

    @property
    def device(self) -> torch.device:
        return self.network.exit.weight.device

    @torch.no_grad()
    def denoise(self, x: Tensor, added: Tensor) -> Tensor:
        """(batch, 1, z, y, x) scaled volumes with noise of the (batch,) sigma ``added`` -> what they were expected to be."""
        return denoiser(self.network)(x, added)


def save_prior(
    path: str | Path,
    weights: Mapping[str, Tensor],
    config: PriorConfig,
    training: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Write one safetensors file, atomically.

    Args:
        weights: ``UNet.state_dict()`` or a moving average of it.
        config: what it is.
        training: plain values to keep on record.
        half: keep the weights as float16, which takes half the space; networks compute in float32 all the same.

    Raises:
        InputError: it cannot be written.
    """
    kind = torch.float16 if half else torch.float32
    arrays = {name: value.detach().to(kind).cpu().numpy() for name, value in weights.items()}
    PRIOR.save(arrays, path, {"config": to_dict(config), "training": dict(training)})


def prior_file(name: str | Path) -> Path:
    """The file of a prior, by its path or ``embedded``."""
    return Path(__file__).parent / "data" / "prior.safetensors" if name == EMBEDDED else Path(name)


def read_prior(path: str | Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[np.generic]]]:
    """What a prior says of itself (format, config, training, sha256), and its weights, checked against the sha256.

    Raises:
        InputError: missing, damaged, another kind of file, or weights that are not those it was written with.
    """
    path = prior_file(path)
    check(path.is_file(), f"{path}: no such file; give embedded, or a prior (safetensors), as mepdiff train writes it")
    arrays, about = PRIOR.load(path, "give another copy of a prior, or train one with mepdiff train")
    return about, arrays


def load_prior(path: str | Path, device: torch.device | str = "cpu") -> Prior:
    """Load a prior.

    Args:
        path: the file, or ``embedded`` for the one that is installed with the package.
        device: where the network is to run.

    Raises:
        InputError: missing, damaged, another kind of file.
    """
    about, arrays = read_prior(path)
    config = from_dict(PriorConfig, about["config"], str(path))
    network = UNet(config.network)
    try:
        network.load_state_dict({name: torch.from_numpy(value) for name, value in arrays.items()})
    except RuntimeError as error:
        raise InputError(
            f"{path}: its weights are not those of its network ({' '.join(str(error).split())[:200]})"
        ) from None
    network.requires_grad_(False).train(False).to(device)
    return Prior(config, network, about["training"], about["sha256"])
