"""Configs of every kind for hypothesis, with numbers of all their digits."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from mepdiff_core.calibration import Calibration
from mepdiff_core.fit_settings import ProbeFitConfig
from mepdiff_core.optics import ABERRATION_ORDERS, Optics
from mepdiff_core.settings import AdamConfig, Constraints, CrystalConfig, LBFGSConfig, ModelConfig, RefineConfig

ABERRATIONS = [(n, m) for n, m in ABERRATION_ORDERS if (n, m) not in ((1, 0), (3, 0))]

finite = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(0, exclude_min=True, allow_infinity=False)
counts = st.integers(1, 2**63)


@st.composite
def aberrations(draw: st.DrawFn) -> dict[str, float]:
    """Magnitudes, those with a direction together with their angle or without."""
    made = {}
    for n, m in draw(st.lists(st.sampled_from(ABERRATIONS), max_size=3, unique=True)):
        made[f"C{n}{m}"] = draw(finite)
        if m and draw(st.booleans()):
            made[f"phi{n}{m}"] = draw(finite)
    return made


optics = st.builds(
    Optics,
    energy_eV=st.floats(1e3, 1e7),
    semiangle_mrad=st.floats(0, 200, exclude_min=True),
    overfocus_A=finite,
    Cs_A=finite,
    aberrations=aberrations(),
)
calibrations = st.builds(
    lambda optics, raster, k_step, electrons, thickness: Calibration(optics, *raster, k_step, electrons, thickness),
    optics,
    st.just((None, None)) | st.tuples(positive, finite),
    positive,
    positive,
    st.none() | positive,
)
angles = st.floats(-200, 200)
models = st.builds(
    lambda source, **values: ModelConfig(probe_modes=source[0], source_size_A=source[1], **values),
    st.just((1, 0.0)) | st.tuples(st.integers(2, 49), positive),
    window=st.integers(1, 8),
    sampling=st.integers(1, 8),
    paraxial=st.booleans(),
    tilt_mrad=st.tuples(angles, angles),
)
refinements = st.builds(
    RefineConfig,
    position_rate_A=st.floats(0, 1e9),
    probe_rate=st.floats(0, 1e9),
    probe_support=st.floats(1, 1e9),
    start=counts,
)
constraints = st.builds(
    Constraints,
    positivity=st.booleans(),
    depth_blur_slices=st.floats(0, 1e9),
    kz_beta=st.floats(0, 1e9),
    kz_alpha=st.floats(0, 1e9),
)
loops = {
    "iterations": counts,
    "batch_size": counts,
    "likelihood": st.sampled_from(["amplitude", "poisson"]),
    "slices": st.none() | st.integers(1, 1000),
    "slice_thickness_A": positive,
    "seed": st.integers(0, 2**63),
}
"""Settings that all loops have."""
engines = {"engine": st.sampled_from(["ptyrad", "fast"]), "model": models}
adams = st.builds(
    lambda refine, **values: AdamConfig(**(values | ({"refine": refine, "engine": "fast"} if refine.active else {}))),
    refinements,
    **loops,
    **engines,
    learning_rate=positive,
    reshuffle=st.booleans(),
    constraints=constraints,
    heldout_fraction=st.floats(0, 0.5, exclude_min=True),
    patience=st.none() | counts,
)
lbfgs = st.builds(
    LBFGSConfig,
    **loops,
    **engines,
    learning_rates=st.lists(positive, min_size=1, max_size=4).map(tuple),
    batches_per_iteration=counts,
    inner_iterations=counts,
    line_search=st.sampled_from(["none", "strong_wolfe"]),
    heldout_fraction=st.floats(0, 0.5),
)
probe_fits = st.builds(
    ProbeFitConfig,
    **loops,
    learning_rate=positive,
    probe_learning_rate=positive,
    support=st.floats(1, 1e9),
    positivity=st.booleans(),
)


@st.composite
def crystals(draw: st.DrawFn) -> CrystalConfig:
    """With what is known of the crystal as numbers, as a file, or not at all."""
    known = draw(st.sampled_from(["numbers", "file", "nothing"]))
    path = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="\0"), min_size=1, max_size=20)
    path = path.filter(lambda name: name == name.strip())  # a line of a form gives no blanks around a name
    numbers = {
        "composition": draw(st.sampled_from(["LiMnPO4", "NO", "Y", "Ca(OH)2"])),
        "lattice_A": draw(st.tuples(positive, positive)),
        "angle_deg": draw(st.floats(0, 180, exclude_min=True, exclude_max=True)),
        "period_A": draw(positive),
    }
    given = {"numbers": numbers, "file": {"start": draw(path), "axis": draw(st.sampled_from("abc"))}, "nothing": {}}[known]
    return CrystalConfig(
        rounds=draw(counts),
        patterns=draw(counts),
        samples=draw(st.integers(0, 2**63)),
        heldout_fraction=draw(st.floats(0, 0.5)),
        slices=draw(st.none() | st.integers(1, 1000)),
        slice_thickness_A=draw(positive),
        model=draw(models.map(lambda model: replace(model, window=1, sampling=1))),
        seed=draw(st.integers(0, 2**63)),
        **given,
    )
