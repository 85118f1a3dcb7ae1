"""The baselines against PtyRAD's own loop, and what a loop promises: resume, held-out patterns, divergence."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mepdiff_core.baselines import run_adam, run_lbfgs
from mepdiff_core.batches import make_batches, split_patterns
from mepdiff_core.errors import Diverged, InputError
from mepdiff_core.forward import ForwardModel
from mepdiff_core.metrics import volume_metrics
from mepdiff_core.ptyrad_adapter import Constrainer, PtyRADEngine
from mepdiff_core.reconstruction import METHODS, method_config, reconstruct
from mepdiff_core.scan import Scan
from mepdiff_core.settings import ADAM_BEST, AdamConfig, Constraints, LBFGSConfig, ModelConfig
from mepdiff_core.states import State
from mepdiff_core.volume_files import read_volume, write_volume

FAST = AdamConfig(engine="fast", batch_size=8, iterations=6)


def last(states: object) -> State:
    *_, state = states  # type: ignore[misc]
    assert isinstance(state, State)
    return state


def test_defaults_are_the_papers() -> None:
    """MEP-Diffusion, appendix C."""
    adam, lbfgs = AdamConfig(), LBFGSConfig()
    assert (adam.iterations, adam.batch_size, adam.learning_rate, adam.likelihood) == (200, 32, 5e-4, "amplitude")
    assert (adam.heldout_fraction, adam.constraints, adam.engine) == (0.0, Constraints(), "ptyrad")
    assert (lbfgs.learning_rates, lbfgs.iterations, lbfgs.batches_per_iteration) == ((1.0, 0.1, 0.01), 5, 20)


def test_adam_is_ptyrads_loop(small_scan: Scan) -> None:
    """PtyRAD's model, loss and torch's Adam driven as its recon_step drives them, beside our loop on both engines."""
    config = replace(FAST, iterations=4)
    model = ForwardModel(small_scan, 4, 1.6)
    engine = PtyRADEngine(model, "amplitude")
    optimizer = torch.optim.Adam([engine.model.opt_objp], lr=5e-4)
    batches = make_batches(np.arange(small_scan.n_patterns), 8, np.random.default_rng([0, 1]))
    curve = []
    for _ in range(4):
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            predicted = engine.model(batch)
            patches = engine.model._current_object_patches
            loss, _ = engine.loss_function(
                predicted, engine.model.get_measurements(batch), *patches, engine.model.omode_occu
            )
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        curve.append(np.mean(losses))
    volume = engine.model.opt_objp.detach()[0].numpy()

    theirs = list(run_adam(small_scan, replace(config, engine="ptyrad")))
    assert [s.loss for s in theirs] == pytest.approx(curve, rel=1e-6)
    # its scatter-add in threads sums in any order, so that no two of its runs are the same to the bit
    assert np.linalg.norm(theirs[-1].volume - volume) < 1e-3 * np.linalg.norm(volume)

    ours = list(run_adam(small_scan, config))
    assert [s.loss for s in ours] == pytest.approx(curve, rel=1e-4)
    # Adam's first steps follow the sign of gradients near 0, where rounding decides: volumes agree less than losses
    assert np.linalg.norm(ours[-1].volume - volume) < 2e-2 * np.linalg.norm(volume)


def test_constraints_are_ptyrads_and_do_what_they_say(small_scan: Scan) -> None:
    volume = torch.randn(6, 20, 20, generator=torch.Generator().manual_seed(0))
    cpu = torch.device("cpu")
    assert torch.equal(Constrainer(Constraints(positivity=True), cpu).constrain(volume, 1), volume.clamp(min=0))
    blurred = Constrainer(Constraints(depth_blur_slices=1.0), cpu).constrain(volume, 1)
    assert (blurred[1:] - blurred[:-1]).abs().mean() < 0.5 * (volume[1:] - volume[:-1]).abs().mean()
    filtered = Constrainer(Constraints(kz_beta=1.0), cpu).constrain(volume, 1)
    assert (filtered[1:] - filtered[:-1]).abs().mean() < 0.7 * (volume[1:] - volume[:-1]).abs().mean()
    assert torch.equal(Constrainer(Constraints(), cpu).constrain(volume, 1), volume)

    model = ForwardModel(small_scan, 4, 1.6)
    mine = torch.randn(model.volume_shape, generator=torch.Generator().manual_seed(1))
    both = Constraints(positivity=True, depth_blur_slices=0.8, kz_beta=0.5)
    engine = PtyRADEngine(model, "amplitude", both)
    assert torch.equal(engine.constrain(mine, 3), Constrainer(both, cpu).constrain(mine, 3))


def test_adam_best_beats_the_papers_adam_and_stops_by_itself(small_scan: Scan) -> None:
    truth = small_scan.truth
    assert truth is not None
    config = replace(ADAM_BEST, engine="fast", batch_size=8)
    states = list(run_adam(small_scan, config))
    assert len(states) < config.iterations
    assert states[-1].step == states[-1].volume_step + 5
    best = min(states, key=lambda s: s.heldout or np.inf)
    assert states[-1].volume_step == best.step
    assert np.array_equal(states[-1].volume, best.volume)
    paper = last(run_adam(small_scan, replace(FAST, iterations=100)))
    ours, theirs = (volume_metrics(s.volume, truth.phase) for s in (states[-1], paper))
    assert ours["ssim_2d"] > theirs["ssim_2d"]
    assert ours["nrmse"] < theirs["nrmse"]


@pytest.mark.parametrize("method", ["adam", "adam-best"])
def test_adam_resumes_bit_for_bit(small_scan: Scan, method: str) -> None:
    config = method_config(method, {"engine": "fast", "batch_size": 8, "iterations": 6})
    whole = list(METHODS[method].run(small_scan, config))
    for state in whole[:-1:2]:
        resumed = list(METHODS[method].run(small_scan, config, checkpoint=state.checkpoint))
        assert [s.step for s in resumed] == [s.step for s in whole[state.step :]]
        assert [s.loss for s in resumed] == [s.loss for s in whole[state.step :]]
        assert np.array_equal(resumed[-1].volume, whole[-1].volume)


def test_lbfgs_resumes_to_the_same_result(small_scan: Scan) -> None:
    config = LBFGSConfig(engine="fast", batch_size=8, batches_per_iteration=4, inner_iterations=4, iterations=2)
    whole = list(run_lbfgs(small_scan, config))
    resumed = list(run_lbfgs(small_scan, config, checkpoint=whole[2].checkpoint))
    assert resumed[0].step == 3
    assert np.array_equal(resumed[-1].volume, whole[-1].volume)


def test_lbfgs_keeps_the_lowest_loss(small_scan: Scan) -> None:
    config = LBFGSConfig(engine="fast", batch_size=8, batches_per_iteration=5, inner_iterations=6, iterations=3)
    states = list(run_lbfgs(small_scan, config))
    best = min(states, key=lambda s: s.loss)
    assert states[-1].volume_step == best.step
    assert np.array_equal(states[-1].volume, best.volume)


def test_lbfgs_with_line_search_only_descends(small_scan: Scan) -> None:
    config = LBFGSConfig(
        learning_rates=(1.0,),
        line_search="strong_wolfe",
        engine="fast",
        batch_size=8,
        batches_per_iteration=99,
        inner_iterations=5,
    )
    losses = [s.loss for s in run_lbfgs(small_scan, config)]
    assert all(b < a for a, b in itertools.pairwise(losses))


def test_held_out_patterns_never_reach_the_fit(small_scan: Scan) -> None:
    config = replace(FAST, heldout_fraction=0.2, iterations=2)
    fit, held = split_patterns(small_scan.n_patterns, 0.2, config.seed)
    assert not set(fit) & set(held)
    assert len(fit) + len(held) == small_scan.n_patterns
    counts = small_scan.counts.copy()
    counts.reshape(-1, *counts.shape[2:])[held] = 7
    spoiled = replace(small_scan, counts=counts)
    original, other = (list(run_adam(s, config)) for s in (small_scan, spoiled))
    assert [s.loss for s in original] == [s.loss for s in other]
    assert original[-1].heldout != other[-1].heldout


def test_starting_from_the_truth_starts_lower(small_scan: Scan) -> None:
    assert small_scan.truth is not None
    config = replace(FAST, iterations=1)
    cold, warm = (next(run_adam(small_scan, config, start=s)).loss for s in (None, small_scan.truth.phase))
    assert warm < 0.8 * cold


def test_wider_and_finer_models_give_volumes_on_the_same_field(small_scan: Scan) -> None:
    plain = next(run_adam(small_scan, FAST))
    for model in (ModelConfig(window=2), ModelConfig(sampling=2)):
        state = next(run_adam(small_scan, replace(FAST, model=model)))
        assert state.volume.shape == plain.volume.shape
        assert np.isfinite(state.volume).all()


def test_ptyrad_refuses_models_it_does_not_have(small_scan: Scan) -> None:
    with pytest.raises(InputError, match="engine fast"):
        next(run_adam(small_scan, replace(FAST, engine="ptyrad", model=ModelConfig(window=2))))


def test_divergence_is_said_and_the_last_good_volume_stays(small_scan: Scan) -> None:
    for likelihood in ("amplitude", "poisson"):
        states: list[State] = []
        with pytest.raises(Diverged, match="lower the learning rate"):
            states.extend(run_adam(small_scan, replace(FAST, learning_rate=3.0, likelihood=likelihood)))
        assert states[-1].volume_step == 0
        assert not states[-1].volume.any()
    with pytest.raises(Diverged, match="every learning rate"):
        list(run_lbfgs(small_scan, LBFGSConfig(learning_rates=(1e30,), engine="fast", batch_size=8)))


def test_states_cannot_be_changed(small_scan: Scan) -> None:
    state = next(run_adam(small_scan, FAST))
    with pytest.raises(AttributeError):
        state.loss = 0.0  # type: ignore[misc]
    with pytest.raises(ValueError, match="read-only"):
        state.volume[0] = 0


@pytest.mark.parametrize("slices", [1, 2])
def test_thin_specimens_go_to_disk_and_back(small_scan: Scan, tmp_path: Path, slices: int) -> None:
    """TIFF squeezes a single slice into an image."""
    volume = next(run_adam(small_scan, replace(FAST, slices=slices))).volume
    write_volume(tmp_path / "volume.ome.tif", volume, (1.6, 0.2, 0.2), (0.8, 0.0, 0.0))
    assert np.array_equal(read_volume(tmp_path / "volume.ome.tif"), volume)


def test_few_electrons_are_no_divergence(small_scan: Scan) -> None:
    counts = np.random.default_rng(0).binomial(small_scan.counts, 2e-4)
    few = replace(small_scan, counts=counts, electrons_per_pattern=small_scan.electrons_per_pattern * 2e-4)
    assert len(list(run_adam(few, replace(FAST, batch_size=4)))) == 6


def test_states_keep_what_they_held_when_they_came(small_scan: Scan) -> None:
    states = list(run_adam(small_scan, replace(FAST, iterations=2)))
    assert not np.array_equal(states[0].volume, states[1].volume)
    assert not np.array_equal(states[0].checkpoint["exp_avg"], states[1].checkpoint["exp_avg"])


def test_seeds_repeat_and_differ(small_scan: Scan) -> None:
    volumes = [last(reconstruct(small_scan, "adam", config=FAST, iterations=1, seed=s)).volume for s in (1, 1, 2)]
    assert np.array_equal(volumes[0], volumes[1])
    assert not np.array_equal(volumes[0], volumes[2])


def test_unknown_methods_and_settings_are_named(small_scan: Scan) -> None:
    with pytest.raises(InputError, match="choose from adam"):
        reconstruct(small_scan, "magic")
    with pytest.raises(InputError, match="did you mean 'iterations'"):
        reconstruct(small_scan, "adam", iteration=3)


def test_a_scan_of_unknown_thickness_needs_slices(small_scan: Scan) -> None:
    unknown = replace(small_scan, thickness_A=None, truth=None)
    with pytest.raises(InputError, match="number of slices"):
        next(reconstruct(unknown, "adam", config=FAST))
    assert next(reconstruct(unknown, "adam", config=FAST, slices=3)).volume.shape[0] == 3
