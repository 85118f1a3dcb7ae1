"""Pictures of a training: what the network sees at different log-SNR, and how its loss fell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from mepdiff_core.diffusion import added_noise
from mepdiff_core.figures import COLORS, INK, MUTED, contact_sheet, plain_axis, without_ticks
from mepdiff_core.page import save_figure
from mepdiff_core.sample import SampleConfig, sample_prior
from mepdiff_core.training_folder import TrainingFolder, read_log
from mepdiff_core.weights import Prior

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURED = 8
"""Samples on a sheet."""
PICTURE_STEPS = 40
LOG_SNR = (-12.0, -10.0, -8.0, -6.0, -4.0, 0.0, 4.0)


def draw_pictures(prior: Prior, held_out: Tensor | None, folder: TrainingFolder, images: int, seed: int) -> None:
    """Into the folder's pictures: samples, what becomes of held-out crystals, the loss so far.

    Args:
        prior: the network as it is.
        held_out: (n, 1, z, y, x) crops, rad, if there are any.
        folder: of the training, with its logs.
        images: seen so far, in the names of the files.
        seed: of the samples.
    """
    *_, state = sample_prior(prior, SampleConfig(n=PICTURED, steps=PICTURE_STEPS, seed=seed))
    assert state.samples is not None
    folder.pictures.mkdir(exist_ok=True)
    sheet = contact_sheet([*state.samples], [f"sample {i}" for i in range(PICTURED)], columns=4)
    save_figure(sheet, folder.pictures / f"samples-{images:09d}.png")
    if held_out is not None:
        save_figure(denoised_figure(prior, held_out), folder.pictures / f"denoised-{images:09d}.png")
    log, validation = (read_log(folder.path / name) for name in ("log.csv", "validation.csv"))
    if log:
        save_figure(loss_figure(log, validation), folder.pictures / "loss.png")


def denoised_figure(prior: Prior, crops: Tensor, log_snr: Sequence[float] = LOG_SNR) -> Figure:
    """For each of some held-out crops: it with noise at several log-SNR, and below what the network makes of that.

    Args:
        prior: the network.
        crops: (n, 1, z, y, x), rad; their sums over depth are drawn.
        log_snr: of the columns.

    Source: MEP-Diffusion, Figure 3.
    """
    from matplotlib.figure import Figure

    scale = prior.config.diffusion.data_scale
    figure = Figure(figsize=(1.35 * (len(log_snr) + 1), 2.9 * len(crops)), layout="constrained")
    axes = figure.subplots(2 * len(crops), len(log_snr) + 1, squeeze=False)
    generator = torch.Generator().manual_seed(0)
    for number, crop in enumerate(crops):
        added = added_noise(torch.tensor(log_snr))
        clean = (crop * scale)[None].expand(len(log_snr), *crop.shape)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        noisy = clean + added.to(clean.device).reshape(-1, 1, 1, 1, 1) * noise
        seen = prior.denoise(noisy, added.to(clean.device))
        truth = crop[0].sum(0).cpu().numpy()
        high = float(truth.max()) or 1.0
        upper, lower = axes[2 * number], axes[2 * number + 1]
        for axis in (*upper, *lower):
            without_ticks(axis)
        for column in range(len(log_snr)):
            upper[column].imshow((noisy[column, 0] / scale).sum(0).cpu().numpy(), cmap="gray")
            lower[column].imshow((seen[column, 0] / scale).sum(0).cpu().numpy(), cmap="inferno", vmin=0, vmax=high)
            if number == 0:
                upper[column].set_title(f"log-SNR {log_snr[column]:+g}", fontsize=8, color=INK)
        lower[-1].imshow(truth, cmap="inferno", vmin=0, vmax=high)
        lower[-1].set_title("truth", fontsize=8, color=INK)
        upper[-1].set_axis_off()
        upper[0].set_ylabel("given", fontsize=8, color=MUTED)
        lower[0].set_ylabel("denoised", fontsize=8, color=MUTED)
    return figure


def loss_figure(log: Sequence[Mapping[str, float]], validation: Sequence[Mapping[str, float]]) -> Figure:
    """The loss by step, and the held-out loss by log-SNR at the first, a middle and the last validation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    steps, losses = np.array([r["step"] for r in log]), np.array([r["loss"] for r in log])
    left.plot(steps, losses, color=COLORS[0], linewidth=0.5, alpha=0.4)
    window = max(1, len(losses) // 50)
    smooth = np.convolve(losses, np.ones(window) / window, "valid")
    left.plot(steps[window - 1 :], smooth, color=COLORS[0], linewidth=1.4, label="training")
    if validation:
        held = [(r["step"], r["loss"]) for r in validation]
        left.plot(*zip(*held, strict=True), color=COLORS[1], marker="o", markersize=3, linewidth=1.2, label="held out")
        middle = validation[len(validation) // 2]
        for row, color in zip(
            {r["step"]: r for r in (validation[0], middle, validation[-1])}.values(), COLORS, strict=False
        ):
            bins = [(float(name.removeprefix("loss_at_")), value) for name, value in row.items() if "_at_" in name]
            label = f"step {row['step']:.0f}"
            right.plot(*zip(*bins, strict=True), color=color, marker="o", markersize=3, linewidth=1.2, label=label)
        right.axhline(1.0, color=MUTED, linewidth=0.8, linestyle=":")
        right.set_yscale("log")
        right.legend(fontsize=7, frameon=False)
    left.set_yscale("log")
    left.set_xlabel("step", fontsize=8)
    left.set_ylabel("loss (weighted, of v)", fontsize=8)
    right.set_xlabel("log-SNR", fontsize=8)
    right.set_ylabel("held-out loss of v", fontsize=8)
    left.legend(fontsize=7, frameon=False)
    for axis in (left, right):
        axis.tick_params(labelsize=7)
        plain_axis(axis)
    return figure
