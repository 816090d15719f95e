"""What several papers share: their networks, images and attacks."""

from __future__ import annotations

from .parts import AttackSpec, ClassifierSpec, DataSpec, DenoiserSpec

DDPMPP = DenoiserSpec(
    "score_sde vp/cifar10_ddpmpp_deep_continuous checkpoint_8.pth, EMA weights (fastpure: ddpmpp-cifar10)"
)
DDPMPP_INDEXED = DenoiserSpec(DDPMPP.name, "index")
DDPM = DenoiserSpec("DDPM ema_cifar10 (Ho et al. 2020), EMA weights")
ADM_256 = DenoiserSpec("guided-diffusion 256x256_diffusion_uncond.pt (learned sigma dropped)")
EDM = DenoiserSpec("EDM cifar10-32x32-uncond-vp")

WRN_28_10 = ClassifierSpec(
    "WRN-28-10, RobustBench cifar10 Linf 'Standard', no normalisation", (("architecture", "wrn-28-10"),)
)
WRN_70_16 = ClassifierSpec(
    "WRN-70-16, DiffPure's wrn-70-16-dropout, normalises inside", (("architecture", "wrn-70-16-dropout"),)
)
RN_50 = ClassifierSpec("ResNet-50, torchvision", source="torchvision:resnet50", size=224)
WRN_50_2 = ClassifierSpec("WRN-50-2, torchvision", source="torchvision:wide_resnet50_2", size=224)
DEIT_S = ClassifierSpec("DeiT-S, timm", source="timm:deit_small_patch16_224", size=224)

CIFAR10_512 = DataSpec("cifar10", 512, 0)
IMAGENET_512 = DataSpec("imagenet", 512, 0)

EPS = 8 / 255


def autoattack(norm: str, eps: float, gradient: str) -> tuple[AttackSpec, ...]:
    """DiffPure's and COUP's protocol: AutoAttack rand and standard, each judged on one draw; report the minimum."""
    shared = (("norm", norm), ("eps", eps), ("gradient", gradient), ("decision", "legacy"))
    return tuple(
        AttackSpec("autoattack", (("version", version), *shared)) for version in ("rand", "standard")
    )


def pgd(
    norm: str,
    eps: float,
    n_iter: int = 200,
    eot_iter: int = 20,
    step_size: float | None = 0.007,
    role: str = "adaptive",
    random_start: bool = False,
) -> AttackSpec:
    """PGD+EOT; Lee and Kim's constants (200 iterations, 20 draws, step 0.007, no random start) by default."""
    settings = (
        ("norm", norm),
        ("eps", eps),
        ("n_iter", n_iter),
        ("eot_iter", eot_iter),
        ("step_size", step_size),
        ("random_start", random_start),
    )
    return AttackSpec("pgd", settings, role)


def bpda(norm: str, eps: float, n_iter: int, eot_iter: int, step_size: float | None) -> AttackSpec:
    """PGD with the identity as the purifier's derivative."""
    base = pgd(norm, eps, n_iter, eot_iter, step_size, "published")
    return AttackSpec("pgd", (*base.settings, ("gradient", "bpda")))
