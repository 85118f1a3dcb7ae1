"""What stands in attributes and small data sets of HDF5 and Zarr, whatever type their writers gave it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def text_of(value: Any) -> str:
    """A text; "" where there is none."""
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else "" if value is None else str(value)
    return "" if text in ("_None_", "<undefined>") else text


def number_of(value: Any) -> float:
    """A number, or not a number where there is none."""
    try:
        number = float(np.asarray(value).reshape(-1)[0])
    except (TypeError, ValueError, IndexError):
        return math.nan
    return number if math.isfinite(number) else math.nan
