"""Where an experiment's networks and images come from: the paper's files, or what is bundled."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from torch import nn

from ..attacks import Attack
from ..checkpoints import load_denoiser
from ..classifiers import load_classifier
from ..data import Dataset, load_dataset
from ..errors import DataError, mistake, one_of, whole
from ..presets import PRESETS, MethodSpec
from ..purify import Defense, Purifier
from ..zoo import CLASSIFIERS, DENOISERS
from .parts import ROLES, SMALL, Assault, Defence, Images

OPTIONS = {"denoiser": "--denoiser ", "classifier": "--classifier "}


def option(role: str) -> str:
    """How a file for ``role`` is given on the command line, up to the file."""
    return OPTIONS.get(role, f"--network {role}=")


@dataclass(frozen=True)
class Setting(ABC):
    """Base of the two: how many images, and the arithmetic.

    Attributes:
        n: images, the experiment's own number if None.
        device: where networks are.
        precision: of the purifiers' networks.
        seed: of the defences' noise.
        rows: most (image, draw) pairs in a network call; the attacks' own if None.
    """

    n: int | None = None
    device: str = "cpu"
    precision: str = "fp32"
    seed: int = 0
    rows: int | None = None
    _loaded: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.n is not None:
            whole("n", self.n, 1)

    @property
    @abstractmethod
    def small(self) -> bool:
        """Whether the bundled networks stand for the paper's."""

    @property
    def label(self) -> str:
        """What is said beside every number."""
        return SMALL if self.small else "the paper's setting, as far as it is known"

    @abstractmethod
    def dataset(self, images: Images) -> Dataset:
        """The images of an experiment."""

    @abstractmethod
    def lacking(self, roles: Iterable[str]) -> tuple[str, ...]:
        """Those of the roles for which no network was given."""

    def missing(self, defence: Defence) -> tuple[str, ...]:
        """Roles of a defence for which no network was given."""
        return self.lacking(defence.roles)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What decides results, as values JSON can hold."""

    @abstractmethod
    def _network(self, role: str) -> Any: ...

    @abstractmethod
    def recipe(self, defence: Defence) -> MethodSpec:
        """The method of a defence."""

    def network(self, role: str) -> Any:
        """The denoiser or classifier of a role, loaded once.

        Raises:
            ValueError, CheckpointError: there is none, or its file is not one.
        """
        if role not in self._loaded:
            self._loaded[role] = self._network(role).to(self.device)
        return self._loaded[role]

    def defence(self, defence: Defence) -> nn.Module:
        """The defended classifier, made once."""
        if defence not in self._loaded:
            self._loaded[defence] = self._made(defence)
        made: nn.Module = self._loaded[defence]
        return made

    def attack(self, assault: Assault, defence: Defence) -> Attack:
        """The attack in this size; where nothing purifies there is one gradient only, whatever it says."""
        changes: dict[str, Any] = {} if self.rows is None else {"batch_size": self.rows}
        if defence.bare and "gradient" in dict(assault.settings(self.small)):
            changes["gradient"] = "exact"
        return assault.build(self.small, **changes)

    def count(self, images: Images) -> int | None:
        """How many images are evaluated; None for all there are."""
        own = images.small if self.small else images.full.n
        return own if self.n is None else self.n

    def steps(self, defence: Defence) -> int:
        """Network calls in one purification; no network is loaded for that."""
        return 1 if defence.bare else self.recipe(defence).build(_Stub().eval()).network_calls

    def _made(self, defence: Defence) -> nn.Module:
        classifier: nn.Module = self.network(defence.classifier)
        if defence.bare:
            return classifier
        guide = classifier if defence.guide is None else self.network(defence.guide)
        method = self.recipe(defence).build(guide)
        purifier = Purifier(self.network(defence.denoiser), method, seed=self.seed, precision=self.precision)
        return Defense(purifier, classifier)


@final
@dataclass(frozen=True)
class Small(Setting):
    """Handwritten digits and the bundled networks: works everywhere in minutes, and says nothing of the paper's."""

    @property
    def small(self) -> bool:
        """True."""
        return True

    def dataset(self, images: Images) -> Dataset:
        """Test images of the digits, chosen as in the literature."""
        return load_dataset("digits", "test").subset(self.count(images) or images.small, 0)

    def lacking(self, roles: Iterable[str]) -> tuple[str, ...]:
        """None: all are bundled, or trained on the way."""
        return ()

    def describe(self) -> dict[str, Any]:
        """See `Setting.describe`."""
        return {"small": True, "n": self.n, "precision": self.precision, "seed": self.seed}

    def recipe(self, defence: Defence) -> MethodSpec:
        """See `Setting.recipe`."""
        return defence.small

    def _network(self, role: str) -> Any:
        wanted = ROLES[role]
        load = load_denoiser if wanted.kind == "denoiser" else load_classifier
        return load(wanted.bundled)


@final
@dataclass(frozen=True)
class Full(Setting):
    """The paper's networks and images.

    Attributes:
        files: role (see `ROLES`) -> file, bundled name or another library's name.
        data_path: where the images are.
    """

    files: Mapping[str, str] = field(default_factory=dict)
    data_path: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for role, file in self.files.items():
            one_of("role", role, ROLES)
            known = file in (*DENOISERS, *CLASSIFIERS) or ":" in str(file) or os.path.exists(file)
            if not known:
                raise FileNotFoundError(f"{option(role)}{file}: no such file")

    @property
    def small(self) -> bool:
        """False."""
        return False

    def dataset(self, images: Images) -> Dataset:
        """The paper's images, or the first ``n`` of them.

        Raises:
            ValueError, DataError: no ``data_path``, what is there is not the data set, or ``n`` is more than there are.
        """
        if self.data_path is None:
            raise ValueError(f"`--data-path` must be given: {images.full} (or try --small)")
        if not Path(self.data_path).exists():
            raise DataError(f"{self.data_path}: no such file or folder; it should hold {images.full}")
        key = (images.full, self.data_path)
        if key not in self._loaded:
            self._loaded[key] = images.full.load(self.data_path)
        dataset: Dataset = self._loaded[key]
        if self.n is None:
            return dataset
        return dataset.select(range(whole("n", self.n, 1, len(dataset))))

    def lacking(self, roles: Iterable[str]) -> tuple[str, ...]:
        """See `Setting.lacking`."""
        return tuple(role for role in roles if role not in self.files)

    def describe(self) -> dict[str, Any]:
        """See `Setting.describe`."""
        names = {role: _named(file) for role, file in sorted(self.files.items())}
        own = {"small": False, "n": self.n, "precision": self.precision, "seed": self.seed}
        return {**own, "files": names, "data": None if self.data_path is None else Path(self.data_path).name}

    def recipe(self, defence: Defence) -> MethodSpec:
        """See `Setting.recipe`."""
        return defence.method

    def _network(self, role: str) -> Any:
        if role not in self.files:
            raise ValueError(mistake("networks", f"one for {role}", "none", f"Give {option(role)}FILE"))
        wanted, file = ROLES[role], self.files[role]
        if wanted.own:
            return load_denoiser(file) if wanted.kind == "denoiser" else load_classifier(file)
        preset = PRESETS[wanted.preset]
        return preset.load_denoiser(file) if wanted.kind == "denoiser" else preset.load_classifier(file)


def _named(file: str) -> str:
    """A network's file by name and content, so that another of the same name is another; else its name."""
    path = Path(file)
    if not path.is_file():
        return path.name
    digest = hashlib.sha256()
    with path.open("rb") as opened:
        for block in iter(lambda: opened.read(1 << 20), b""):
            digest.update(block)
    return f"{path.name} {digest.hexdigest()[:16]}"


@final
class _Stub(nn.Module):
    """Stands for a guide where only the table of the method is asked for."""

    def forward(self, x: Any) -> Any:
        """Zeros [B, 2]."""
        return x.flatten(1)[:, :2] * 0

    def features_and_logits(self, x: Any) -> tuple[Any, Any]:
        """The same twice."""
        return self(x), self(x)
