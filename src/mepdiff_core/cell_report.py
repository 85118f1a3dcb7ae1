"""The section of a report that says what atoms were found, how surely, and what speaks against them."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mepdiff_core.cell_figure import cell_figure
from mepdiff_core.cif_cells import site_labels, with_uncertainty
from mepdiff_core.crystal_steps import CrystalSteps
from mepdiff_core.crystal_steps_figure import steps_figure
from mepdiff_core.defects import Defect
from mepdiff_core.errors import InputError
from mepdiff_core.page import figure_block, save_figure
from mepdiff_core.symmetry import find_symmetry
from mepdiff_core.unit_cell import UnitCell

SYMMETRY_TOLERANCE_A = 0.2
"""Depths that were measured are not as sharp as those of a file."""
STEPS_CAPTION = (
    "The projection with the lattice found in it; the averaged cell, its columns, and how much matter is in each, in oxygen"
    " atoms through the specimen; and how much worse than the best each period along the beam explains the patterns, before"
    " the best ones were improved: all by the search's quadratic model, or a few, where cells shift, by the model itself."
)
LEAST_PROBABILITY = 0.005
"""Of a species that the table of atoms still names."""


@dataclass(frozen=True)
class Answer:
    """What the crystal solver says of the atoms.

    Attributes:
        cell: the unit cell; None: none was found.
        alternative: a second one, as likely as the first; None for none.
        verdict: the limits of the answer in words, "" for none.
        defects: sites that differ from the repeated cell.
        steps: what was found before the atoms; None for an answer without them.
    """

    cell: UnitCell | None
    alternative: UnitCell | None = None
    verdict: str = ""
    defects: tuple[Defect, ...] = ()
    steps: CrystalSteps | None = None


def cell_section(folder: Path, answer: Answer, metrics: Mapping[str, Any]) -> str:
    """The section as HTML; ``steps.png``, ``cell.png`` and, for an alternative, ``cell-2.png`` go into the folder."""
    parts = [f"<p><strong>{html.escape(answer.verdict)}</strong></p>"] if answer.verdict else []
    loss, held = (metrics.get(name) for name in ("loss", "loss_heldout"))
    if loss is not None and math.isfinite(loss):
        fitted = f"The solver's own misfit, by its own model, was {loss:.5g} nats a pattern over those of its last step"
        parts.append(f"<p>{fitted}{'' if held is None else f' and {held:.5g} over those held out'}.</p>")
    if answer.cell is None:
        parts.append("<p>No unit cell was found, so there is no crystal.cif.</p>")
    else:
        parts.append(_describe(folder / "cell.png", answer.cell, "crystal.cif"))
    if answer.defects:
        parts.append(_defects_table(answer.defects))
    if answer.alternative is not None:
        parts.append("<h3>As likely</h3>" + _describe(folder / "cell-2.png", answer.alternative, "crystal-2.cif"))
    if answer.steps is not None:
        png = save_figure(steps_figure(answer.steps), folder / "steps.png")
        parts.append("<h3>How it was found</h3>" + figure_block(png, STEPS_CAPTION))
    return "".join(parts)


def symmetry_of(cell: UnitCell, tolerance_A: float = SYMMETRY_TOLERANCE_A) -> str:
    """The space group in words, "none found" where there is none but the lattice."""
    if not cell.periodic_along_beam:
        return "none sought: the specimen has no period along the beam"
    try:
        found = find_symmetry(cell.to_crystal("cell"), tolerance_A)
    except InputError:
        return "none found"
    return f"none found within {tolerance_A:g} Å" if found.number == 1 else f"{found} within {tolerance_A:g} Å"


def lattice_parameters(cell: UnitCell) -> tuple[list[float], list[float]]:
    """Lengths a, b, c in Å and angles alpha, beta, gamma in degrees, as in the CIF: c along the beam."""
    vectors = cell.right_handed.lattice_A
    lengths = np.linalg.norm(vectors, axis=1)
    cosines = [vectors[i] @ vectors[j] / lengths[i] / lengths[j] for i, j in ((1, 2), (0, 2), (0, 1))]
    return lengths.tolist(), np.degrees(np.arccos(np.clip(cosines, -1, 1))).tolist()


def _describe(picture: Path, cell: UnitCell, name: str) -> str:
    (a, b, c), (alpha, beta, gamma) = lattice_parameters(cell)
    along = "along the beam, its period" if cell.periodic_along_beam else "the thickness: no period along the beam"
    caption = (
        "The unit cell from three sides. Crosses are one standard deviation of a position, a question mark stands behind"
        " a species that is not sure."
    )
    facts = (
        f"{cell.formula}: a = {a:.3f} Å, b = {b:.3f} Å, c = {c:.3f} Å ({along}), α = {alpha:.2f}°, β = {beta:.2f}°,"
        f" γ = {gamma:.2f}°. Space group: {symmetry_of(cell)}. All of it is in {name}."
    )
    block = figure_block(save_figure(cell_figure(cell), picture), caption) if len(cell.numbers) else ""
    return f"<p>{html.escape(facts)}</p>{block}{_atoms_table(cell)}"


def _atoms_table(cell: UnitCell) -> str:
    """The atoms labelled as in the CIF, whose coordinates have more digits."""
    from ase.data import chemical_symbols

    cell = cell.right_handed
    symbols = [chemical_symbols[number] for number in cell.numbers]
    rows = []
    for i, (label, symbol) in enumerate(zip(site_labels(symbols), symbols, strict=True)):
        likely = [
            f"{chemical_symbols[number] if number else 'vacant'} {probability:.2f}"
            for number, probability in cell.candidates[i]
            if probability >= LEAST_PROBABILITY
        ]
        pairs = zip(cell.fractional[i], cell.fractional_spread[i], strict=True)
        places = [with_uncertainty(*pair) if pair[1] > 0 else f"{pair[0]:.5f}" for pair in pairs]
        spread = [f"{width:.2g}" if np.isfinite(width) else "–" for width in cell.spread_A[i, ::-1]]
        rows.append(([label, symbol, ", ".join(likely)], [*places, *spread]))
    texts = ("site", "element", "probabilities")
    numbers = ("x", "y", "z", "± x (Å)", "± y (Å)", "± depth (Å)")
    caption = (
        "Fractional coordinates along a, b and c, with the standard uncertainty of their last digits in brackets; ± along"
        " the scan's axes. Probabilities: of each species at its site by the search's quadratic model, all other atoms as"
        " they are; where they favour another than the one given, the full model of the patterns did not."
    )
    return _table(texts, numbers, rows, caption)


def _defects_table(defects: Sequence[Defect]) -> str:
    from ase.data import chemical_symbols

    rows = []
    for defect in defects:
        moved = [f"{step:.2f}" for step in defect.moved_A[::-1]] if defect.kind == "displaced" else ["", ""]
        numbers = [*(f"{value:.2f}" for value in defect.site_A[::-1]), *moved, f"{defect.gain_nats:.0f}"]
        rows.append(([defect.kind, chemical_symbols[defect.number]], numbers))
    names = ("x (Å)", "y (Å)", "depth (Å)", "moved in x (Å)", "moved in y (Å)", "nats")
    caption = (
        "Sites that differ from the repeated cell, in the scan's frame, and by how much each lessens the misfit of the"
        " patterns nearest to it. The volume shows them; the cell does not."
    )
    return _table(("what", "element"), names, rows, caption)


def _table(texts: Sequence[str], numbers: Sequence[str], rows: Sequence[tuple[list[str], list[str]]], caption: str) -> str:
    body = "".join(f"<tr>{_cells('td', first, True)}{_cells('td', rest, False)}</tr>" for first, rest in rows)
    head = f"<tr>{_cells('th', texts, True)}{_cells('th', numbers, False)}</tr>"
    table = f'<div class="wide"><table><thead>{head}</thead><tbody>{body}</tbody></table></div>'
    return f"<figure>{table}<figcaption>{caption}</figcaption></figure>"


def _cells(tag: str, values: Sequence[str], text: bool) -> str:
    kind = ' class="text"' if text else ""
    return "".join(f"<{tag}{kind}>{html.escape(value)}</{tag}>" for value in values)
