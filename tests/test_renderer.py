"""The batched renderer against abTEM, and its limits: one atom, periodic edges, seams."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mepdiff_core.crystals import Atoms, Crystal, cut_box
from mepdiff_core.errors import InputError
from mepdiff_core.optics import interaction_constant
from mepdiff_core.renderer import PROJECTED_V_A2, Renderer, scattering_factor, scattering_parameters
from mepdiff_core.volumes import render_phase

TRICLINIC = Crystal(
    "triclinic",
    np.array([[5.1, 0.0, 0.0], [1.2, 4.8, 0.0], [-0.9, 0.7, 6.3]]),
    np.array([82, 8, 8, 26, 3]),
    np.array([[0.02, 0.01, 0.0], [0.5, 0.5, 0.1], [0.2, 0.7, 0.5], [0.8, 0.3, 0.6], [0.4, 0.1, 0.9]]),
)


def test_the_table_is_abtems() -> None:
    from abtem.parametrizations import LobatoParametrization
    from ase.data import chemical_symbols

    theirs = LobatoParametrization().parameters
    table = scattering_parameters()
    assert table.shape == (104, 2, 5)
    for number in range(1, 104):
        np.testing.assert_array_equal(table[number], np.array(theirs[chemical_symbols[number]]))


def test_a_volt_is_abtems_volt() -> None:
    from abtem.core.constants import kappa

    assert pytest.approx(1 / kappa, rel=1e-6) == PROJECTED_V_A2


def test_an_exact_drawing_has_every_atom_where_it_is() -> None:
    """Against the sum of f(k) exp(-2 pi i k r) over the atoms, wave by wave; abTEM spreads them."""
    rng = np.random.default_rng(3)
    numbers, shape, pixel = np.array([8, 22, 57, 5]), (48, 60), 0.1
    positions = np.column_stack([np.full(4, 0.5), rng.uniform(0, 4.8, 4), rng.uniform(0, 6.0, 4)])
    ky, kx = np.fft.fftfreq(shape[0], pixel)[:, None], np.fft.rfftfreq(shape[1], pixel)[None]
    low = np.hypot(ky, kx) < 2 / 3 / (2 * pixel)
    waves = [
        scattering_factor(int(z), ky**2 + kx**2) * np.exp(-2j * np.pi * (ky * y + kx * x))
        for z, (_, y, x) in zip(numbers, positions, strict=True)
    ]
    truth = interaction_constant(300e3) * PROJECTED_V_A2 * np.sum(waves, axis=0) / pixel**2
    errors = []
    for exact in (False, True):
        renderer = Renderer(shape, pixel, 1, 1.0, exact=exact)
        drawn = np.fft.rfft2(renderer.render([Atoms(positions, numbers, (1.0, 4.8, 6.0))])[0, 0].numpy())
        errors.append(float((np.abs(drawn - truth) / np.abs(truth).max())[low].max()))
    assert errors[1] < 2e-5
    assert errors[0] > 10 * errors[1]


@pytest.mark.parametrize("axis", ["a", "b", "c"])
def test_it_renders_what_abtem_renders(axis: str) -> None:
    box = cut_box(TRICLINIC, axis, (12.8, 20.8, 16.8), (0.3, 1.7, 2.9))  # type: ignore[arg-type]
    reference = render_phase(box, 300e3, (104, 84), 1.6)
    made = Renderer((104, 84), 0.2, 8, 1.6).render([box])[0].numpy()
    assert reference.max() > 0.5
    np.testing.assert_allclose(made, reference, atol=1e-6)


def test_atoms_on_the_faces_of_slices_go_where_abtem_puts_them(perovskite: Crystal) -> None:
    cubic = Crystal("cubic", 3.2 * np.eye(3), perovskite.numbers, perovskite.fractional)  # slices of half a cell
    box = cut_box(cubic, "c", (12.8, 12.8, 12.8))
    reference = render_phase(box, 300e3, (64, 64), 1.6)
    np.testing.assert_allclose(Renderer((64, 64), 0.2, 8, 1.6).render([box])[0].numpy(), reference, atol=1e-6)


def test_a_batch_is_its_items(perovskite: Crystal) -> None:
    boxes = [cut_box(c, "c", (6.4, 12.8, 12.8), (0.1 * i, 0.2, 0.3)) for i, c in enumerate([perovskite, TRICLINIC] * 3)]
    empty = Atoms(np.zeros((0, 3)), np.zeros(0, np.int64), (6.4, 12.8, 12.8))
    boxes.insert(2, empty)
    renderer = Renderer((64, 64), 0.2, 4, 1.6)
    together = renderer.render(boxes)
    for box, volume in zip(boxes, together, strict=True):
        np.testing.assert_allclose(volume, renderer.render([box])[0], atol=1e-6)
    assert not together[2].any()
    assert renderer.render([]).shape == (0, 4, 64, 64)
    assert renderer.render([empty]).shape == (1, 4, 64, 64)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 103), st.floats(0, 12.79), st.floats(0, 12.79), st.floats(0, 6.39))
def test_an_atom_has_the_phase_of_its_scattering_at_zero(number: int, y: float, x: float, z: float) -> None:
    """The sum over a plane times the pixel's area is sigma_e h²/(2 pi m e) f(0), wherever the atom is."""
    atom = Atoms(np.array([[z, y, x]]), np.array([number]), (6.4, 12.8, 12.8))
    volume = Renderer((64, 64), 0.2, 4, 1.6).render([atom])[0].double()
    expected = interaction_constant(300e3) * PROJECTED_V_A2 * float(scattering_factor(number, np.zeros(1))[0])
    per_slice = volume.sum((1, 2)) * 0.2**2
    assert float(per_slice.sum()) == pytest.approx(expected, rel=1e-4)
    assert int(per_slice.argmax()) == min(int((z + 1e-12) / 1.6), 3)


def test_turning_the_atoms_turns_the_volume(perovskite: Crystal) -> None:
    """By 90 degrees about the corner, every pixel comes to lie on a pixel."""
    box = cut_box(perovskite, "c", (6.4, 12.8, 12.8), (0.0, 0.31, 0.17))
    turned = Atoms(
        np.stack([box.positions_A[:, 0], box.positions_A[:, 2], -box.positions_A[:, 1]], 1), box.numbers, box.size_A
    )
    renderer = Renderer((64, 64), 0.2, 4, 1.6)
    first, second = renderer.render([box, turned])
    np.testing.assert_allclose(second.roll(-1, 2).flip(2).transpose(1, 2), first, atol=1e-6)


def test_a_rotated_box_is_the_crystal_rotated() -> None:
    """The same atoms, told by their distances along the beam and from the axis of rotation."""
    size, origin = (9.0, 40.0, 40.0), (0.2, -20.0, -20.0)
    sets = []
    for angle in (0.0, 37.0):
        box = cut_box(TRICLINIC, "b", size, origin, angle)
        from_axis = np.hypot(*(box.positions_A[:, 1:] - 20).T)
        inner = from_axis < 15
        order = np.lexsort((from_axis[inner], box.positions_A[inner, 0].round(6)))
        azimuth = np.degrees(np.arctan2(*(box.positions_A[inner, 1:] - 20).T))[order]
        sets.append((box.positions_A[inner, 0][order], from_axis[inner][order], box.numbers[inner][order], azimuth))
    assert len(sets[0][0]) > 150
    for i in range(3):
        np.testing.assert_allclose(sets[0][i], sets[1][i], atol=1e-6)
    far = sets[0][1] > 0.5
    np.testing.assert_allclose((sets[1][3] - sets[0][3])[far] % 360, 37.0, atol=1e-6)


@pytest.mark.parametrize("axis", ["a", "c"])
def test_a_margin_of_4_angstrom_leaves_no_seam(axis: str) -> None:
    """What lies further beside a volume changes its edges by less than 1e-3 rad, in a triclinic crystal too."""
    volumes = []
    for margin in (4.0, 8.0):
        pixels = round((12.8 + 2 * margin) / 0.2)
        box = cut_box(TRICLINIC, axis, (6.4, pixels * 0.2, pixels * 0.2), (0.0, -margin, -margin))  # type: ignore[arg-type]
        m = round(margin / 0.2)
        volumes.append(Renderer((pixels, pixels), 0.2, 4, 1.6).render([box])[0, :, m:-m, m:-m])
    assert float(volumes[0].max()) > 0.5
    np.testing.assert_allclose(volumes[0], volumes[1], atol=1e-3)


def test_an_element_beyond_the_tables_is_refused() -> None:
    atom = Atoms(np.zeros((1, 3)), np.array([104]), (1.6, 12.8, 12.8))
    with pytest.raises(InputError, match="element 104 is beyond the tables"):
        Renderer((64, 64), 0.2, 1, 1.6).render([atom])


@pytest.mark.gpu
def test_a_gpu_renders_the_same(perovskite: Crystal) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    box = cut_box(perovskite, "c", (6.4, 12.8, 12.8))
    on_cpu, on_gpu = (Renderer((64, 64), 0.2, 4, 1.6, device=d).render([box] * 3).cpu() for d in ("cpu", "cuda"))
    np.testing.assert_allclose(on_gpu, on_cpu, atol=1e-5)
