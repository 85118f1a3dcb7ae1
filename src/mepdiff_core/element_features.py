"""Every element's scattering factor as a mixture of four shapes, so that one linear problem covers them all.

The shapes are the first singular vectors of Lobato's factors between 0.05 and 2.6 1/Å: the first holds the strength of an
atom, the others how it falls off with the angle, which tells a light atom from a heavy one. Four leave less than 2 % of
any element from lithium to uranium (a test says so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
import numpy.typing as npt

from mepdiff_core.renderer import scattering_factor

Array = npt.NDArray[np.float64]

FEATURES = 4
LIGHTEST, HEAVIEST = 3, 92
MIXED = (3, 8, 14, 19, 22, 40, 57, 74)
"""Elements whose images, mixed, draw the shapes."""
NEVER = (2, 10, 18, 36, 43, 54, 61, 84, 85, 86, 87, 88, 89)
"""Noble gases and elements without a long-lived isotope: in no crystal unless the composition says so."""
NON_METALS = (1, 2, 5, 6, 7, 8, 9, 10, 14, 15, 16, 17, 18, 33, 34, 35, 36, 52, 53, 54, 85, 86)


def possible_elements(known: Sequence[int] | None = None) -> npt.NDArray[np.int64]:
    """Atomic numbers, in order, that a crystal may hold: those known, or all that occur in crystals."""
    return np.array(sorted(known) if known else [z for z in range(LIGHTEST, HEAVIEST + 1) if z not in NEVER], np.int64)


@dataclass(frozen=True)
class ElementTable:
    """Attributes: ``features`` (93, 4) by atomic number, oxygen's first feature is 1; ``mixture`` (4, len(MIXED))."""

    features: Array
    mixture: Array

    @cached_property
    def spread(self) -> Array:
        """(3,) standard deviation, among the elements of crystals, of the features behind the first, by the first; their
        means are a tenth of it."""
        possible = self.features[possible_elements()]
        return np.asarray((possible[:, 1:] / possible[:, :1]).std(0))


@cache
def element_table() -> ElementTable:
    """The shapes and what each element is made of."""
    k = np.linspace(0.05, 2.6, 140)
    weight = np.sqrt(k)  # the plane's area
    factors = np.array([np.zeros_like(k)] + [scattering_factor(z, k**2) for z in range(1, HEAVIEST + 1)]) * weight
    known = factors[LIGHTEST:]
    shapes = np.linalg.svd(known / np.linalg.norm(known, axis=1)[:, None], full_matrices=False)[2][:FEATURES]
    shapes *= np.where(shapes.sum(1) < 0, -1, 1)[:, None]
    features = factors @ shapes.T
    unit = features[8, 0]
    mixture = np.linalg.lstsq(factors[list(MIXED)].T, shapes.T * unit, rcond=None)[0].T
    return ElementTable(features / unit, mixture)
