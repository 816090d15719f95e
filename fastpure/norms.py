"""One name per norm, however it is written."""

from __future__ import annotations

import re
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
"""Lower case without dashes, underscores and blanks inside -> the norm."""

_JOINT = re.compile(r"(?<=[a-z0-9])[-_ ](?=[a-z0-9∞])")
"""A dash, underscore or blank inside a name; what stands before one is a sign, and no norm is negative."""


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
    meant = SPELLINGS.get(_JOINT.sub("", text.strip().lower()))
    for choice in choices:
        if meant is not None and choice.lower() == meant:
            return choice
    one_of(argument, value, choices)
    return str(value)
