"""What a training is: data, network, diffusion, optimiser; and the presets that ship."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from importlib import resources
from typing import Any, Literal

from mepdiff_core.config import check, read_yaml
from mepdiff_core.diffusion import DiffusionConfig
from mepdiff_core.settings import parse_composition
from mepdiff_core.training_data import CropConfig
from mepdiff_core.unet import UNetConfig

PRESETS = ("paper", "small")
MAY_CHANGE = (
    "steps",
    "accumulate",
    "checkpoint_every",
    "keep",
    "validate_every",
    "pictures_every",
    "log_every",
    "workers",
    "compile",
    "channels_last",
)
"""Fields of a training that may be other ones when it goes on; none of them changes what is learned."""


@dataclass(frozen=True)
class TrainConfig:
    """A training; the defaults are the paper's (MEP-Diffusion, appendix E) where it has any.

    Attributes:
        data: a store of volumes (STORE.zarr), a set of crystals to render while training (crystals.safetensors, as every
            store has one), or prototypes: crystals generated from the seed.
        crystals: how many prototypes to generate.
        exclude: formulas that are never trained on, in whatever structure, so that they can be judged with.
        network: its architecture.
        diffusion: what it is taught.
        crops: what it is shown; ``crops.seed`` draws orientations, origins and vacancies.
        steps: of the optimiser.
        batch_size: volumes a step, over all processes.
        accumulate: parts a process takes its share of a batch in, one after the other, where it does not fit into memory.
        learning_rate: of AdamW, once warmed up.
        weight_decay: of AdamW.
        beta2: of AdamW, how slowly it forgets the size of gradients; a lower one stands bursts of them better.
        warmup_steps: over which the learning rate rises from 0.
        clip_norm: gradients of a larger norm are shortened to it.
        ema_decay: of the moving average of the weights, which is the prior; less at first, (1 + step) / (10 + step).
        precision: float32, bf16 (mixed), or auto: bf16 on a GPU that has it.
        compile: torch.compile the network.
        channels_last: keep the network's tensors in the order that convolutions of a GPU's tensor cores want.
        workers: processes that draw crops; by default all cores but one with a GPU, else none.
        log_every: steps between rows of log.csv.
        checkpoint_every: steps between checkpoints; keep: how many of them stay.
        validate_every: steps between measurements on held-out crystals; validation_crops: how many of them are used.
        pictures_every: images between sheets of samples and of denoised volumes; 0 for none.
        seed: of weights, noise, order and generated crystals.
    """

    data: str = "prototypes"
    crystals: int = 20000
    exclude: tuple[str, ...] = ()
    network: UNetConfig = field(default_factory=UNetConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    crops: CropConfig = field(default_factory=CropConfig)
    steps: int = 500000
    batch_size: int = 256
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    beta2: float = 0.999
    warmup_steps: int = 1000
    clip_norm: float = 1.0
    ema_decay: float = 0.9999
    precision: Literal["auto", "float32", "bf16"] = "auto"
    compile: bool = False
    channels_last: bool = False
    workers: int | None = None
    log_every: int = 1
    checkpoint_every: int = 1000
    keep: int = 2
    validate_every: int = 1000
    validation_crops: int = 64
    pictures_every: int = 500000
    seed: int = 0

    def __post_init__(self) -> None:
        for name in (
            "crystals",
            "steps",
            "batch_size",
            "accumulate",
            "checkpoint_every",
            "keep",
            "validate_every",
            "log_every",
        ):
            check(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; expected at least 1")
        for name in ("learning_rate", "clip_norm"):
            check(getattr(self, name) > 0, f"{name} is {getattr(self, name):g}; expected more than 0")
        for name in ("weight_decay", "warmup_steps", "pictures_every", "seed", "validation_crops"):
            check(getattr(self, name) >= 0, f"{name} is {getattr(self, name)}; expected 0 or more")
        check(0 < self.beta2 < 1, f"beta2 is {self.beta2:g}; expected more than 0 and less than 1")
        check(0 <= self.ema_decay < 1, f"ema_decay is {self.ema_decay:g}; expected 0 to less than 1")
        check(self.workers is None or self.workers >= 0, f"workers is {self.workers}; expected 0 or more")
        check(
            self.batch_size % self.accumulate == 0,
            f"batch_size is {self.batch_size} and accumulate {self.accumulate}; expected a divisor of the batch",
        )
        for formula in self.exclude:
            parse_composition(formula)
        size = (self.crops.slices, self.crops.pixels, self.crops.pixels)
        strides = self.network.strides
        check(
            all(n % s == 0 for n, s in zip(size, strides, strict=True)),
            f"crops are {' x '.join(map(str, size))} voxels; this network takes multiples of "
            f"{' x '.join(map(str, strides))}",
        )


def preset(name: str) -> dict[str, Any]:
    """The fields of a preset, to be merged with others.

    Raises:
        InputError: no such preset.
    """
    check(name in PRESETS, f"preset '{name}' is not known; choose from {', '.join(PRESETS)}")
    with resources.as_file(resources.files("mepdiff_core") / "data" / f"{name}.yaml") as path:
        return read_yaml(path)


def differing(one: TrainConfig, other: TrainConfig) -> list[str]:
    """Names of the fields, other than those that may change, in which two trainings differ."""
    names = [f.name for f in fields(one) if f.name not in MAY_CHANGE]
    return [name for name in names if getattr(one, name) != getattr(other, name)]
