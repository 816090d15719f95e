"""COUP (Zhang et al., arXiv 2408.05900). Constants from the paper and its code, ZhangMingKun1/COUP 88fa31b."""

from __future__ import annotations

from .parts import (
    CIFAR10_512,
    DDPM,
    DDPMPP,
    EPS,
    WRN_28_10,
    ClassifierSpec,
    DataSpec,
    MethodSpec,
    Published,
    autoattack,
    bpda,
    pgd,
)
from .preset import Preset

_AA = "AutoAttack, min of rand and standard, one draw, torchsde adjoint without the guidance's Hessian"
_NOTES = (
    "the released attack sees the guidance as a constant; attacks('adaptive') differentiate through it",
    "published with seed 121, whose noise is not this library's",
)


def _method(t: float) -> MethodSpec:
    settings = (("t", t), ("dt", 1e-3), ("scale", 1.0), ("label", "step"), ("clip_output", True))
    return MethodSpec("coup", settings, "classifier")


PRESETS = (
    Preset(
        "coup-cifar10-linf",
        "COUP (Zhang et al. 2024), CIFAR-10 Linf 8/255, WRN-28-10",
        _method(0.1),
        DDPMPP,
        WRN_28_10,
        CIFAR10_512,
        (*autoattack("Linf", EPS, "adjoint"), bpda("Linf", EPS, 20, 20, None), pgd("Linf", EPS)),
        (
            Published(_AA, 90.04, 73.05, "COUP Table 1", "P"),
            Published(
                "BPDA (PGD-20)", 90.04, 83.20, "COUP Table 3", "P", "its EOT and step are not recoverable"
            ),
            Published("PGD-200 EOT-20, full gradient", 90.33, 41.72, "MAE-Pure (anonymous submission)", "S"),
            Published("no purification, any attack", 96.09, 0.0, "COUP", "P"),
        ),
        _NOTES,
    ),
    Preset(
        "coup-cifar10-l2",
        "COUP (Zhang et al. 2024), CIFAR-10 L2 0.5, WRN-28-10",
        _method(0.075),
        DDPMPP,
        WRN_28_10,
        CIFAR10_512,
        (*autoattack("L2", 0.5, "adjoint"), pgd("L2", 0.5, step_size=None)),
        (
            Published(_AA, 92.58, 83.13, "COUP Table 2", "P"),
            Published(
                "PGD-200 EOT-20, full gradient",
                90.33,
                57.25,
                "MAE-Pure (anonymous submission)",
                "S",
                "L2 1.0",
            ),
        ),
        _NOTES,
    ),
    Preset(
        "coup-cifar100-lm",
        "COUP with likelihood maximisation (Zhang et al. 2024), CIFAR-100",
        MethodSpec("likelihood_max", (("n_iter", 5), ("lr", 0.1), ("sigma", (0.4, 0.6))), "classifier", "R"),
        DDPM,
        ClassifierSpec("a CIFAR-100 classifier; which one is not recoverable", (("normalise", "cifar100"),)),
        DataSpec("cifar100", 512, 0, note="the subset is not recoverable"),
        (pgd("Linf", EPS),),
        (
            Published("APGD-CE", None, 40.55, "COUP", "P"),
            Published("APGD-CE, likelihood maximisation alone", None, 38.67, "COUP", "P"),
            Published("PGD-200 EOT-20, full gradient", 65.71, 15.22, "MAE-Pure (anonymous submission)", "S"),
        ),
        ("its eps, times and weights are not published: the constants are those of likelihood maximisation",),
    ),
)
