"""Exceptions and argument checks shared by every layer.

A mistake of the caller is a ``ValueError`` or ``TypeError`` whose message names the argument, what was
expected, what came and how to mend it. What the environment cannot do raises one of the classes below.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable
from typing import Any


class FastpureError(Exception):
    """Base of every exception that is not the caller's mistake."""


class KernelUnavailable(FastpureError, RuntimeError):
    """A back end was asked for by name and cannot run here; the message says why."""


class MissingExtra(FastpureError, ImportError):
    """Something was asked for that needs a package which is not installed."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package {package}: pip install 'fastpure[{extra}]'")


class CaptureError(FastpureError, RuntimeError):
    """Steps could not be recorded as a CUDA graph; the message has the reason."""


class CompileError(FastpureError, RuntimeError):
    """A network could not be compiled; the message has the compiler's reason."""


class NonFiniteError(FastpureError, ArithmeticError):
    """A network answered NaN or Inf; the message names the network and the sample ids, and in a purifier the step."""


class CheckpointError(FastpureError, ValueError):
    """A weights file is truncated, foreign or does not match; nothing of it was loaded."""


class DownloadError(FastpureError, RuntimeError):
    """A published network could not be fetched, or is not the one that was fetched first."""


class DataError(FastpureError, ValueError):
    """A data file is missing, corrupt or of another kind than announced."""


class ResumeError(FastpureError, RuntimeError):
    """A saved run cannot be continued, because it belongs to another configuration or is damaged."""


class RunMismatch(ResumeError):
    """A run file belongs to another configuration; the message names the fields that differ."""


class RunDamaged(ResumeError):
    """A run file is not one, is of another version, or its content does not match its checksums."""


class RunLocked(FastpureError, RuntimeError):
    """Another process is writing the run file; the message says which."""


class StoreUnavailable(FastpureError, OSError):
    """A run file cannot be written where it should be; what it held before is untouched."""


class DiskFull(StoreUnavailable):
    """No space is left for the next block of a run; the finished blocks are safe."""


class OutOfMemory(FastpureError, MemoryError):
    """Not even one image fits into memory."""


class EngineUnavailable(FastpureError, RuntimeError):
    """The engine of a distributed run has no workers, or lost them again and again."""


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM ended a run in good order; the message says how to continue."""


def mistake(argument: str, expected: str, got: Any, remedy: str = "") -> str:
    """One sentence for a caller's mistake: the argument, what was expected, what came, the remedy."""
    text = f"`{argument}` must be {expected}, got {got}"
    return f"{text}. {remedy}" if remedy else text


def one_of(argument: str, value: Any, allowed: Iterable[Any]) -> Any:
    """Return ``value`` if it is among ``allowed``; otherwise raise ValueError listing what is, and what is near."""
    choices = list(allowed)
    if value not in choices:
        from .words import did_you_mean

        listed = ", ".join(repr(choice) for choice in choices)
        raise ValueError(mistake(argument, f"one of {listed}", repr(value), did_you_mean(value, choices)))
    return value


def unexpected(function: str, given: Iterable[str], known: Iterable[str]) -> TypeError | None:
    """The error for keyword arguments that ``function`` has not, as Python's own, and what was meant; None if it has.

    Args:
        given, known: names of arguments.
    """
    names = list(known)
    for name in given:
        if name not in names:
            from .words import did_you_mean

            hint = did_you_mean(name, names) or f"It has {', '.join(names)}"
            return TypeError(f"{function}() got an unexpected keyword argument {name!r}. {hint}")
    return None


def warn_caller(message: str) -> None:
    """Warn (UserWarning) at the line that called into this package, however deep in it this is found out."""
    frame, depth = sys._getframe(), 1
    while (
        frame.f_back is not None
        and frame.f_globals.get("__name__", "").partition(".")[0] == __name__.partition(".")[0]
    ):
        frame, depth = frame.f_back, depth + 1
    warnings.warn(message, stacklevel=depth)


def listed(names: Iterable[Any], most: int = 4) -> str:
    """The first few names, each cut where it is long, and three dots if there are more."""
    shown = [text if len(text) <= 120 else f"{text[:117]}..." for text in map(str, names)]
    return ", ".join(shown[:most]) + (", ..." if len(shown) > most else "")


def named(ids: Any, bad: Any) -> str:
    """The samples of ``ids`` [B] for which ``bad`` [B] holds, for a message: "sample id 3, 5" and how many more."""
    found = ids[bad].tolist()
    more = f" and {len(found) - 8} more" if len(found) > 8 else ""
    return f"sample id {', '.join(str(int(i)) for i in found[:8])}{more}"


def finite(answer: Any, ids: Any, who: str) -> Any:
    """Return ``answer`` [B, ...] if it is finite; otherwise raise NonFiniteError saying ``who`` gave it, for which ids.

    Whoever decides by an answer looks at it first: the largest of NaN is class 0, and NaN exceeds no threshold.
    """
    bad = ~answer.detach().isfinite()
    if bool(bad.any()):
        raise NonFiniteError(f"{who} answered NaN or Inf for {named(ids, bad.reshape(len(bad), -1).any(1))}")
    return answer


def positive(argument: str, value: float) -> float:
    """Return ``value`` as float if it is a finite number above zero; otherwise raise."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        text = str(value).strip()
        written = type(value).__name__ == "str" and text and not text.strip("0123456789./ ")
        remedy = f"Write {text} without quotes" if written else ""
        raise TypeError(mistake(argument, "a positive number", f"{type(value).__name__} {value!r}", remedy))
    if not 0 < value < float("inf"):
        raise ValueError(mistake(argument, "a finite number above 0", repr(value)))
    try:
        return float(value)
    except OverflowError:  # an integer beyond every float, too long to be shown
        raise ValueError(
            mistake(argument, "a finite number", f"one of {int(value).bit_length()} bits")
        ) from None


def whole(argument: str, value: int, minimum: int = 0, maximum: int | None = None) -> int:
    """Return ``value`` if it is an integer in ``[minimum, maximum]``; otherwise raise."""
    expected = f"an integer >= {minimum}" if maximum is None else f"an integer in [{minimum}, {maximum}]"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(mistake(argument, expected, f"{type(value).__name__} {value!r}"))
    try:
        number = value.__index__()
    except TypeError:  # tensors of several or of floating numbers
        raise TypeError(mistake(argument, expected, f"{type(value).__name__} {value!r}")) from None
    if number < minimum or (maximum is not None and number > maximum):
        shown = repr(number) if number.bit_length() <= 512 else f"one of {number.bit_length()} bits"
        raise ValueError(mistake(argument, expected, shown))
    return number
