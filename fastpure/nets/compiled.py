"""Calls of a network through ``torch.compile``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..errors import CompileError, one_of

MODES = ("default", "max-autotune-no-cudagraphs")
"""Modes of ``torch.compile``; those with CUDA graphs of their own would get in the way of the recorded steps."""


class CompiledCall:
    """Calls a function through ``torch.compile``; compilation happens at the first call.

    Args:
        backend: of ``torch.compile``.
        mode: one of ``MODES``.
    """

    def __init__(self, backend: str = "inductor", mode: str = "default") -> None:
        self.backend = one_of("backend", backend, torch.compiler.list_backends(exclude_tags=()))
        self.mode = one_of("mode", mode, MODES)
        self._compiled: Callable[..., Tensor] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> CompiledCall:
        return CompiledCall(self.backend, self.mode)  # a copy has a network of its own to compile

    def __reduce__(self) -> tuple[type[CompiledCall], tuple[str, str]]:
        return CompiledCall, (self.backend, self.mode)

    def __call__(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """``function(*args)``, compiled; ``function`` must be the same one at every call.

        Raises:
            CompileError: there is no compiler, or it fails; the message has its words.
        """
        if self._compiled is None:
            mode = None if self.mode == "default" else self.mode
            self._compiled = torch.compile(function, backend=self.backend, mode=mode)
        try:
            return self._compiled(*args)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise  # what the network itself raises
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            words = " ".join(lines[:2]) or type(error).__name__
            raise CompileError(
                f"the network could not be compiled by torch.compile(backend={self.backend!r}): {words}. "
                "Install what it asks for (on a CPU a C++ compiler, on a GPU Triton too) or leave compilation out"
            ) from error
