"""Cells as large as what repeats along the beam, and no larger."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from mepdiff_core import column_search, lattice
from mepdiff_core.column_search import ColumnSearch
from mepdiff_core.columns import Columns, widen
from mepdiff_core.crystal_model import CrystalModel
from mepdiff_core.crystal_verdict import SHIFTING
from mepdiff_core.crystals import Crystal
from mepdiff_core.settings import CrystalConfig
from mepdiff_core.simulate import SimulationConfig, simulate_scan
from mepdiff_core.states import CrystalState

A, B, C = 4.0, 5.2, 6.1


def chains(depths: tuple[float, float]) -> Crystal:
    """Zirconium and oxygen along the beam, in a centred cell; ``depths``: of the second chain's atoms.

    Half of the cell is whole pixels of the truth, 0.1 Å: else they tell one chain from the other.
    """
    places = np.array([[0, 0, 0.2], [0, 0, 0.55], [0.5, 0.5, depths[0]], [0.5, 0.5, depths[1]]])
    return Crystal("ZrO", np.diag([A, B, C]), np.array([40, 8, 40, 8]), places)


def search_for(crystal: Crystal) -> ColumnSearch:
    config = SimulationConfig(scan_shape=(18, 18), origin_A=(1.1, 0.7, 2.3), seed=3)
    return ColumnSearch(simulate_scan(crystal, config), CrystalConfig(), "cpu")


def columns_of(crystal: Crystal) -> Columns:
    """As the solver finds them."""
    search = search_for(crystal)
    found: list[CrystalModel | None] = []

    def steps() -> Iterator[CrystalState]:
        found.append((yield from search.columns()))

    assert all(state.note for state in steps())
    assert found[0] is not None
    assert found[0].stacking is None
    return found[0].columns


@pytest.mark.slow
@pytest.mark.parametrize(("depths", "cells"), [((0.8, 0.45), 2), ((0.2, 0.55), 1)], ids=["upside down", "alike"])
def test_cells_that_differ_along_the_beam_alone(depths: tuple[float, float], cells: int) -> None:
    """Every second chain upside down, which no projection shows: the centred cell repeats no longer."""
    columns = columns_of(chains(depths))
    assert columns.area_A2 == pytest.approx(cells * A * B / 2, rel=0.01)
    assert len(columns) == cells


@pytest.mark.slow
def test_a_larger_cell_that_no_copy_gains_by_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def doubled(_waves: object, columns: Columns, *_: object) -> Columns:
        asked.append(len(columns))
        return widen(columns, np.array([[2, 0], [0, 1]]))

    monkeypatch.setattr(column_search, "split_cosets", doubled)
    columns = columns_of(chains((0.2, 0.55)))
    assert asked == [1]
    assert len(columns) == 1


@pytest.mark.parametrize(("deeper_A", "cells"), [(2.5, 1), (0.0, 2)], ids=["shifted", "alike"])
def test_a_larger_cell_that_shifts_as_well_must_repeat_better(
    deeper_A: float, cells: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice the cell leaves 2.8 times less of the correlation to 1: enough, but where its own copies still differ."""
    cell = np.array([[A, 0.0, deeper_A], [0.0, B, 0.0], [0.0, 0.0, C]])
    search = search_for(Crystal("ZrO", cell, np.array([40, 8]), np.array([[0, 0, 0.2], [0, 0, 0.55]])))
    small = np.array([[0.0, A], [B, 0.0]])
    found = [lattice.Lattice(small, 0.944), lattice.Lattice(small * [[2.0], [1.0]], 0.98)]
    monkeypatch.setattr(lattice, "find_lattices", lambda *_, **__: found)
    notes = search.columns()
    state = next(s for s in notes if s.stage == "lattice")
    notes.close()
    assert (search.change > SHIFTING) == (deeper_A > 0)
    assert state.steps is not None
    assert abs(np.linalg.det(state.steps.lattice_A)) == pytest.approx(cells * A * B)
