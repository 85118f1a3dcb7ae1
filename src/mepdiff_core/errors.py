"""The errors a user can meet. Each message is one line: what, what it got, what to do."""

from __future__ import annotations


class InputError(ValueError):
    """What the user gave cannot be used. The command line answers with exit code 2."""


class Diverged(InputError):
    """A loop left the realm of finite or falling losses; its last good state was yielded before."""


def explain(error: BaseException) -> str | None:
    """One line on an error that its user can do something about; None for a fault of our own."""
    if isinstance(error, InputError):
        return str(error)
    words = " ".join(str(error).split("\n")[0].split())
    # torch says so in words alone, on the CPU as on a GPU
    memory = isinstance(error, RuntimeError) and ("out of memory" in str(error) or "can't allocate memory" in str(error))
    if isinstance(error, MemoryError) or memory:
        return f"out of memory ({words}); take fewer patterns, slices or a smaller window"
    if isinstance(error, OSError):
        return f"{words}; check the path, its permissions and the disk"
    return None
