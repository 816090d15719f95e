"""Every field of a configuration that a reader knows: honoured, held to a value, or harmless. Nothing else passes."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, final

from ..errors import CheckpointError, listed

_MOST_VALUES = 1000
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 80


def names(text: str) -> frozenset[str]:
    """The words of a text, for the tables."""
    return frozenset(text.split())


def shown(value: Any) -> str:
    """A value for a message, cut where it is long or deep."""
    return _REPR.repr(value)


@final
@dataclass(frozen=True)
class Fields:
    """The fields of one kind of configuration.

    A field that has a meaning and is left out is refused, unless the original code has a default for it. A default is
    a definition, no agreement: what was taken from there is told.

    Attributes:
        whose: the project, for messages.
        honoured: fields that the reader translates.
        required: field -> the values under which the network and its schedule are ours.
        harmless: fields on which neither weights nor arithmetic nor schedule depend.
        defaults: field -> what the original code takes where it is left out.
        reasons: field -> why another value is refused, where the values do not say it.
    """

    whose: str
    honoured: frozenset[str]
    required: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    harmless: frozenset[str] = frozenset()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)

    def read(self, values: Any, source: str, section: str = "") -> tuple[dict[str, Any], tuple[str, ...]]:
        """(fields with a meaning and their values, what was assumed in words).

        Raises:
            CheckpointError: a field is unknown or missing, or has a value that we do not have.
        """
        values = require_fields(values, f"{source}, {section}" if section else source)
        prefix = f"{section}." if section else ""
        known = self.honoured | set(self.required) | self.harmless
        if unknown := [f"{prefix}{name}" for name in values if name not in known]:
            remedy = "Leave out what means nothing for network and schedule; the rest cannot be read here"
            raise CheckpointError(f"{source}: unknown fields {listed(sorted(unknown))}. {remedy}")
        kept = {
            name: _plain(value, f"{source}: {prefix}{name}")
            for name, value in values.items()
            if name not in self.harmless
        }
        assumed = {name: value for name, value in self.defaults.items() if name not in kept}
        kept.update(assumed)
        for name, allowed in self.required.items():
            if name not in kept:
                raise CheckpointError(f"{source}: {prefix}{name} is missing; expected {_either(allowed)}")
            if not any(kept[name] == value for value in allowed):
                reason = f" ({self.reasons[name]})" if name in self.reasons else ""
                found = shown(kept[name])
                raise CheckpointError(
                    f"{source}: {prefix}{name} must be {_either(allowed)}, found {found}{reason}"
                )
        return kept, tuple(
            f"{prefix}{name} {value!r}" for name, value in assumed.items() if name not in self.required
        )


def require_fields(values: Any, source: str) -> Mapping[str, Any]:
    """``values`` if they are fields by name; CheckpointError if not."""
    if not isinstance(values, Mapping) or not all(isinstance(name, str) for name in values):
        raise CheckpointError(f"{source}: expected fields by name, found {type(values).__name__}")
    return values


def merged(source: str, *parts: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of several parts of a configuration in one dict; CheckpointError where two contradict each other."""
    found: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            if name in found and found[name] != value:
                both = f"{shown(found[name])} and {shown(value)}"
                raise CheckpointError(f"{source}: {listed([name])} stands there twice, as {both}")
            found[name] = value
    return found


def _either(allowed: tuple[Any, ...]) -> str:
    several = [repr(value) for value in allowed[:6]]
    return " or ".join(several) + (" or others of the kind" if len(allowed) > 6 else "")


def _plain(value: Any, what: str, depth: int = 0) -> Any:
    """A copy made of numbers, texts and short lists: nothing that could be compared or shown without end."""
    if value is None or isinstance(value, bool | int | float | str):
        if isinstance(value, int) and abs(value) >= 2**63:
            raise CheckpointError(f"{what} is an integer of {value.bit_length()} bits, expected at most 63")
        return value
    if isinstance(value, list | tuple) and len(value) <= _MOST_VALUES and depth < 3:
        return [_plain(part, what, depth + 1) for part in value]
    if isinstance(value, Mapping) and len(value) <= _MOST_VALUES and depth < 3:
        return {str(name)[:80]: _plain(part, what, depth + 1) for name, part in value.items()}
    raise CheckpointError(
        f"{what} must be a number, a text or a short list of these, found a {type(value).__name__}"
    )
