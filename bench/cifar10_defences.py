"""What `bench.robustness_cifar10` attacks and with what: defences and attacks by name."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

import fastpure as fp
from fastpure.attacks.base import Attack

T, STEPS, IMAGES, SWEEP_IMAGES = 0.1, 4, 128, 64
DT = T / STEPS
EPS, EPS_L2 = 8 / 255, 0.5
PRECISION = "bf16"
SOLVER = "exponential"
SCALES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
BEST = 16.0
"""The scale with the highest worst case of the sweep, see `bench.robustness_cifar10`."""
TIMES = (0.05, 0.15, 0.2)

BUDGET = 64.0
PGD = {"n_iter": 20, "eot_iter": 2}

ADAPTIVE, ADAPTIVE_L2 = "Adaptive Linf", "Adaptive L2"
EXACT = "PGD-10, EOT 2"
CORRUPTED = "salt and pepper"
STANDARD = "AutoAttack standard Linf"
TRAINED = "adversarially trained"
"""A classifier that withstands something by itself, with no purifier."""

ATTACKS: dict[str, Callable[[], Attack | None]] = {
    ADAPTIVE: lambda: fp.attacks.Adaptive(norm="Linf", eps=EPS, budget=BUDGET),
    ADAPTIVE_L2: lambda: fp.attacks.Adaptive(norm="L2", eps=EPS_L2, budget=BUDGET),
    "PGD Linf": lambda: fp.attacks.PGD(norm="Linf", eps=EPS, **PGD),
    "PGD Linf, detached": lambda: fp.attacks.PGD(norm="Linf", eps=EPS, gradient="detached", **PGD),
    STANDARD: lambda: fp.attacks.AutoAttack(version="standard", norm="Linf", eps=EPS),
    CORRUPTED: lambda: fp.controls.SaltAndPepper(),
    **{
        f"PGD-{n_iter}, EOT {eot_iter}{', ' + gradient if gradient != 'exact' else ''}": (
            lambda n=n_iter, e=eot_iter, g=gradient: fp.attacks.PGD(
                norm="Linf", eps=EPS, n_iter=n, eot_iter=e, gradient=g
            )
        )
        for n_iter, eot_iter, gradient in (
            *((10, eot, "exact") for eot in (1, 2, 4, 8)),
            *((n, 2, "exact") for n in (5, 20, 40)),
            (10, 2, "detached"),
            (10, 2, "bpda"),
        )
    },
}


def classifier() -> nn.Module:
    return fp.load_classifier("cifar10-small")


def defended(method: fp.methods.Method, denoiser: str = "cifar10-small") -> fp.Defense:
    purifier = fp.Purifier(fp.load_denoiser(denoiser), method, seed=0, precision=PRECISION)
    return fp.Defense(purifier, classifier())


def diffpure(t: float = T) -> fp.Defense:
    return defended(fp.methods.diffpure(t, DT, solver=SOLVER))


def coup(scale: float, t: float = T) -> fp.Defense:
    return defended(fp.methods.coup(classifier(), t, DT, scale=scale, solver=SOLVER))


def coup_name(scale: float) -> str:
    return f"COUP scale {scale:g}"


DEFENCES: dict[str, Callable[[], nn.Module]] = {
    "none": classifier,
    TRAINED: lambda: fp.load_classifier("cifar10-aux"),
    "DiffPure": diffpure,
    "COUP unguided": lambda: defended(fp.methods.coup_unguided(T, DT, solver=SOLVER)),
    **{coup_name(scale): lambda s=scale: coup(s) for scale in SCALES},
    # The published scale 6e4: a step over 25 indices has 25 times the variance, so the whole pull stays the same. In so
    # few steps the larger of the two variances leaves visible noise, as Euler-Maruyama does.
    "GDMP": lambda: defended(
        fp.methods.gdmp(t=T, rounds=1, chain=round(STEPS / T), begin="level", variance="small")
    ),
    # The results are of penultimate features, though the paper's distance is one of logits.
    "AGDM-style": lambda: defended(
        fp.methods.agdm(
            fp.load_classifier("cifar10-aux"), t=T, dt=DT, sampler=SOLVER, scale=1.0, latent="penultimate"
        )
    ),
    "DDIM": lambda: defended(fp.methods.addt("ddim", round(STEPS / T), T)),
    "ADDT (DDIM)": lambda: defended(fp.methods.addt("ddim", round(STEPS / T), T), "cifar10-addt"),
    "ADBM": lambda: defended(fp.methods.adbm(t=T, n_steps=STEPS), "cifar10-adbm"),
    **{f"DiffPure t={t:g}": lambda t=t: diffpure(t) for t in TIMES},
    **{f"{coup_name(1.0)} t={t:g}": lambda t=t: coup(1.0, t) for t in TIMES},
}
