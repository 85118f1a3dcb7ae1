"""What an error says to the person who met it."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
import torch

from mepdiff_core.errors import Diverged, InputError, explain

SMALLER = "take fewer patterns, slices or a smaller window"
DISK = "check the path, its permissions and the disk"
CPU = "[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."
CUBLAS = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
CUDA = "CUDA out of memory. Tried to allocate 9.00 GiB. GPU 0 has a total capacity of 8.00 GiB"
MPS = "MPS backend out of memory (MPS allocated: 8.00 GB, other allocations: 1.00 GB, max allowed: 9.07 GB)"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("steps is 0; expected at least 1"), "steps is 0; expected at least 1"),
        (Diverged("the loop diverged in step 3"), "the loop diverged in step 3"),
        (InputError("x.h5 says: out of memory"), "x.h5 says: out of memory"),  # its own words, unchanged
        (MemoryError("9 GB"), f"out of memory (9 GB); {SMALLER}"),
        (MemoryError(), f"out of memory; {SMALLER}"),
        (MemoryError(""), f"out of memory; {SMALLER}"),
        (torch.cuda.OutOfMemoryError(CUDA), f"out of memory ({CUDA}); {SMALLER}"),
        (RuntimeError(MPS), f"out of memory ({MPS}); {SMALLER}"),
        (RuntimeError(CPU), f"out of memory ({CPU}); {SMALLER}"),
        (RuntimeError(CUBLAS), f"out of memory ({CUBLAS}); {SMALLER}"),
        (RuntimeError(f"{CPU}\nException raised from alloc_cpu"), f"out of memory ({CPU}); {SMALLER}"),
        (
            RuntimeError("CUDA error: out of memory\nCompile with\nTORCH_USE_CUDA_DSA"),
            f"out of memory (CUDA error: out of memory); {SMALLER}",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), f"[Errno {errno.ENOSPC}] No space left on device; {DISK}"),
        (
            PermissionError(errno.EACCES, "Permission denied", "run"),
            f"[Errno {errno.EACCES}] Permission denied: 'run'; {DISK}",
        ),
        (OSError("Unable  to\tsynchronously open file\n(truncated)"), f"Unable to synchronously open file; {DISK}"),
        (OSError(), f"OSError; {DISK}"),
        (PermissionError(), f"PermissionError; {DISK}"),
        (ConnectionResetError(""), f"ConnectionResetError; {DISK}"),
    ],
)
def test_what_a_person_can_do_something_about_is_one_line(error: Exception, line: str) -> None:
    assert explain(error) == line


def test_too_large_arrays_are_explained_as_numpy_and_torch_word_it() -> None:
    """More than any address space: nothing is allocated."""
    for library, allocate in (
        ("numpy", lambda: np.empty(2**60, np.uint8)),
        ("torch", lambda: torch.empty(2**60, dtype=torch.uint8)),
    ):
        with pytest.raises((MemoryError, RuntimeError)) as error:
            allocate()
        said = explain(error.value)
        assert said is not None, library
        assert said.startswith("out of memory (")
        assert said.endswith(f"; {SMALLER}")
        assert "\n" not in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError) as error:
        (tmp_path / "none.tif").read_bytes()
    said = explain(error.value)
    assert said is not None
    assert "none.tif" in said
    assert said.endswith(DISK)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("out of memory"),  # no RuntimeError
        ValueError("not enough memory"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        RuntimeError(""),
        KeyError("step"),
        ZeroDivisionError("division by zero"),
        AssertionError(),
        NotImplementedError("later"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_our_own_faults_are_not_explained_away(error: BaseException) -> None:
    assert explain(error) is None
