"""Methods that pull the reverse process towards the attacked image: GDMP, AGDM-style, DiffPure's Langevin variant."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from ..errors import one_of, positive, whole
from ..guidance import (
    Attraction,
    AuxiliaryLatent,
    Guidance,
    SquaredError,
    StructuralSimilarity,
)
from ..schedule import (
    DiscreteVP,
    exponential_sde,
    forward_diffusion,
    reverse_sde,
)
from ..schedule import langevin as langevin_table
from .base import Method, discrete_index, method, number, spaced_indices, start_index
from .learned import pulled_chain

GUIDE_SCALES = {"mse": 6e4, "ssim": 7e4}
"""GDMP's default strength by metric."""


@method(
    since={"begin": "below"},
    former={"data_range": 2.0},
    only={"data_range": lambda given: given["metric"] == "ssim"},
)
def gdmp(
    t: float = 0.036,
    rounds: int = 4,
    metric: str = "mse",
    guide_scale: float | None = None,
    ptb: float = 8.0,
    reference_batch: int = 100,
    variance: str = "large",
    guide: str = "noised",
    chain: int = 1000,
    begin: str = "below",
    guidance_grad: str = "exact",
    clip_output: bool = True,
    data_range: float = 1.0,
) -> Method:
    """GDMP (Wang et al. 2022): ``rounds`` times diffuse and come back with DDPM, pulled towards the attacked image.

    Each round diffuses at index 1000 t and begins to denoise one below, as published for CIFAR-10; ``begin`` "level"
    denoises at the diffused index too, as published for ImageNet. At index i the mean moves by
    variance_i sqrt(1 - abar_i) / (m sqrt(abar_i)) times the gradient of minus the mean squared error ("mse") or of
    SSIM ("ssim") between the state and the ORIGINAL input, ``guide`` "noised" to the same level with fresh noise or
    "clean"; m = 2 ptb / (765 guide_scale). ``guide_scale`` None is 6e4 for mse, 7e4 for ssim. SSIM's constants are
    (0.01 ``data_range``)^2 and (0.03 ``data_range``)^2: published with 1, though images in [-1, 1] have range 2.

    The published code averages over the whole batch, so its pull depends on the batch size. Here every image
    has its own mean, divided by the constant ``reference_batch``: 100 reproduces batches of 100. On images much
    smaller than 32x32 a small ``reference_batch`` makes the pull overshoot and diverge. ``guidance_grad``
    "no_guide_path" leaves out what an attacker gains through the guide, "detached" the whole guidance.

    ``variance`` "large" is beta, "small" the posterior variance, "learned" the one between them that the network says
    (Nichol and Dhariwal 2021) and so of denoisers with ``learned_sigma`` alone. ``chain`` below 1000 walks that many
    evenly spaced steps of the chain, of which t is a part. The ImageNet setting is t=0.176, chain=250, begin="level",
    variance="learned", metric="ssim", guide_scale=1000, ptb=4, guide="clean": 45 steps from index 44 of 250, which is
    177 of 1000.
    """
    one_of("metric", metric, GUIDE_SCALES)
    strength = positive("guide_scale", GUIDE_SCALES[metric] if guide_scale is None else guide_scale)
    whole("rounds", rounds, minimum=1)
    schedule, spaced = DiscreteVP(), _respaced(chain)
    start = start_index(t, chain)
    first = start - 1 if one_of("begin", begin, ("below", "level")) == "below" else start
    indices = spaced[first::-1]
    guidance: Guidance
    if metric == "mse":
        guidance = SquaredError(reference_batch, guide, guidance_grad)
    else:
        guidance = StructuralSimilarity(
            reference_batch, guide, data_range=float(data_range), grad=guidance_grad
        )
    m = positive("ptb", ptb) * 2.0 / 255.0 / 3.0 / strength
    powers = [schedule.alpha_bar(i) for i in indices]
    scales = [math.sqrt((1.0 - power) / power) / m for power in powers]
    steps, procedure = pulled_chain(indices, variance, True, scales)
    once = forward_diffusion(schedule.alpha_bar(spaced[start])) + steps
    table = once
    for _ in range(rounds - 1):
        table = table + once
    return Method.of(table, guidance, clip_output, procedure, resolved={"guide_scale": strength})


def _respaced(chain: int) -> list[int]:
    """``chain`` of the 1000 indices, evenly spaced, both ends among them; ascending."""
    return spaced_indices(999, whole("chain", chain, minimum=2, maximum=1000), "linspace")[::-1]


def _ancestral(given: Mapping[str, Any]) -> bool:
    return bool(given["sampler"] == "ddpm")


@method(
    network="auxiliary",
    steps="dt",
    since={"distance": "mse", "chain": 1000},
    former={"latent": "penultimate"},
    only={
        "dt": lambda given: not _ancestral(given),
        **dict.fromkeys(("variance", "clip_x0", "chain"), _ancestral),
    },
    order=("t", "scale", "eta", "sampler", "dt", "variance", "clip_x0"),
)
def agdm(
    auxiliary: nn.Module,
    t: float = 0.07,
    scale: float = 1.0,
    eta: float = 1.0,
    sampler: str = "ddpm",
    dt: float = 1e-3,
    label: str = "input",
    features: str = "clean",
    variance: str = "large",
    clip_x0: bool = True,
    guidance_grad: str = "exact",
    clip_output: bool = True,
    latent: str = "logits",
    distance: str = "mse",
    chain: int = 1000,
) -> Method:
    """AGDM-style (after Lin et al., arXiv 2403.16067): guided by an auxiliary network's classes and latents.

    g is the gradient of log p_y - ``eta`` D(c(input), c(state)), times one ``scale``. In the paper, by a public summary
    of it, c are the logits that p is made of, D is a distance between them and there is one scale: ``latent`` "logits"
    and ``eta`` 1. ``distance`` "mse" is their mean squared difference, "kl" the divergence of the softmax. ``latent``
    "penultimate" compares the features behind the logits instead, this library's earlier reading. No code was
    published and the constants (scale, ``variance``, which class y) are ours: report results as "AGDM-style".

    ``auxiliary`` takes [0, 1] images to logits and should be trained with ``train.TradesLoss`` and the same distance
    (`fastpure train trades`); for "penultimate" it offers ``features_and_logits`` too
    (``fastpure.classifiers.FeatureHead`` adds it to any classifier).

    ``sampler`` "ddpm" adds scale variance_i g at each index, "sde" scale beta dt g at each Euler step of ``dt``,
    "exponential" as much in steps of ``schedule.exponential_sde``. ``chain`` below 1000 walks that many evenly spaced
    steps of the chain, of which t is a part; ``variance`` as in ``gdmp``. ``label``, ``features``: see
    ``guidance.AuxiliaryLatent``. Tune ``scale`` on images that are not evaluated.
    """
    guidance = AuxiliaryLatent(auxiliary, eta, label, features, guidance_grad, latent, distance)
    weight, start, procedure = number("scale", scale), discrete_index(t), None
    one_of("sampler", sampler, ("ddpm", "sde", "exponential"))
    if sampler != "ddpm":
        table = (reverse_sde if sampler == "sde" else exponential_sde)(t, dt).guided(weight)
    else:
        indices = _respaced(chain)[discrete_index(t, chain) :: -1]
        start = indices[0]
        table, procedure = pulled_chain(indices, variance, clip_x0, [weight] * len(indices))
    table = forward_diffusion(DiscreteVP().alpha_bar(start)) + table
    return Method.of(table, guidance, clip_output, procedure, note="AGDM-style: no code was published")


@method(steps="n_steps")
def langevin(
    t: float = 0.01,
    n_steps: int = 100,
    dt: float = 0.01,
    rate: float = 0.01,
    variance: float = 1e-3,
    temperature: float = 5.0,
    guidance_grad: str = "exact",
    clip_output: bool = False,
) -> Method:
    """DiffPure's Langevin variant (LDSDE; Nie et al. 2022): Langevin dynamics at one time, attracted to the input.

    dx = (rate / 2) (score_t(x) + (input - x) / variance) ds + temperature sqrt(rate) dw, ``n_steps`` Euler steps of
    ``dt``, begun at the input. The constants are those of the published code; the arrangement of the terms is
    this library's reading.
    """
    table = langevin_table(t, dt, n_steps, rate, temperature)
    note = "terms arranged as this library reads them"
    return Method.of(table, Attraction(variance, guidance_grad), clip_output, note=note)
