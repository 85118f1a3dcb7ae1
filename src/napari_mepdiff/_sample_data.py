"""The sample scan that comes with the plugin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from napari_mepdiff._reader import read_scans

SAMPLE = Path(__file__).parent / "data" / "SrTiO3.h5"
"""Made by ``mepdiff simulate SrTiO3.cif SrTiO3.h5 --scan-shape 16 16
--set detector_pixels=64 --set optics.overfocus_A=60`` from the crystal that comes with mepdiff_core."""


def strontium_titanate() -> list[Any]:
    """A small simulated scan of SrTiO3 along c, with its ground truth, as layers."""
    return read_scans(str(SAMPLE))
