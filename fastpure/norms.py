"""One name per norm, however it is written."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .errors import one_of

SPELLINGS = {
    "linf": "linf",
    "inf": "linf",
    "infinity": "linf",
    "l∞": "linf",
    "∞": "linf",
    "l2": "l2",
    "2": "l2",
    "l1": "l1",
    "1": "l1",
}
"""Lower case without dashes, underscores and blanks -> the norm."""


def norm_called(argument: str, value: Any, allowed: Iterable[str]) -> str:
    """The one of ``allowed`` that is meant by ``value``: "linf", "L-inf", ``float("inf")`` and 2 are known too.

    Raises:
        ValueError: none of them.
    """
    choices = list(allowed)
    if isinstance(value, str) and value in choices:
        return value
    number = isinstance(value, int | float) and not isinstance(value, bool)
    text = f"{value:g}" if number else value if isinstance(value, str) else ""
    meant = SPELLINGS.get(text.strip().lower().translate({ord(mark): None for mark in "-_ "}))
    for choice in choices:
        if meant is not None and choice.lower() == meant:
            return choice
    one_of(argument, value, choices)
    return str(value)
