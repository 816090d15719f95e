"""Adaptive denoising purification (Yoon et al. 2021): score ascent whose step size is chosen per image."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive, whole
from ..kernels import Stream
from ..reverse import NoiseSource, Procedure, Process
from ..reverse.noise import normal
from ..reverse.procedure import State
from ..schedule import VP, Row, StepTable
from ..schedule.edm import level as noise_level
from .base import Method, method, number

RESTS = ("before", "after")
"""When an image rests: before or after its first step that is too small."""


@method(steps="n_iter", former={"rest": "after"})
def adp(
    noise: float = 0.25,
    n_iter: int = 10,
    level: float | None = None,
    rate: float = 0.05,
    probe: float = 1e-3,
    bounds: tuple[float, float] = (1e-5, 1e-1),
    stop: float = 1e-3,
    clip_output: bool = True,
    rest: str = "before",
) -> Method:
    """Adaptive denoising purification (Yoon et al. 2021): noise, then score ascent with a step chosen per image.

    All in [0, 1] units: ``noise`` is added and the result clamped; each of at most ``n_iter`` steps is ``rate`` times
    the inverse curvature along the score, probed at distance ``probe``, held in ``bounds``. An image whose step is not
    above ``stop`` rests ``rest`` "before" that step, as in the published code; "after" it, once the step is below
    ``stop``, is what earlier versions of this library did. ``level`` is the noise level of the score. The paper's
    network (NCSN-v2) is asked at a fixed label; for other denoisers the level is a choice, by default ``noise``. The
    paper averages 10 runs.
    """
    one_of("rest", rest, RESTS)
    whole("n_iter", n_iter, minimum=1)
    level = positive("noise", noise) if level is None else positive("level", level)
    low, high = (positive("bounds", value) for value in bounds)
    if low > high:
        raise ValueError(mistake("bounds", "(low, high) with low <= high", repr(bounds)))
    procedure = AdaptiveScore(
        level, positive("rate", rate), positive("probe", probe), low, high, number("stop", stop), rest
    )
    # b is nominal: the step of an image whose curvature is that of the noise level itself.
    call = Row(a=1.0, b=-rate * level, **noise_level(2.0 * level, VP()))  # type: ignore[arg-type]
    table = StepTable((Row(a=1.0, d=2.0 * noise, forward=True), *(call,) * (2 * n_iter)))
    resolved = {"level": level, "bounds": (low, high)}
    return Method.of(table, None, clip_output, procedure, resolved=resolved)


@dataclass(frozen=True)
class AdaptiveScore(Procedure):
    """u <- clamp(u + a g), g the score at one noise level, a = clamp(``rate`` probe / (1 - z), low, high).

    z = <g, g'> / <g, g> with g' the score at u + ``probe`` g, so that probe / (1 - z) is the inverse curvature along
    g. An image rests for good ``rest`` "before" its first step with a not above ``stop``, or "after" its first with a
    below ``stop``. All in [0, 1] units. Row 0 adds the noise, then come pairs of rows: one evaluates g, the next g' and
    takes the step.
    """

    level: float
    rate: float = 0.05
    probe: float = 1e-3
    low: float = 1e-5
    high: float = 1e-1
    stop: float = 1e-3
    rest: str = field(default="after", metadata={"later": True})

    def begin(self, x: Tensor) -> State:
        """(image in [0, 1], score there, whether the image still moves [B])."""
        return (x + 1.0) * 0.5, torch.zeros_like(x), torch.ones(len(x), dtype=torch.bool, device=x.device)

    def step(
        self, process: Process, k: int, state: State, context: tuple[Tensor, ...], noise: NoiseSource
    ) -> State:
        """See ``Procedure.step``."""
        (u, g, moving), row = state, process.table.rows[k]
        if row.forward:
            return (u + 0.5 * row.d * normal(noise, k, u, Stream.FORWARD)).clamp(0.0, 1.0), g, moving
        if not bool(moving.any()):
            return state
        if k % 2 == 1:
            return u, self._score(process, k, u), moving
        probed = self._score(process, k, u + self.probe * g)
        # 1 - z as <g, g - g'> / <g, g>: the difference of nearly equal scores, not of a number near 1 from 1.
        power = (g * g).flatten(1).sum(1).clamp_min(torch.finfo(g.dtype).tiny)
        gap = (g * (g - probed)).flatten(1).sum(1) / power
        rate = self._rate(gap)
        if self.rest == "before":
            moving = moving & (rate.detach() > self.stop)
        moved = (u + rate.view(-1, 1, 1, 1) * g).clamp(0.0, 1.0)
        still = torch.where(moving.view(-1, 1, 1, 1), moved, u)
        if self.rest == "after":
            moving = moving & (rate.detach() >= self.stop)
        return still, torch.zeros_like(g), moving

    def image(self, state: State) -> Tensor:
        """The first part, in [-1, 1]."""
        return 2.0 * state[0] - 1.0

    def check_precision(self, dtype: torch.dtype) -> None:
        """Raise ValueError for bfloat16, whose 8 bits do not resolve two scores ``probe`` apart."""
        if dtype == torch.bfloat16:
            remedy = "The step size comes from the difference of two nearly equal scores"
            raise ValueError(mistake("precision", "'fp32', 'tf32' or 'fp16' for adp", "'bf16'", remedy))

    def _rate(self, gap: Tensor) -> Tensor:
        # Where the score does not fall along itself (gap <= 0) the quotient is negative or infinite; the published
        # clamp then gives its lower or upper end, and neither depends on the image.
        safe = torch.where(gap == 0, torch.ones_like(gap), gap)
        rate = (self.rate * self.probe / safe).clamp(self.low, self.high)
        return torch.where(gap == 0, torch.full_like(rate, self.high), rate)

    def _score(self, process: Process, k: int, u: Tensor) -> Tensor:
        x = process.table.rows[k].alpha * (2.0 * u - 1.0)
        return process.denoiser.noise_pred(x, process.conditioning, k) / -self.level
