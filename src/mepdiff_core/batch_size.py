"""How many volumes fit into memory at once, and how a batch is taken in parts that do."""

from __future__ import annotations

import torch
from accelerate import Accelerator
from accelerate.utils.memory import should_reduce_batch_size

from mepdiff_core.config import check
from mepdiff_core.diffusion import losses
from mepdiff_core.train_config import TrainConfig
from mepdiff_core.unet import UNet


def find_batch(config: TrainConfig, device: str = "auto") -> int:
    """The most volumes, halving from ``batch_size``, whose gradients fit into memory at once.

    Raises:
        InputError: not even one does.
    """
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision=mixed_precision(config, device))
    network = UNet(config.network).to(accelerator.device)
    return fitting(config, network, accelerator)


def mixed_precision(config: TrainConfig, device: str) -> str:
    """What Accelerate calls the precision of a training: bf16 or no."""
    bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported() and device != "cpu"
    return "bf16" if config.precision == "bf16" or (config.precision == "auto" and bf16) else "no"


def parts_of(share: int, fits: int) -> int:
    """In how many equal parts a share of a batch is to be taken so that each fits."""
    return next(parts for parts in range(1, share + 1) if share % parts == 0 and share // parts <= fits)


def fitting(config: TrainConfig, network: UNet, accelerator: Accelerator) -> int:
    """Volumes whose gradients fit into memory at once, at most a process's share of a batch.

    Raises:
        InputError: not even one does.
    """
    size: int = config.batch_size // accelerator.num_processes
    shape = (1, config.crops.slices, config.crops.pixels, config.crops.pixels)
    while True:
        try:
            x = torch.zeros((size, *shape), device=accelerator.device)
            with accelerator.autocast():
                losses(network, x, x, x.new_zeros(size)).mean().backward()
            return size
        except RuntimeError as error:
            check(should_reduce_batch_size(error) and size > 1, f"not even one volume fits into memory ({error})")
            size //= 2
        finally:
            network.zero_grad()
            x = torch.zeros(0)
            if accelerator.device.type == "cuda":
                torch.cuda.empty_cache()
