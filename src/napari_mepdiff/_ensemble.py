"""Several samples of one posterior as layers: mean, spread and each of them, and where electrons went as an outline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.ensemble import Ensemble, outlines
from napari_mepdiff._layers import KEY, contrast_limits, volume_settings

OUTLINE = "#f0a030"


LAYERS = "Mean, spread and each sample are hidden layers: the eye in the layer list shows them."


def show_ensemble(viewer: Any, name: str, ensemble: Ensemble, record: Mapping[str, Any]) -> None:
    """Mean, spread and each sample as layers, hidden; samples are numbered as the held-out patterns rank them."""
    volumes = {"mean": ensemble.mean, "spread": ensemble.spread}
    volumes |= {f"sample {number}": sample for number, sample in enumerate(ensemble.samples, 1)}
    voxel, origin = tuple(record["voxel_size_A"]), tuple(record["origin_A"])
    active = viewer.layers.selection.active
    for kind, volume in volumes.items():
        if f"{name}, {kind}" not in viewer.layers:
            settings = volume_settings(f"{name}, {kind}", voxel, origin)
            viewer.add_image(volume, contrast_limits=contrast_limits(volume), visible=False, **settings)
    viewer.layers.selection.active = active


def show_outline(
    viewer: Any, name: str, illuminated: npt.NDArray[np.bool_], slices: int, record: Mapping[str, Any], visible: bool = True
) -> Any:
    """Where electrons went, as an outline in Å, the same in each slice; the layer, None where they went nowhere."""
    dz, dy, dx = record["voxel_size_A"]
    z, y, x = record["origin_A"]
    lines = [line * (dy, dx) + (y, x) for line in outlines(illuminated)]
    if not lines:
        return None
    rings = [np.insert(line, 0, number, axis=1) for number in range(slices) for line in lines]
    active = viewer.layers.selection.active
    layer = viewer.add_shapes(
        rings,
        shape_type="polygon",
        scale=(dz, 1.0, 1.0),
        translate=(z, 0.0, 0.0),
        name=name,
        visible=visible,
        edge_color=OUTLINE,
        edge_width=0.1,
        opacity=0.6,
        face_color="transparent",
        axis_labels=("z", "y", "x"),
        units=("angstrom",) * 3,
        metadata={KEY: {"outline": True}},
    )
    viewer.layers.selection.active = active
    return layer
