"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys

import numpy as np
import pytest

from mepdiff_core.memory import device_memory, release_freed


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library gives it back by itself"
)
def test_freed_memory_is_given_back() -> None:
    """Small arrays, the last of which stays: what lies below it in the heap is kept by glibc until it is asked for."""
    arrays = [np.ones(8000) for _ in range(3000)]  # 64 kB each: not mapped on their own
    last = arrays.pop()
    taken = device_memory("cpu").ours
    arrays.clear()
    release_freed()
    assert taken - device_memory("cpu").ours > 150e6
    assert last.sum() == 8000
