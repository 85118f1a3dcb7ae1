"""Scans and volumes as napari layers: all in Å, so that napari's units and scale bar hold for the whole viewer."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.scan import Scan, Truth
from mepdiff_core.virtual import detector_mask, virtual_image

KEY = "mepdiff"
"""What layer.metadata calls our part of it: {"scan": Scan, "path": str}, {"run": folder}, or of the truth {"beside": Å}."""
COLORMAP = "inferno"
GAP = 1.08
"""Distance between a volume and the truth beside it, in widths of the volume."""
RESCALE_S = 1.0

LayerTuple = tuple[npt.NDArray[Any], dict[str, Any], str]


def scan_layers(scan: Scan, path: Path) -> list[LayerTuple]:
    """A scan as layers: its virtual dark-field image where it was taken and, where it is known, the truth beside."""
    image = virtual_image(scan.counts, dark_field(scan))
    rows, columns = scan.shape
    first = scan.positions_A[0]
    # rows and columns of a rotated raster are no rows and columns of the specimen: the image is turned as the scan was
    slow = (scan.positions_A[(rows - 1) * columns] - first) / max(rows - 1, 1)
    fast = (scan.positions_A[columns - 1] - first) / max(columns - 1, 1)
    if rows == columns == 1:
        slow, fast = np.array([scan.pixel_size_A, 0.0]), np.array([0.0, scan.pixel_size_A])
    slow = slow if rows > 1 or columns == 1 else np.array([fast[1], -fast[0]])
    fast = fast if columns > 1 or rows == 1 else np.array([-slow[1], slow[0]])
    affine = np.eye(3)
    affine[:2, 0], affine[:2, 1], affine[:2, 2] = slow, fast, first
    metadata = {KEY: {"scan": scan, "path": str(path)}}
    overview = {
        "name": f"{path.stem}: virtual dark field",
        "affine": affine,
        "axis_labels": ("y", "x"),
        "units": ("angstrom",) * 2,
        "colormap": "gray",
        "metadata": metadata,
    }
    layers: list[LayerTuple] = [(image, overview, "image")]
    if scan.truth is not None:
        layers.append(truth_layer(scan.truth, path))
    return layers


def truth_layer(truth: Truth, path: Path) -> LayerTuple:
    """The true volume, beside the place where reconstructions come."""
    width = truth.phase.shape[2] * truth.voxel_size_A[2]
    z, y, x = truth.origin_A
    settings = volume_settings(f"{path.stem}: ground truth", truth.voxel_size_A, (z, y, x + GAP * width))
    settings["contrast_limits"] = contrast_limits(truth.phase)
    settings["metadata"] = {KEY: {"beside": GAP * width}}
    return truth.phase, settings, "image"


def volume_settings(
    name: str, voxel_size_A: tuple[float, float, float], origin_A: tuple[float, float, float]
) -> dict[str, Any]:
    """How a phase volume is shown."""
    return {
        "name": name,
        "scale": voxel_size_A,
        "translate": origin_A,
        "axis_labels": ("z", "y", "x"),
        "units": ("angstrom",) * 3,
        "colormap": COLORMAP,
        "rendering": "mip",
        "interpolation3d": "linear",
    }


def dark_field(scan: Scan) -> npt.NDArray[np.bool_]:
    """A ring around the bright disk, out to three times its radius or the edge of the detector."""
    inner = 1.1 * scan.optics.k_aperture_invA
    outer = min(3 * scan.optics.k_aperture_invA, scan.k_max_invA)
    return detector_mask(scan.n_pixels, scan.k_step_invA, min(inner, 0.9 * outer), outer)


def contrast_limits(volume: npt.NDArray[np.floating]) -> tuple[float, float]:
    """From no phase to nearly the strongest; the brightest voxel in a thousand may saturate."""
    high = float(np.percentile(volume, 99.9))
    low = min(0.0, float(np.percentile(volume, 0.1)))
    return low, high if high > low else low + 1e-3


class VolumeLayer:
    """The layer in which a volume forms.

    Args:
        viewer: where; the layer is added with the first volume.
        name, voxel_size_A, origin_A: of the layer.
        limits: contrast limits to keep; None: those of the volume, taken anew once a second at most, until the user
            sets some.
        metadata: for the layer, under ``KEY``.
    """

    def __init__(
        self,
        viewer: Any,
        name: str,
        voxel_size_A: tuple[float, float, float],
        origin_A: tuple[float, float, float],
        limits: tuple[float, float] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.layer: Any = None
        self._viewer = viewer
        self._settings = volume_settings(name, voxel_size_A, origin_A) | {"metadata": {KEY: metadata or {}}}
        self._fixed = limits is not None
        self._limits = limits
        self._rescaled_at = 0.0

    @property
    def there(self) -> bool:
        """Whether the viewer shows the layer (hidden or not); a user can remove it."""
        return self.layer is not None and self.layer in self._viewer.layers

    def show(self, volume: npt.NDArray[np.floating], visible: bool = True) -> None:
        """Show a volume, in the layer that is there or in a new one, visible or not."""
        if not self.there:
            limits = self._limits or contrast_limits(volume)
            self.layer = self._viewer.add_image(
                np.array(volume, np.float32), contrast_limits=limits, visible=visible, **self._settings
            )
            self.layer.events.contrast_limits.connect(self._limits_changed)
            self._limits = limits
            return
        self.layer.data[...] = volume
        if not self._fixed and time.monotonic() - self._rescaled_at > RESCALE_S:
            self._rescaled_at = time.monotonic()
            self._limits = contrast_limits(volume)
            self.layer.contrast_limits = self._limits
        self.layer.refresh(extent=False, thumbnail=False, highlight=False)

    def finish(self) -> None:
        """The last volume is there: bring the thumbnail up to date."""
        if self.there:
            self.layer.refresh()

    def _limits_changed(self, event: object = None) -> None:
        if self.layer is not None and tuple(self.layer.contrast_limits) != tuple(self._limits or ()):
            self._fixed = True  # the user's choice stands
