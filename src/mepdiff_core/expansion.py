"""The misfit around a crystal to second order in what its parameters, atoms first of all, do to the waves.

Waves are linear in the transmission function of a slice: what a change of one slice's phase adds to the exit wave is the
source i dphase T psi, carried through the slices behind it. Summed over pixels these additions give the gradient and the
Fisher information of the Poisson likelihood by the amount of matter in every slice of every column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations_with_replacement
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.atom_waves import AtomWaves, Windows

SOURCES_AT_ONCE, PAIRS_AT_ONCE = 4, 8
"""Sources and products of two whose waves are carried together: more do not stay in a processor's cache."""
FEW_ELECTRONS = 0.1
"""Added to a pixel's counts and expectation where its curvature is weighed by both."""
Item = TypeVar("Item")
Sources = Sequence[Mapping[int, Tensor]]
"""For each parameter: slice -> derivative of that slice's phase by it, (y, x) at the model's pixel, as ``AtomWaves.plane``
and ``AtomWaves.to_model`` give it."""


def quadratic(
    waves: AtomWaves,
    phase: Tensor,
    sources: Sources,
    indices: npt.NDArray[np.integer],
    groups: Sequence[Sequence[int]] = (),
    far: Collection[int] = (),
) -> tuple[float, npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The misfit around a crystal, to second order in its parameters; results of several sets of patterns add up.

    Args:
        waves: the model.
        phase: (slices, drawn, drawn), rad.
        sources: what each parameter changes.
        indices: which patterns.
        groups: sources whose waves are followed to second order: the product of each two of a group, and half of each
            square, is a parameter of its own, after the others, in the order of ``pairs_of``.
        far: sources for which atoms far from the beam count, as they do for a lattice that stretches: wide windows.

    Returns:
        Misfit in nats; its gradient (parameters,); its curvature (parameters, parameters), close to the Fisher
        information. Sums in float64.
    """
    transmission = waves.transmission(phase)
    order = sorted(range(len(sources)), key=lambda p: min(sources[p], default=waves.slices))
    blocks = [
        (windows, some[first : first + SOURCES_AT_ONCE])
        for windows, some in (
            (waves.narrow, [p for p in order if p not in far]),
            (waves.wide, [p for p in order if p in far]),
        )
        for first in range(0, len(some), SOURCES_AT_ONCE)
    ]
    followed = {p for group in groups for p in group}
    turned = 1j * transmission  # a phase of 1 rad at slice s adds i T psi there

    def work(part: npt.NDArray[np.integer]) -> tuple[float, Tensor, Tensor]:
        before, spectrum = waves.forward(transmission, part)
        amplitude = waves.amplitudes(spectrum)
        expected = waves.expected(amplitude)
        counts, twice = waves.measured.at(part), amplitude * (2 * waves.electrons)
        count = len(sources) + sum(len(pairs_of(group)) for group in groups)
        rows = torch.zeros(count, *expected.shape, device=waves.device)
        kept: dict[int, Tensor] = {}
        for windows, block in blocks:
            seen = _added(waves, windows, transmission, turned, before, part, [sources[p] for p in block])
            rows[block] = (seen.real * twice.real + seen.imag * twice.imag).sum(2)
            kept |= {p: wave for p, wave in zip(block, seen, strict=True) if p in followed}
        first = len(sources)
        for group in groups:
            members = [sources[p] for p in group]
            for j in range(len(part)):
                here = [wave[:, j : j + 1] for wave in before]
                done = first
                for seen in _added_by_pairs(waves, transmission, turned, here, part[j], members):
                    wave = twice[j : j + 1]
                    rows[done : done + len(seen), j : j + 1] = (seen.real * wave.real + seen.imag * wave.imag).sum(2)
                    done += len(seen)
            for a, b in pairs_of(group):
                both = kept[a].real * kept[b].real + kept[a].imag * kept[b].imag
                rows[first] += both.sum(1) * (2 * waves.electrons)
                first += 1
        rows = waves.measured.believed(rows).reshape(count, -1)
        gradient = (rows @ (1 - counts / expected).reshape(-1)).double()
        # the likelihood's third order, as far as it shows where the counts are: to the Fisher information's mean
        few = FEW_ELECTRONS / 3
        rows *= ((2 * expected + counts + 3 * few) / (3 * expected * (expected + few))).sqrt().reshape(-1)
        return float(waves.deviance(expected, part).sum()), gradient, (rows @ rows.T).double()

    misfit, gradient, fisher = 0.0, torch.tensor(0.0), torch.tensor(0.0)
    for more, slope, curvature in waves.shared_out(work, indices):  # a matrix at a time: all would fill the memory
        misfit, gradient, fisher = misfit + more, slope.add_(gradient), curvature.add_(fisher)
    return misfit, gradient.cpu().numpy(), fisher.cpu().numpy()


def _added(
    waves: AtomWaves,
    windows: Windows,
    transmission: Tensor,
    turned: Tensor,
    before: list[Tensor],
    indices: npt.NDArray[np.integer],
    sources: Sources,
) -> Tensor:
    """(sources, positions, modes, n, n) what each source adds to the amplitudes."""
    n, inner, places = windows.side, windows.inner, [windows.place(index) for index in indices]
    shape = (len(sources), len(indices), len(waves.waves.probe), n, n)
    added = torch.zeros(shape, dtype=torch.complex64, device=waves.device)
    started = False
    for s in range(waves.slices):
        here = [(b, source[s]) for b, source in enumerate(sources) if s in source]
        for j, window in enumerate(places):
            if started:
                added[:, j].mul_(transmission[s][window])
            if here:
                wave = turned[s][window] * before[s][0, j][(..., *inner)]
                for b, plane in here:
                    added[b, j].addcmul_(wave, plane[window])
        started = started or bool(here)
        if started and s < waves.slices - 1:
            added = windows.carried(added)
    return windows.seen(added)


def _added_by_pairs(
    waves: AtomWaves,
    transmission: Tensor,
    turned: Tensor,
    before: list[Tensor],
    index: int,
    sources: Sources,
) -> Iterator[Tensor]:
    """What the products of two sources add to one pattern's amplitudes, a few pairs at a time, in order."""
    windows, modes = waves.narrow, len(waves.waves.probe)
    n, inner, window = windows.side, windows.inner, windows.place(index)
    through = transmission[(slice(None), *window)]
    images = [{s: image[window] for s, image in source.items()} for source in sources]
    arriving: list[Tensor] = []  # (sources, modes, n, n) first-order waves before each slice
    psi = torch.zeros(len(sources), modes, n, n, dtype=torch.complex64, device=waves.device)
    for s in range(waves.slices):
        arriving.append(psi)
        psi = psi * through[s]
        wave = turned[s][window] * before[s][0, 0][(..., *inner)]
        for k, image in enumerate(images):
            if s in image:
                psi[k].addcmul_(wave, image[s])
        psi = windows.carried(psi)
    pairs = pairs_of(range(len(sources)))
    for first in range(0, len(pairs), PAIRS_AT_ONCE):
        block = pairs[first : first + PAIRS_AT_ONCE]
        psi = torch.zeros(len(block), modes, n, n, dtype=torch.complex64, device=waves.device)
        started = False
        for s in range(waves.slices):
            if started:
                psi.mul_(through[s])
            wave = through[s] * before[s][0, 0][(..., *inner)]
            bent = turned[s][window]
            for k, (a, b) in enumerate(block):
                if s in images[a]:
                    psi[k].addcmul_(bent * images[a][s], arriving[s][b])
                    started = True
                if s in images[b]:
                    psi[k].addcmul_(bent * images[b][s], arriving[s][a])
                    started = True
                if s in images[a] and s in images[b]:
                    psi[k].addcmul_(wave * images[a][s], images[b][s], value=-1)
            if started and s < waves.slices - 1:
                psi = windows.carried(psi)
        yield windows.seen(psi)[:, None]


def pairs_of(group: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Each with itself and with those behind it."""
    return list(combinations_with_replacement(group, 2))
