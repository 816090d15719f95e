"""`Preset`: a published experiment as a value, with everything a user with the weights needs to run it again."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from torch import nn

from ..attacks import Attack
from ..checkpoints import load_denoiser
from ..data import Dataset
from ..errors import mistake, one_of
from ..methods import Method
from ..nets import Denoiser
from ..purify import Defense, Purifier, ResizedPurifier
from ..shown import WIDTH, Card, Row, Shown
from .parts import AttackSpec, ClassifierSpec, DataSpec, DenoiserSpec, MethodSpec, ProtocolSpec, Published


@final
@dataclass(frozen=True, repr=False)
class Preset(Shown):
    """A published configuration.

    Printing gives all of it. Names of ``fastpure`` that a paper's experiment needs and this version lacks are errors
    when they are used, not before.

    Attributes:
        name, title: what it is called, and which experiment it is.
        recipe: the method with its constants.
        weights: the diffusion model.
        target: the classifier.
        images: the evaluated subset.
        attack_specs: the attacks.
        numbers: what was published; where there is a rule, the first is the one it gives.
        notes: what else a reader must know.
        rule: how the paper decides, None where that is not settled; `fastpure.evaluate.evaluate_published` does it.
    """

    name: str
    title: str
    recipe: MethodSpec
    weights: DenoiserSpec
    target: ClassifierSpec
    images: DataSpec
    attack_specs: tuple[AttackSpec, ...]
    numbers: tuple[Published, ...]
    notes: tuple[str, ...] = ()
    rule: ProtocolSpec | None = None

    def method(self, classifier: nn.Module | None = None, **changes: Any) -> Method:
        """The method; ``classifier`` guides it where it is guided (for AGDM: the auxiliary network).

        Args:
            changes: settings other than the published ones, such as ``guidance_grad="detached"``.

        Raises:
            TypeError: the method is guided and no network was given.
            ValueError: this fastpure has no such method or setting.
        """
        return self.recipe.build(classifier, **changes)

    def attacks(self, role: str = "published", **changes: Any) -> list[Attack]:
        """The attacks of the paper ("published") or those with exact gradients ("adaptive").

        Raises:
            ValueError: an unknown role, or an attack or setting that this fastpure has not.
        """
        one_of("role", role, ("published", "adaptive"))
        return [spec.build(**changes) for spec in self.attack_specs if spec.role == role]

    def deciding(self, **changes: Any) -> dict[str, Attack]:
        """The published attacks of which the rule takes the smallest accuracy, by label.

        Raises:
            ValueError: the preset has no rule, or an attack or setting that this fastpure has not.
        """
        if self.rule is None:
            ruled = "one that names the rule it was published with"
            raise ValueError(mistake("preset", ruled, self.name, "Choose an attack and a protocol"))
        return {spec.label: spec.build(**changes) for spec in self._deciding()}

    def _deciding(self) -> list[AttackSpec]:
        wanted = None if self.rule is None else self.rule.attack
        return [spec for spec in self.attack_specs if (spec.role, spec.name) == ("published", wanted)]

    def load_denoiser(self, path: str | Path, **options: Any) -> Denoiser:
        """The diffusion model from its published file, told the time as the paper tells it.

        Options and errors as for ``fastpure.load_denoiser``.
        """
        denoiser = load_denoiser(path, **options)
        if self.weights.time_input is not None:
            denoiser.time_input = self.weights.time_input
        return denoiser

    def load_classifier(self, path: str | Path) -> nn.Module:
        """The classifier from its published file; errors as for ``fastpure.load_classifier``."""
        return self.target.load(path)

    def load_dataset(self, path: str | Path | None = None, data_seed: int | None = None) -> Dataset:
        """The evaluated images of the test set at ``path``; errors as for ``fastpure.data.load_dataset``."""
        return self.images.load(path, data_seed)

    def defense(
        self,
        denoiser: Denoiser,
        classifier: nn.Module,
        *,
        guide: nn.Module | None = None,
        changes: Mapping[str, Any] | None = None,
        **options: Any,
    ) -> Defense:
        """The defended classifier of the paper.

        Args:
            guide: the network that guides, where it is not the classifier itself.
            changes: settings of the method other than the published ones.
            options: of ``Purifier``: seed, precision, memory.
        """
        size = denoiser.image_shape[1]
        network = self.target.guide(guide if guide is not None else classifier, size)
        method = self.method(network, **(changes or {}))
        own = self.target.size
        if own is None or own == size:
            return Defense(Purifier(denoiser, method, **options), classifier)
        return Defense(ResizedPurifier(denoiser, method, own, **options), classifier)

    def _shown(self) -> Card:
        rows = self._rows()
        notes = tuple(row for row in rows if row[0] == "note")
        return Card(
            f"Preset {self.name}: {self.title}", tuple(row for row in rows if row[0] != "note"), notes
        )

    def _rows(self) -> list[Row]:
        rows = [
            ("method", str(self.recipe)),
            ("denoiser", str(self.weights)),
            ("classifier", str(self.target)),
            ("data", str(self.images)),
            *((spec.role, str(spec)) for spec in self.attack_specs),
        ]
        if self.rule is not None:
            labels = [spec.label for spec in self._deciding()]
            least = f", the smaller of {' and '.join(labels)}" if len(labels) > 1 else f" of {labels[0]}"
            rows.append(("rule", f"{self.rule}{least}"))
        rows += [("number", str(number)) for number in self.numbers]
        return [*rows, *(("note", note) for note in self.notes)]

    def __str__(self) -> str:
        return "\n".join(
            [f"{self.name}: {self.title}", *(f"  {name:<11} {text}" for name, text in self._rows())]
        )


class UnknownPreset(KeyError, ValueError):
    """No preset of that name; the message lists close ones."""

    def __str__(self) -> str:
        return str(self.args[0])


@final
class Presets(Shown, Mapping[str, Preset]):
    """All presets by name; a wrong name is told the close ones."""

    def __init__(self, presets: tuple[Preset, ...]) -> None:
        self._presets = {preset.name: preset for preset in presets}
        if len(self._presets) != len(presets):
            raise ValueError("two presets have the same name")

    def __getitem__(self, name: str) -> Preset:
        if name in self._presets:
            return self._presets[name]
        from ..words import did_you_mean

        expected = f"one of {', '.join(self._presets)}"
        raise UnknownPreset(mistake("preset", expected, repr(name), did_you_mean(name, self._presets)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._presets)

    def __len__(self) -> int:
        return len(self._presets)

    def _shown(self) -> Card:
        listed = tuple((preset.name, preset.title) for preset in self._presets.values())
        return Card(
            f"{len(listed)} presets; print() lists them with their titles, and each of them whole", (), listed
        )

    def __repr__(self) -> str:
        title = self._shown().title
        return "\n".join([title, *textwrap.wrap(" ".join(self._presets), WIDTH, break_on_hyphens=False)])

    def __str__(self) -> str:
        return "\n".join(f"{preset.name:<32} {preset.title}" for preset in self._presets.values())
