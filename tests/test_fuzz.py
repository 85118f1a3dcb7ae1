"""Damaged files, a few of each kind: read or refused in one line. ``benchmarks/fuzz_readers.py`` does thousands."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import numpy as np
from fuzz_readers import damage, fuzz, kinds, table

FILES = 66


@pytest.mark.parametrize("name", list(kinds()))
def test_what_is_damaged_was_good_before(name: str, tmp_path: Path) -> None:
    kind = kinds()[name]
    kind.write(tmp_path / name)
    kind.read(tmp_path / name)


def test_every_damaged_file_is_read_or_refused_in_one_line() -> None:
    outcomes = fuzz(FILES, seed=1, show=False)
    assert len(outcomes) == FILES
    failed = [o for o in outcomes if o.result not in ("read", "refused")]
    assert not failed, table(failed) + "".join(f"\n{o.kind} {o.number} {o.change}: {o.result} {o.detail}" for o in failed)
    assert sum(o.result == "refused" for o in outcomes) > FILES / 4


def test_damage_is_damage_and_the_same_again() -> None:
    content = bytes(range(256)) * 8
    changes = [damage(content, np.random.default_rng(seed)) for seed in range(40)]
    assert len({change for _, change in changes}) == 7
    assert sum(data != content for data, _ in changes) > 35
    assert changes == [damage(content, np.random.default_rng(seed)) for seed in range(40)]
