"""Whether tiles leave seams in a crystal three times as wide and twice as thick as the prior's crops.

python benchmarks/science/seams.py --out seams.png [--prior embedded] [--crystals 16] [--scan SCAN.h5]

Crystals that the prior never saw, turned at random, get noise and are denoised tile by tile: as samplers do it (tiles
overlap and share one volume), and, for comparison, by tiles side by side. The jump of the error between neighbouring planes
of voxels tells of a seam: it is averaged over each plane, and compared at the faces of tiles with everywhere else. With
--scan, 'proximal' reconstructs a scan of a wide field besides, and its volume is looked at alike.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from mepdiff_core.crystals import cut_box
from mepdiff_core.figures import COLORS, GAMMA, INK, MUTED, plain_axis, without_ticks
from mepdiff_core.page import save_figure
from mepdiff_core.posterior import ILLUMINATED
from mepdiff_core.projection import illumination
from mepdiff_core.prototype_crystals import generate
from mepdiff_core.reconstruction import reconstruct
from mepdiff_core.scan import load_scan
from mepdiff_core.settings import EMBEDDED
from mepdiff_core.tiling import Tiled, Tiles
from mepdiff_core.volumes import SEAM_MARGIN_A, render_phase
from mepdiff_core.weights import Prior, load_prior

FIELD = (16, 192, 192)
SIGMAS = (0.05, 0.15, 0.5)
"""rad; between them most of a crystal's image disappears."""
SHOWN = 0.15
UNSEEN = 1000
"""Seed of crystals from another set than the training's."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prior", default=EMBEDDED)
    parser.add_argument("--crystals", type=int, default=16)
    parser.add_argument("--scan", type=Path, help="a scan of a wide field, with its truth")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    prior = load_prior(arguments.prior)
    layouts = {"overlapping": Tiles.lay(FIELD, prior.config.shape), "side by side": side_by_side(FIELD, prior.config.shape)}
    truths = [crystal(index, prior) for index in range(arguments.crystals)]
    profiles: dict[str, list[npt.NDArray[np.float64]]] = {}
    shown: dict[str, npt.NDArray[np.float32]] = {}
    print("| noise | tiles | error (rad) | across x at faces / elsewhere | across y | across z |")
    print("|---|---|---:|---:|---:|---:|", flush=True)
    for sigma in SIGMAS:
        for name, tiles in layouts.items():
            errors = []
            for number, truth in enumerate(truths):
                found = denoised(truth, sigma, number, prior, tiles)
                errors.append(found - truth)
                if number == 0 and sigma == SHOWN:
                    shown[name] = found
            ratios = [seam(errors, tiles, axis) for axis in (2, 1, 0)]
            rms = float(np.sqrt(np.mean(np.square(errors))))
            print(
                f"| {sigma:g} rad | {name} | {rms:.4f} | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |",
                flush=True,
            )
            if sigma == SHOWN:
                profiles[name] = [jumps(errors, 2)]
    if arguments.scan is not None:
        wide_scan(arguments.scan, prior)
    save_figure(picture(truths[0], shown, profiles, layouts, prior), arguments.out)


def crystal(index: int, prior: Prior) -> npt.NDArray[np.float32]:
    """(z, y, x) rad over the field, by abTEM's rendering."""
    depth, pixel, _ = prior.config.voxel_size_A
    margin = round(SEAM_MARGIN_A / pixel)
    height, width = (side + 2 * margin for side in FIELD[1:])
    rng = np.random.default_rng([UNSEEN, index])
    origin, angle = tuple(rng.uniform(0, 20, 3)), rng.uniform(0, 360)
    size = (FIELD[0] * depth, height * pixel, width * pixel)
    atoms = cut_box(generate(index, UNSEEN), "c", size, origin, angle)
    phase = render_phase(atoms, prior.config.energy_eV, (height, width), depth)
    return phase[:, margin:-margin, margin:-margin].astype(np.float32)


def side_by_side(field: tuple[int, int, int], tile: tuple[int, int, int]) -> Tiles:
    """Tiles that share nothing."""
    starts = [np.arange(0, size, side) for size, side in zip(field, tile, strict=True)]
    return Tiles(field, tile, np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, 3))


@torch.no_grad()
def denoised(truth: npt.NDArray[np.float32], sigma: float, seed: int, prior: Prior, tiles: Tiles) -> npt.NDArray[np.float32]:
    """What the prior makes of a volume with noise of sigma rad."""
    scale = prior.config.diffusion.data_scale
    noise = torch.randn(truth.shape, generator=torch.Generator().manual_seed(seed))
    x = (torch.from_numpy(truth) + sigma * noise)[None, None] * scale
    return (Tiled(prior.denoise, tiles, 8)(x, torch.full((1,), sigma * scale)) / scale)[0, 0].numpy()


def jumps(errors: list[npt.NDArray[np.float32]], axis: int) -> npt.NDArray[np.float64]:
    """Root mean square jump of the error between plane i and i + 1, for each i."""
    others = tuple(a for a in range(3) if a != axis)
    return np.sqrt(np.mean([np.square(np.diff(error, axis=axis)).mean(others) for error in errors], axis=0))


def faces(tiles: Tiles, axis: int) -> npt.NDArray[np.int64]:
    """Planes i between whose voxels and those of i + 1 a tile begins or ends."""
    first = np.unique(tiles.corners[:, axis])
    ends = np.unique(np.concatenate([first - 1, first + tiles.tile[axis] - 1]))
    return ends[(ends >= 0) & (ends < tiles.shape[axis] - 1)]


def seam(errors: list[npt.NDArray[np.float32]], tiles: Tiles, axis: int, inside: slice = slice(None)) -> float:
    """Jump at tiles' faces over that elsewhere: 1 without any seam."""
    values = jumps(errors, axis)
    at = np.isin(np.arange(len(values)), faces(tiles, axis))
    values, at = values[inside], at[inside]
    return float(np.sqrt(np.mean(values[at] ** 2) / np.mean(values[~at] ** 2)))


def wide_scan(path: Path, prior: Prior) -> None:
    """The same of a reconstruction, over the scanned area."""
    scan = load_scan(path)
    assert scan.truth is not None
    for state in reconstruct(scan, "proximal", device="cpu"):
        print(f"\rproximal, step {state.step} of {state.total}   ", end="", file=sys.stderr, flush=True)
    tiles = Tiles.lay(state.volume.shape, prior.config.shape, illumination(scan) > ILLUMINATED)  # type: ignore[arg-type]
    half = scan.n_pixels // 2
    inside = slice(half, -half)
    error = (state.volume - scan.truth.phase)[:, inside, inside]
    cut = Tiles(error.shape, tiles.tile, tiles.corners - (0, half, half))  # type: ignore[arg-type]
    x, y = (seam([error], cut, axis) for axis in (2, 1))
    area, count = f"{error.shape[1]} x {error.shape[2]} px", len(tiles.corners)
    print(
        f"\n{path.stem}, proximal, {count} tiles over {tiles.shape[1]} x {tiles.shape[2]} px, {state.seconds:.0f} s:"
        f" jump at faces / elsewhere in the scanned {area}: {x:.3f} across x, {y:.3f} across y"
    )


def picture(
    truth: npt.NDArray[np.float32],
    shown: dict[str, npt.NDArray[np.float32]],
    profiles: dict[str, list[npt.NDArray[np.float64]]],
    layouts: dict[str, Tiles],
    prior: Prior,
) -> Figure:
    """Errors of one slice by both ways, and the jumps across x with the tiles' faces."""
    figure = Figure(figsize=(9.6, 6.0), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.25, 1.0))
    z = int(np.argmax(truth.std((1, 2))))
    top = figure.add_subplot(grid[0, 0])
    top.imshow(truth[z], cmap="gray", norm=PowerNorm(GAMMA, 0, float(truth.max())))
    top.set_title(f"truth, slice {z + 1} of {len(truth)}", fontsize=9, color=INK)
    without_ticks(top)
    limit = float(np.percentile(np.abs(shown["side by side"][z] - truth[z]), 99.5))
    axes = [figure.add_subplot(grid[0, column]) for column in (1, 2)]
    for axis, (name, found) in zip(axes, shown.items(), strict=True):
        image = axis.imshow(found[z] - truth[z], cmap="RdBu_r", vmin=-limit, vmax=limit)
        axis.set_title(f"error, tiles {name}", fontsize=9, color=INK)
        without_ticks(axis)
    bar = figure.colorbar(image, ax=axes, shrink=0.8, pad=0.01)
    bar.set_label("rad", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    below = figure.add_subplot(grid[1, :])
    for number, (name, (values,)) in enumerate(profiles.items()):
        color, at = COLORS[number], faces(layouts[name], 2)
        position = (np.arange(len(values)) + 1) * prior.config.voxel_size_A[2]
        below.plot(position, values, color=color, linewidth=1.2, label=f"tiles {name}")
        below.plot(position[at], values[at], "o", color=color, markersize=5, label="faces of those")
    below.set_ylim(bottom=0)
    below.set_xlabel("x (Å)", fontsize=8)
    below.set_ylabel("jump of the error (rad)", fontsize=8)
    below.set_title(f"noise of {SHOWN:g} rad, all crystals", fontsize=9, color=MUTED)
    below.tick_params(labelsize=7)
    below.legend(fontsize=8, frameon=False, ncols=2)
    plain_axis(below)
    return figure


if __name__ == "__main__":
    main()
