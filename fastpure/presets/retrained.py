"""Retrained denoisers (ADBM, ADDT) and other processes (likelihood maximisation, gradual noise, ADP)."""

from __future__ import annotations

from .parts import (
    BY_POSITION,
    CIFAR10_512,
    DDPMPP_INDEXED,
    EDM,
    EPS,
    WRN_28_10,
    WRN_70_16,
    AttackSpec,
    ClassifierSpec,
    DataSpec,
    DenoiserSpec,
    MethodSpec,
    Published,
    bpda,
    hammered,
    pgd,
)
from .preset import Preset

_ADBM = MethodSpec("adbm", (("t", 0.1), ("n_steps", 5), ("rounds", 1), ("schedule", "released")))
_ADBM_WEIGHTS = DenoiserSpec("ADBM's fine-tuned DDPM++ (EMA)", "index")
_ADBM_IMAGES = DataSpec("cifar10", 512, 42, note="published: a shuffled loader with seed 42, another choice")
_ORIGIN = ClassifierSpec(
    "WRN-28-10 origin.t7, normalised with std (0.2023, 0.1994, 0.2010)",
    (("architecture", "wrn-28-10"), ("normalise", ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)))),
)
_PICKLED = "origin.t7 is a pickled module, which is never loaded: save its state dict with its own code first"
_FIRST_1024 = DataSpec("cifar10", 1024, choice="first")
_LM_ATTACK = AttackSpec("apgd-dlr", (("norm", "Linf"), ("eps", EPS), ("gradient", "bpda")))
_DW = AttackSpec("dw-pgd", (("norm", "Linf"), ("eps", EPS), ("n_iter", 20), ("step_size", 2 / 255)))

PRESETS = (
    Preset(
        "adbm-cifar10-linf",
        "ADBM (Li et al.), CIFAR-10 Linf 8/255, WRN-70-16",
        _ADBM,
        _ADBM_WEIGHTS,
        WRN_70_16,
        _ADBM_IMAGES,
        (
            pgd("Linf", EPS, role="published", random_start=True),
            pgd("Linf", EPS, random_start=True),
        ),
        (
            Published("PGD-200 EOT-20", 91.90, 47.70, "MAE-Pure", "S"),
            Published("PGD-200 EOT-20, DiffPure in the same setting", 92.50, 42.20, "MAE-Pure", "S"),
            Published("PGD-200 EOT-20, on SVHN", 93.50, 47.90, "MAE-Pure", "S"),
            Published("BPDA", 91.93, 70.51, "AAOpt", "S"),
        ),
        ("the denoiser is told integer indices, though it was trained with 999 t; as published",),
    ),
    Preset(
        "adbm-cifar10-l2",
        "ADBM (Li et al.), CIFAR-10 L2 1.0, WRN-70-16",
        _ADBM,
        _ADBM_WEIGHTS,
        WRN_70_16,
        _ADBM_IMAGES,
        (
            pgd("L2", 1.0, step_size=None, role="published", random_start=True),
            pgd("L2", 1.0, step_size=None, random_start=True),
        ),
        (
            Published("PGD-200 EOT-20", 91.90, 63.30, "MAE-Pure", "S"),
            Published("PGD-200 EOT-20, DiffPure in the same setting", 92.50, 60.80, "MAE-Pure", "S"),
            Published("PGD-200 EOT-20, on SVHN", 93.50, 65.70, "MAE-Pure", "S"),
        ),
        ("the published L2 attack takes sign steps from starts outside the ball; this one does neither",),
    ),
    Preset(
        "addt-cifar10-linf",
        "ADDT (Liu et al. 2025) with DDPM, CIFAR-10 Linf 8/255, WRN-28-10",
        MethodSpec("addt", (("sampler", "ddpm"), ("n_steps", 1000), ("strength", 0.1))),
        DenoiserSpec("ADDT's fine-tuned DDPM (diffusers UNet2D, EMA)"),
        _ORIGIN,
        _FIRST_1024,
        (pgd("Linf", EPS, 20, 10, 2 / 255, "published"), _DW, pgd("Linf", EPS)),
        (
            Published("on CIFAR-100", 66.02, 18.85, "MAE-Pure", "S"),
            Published("on CIFAR-100", 66.02, 36.57, "MAE-Pure", "S", "in L2"),
        ),
        ("the paper's tables were not available: none of its numbers is quoted", _PICKLED),
    ),
    Preset(
        "addt-vpsde-cifar10-linf",
        "ADDT (Liu et al. 2025) with DiffPure's VP-SDE, CIFAR-10 Linf 8/255, WRN-28-10",
        MethodSpec("addt", (("sampler", "vp"), ("n_steps", 1000), ("strength", 0.1))),
        DenoiserSpec("ADDT's fine-tuned DDPM++ (EMA)"),
        _ORIGIN,
        _FIRST_1024,
        (pgd("Linf", EPS, 20, 10, 2 / 255, "published"), pgd("Linf", EPS)),
        (Published("PGD-200 EOT-20 (claim)", 89.94, 55.76, "MAE-Pure", "S"),),
        ("under DW-box the released code leaves the corrector out: addt-vpsde-dw-cifar10-linf", _PICKLED),
    ),
    Preset(
        "addt-vpsde-dw-cifar10-linf",
        "ADDT (Liu et al. 2025) with the VP-SDE's predictor alone, for DW-box, CIFAR-10 Linf 8/255, WRN-28-10",
        MethodSpec("addt", (("sampler", "vp"), ("n_steps", 1000), ("strength", 0.1), ("corrector", False))),
        DenoiserSpec("ADDT's fine-tuned DDPM++ (EMA)"),
        _ORIGIN,
        _FIRST_1024,
        (_DW, pgd("Linf", EPS)),
        (),
        ("the paper's tables were not available: no number is quoted", _PICKLED),
    ),
    Preset(
        "lm-cifar10-linf",
        "Likelihood maximisation (Chen et al. 2023), CIFAR-10 Linf 8/255, WRN-70-16",
        MethodSpec("likelihood_max", (("n_iter", 5), ("lr", 0.1), ("sigma", (0.4, 0.6)))),
        EDM,
        WRN_70_16,
        CIFAR10_512,
        (_LM_ATTACK, pgd("Linf", EPS)),
        (
            Published("PGD+EOT", 87.89, 71.68, "AAOpt", "S"),
            Published("PGD+EOT", 87.89, 75.00, "AAOpt", "S", "L2 0.5"),
            *hammered("PGD+EOT", 17.99, 9.38, 87.77, 74.61),
            *hammered("DiffAttack or AutoAttack", 32.56, 17.97, 87.77, 74.61),
            *hammered("BPDA", 55.27, 27.54, 87.77, 74.61),
            *hammered("DiffHammer", 16.15, 8.01, 87.77, 74.61),
            *hammered("DiffHammer", 68.54, 41.02, note=BY_POSITION),
        ),
        ("the released default repeats the same noise at every call, so its defence is deterministic",),
    ),
    Preset(
        "gradual-cifar10-linf",
        "Gradual noise (Lee and Kim 2023), CIFAR-10 Linf 8/255, WRN-28-10",
        MethodSpec("gradual", (("stages", ((30, 30),) * 4 + ((50, 50),) * 2 + ((125, 125),) * 2),)),
        DDPMPP_INDEXED,
        WRN_28_10,
        CIFAR10_512,
        (
            AttackSpec(
                "pgd",
                (*pgd("Linf", EPS).settings, ("gradient", "surrogate")),
            ),
            pgd("Linf", EPS),
        ),
        (
            Published("PGD-200 EOT-20, surrogate", 90.16, 55.82, "AAOpt", "S"),
            Published("AutoAttack", 90.16, 70.47, "AAOpt", "S"),
        ),
        (
            "published predictions are the majority of 10 runs: a protocol of the evaluation, not of the method",
        ),
    ),
    Preset(
        "adp-cifar10-linf",
        "ADP (Yoon et al. 2021), CIFAR-10 Linf 8/255, WRN-28-10",
        MethodSpec("adp", (("noise", 0.25), ("n_iter", 10))),
        DenoiserSpec("ADP's NCSN-v2 energy-based model"),
        _ORIGIN,
        CIFAR10_512,
        (bpda("Linf", EPS, 40, 15, None), pgd("Linf", EPS)),
        (
            Published("BPDA", 86.14, 70.01, "COUP Table 3", "S"),
            Published("PGD+EOT", 85.66, 37.27, "AAOpt, quoting Lee and Kim", "S"),
            Published("PGD+EOT", 85.66, 74.26, "AAOpt, quoting Lee and Kim", "S", "in L2"),
            Published("AutoAttack", 85.66, 59.53, "AAOpt, quoting Lee and Kim", "S"),
        ),
        ("published predictions average 10 runs", "how many images were evaluated is not recorded", _PICKLED),
    ),
)
