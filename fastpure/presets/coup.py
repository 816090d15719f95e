"""COUP (Zhang et al., arXiv 2408.05900). Constants from the paper and its code, ZhangMingKun1/COUP 88fa31b."""

from __future__ import annotations

from .parts import (
    CIFAR10_512,
    DDPMPP,
    EPS,
    ONE_DRAW,
    WANG,
    WRN_28_10,
    WRN_70_16,
    ClassifierSpec,
    DataSpec,
    DenoiserSpec,
    MethodSpec,
    Published,
    apgd_ce,
    autoattack,
    bpda,
    pgd,
)
from .preset import Preset

_AA = "AutoAttack, min of rand and standard, one draw, torchsde adjoint without the guidance's Hessian"
_MAE = "MAE-Pure (anonymous submission)"
_SEED = "published with seed 121, whose noise is not this library's"
_NOTES = (
    "the released attack sees the guidance as a constant; attacks('adaptive') differentiate through it",
    _SEED,
)
_CE = apgd_ce("Linf", EPS, "adjoint", "its draws per gradient and its decision are not stated: AutoAttack's")
_CROSS = (
    "the paper's cross-threat experiments were not available: this arrangement is ours, no number is quoted",
    *_NOTES,
)

_LM = (("n_iter", 5), ("lr", 0.1), ("sigma", (0.4, 0.6)))
_LM_ATTACKS = (
    apgd_ce("Linf", EPS, "exact", "its eps, gradient, draws and decision are not recoverable: ours"),
    pgd("Linf", EPS),
)
_CIFAR100 = (
    DenoiserSpec("a DDPM-type diffusion model of CIFAR-100; which one is not recoverable"),
    ClassifierSpec("a CIFAR-100 classifier; which one is not recoverable", (("normalise", "cifar100"),)),
    DataSpec("cifar100", 512, 0, note="the subset is not recoverable"),
)
_LM_NOTE = (
    "its eps, times, weights and networks are not published: the constants are those of likelihood maximisation "
    "(Chen et al. 2023), whose denoiser is told noise levels"
)


def _method(t: float, tag: str = "C") -> MethodSpec:
    settings = (("t", t), ("dt", 1e-3), ("scale", 1.0), ("label", "step"), ("clip_output", True))
    return MethodSpec("coup", settings, "classifier", tag)


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
            Published("PGD-200 EOT-20, full gradient", 90.33, 41.72, _MAE, "S"),
            Published("PGD-200 EOT-20, full gradient, on SVHN", 92.07, 41.62, _MAE, "S"),
            Published("no purification, any attack", 96.09, 0.0, "COUP", "P"),
            Published(
                "salt and pepper noise, 500 images", None, 93.00, "COUP", "P", "its amount is not recoverable"
            ),
            Published("salt and pepper noise, 500 images, without guidance", None, 92.60, "COUP", "P"),
            Published("salt and pepper noise, 500 images, no purification", None, 87.80, "COUP", "P"),
        ),
        _NOTES,
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar10-linf-wrn70",
        "COUP (Zhang et al. 2024), CIFAR-10 Linf 8/255, WRN-70-16",
        _method(0.1),
        DDPMPP,
        WRN_70_16,
        CIFAR10_512,
        (_CE, pgd("Linf", EPS)),
        (),
        ("the values of the paper's figure are not available: no number is quoted", *_NOTES),
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar10-linf-wrn70-unguided",
        "COUP without guidance, its ablation (Zhang et al. 2024), CIFAR-10 Linf 8/255, WRN-70-16",
        MethodSpec("coup_unguided", (("t", 0.1), ("dt", 1e-3), ("clip_output", True))),
        DDPMPP,
        WRN_70_16,
        CIFAR10_512,
        (_CE, pgd("Linf", EPS)),
        (),
        (
            "the paper says that it beats DiffPure under APGD-CE; the values of its figure are not available",
            "which classifier the figure shows is not stated: the one the code attacks with APGD-CE",
            _SEED,
        ),
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar10-linf-at",
        "COUP guided by an adversarially trained classifier (Zhang et al. 2024), CIFAR-10 Linf 8/255",
        _method(0.1, "R"),
        DDPMPP,
        WANG,
        CIFAR10_512,
        (_CE, pgd("Linf", EPS)),
        (
            Published("APGD-CE", None, 77.15, "COUP", "P", "clean accuracy not recoverable"),
            Published("APGD-CE, the adversarially trained classifier alone", 92.44, 70.90, "COUP", "P"),
        ),
        (
            "which of Wang et al.'s networks it is is not stated; t and scale are those of the main table",
            *_NOTES,
        ),
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar10-l2-at",
        "COUP guided by a classifier trained against Linf, attacked in L2 0.5 (cross-threat), CIFAR-10",
        _method(0.075, "R"),
        DDPMPP,
        WANG,
        CIFAR10_512,
        (pgd("L2", 0.5, step_size=None),),
        (),
        _CROSS,
    ),
    Preset(
        "coup-cifar10-l2-cross",
        "COUP set for Linf 8/255, attacked in L2 0.5 (cross-threat), CIFAR-10, WRN-28-10",
        _method(0.1, "R"),
        DDPMPP,
        WRN_28_10,
        CIFAR10_512,
        (pgd("L2", 0.5, step_size=None),),
        (),
        _CROSS,
    ),
    Preset(
        "coup-cifar10-linf-cross",
        "COUP set for L2 0.5, attacked in Linf 8/255 (cross-threat), CIFAR-10, WRN-28-10",
        _method(0.075, "R"),
        DDPMPP,
        WRN_28_10,
        CIFAR10_512,
        (pgd("Linf", EPS),),
        (),
        _CROSS,
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
            Published("PGD-200 EOT-20, full gradient", 90.33, 57.25, _MAE, "S", "L2 1.0"),
            Published("PGD-200 EOT-20, full gradient, on SVHN", 92.07, 63.97, _MAE, "S", "L2 1.0"),
        ),
        _NOTES,
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar100-lm",
        "COUP with likelihood maximisation (Zhang et al. 2024), CIFAR-100",
        MethodSpec("likelihood_max", _LM, "classifier", "R"),
        *_CIFAR100,
        _LM_ATTACKS,
        (
            Published("APGD-CE", None, 40.55, "COUP", "P"),
            Published("APGD-CE, likelihood maximisation alone", None, 38.67, "COUP", "P"),
            Published(
                "PGD-200 EOT-20, full gradient",
                65.71,
                15.22,
                _MAE,
                "S",
                "COUP on CIFAR-100; whether by likelihood maximisation is not stated",
            ),
            Published("PGD-200 EOT-20, full gradient", 65.71, 34.28, _MAE, "S", "the same in L2 1.0"),
        ),
        (_LM_NOTE,),
        ONE_DRAW,
    ),
    Preset(
        "coup-cifar100-lm-unguided",
        "Likelihood maximisation alone, as COUP compares with it (Zhang et al. 2024), CIFAR-100",
        MethodSpec("likelihood_max", _LM, None, "R"),
        *_CIFAR100,
        _LM_ATTACKS,
        (Published("APGD-CE", None, 38.67, "COUP", "P"),),
        (_LM_NOTE,),
        ONE_DRAW,
    ),
)
