"""Several samples of one posterior as layers: mean, spread and each of them, and where electrons went as an outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.ensemble import Ensemble, outlines
from napari_mepdiff._layers import KEY, contrast_limits, volume_settings

OUTLINE = "#f0a030"


def show_ensemble(viewer: Any, name: str, ensemble: Ensemble, record: Mapping[str, Any]) -> None:
    """Mean, spread and each sample as layers, hidden; samples are numbered as the held-out patterns rank them."""
    volumes = {"mean": ensemble.mean, "spread": ensemble.spread}
    for number, sample in enumerate(ensemble.samples, 1):
        told = f" (held out {ensemble.deviances[number - 1]:.4f})" if ensemble.deviances else ""
        volumes[f"sample {number}{told}"] = sample
    voxel, origin = tuple(record["voxel_size_A"]), tuple(record["origin_A"])
    active = viewer.layers.selection.active
    for kind, volume in volumes.items():
        if f"{name}, {kind}" not in viewer.layers:
            settings = volume_settings(f"{name}, {kind}", voxel, origin)
            viewer.add_image(volume, contrast_limits=contrast_limits(volume), visible=False, **settings)
    viewer.layers.selection.active = active


def show_outline(viewer: Any, name: str, illuminated: npt.NDArray[np.bool_], record: Mapping[str, Any]) -> None:
    """Where electrons went, as an outline in Å."""
    _, dy, dx = record["voxel_size_A"]
    _, y, x = record["origin_A"]
    lines = [line * (dy, dx) + (y, x) for line in outlines(illuminated)]
    if not lines:
        return
    active = viewer.layers.selection.active
    viewer.add_shapes(
        lines,
        shape_type="polygon",
        ndim=2,
        name=name,
        edge_color=OUTLINE,
        edge_width=0.15,
        face_color="transparent",
        axis_labels=("y", "x"),
        units=("angstrom",) * 2,
        metadata={KEY: {"outline": True}},
    )
    viewer.layers.selection.active = active
