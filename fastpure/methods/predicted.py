"""Guided by the predicted clean image: MimicDiffusion, and samplers of the kind of DPS and DiffAP.

The guidance is differentiated through the denoiser, once to purify and twice to attack.
"""

from __future__ import annotations

from dataclasses import replace

from ..errors import mistake, one_of, whole
from ..guidance import CleanDistance
from ..guidance.clean import NORMS
from ..schedule import DiscreteVP, Row, StepTable, forward_diffusion, strided
from .base import Method, discrete_index, method, number, spaced_indices

MIMIC_CHAIN = 100
"""MimicDiffusion's window counts hundredths of the chain."""


@method(steps="n_steps")
def mimic(
    n_steps: int = 100,
    scale: float = 3000.0,
    window: tuple[float, float] = (20, 90),
    pooled: int = 4,
    reduction: str = "mean",
    eta: float = 1.0,
    clip_x0: bool = True,
    width: float = 0.1,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """MimicDiffusion (arXiv 2312.04802): an image made from pure noise, pulled towards the input by its prediction.

    Nothing of the input is diffused. At step k the state moves by -``scale`` sqrt(abar) times the gradient by the state
    of the L1 distance between predicted clean image and input, where ``window``[0] < k < ``window``[1]; the same of
    both images averaged over squares of side ``pooled`` is added (1: not). k counts down from 100 to 0 whatever
    ``n_steps`` is. The denoiser must know every noise level.

    Ours, for want of a source: ``n_steps`` and ``eta`` of the sampler (1 is DDPM), k as hundredths of the chain, the
    distance as a mean over an image's values (``reduction`` "sum": their sum, which moves every pixel by thousands).

    The distance's gradient consists of signs, so the whole method is constant in its input almost everywhere: its
    exact gradient is zero, and that an attack by exact gradients fails says nothing. ``guidance_grad`` "smoothed"
    purifies alike and gives an attacker a derivative, that of signs rounded over ``width``; "no_guide_path" and
    "detached" as in ``gdmp``.
    """
    if not isinstance(window, tuple | list) or len(window) != 2 or not 0 <= window[0] < window[1]:
        raise ValueError(mistake("window", "two steps (low, high), 0 <= low < high", repr(window)))
    schedule = DiscreteVP()
    indices = spaced_indices(schedule.n - 1, whole("n_steps", n_steps, minimum=1), "trailing")
    weight, rows = number("scale", scale), []
    for position, row in zip(range(n_steps - 1, -1, -1), strided(indices, eta, clip_x0).rows, strict=True):
        inside = window[0] < MIMIC_CHAIN * position / n_steps < window[1]
        rows.append(replace(row, c=weight * row.alpha if inside else 0.0))
    table = StepTable((Row(a=0.0, d=1.0, forward=True), *rows))
    guidance = CleanDistance("l1", reduction, pooled, width, guidance_grad)
    return Method.of(table, guidance, clip_output, resolved={"window": tuple(window)})


@method(steps="n_steps")
def dps(
    t: float = 0.1,
    n_steps: int | None = None,
    scale: float = 1.0,
    norm: str = "l2",
    eta: float = 1.0,
    clip_x0: bool = False,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """DPS-type (the kind of DPS, FreeDoM and DiffAP): diffuse, come back, pulled towards the input by the prediction.

    At every step the state also moves by -``scale`` times the gradient by the state, through the denoiser, of the
    distance between predicted clean image and input: ``norm`` "l2" (its L2 norm), "squared" (the square of that) or
    "l1". ``n_steps`` of the chain's 1000 t (None: all), ``eta`` 1 is DDPM and 0 DDIM.

    The distance is what these methods share; weights, schedule and steps are ours, so call results "DPS-type".
    ``guidance_grad`` as in ``gdmp``; with "l1" the warning at ``mimic`` holds for the guidance.
    """
    start = discrete_index(t)
    indices = spaced_indices(start, n_steps if n_steps is not None else start + 1, "trailing")
    steps = strided(indices, eta, clip_x0)
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + steps.pulled(
        [number("scale", scale)] * len(steps)
    )
    guidance = CleanDistance(one_of("norm", norm, NORMS), grad=guidance_grad)
    note = "DPS-type: weights and steps are this library's"
    return Method.of(table, guidance, clip_output, note=note, resolved={"n_steps": len(indices)})
