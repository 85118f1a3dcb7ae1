"""The memory of a device: how much there is, how much is taken; and freed memory given back."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Memory:
    """Attributes: ``ours``, ``used`` by all, and ``total``, each in bytes."""

    ours: int
    used: int
    total: int


def device_memory(device: str) -> Memory:
    """Memory of a CUDA device by its name (cuda, cuda:1), or of the computer for any other one.

    Torch is asked only where it is loaded already.
    """
    torch = sys.modules.get("torch")
    if device.startswith("cuda") and torch is not None and torch.cuda.is_initialized():
        free, total = torch.cuda.mem_get_info(device)
        return Memory(int(torch.cuda.memory_reserved(device)), int(total - free), int(total))
    import psutil

    whole = psutil.virtual_memory()
    return Memory(int(psutil.Process().memory_info().rss), int(whole.total - whole.available), int(whole.total))


def release_freed() -> None:
    """Give memory that was freed back to the system, where the C library is glibc: it keeps it otherwise, in pieces."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def memory_in_words(device: str) -> str:
    """The same in a line."""
    memory = device_memory(device)
    ours, used, total = (f"{value / 1e9:.1f}" for value in (memory.ours, memory.used, memory.total))
    place = f" of {device}" if device.startswith("cuda") else ""
    return f"Memory{place}: {used} of {total} GB taken, {ours} by this window."
