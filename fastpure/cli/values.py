"""What one types as a value: numbers, fractions, literals, NAME=VALUE."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

KINDS = ("method", "attack", "protocol", "classifier")
"""Of what ``--set KIND.NAME=VALUE`` is a setting."""


def number(text: str) -> float:
    """A decimal number or fraction. Raises ValueError if it is neither."""
    try:
        return float(Fraction(text.strip()))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"must be a number or a fraction such as 8/255, got {text!r}") from None


def literal(text: str) -> Any:
    """A number, fraction, True, False, None or list as written; anything else is text."""
    try:
        return float(Fraction(text)) if "/" in text else ast.literal_eval(text)
    except (ValueError, SyntaxError, ZeroDivisionError):
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
