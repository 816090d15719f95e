"""Variance-preserving noise schedules, continuous and discrete.

Song et al. 2021 (score SDE, appendix C) and Ho et al. 2020. The two agree only to first order in 1/1000:
the signal power at t = 0.1 is 0.896282 in continuous time and 0.897018 after 100 discrete steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from ..errors import mistake, positive, whole


@dataclass(frozen=True)
class VP:
    """Continuous VP schedule, beta(t) = beta_min + t (beta_max - beta_min) for t in [0, 1].

    The state at time t is ``alpha(t) x0 + sigma(t) noise``. Times are dimensionless; methods quote them as t*.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        positive("beta_min", self.beta_min)
        if positive("beta_max", self.beta_max) <= self.beta_min:
            raise ValueError(mistake("beta_max", f"above beta_min = {self.beta_min}", self.beta_max))

    def beta(self, t: float) -> float:
        """Rate of the forward SDE at time t."""
        return self.beta_min + t * (self.beta_max - self.beta_min)

    def alpha_bar(self, t: float) -> float:
        """Signal power exp(-integral of beta from 0 to t)."""
        return math.exp(-self._integral(t))

    def alpha(self, t: float) -> float:
        """Signal amplitude, the square root of ``alpha_bar``."""
        return math.exp(-0.5 * self._integral(t))

    def sigma(self, t: float) -> float:
        """Noise standard deviation sqrt(1 - alpha_bar(t)), without cancellation near t = 0."""
        return math.sqrt(-math.expm1(-self._integral(t)))

    def log_snr_half(self, t: float) -> float:
        """lambda(t) = log(alpha / sigma), the time variable of DPM-Solver (Lu et al. 2022)."""
        return math.log(self.alpha(t) / self.sigma(t))

    def time_of(self, log_snr_half: float) -> float:
        """Inverse of ``log_snr_half``: the positive root of the quadratic integral of beta."""
        integral = float(np.logaddexp(0.0, -2.0 * log_snr_half))
        slope = self.beta_max - self.beta_min
        return 2.0 * integral / (self.beta_min + math.sqrt(self.beta_min**2 + 2.0 * slope * integral))

    def _integral(self, t: float) -> float:
        return self.beta_min * t + 0.5 * (self.beta_max - self.beta_min) * t * t


@dataclass(frozen=True)
class DiscreteVP:
    """Discrete VP schedule with linear betas (Ho et al. 2020): ``n`` rates from ``beta_start`` to ``beta_end``.

    Indices are zero-based; ``alpha_bar(-1)`` is 1, the clean image.
    """

    beta_start: float = 1e-4
    beta_end: float = 2e-2
    n: int = 1000

    def __post_init__(self) -> None:
        whole("n", self.n, minimum=2)
        positive("beta_start", self.beta_start)
        if not self.beta_start < positive("beta_end", self.beta_end) < 1:
            raise ValueError(
                mistake("beta_end", f"between beta_start = {self.beta_start} and 1", self.beta_end)
            )

    @cached_property
    def betas(self) -> np.ndarray:
        """The rates, float64 [n]."""
        return np.linspace(self.beta_start, self.beta_end, self.n, dtype=np.float64)

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """Cumulative signal power after each index, float64 [n]."""
        return np.cumprod(1.0 - self.betas)

    def alpha_bar(self, index: int) -> float:
        """Signal power at a zero-based index; 1 at index -1."""
        return 1.0 if index < 0 else float(self.alpha_bars[index])

    def label(self, index: int) -> float:
        """What a network with real-valued time input is told at ``index``: the index itself."""
        return float(index)


@dataclass(frozen=True)
class SampledVP:
    """The continuous schedule seen at times (index + 1) / n, for samplers that walk over indices."""

    vp: VP = field(default_factory=VP)
    n: int = 1000

    def alpha_bar(self, index: int) -> float:
        """Signal power at time (index + 1) / n; 1 at index -1."""
        return 1.0 if index < 0 else self.vp.alpha_bar((index + 1) / self.n)

    def label(self, index: int) -> float:
        """999 t, the label such networks are trained with."""
        return 999.0 * (index + 1) / self.n


@dataclass(frozen=True)
class CosineVP:
    """The cosine schedule of Nichol and Dhariwal 2021 (eq. 17), ``n`` steps, rates held below 0.999.

    Its signal power after step i is f((i + 1) / n) / f(0) with f(t) = cos^2((t + 0.008) / 1.008 pi / 2).
    """

    n: int = 4000

    def __post_init__(self) -> None:
        whole("n", self.n, minimum=2)

    @cached_property
    def alpha_bars(self) -> np.ndarray:
        """Cumulative signal power after each index, float64 [n]."""
        times = np.arange(self.n + 1, dtype=np.float64) / self.n
        power = np.cos((times + 0.008) / 1.008 * math.pi / 2.0) ** 2
        return np.cumprod(1.0 - np.minimum(1.0 - power[1:] / power[:-1], 0.999))

    def alpha_bar(self, index: int) -> float:
        """Signal power at a zero-based index; 1 at index -1."""
        return 1.0 if index < 0 else float(self.alpha_bars[index])

    def label(self, index: int) -> float:
        """The index itself."""
        return float(index)


IndexedSchedule = DiscreteVP | SampledVP | CosineVP
"""Schedules that samplers over indices can walk on: ``n`` steps, ``alpha_bar(index)``, ``label(index)``."""
