"""Atoms -> phase volumes, rendered by abTEM (this is the only file that imports it)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from mepdiff_core.crystals import Atoms
from mepdiff_core.optics import interaction_constant

SEAM_MARGIN_A = 4.0
"""A rendered box is periodic, a cut crystal is not: 0.53 rad of error at its seam are 2e-4 rad this far inside."""


def render_phase(
    atoms: Atoms, energy_eV: float, pixels: tuple[int, int], slice_thickness_A: float
) -> npt.NDArray[np.float64]:
    """Phase shift of each slice, sigma_e times the projected potential of neutral atoms (Lobato's parametrization).

    Args:
        atoms: a box of atoms; it is taken as periodic in the plane.
        energy_eV: beam energy, eV.
        pixels: (y, x) pixels over the box.
        slice_thickness_A: thickness of a slice, Å; the box's depth is a whole number of them.

    Returns:
        (z, y, x) float64, rad; sample [z, y, x] lies at (y, x) times the pixel size. An atom belongs whole to the slice
        its centre is in. Source: Lobato & Van Dyck, Acta Cryst. A70 (2014) 636; MEP-Diffusion, appendix A.
    """
    import abtem
    from ase import Atoms as AseAtoms

    depth, height, width = atoms.size_A
    slices = round(depth / slice_thickness_A)
    cell = AseAtoms(atoms.numbers, atoms.positions_A[:, ::-1], cell=(width, height, depth), pbc=True)
    # numpy's FFT gives the same bits in every process; FFTW's planner does not
    settings = {"fft": "numpy", "dask.lazy": False, "diagnostics.progress_bar": False, "precision": "float64"}
    with abtem.config.set(settings):
        potential = abtem.Potential(
            cell,
            gpts=(pixels[1], pixels[0]),
            slice_thickness=(slice_thickness_A,) * slices,
            parametrization="lobato",
            projection="infinite",
        ).build(lazy=False)
    array = np.asarray(potential.array)  # (z, x, y) in V Å
    return np.ascontiguousarray(array.transpose(0, 2, 1)) * interaction_constant(energy_eV)
