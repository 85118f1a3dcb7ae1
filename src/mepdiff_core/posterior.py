"""Posterior samplers on a scan: what a prior and the measured patterns agree on, as a stream of states."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mepdiff_core.baselines import make_engine, run_adam
from mepdiff_core.batches import Indices, make_batches, split_patterns
from mepdiff_core.config import check
from mepdiff_core.diffusion import Denoise, denoiser
from mepdiff_core.forward import ForwardModel
from mepdiff_core.guidance import DPS, Measurement, Proximal
from mepdiff_core.projection import illumination
from mepdiff_core.refinement import refined_model
from mepdiff_core.sample import dpmpp_2m_sde, noise_of_seeds, polyexponential
from mepdiff_core.scan import Scan, specimen_slices
from mepdiff_core.settings import ADAM_BEST, AdamConfig, Constraints, DPSConfig, ProximalConfig, SamplerConfig
from mepdiff_core.states import Checkpoint, Refined, SampleState, State
from mepdiff_core.steering import Steering
from mepdiff_core.tiling import Tiled, Tiles
from mepdiff_core.weights import Prior, load_prior

ILLUMINATED = 0.02
"""Of the dose in the scan's middle: where less went, a voxel is the prior's invention."""
PAPER_AREA_A2 = 212.0
"""Illuminated in the paper: dose over that in the middle, summed. A loss is a mean over patterns, of which few see a voxel:
where twice the area is illuminated its gradient there is half as large, and the guidance has to be twice as strong."""
WATCHED = 16
"""Patterns that tell whether a step of dps has gone too far."""
VOXEL_TOLERANCE = 0.02
"""How far a scan's voxels may be from those that a prior was trained on, relative."""


def run_dps(
    scan: Scan,
    config: DPSConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
    steering: Steering | None = None,
    denoise: Denoise | None = None,
) -> Iterator[SampleState]:
    """The paper's sampler: SDE DPM-Solver++ with a gradient through the network at every step.

    Args:
        scan: the measurement; config: settings with a prior; device: torch device.
        start: not taken: it starts from noise.
        checkpoint: of a state of the same run, to go on from there.
        steering: changes the guidance while it runs.
        denoise: instead of the prior's network; of scaled (batch, 1, z, y, x) crops of its shape, differentiable.

    Raises:
        InputError: no prior, or one that does not fit; Diverged: a misfit that is not finite.

    Source: MEP-Diffusion, table 4; Chung et al., arXiv 2209.14687. What both leave open: docs/method.md.
    """
    check(start is None, "dps starts from noise and takes no start volume; leave it out, or take the method proximal")
    task = _Task.prepare(scan, config, device, denoise)
    task.steering = steering or task.steering
    found = yield from task.refine(checkpoint)
    checkpoint = _of_sampler(checkpoint)
    done = 0 if checkpoint is None else _steps(checkpoint)
    halvings = [int(h) for h in checkpoint["halvings"]] if checkpoint is not None and "halvings" in checkpoint else []
    if checkpoint is None and config.warm_passes:
        start = found
        for state in task.warm_up() if start is None else ():
            start = state.volume
            yield state
    watched = task.fit[np.linspace(0, len(task.fit) - 1, min(WATCHED, len(task.fit))).round().astype(int)]
    guide = DPS(task.denoise, task.measurement, task.batches, task.weight, config.positivity, done + 1, halvings, watched)
    yield from task.follow(guide, start, checkpoint)


def run_proximal(
    scan: Scan,
    config: ProximalConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
    steering: Steering | None = None,
    refined: Refined | None = None,
    denoise: Denoise | None = None,
) -> Iterator[SampleState]:
    """From a few passes of Adam (or a start volume), data steps between denoising and renoising.

    Arguments and errors are those of ``run_dps``, but that ``start`` is taken: (slices, y, x), rad; and ``refined``:
    positions and probe to sample with, found before.
    """
    task = _Task.prepare(scan, config, device, denoise)
    task.steering = steering or task.steering
    if refined is not None:
        task.use(refined)
    scale = task.prior.config.diffusion.data_scale

    def spread(sigma: float) -> float:
        return task.steering.now(config).openness * sigma / math.sqrt(1 + sigma**2) / scale

    def rate(sigma: float) -> float:
        return min(task.steering.now(config).learning_rate, spread(sigma))

    start = yield from task.refine(checkpoint, start)
    checkpoint = _of_sampler(checkpoint)
    done, moments = 0, None
    if checkpoint is not None:
        done = _steps(checkpoint)
        first, second = (torch.as_tensor(np.array(checkpoint[n])).to(device) for n in ("exp_avg", "exp_avg_sq"))
        moments = first, second, int(checkpoint["updates"])
    elif config.warm_passes and start is None:
        for state in task.warm_up():
            start = state.volume
            yield state
    guide = Proximal(
        task.denoise, task.measurement, task.batches, task.nats(scan), spread, rate, config.positivity, done + 1, moments
    )
    yield from task.follow(guide, start, checkpoint)


def passes_of_adam(config: SamplerConfig, passes: int) -> AdamConfig:
    """So many of an expert's Adam over the patterns that are not held out."""
    return replace(
        ADAM_BEST,
        iterations=passes,
        patience=None,
        engine=config.engine,
        model=config.model,
        slices=config.slices,
        slice_thickness_A=config.slice_thickness_A,
        heldout_fraction=config.heldout_fraction,
        seed=config.seed,
    )


def refine_first(
    scan: Scan,
    config: SamplerConfig,
    device: torch.device | str = "cpu",
    start: npt.NDArray[np.floating] | None = None,
    checkpoint: Checkpoint | None = None,
) -> Generator[State, None, State]:
    """Positions and probe by Adam, a state a pass; returns the last, which holds what was found and the volume it goes with.

    Args:
        scan, device: as for ``run_dps``; config: of the sampler, whose ``refine`` and ``refine_passes`` say what to find.
        start: volume to start from; checkpoint: of one of these states, to go on from there.
    """
    passes = config.refine_passes
    if checkpoint is not None and int(checkpoint["step"]) == passes:
        refined = _refined(scan, config, checkpoint["best_probe"], checkpoint["best_positions_A"])
        volume, seconds = np.array(checkpoint["best"], np.float32), float(checkpoint["seconds"])
        return State(passes, passes, volume, math.nan, seconds, int(checkpoint["best_step"]), refined=refined)
    adam = replace(passes_of_adam(config, passes), refine=config.refine)
    for state in run_adam(scan, adam, device, start, checkpoint):
        yield replace(state, note=f"refining, pass {state.step} of {state.total}")
    return state


@dataclass
class _Task:
    """What a sampler needs of a scan and a prior."""

    scan: Scan
    config: SamplerConfig
    prior: Prior
    model: ForwardModel
    measurement: Measurement
    tiles: Tiles
    tiled: Tiled
    fit: Indices
    held: Indices
    illuminated: npt.NDArray[np.bool_]
    illuminated_A2: float
    network_s: float = 0.0
    before_s: float = 0.0
    before_calls: int = 0
    before_steps: int = 0
    refined: Refined | None = None
    steering: Steering = field(default_factory=Steering)

    @classmethod
    def prepare(cls, scan: Scan, config: SamplerConfig, device: torch.device | str, denoise: Denoise | None = None) -> _Task:
        prior = load_prior(config.prior, device)
        voxel = (config.slice_thickness_A, scan.pixel_size_A, scan.pixel_size_A)
        off = max(abs(a / b - 1) for a, b in zip(voxel, prior.config.voxel_size_A, strict=True))
        check(
            off < VOXEL_TOLERANCE,
            f"{config.prior} was trained on voxels of {_by(prior.config.voxel_size_A)} Å; this scan's are {_by(voxel)} Å; "
            "set slice_thickness_A, crop or pad the patterns to the same k_max, or train a prior of such voxels",
        )
        model, measurement = _measure(scan, config, prior, device)
        dose = np.pad(illumination(scan), model.margin)
        tiles = Tiles.lay(model.volume_shape, prior.config.shape, dose > ILLUMINATED)
        fit, held = split_patterns(scan.n_patterns, config.heldout_fraction, config.seed)
        whole = Tiled(denoise or denoiser(prior.network), tiles, config.tile_batch)
        area = float(dose.sum()) * scan.pixel_size_A**2
        return cls(scan, config, prior, model, measurement, tiles, whole, fit, held, dose > ILLUMINATED, area)

    def refine(
        self, checkpoint: Checkpoint | None, start: npt.NDArray[np.floating] | None = None
    ) -> Generator[SampleState, None, npt.NDArray[np.floating] | None]:
        """Positions and probe, found by Adam before the sampler's first step; returns what to start from then."""
        if not self.config.refine.active:
            return start
        if checkpoint is not None and "x" in checkpoint:
            self.use(_refined(self.scan, self.config, checkpoint["refined.probe"], checkpoint["refined.positions_A"]))
            return None
        passes = refine_first(self.scan, self.config, self.model.device, start, checkpoint)
        while True:
            try:
                state = next(passes)
            except StopIteration as end:
                last: State = end.value
                break
            yield replace(self.warming(state, state.note), checkpoint=state.checkpoint, refined=state.refined)
        self.before_s, self.before_steps = last.seconds, last.step
        assert last.refined is not None
        self.use(last.refined)
        return last.volume

    def use(self, refined: Refined) -> None:
        """Sample with this probe at these positions."""
        self.refined = refined
        self.model, self.measurement = _measure(self.scan, self.config, self.prior, self.model.device, refined)

    def denoise(self, x: Tensor, added: Tensor) -> Tensor:
        """What the prior makes of the whole canvas."""
        began = time.perf_counter()
        seen = self.tiled(x, added)
        self.network_s += time.perf_counter() - began
        return seen

    def weight(self, sigma: float) -> float:
        """g of dps: the paper's, for the area that is illuminated."""
        now = self.steering.now(self.config)
        assert isinstance(now, DPSConfig)
        log_snr = -2 * math.log(sigma)
        scale = now.guidance_scale * self.illuminated_A2 / PAPER_AREA_A2
        return scale / math.sqrt(1 + math.exp(log_snr - now.guidance_log_snr))

    @property
    def note(self) -> str:
        """What a person should know of the network."""
        taken, asked = self.tiled.batch_size, self.config.tile_batch
        return f"memory was short: {taken} tiles at once instead of {asked}" if taken < asked else ""

    def batches(self, item: int, step: int) -> list[Indices]:
        """Patterns that guide a sample in a step."""
        c = self.config
        if c.batch_size is None:
            return [self.fit] * c.batches
        found: list[Indices] = []
        for turn in range(c.batches):
            drawn = make_batches(
                self.fit, c.batch_size, np.random.default_rng([c.seed + c.first_sample + item, 4, step, turn])
            )
            found += drawn
            if len(found) >= c.batches:
                break
        return found[: c.batches]

    def follow(
        self, guide: DPS | Proximal, start: npt.NDArray[np.floating] | None, checkpoint: Checkpoint | None
    ) -> Iterator[SampleState]:
        """The sampler's steps as states."""
        c, scale, device = self.config, self.prior.config.diffusion.data_scale, self.prior.device
        sigmas = polyexponential(c.steps, c.sigma_min, c.sigma_max, c.rho).tolist()
        noise = noise_of_seeds([c.seed + c.first_sample + i for i in range(c.samples)], (1, *self.tiles.shape), device)
        done, earlier, spent = 0, None, self.before_s
        if checkpoint is not None:
            done, spent = _steps(checkpoint), float(checkpoint["seconds"])
            self.before_calls = int(checkpoint["network_calls"])
            self.before_steps = int(checkpoint["warm"])
            x, earlier = (torch.as_tensor(np.array(checkpoint[name])).to(device) for name in ("x", "denoised"))
        else:
            x = noise(0) * sigmas[0]
            if start is not None:
                expected = (self.model.volume_shape[0], *self.model.field.shape)
                check(
                    start.shape == expected,
                    f"the start volume has shape {start.shape}; this scan's object field has {expected} (slices, y, x)",
                )
                m = self.model.margin
                z, height, width = expected
                given = torch.as_tensor(np.array(start, np.float32)).to(device) * scale
                x[:, 0, :z, m : m + height, m : m + width] += given
        total = self.before_steps + c.steps
        began = time.perf_counter()
        loop = dpmpp_2m_sde(guide, x, sigmas, noise, c.eta, done, earlier)
        network, physics = self._network_s(guide), self.measurement.seconds
        noisy = x
        self.steering.begin(self.before_steps + done + 1)
        for step, (x, denoised) in enumerate(loop, done + 1):
            volumes = self.measurement.part(denoised[:, 0]) / scale
            held = [self.measurement.loss(v, self.held) for v in volumes] if len(self.held) else []
            best = int(np.argmin(held)) if held else 0
            samples = self.model.crop(volumes.detach().cpu().numpy().astype(np.float32))
            arrays = {
                "step": np.array(self.before_steps + step),
                "warm": np.array(self.before_steps),
                "network_calls": np.array(self.tiled.calls + self.before_calls),
                "x": x.cpu().numpy(),
                "denoised": denoised.detach().cpu().numpy(),
            }
            if self.refined is not None:
                arrays |= {"refined.probe": self.refined.probe, "refined.positions_A": self.refined.positions_A}
            if isinstance(guide, Proximal) and guide.moments is not None:
                first, second, updates = guide.moments
                arrays |= {"exp_avg": first.cpu().numpy(), "exp_avg_sq": second.cpu().numpy(), "updates": np.array(updates)}
            elif isinstance(guide, DPS):
                arrays["halvings"] = np.array(guide.halvings)
            spent += time.perf_counter() - began
            seen = self.measurement.part(noisy[best, 0]) / scale
            yield SampleState(
                step=self.before_steps + step,
                total=total,
                volume=np.ascontiguousarray(samples[best]),
                volume_step=self.before_steps + step,
                loss=float(np.mean(self.measurement.losses)),
                heldout=held[best] if held else None,
                seconds=spent,
                sigma=sigmas[step - 1],
                log_snr=-2 * math.log(sigmas[step - 1]),
                noisy=np.asarray(self.model.crop(seen.cpu().numpy()), np.float32),
                grad_norm=float(np.mean(guide.grad_norms)),
                network_s=self._network_s(guide) - network,
                physics_s=self.measurement.seconds - physics,
                network_calls=self.tiled.calls + self.before_calls,
                note="; ".join(filter(None, [guide.note, self.note, self.steering.note])),
                illuminated=self.model.crop(self.illuminated),
                samples=np.ascontiguousarray(samples) if c.samples > 1 else None,
                refined=self.refined,
                checkpoint={name: np.array(value) for name, value in {**arrays, "seconds": spent}.items()},
            )
            self.steering.begin(self.before_steps + step + 1)
            began, noisy = time.perf_counter(), x
            network, physics = self._network_s(guide), self.measurement.seconds

    def _network_s(self, guide: DPS | Proximal) -> float:
        """Seconds in the network so far, there and back."""
        return self.network_s + (guide.way_back_s if isinstance(guide, DPS) else 0.0)

    def warm_up(self) -> Iterator[SampleState]:
        """Passes of Adam as an expert runs it, before the sampler's first step."""
        for state in run_adam(self.scan, passes_of_adam(self.config, self.config.warm_passes), self.model.device):
            yield self.warming(state, f"Adam, pass {state.step} of {state.total}")

    def warming(self, state: State, note: str) -> SampleState:
        """A state of the passes before the sampler's first step."""
        self.before_s, self.before_steps = state.seconds, state.step
        return SampleState(
            step=state.step,
            total=state.total + self.config.steps,
            volume=np.array(state.volume, np.float32),
            volume_step=state.volume_step,
            loss=state.loss,
            heldout=state.heldout,
            seconds=state.seconds,
            note=note,
            illuminated=self.model.crop(self.illuminated),
        )

    def nats(self, scan: Scan) -> Callable[[float], float]:
        """Loss -> derivative by it of the negative log-likelihood of all patterns that are fitted.

        Poisson's is the loss times the electrons. √D of D counts has a variance of 1/4, so the amplitudes' is 2 (√I - √D)²,
        summed, and their loss is the root of that sum's mean over the mean of √D.
        """
        electrons, roots = 0.0, 0.0
        for part in np.array_split(self.fit, -(-len(self.fit) // 32)):
            counts = scan.patterns_at(part)[:, scan.seen]
            electrons += float(counts.sum(dtype=np.float64))
            roots += float(np.sqrt(counts, dtype=np.float64).sum())
        if self.config.likelihood == "poisson":
            return lambda loss: electrons
        pixels = len(self.fit) * scan.pattern_pixels
        return lambda loss: 4 * roots**2 / pixels * loss


def _measure(
    scan: Scan, config: SamplerConfig, prior: Prior, device: torch.device | str, refined: Refined | None = None
) -> tuple[ForwardModel, Measurement]:
    """The model of a scan, with what was refined put in, and the misfit by it."""
    slices = specimen_slices(scan, config.slices, config.slice_thickness_A)
    model = refined_model(scan, slices, config.slice_thickness_A, config.model, refined, device)
    engine = make_engine(config.engine, model, config.likelihood, Constraints())
    return model, Measurement(engine, model.volume_shape, prior.config.diffusion.data_scale)


def _refined(
    scan: Scan, config: SamplerConfig, probe: npt.NDArray[np.generic], positions_A: npt.NDArray[np.generic]
) -> Refined:
    """From a checkpoint's arrays."""
    pixel, energy = scan.pixel_size_A / config.model.sampling, scan.optics.energy_eV
    return Refined(np.array(probe, np.complex64), np.array(positions_A, np.float64), pixel, energy)


def _of_sampler(checkpoint: Checkpoint | None) -> Checkpoint | None:
    """A checkpoint of the sampler's own steps; None for one of the passes before them."""
    return checkpoint if checkpoint is not None and "x" in checkpoint else None


def _steps(checkpoint: Checkpoint) -> int:
    """Of the sampler, done before a checkpoint."""
    return int(checkpoint["step"]) - int(checkpoint["warm"])


def _by(voxel: tuple[float, float, float]) -> str:
    return " x ".join(f"{side:.3g}" for side in voxel)
