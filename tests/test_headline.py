"""What an evaluation says of its rows, in words and intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from mepdiff_core.evaluation import classes, headline, interval


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
    assert "over 2 specimens" in words
    assert "adam 0.300 (0.200 to 0.400)" in words
    assert "crystal has 1.90 times the SSIM of the best baseline, adam-best (+90.0 %)" in words
    assert "the difference is +0.450 (+0.400 to +0.500)" in words
    assert "times" not in headline(rows, ["adam", "adam-best"])
    assert headline([row("a", "adam", None)], ["adam"]) == ""
    assert headline([], ["adam"]) == ""


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
