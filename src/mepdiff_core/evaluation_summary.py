"""What an evaluation's rows say: means, intervals, gains and outcomes, in tables and in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

import numpy as np
import numpy.typing as npt

from mepdiff_core.metrics import FailureClass
from mepdiff_core.reconstruction import DEFAULT_METHOD

METRICS = (
    *("ssim_2d", "ssim_3d", "ssim_atoms", "psnr_dB", "nrmse", "nrmse_atoms", "depth_correlation"),
    *("r_factor", "r_heldout", "deviance", "deviance_heldout", "deviance_own_heldout"),
)
BASELINES = ("adam", "lbfgs", "adam-best")
EQUAL = 5e-5
"""Deviances a pixel that differ by less are written alike: of the same answer by two methods, for instance."""

Row = Mapping[str, Any]
Condition = tuple[float | None, float | None]
"""Thickness, Å, and dose, electrons per Å²; None: no noise."""


def condition_of(row: Row) -> Condition:
    """Under which a row's scan was made."""
    return row.get("thickness_A"), row.get("dose_e_per_A2")


def conditions(rows: Sequence[Row]) -> list[Condition]:
    """All of them, thinner ones and fewer electrons first."""
    return sorted({condition_of(row) for row in rows}, key=lambda c: tuple(np.inf if v is None else v for v in c))


def in_words(condition: Condition) -> str:
    """A condition as tables call it."""
    thickness, dose = condition
    return f"{thickness:g} Å, " + ("no noise" if dose is None else f"{dose:.3g} e/Å²") if thickness is not None else ""


def in_common(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, list[Row]]:
    """By method, its rows of the specimens that all methods finished, in the same order."""
    finished = {
        m: {(r["crystal"], r["axis"], *condition_of(r)): r for r in rows if r["method"] == m and not r["error"]}
        for m in methods
    }
    common = sorted(set.intersection(*map(set, finished.values())), key=str) if finished else []
    return {method: [found[key] for key in common] for method, found in finished.items()}


def by_condition(rows: Sequence[Row], methods: Sequence[str]) -> Iterator[tuple[str, str, list[Row]]]:
    """Each condition in words, "" where there is one only, each method, and its rows that are ``in_common``."""
    found = conditions(rows)
    for condition in found:
        here = [row for row in rows if condition_of(row) == condition]
        for method, mine in in_common(here, methods).items():
            yield in_words(condition) if len(found) > 1 else "", method, mine


def summarize(rows: Sequence[Row], methods: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and median of every metric, by condition and method, over the specimens that all methods finished."""
    summary = []
    for specimens, method, mine in by_condition(rows, methods):
        values = {c: [float(r[c]) for r in mine if r.get(c) not in (None, "")] for c in (*METRICS, "seconds")}
        for label, function in (("mean", np.mean), ("median", np.median)):
            about = {"specimens": specimens, "method": method, "over": f"{label} of {len(mine)}"}
            summary.append(about | {c: float(function(v)) for c, v in values.items() if v})
    return summary


def _resampled(values: npt.ArrayLike, draws: int = 2000) -> npt.NDArray[np.float64]:
    """(draws, ...) means of bootstrap samples of (n, ...) values, always the same ones.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    array = np.asarray(values, float)
    means: npt.NDArray[np.float64] = array[np.random.default_rng(0).integers(len(array), size=(draws, len(array)))].mean(1)
    return means


def interval(values: Sequence[float]) -> tuple[float, float]:
    """2.5 and 97.5 % of the means of bootstrap samples."""
    low, high = np.quantile(_resampled(values), [0.025, 0.975])
    return float(low), float(high)


def relative_gain(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float, float]:
    """Mean of ours over mean of theirs, less 1, and 2.5 and 97.5 % of it, specimens drawn in pairs."""
    means = _resampled(np.stack([ours, theirs], 1))
    low, high = np.quantile(means[:, 0] / means[:, 1] - 1, [0.025, 0.975])
    return float(np.mean(ours) / np.mean(theirs) - 1), float(low), float(high)


def best_of(rows: Sequence[Row], methods: Sequence[str]) -> tuple[str | None, str | None]:
    """The baseline of the highest mean SSIM, and what it is compared with: the default method, or the best of the others."""
    means = {method: float(np.mean(values)) for method, values in _scores(rows, methods).items()}
    baselines = [m for m in means if m in BASELINES]
    others = [m for m in means if m not in BASELINES]
    base = max(baselines, key=means.__getitem__) if baselines else None
    if DEFAULT_METHOD in others:
        return base, DEFAULT_METHOD
    return base, max(others, key=means.__getitem__) if others else None


def _scores(rows: Sequence[Row], methods: Sequence[str]) -> dict[str, list[float]]:
    """SSIM of slices by method, over the specimens that all finished."""
    return {
        method: [float(r["ssim_2d"]) for r in mine]
        for method, mine in in_common(rows, methods).items()
        if mine and all(r.get("ssim_2d") not in (None, "") for r in mine)
    }


def headline(rows: Sequence[Row], methods: Sequence[str]) -> str:
    """In words, each method's mean SSIM, and what the default one (or the best) gains over the best baseline.

    One condition is one sentence or two; "" without any SSIM.
    """
    found = conditions(rows)
    if len(found) > 1:
        each = [(c, headline([row for row in rows if condition_of(row) == c], methods)) for c in found]
        return "\n".join(f"{in_words(c)}: {text}" for c, text in each if text)
    scores = _scores(rows, methods)
    if not scores:
        return ""
    count, asked = len(next(iter(scores.values()))), len({(r["crystal"], r["axis"]) for r in rows})
    words = []
    for method, values in scores.items():
        low, high = interval(values)
        words.append(f"{method} {np.mean(values):.3f}" + (f" ({low:.3f} to {high:.3f})" if count > 1 else ""))
    over = "1 specimen" if count == 1 else f"{count} specimens"
    if count < asked:
        over = f"the {count} of {asked} specimens that all methods finished"
    text = f"Mean SSIM of slices over {over}, with bootstrap intervals of 95 %: {', '.join(words)}."
    if count == 1:
        text = f"SSIM of slices of {over}: {', '.join(words)}."
    base, best = best_of(rows, methods)
    if base is not None and best is not None:
        gain, low, high = relative_gain(scores[best], scores[base])
        differences = np.array(scores[best]) - np.array(scores[base])
        least, most = interval(differences.tolist())
        of_gain = f" ({100 * low:+.1f} to {100 * high:+.1f} %)" if count > 1 else ""
        of_difference = f" ({least:+.3f} to {most:+.3f})" if count > 1 else ""
        text += (
            f" {best} has {1 + gain:.2f} times the SSIM of the best baseline, {base}: {100 * gain:+.1f} %{of_gain};"
            f" the difference is {differences.mean():+.3f}{of_difference}."
        )
    return text


def classes(rows: Sequence[Row], methods: Sequence[str]) -> list[dict[str, Any]]:
    """By condition and method, how many of the specimens that all methods finished are in which of the paper's classes."""
    table = []
    for specimens, method, mine in by_condition(rows, methods):
        counts = Counter(str(r.get("failure_class") or "") for r in mine)
        numbers = {name: str(counts[name]) for name in get_args(FailureClass)}
        table.append({**({"specimens": specimens} if specimens else {}), "method": method, **numbers})
    return table


def preferred(rows: Sequence[Row]) -> str:
    """In words, which of several answers for one scan the patterns held out prefer; "" where they can't say.

    Each answer is judged by the better of two models: the common one of volumes, and the one that made it.
    """
    deviances = {
        r["method"]: min(float(r[name]) for name in ("deviance_heldout", "deviance_own_heldout") if r.get(name) is not None)
        for r in rows
        if r.get("deviance_heldout") is not None
    }
    if len(deviances) < 2:
        return ""
    ranking = sorted(deviances.items(), key=lambda item: item[1])
    least = ranking[0][1]
    best = [method for method, value in ranking if value - least < EQUAL]
    names = " and ".join(best)
    if len(best) == len(ranking):
        return f"The patterns held out like {names} equally: deviance {least:.4f} a pixel."
    second, next_ = ranking[len(best)]
    words = f"The patterns held out prefer {names}: deviance {least:.4f} a pixel against {next_:.4f} of {second}."
    if "crystal" not in best and "crystal" in deviances:
        words += f" The crystal solver's, {deviances['crystal']:.4f}, is above a baseline's: do not believe its atoms."
    return words
