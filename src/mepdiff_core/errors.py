"""The errors a user can meet. Each message is one line: what, what it got, what to do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")


class InputError(ValueError):
    """What the user gave cannot be used. The command line answers with exit code 2."""


class Refused(InputError):
    """What the user gave does not fit the data, which only the first states could tell; none of them is worth keeping."""


class Diverged(InputError):
    """A loop left the realm of finite or falling losses; its last good state was yielded before."""


def explain(error: BaseException) -> str | None:
    """One line on an error that its user can do something about; None for a fault of our own."""
    if isinstance(error, InputError):
        return str(error)
    words = " ".join(str(error).split("\n")[0].split())
    # torch says so in words alone, on the CPU as on a GPU
    memory = isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)
    if isinstance(error, MemoryError) or memory:
        return f"out of memory{f' ({words})' if words else ''}; take fewer patterns, slices or a smaller window"
    if isinstance(error, OSError):
        return f"{words or type(error).__name__}; check the path, its permissions and the disk"
    return None


@contextlib.contextmanager
def reading(path: object, words: str) -> Iterator[None]:
    """What a foreign reader raises over a damaged file, in one line.

    Raises:
        InputError: whatever went wrong in the block.
    """
    try:
        yield
    except (InputError, KeyboardInterrupt):
        raise
    except Exception as error:  # readers of many hands raise errors of every kind over a damaged file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{path} cannot be read as {words}; is it damaged or of another kind? ({reason[:300]})") from error
