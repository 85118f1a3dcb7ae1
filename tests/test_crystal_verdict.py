"""What is said of a solved crystal."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from mepdiff_core.atom_waves import Imaging
from mepdiff_core.crystal_verdict import WITHOUT_CELL, Evidence, Fit, limits
from mepdiff_core.defects import Defect

GOOD = Evidence(Fit(1.0, 8.0, -0.2, -0.6, True), True, None, 0.02, Imaging(), 0.3, 12.8, 12.8, (), None)
MISSING = Defect("vacancy", 8, (1.0, 2.0, 3.0), (0.0, 0.0), 44.0)
MOVED = Defect("displaced", 38, (1.0, 2.0, 3.0), (0.1, -0.2), 44.0)


def fitting(nats: float, deviations: float = 0.0) -> Evidence:
    return replace(GOOD, fit=Fit(nats, 8.0, 2.6, deviations, True))


def test_a_good_answer_has_one_phrase() -> None:
    assert limits(GOOD) == ["held-out patterns are explained: 1 ± 8 nats a pattern above counting statistics"]
    assert limits(replace(GOOD, fit=replace(GOOD.fit, heldout=False)))[0].startswith("patterns are explained")


@pytest.mark.parametrize(
    ("evidence", "words"),
    [
        (fitting(30.0), "nearly explained"),
        (fitting(300.0), "the structure is wrong"),
        (fitting(-45.0, 7.3), r"yet free matter would gain 2.6 nats .* \(7 standard deviations\)"),
        (replace(GOOD, periodic=False), "no period along the beam"),
        (replace(GOOD, periods_A=(4.84, 6.35)), "periods along the beam from 4.84 to 6.35 Å"),
        (replace(fitting(30.0), change=0.11), "columns differ by 11 %"),
        (replace(GOOD, imaging=Imaging(overfocus_A=-3.2)), r"differs from the scan's by -3.2 ± 0.3 Å"),
        (replace(GOOD, imaging=Imaging(thermal_A=0.081)), "blurred by 0.081 Å"),
        (replace(GOOD, preferred_thickness_A=14.4), "thickness of 14.4 Å to the 12.8 Å given"),
        (replace(GOOD, defects=(MISSING,)), r"one site differs .* O at \(3.00, 2.00, 1.00\) Å is missing"),
        (replace(GOOD, defects=(MISSING, MOVED)), r"2 sites differ .* Sr .* displaced by \(-0.20, 0.10\) Å"),
        (replace(GOOD, alternative="O3SrTi"), "a second structure, O3SrTi, is equally likely"),
    ],
)
def test_each_doubt_is_said(evidence: Evidence, words: str) -> None:
    assert len(limits(evidence)) <= 2
    assert re.search(words, "; ".join(limits(evidence)))


def test_a_wrong_structure_is_not_doubted_twice() -> None:
    assert len(limits(fitting(300.0, 70.0))) == 1


@pytest.mark.parametrize(("nats", "change", "fails"), [(300.0, 0.11, True), (300.0, 0.02, False), (150.0, 0.11, False)])
def test_a_cell_fails_where_cells_differ_and_nothing_is_explained(nats: float, change: float, fails: bool) -> None:
    assert (WITHOUT_CELL in limits(replace(fitting(nats), change=change))) == fails


def test_the_models_own_error_grows_with_the_electrons() -> None:
    """0.5 nats a pattern are the model's at the paper's dose, and an error of the structure at a tenth of it."""
    bright = Fit(1.0, 8.0, 0.5, 12.0, True)
    dim = replace(bright, brightness=0.1)
    assert not bright.doubtful
    assert dim.doubtful
    assert not replace(dim, deviations=3.0).doubtful
    assert any("0.5 nats a pattern more" in words for words in limits(replace(GOOD, fit=dim)))


def test_few_electrons_leave_depth_unseen() -> None:
    """Noise of 0.01 nats a pattern hides errors of 0.04: little of 4, a fifth of 0.2, and all where depth gains nothing."""
    fit = Fit(1.0, 8.0, 0.005, 0.5, True, 0.01, 4.0)
    assert fit.unseen == pytest.approx(0.01)
    assert len(limits(replace(GOOD, fit=fit))) == 1
    dim = replace(fit, depth=0.2)
    assert dim.unseen == pytest.approx(0.2)
    words = "up to 20 % of what depth explains may be wrong unseen, for the patterns have few electrons"
    assert limits(replace(GOOD, fit=dim))[1] == words
    assert replace(fit, depth=-0.1).unseen == 1
