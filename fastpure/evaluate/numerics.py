"""Torch's global settings of arithmetic, so that another process computes as its caller does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final

import torch

BACKENDS: Final = (
    "cuda.matmul.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
    "cudnn.enabled",
    "cudnn.benchmark",
    "cudnn.benchmark_limit",
    "cudnn.deterministic",
    "cudnn.allow_tf32",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "fp32_precision",
    "cuda.matmul.fp32_precision",
    "cudnn.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)
"""Attributes below torch.backends; those that are called ``fp32_precision`` last, since they are the finer ones."""

ATTENTION: Final = ("flash", "mem_efficient", "math", "cudnn")
"""Kernels of attention that torch.backends.cuda lets one switch off."""


def numerics() -> dict[str, Any]:
    """The settings of this process by name, as plain values that can be sent. What this torch lacks is left out."""
    found = {}
    for name, (get, _) in _settings().items():
        # A RuntimeError: torch tells no old TF32 switch once the new ones say something else, which are read as well.
        with suppress(AttributeError, RuntimeError):
            found[name] = get()
    return found


def set_numerics(wanted: Mapping[str, Any]) -> None:
    """Make ``wanted``, of `numerics`, the settings of this process. What has its value already is not touched."""
    settings, here = _settings(), numerics()
    for name, value in wanted.items():
        if name not in here or here[name] != value:
            settings[name][1](value)
            here = numerics()  # one may move another


def _settings() -> dict[str, tuple[Callable[[], Any], Callable[[Any], None]]]:
    """Name -> (what tells it, what sets it), in the order in which they are to be set."""
    found: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {
        "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
        "deterministic algorithms": (_deterministic, _set_deterministic),
        "fill uninitialized memory": (
            lambda: torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            lambda value: setattr(torch.utils.deterministic, "fill_uninitialized_memory", value),
        ),
        "float32 matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    }
    for kernel in ATTENTION:
        found[f"{kernel} attention"] = (
            getattr(torch.backends.cuda, f"{kernel}_sdp_enabled"),
            getattr(torch.backends.cuda, f"enable_{kernel}_sdp"),
        )
    return found | {name: (_getter(name), _setter(name)) for name in BACKENDS}


def _getter(name: str) -> Callable[[], Any]:
    return lambda: attrgetter(name)(torch.backends)


def _setter(name: str) -> Callable[[Any], None]:
    owner, _, last = name.rpartition(".")
    return lambda value: setattr(attrgetter(owner)(torch.backends) if owner else torch.backends, last, value)


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])
