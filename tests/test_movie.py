"""States that are kept to look back at, and movies of them."""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mepdiff_core import state_archive
from mepdiff_core.errors import InputError
from mepdiff_core.movie import GIF_FRAMES, filmed, slice_frame, slice_frames, write_movie
from mepdiff_core.state_archive import StateArchive
from mepdiff_core.states import SampleState, State

SHAPE = (3, 8, 8)
BYTES = 4 * 3 * 8 * 8


def state(step: int, noisy: bool = False) -> State:
    volume = np.full(SHAPE, step, np.float32)
    if not noisy:
        return State(step, 1000, volume, 1.0, 0.1, step)
    return SampleState(step, 1000, volume, 1.0, 0.1, step, sigma=1 / step, noisy=np.full(SHAPE, -step, np.float32))


def filled(count: int, noisy: bool = False, **limits: float) -> StateArchive:
    archive = StateArchive(**limits)  # type: ignore[arg-type]
    for step in range(1, count + 1):
        archive.add(state(step, noisy))
    return archive


# the archive


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 90), memory=st.integers(1, 40), total=st.integers(2, 60), most=st.integers(2, 50))
def test_what_is_kept_is_bounded_even_and_exact(count: int, memory: int, total: int, most: int) -> None:
    archive = filled(count, memory_bytes=memory * BYTES, total_bytes=total * BYTES, most=most)
    steps = archive.steps
    assert archive.bytes_in_memory <= memory * BYTES
    assert len(steps) <= min(total, most)
    assert (steps[0], steps[-1]) == (1, count)
    gaps = np.diff(steps[:-1])
    assert len({*gaps.tolist()}) <= 1
    if len(gaps) and len(steps) > 2:
        assert steps[-1] - steps[-2] <= gaps[0]
    for index, step in enumerate(steps):
        kept = archive.get(index)
        assert kept.step == step
        np.testing.assert_array_equal(kept.volume, np.full(SHAPE, step))


def test_all_are_kept_where_there_is_room_and_noise_with_them() -> None:
    archive = filled(20, noisy=True, memory_bytes=10 * BYTES)
    assert archive.steps == [*range(1, 21)]
    for index in (0, 19):  # from disk, and from memory
        kept = archive.get(index)
        assert kept.sigma == 1 / kept.step
        assert kept.noisy is not None
        np.testing.assert_array_equal(kept.noisy, -kept.volume)


def test_an_archive_at_rest_keeps_one_state_in_memory() -> None:
    archive = filled(9)
    archive.rest()
    assert archive.bytes_in_memory == BYTES
    assert [archive.get(i).volume[0, 0, 0] for i in range(9)] == [*range(1, 10)]


def test_files_go_with_the_archive() -> None:
    archive = filled(10, memory_bytes=2 * BYTES)
    folder = archive._folder
    assert folder is not None
    assert len([*folder.iterdir()]) == 8
    del archive
    gc.collect()
    assert not folder.exists()


def test_a_full_disk_costs_states_and_not_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_archive.np, "save", full)
    archive = filled(50, memory_bytes=8 * BYTES)
    assert len(archive) <= 8
    assert (archive.steps[0], archive.steps[-1]) == (1, 50)


# movies


def test_a_frame_shows_every_slice_in_its_colour() -> None:
    """Slices of one phase each: their tiles have one colour each, brighter with the phase."""
    archive = StateArchive()
    volume = np.repeat(np.linspace(0, 1, 3, dtype=np.float32), 64).reshape(SHAPE)
    archive.add(State(1, 1, volume, 0.0, 0.0, 1))
    frame = slice_frame(archive.get(0), (0.0, 1.0), 1.6)
    tiles = [frame[26 + 80, 6 + 80 + i * 166] for i in range(3)]
    assert tiles[0].tolist() == [0, 0, 3]  # inferno's ends
    assert tiles[2].tolist() == [252, 254, 164]
    assert tiles[0].sum() < tiles[1].sum() < tiles[2].sum()


def test_a_gif_has_a_frame_for_each_state(tmp_path: Path) -> None:
    archive = filled(7, noisy=True)
    assert [*write_movie(tmp_path / "m.gif", slice_frames(archive, 1.6))] == [*range(1, 8)]
    with Image.open(tmp_path / "m.gif") as movie:
        assert movie.n_frames == 7
        expected = slice_frame(archive.get(6), archive.limits(), 1.6)
        movie.seek(6)
        found = np.asarray(movie.convert("RGB")).astype(int)
        assert np.abs(found - expected).mean() < 2


def test_noise_has_one_row_below_the_slices() -> None:
    """Eight slices in two rows, and below them four of the noisy state, the first and the last among them."""
    archive = StateArchive()
    noisy = np.repeat(np.arange(8, dtype=np.float32), 64).reshape(8, 8, 8)
    archive.add(SampleState(1, 1, np.zeros_like(noisy), 1.0, 0.1, 1, sigma=1.0, noisy=noisy))
    frame = slice_frame(archive.get(0), (0.0, 1.0), 1.6)
    assert frame.shape[0] == 26 + 3 * 166
    tiles = [int(frame[26 + 2 * 166 + 80, 6 + 80 + i * 166].sum()) for i in range(4)]
    assert tiles == sorted({*tiles})
    assert tiles[-1] == 252 + 254 + 164  # inferno's bright end


def test_a_gif_of_many_states_is_thinned_evenly_and_an_mp4_is_not() -> None:
    archive = filled(200)
    steps = filmed("m.gif", archive)
    assert (len(steps), steps[0], steps[-1]) == (GIF_FRAMES, 1, 200)
    assert {*np.diff(steps).tolist()} == {3, 4}
    assert filmed("m.mp4", archive) == [*range(1, 201)]


def test_an_mp4_has_a_frame_for_each_state(tmp_path: Path) -> None:
    ffmpeg = pytest.importorskip("imageio_ffmpeg")
    list(write_movie(tmp_path / "m.mp4", slice_frames(filled(7), 1.6)))
    assert ffmpeg.count_frames_and_secs(str(tmp_path / "m.mp4"))[0] == 7


def test_a_movie_that_is_stopped_leaves_nothing(tmp_path: Path) -> None:
    for name in ("m.gif", "m.mp4"):
        frames = write_movie(tmp_path / name, slice_frames(filled(7), 1.6))
        next(frames)
        frames.close()  # type: ignore[attr-defined]
    assert not [*tmp_path.iterdir()]


def test_what_cannot_be_filmed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"ends in \.gif or \.mp4"):
        list(write_movie(tmp_path / "m.avi", []))
    for name in ("m.gif", "m.mp4"):
        with pytest.raises(InputError, match="no states yet"):
            list(write_movie(tmp_path / name, []))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(InputError, match="needs imageio-ffmpeg"):
        list(write_movie(tmp_path / "m.mp4", slice_frames(filled(2), 1.6)))
    assert not [*tmp_path.iterdir()]
