"""How crystals are drawn from a prior, for forms that must not wait for torch."""

from __future__ import annotations

from dataclasses import dataclass

from mepdiff_core.config import check


@dataclass(frozen=True)
class SampleConfig:
    """How crystals are drawn from a prior; the defaults are the paper's (MEP-Diffusion, table 4) where it has any.

    Attributes:
        n: how many.
        steps: of the sampler, each one call of the network a sample.
        sigma_min, sigma_max: ends of the schedule, of noise added to scaled data.
        rho: exponent of the schedule; 1 makes neighbouring sigmas of equal ratio.
        eta: how much of the noise is renewed: 0 solves the ODE, 1 the SDE.
        batch_size: samples at a time.
        seed: of the first sample; each has its own, so that a batch gives the same samples as one at a time.
    """

    n: int = 16
    steps: int = 50
    sigma_min: float = 0.1
    sigma_max: float = 800.0
    rho: float = 1.0
    eta: float = 1.0
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        check(self.n >= 1, f"n is {self.n}; expected at least 1")
        check(self.steps >= 1, f"steps is {self.steps}; expected at least 1")
        check(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min is {self.sigma_min:g} and sigma_max {self.sigma_max:g}; expected the first to be less, and above 0",
        )
        check(self.rho > 0, f"rho is {self.rho:g}; expected more than 0")
        check(0 <= self.eta <= 1, f"eta is {self.eta:g}; expected 0 to 1")
        check(self.batch_size >= 1, f"batch_size is {self.batch_size}; expected at least 1")
        check(self.seed >= 0, f"seed is {self.seed}; expected 0 or more")
