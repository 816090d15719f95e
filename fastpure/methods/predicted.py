"""Steered by the predicted clean image: MimicDiffusion, samplers of the kind of DPS and DiffAP, FreqPure.

The first two differentiate the denoiser, once to purify and twice to attack; FreqPure only looks at its answer.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..errors import mistake, one_of, whole
from ..guidance import CleanDistance, FrequencyCorrection
from ..guidance.clean import NORMS
from ..norms import norm_called
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
    norm = norm_called("norm", norm, NORMS)
    guidance = CleanDistance(norm, grad=guidance_grad)
    note = "DPS-type: weights and steps are this library's"
    return Method.of(
        table, guidance, clip_output, note=note, resolved={"n_steps": len(indices), "norm": norm}
    )


@method(steps="n_steps")
def freqpure(
    t: float = 0.1,
    n_steps: int | None = None,
    amplitude_radius: float = 3.0,
    phase_radius: float = 2.0,
    delta: float = 0.2,
    guide_t: float | None = None,
    noise: str = "predicted",
    eta: float = 1.0,
    clip_x0: bool = False,
    guidance_grad: str = "exact",
    clip_output: bool = True,
) -> Method:
    """FreqPure (ICML 2025): diffuse and come back, low frequencies of each predicted image tied to the input's.

    Per channel of the predicted image's Fourier transform: within ``amplitude_radius`` of the zero frequency the
    amplitude becomes that of a guide, within ``phase_radius`` the phase is held within ``delta`` radians of the
    guide's. The guide is one denoised draw of the input at time ``guide_t`` (None: ``t``), with noise of its own. A
    step goes on with the corrected image and with the ``noise`` "predicted" (what the denoiser said) or "implied" (what
    the corrected image leaves of the state); ``eta`` 1 is DDPM, 0 DDIM.

    In the released code the phases are copied before they are clipped, so the clip does nothing; here it clips. The
    gradient goes through every correction and through the guide, which is the attacked image's; ``guidance_grad``
    "no_guide_path" leaves out the guide, "detached" the derivative of the corrections too. Ours, for want of a source:
    steps, radii, ``delta``, ``guide_t`` and "predicted".
    """
    start, schedule = discrete_index(t), DiscreteVP()
    indices = spaced_indices(start, n_steps if n_steps is not None else start + 1, "trailing")
    implied = one_of("noise", noise, ("predicted", "implied")) == "implied"
    table = strided(indices, eta, clip_x0).corrected(implied)
    guide = t if guide_t is None else guide_t
    power = schedule.alpha_bar(discrete_index(guide, argument="t" if guide_t is None else "guide_t"))
    guidance = FrequencyCorrection(
        math.sqrt((1.0 - power) / power), amplitude_radius, phase_radius, delta, clip_x0, guidance_grad
    )
    table = forward_diffusion(schedule.alpha_bar(start)) + table
    return Method.of(
        table, guidance, clip_output, resolved={"n_steps": len(indices), "guide_t": float(guide)}
    )
