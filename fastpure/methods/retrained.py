"""Samplers of denoisers that were trained on attacked images: ADBM and ADDT. The training is in ``fastpure.train``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from ..errors import mistake, one_of, whole
from ..guidance import ClassifierConfidence
from ..schedule import (
    DiscreteVP,
    IndexedSchedule,
    SampledVP,
    StepTable,
    ancestral,
    dpm_solver_strided,
    forward_diffusion,
    predictor_corrector,
    strided,
)
from ..schedule.solvers import check_time
from .base import Method, discrete_index, method, number, spaced_indices, start_index
from .samplers import PredictorCorrector, edm


def _guided(given: Mapping[str, Any]) -> bool:
    return given["classifier"] is not None


CONFIDENCE = dict.fromkeys(("scale", "label", "guidance_grad"), _guided)
"""Settings of COUP's guidance, which mean nothing without a classifier."""


def _ancestral(given: Mapping[str, Any]) -> bool:
    return bool(given["sampler"] == "ddpm")


@method(
    network="classifier",
    steps="n_steps",
    former={"variance": "small"},
    only={**CONFIDENCE, "variance": _ancestral},
)
def adbm(
    t: float = 0.1,
    n_steps: int = 5,
    rounds: int = 1,
    schedule: str = "released",
    sampler: str = "ddim",
    clip_x0: bool = True,
    clip_output: bool = True,
    classifier: nn.Module | None = None,
    scale: float = 1.0,
    label: str = "step",
    guidance_grad: str = "exact",
    variance: str = "large",
) -> Method:
    """ADBM (Li et al.): diffuse, then DDIM in ``n_steps`` steps, for a denoiser trained on its bridge.

    ``schedule`` "released" is the published sampler's: betas from 1e-6 (not 1e-4) to 2e-2, diffusion at index
    1000 t, denoising from one below, the index as label, though the training used the continuous schedule with
    labels 999 t. "training" samples on that schedule instead, diffusion and first step at time t. ``sampler`` "ddpm"
    is ancestral with ``variance`` "large" (the published option) or "small"; "dpm_solver" is DPM-Solver++(2M) over the
    same indices (``schedule.dpm_solver_strided``; that the release offers such a solver is known, its details are
    ours). ``rounds`` repeats the whole. A ``classifier`` adds COUP's guidance to the score with ``scale``, ``label``
    and ``guidance_grad`` as in ``coup``: a combination nobody has published.
    """
    one_of("schedule", schedule, ("released", "training"))
    one_of("sampler", sampler, ("ddim", "ddpm", "dpm_solver"))
    one_of("variance", variance, ("small", "large"))
    whole("rounds", rounds, minimum=1)
    chain: IndexedSchedule = DiscreteVP(beta_start=1e-6) if schedule == "released" else SampledVP()
    first = discrete_index(t)
    start = start_index(t) if schedule == "released" else first
    indices = spaced_indices(first, n_steps, "trailing")
    if sampler == "ddpm":
        steps = ancestral(indices, variance, clip_x0, chain)
    elif sampler == "dpm_solver":
        steps = dpm_solver_strided(indices, clip_x0, chain)
    else:
        steps = strided(indices, 0.0, clip_x0, chain)
    once = forward_diffusion(chain.alpha_bar(start)) + steps
    table = once
    for _ in range(rounds - 1):
        table = table + once
    made = Method.of(table, None, clip_output)
    return made if classifier is None else _confident(made, classifier, scale, label, guidance_grad)


def _confident(made: Method, classifier: nn.Module, scale: float, label: str, grad: str) -> Method:
    """``made`` with COUP's gradient added to the score."""
    return replace(
        made,
        steps=made.steps.guided(number("scale", scale)),
        guidance=ClassifierConfidence(classifier, label, grad),
        note="with COUP's guidance",
    )


@method(
    network="classifier",
    steps="n_steps",
    since={"corrector": True},
    only={
        **CONFIDENCE,
        "strength": lambda given: given["sampler"] != "edm",
        "corrector": lambda given: given["sampler"] == "vp",
    },
)
def addt(
    sampler: str = "ddpm",
    n_steps: int | None = None,
    strength: float = 0.1,
    clip_output: bool | None = None,
    classifier: nn.Module | None = None,
    scale: float = 1.0,
    label: str = "step",
    guidance_grad: str = "exact",
    corrector: bool = True,
) -> Method:
    """ADDT (Liu et al.): the samplers under which denoisers trained with it are published.

    "ddpm" (variance beta) and "ddim" walk the last part of ``n_steps`` leading timesteps, from position
    round((1 - strength) n_steps) - 1: with 1000 steps indices 100..0, with 100 indices 100, 90, ..., 0. "vp" is
    ``vp_sde``, "edm" is ``edm`` (whose ``strength`` is not used). ``corrector`` False leaves the predictors of "vp"
    alone, as the released code does where the attacker knows the noise (DW-box). ``n_steps`` None: 1000, for edm 50.
    ``clip_output`` None: as published, which is unclamped for "vp" and clamped otherwise. A ``classifier`` adds COUP's
    guidance, as in ``adbm``, to any but "vp".
    """
    one_of("sampler", sampler, ("ddpm", "ddim", "vp", "edm"))
    if classifier is not None and sampler == "vp":
        remedy = "COUP itself, fastpure.methods.coup, takes an ADDT-trained denoiser too"
        raise ValueError(mistake("sampler", "'ddpm', 'ddim' or 'edm' with a classifier", "'vp'", remedy))
    n = n_steps if n_steps is not None else 50 if sampler == "edm" else 1000
    clip = clip_output if clip_output is not None else sampler != "vp"
    procedure = PredictorCorrector() if sampler == "vp" and corrector else None
    resolved = {"n_steps": n, "clip_output": clip}
    made = Method.of(_published(sampler, n, strength, corrector), None, clip, procedure, resolved=resolved)
    return made if classifier is None else _confident(made, classifier, scale, label, guidance_grad)


def _published(sampler: str, n: int, strength: float, corrector: bool) -> StepTable:
    if sampler == "edm":
        return edm(n_steps=n).steps
    if sampler == "vp":
        return predictor_corrector(strength, n, corrector=corrector)
    indices = leading_indices(strength, n)
    steps = ancestral(indices, "large") if sampler == "ddpm" else strided(indices)
    return forward_diffusion(DiscreteVP().alpha_bar(indices[0])) + steps


def leading_indices(strength: float, n_steps: int, n: int = 1000) -> list[int]:
    """The last part of ``n_steps`` leading timesteps k (n // n_steps), descending: ADDT's way to start at 0.1."""
    check_time(strength, "strength")
    whole("n_steps", n_steps, minimum=1, maximum=n)
    start = max(round((1.0 - strength) * n_steps) - 1, 0)
    stride = n // n_steps
    return [k * stride for k in range(n_steps - 1 - start, -1, -1)]
