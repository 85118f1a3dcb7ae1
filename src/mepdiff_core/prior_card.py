"""What a prior says of itself, without loading its weights or torch: for people who choose one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mepdiff_core.arrays import read_about
from mepdiff_core.config import check
from mepdiff_core.errors import InputError
from mepdiff_core.settings import EMBEDDED

DATA_FILE = Path(__file__).parent / "data" / "prior.safetensors"
"""Of the prior that is installed with the package."""


@dataclass(frozen=True)
class PriorCard:
    """A prior's header.

    Attributes:
        path: its file.
        parameters: numbers in its weights.
        shape: (z, y, x) voxels of the crops it was trained on; voxel_size_A: of each, Å.
        training: what is on record of its training; empty where nothing is.
    """

    path: Path
    parameters: int
    shape: tuple[int, int, int]
    voxel_size_A: tuple[float, float, float]
    training: Mapping[str, Any]

    def lines(self) -> list[str]:
        """The card in words."""
        size, voxel = " x ".join(map(str, self.shape)), " x ".join(f"{v:g}" for v in self.voxel_size_A)
        lines = [
            f"{self.parameters / 1e6:.1f} M parameters" if self.parameters >= 1e5 else f"{self.parameters} parameters",
            f"trained on {size} voxels of {voxel} Å (z, y, x)",
        ]
        for name, words in (("data", "data"), ("steps", "steps"), ("images", "crops seen")):
            if self.training.get(name) is not None:
                lines.append(f"{words}: {self.training[name]}")
        validation = self.training.get("validation")
        if isinstance(validation, Mapping) and validation.get("loss") is not None:
            lines.append(f"held-out loss {float(validation['loss']):.4f}")
        return lines


def read_card(prior: str | Path) -> PriorCard:
    """The card of a prior, by its file or ``embedded``.

    Raises:
        InputError: missing, damaged, another kind of file.
    """
    path = DATA_FILE if prior == EMBEDDED else Path(prior)
    missing = "this installation has no embedded prior" if prior == EMBEDDED else f"{path}: no such file"
    check(path.is_file(), f"{missing}; choose a prior's file (safetensors), as mepdiff train writes it")
    about, shapes = read_about(path)
    remedy = "choose a prior, as mepdiff train writes it"
    check(about.get("format") == "mepdiff-prior", f"{path} is no prior of mepdiff; {remedy}")
    config = about.get("config") or {}
    try:
        depth, height, width = (int(n) for n in config["shape"])
        dz, dy, dx = (float(v) for v in config["voxel_size_A"])
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path} does not say what its volumes are; {remedy}") from None
    count = sum(math.prod(shape) for shape in shapes.values())
    return PriorCard(path, count, (depth, height, width), (dz, dy, dx), about.get("training") or {})
