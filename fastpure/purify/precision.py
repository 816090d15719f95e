"""What the networks compute in. The state of the reverse process is float32 whatever is chosen here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch

from ..errors import one_of


@dataclass(frozen=True)
class Precision:
    """``network`` is the dtype of weights and activations, ``state`` that of the image between the steps."""

    network: torch.dtype
    state: torch.dtype = torch.float32
    tf32: bool = False

    def environment(self, device: torch.device) -> AbstractContextManager[None]:
        """Context manager that switches TF32 on or off for the duration, and back; nothing to do off CUDA."""
        return _tf32(self.tf32) if device.type == "cuda" else nullcontext()


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


@contextmanager
def _tf32(allowed: bool) -> Iterator[None]:
    matmul, convolution = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, convolution.allow_tf32
    matmul.allow_tf32 = convolution.allow_tf32 = allowed
    try:
        yield
    finally:
        matmul.allow_tf32, convolution.allow_tf32 = before
