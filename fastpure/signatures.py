"""What functions take: the one place that reads signatures, and only while the package is imported, or for an error.

Methods, protocols and commands are functions that are called with settings by name. They are asked once what these
are, and whoever wants to know later asks the value that was made of the answer.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Final, ParamSpec, TypeVar

from .errors import unexpected

P = ParamSpec("P")
R = TypeVar("R")

REQUIRED: Final = inspect.Parameter.empty
"""Stands where an argument has no default."""


def kinds(function: Callable[..., Any]) -> dict[str, str]:
    """The arguments of ``function`` and what each is, as it is written in the source ("float", "int | None")."""
    return {name: str(parameter.annotation) for name, parameter in _parameters(function).items()}


def arguments(function: Callable[..., Any]) -> dict[str, Any]:
    """The arguments of ``function`` in their order, each with its default or ``REQUIRED``."""
    return {name: parameter.default for name, parameter in _parameters(function).items()}


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether ``function`` takes arguments of any name (``**options``)."""
    return any(one.kind is inspect.Parameter.VAR_KEYWORD for one in _parameters(function).values())


def suggests_names(function: Callable[P, R]) -> Callable[P, R]:
    """``function``, whose error for an argument of another name also says what was meant."""
    known = [name for name in arguments(function) if name != "self"]
    names = set(known)
    name = function.__qualname__.removesuffix(".__init__")

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not kwargs.keys() <= names:
            error = unexpected(name, kwargs, known)
            if error is not None:
                raise error
        return function(*args, **kwargs)

    return call


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(function).parameters
