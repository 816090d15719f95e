"""What tables are made of: networks by their role, defences, attacks, rows; all of them plain values.

Every defence and attack stands here twice: as the paper has it, and small, for the bundled networks of digits.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, final

from ..attacks import ATTACKS, Attack
from ..errors import mistake, one_of
from ..evaluate import CONTROLS, Protocol, protocol
from ..presets import PRESETS, AttackSpec, DataSpec, MethodSpec, Published
from ..presets.parts import CIFAR10_512, Settings

SMALL = "bundled digits networks, not the paper's setting"
"""What is said wherever a small number is shown."""

MISSING = "not available"
"""What stands where the paper's number is not known here."""


@final
@dataclass(frozen=True)
class Role:
    """What a network is there for.

    Attributes:
        kind: "denoiser" or "classifier".
        bundled: the bundled network that takes its place in a small run; empty where that trains one of its own.
        preset: whose diffusion model or classifier it is, and by whose conventions its file is read.
        own: what it is, where no preset has it; its file must then say itself how it is read.
    """

    kind: str
    bundled: str
    preset: str = ""
    own: str = ""

    def __post_init__(self) -> None:
        one_of("kind", self.kind, ("denoiser", "classifier"))
        if self.preset:
            one_of("preset", self.preset, PRESETS)

    @property
    def what(self) -> str:
        """The published network in words."""
        if self.own:
            return self.own
        preset = PRESETS[self.preset]
        return preset.weights.name if self.kind == "denoiser" else preset.target.name


ROLES: dict[str, Role] = {
    "denoiser": Role("denoiser", "digits", "diffpure-cifar10-linf"),
    "classifier": Role("classifier", "digits", "diffpure-cifar10-linf"),
    "wide": Role("classifier", "digits-aux", "diffpure-cifar10-linf-wrn70"),
    "robust": Role(
        "classifier",
        "digits-aux",
        own="an adversarially trained network of Wang et al. 2023, 92.44 % clean (which one is not stated), such as "
        "robustbench:Wang2023Better_WRN-28-10",
    ),
    "auxiliary": Role(
        "classifier", "digits-aux", own="AGDM's auxiliary network, trained with TRADES; unpublished"
    ),
    "ddpm": Role("denoiser", "digits", "gdmp-cifar10-linf"),
    "origin": Role("classifier", "digits", "addt-cifar10-linf"),
    "adp": Role("denoiser", "digits", "adp-cifar10-linf"),
    "addt": Role("denoiser", "digits-addt", "addt-cifar10-linf"),
    "addt-vp": Role("denoiser", "digits-addt", "addt-vpsde-cifar10-linf"),
    "adbm": Role("denoiser", "digits-adbm", "adbm-cifar10-linf"),
    "normal": Role(
        "denoiser", "", own="a diffusion model trained on normal images only; AdvRAD's own is unpublished"
    ),
}
"""Every role by the name it has in ``--network ROLE=FILE``; the first two have options of their own."""


@final
@dataclass(frozen=True)
class Defence:
    """A line of a table: a purification and a classifier, or a classifier alone.

    Attributes:
        label: what it is called in tables.
        preset: whose method is the paper's.
        small: the method on digits.
        changes: settings of the method other than the preset's.
        recipe: the method, where it is another than the preset's.
        denoiser, classifier: the roles of its networks.
        guide: the role of the network that guides, where that is not the classifier.
        bare: nothing purifies; ``small`` and ``changes`` are not read.
    """

    label: str
    preset: str
    small: MethodSpec
    changes: Settings = ()
    recipe: MethodSpec | None = None
    denoiser: str = "denoiser"
    classifier: str = "classifier"
    guide: str | None = None
    bare: bool = False

    def __post_init__(self) -> None:
        one_of("preset", self.preset, PRESETS)
        for role in self.roles:
            one_of("role", role, ROLES)

    @property
    def roles(self) -> tuple[str, ...]:
        """Of all networks it is made of."""
        first = () if self.bare else (self.denoiser,)
        return (*first, self.classifier, *(() if self.guide is None else (self.guide,)))

    @property
    def method(self) -> MethodSpec:
        """The paper's method with all changes."""
        own = self.recipe or PRESETS[self.preset].recipe
        return replace(own, settings=tuple({**dict(own.settings), **dict(self.changes)}.items()))

    def changed(self, label: str, **changes: Any) -> Defence:
        """The same with settings of the method changed in both sizes."""

        def merged(settings: Settings) -> Settings:
            return tuple({**dict(settings), **changes}.items())

        small = replace(self.small, settings=merged(self.small.settings))
        return replace(self, label=label, changes=merged(self.changes), small=small)


@final
@dataclass(frozen=True)
class Assault:
    """An attack of `ATTACKS` or a corruption of `CONTROLS`.

    Attributes:
        label: what it is called in tables.
        name: of the attack.
        full: its settings in the paper.
        small: what is different on digits.
        small_label: its name there, where it is another; ``label`` if empty.
    """

    label: str
    name: str
    full: Settings = ()
    small: Settings = ()
    small_label: str = ""

    def __post_init__(self) -> None:
        one_of("attack", self.name, (*ATTACKS, *CONTROLS))

    @staticmethod
    def of(label: str, spec: AttackSpec, small: Settings, small_label: str = "") -> Assault:
        """The attack of a preset."""
        return Assault(label, spec.name, spec.settings, small, small_label)

    def called(self, small: bool) -> str:
        """Its label in that size."""
        return self.small_label if small and self.small_label else self.label

    def settings(self, small: bool) -> Settings:
        """Its settings in that size."""
        return tuple({**dict(self.full), **(dict(self.small) if small else {})}.items())

    def build(self, small: bool, **changes: Any) -> Attack:
        """The attack.

        Raises:
            ValueError: this fastpure has no such setting, or a value is out of range.
        """
        settings = {**dict(self.settings(small)), **changes}
        kinds: dict[str, Any] = {**ATTACKS, **CONTROLS}
        try:
            made: Attack = kinds[self.name](**settings)
        except TypeError as error:
            raise ValueError(f"attack {self.name} does not take these settings: {error}") from error
        return made


@final
@dataclass(frozen=True)
class Row:
    """A defence under one or several attacks, and who decides.

    Attributes:
        attacks: of several, the one that leaves least counts, as where papers report the smaller of two.
        protocol: the rule.
        published: the paper's numbers for this row, and others' under the same attack.
        source: nothing is attacked: the images that the first attack of that row found are judged on this defence.
    """

    defence: Defence
    attacks: tuple[Assault, ...]
    protocol: Protocol = field(default_factory=protocol.fresh)
    published: tuple[Published, ...] = ()
    source: Row | None = None

    def __post_init__(self) -> None:
        if bool(self.attacks) == (self.source is not None):
            raise ValueError(mistake("attacks", "given, or else a source", f"{len(self.attacks)} attacks"))

    @property
    def runs(self) -> tuple[Job, ...]:
        """One run file each."""
        return tuple(Job(self, i) for i in range(max(len(self.attacks), 1)))

    def moved(self, defence: Defence, published: tuple[Published, ...] = ()) -> Row:
        """The images found in this row, judged on another defence."""
        return Row(defence, (), self.protocol, published, self)


@final
@dataclass(frozen=True)
class Job:
    """One attack of a row: a run file."""

    row: Row
    number: int = 0

    @property
    def attack(self) -> Assault:
        """The attack, or that of the source."""
        return self.row.attacks[self.number] if self.row.source is None else self.row.source.attacks[0]

    def called(self, small: bool) -> str:
        """The attack as tables name it."""
        name = self.attack.called(small)
        return name if self.row.source is None else f"found on {self.row.source.defence.label} by {name}"

    def file(self, small: bool) -> str:
        """The name of the run file."""
        words = f"{self.row.defence.label} {self.called(small)} {self.row.protocol.name}"
        part = "" if self.row.protocol.part == "all" else f" {self.row.protocol.part}"
        return (
            "-".join("".join(c if c.isalnum() or c == "." else " " for c in words + part).split()) + ".sqlite"
        )


@final
@dataclass(frozen=True)
class Images:
    """Which images an experiment takes: the paper's, and how many digits in a small run."""

    full: DataSpec = CIFAR10_512
    small: int = 24


COUPS = Images()
"""COUP's and DiffPure's images, in the usual small size."""


def quoted(preset: str, start: str) -> Published:
    """The first number of a preset whose protocol is ``start``, else whose protocol or source begins with it.

    Raises:
        ValueError: there is none.
    """
    numbers = PRESETS[preset].numbers
    exact = [number for number in numbers if start == number.protocol]
    alike = [
        number for number in numbers if number.protocol.startswith(start) or number.source.startswith(start)
    ]
    if not exact and not alike:
        known = "; ".join(f"{number.source}: {number.protocol}" for number in numbers)
        raise ValueError(mistake("start", f"that of a number of {preset} ({known})", repr(start)))
    return (exact or alike)[0]
