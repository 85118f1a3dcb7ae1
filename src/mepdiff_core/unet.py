"""The network: a 3D UNet that shrinks height and width first, until voxels are as wide as deep, then all three.

Source: MEP-Diffusion, appendix D. What it leaves open: every entry of the channel list is a structure of its own; a skip
connection runs from each residual block of a structure on the way down to one of its partner on the way up, where it is
added; log-SNR enters each residual block by scale and shift (FiLM, Perez et al. 2018).
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mepdiff_core.config import check

Layer = TypeVar("Layer", nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class UNetConfig:
    """The architecture; the defaults are the paper's (MEP-Diffusion, appendix D).

    Attributes:
        channels_2d: of the structures of stage 1; where the next has more channels, height and width are halved.
        channels_3d: of the structures of stage 2, with attention; where the next has more, all three axes are halved.
        blocks: residual blocks of a structure.
        flat: convolutions of stage 1 stay within a slice, 1 x 3 x 3 instead of 3 x 3 x 3.
        patch: patch x patch pixels become the channels of one before the first convolution; 1 for none.
        head_channels: of an attention head.
        embedding: width of what the residual blocks are told of the log-SNR.
    """

    channels_2d: tuple[int, ...] = (16, 16, 32, 32, 64, 64)
    channels_3d: tuple[int, ...] = (128, 128, 128, 128, 256, 256, 256, 256)
    blocks: int = 2
    flat: bool = False
    patch: int = 1
    head_channels: int = 64
    embedding: int = 256

    def __post_init__(self) -> None:
        channels = (*self.channels_2d, *self.channels_3d)
        check(len(self.channels_2d) > 0 and len(self.channels_3d) > 0, "channels_2d and channels_3d need an entry each")
        check(
            all(c >= 8 and c % 8 == 0 for c in channels) and list(channels) == sorted(channels),
            f"channels are {list(channels)}; expected multiples of 8 that never fall",
        )
        check(self.blocks >= 1, f"blocks is {self.blocks}; expected at least 1")
        check(self.patch in (1, 2, 4), f"patch is {self.patch}; expected 1, 2 or 4")
        check(
            self.head_channels >= 1 and all(c % self.head_channels == 0 for c in self.channels_3d),
            f"head_channels is {self.head_channels}; expected a divisor of all of {list(self.channels_3d)}",
        )
        check(self.embedding >= 8 and self.embedding % 2 == 0, f"embedding is {self.embedding}; expected 8 or more, even")

    @property
    def structures(self) -> list[Structure]:
        """What the way down is made of, in order; the way up mirrors it."""
        channels = (*self.channels_2d, *self.channels_3d)
        first_3d = len(self.channels_2d)
        following = (*channels[1:], channels[-1])
        structures = []
        for index, (here, after) in enumerate(zip(channels, following, strict=True)):
            deep = index >= first_3d
            stride = (1, 1, 1) if here == after else (2, 2, 2) if deep else (1, 2, 2)
            structures.append(
                Structure(here, after, stride, attention=deep, kernel=(1 if self.flat and not deep else 3, 3, 3))
            )
        return structures

    @property
    def strides(self) -> tuple[int, int, int]:
        """By what the (z, y, x) of a volume must be divisible."""
        z, y, x = (math.prod(s.stride[i] for s in self.structures) for i in range(3))
        return z, y * self.patch, x * self.patch


@dataclass(frozen=True)
class Structure:
    """Residual blocks of ``channels``, then (down) or before (up) a convolution to (from) ``after`` channels."""

    channels: int
    after: int
    stride: tuple[int, int, int]
    attention: bool
    kernel: tuple[int, int, int]


def convolution(
    inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int] = (1, 1, 1)
) -> nn.Conv3d:
    """A convolution with zeros beyond the edges, as many voxels out as in (over the stride)."""
    return nn.Conv3d(inputs, outputs, kernel, stride, (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2))


def silent(layer: Layer) -> Layer:
    """The layer, giving nothing at first: so that a block is the identity when training begins."""
    nn.init.zeros_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class Residual(nn.Module):
    """Two convolutions beside an identity; the embedding of the log-SNR scales and shifts what lies between them."""

    def __init__(self, channels: int, kernel: tuple[int, int, int], embedding: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(8, channels)
        self.conv1 = convolution(channels, channels, kernel)
        self.film = nn.Linear(embedding, 2 * channels)
        self.norm2 = nn.GroupNorm(8, channels)
        self.conv2 = silent(convolution(channels, channels, kernel))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.film(embedding)[..., None, None, None].chunk(2, 1)
        h = self.conv2(functional.silu(self.norm2(h) * (1 + scale) + shift))
        result: Tensor = x + h
        return result


class Attention(nn.Module):
    """Self-attention between all voxels of a low-resolution volume.

    Queries and keys are brought to unit size, so that no training can drive their products up until it breaks down
    (Henry et al., arXiv 2010.04245; Dehghani et al., arXiv 2302.05442).
    """

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.norm = nn.GroupNorm(8, channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = silent(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        # (batch, heads, tokens, channels), the last without gaps: torch's fast attention wants it so
        q, k, v = self.qkv(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = (functional.rms_norm(part, (part.shape[-1],)) for part in (q, k))
        h = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        result: Tensor = x + self.out(h).transpose(1, 2).unflatten(2, x.shape[2:])
        return result


class Down(nn.Module):
    """Residual blocks, attention where there is any, and a convolution that halves where channels grow."""

    def __init__(self, structure: Structure, config: UNetConfig) -> None:
        super().__init__()
        s = structure
        self.blocks = nn.ModuleList(Residual(s.channels, s.kernel, config.embedding) for _ in range(config.blocks))
        self.attention = Attention(s.channels, config.head_channels) if s.attention else None
        self.resample = convolution(s.channels, s.after, s.kernel, s.stride)

    def forward(self, x: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        skips = []
        for block in self.blocks:
            x = block(x, embedding)
            skips.append(x)
        if self.attention is not None:
            x = self.attention(x)
        return self.resample(x), skips


class Up(nn.Module):
    """The mirror of ``Down``; each residual block takes one of its skip connections, the last one first."""

    def __init__(self, structure: Structure, config: UNetConfig) -> None:
        super().__init__()
        s = structure
        self.factor = tuple(float(f) for f in s.stride)
        self.resample = convolution(s.after, s.channels, s.kernel)
        self.blocks = nn.ModuleList(Residual(s.channels, s.kernel, config.embedding) for _ in range(config.blocks))
        self.attention = Attention(s.channels, config.head_channels) if s.attention else None

    def forward(self, x: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        if max(self.factor) > 1:
            x = functional.interpolate(x, scale_factor=self.factor, mode="nearest")
        x = self.resample(x)
        for block, skip in zip(self.blocks, reversed(skips), strict=True):
            # of two parts of unit variance, one of unit variance
            x = block((x + skip) * math.sqrt(0.5), embedding)
        return x if self.attention is None else self.attention(x)


class Bottleneck(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        self.before = Residual(channels, (3, 3, 3), config.embedding)
        self.attention = Attention(channels, config.head_channels)
        self.after = Residual(channels, (3, 3, 3), config.embedding)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        result: Tensor = self.after(self.attention(self.before(x, embedding)), embedding)
        return result


class UNet(nn.Module):
    """(batch, 1, z, y, x) noisy volumes and their (batch,) log-SNR -> (batch, 1, z, y, x), for ``diffusion``: v.

    Args:
        config: the architecture.

    Raises:
        InputError: a volume whose (z, y, x) the strides do not divide.
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        structures = config.structures
        first, patch = structures[0], config.patch
        self.frequencies: Tensor
        # log-SNR from -20 to 20 seen by waves 1250 to 0.4 wide: the slowest tells its sign, the fastest steps of 0.1
        self.register_buffer("frequencies", torch.logspace(-2.3, 1.2, config.embedding // 2), persistent=False)
        self.embed = nn.Sequential(
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
            nn.Linear(config.embedding, config.embedding),
            nn.SiLU(),
        )
        self.entry = convolution(patch**2, first.channels, first.kernel)
        self.down = nn.ModuleList(Down(s, config) for s in structures)
        self.bottleneck = Bottleneck(structures[-1].after, config)
        self.up = nn.ModuleList(Up(s, config) for s in reversed(structures))
        self.norm = nn.GroupNorm(8, first.channels)
        self.exit = silent(convolution(first.channels, patch**2, first.kernel))

    def forward(self, x: Tensor, log_snr: Tensor) -> Tensor:
        strides, shape = self.config.strides, tuple(x.shape[2:])
        check(
            all(n > 0 and n % s == 0 for n, s in zip(shape, strides, strict=True)),
            f"a volume of {' x '.join(map(str, shape))} voxels; this network takes multiples of "
            f"{' x '.join(map(str, strides))}",
        )
        angles = log_snr.to(x.dtype)[:, None] * self.frequencies
        embedding = self.embed(torch.cat([angles.sin(), angles.cos()], 1))
        h = self.entry(folded(x, self.config.patch))
        skips = []
        for down in self.down:
            h, kept = down(h, embedding)
            skips.append(kept)
        h = self.bottleneck(h, embedding)
        for up in self.up:
            h = up(h, skips.pop(), embedding)
        return unfolded(self.exit(functional.silu(self.norm(h))), self.config.patch)


def folded(x: Tensor, patch: int) -> Tensor:
    """(b, c, z, y, x) -> (b, c patch², z, y / patch, x / patch)."""
    if patch == 1:
        return x
    b, c, z, h, w = x.shape
    parts = x.reshape(b, c, z, h // patch, patch, w // patch, patch)
    return parts.permute(0, 1, 4, 6, 2, 3, 5).reshape(b, c * patch**2, z, h // patch, w // patch)


def unfolded(x: Tensor, patch: int) -> Tensor:
    """What ``folded`` was made of."""
    if patch == 1:
        return x
    b, c, z, h, w = x.shape
    parts = x.reshape(b, c // patch**2, patch, patch, z, h, w)
    return parts.permute(0, 1, 4, 5, 2, 6, 3).reshape(b, c // patch**2, z, h * patch, w * patch)


@dataclass(frozen=True)
class Cost:
    """What a part of the network holds and does: parameters, and multiply-adds for one volume."""

    part: str
    channels: str
    parameters: int
    multiply_adds: int


def costs(config: UNetConfig, shape: tuple[int, int, int] = (8, 64, 64)) -> list[Cost]:
    """Parameters and multiply-adds by stage, for a volume of ``shape``; the last row is their sum.

    Nothing is computed: torch counts the operations of tensors without content.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        network = UNet(config)
        with FlopCounterMode(display=False, depth=2) as counter:
            network(torch.zeros(1, 1, *shape), torch.zeros(1))
    operations = {name: sum(by_kind.values()) for name, by_kind in counter.get_flop_counts().items()}
    parameters: Counter[str] = Counter()
    for name, tensor in network.named_parameters():
        head = name.split(".")
        parameters[".".join(head[:2]) if head[0] in ("down", "up") else head[0]] += tensor.numel()
    first_3d, last = len(config.channels_2d), len(config.structures) - 1
    rows = {
        "entry": ["entry", "embed"],
        "stage 1 down": [f"down.{i}" for i in range(first_3d)],
        "stage 2 down": [f"down.{i}" for i in range(first_3d, last + 1)],
        "bottleneck": ["bottleneck"],
        "stage 2 up": [f"up.{i}" for i in range(last + 1 - first_3d)],
        "stage 1 up": [f"up.{i}" for i in range(last + 1 - first_3d, last + 1)],
        "exit": ["norm", "exit"],
    }
    spelled = {"stage 1": config.channels_2d, "stage 2": config.channels_3d, "bottleneck": config.channels_3d[-1:]}
    result = []
    for part, names in rows.items():
        channels = spelled.get(part.removesuffix(" down").removesuffix(" up"), config.channels_2d[:1])
        ordered = channels[::-1] if part.endswith(" up") else channels
        count = sum(parameters[name] for name in names)
        adds = sum(operations.get(f"UNet.{name}", 0) for name in names) // 2
        result.append(Cost(part, ", ".join(map(str, ordered)), count, adds))
    total = Cost("all", "", sum(r.parameters for r in result), sum(r.multiply_adds for r in result))
    return [*result, total]
