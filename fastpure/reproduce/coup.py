"""Tables and figures of COUP (Zhang et al., arXiv 2408.05900)."""

from __future__ import annotations

from dataclasses import replace

from ..presets import MethodSpec, Published
from .curves import Bars, ConfidenceAlong, Sweep
from .experiment import Experiment
from .galleries import SideBySide
from .gaussians import Flips
from .parts import MISSING, Assault, Defence, Images, Row, quoted
from .planes import Paths
from .shared import (
    APGD,
    BARE,
    COUP,
    DIFFPURE,
    FRESH,
    LEGACY,
    SDE,
    STEPS,
    T,
    autoattack,
    bpda,
    exact_pgd,
)
from .times import Times

PAPER = "COUP, Zhang et al. 2024, arXiv 2408.05900"
LINF, L2 = "coup-cifar10-linf", "coup-cifar10-l2"

UNGUIDED = Defence(
    "COUP without guidance",
    LINF,
    MethodSpec("coup_unguided", SDE),
    recipe=MethodSpec("coup_unguided", (("t", 0.1), ("dt", 1e-3), ("clip_output", True))),
)
COUP_L2 = replace(COUP, preset=L2)
DIFFPURE_L2 = replace(DIFFPURE, preset="diffpure-cifar10-l2")

UNKNOWN = "The paper's numbers of this {what} are " + MISSING + " here; they are never filled in."
SCORE_ONLY = (
    "As published the attack differentiates with torchsde's adjoint and takes the guidance for a constant; the last "
    "rows attack with exact gradients. A small run leaves out the guidance's derivative where the paper's "
    "attack does, and is exact elsewhere."
)
AMOUNTS = (
    "On digits the budgets are Linf 0.2 and L2 1.0, the purifications 5 steps from t = 0.15, the scale 2."
)


def _main_table(
    name: str, title: str, norm: str, lines: tuple[tuple[Defence, tuple[Published, ...]], ...]
) -> Experiment:
    preset = LINF if norm == "Linf" else L2
    attacks, exact = autoattack(preset, norm), exact_pgd(preset, norm)
    published = autoattack(preset, norm, "detached")
    reported = tuple(
        Row(defence, published if defence.label == COUP.label else attacks, LEGACY, numbers)
        for defence, numbers in lines
    )
    purifying = [defence for defence, _ in lines if not defence.bare]
    return Experiment(
        name,
        PAPER,
        title,
        (*reported, *(Row(defence, (exact,), FRESH, _exact(defence, norm)) for defence in purifying)),
        (Bars(f"{name}-bars"),),
        notes=(
            SCORE_ONLY,
            AMOUNTS,
            f"Rows of other kinds of defence (adversarial training) are {MISSING} here.",
        ),
        images=Images(small=16),
    )


def _exact(defence: Defence, norm: str) -> tuple[Published, ...]:
    """What others measured with full gradients; in L2 COUP's was measured at another radius, and is no match."""
    if norm != "Linf":
        return ()
    return (quoted(defence.preset, "PGD-200 EOT-20"),)


BARE_NUMBER = quoted(LINF, "no purification")

TABLE1 = _main_table(
    "coup-table1",
    "COUP Table 1: CIFAR-10, Linf 8/255, AutoAttack",
    "Linf",
    (
        (BARE, (BARE_NUMBER,)),
        (DIFFPURE, (quoted("diffpure-cifar10-linf", "COUP Table 1"),)),
        (COUP, (quoted(LINF, "COUP Table 1"),)),
    ),
)
TABLE2 = _main_table(
    "coup-table2",
    "COUP Table 2: CIFAR-10, L2 0.5, AutoAttack",
    "L2",
    (
        (replace(BARE, preset="diffpure-cifar10-l2"), (BARE_NUMBER,)),
        (DIFFPURE_L2, (quoted("diffpure-cifar10-l2", "COUP Table 2"),)),
        (COUP_L2, (quoted(L2, "COUP Table 2"),)),
    ),
)

GDMP = Defence(
    "GDMP",
    "gdmp-cifar10-linf",
    MethodSpec("gdmp", (("t", T), ("rounds", 1), ("chain", 80), ("begin", "level"), ("guide_scale", 100.0))),
    denoiser="ddpm",
    classifier="origin",
)
ADP = Defence(
    "ADP",
    "adp-cifar10-linf",
    MethodSpec("adp", (("n_iter", 5), ("rest", "after"))),
    denoiser="adp",
    classifier="origin",
)

TABLE3 = Experiment(
    "coup-table3",
    PAPER,
    "COUP Table 3: CIFAR-10, Linf 8/255, BPDA with EOT",
    (
        Row(
            DIFFPURE,
            (bpda("diffpure-cifar10-linf", "BPDA"),),
            LEGACY,
            (quoted("diffpure-cifar10-linf", "COUP Table 3"),),
        ),
        Row(
            GDMP, (bpda("gdmp-cifar10-linf", "BPDA"),), LEGACY, (quoted("gdmp-cifar10-linf", "COUP Table 3"),)
        ),
        Row(ADP, (bpda("adp-cifar10-linf", "BPDA"),), LEGACY, (quoted("adp-cifar10-linf", "COUP Table 3"),)),
        Row(COUP, (bpda(LINF, "BPDA, PGD-20"),), LEGACY, (quoted(LINF, "COUP Table 3"),)),
    ),
    (Bars("coup-table3-bars"),),
    notes=(
        "The paper also quotes energy-based Langevin purification (Hill et al. 2021), clean 84.12, robust 54.90; its "
        "network is no diffusion model and is not run here.",
        "COUP's draws and step size are not recoverable; those of the others are their papers'.",
        "One draw decides, as there. BPDA is a weak attack: it overstates robustness.",
        AMOUNTS,
    ),
)

TIMES = (0.05, 0.075, 0.1)
V100 = "on a V100, in one of the three columns; which is not recoverable"


def _at(defence: Defence, t: float, small_t: float) -> Defence:
    settings = {**dict(defence.small.settings), "t": small_t, "dt": small_t / STEPS}
    changed = replace(defence.small, settings=tuple(settings.items()))
    return replace(defence, changes=(*defence.changes, ("t", t)), small=changed)


def _timed(t: float) -> tuple[str, tuple[Defence, ...]]:
    # The small purification keeps the length of its steps: a column with more time has more of them.
    found = []
    for defence in (DIFFPURE, UNGUIDED, COUP):
        settings = {**dict(defence.small.settings), "t": t, "dt": 0.0125}
        own = replace(defence.small, settings=tuple(settings.items()))
        found.append(replace(defence, changes=(*defence.changes, ("t", t)), small=own))
    return f"t = {t:g}", tuple(found)


TABLE4 = Experiment(
    "coup-table4",
    PAPER,
    "COUP Table 4: seconds per purification",
    (),
    (
        Times(
            "coup-table4-seconds",
            tuple(_timed(t) for t in TIMES),
            (
                ("DiffPure", 3.056, V100),
                ("COUP without guidance", 3.032, V100),
                ("COUP", 3.894, V100),
            ),
        ),
    ),
    notes=(
        "The paper's ratios of COUP to DiffPure in its three columns are 1.27, 1.33 and 1.29; of COUP to COUP without "
        "guidance 1.28, 1.11 and 1.28. Which times its columns have is not recoverable: here 0.05, 0.075 and 0.1.",
    ),
)

FOUND_UNGUIDED = Row(UNGUIDED, (APGD,), FRESH)
FIGURE1 = Experiment(
    "coup-figure1",
    PAPER,
    "COUP Figure 1: where purification leads an attacked image, with and without guidance",
    (FOUND_UNGUIDED,),
    (Paths("coup-figure1-paths", FOUND_UNGUIDED, (COUP,)),),
    images=Images(small=16),
    notes=("The paper's drawing was not available; this is its question, asked of networks and images.",),
)
FIGURE2A = Experiment(
    "coup-figure2a",
    PAPER,
    "COUP Figure 2a: confidence along the steps, for the true and the attack's class",
    (FOUND_UNGUIDED, FOUND_UNGUIDED.moved(COUP)),
    (ConfidenceAlong("coup-figure2a-confidence", FOUND_UNGUIDED, (COUP,)),),
    images=Images(small=48),
    notes=(
        "The attack is found without guidance; the curves are without noise.",
        UNKNOWN.format(what="figure"),
    ),
)


def _with(defence: Defence, classifier: str, name: str) -> Defence:
    return replace(defence, label=f"{defence.label}, {name}", classifier=classifier)


FIGURE2B = Experiment(
    "coup-figure2b",
    PAPER,
    "COUP Figure 2b: APGD-CE, Linf 8/255, two classifiers, with and without guidance",
    tuple(
        Row(_with(defence, role, name), (APGD,), FRESH)
        for role, name in (("classifier", "first classifier"), ("wide", "second classifier"))
        for defence in (DIFFPURE, UNGUIDED, COUP)
    ),
    (Bars("coup-figure2b-bars"),),
    images=Images(small=20),
    notes=(
        "The classifiers are WRN-28-10 and WRN-70-16; on digits the bundled one and the one trained with TRADES.",
        UNKNOWN.format(what="figure"),
    ),
)
FIGURE3B = Experiment(
    "coup-figure3b",
    PAPER,
    "COUP Figure 3b: label flips against the guidance scale, a line per noise of the classifier",
    (),
    (Flips("coup-figure3b-flips"),),
    notes=(
        "The paper's proposition 1 on two Gaussians with exact scores. Its own constants are not recoverable: width "
        "0.1, means -0.5 and 0.5, the noises and the scales are ours.",
    ),
)

SWEPT_T, SMALL_T = (0.025, 0.05, 0.075, 0.1, 0.125, 0.15), (0.05, 0.1, 0.15, 0.2, 0.25, 0.3)
SWEPT_SCALE = (0.0, 0.5, 1.0, 2.0, 4.0)
FIGURE4A = Experiment(
    "coup-figure4a",
    PAPER,
    "COUP Figure 4a: clean and robust accuracy against the time t",
    tuple(
        Row(replace(_at(COUP, t, small_t), label=f"COUP, t {t:g} (digits {small_t:g})"), (APGD,), FRESH)
        for t, small_t in zip(SWEPT_T, SMALL_T, strict=True)
    ),
    (Sweep("coup-figure4a-accuracy", "t"),),
    images=Images(small=20),
    notes=(
        "The paper says: clean accuracy falls, robust accuracy rises and falls. Its values and its grid are "
        f"{MISSING}.",
    ),
)
FIGURE4B = Experiment(
    "coup-figure4b",
    PAPER,
    "COUP Figure 4b: clean and robust accuracy against the guidance scale lambda",
    tuple(Row(COUP.changed(f"COUP, scale {scale:g}", scale=scale), (APGD,), FRESH) for scale in SWEPT_SCALE),
    (Sweep("coup-figure4b-accuracy", "scale"),),
    images=Images(small=20),
    notes=(f"The paper's best scale is 1; its values and its grid are {MISSING}.",),
)

FOUND_DIFFPURE = Row(DIFFPURE, (APGD,), FRESH)
FIGURE5 = Experiment(
    "coup-figure5",
    PAPER,
    "COUP Figure 5: the same attacked images purified by three methods",
    (FOUND_DIFFPURE, FOUND_DIFFPURE.moved(UNGUIDED), FOUND_DIFFPURE.moved(COUP)),
    (
        SideBySide(
            "coup-figure5-images",
            (FOUND_DIFFPURE, FOUND_DIFFPURE.moved(UNGUIDED), FOUND_DIFFPURE.moved(COUP)),
            most=6,
        ),
    ),
    images=Images(small=24),
    notes=("The attack is found on DiffPure: what the paper attacked here is not recoverable.",),
)
FIGURE6 = Experiment(
    "coup-figure6",
    PAPER,
    "COUP Figure 6: images that guidance rescues, and images that it loses",
    (FOUND_UNGUIDED, FOUND_UNGUIDED.moved(COUP)),
    (
        SideBySide(
            "coup-figure6-images", (FOUND_UNGUIDED, FOUND_UNGUIDED.moved(COUP)), ("rescued", "lost"), most=8
        ),
    ),
    images=Images(small=64),
    notes=("The attack is found without guidance, which favours guidance: nobody attacked it.",),
)

AT_BARE = replace(BARE, label="adversarially trained classifier alone", classifier="robust")
AT_COUP = replace(COUP, label="COUP, adversarially trained classifier", classifier="robust")
AT = Experiment(
    "coup-robust-guides",
    PAPER,
    "COUP section 5.4.1: guided by an adversarially trained classifier, APGD-CE, Linf 8/255",
    (
        Row(AT_BARE, (APGD,), FRESH, (Published("APGD-CE", 92.44, 70.90, "COUP 5.4.1", "P"),)),
        Row(AT_COUP, (APGD,), FRESH, (Published("APGD-CE", None, 77.15, "COUP 5.4.1", "P"),)),
        Row(
            replace(
                AT_COUP,
                label="DiffPure, adversarially trained classifier",
                preset=DIFFPURE.preset,
                small=DIFFPURE.small,
            ),
            (APGD,),
            FRESH,
        ),
    ),
    (Bars("coup-robust-guides-bars"),),
    notes=(
        "On digits the bundled classifier trained with TRADES.",
        "The paper's APGD averaged a number of draws that is not recoverable.",
    ),
)

PEPPER = Assault(
    "salt and pepper, 5 % of the pixels",
    "salt_and_pepper",
    (("amount", 0.05),),
    (("amount", 0.2),),
    "salt and pepper, 20 % of the pixels",
)
E1 = Experiment(
    "coup-e1",
    PAPER,
    "COUP appendix E.1: salt and pepper",
    (
        Row(BARE, (PEPPER,), FRESH, (Published("salt and pepper", None, 87.80, "COUP E.1", "P"),)),
        Row(UNGUIDED, (PEPPER,), FRESH, (Published("salt and pepper", None, 92.60, "COUP E.1", "P"),)),
        Row(COUP, (PEPPER,), FRESH, (Published("salt and pepper", None, 93.00, "COUP E.1", "P"),)),
    ),
    (Bars("coup-e1-bars"),),
    images=Images(small=200),
    notes=("The paper's share of pixels and its 500 images are not recoverable; 5 % of 512 images here.",),
)

EXPERIMENTS = (
    TABLE1,
    TABLE2,
    TABLE3,
    TABLE4,
    FIGURE1,
    FIGURE2A,
    FIGURE2B,
    FIGURE3B,
    FIGURE4A,
    FIGURE4B,
    FIGURE5,
    FIGURE6,
    AT,
    E1,
)
