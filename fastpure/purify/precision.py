"""What the networks compute in, and that nothing else decides it: the caller's torch settings stay outside.

The state of the reverse process is float32 whatever is chosen here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..errors import one_of
from ..threads import computing


@dataclass(frozen=True)
class Precision:
    """``network`` is the dtype of weights and activations, ``state`` that of the image between the steps."""

    network: torch.dtype
    state: torch.dtype = torch.float32
    tf32: bool = False

    @contextmanager
    def environment(self, device: torch.device, work: float | None = None) -> Iterator[None]:
        """Computing inside is in this precision: no autocast, and TF32 or bfloat16 products only if chosen here.

        On the host it is done by as many threads as suit layers of ``work`` operations (`fastpure.threads`).

        cuDNN sums in one order: the gradient of a convolution is the same whenever it is computed, replayed or not.
        The caller's choices (``torch.autocast``, ``set_float32_matmul_precision``, ``allow_tf32``,
        ``torch.backends.fp32_precision``, ``cudnn.deterministic``, ``cudnn.benchmark``) are in no run's identity,
        so they must not change a result.
        """
        with ExitStack() as stack:
            if torch._C._is_any_autocast_enabled():
                for kind in {"cpu", device.type}:
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(_SWITCH.set(self.tf32))
            if device.type == "cpu":
                stack.enter_context(computing(work))
            yield


PRECISIONS = {
    "fp32": Precision(torch.float32),
    "tf32": Precision(torch.float32, tf32=True),
    "bf16": Precision(torch.bfloat16),
    "fp16": Precision(torch.float16),
    "fp64": Precision(torch.float64, state=torch.float64),
}
"""Precisions by name. "fp64" (state included) is for verification: it is what gradients are checked against."""


def precision(name: str) -> Precision:
    """The precision called ``name``; ValueError lists the known names."""
    return PRECISIONS[one_of("precision", name, PRECISIONS)]


Setting = tuple[Callable[[], Any], Callable[[Any], None]]
"""How to read and how to write one of torch's settings."""


def _cudnn(name: str) -> Setting:
    return partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name)


_OLDER: tuple[tuple[Setting, Callable[[bool], Any]], ...] = (
    (
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
        lambda tf32: "high" if tf32 else "highest",
    ),
    (_cudnn("allow_tf32"), bool),
    # Recorded and launched steps must agree to the bit, and runs with each other.
    (_cudnn("deterministic"), lambda tf32: True),
    (_cudnn("benchmark"), lambda tf32: False),
)
"""Settings that every torch has, with the value that each needs (``allow_tf32`` of products is the first of them).

Their setters set the newer ones too; their getters raise where those say something else.
"""

_NEWER = tuple(
    (backend, operation) for backend in ("cuda", "mkldnn") for operation in ("matmul", "conv", "rnn")
)
"""Settings of ``torch.backends.*.fp32_precision`` (torch 2.9), which inherit from their back end where unset."""

_read_newer: Any = getattr(torch._C, "_get_fp32_precision_getter", None)
_write_newer: Any = getattr(torch._C, "_set_fp32_precision_setter", None)


class _Switch:
    """The process's float32 settings: the first to need them changes them, the last to leave puts them back.

    Threads that want different ones at the same time may see each other's; the caller's come back all the same.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users, self._tf32 = 0, False
        self._outer: list[tuple[int, bool, Any]] = []

    @contextmanager
    def set(self, tf32: bool) -> Iterator[None]:
        """``tf32`` inside the block, in all threads."""
        with self._lock:
            if not self._users or self._tf32 != tf32:
                self._outer.append((self._users, self._tf32, _read()))
                self._users, self._tf32 = 0, tf32
                _write(tf32)
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    self._users, self._tf32, found = self._outer.pop()
                    _restore(found)


def _read() -> Any:
    newer = {key: (_own(*key), _read_newer(*key)) for key in _NEWER} if _read_newer is not None else {}
    return [_hidden(read, newer) for (read, _), _ in _OLDER], newer


def _own(backend: str, operation: str) -> str:
    """What is set there itself, "none" where it is inherited: that shows when what it would inherit changes."""
    value: str = _read_newer(backend, operation)
    if backend == "generic":
        return value
    parent = ("generic" if operation == "all" else backend, "all")
    before = _own(*parent)
    try:
        _write_newer(*parent, "tf32" if value == "ieee" else "ieee")
        return value if _read_newer(backend, operation) == value else "none"
    finally:
        _write_newer(*parent, before)


def _hidden(read: Callable[[], Any], newer: dict[tuple[str, str], tuple[str, str]]) -> Any:
    """The value of an older setting, also where a newer one says otherwise and its getter raises."""
    with suppress(RuntimeError):
        return read()
    try:
        for key in newer:
            _write_newer(*key, "ieee")
        with suppress(RuntimeError):
            return read()
        return True  # "ieee" agrees with everything but this value of cuDNN's
    finally:
        _restore_newer(newer)


def _write(tf32: bool) -> None:
    for (read, write), needed in _OLDER:
        value = None
        with suppress(RuntimeError):
            value = read()
        if value != needed(tf32):
            write(needed(tf32))
    if _write_newer is not None:
        for backend, operation in _NEWER:
            wanted = "tf32" if tf32 and backend == "cuda" else "ieee"
            if _read_newer(backend, operation) != wanted:
                _write_newer(backend, operation, wanted)


def _restore(found: Any) -> None:
    older, newer = found
    for ((_, write), _), value in zip(_OLDER, older, strict=True):
        write(value)
    _restore_newer(newer)


def _restore_newer(newer: dict[tuple[str, str], tuple[str, str]]) -> None:
    for key, (own, seen) in newer.items():
        _write_newer(*key, own)
        if _read_newer(*key) != seen:  # a default that no setter brings back
            _write_newer(*key, seen)


_SWITCH = _Switch()
