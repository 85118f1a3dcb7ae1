"""A table that is filled row by row: what is there already is not measured again."""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

Measure = Callable[[], Mapping[str, Any]]


def fill(out: Path, columns: Sequence[str], jobs: Mapping[tuple[str, str], Measure]) -> None:
    """Append the rows that a CSV file lacks, each as it comes; the first two columns tell rows apart."""
    new = not out.exists()
    rows = [] if new else list(csv.DictReader(out.open(encoding="utf-8")))
    done = {(row[columns[0]], row[columns[1]]) for row in rows}
    with out.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        if new:
            writer.writeheader()
        for key, measure in jobs.items():
            if key not in done:
                writer.writerow({columns[0]: key[0], columns[1]: key[1], **measure()})
                file.flush()
