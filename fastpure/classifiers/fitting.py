"""Filling a classifier with tensors only when every name, shape and value fits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, listed

Network = TypeVar("Network", bound=nn.Module)
_COUNTER = "num_batches_tracked"


def fit(build: Callable[[], Network], tensors: dict[str, Tensor], source: str) -> Network:
    """``build()`` with ``tensors`` as its weights: frozen, in evaluation mode, on the CPU.

    The network is built without memory and everything is checked first, so that nothing is ever partly
    loaded. Half-precision weights become float32, float64 ones stay. BatchNorm's counters, which old files
    lack and evaluation mode never reads, may be missing.

    Raises:
        CheckpointError: the tensors do not fit; the message says how many, which, and what was expected.
    """
    with torch.device("meta"):
        network = build()
    expected = network.state_dict()
    if problems := _problems(expected, tensors):
        found = f"{len(tensors)} tensors, expected {len(expected)}"
        raise CheckpointError(f"{source}: weights do not fit {type(network).__name__}: {found}; {problems}")
    floats = [value for value in tensors.values() if value.is_floating_point()]
    dtype = torch.float64 if all(value.dtype == torch.float64 for value in floats) else torch.float32
    weights = {
        name: _owned(tensors[name], dtype if value.is_floating_point() else value.dtype)
        if name in tensors
        else torch.zeros((), dtype=torch.int64)
        for name, value in expected.items()
    }
    network.load_state_dict(weights, assign=True)
    for buffer_name, buffer in network.named_buffers():
        if buffer_name not in expected and buffer.is_floating_point():
            buffer.data = buffer.data.to(dtype)  # mean and std follow the weights
    return network.eval().requires_grad_(False)


def _owned(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy in memory of its own: the file may change afterwards, and the alignment in it changes no sum."""
    return torch.empty(tensor.shape, dtype=dtype).copy_(tensor.detach())


def _problems(expected: dict[str, Tensor], tensors: dict[str, Tensor]) -> str:
    common = [name for name in expected if name in tensors]
    floating = [name for name in common if expected[name].is_floating_point()]
    found = {
        "missing": [name for name in expected if name not in tensors and not name.endswith(_COUNTER)],
        "unknown": [name for name in tensors if name not in expected],
        "of another shape": [
            f"{name} (expected {list(expected[name].shape)}, found {list(tensors[name].shape)})"
            for name in common
            if tensors[name].shape != expected[name].shape
        ],
        "not floating": [
            f"{name} ({tensors[name].dtype})" for name in floating if not tensors[name].is_floating_point()
        ],
        "with NaN or Inf": [name for name in floating if not _finite(tensors[name])],
        "negative, though variances": [
            name for name in floating if name.endswith("running_var") and bool((tensors[name] < 0).any())
        ],
    }
    return "; ".join(f"{len(names)} {what}: {listed(names)}" for what, names in found.items() if names)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(value.isfinite().all())
