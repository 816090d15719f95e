"""Langevin dynamics of an energy, and guidance by the predicted image."""

from __future__ import annotations

from .parts import (
    CIFAR10_512,
    EPS,
    WRN_28_10,
    DenoiserSpec,
    MethodSpec,
    Published,
    bpda,
    pgd,
)
from .preset import Preset

PRESETS = (
    Preset(
        "ebm-cifar10-linf",
        "EBM-Langevin purification (Hill et al. 2021), CIFAR-10 Linf 8/255",
        MethodSpec("ebm_langevin", (("n_steps", 1500),), "energy"),
        DenoiserSpec("none is called: any denoiser of the images' shape"),
        WRN_28_10,
        CIFAR10_512,
        (bpda("Linf", EPS, 20, 15, 2 / 255), pgd("Linf", EPS)),
        (
            Published("BPDA", 84.12, 54.90, "COUP Table 3", "S"),
            Published("exact gradients", None, 6.08, "MEFA (arXiv 2605.06357)", "S", "quoted second-hand"),
        ),
        (
            "method() takes the energy: fp.load_energy of the file that the authors published, or that their code made",
            "its network is linear between kinks: exact gradients are the identity almost everywhere, as BPDA's are; "
            "what makes the second number so much lower is not recorded here",
            "the authors decide by the mean logits of 150 draws",
            "which classifier and images the numbers are of is not recorded here",
        ),
    ),
    Preset(
        "mimic-cifar10-linf",
        "MimicDiffusion (arXiv 2312.04802), CIFAR-10 Linf 8/255",
        MethodSpec("mimic", (("scale", 3000.0), ("window", (20, 90)), ("pooled", 4))),
        DenoiserSpec("which one is not recorded here: it must know every noise level"),
        WRN_28_10,
        CIFAR10_512,
        (pgd("Linf", EPS, role="published"), pgd("Linf", EPS)),
        (
            Published("as claimed, before DiffBreak", None, 92.67, "DiffBreak", "P"),
            Published("worst case of draws, gradients through state and guide", None, 2.73, "DiffBreak", "P"),
        ),
        (
            "the exact gradient is zero almost everywhere: attack method(guidance_grad='smoothed')",
            "which classifier and images the numbers are of is not recorded here",
        ),
    ),
)
