"""Methods made of several diffusions, or of one call: Lee and Kim's gradual noise, denoised smoothing."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import mistake, one_of, positive, whole
from ..schedule import (
    CosineVP,
    DiscreteVP,
    IndexedSchedule,
    StepTable,
    forward_diffusion,
    strided,
)
from .base import Method, method, spaced_indices

Stages = tuple[tuple[int, int], ...]
GRADUAL: Stages = ((30, 30),) * 4 + ((50, 50),) * 2 + ((125, 125),) * 2
"""Lee and Kim's defence on CIFAR-10: (diffusion index, denoising steps) of each stage."""

SURROGATE: Stages = ((30, 1), (50, 1), (125, 5))
"""The coarser process through which they attack it."""

SCHEDULES: dict[str, type[DiscreteVP] | type[CosineVP]] = {"linear": DiscreteVP, "cosine": CosineVP}


@method()
def gradual(
    stages: Sequence[Sequence[int]] = GRADUAL,
    eta: float = 1.0,
    clip_x0: bool = False,
    clip_output: bool = False,
) -> Method:
    """Gradual noise (Lee and Kim, ICCV 2023): diffuse a little and denoise, again and again, then further.

    Each stage (m, n) diffuses at zero-based index m and denoises in n steps that begin at index m - 1. ``eta`` 1 is
    DDPM, 0 is DDIM. Published predictions are the majority of 10 runs, which is the evaluation protocol's part.
    ``methods.SURROGATE`` are the stages of their surrogate attack. Whether the published code clamps its output
    is not established.
    """
    schedule, table, kept = DiscreteVP(), None, []
    for stage in stages:
        if len(stage) != 2:
            raise ValueError(mistake("stages", "pairs (diffusion index, denoising steps)", stage))
        m = whole("stages", stage[0], minimum=1, maximum=schedule.n - 1)
        n = whole("stages", stage[1], minimum=1, maximum=m)
        steps = strided(spaced_indices(m - 1, n, "trailing"), eta, clip_x0, schedule)
        once = forward_diffusion(schedule.alpha_bar(m)) + steps
        table = once if table is None else table + once
        kept.append((m, n))
    if table is None:
        raise ValueError(mistake("stages", "at least one stage", "none"))
    return Method.of(table, None, clip_output, resolved={"stages": tuple(kept)})


@method()
def one_shot(
    sigma: float = 0.25, schedule: str = "linear", clip_x0: bool = True, clip_output: bool = True
) -> Method:
    """One-shot denoising (Carlini et al. 2022, denoised smoothing): diffuse, predict the clean image in one call.

    ``sigma`` is the smoothing noise in [0, 1] units; the step is the first of the chain whose noise is at least
    that, so the image gets at least ``sigma``. ``schedule`` "linear" (1000 steps) or "cosine" (4000 steps, the improved
    diffusion model of the paper). Defence of a certificate, not an empirical one.
    """
    positive("sigma", sigma)
    chain: IndexedSchedule = SCHEDULES[one_of("schedule", schedule, SCHEDULES)]()
    index = smoothing_index(sigma, chain)
    table: StepTable = forward_diffusion(chain.alpha_bar(index)) + strided([index], 0.0, clip_x0, chain)
    return Method.of(table, None, clip_output, schedule=schedule)


def smoothing_index(sigma: float, chain: IndexedSchedule) -> int:
    """The first index i with sqrt((1 - abar_i) / abar_i) >= 2 sigma, sigma in [0, 1] units."""
    for i in range(chain.n):
        power = chain.alpha_bar(i)
        if 1.0 - power >= (2.0 * sigma) ** 2 * power:
            return i
    raise ValueError(mistake("sigma", "at most the noise at the end of the schedule", sigma))
