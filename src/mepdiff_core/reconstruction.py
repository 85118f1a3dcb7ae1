"""Method name + scan + config -> states. Torch is imported when a loop starts, not before."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from mepdiff_core.config import check, from_dict, merge, to_dict
from mepdiff_core.errors import InputError
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ADAM_BEST, AdamConfig, CrystalConfig, DPSConfig, LBFGSConfig, MepdiffConfig, ProximalConfig
from mepdiff_core.states import Checkpoint, State

if TYPE_CHECKING:
    import torch

MethodConfig = AdamConfig | LBFGSConfig | CrystalConfig | DPSConfig | ProximalConfig | MepdiffConfig


@dataclass(frozen=True)
class Method:
    """A way to reconstruct: what it is, its settings, and the loop that yields states."""

    summary: str
    default: MethodConfig
    run: Callable[..., Iterator[State]]


def _adam(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.baselines import run_adam

    return run_adam(*arguments, **options)


def _lbfgs(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.baselines import run_lbfgs

    return run_lbfgs(*arguments, **options)


def _crystal(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.atoms import run_crystal

    return run_crystal(*arguments, **options)


def _dps(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.posterior import run_dps

    return run_dps(*arguments, **options)


def _proximal(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.posterior import run_proximal

    return run_proximal(*arguments, **options)


def _mepdiff(*arguments: Any, **options: Any) -> Iterator[State]:
    from mepdiff_core.candidates import run_mepdiff

    return run_mepdiff(*arguments, **options)


METHODS: dict[str, Method] = {
    "adam-best": Method(
        "PtyRAD as an expert runs it: Poisson loss, positive phase, smoothed along the beam, stopped by held-out patterns",
        ADAM_BEST,
        _adam,
    ),
    "adam": Method("PtyRAD with Adam as the paper ran it: 200 passes over all patterns", AdamConfig(), _adam),
    "lbfgs": Method("PtyRAD with L-BFGS as the paper ran it: three learning rates, the best by loss", LBFGSConfig(), _lbfgs),
    "crystal": Method(
        "atoms in a repeated cell, found by the patterns' Poisson likelihood: no training, a CIF at the end",
        CrystalConfig(),
        _crystal,
    ),
    "dps": Method("the paper's sampler: a trained prior, pulled at every step by the patterns' misfit", DPSConfig(), _dps),
    "proximal": Method(
        "a trained prior and Poisson data steps by turns, from a few passes of Adam", ProximalConfig(), _proximal
    ),
    "mepdiff": Method(
        "the crystal solver, then a trained prior where its answer is doubted; held-out patterns decide",
        MepdiffConfig(),
        _mepdiff,
    ),
}
DEFAULT_METHOD = "mepdiff"


def method_config(method: str, settings: Mapping[str, Any] | MethodConfig | None = None) -> MethodConfig:
    """A method's settings: its defaults with these put in.

    Raises:
        InputError: no such method, or a setting it does not have.
    """
    check(method in METHODS, f"method '{method}' is not known; choose from {', '.join(METHODS)}")
    default = METHODS[method].default
    if settings is None:
        return default
    if not isinstance(settings, Mapping):
        check(
            type(settings) is type(default), f"method {method} takes {type(default).__name__}, got {type(settings).__name__}"
        )
        return settings
    known = {f.name for f in fields(default)}
    merged = merge(to_dict(default), {k: v for k, v in settings.items() if k in known})
    return from_dict(type(default), merged | {k: v for k, v in settings.items() if k not in known}, f"method {method}")


def reconstruct(
    scan: Scan,
    method: str = DEFAULT_METHOD,
    *,
    config: Mapping[str, Any] | MethodConfig | None = None,
    device: str = "auto",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
    **settings: Any,
) -> Iterator[State]:
    """Reconstruct a phase volume, as a stream of states.

    Args:
        scan: the measurement.
        method: a name in ``METHODS``.
        config: the method's settings; by default its own.
        device: auto, cpu, cuda, cuda:1, mps.
        start: (slices, y, x) volume to start from, rad, on the scan's object field; zeros by default.
        checkpoint: ``State.checkpoint`` of an earlier, equal run, to go on from there.
        settings: single settings by name, over ``config``: ``iterations=20, seed=1``.

    Yields:
        ``State``; the last one holds the answer.

    Raises:
        InputError: what was given does not fit together; Diverged: the loop left the realm of finite numbers.
    """
    resolved = method_config(method, config)
    if settings:
        resolved = method_config(method, merge(to_dict(resolved), settings))
    chosen = choose_device(device)
    return METHODS[method].run(scan, resolved, chosen, start, checkpoint)


def choose_device(name: str = "auto") -> torch.device:
    """The device of that name; auto takes CUDA, else the CPU (Apple's MPS by its name).

    Raises:
        InputError: it is not there.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"device '{name}' is not known; choose auto, cpu, cuda, cuda:1 or mps") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device '{name}' is not here ({str(error).splitlines()[0]}); choose auto or cpu") from None
    return device


def volume_grid(scan: Scan, slice_thickness_A: float) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Voxel size and origin, each (z, y, x) in Å, of the volumes that are reconstructed from a scan."""
    from mepdiff_core.forward import object_field

    area = object_field(scan.positions_A, scan.n_pixels, scan.pixel_size_A)
    return (slice_thickness_A, area.pixel_size_A, area.pixel_size_A), (slice_thickness_A / 2, *area.origin_A)
