"""Crystals drawn from a prior into a folder."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

from mepdiff_core.config import to_dict
from mepdiff_core.runs import RunFolder
from mepdiff_core.sample import SampleConfig, sample_prior
from mepdiff_core.states import State
from mepdiff_core.weights import load_prior


class SampleRun:
    """Draws crystals into a new folder; iterate over ``states``.

    Args:
        prior: file of a prior, or ``embedded``.
        out: the folder.
        config: how many, how.
        device: auto, cpu, cuda, cuda:1, mps.

    Attributes:
        prior: the prior; folder: the folder.

    Raises:
        InputError: no prior, or a folder that is not empty or cannot be made.
    """

    def __init__(self, prior: str | Path, out: str | Path, config: SampleConfig, device: str = "auto") -> None:
        from mepdiff_core.reconstruction import choose_device

        self.config = config
        self.prior = load_prior(prior, choose_device(device))
        record = {
            "method": "sample",
            "config": to_dict(config),
            "seed": config.seed,
            "input": Path(prior).name,
            "input_sha256": self.prior.sha256,
            "device": str(self.prior.device),
            "voxel_size_A": list(self.prior.config.voxel_size_A),
            "origin_A": [0.0, 0.0, 0.0],
        }
        self.folder = RunFolder.create(out, record)

    def states(self) -> Generator[State]:
        """The states of the sampler; after the last one, ``sheet.png`` shows all crystals.

        Raises:
            InputError: a disk that is full.
        """
        from mepdiff_core.figures import contact_sheet
        from mepdiff_core.page import save_figure

        state = None
        with contextlib.closing(self.folder.follow(sample_prior(self.prior, self.config))) as states:
            for state in states:
                yield state
        assert state is not None
        assert state.samples is not None
        titles = [f"seed {self.config.seed + i}" for i in range(self.config.n)]
        save_figure(contact_sheet([*state.samples], titles), self.folder.path / "sheet.png")
