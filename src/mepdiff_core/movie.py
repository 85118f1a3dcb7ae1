"""A movie of a crystal forming: frames of slices, and a GIF or MP4 of any frames."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.files import atomic_path
from mepdiff_core.metrics import middle
from mepdiff_core.state_archive import Kept, StateArchive

Frame = npt.NDArray[np.uint8]
"""(rows, columns, 3)."""
KINDS = (".gif", ".mp4")
GIF_FRAMES = 60
"""Noise does not compress: a frame of it adds some 100 kB to a GIF, a fifth of that to an MP4."""
COLUMNS = 4
GAP, HEAD = 6, 26
"""Pixels between slices, and above them for words."""
SMALLEST_SLICE = 160
"""Pixels; smaller slices are enlarged by a whole factor."""
PAPER, INK = 30, (235, 235, 235)


def filmed(path: str | Path, archive: StateArchive) -> list[int]:
    """Steps of the states that a movie of this name shows: of all, in a GIF of ``GIF_FRAMES`` at most."""
    steps = archive.steps
    return [steps[i] for i in evenly_spaced(len(steps), GIF_FRAMES)] if Path(path).suffix.lower() == ".gif" else steps


def slice_frames(
    archive: StateArchive, slice_thickness_A: float, most: int = 8, steps: Sequence[int] | None = None
) -> Iterator[Frame]:
    """A frame for each state that was kept: slices of the middle of the field by depth, and below them a row of noisy ones.

    Args:
        most: slices at most; more are thinned out evenly.
        steps: of the states to show, which may be thinned out meanwhile; all by default.
    """
    limits = archive.limits()
    for step in archive.steps if steps is None else steps:
        yield slice_frame(archive.nearest(step), limits, slice_thickness_A, most)


def slice_frame(kept: Kept, limits: tuple[float, float], slice_thickness_A: float, most: int = 8) -> Frame:
    """One frame; ``limits`` are the phases, rad, of the colour scale's ends."""
    from matplotlib import colormaps, font_manager
    from PIL import Image, ImageDraw, ImageFont

    # Pillow's own font has neither Å nor σ
    colors, font = colormaps["inferno"], ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 12)
    blocks = [("", kept.volume, limits, evenly_spaced(len(kept.volume), most))]
    if kept.noisy is not None:
        low, high = (float(v) for v in np.percentile(kept.noisy, (0.5, 99.5)))
        # one row: noise is what makes a movie large, and more of it tells no more
        blocks.append(
            ("noisy", kept.noisy, (low, max(high, low + 1e-6)), evenly_spaced(len(kept.noisy), min(most, COLUMNS)))
        )
    larger = max(1, -(-SMALLEST_SLICE // middle(kept.volume).shape[-1]))
    height, width = (larger * n for n in middle(kept.volume).shape[1:])
    columns = min(COLUMNS, len(blocks[0][3]))
    lines = sum(-(-len(shown) // columns) for *_, shown in blocks)
    size = (columns * (width + GAP) + GAP, HEAD + lines * (height + GAP))
    picture = Image.new("RGB", size, (PAPER,) * 3)
    draw = ImageDraw.Draw(picture)
    words = f"step {kept.step}" + ("" if kept.sigma is None else f"    noise σ {kept.sigma:.3g}")
    draw.text((GAP, 5), words, fill=INK, font=font)
    first = 0
    for name, volume, (low, high), shown in blocks:
        for place, z in enumerate(shown):
            row, column = divmod(place, columns)
            painted = colors(np.clip((middle(volume)[z] - low) / (high - low), 0, 1))[..., :3]
            tile = Image.fromarray((255 * painted).astype(np.uint8)).resize((width, height), Image.Resampling.NEAREST)
            corner = GAP + column * (width + GAP), HEAD + (first + row) * (height + GAP)
            picture.paste(tile, corner)
            label = f"{name} z = {(z + 0.5) * slice_thickness_A:.1f} Å".strip()
            # the rim lets it be read on noise
            place_of_label = corner[0] + 4, corner[1] + 3
            draw.text(place_of_label, label, fill=INK, font=font, stroke_width=2, stroke_fill=(PAPER,) * 3)
        first += -(-len(shown) // columns)
    return np.asarray(picture)


def evenly_spaced(count: int, most: int) -> npt.NDArray[np.int_]:
    """Indices of so many at most, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))


def write_movie(path: str | Path, frames: Iterable[Frame], frames_per_s: float = 12.0) -> Iterator[int]:
    """Write frames of one size as GIF or MP4, by the name's ending; yields how many frames are in.

    Nothing is left of a movie whose last frame was not reached.

    Raises:
        InputError: another ending, no frames, or an MP4 without imageio-ffmpeg.
    """
    kind = Path(path).suffix.lower()
    check(kind in KINDS, f"{path}: a movie's name ends in {' or '.join(KINDS)}; give such a name")
    check(frames_per_s > 0, f"frames_per_s is {frames_per_s:g}; expected more than 0")
    with atomic_path(path) as temporary:
        yield from (_gif if kind == ".gif" else _mp4)(temporary, iter(frames), frames_per_s)


def _gif(path: Path, frames: Iterator[Frame], frames_per_s: float) -> Iterator[int]:
    from PIL import Image

    pictures = []
    for number, frame in enumerate(frames, 1):
        pictures.append(Image.fromarray(frame).quantize(128, dither=Image.Dither.NONE))
        yield number
    check(bool(pictures), "there are no states yet; run something first")
    times = [round(1000 / frames_per_s)] * (len(pictures) - 1) + [2000]
    pictures[0].save(path, "GIF", save_all=True, append_images=pictures[1:], duration=times, loop=0, disposal=1)


def _mp4(path: Path, frames: Iterator[Frame], frames_per_s: float) -> Iterator[int]:
    try:
        import imageio_ffmpeg
    except ImportError:
        raise InputError(
            "an MP4 needs imageio-ffmpeg (pip install imageio-ffmpeg); or give a name that ends in .gif"
        ) from None
    frame: Frame | None = next(frames, None)
    check(frame is not None, "there are no states yet; run something first")
    assert frame is not None
    rows, columns = (2 * (n // 2) for n in frame.shape[:2])  # video knows even sizes alone
    options = {"fps": frames_per_s, "macro_block_size": 1, "output_params": ["-f", "mp4"]}
    writer = imageio_ffmpeg.write_frames(str(path), (columns, rows), **options)
    writer.send(None)
    try:
        number = 0
        while frame is not None:
            writer.send(np.ascontiguousarray(frame[:rows, :columns]))
            number += 1
            yield number
            frame = next(frames, None)
    finally:
        writer.close()
