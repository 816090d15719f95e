"""Defences and attacks that several papers' tables have, in the paper's size and on digits."""

from __future__ import annotations

from typing import Any

from ..evaluate import protocol
from ..presets import PRESETS, AttackSpec, MethodSpec
from .parts import Assault, Defence

T, STEPS, EPS, EPS_L2 = 0.15, 5, 0.2, 1.0
"""On digits: the time and budget of the demo, and as few steps as the exponential solver can do with."""

SDE = (("t", T), ("dt", T / STEPS), ("solver", "exponential"))
SCALE = 2.0
"""COUP's guidance scale on digits, the demo's."""

LEGACY = protocol.legacy_autoattack()
FRESH = protocol.fresh(10)

DIFFPURE = Defence("DiffPure", "diffpure-cifar10-linf", MethodSpec("diffpure", SDE))
COUP = Defence("COUP", "coup-cifar10-linf", MethodSpec("coup", (*SDE, ("scale", SCALE)), "classifier"))
BARE = Defence("no purification", "diffpure-cifar10-linf", MethodSpec("diffpure", SDE), bare=True)


def spec_of(preset: str, role: str, name: str, index: int = 0, **having: Any) -> AttackSpec:
    """The ``index``-th attack of a preset with this role, name and settings."""
    found = [
        one
        for one in PRESETS[preset].attack_specs
        if one.role == role
        and one.name == name
        and all(dict(one.settings).get(k) == v for k, v in having.items())
    ]
    return found[index]


def small(norm: str = "Linf", **settings: Any) -> tuple[tuple[str, Any], ...]:
    """An attack's settings on digits."""
    return tuple({"norm": norm, "eps": EPS if norm == "Linf" else EPS_L2, **settings}.items())


def autoattack(preset: str, norm: str, gradient: str = "exact") -> tuple[Assault, Assault]:
    """The two versions of AutoAttack of which papers report the smaller; small: their APGD members.

    ``gradient``: of the small ones, for which torchsde is not needed.
    """
    members = {"gradient": gradient, "n_iter": 12}
    how = "" if gradient == "exact" else f", {gradient}"
    rand = spec_of(preset, "published", "autoattack", version="rand")
    standard = spec_of(preset, "published", "autoattack", version="standard")
    return (
        Assault.of(
            "AutoAttack rand",
            rand,
            small(norm, **members, eot_iter=4),
            f"AutoAttack rand, 12 iterations, EOT 4{how}",
        ),
        Assault.of(
            "AutoAttack standard",
            standard,
            small(norm, **members, version="custom", attacks=("apgd-ce", "apgd-t"), n_target_classes=2),
            f"APGD-CE and APGD-T, 12 iterations, without EOT{how}",
        ),
    )


def exact_pgd(preset: str, norm: str = "Linf") -> Assault:
    """PGD-200 EOT-20 with exact gradients, judged on fresh draws: what is stronger than most published numbers."""
    return Assault.of(
        "PGD-200 EOT-20, exact gradient",
        spec_of(preset, "adaptive", "pgd"),
        small(norm, n_iter=15, eot_iter=4, step_size=None),
        "PGD-15 EOT-4, exact gradient",
    )


def bpda(preset: str, label: str) -> Assault:
    """PGD with the identity as the purifier's derivative."""
    published = spec_of(preset, "published", "pgd", gradient="bpda")
    return Assault.of(label, published, small(n_iter=15, eot_iter=4, step_size=None), "BPDA, PGD-15 EOT-4")


APGD = Assault(
    "APGD-CE, 100 iterations, EOT 20",
    "apgd-ce",
    (("norm", "Linf"), ("eps", 8 / 255), ("n_iter", 100), ("eot_iter", 20)),
    small(n_iter=12, eot_iter=4),
    "APGD-CE, 12 iterations, EOT 4",
)
"""APGD-CE with exact gradients; papers seldom say how many draws it averaged."""
