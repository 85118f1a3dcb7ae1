"""What a quadratic misfit is a function of: matter in bins of depth, other features of a column, products of two bins."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import combinations_with_replacement

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class MatterParameters:
    """The order of the parameters: the matter of all columns, their other features, then the products of each group.

    Attributes:
        columns, bins, others: how many columns, bins of depth along each, and features a column has besides its matter.
        groups: columns of which the products of each two bins, and half of each square, are parameters too: bins of one
            column and of two.
    """

    columns: int
    bins: int
    others: int
    groups: tuple[tuple[int, ...], ...] = ()

    @property
    def count(self) -> int:
        return self.columns * (self.bins + self.others) + len(self._pairs)

    def members(self, group: tuple[int, ...]) -> Places:
        """The parameters of a group whose products are followed: its columns' bins."""
        return np.concatenate([np.arange(c * self.bins, (c + 1) * self.bins) for c in group])

    @cached_property
    def _pairs(self) -> Places:
        """(products, 2) bins of all columns, each with itself and with those behind it in its group."""
        pairs = [pair for group in self.groups for pair in combinations_with_replacement(self.members(group).tolist(), 2)]
        return np.array(pairs, np.int64).reshape(-1, 2)

    @cached_property
    def _half(self) -> Array:
        return np.where(self._pairs[:, 0] == self._pairs[:, 1], 0.5, 1.0)

    def of(self, away: Array) -> Array:
        """(..., parameters) of (..., columns, bins + others) differences from the centre."""
        many = away.shape[:-2]
        matter = away[..., : self.bins].reshape(*many, -1)
        products = matter[..., self._pairs[:, 0]] * matter[..., self._pairs[:, 1]] * self._half
        return np.concatenate([matter, away[..., self.bins :].reshape(*many, -1), products], axis=-1)

    def of_column(self, column: int, away: Array) -> Array:
        """(n, own parameters) of (n, bins + others) differences: those that depend on no other column."""
        if not any(column in group for group in self.groups):
            return away
        first, second = np.array(list(combinations_with_replacement(range(self.bins), 2))).T
        products = away[:, first] * away[:, second] * np.where(first == second, 0.5, 1.0)
        return np.concatenate([away, products], axis=1)

    @cached_property
    def own(self) -> list[Places]:
        """Of each column, where its own parameters are, in the order of ``of_column``."""
        whose = self._pairs // self.bins
        first = self.columns * self.bins
        return [
            np.concatenate(
                [
                    np.arange(column * self.bins, (column + 1) * self.bins),
                    first + np.arange(column * self.others, (column + 1) * self.others),
                    self.columns * (self.bins + self.others) + np.flatnonzero((whose == column).all(1)),
                ]
            )
            for column in range(self.columns)
        ]

    @cached_property
    def shared(self) -> list[tuple[Places, Places, Places]]:
        """Of each column, its products with other columns: where they are, the column's bin, the other's bin of all."""
        whose = self._pairs // self.bins
        result = []
        for column in range(self.columns):
            rows = np.flatnonzero((whose == column).sum(1) == 1)
            mine = whose[rows, 0] == column
            pairs = self._pairs[rows]
            ours, theirs = np.where(mine, pairs[:, 0], pairs[:, 1]), np.where(mine, pairs[:, 1], pairs[:, 0])
            result.append((self.columns * (self.bins + self.others) + rows, ours % self.bins, theirs))
        return result
