"""The atoms of a specimen as one repeated cell in the frame of its scan, and how two such answers agree."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check
from mepdiff_core.crystals import FACE_A, Atoms, Axis, Crystal, fill_box, turned_cell

FloatArray = npt.NDArray[np.float64]
Triple = tuple[float, float, float]


@dataclass(frozen=True)
class UnitCell:
    """Atoms in a cell that repeats in the plane and, mostly, along the beam.

    Attributes:
        lattice_A: (3, 3) float64, rows t1, t2, t3 as (z, y, x) in Å. t3 = (c, 0, 0) lies along the beam; a z component of
            t1 or t2 is a stacking that shifts from cell to cell.
        periodic_along_beam: False: t3 is as long as the specimen is thick, and there is one period of it.
        thickness_A: of the specimen, Å.
        positions_A: (n, 3) float64 as (z, y, x) in Å, in the frame of the scan's positions, z from the entrance face.
        numbers: (n,) int64, the species: what the full model of the patterns prefers.
        spread_A: (n, 3) standard deviation of each position as (z, y, x) in Å; NaN where unknown.
        candidates: of each atom, (atomic number, probability), most probable first, by the search's quadratic model with all
            other atoms as they are; it may favour another species than ``numbers``.

    Raises:
        InputError: t3 is not along the beam, or a cell that does not repeat along it has another thickness or a shift.
    """

    lattice_A: FloatArray
    periodic_along_beam: bool
    thickness_A: float
    positions_A: FloatArray
    numbers: npt.NDArray[np.int64]
    spread_A: FloatArray
    candidates: tuple[tuple[tuple[int, float], ...], ...]

    def __post_init__(self) -> None:
        n = len(self.numbers)
        check(self.lattice_A.shape == (3, 3), f"lattice_A has shape {self.lattice_A.shape}; expected (3, 3)")
        for name, array in (("positions_A", self.positions_A), ("spread_A", self.spread_A)):
            check(array.shape == (n, 3), f"{name} has shape {array.shape}; expected ({n}, 3)")
        check(len(self.candidates) == n, f"candidates are given for {len(self.candidates)} of {n} atoms")
        c, *beside = self.lattice_A[2]
        check(c > 0 and not any(beside), f"t3 is {self.lattice_A[2].tolist()}; expected (c, 0, 0) with c > 0")
        check(abs(np.linalg.det(self.lattice_A)) > 0, "t1 and t2 are parallel in the plane; they span no cell")
        if not self.periodic_along_beam:
            check(
                abs(c - self.thickness_A) < FACE_A,
                f"a cell that does not repeat along the beam is {c:g} Å long; expected the thickness {self.thickness_A:g} Å",
            )
            check(
                not self.lattice_A[:2, 0].any(), "t1 and t2 have a z component, but the cell does not repeat along the beam"
            )

    @property
    def formula(self) -> str:
        """Composition of the cell in Hill's order, like "O3SrTi"."""
        return self.to_crystal("").formula

    @property
    def right_handed(self) -> UnitCell:
        """The same, t1 and t2 swapped where (t1, t2, t3) are left-handed."""
        if np.linalg.det(self.lattice_A[:, ::-1]) > 0:
            return self
        return replace(self, lattice_A=self.lattice_A[[1, 0, 2]])

    @property
    def fractional(self) -> FloatArray:
        """(n, 3) parts of t1, t2, t3, in [0, 1)."""
        return _wrapped(self.positions_A @ np.linalg.inv(self.lattice_A))

    @property
    def fractional_spread(self) -> FloatArray:
        """(n, 3) standard deviation of ``fractional``, those along z, y and x taken as independent; NaN where unknown."""
        share = np.linalg.inv(self.lattice_A) ** 2
        known = np.where(share > 0, self.spread_A[:, :, None] ** 2 * share, 0.0)  # a NaN along z leaves x and y alone
        spread: FloatArray = np.sqrt(known.sum(1))
        return spread

    def to_crystal(self, name: str) -> Crystal:
        """As a crystal in the standard setting: a along x, b in the x-y plane, right-handed.

        c lies along the beam; a and b are t1 and t2, swapped where (t1, t2, t3) are left-handed. The origin is that of the
        scan on the entrance face. The atoms keep their order.
        """
        cell = self.right_handed
        # cell_A @ cell_A.T = lattice @ lattice.T, and the lower triangle puts a along x and b into the x-y plane
        vectors = np.linalg.cholesky(cell.lattice_A @ cell.lattice_A.T).astype(np.float64)
        return Crystal(name, vectors, cell.numbers, cell.fractional)

    def atoms_in(self, size_A: Triple, origin_A: Triple = (0.0, 0.0, 0.0)) -> Atoms:
        """Fill a box with the specimen, as ``cut_box`` does with a crystal.

        Args:
            size_A: (z, y, x) extent of the box, Å.
            origin_A: (z, y, x): its corner in the frame of the scan's positions.

        Returns:
            All atoms of the specimen (0 <= z < thickness) in the box, positions from its corner.
        """
        top, bottom = max(origin_A[0], 0.0), min(origin_A[0] + size_A[0], self.thickness_A)
        there = np.ones(len(self.numbers), bool)
        if not self.periodic_along_beam:
            z = self.positions_A[:, 0]
            there = (z >= -FACE_A) & (z < self.thickness_A - FACE_A)
        depth = max(bottom - top, 0.0)
        box = fill_box(
            self.lattice_A,
            self.fractional[there],
            self.numbers[there],
            (depth, *size_A[1:]),
            (top, *origin_A[1:]),
        )
        below = np.array([top - origin_A[0] if depth else 0.0, 0.0, 0.0])
        return Atoms(box.positions_A + below, box.numbers, (float(size_A[0]), float(size_A[1]), float(size_A[2])))


def from_crystal(crystal: Crystal, axis: Axis, origin_A: Triple, thickness_A: float) -> UnitCell:
    """The cell of the specimen that ``simulate_scan`` makes of a crystal, in the frame of its scan.

    Args:
        crystal: the crystal; axis: the lattice vector along the beam, which becomes t3; the next ones are t1 and t2.
        origin_A: (z, y, x) of the turned crystal (see ``cut_box``) that lies at (0, 0, 0) of the scan.
        thickness_A: of the specimen.
    """
    first = "abc".index(axis)
    lattice = turned_cell(crystal, axis)[[(first + 1) % 3, (first + 2) % 3, first]]
    lattice[2, 1:] = 0.0  # rounding
    fractional = crystal.fractional[:, [(first + 1) % 3, (first + 2) % 3, first]]
    positions = _wrapped(fractional - np.asarray(origin_A) @ np.linalg.inv(lattice)) @ lattice
    positions[:, 0] = (positions[:, 0] + FACE_A) % lattice[2, 0] - FACE_A  # the first one behind the entrance face
    numbers = crystal.numbers.astype(np.int64)
    certain = tuple(((int(number), 1.0),) for number in numbers)
    return UnitCell(lattice, True, thickness_A, positions, numbers, np.full(positions.shape, np.nan), certain)


# comparing


@dataclass(frozen=True)
class AtomMatch:
    """How the atoms that were found in a box agree with the true ones.

    Attributes:
        n_true, n_found: atoms in the box.
        matched: fraction of the true atoms that have a partner among the found ones; NaN without true atoms.
        missing: the rest, 1 - matched.
        extra: fraction of the found atoms that have no partner; NaN without found atoms.
        right_species: fraction of the matched true atoms whose partner is of their element; NaN without any.
        rms_in_plane_A, rms_depth_A: distance of partners in the plane and along the beam, Å; NaN without any.
    """

    n_true: int
    n_found: int
    matched: float
    missing: float
    extra: float
    right_species: float
    rms_in_plane_A: float
    rms_depth_A: float


def match(
    found: UnitCell,
    true: UnitCell,
    size_A: Triple,
    origin_A: Triple = (0.0, 0.0, 0.0),
    in_plane_cutoff_A: float = 0.5,
    depth_cutoff_A: float = 1.0,
) -> AtomMatch:
    """Compare two answers atom by atom in a box of the specimen.

    Partners are one to one, no farther apart than the cutoffs, as many as can be, and among those the nearest by the sum of
    squared distances in units of the cutoffs; the elements have no say. Atoms of the box may have partners beyond its faces,
    but not beyond those of the specimen.

    Args:
        found, true: the answers.
        size_A: (z, y, x) extent of the box; origin_A: its corner in the frame of the scan's positions.
        in_plane_cutoff_A, depth_cutoff_A: farthest partner in the plane and along the beam, Å.
    """
    reach = np.array([depth_cutoff_A, in_plane_cutoff_A, in_plane_cutoff_A])
    corner, size = np.asarray(origin_A, float), np.asarray(size_A, float)
    margin = 2 * reach  # partners of an atom in the box, and their other choices
    start, wide = corner - margin, size + 2 * margin
    boxes = [cell.atoms_in((wide[0], wide[1], wide[2]), (start[0], start[1], start[2])) for cell in (true, found)]
    places = [box.positions_A + start - corner for box in boxes]
    inside = [np.all((p >= -FACE_A) & (p < size - FACE_A), axis=1) for p in places]
    first, second = _partners(places[0] / reach, places[1] / reach)
    taken = np.zeros(len(places[1]), bool)
    taken[second] = True
    counted = inside[0][first]
    first, second = first[counted], second[counted]
    away = places[1][second] - places[0][first]
    n_true, n_found = int(inside[0].sum()), int(inside[1].sum())
    matched = len(first) / n_true if n_true else np.nan
    same = boxes[0].numbers[first] == boxes[1].numbers[second]
    return AtomMatch(
        n_true,
        n_found,
        matched,
        1 - matched,
        float((inside[1] & ~taken).sum() / n_found) if n_found else np.nan,
        float(same.mean()) if len(first) else np.nan,
        float(np.sqrt((away[:, 1:] ** 2).sum(1).mean())) if len(first) else np.nan,
        float(np.sqrt((away[:, 0] ** 2).mean())) if len(first) else np.nan,
    )


def _partners(a: FloatArray, b: FloatArray) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Pairs (index in a, index in b) within 1 along z and 1 in the plane. (n, 3) each, in units of the cutoffs."""
    import scipy.sparse
    from scipy.optimize import linear_sum_assignment
    from scipy.sparse.csgraph import connected_components
    from scipy.spatial import cKDTree

    if not len(a) or not len(b):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    near = cKDTree(a).sparse_distance_matrix(cKDTree(b), 1.5, output_type="coo_matrix")  # a cylinder reaches √2
    away = b[near.col] - a[near.row]
    kept = (np.abs(away[:, 0]) <= 1) & (np.hypot(away[:, 1], away[:, 2]) <= 1)
    rows, columns, cost = near.row[kept], near.col[kept], near.data[kept] ** 2
    n = len(a) + len(b)
    graph = scipy.sparse.coo_array((np.ones(len(rows)), (rows, columns + len(a))), shape=(n, n))
    group = connected_components(graph, directed=False)[1][rows]
    first: list[int] = []
    second: list[int] = []
    order = np.argsort(group, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group[order])) + 1) if len(order) else []:
        left, i = np.unique(rows[members], return_inverse=True)
        right, j = np.unique(columns[members], return_inverse=True)
        never = 3.0 * (min(len(left), len(right)) + 1)  # dearer than all pairs together, each at most 2
        table = np.full((len(left), len(right)), never)
        table[i, j] = cost[members]
        for k, m in zip(*linear_sum_assignment(table), strict=True):
            if table[k, m] < never:
                first.append(int(left[k]))
                second.append(int(right[m]))
    return np.array(first, np.int64), np.array(second, np.int64)


def lattice_error(found: UnitCell, true: UnitCell, tolerance_A: float = 0.3) -> float:
    """Relative error of the in-plane lattice, whichever cells describe the two.

    The two shortest vectors of each lattice are compared after choosing the equivalent ones that agree best: the root mean
    square of their differences over that of the true vectors. If one of the two does not repeat along the beam, both
    lattices are those without steps along the beam.
    """
    level = not (found.periodic_along_beam and true.periodic_along_beam)
    mine, theirs = (in_plane_lattice(cell, tolerance_A, level) for cell in (found, true))
    choices = (np.reshape(m, (2, 2)) for m in itertools.product((-1, 0, 1), repeat=4))
    distances = (np.linalg.norm(m @ mine - theirs) for m in choices if abs(m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]) == 1)
    return float(min(distances) / np.linalg.norm(theirs))


def in_plane_lattice(cell: UnitCell, tolerance_A: float = 0.3, level: bool = False) -> FloatArray:
    """The Lagrange-Gauss reduced lattice of the specimen seen along the beam: (2, 2), rows as (y, x) in Å, shortest first.

    A centred or a multiple cell gives the lattice of its primitive one: translations that bring all atoms onto atoms of
    their element within ``tolerance_A`` are lattice vectors.

    Args:
        level: leave out lattice vectors with a step along the beam, as a specimen without a period there has them.
    """
    lattice = cell.lattice_A.copy()
    while True:  # Lagrange-Gauss on the in-plane part; the z components go along
        lattice[:2] = lattice[:2][np.argsort(np.hypot(lattice[:2, 1], lattice[:2, 2]), kind="stable")]
        steps = np.rint(lattice[1, 1:] @ lattice[0, 1:] / (lattice[0, 1:] @ lattice[0, 1:]) * (1 - 1e-9))
        if steps == 0:
            break
        lattice[1] -= steps * lattice[0]
    c = lattice[2, 0]
    steps_ij = np.array(list(itertools.product(range(-6, 7), repeat=2)))
    centring = _translations(cell, lattice, tolerance_A) @ lattice
    vectors = (steps_ij @ lattice[:2])[:, None] + centring
    vectors = vectors.reshape(-1, 3)
    if level:
        z = vectors[:, 0]
        vectors = vectors[np.abs(z - c * np.rint(z / c)) < 1e-6 * c]
    plane = vectors[:, 1:]
    lengths = np.linalg.norm(plane, axis=1)
    order = np.argsort(lengths.round(9), kind="stable")
    plane, lengths = plane[order], lengths[order]
    one = plane[np.flatnonzero(lengths > 1e-3)[0]]
    sine = np.abs(one[0] * plane[:, 1] - one[1] * plane[:, 0]) / np.maximum(lengths, 1e-3) / np.linalg.norm(one)
    return np.stack([one, plane[np.flatnonzero((lengths > 1e-3) & (sine > 0.5))[0]]])


def _translations(cell: UnitCell, lattice_A: FloatArray, tolerance_A: float) -> FloatArray:
    """(k, 3) fractional translations that bring the cell's contents onto themselves, none included."""
    if not len(cell.numbers):
        return np.zeros((1, 3))
    fractional = cell.positions_A @ np.linalg.inv(lattice_A)
    wraps = np.array([1.0, 1.0, float(cell.periodic_along_beam)])
    elements, counts = np.unique(cell.numbers, return_counts=True)
    rarest = fractional[cell.numbers == elements[np.argmin(counts)]]
    found = []
    for step in rarest - rarest[0]:
        residuals = []
        for element in elements:
            places = fractional[cell.numbers == element]
            away = places[None] - places[:, None] - step
            away -= np.rint(away) * wraps
            distance = np.linalg.norm(away @ lattice_A, axis=-1)
            nearest = np.argmin(distance, axis=1)
            if (distance.min(axis=1) > tolerance_A).any() or len(set(nearest.tolist())) < len(places):
                break
            residuals.append(away[np.arange(len(places)), nearest])
        else:
            found.append(step + np.concatenate(residuals).mean(0))
    order = len(found)  # of the group: that often repeated, each translation is one of the lattice
    exact = np.rint(np.array(found) * order) / order
    kept = np.linalg.norm((exact - np.array(found)) @ lattice_A, axis=1) < tolerance_A
    translations: FloatArray = exact[kept]
    return translations


def _wrapped(fractional: FloatArray) -> FloatArray:
    """Into [0, 1), the same place of the next cell."""
    inside = fractional % 1.0
    inside[inside > 1 - 1e-12] = 0.0
    return inside
