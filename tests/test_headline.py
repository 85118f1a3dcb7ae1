"""What an evaluation says of its rows, in words and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mepdiff_core.evaluation_report import sweep
from mepdiff_core.evaluation_summary import (
    best_of,
    classes,
    conditions,
    headline,
    interval,
    preferred,
    relative_gain,
    summarize,
)


def row(crystal: str, method: str, ssim: float | None, error: str = "", failure_class: str = "") -> dict[str, Any]:
    return {
        "crystal": crystal,
        "axis": "c",
        "method": method,
        "ssim_2d": ssim,
        "failure_class": failure_class,
        "error": error,
    }


def test_the_interval_is_that_of_a_mean() -> None:
    """Of many normal values: the mean ± 1.96 standard errors, to a tenth of one."""
    values = np.random.default_rng(3).normal(2.0, 0.5, 400)
    error = values.std() / 20
    low, high = interval(values.tolist())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.15 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.15 * error)
    assert interval([0.4]) == (0.4, 0.4)
    assert interval(values.tolist()) == (low, high)


def test_the_headline_compares_with_the_best_baseline_over_what_all_finished() -> None:
    """Means of a and b, for no crystal was found in c; the four ways to draw two of two are 1/4, 1/2 (mixed) and 1/4."""
    rows = [
        row("a", "adam", 0.2),
        row("b", "adam", 0.4),
        row("a", "adam-best", 0.4),
        row("b", "adam-best", 0.6),
        row("a", "crystal", 0.9),
        row("b", "crystal", 1.0),
        row("c", "adam", 0.9),
        row("c", "adam-best", 0.9),
        row("c", "crystal", None, error="no lattice"),
    ]
    words = headline(rows, ["adam", "adam-best", "crystal"])
    assert "over the 2 of 3 specimens that all methods finished" in words
    assert "adam 0.300 (0.200 to 0.400)" in words
    assert "crystal has 1.90 times the SSIM of the best baseline, adam-best: +90.0 % (+66.7 to +125.0 %)" in words
    assert "the difference is +0.450 (+0.400 to +0.500)" in words
    assert "times" not in headline(rows, ["adam", "adam-best"])
    assert headline([row("a", "adam", None)], ["adam"]) == ""
    assert headline([], ["adam"]) == ""


def test_a_table_by_hand() -> None:
    """Three crystals, all 27 ways to draw three of them written out: the ends of the interval are those of the list."""
    ours, theirs = [1.0, 0.8, 0.9], [0.5, 0.25, 0.6]
    ways = [[a, b, c] for a in range(3) for b in range(3) for c in range(3)]
    gains = sorted(sum(ours[i] for i in way) / sum(theirs[i] for i in way) - 1 for way in ways)
    gain, low, high = relative_gain(ours, theirs)
    assert gain == pytest.approx(2.7 / 1.35 - 1)
    assert low == pytest.approx(gains[0]) == pytest.approx(0.9 / 0.6 - 1)  # each end is one way of 27: 3.7 %
    assert high == pytest.approx(gains[-1]) == pytest.approx(0.8 / 0.25 - 1)
    rows = [
        row(c, m, v) for m, values in (("mepdiff", ours), ("adam-best", theirs)) for c, v in zip("abc", values, strict=True)
    ]
    rows += [row(c, "adam", 0.3) for c in "abc"] + [row(c, "crystal", 0.95) for c in "abc"]
    methods = ["adam", "adam-best", "crystal", "mepdiff"]
    assert best_of(rows, methods) == ("adam-best", "mepdiff")  # the default, not whichever happens to be best
    words = headline(rows, methods)
    assert "over 3 specimens" in words
    assert "mepdiff has 2.00 times the SSIM of the best baseline, adam-best: +100.0 % (+50.0 to +220.0 %)" in words


def test_doses_and_thicknesses_are_told_apart() -> None:
    rows = []
    for thickness, dose, ssim in ((12.8, 1e6, 0.9), (12.8, 1e4, 0.3), (6.4, None, 0.5)):
        for method, more in (("adam", 0.0), ("dps", 0.1)):
            rows.append(row("a", method, ssim + more) | {"thickness_A": thickness, "dose_e_per_A2": dose})
    assert conditions(rows) == [(6.4, None), (12.8, 1e4), (12.8, 1e6)]
    means = [s for s in summarize(rows, ["adam", "dps"]) if s["over"] == "mean of 1"]
    assert [s["specimens"] for s in means[::2]] == ["6.4 Å, no noise", "12.8 Å, 1e+04 e/Å²", "12.8 Å, 1e+06 e/Å²"]
    assert [s["ssim_2d"] for s in means] == pytest.approx([0.5, 0.6, 0.3, 0.4, 0.9, 1.0])
    lines = headline(rows, ["adam", "dps"]).splitlines()
    assert len(lines) == 3
    assert lines[1].startswith("12.8 Å, 1e+04 e/Å²: SSIM of slices of 1 specimen")
    assert [c["specimens"] for c in classes(rows, ["adam"])] == [s["specimens"] for s in means[::2]]
    assert sweep(rows, ["dps"])["dps"] == [
        (6.4, None, 0.6, 0.6, 0.6),
        (12.8, 1e4, 0.4, 0.4, 0.4),
        (12.8, 1e6, 1.0, 1.0, 1.0),
    ]


def test_classes_are_counted() -> None:
    rows = [
        row("a", "adam", 0.2, failure_class="blurred in depth"),
        row("b", "adam", 0.4, failure_class="blurred in depth"),
        row("c", "adam", 0.95, failure_class="near perfect"),
    ]
    (counted,) = classes(rows, ["adam"])
    assert counted == {
        "method": "adam",
        "near perfect": "1",
        "slices misordered": "0",
        "blurred in depth": "2",
        "wrong structure": "0",
    }


def test_of_one_specimen_there_is_no_interval() -> None:
    rows = [row("a", "adam-best", 0.5), row("a", "crystal", 1.0)]
    assert headline(rows, ["adam-best", "crystal"]) == (
        "SSIM of slices of 1 specimen: adam-best 0.500, crystal 1.000. crystal has 2.00 times the SSIM of the best baseline,"
        " adam-best: +100.0 %; the difference is +0.500."
    )


def test_answers_that_are_alike_are_preferred_alike() -> None:
    def judged(**deviances: float) -> str:
        return preferred([{"method": method.replace("_", "-"), "deviance_heldout": d} for method, d in deviances.items()])

    both = "The patterns held out prefer mepdiff and crystal: deviance 0.4332 a pixel against 0.4644 of adam-best."
    assert judged(adam_best=0.4644, mepdiff=0.43321, crystal=0.43322) == both
    assert judged(mepdiff=0.4332, crystal=0.4332) == (
        "The patterns held out like mepdiff and crystal equally: deviance 0.4332 a pixel."
    )
    assert judged(mepdiff=0.4, crystal=0.5).endswith("do not believe its atoms.")
    assert judged(mepdiff=0.4) == ""
