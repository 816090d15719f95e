"""The parts of a published configuration: method, networks, data, attacks and numbers, all plain values.

Methods and attacks are referred to by name and settings and resolved when they are used.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import nn

from ..attacks import ATTACKS, Attack
from ..classifiers import Resized, load_classifier
from ..classifiers.external import PRETRAINED
from ..classifiers.native import is_native_classifier
from ..data import Dataset, load_dataset
from ..errors import mistake, one_of
from ..methods import METHODS, Method, make, spec

TAGS = {
    "C": "read in the official code",
    "P": "read in the paper",
    "V": "stated by a public review of the paper",
    "S": "quoted by another paper",
    "D": "derived",
    "R": "recommended here, in no primary source",
}
"""Evidence behind a number or constant."""

Settings = tuple[tuple[str, Any], ...]

_POPULATION = {"cifar10": 10_000, "cifar100": 10_000}
"""Images in an official test set, for choosing from a part of it what would be chosen from the whole."""


def _arguments(settings: Settings) -> str:
    return ", ".join(f"{name}={_shown(value)}" for name, value in settings)


def _shown(value: Any) -> str:
    """Attack radii as papers write them."""
    if isinstance(value, float) and 0 < value < 0.2 and abs(value * 255 - round(value * 255)) < 1e-9:
        return f"{round(value * 255)}/255"
    return repr(value)


@final
@dataclass(frozen=True)
class MethodSpec:
    """A purification method by name, with its published constants.

    Attributes:
        name, settings: of ``fastpure.methods.METHODS``.
        takes: the argument that is a network ("classifier", "auxiliary"), None if there is none.
        tag: evidence for the constants, a key of ``TAGS``.
    """

    name: str
    settings: Settings = ()
    takes: str | None = None
    tag: str = "C"

    def __post_init__(self) -> None:
        one_of("tag", self.tag, TAGS)

    def build(self, network: nn.Module | None, **changes: Any) -> Method:
        """The method, guided by ``network`` where it takes one; ``changes`` override the published settings.

        Raises:
            TypeError: the method needs a network and there is none.
            ValueError: this fastpure has no such method or setting.
        """
        if self.name not in METHODS:
            raise ValueError(
                mistake("method", f"among those of this fastpure, {', '.join(METHODS)}", self.name)
            )
        settings = {**dict(self.settings), **changes}
        for setting in settings:
            one_of(f"settings of {self.name}", setting, spec(self.name).arguments)
        if self.takes is not None:
            if network is None:
                raise TypeError(mistake(self.takes, f"given: {self.name} is guided by it", "None"))
            settings[self.takes] = network
        return make(self.name, **settings)

    def __str__(self) -> str:
        parts = [part for part in (self.takes, _arguments(self.settings)) if part]
        return f"{self.name}({', '.join(parts)})  [{self.tag}]"


@final
@dataclass(frozen=True)
class DenoiserSpec:
    """The diffusion model of a paper: what to download, and how it is told the time.

    Attributes:
        name: the published file.
        time_input: convention that the paper uses with it, if it is not the one the file is recognised with.
    """

    name: str
    time_input: str | None = None

    def __str__(self) -> str:
        return self.name + (f", told the time as {self.time_input!r}" if self.time_input else "")


@final
@dataclass(frozen=True)
class ClassifierSpec:
    """The classifier of a paper.

    Attributes:
        name: the published network.
        options: for ``load_classifier``, what its file cannot say.
        source: ``load_classifier``'s name for it if it is another library's, "" if it is a plain file.
        size: side of its images, if the diffusion model's are of another size.
        pretrained: which of that library's own weights, if it has several.
    """

    name: str
    options: Settings = ()
    source: str = ""
    size: int | None = None
    pretrained: str | None = None

    def load(self, path: str | Path) -> nn.Module:
        """The classifier from its published file; errors as for ``load_classifier``.

        A fastpure file, a bundled name and other libraries' names ("robustbench:Standard") settle everything
        themselves and are loaded as they are. "pretrained" lets torchvision or timm download its own.
        """
        if self.source and path == PRETRAINED:
            weights = PRETRAINED if self.pretrained is None else (PRETRAINED, self.pretrained)
            return load_classifier(self.source, weights=weights, **dict(self.options))
        if not Path(path).is_file() or is_native_classifier(Path(path)):
            return load_classifier(path)
        if self.source:
            return load_classifier(self.source, weights=path, **dict(self.options))
        return load_classifier(path, **dict(self.options))

    def guide(self, classifier: nn.Module, size: int) -> nn.Module:
        """``classifier`` for images of the diffusion model's size."""
        return classifier if self.size in (None, size) else Resized(classifier, self.size or size)

    def __str__(self) -> str:
        return self.name


@final
@dataclass(frozen=True)
class DataSpec:
    """Which images a paper evaluates.

    Attributes:
        dataset: a key of ``fastpure.data.DATASETS``.
        n: how many, None for all.
        choice: "random" (the literature's, from ``data_seed``) or "first".
        note: what cannot be reproduced about the choice.
    """

    dataset: str
    n: int | None = 512
    data_seed: int = 0
    choice: str = "random"
    note: str = ""

    def __post_init__(self) -> None:
        one_of("choice", self.choice, ("random", "first"))

    def load(self, path: str | Path | None, data_seed: int | None = None) -> Dataset:
        """These images of the test set at ``path``; errors as for ``load_dataset``.

        Of a part of CIFAR (a JPEG pack), those images are taken that the paper takes and that are there, with
        a warning that says how many.
        """
        seed = self.data_seed if data_seed is None else data_seed
        population = _POPULATION.get(self.dataset)
        if self.n is None or self.choice == "first" or population is None:
            n = self.n if self.choice == "random" else None
            dataset = load_dataset(self.dataset, "test", path=path, n=n, data_seed=seed)
            return dataset.select(range(self.n)) if self.n and self.choice == "first" else dataset
        whole = load_dataset(self.dataset, "test", path=path)
        chosen = whole.subset(self.n, seed, population=population)
        if len(chosen) < self.n:
            warnings.warn(
                f"{path} has {len(whole)} of the {population} test images: {len(chosen)} of the {self.n} that "
                "the paper evaluates",
                stacklevel=3,
            )
        return chosen

    def __str__(self) -> str:
        if self.n is None:
            which = "all test images"
        elif self.choice == "first":
            which = f"first {self.n} test images"
        else:
            which = f"{self.n} test images, data_seed {self.data_seed}"
        return f"{self.dataset}: {which}" + (f" ({self.note})" if self.note else "")


@final
@dataclass(frozen=True)
class AttackSpec:
    """An attack by name and settings.

    Attributes:
        role: "published", the paper's own, or "adaptive", with exact gradients.
        note: what of it is not known, or not as published.
    """

    name: str
    settings: Settings = ()
    role: str = "published"
    note: str = ""

    def __post_init__(self) -> None:
        one_of("role", self.role, ("published", "adaptive"))

    def build(self, **changes: Any) -> Attack:
        """The attack; ``changes`` override its settings (``batch_size``, ``seed``, ...).

        Raises:
            ValueError: this fastpure has no such attack or setting, or a value is out of range.
        """
        if self.name not in ATTACKS:
            raise ValueError(
                mistake("attack", f"among those of this fastpure, {', '.join(ATTACKS)}", self.name)
            )
        try:
            return ATTACKS[self.name](**{**dict(self.settings), **changes})
        except TypeError as error:
            raise ValueError(f"attack {self.name} does not take these settings: {error}") from error

    @property
    def label(self) -> str:
        """The name, and for an ensemble its version or its members: "autoattack-rand"."""
        settings = dict(self.settings)
        version = settings.get("version")
        return "-".join(
            (self.name, *(settings["attacks"] if version == "custom" else [version] * bool(version)))
        )

    def __str__(self) -> str:
        text = f"{self.name}({_arguments(self.settings)})"
        return text + (f" ({self.note})" if self.note else "")


@final
@dataclass(frozen=True)
class ProtocolSpec:
    """How a paper decides, and which of its attacks make its number.

    Attributes:
        name, settings: of ``fastpure.protocols``.
        attack: of the published attacks of this name the smallest robust accuracy is the number.
    """

    name: str
    attack: str
    settings: Settings = ()

    def __str__(self) -> str:
        return f"{self.name}({_arguments(self.settings)})"


@final
@dataclass(frozen=True)
class Published:
    """A published number. Accuracies in percent, None where not given.

    Attributes:
        protocol: attack and rule it was measured with.
        source: where the digits were read.
        tag: evidence, a key of ``TAGS``.
    """

    protocol: str
    clean: float | None
    robust: float | None
    source: str
    tag: str = "S"
    note: str = field(default="")

    def __post_init__(self) -> None:
        one_of("tag", self.tag, TAGS)
        for name in ("clean", "robust"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 100:
                raise ValueError(mistake(name, "a percentage", value))

    def __str__(self) -> str:
        clean, robust = ("-" if value is None else f"{value:.2f}" for value in (self.clean, self.robust))
        text = f"clean {clean:>5}  robust {robust:>5}  {self.protocol}; {self.source} [{self.tag}]"
        return text + (f" ({self.note})" if self.note else "")


DDPMPP = DenoiserSpec(
    "score_sde vp/cifar10_ddpmpp_deep_continuous checkpoint_8.pth, EMA weights (fastpure: ddpmpp-cifar10)"
)
DDPMPP_INDEXED = DenoiserSpec(DDPMPP.name, "index")
DDPM = DenoiserSpec("DDPM ema_cifar10 (Ho et al. 2020), EMA weights")
ADM_256 = DenoiserSpec("guided-diffusion 256x256_diffusion_uncond.pt")
EDM = DenoiserSpec("EDM cifar10-32x32-uncond-vp")

WRN_28_10 = ClassifierSpec(
    "WRN-28-10, RobustBench cifar10 Linf 'Standard', no normalisation", (("architecture", "wrn-28-10"),)
)
WRN_70_16 = ClassifierSpec(
    "WRN-70-16, DiffPure's wrn-70-16-dropout, normalises inside", (("architecture", "wrn-70-16-dropout"),)
)
WANG = ClassifierSpec(
    "an adversarially trained network of Wang et al. 2023 (Linf 8/255), clean accuracy 92.44, normalises inside",
    (("activation", "silu"), ("normalise", "cifar10")),
)
# DiffPure's code says pretrained=True, which in torchvision means the first weights, not today's default.
RN_50 = ClassifierSpec(
    "ResNet-50, torchvision", source="torchvision:resnet50", size=224, pretrained="IMAGENET1K_V1"
)
WRN_50_2 = ClassifierSpec(
    "WRN-50-2, torchvision", source="torchvision:wide_resnet50_2", size=224, pretrained="IMAGENET1K_V1"
)
DEIT_S = ClassifierSpec("DeiT-S, timm", source="timm:deit_small_patch16_224", size=224)

CIFAR10_512 = DataSpec("cifar10", 512, 0)
IMAGENET_512 = DataSpec("imagenet", 512, 0)

EPS = 8 / 255


ONE_DRAW = ProtocolSpec("legacy_autoattack", "autoattack")
"""DiffPure's and COUP's rule: AutoAttack's own check on one draw decides, and the smallest of its versions is told."""


def autoattack(norm: str, eps: float, gradient: str) -> tuple[AttackSpec, ...]:
    """DiffPure's and COUP's attacks: AutoAttack rand and standard, each judged on one draw, see `ONE_DRAW`."""
    shared = (("norm", norm), ("eps", eps), ("gradient", gradient), ("decision", "legacy"))
    fab = "" if gradient == "exact" else f"FAB's gradient is exact here, not {gradient}"
    return tuple(
        AttackSpec("autoattack", (("version", version), *shared), note=note)
        for version, note in (("rand", ""), ("standard", fab))
    )


def apgd_ce(norm: str, eps: float, gradient: str, note: str) -> AttackSpec:
    """AutoAttack's APGD-CE alone, judged on one draw, with the 20 draws of its version rand."""
    settings = (
        ("version", "custom"),
        ("attacks", ("apgd-ce",)),
        ("norm", norm),
        ("eps", eps),
        ("eot_iter", 20),
        ("gradient", gradient),
        ("decision", "legacy"),
    )
    return AttackSpec("autoattack", settings, note=note)


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


BY_POSITION = "L2 0.5; which norm these rows are of is told from their place in the table"
CLEAN_OF_ONE = "a clean accuracy of 92.19 is printed, of DiffPure's majority or of GDMP's"


def hammered(
    attack: str,
    mean: float,
    worst: float,
    clean: float | None = None,
    clean_worst: float | None = None,
    source: str = "DiffHammer Table 1",
    note: str = "",
) -> tuple[Published, Published]:
    """What DiffHammer's authors print: accuracy over 10 draws, their mean, and with all of them right."""
    return (
        Published(f"{attack}, mean of draws", clean, mean, source, "P", note),
        Published(f"{attack}, any of 10 draws fails", clean_worst, worst, source, "P", note),
    )
