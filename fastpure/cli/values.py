"""What one types as a value: numbers, fractions, literals, NAME=VALUE."""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

KINDS = ("method", "attack", "protocol", "classifier")
"""Of what ``--set KIND.NAME=VALUE`` is a setting."""


def number(text: str) -> float:
    """A decimal number, or a fraction of such: 125.3/255. Raises ValueError if it is neither."""
    above, stroke, below = text.partition("/")
    try:
        if "/" in below:
            raise ValueError
        # Divided as Python does it, so that a script that writes 125.3/255 has the same number.
        return float(Fraction(above.strip())) / (float(Fraction(below.strip())) if stroke else 1.0)
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"must be a number or a fraction such as 8/255, got {text!r}") from None


def literal(text: str) -> Any:
    """A number, fraction, True, False, None or list as written; anything else is text."""
    try:
        return number(text) if "/" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def assigned(settings: Sequence[str] | None, bare: str | None = None) -> dict[str, dict[str, Any]]:
    """What ``--set`` says, by kind and name; a later one wins.

    Args:
        bare: the kind that a name without one belongs to, None if it must be said.

    Raises:
        ValueError: not KIND.NAME=VALUE.
    """
    extra: dict[str, dict[str, Any]] = {kind: {} for kind in KINDS}
    for text in settings or ():
        path, equals, value = text.partition("=")
        kind, dot, name = path.strip().partition(".")
        if bare is not None and equals and not dot and kind.isidentifier():
            kind, dot, name = bare, ".", kind
        if not equals or not dot or kind not in KINDS or not name:
            kinds = ", ".join(f"{kind}.NAME=VALUE" for kind in KINDS)
            raise ValueError(f"`--set` must be {kinds}, got {text!r}")
        extra[kind][name.replace("-", "_")] = literal(value.strip())
    return extra


def tables(settings: Sequence[str], bare: str | None = None) -> dict[str, dict[str, Any]] | list[str]:
    """What ``--set`` says, as a file holds it: tables by kind, or its words where a value is none that files have.

    Raises:
        ValueError: as `assigned`.
    """
    found = {kind: own for kind, own in assigned(settings, bare).items() if own}
    values = [value for own in found.values() for value in own.values()]
    same = all(_kept_by_files(value) and literal(_written(value)) == value for value in values)
    return found if same else list(settings)


def _kept_by_files(value: Any) -> bool:
    """Whether TOML and YAML both give it back: there is no None in TOML, and no tuple in either."""
    if isinstance(value, list):
        return all(map(_kept_by_files, value))
    return isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))


def assignments(value: Any) -> Any:
    """Tables of settings by kind, as a file holds them, as the words of ``--set``; words stay."""
    if not isinstance(value, dict):
        return value
    words = []
    for kind, settings in value.items():
        if not isinstance(settings, dict):
            raise ValueError("must be tables of settings by kind")
        words += [f"{kind}.{name}={_written(one)}" for name, one in settings.items()]
    return words


def _written(value: Any) -> str:
    """``value`` so that `literal` reads it again; a fraction in a file is a number, other text stays text."""
    return value if isinstance(value, str) and "/" in value and literal(value) != value else repr(value)
