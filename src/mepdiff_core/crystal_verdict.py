"""How far to trust a solved crystal, in words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mepdiff_core.atom_waves import Imaging
from mepdiff_core.defects import Defect

EXPLAINED_NATS, WRONG_NATS, CELL_NATS = 10.0, 60.0, 180.0
"""Nats a pattern above counting statistics below which patterns are explained, above which the structure is wrong, and
above which, where cells differ besides, not even the cell is to be believed. Along titanate's axes atoms at 140 nats
are nearer to the truth than matter without a cell (SSIM 0.63 to 0.43), at 225 and 278, where cells differ, farther from
it (0.41 and 0.31 to 0.44 and 0.40). A beam that is not what was assumed costs hundreds of nats, and right atoms with
them."""
SURPRISING, SURPRISING_NATS = 4.0, 1.0
"""Gain by free matter, in standard deviations and in nats a pattern of the paper's brightness, above both of which an answer
is doubted. The model's own error grows with the electrons: 0.1 to 0.7 nats there where all is right, 3.5 for tungsten."""
UNSEEN = 0.1
"""Part of what depth explains that may be wrong unseen, above which it is said."""
SHIFTING = 0.08
"""Change of the columns from cell to cell above which cells are taken to differ, in turns or by a shift: it is 2 to 4 % in
crystals whose cells are all alike and 10 to 26 % where they shift."""

WITHOUT_CELL = "the solver's volume shows what the patterns say of matter at each depth, without a cell"


@dataclass(frozen=True)
class Fit:
    """How well an answer explains patterns.

    Attributes:
        nats, error: of misfit above counting statistics, a pattern, and the mean's standard error.
        surplus, deviations: nats a pattern that free matter would gain beyond chance, and its size in standard deviations.
        heldout: whether these patterns were held out.
        brightness: electrons a pattern, of the paper's.
        depth: nats a pattern that the atoms gain over columns that are even along the beam.
    """

    nats: float
    error: float
    surplus: float
    deviations: float
    heldout: bool
    brightness: float = 1.0
    depth: float = np.inf

    @property
    def doubtful(self) -> bool:
        """Whether free matter would gain more than chance and the model's own error explain."""
        return doubtful(self.surplus, self.deviations, self.brightness)

    @property
    def unseen(self) -> float:
        """The part of what depth explains that could be wrong without being noticed; 1 where depth explains nothing."""
        smallest = SURPRISING * self.surplus / self.deviations if self.deviations else 0.0
        return min(1.0, smallest / self.depth) if self.depth > 0 else 1.0


@dataclass(frozen=True)
class Evidence:
    """What speaks for and against an answer.

    Attributes:
        fit: how well it explains the patterns.
        periodic: whether it repeats along the beam; periods_A: the range of periods that the patterns can't tell apart.
        change: of the columns from cell to cell, relative.
        imaging: beyond the scan's; overfocus_spread_A: its standard deviation.
        thickness_A: as given; preferred_thickness_A: by the patterns.
        defects: sites that differ from the cell.
        alternative: formula of a second structure that is as likely.
    """

    fit: Fit
    periodic: bool
    periods_A: tuple[float, float] | None
    change: float
    imaging: Imaging
    overfocus_spread_A: float
    thickness_A: float
    preferred_thickness_A: float
    defects: tuple[Defect, ...]
    alternative: str | None


def doubtful(surplus: float, deviations: float, brightness: float) -> bool:
    """Whether free matter would gain more than chance and the model's own error explain: nats a pattern, deviations."""
    return deviations > SURPRISING and surplus > SURPRISING_NATS * brightness


def explained(fit: Fit) -> bool:
    """Whether an answer leaves nothing that the patterns would want otherwise."""
    return fit.nats < EXPLAINED_NATS and not fit.doubtful


def cell_fails(fit: Fit, change: float) -> bool:
    """Whether not even the cell is to be believed; ``change``: of the columns from cell to cell."""
    return fit.nats >= CELL_NATS and change > SHIFTING


def limits(evidence: Evidence) -> list[str]:
    """The limits of an answer, a phrase each; the first says whether it explains the patterns."""
    fit = evidence.fit
    kind = "held-out patterns" if fit.heldout else "patterns"
    nats = f"{fit.nats:.0f} ± {fit.error:.0f} nats a pattern above counting statistics"
    if fit.nats < EXPLAINED_NATS:
        words = [f"{kind} are explained: {nats}"]
    elif fit.nats < WRONG_NATS:
        words = [f"{kind} are nearly explained: {nats}, some atoms are wrong"]
    else:
        words = [f"{kind} are not explained: {nats}; the structure is wrong"]
    if fit.doubtful and fit.nats < WRONG_NATS:
        words.append(
            f"yet free matter would gain {fit.surplus:.2g} nats a pattern more than by chance"
            f" ({fit.deviations:.0f} standard deviations), so some atoms or elements are not right"
        )
    if fit.unseen > UNSEEN and fit.nats < WRONG_NATS:
        part = f"up to {100 * fit.unseen:.0f} % of what depth explains may be wrong unseen"
        words.append(f"{part}, for the patterns have few electrons")
    if not evidence.periodic:
        words.append("no period along the beam was found within the thickness")
    elif evidence.periods_A is not None:
        low, high = evidence.periods_A
        words.append(f"periods along the beam from {low:.2f} to {high:.2f} Å put the atoms into the same slices")
    if evidence.change > SHIFTING and fit.nats >= EXPLAINED_NATS:
        change = f"columns differ by {100 * evidence.change:.0f} % from cell to cell"
        words.append(f"{change}, which this structure does not explain")
    if cell_fails(fit, evidence.change):
        words.append(WITHOUT_CELL)
    imaging = evidence.imaging
    if imaging.overfocus_A:
        change = f"{imaging.overfocus_A:+.1f} ± {max(evidence.overfocus_spread_A, 0.1):.1f} Å"
        words.append(f"the patterns prefer an overfocus that differs from the scan's by {change}")
    if imaging.thermal_A:
        words.append(f"atoms are blurred by {imaging.thermal_A:.3f} Å, as by thermal motion")
    if evidence.preferred_thickness_A != evidence.thickness_A:
        given, preferred = evidence.thickness_A, evidence.preferred_thickness_A
        words.append(f"the patterns prefer a thickness of {preferred:.1f} Å to the {given:.1f} Å given")
    if evidence.defects:
        count = f"{len(evidence.defects)} sites differ" if len(evidence.defects) > 1 else "one site differs"
        words.append(f"{count} from the repeated cell: {', '.join(map(str, evidence.defects))}")
    if evidence.alternative is not None:
        words.append(f"a second structure, {evidence.alternative}, is equally likely")
    return words
