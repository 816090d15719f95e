"""The processes of one training run: one alone, or several started by ``accelerate launch``.

Every process walks through the same steps with the same weights; only the rows of a batch are divided. All a run
needs of the others is the sum of the gradients, whether anyone was asked to stop, and what the first process
read from disk.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from ..errors import MissingExtra

T = TypeVar("T")


@final
@dataclass(frozen=True, eq=False)
class Group:
    """This process among all that train together.

    Fields:
        rank: number of this process; number 0 writes the files and talks.
        size: how many there are.
        device: where this process computes; None leaves it to the caller.
    """

    rank: int = 0
    size: int = 1
    device: torch.device | None = None
    _accelerator: Any = None

    @staticmethod
    def current() -> Group:
        """The processes that ``accelerate launch`` (or torchrun) started, or this one alone.

        Raises:
            MissingExtra: there are several, and Accelerate is not installed.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return Group()
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise MissingExtra("accelerate", "distributed", "training with several processes") from error
        accelerator = Accelerator()
        return Group(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)

    @property
    def main(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    @torch.no_grad()
    def sum_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the processes, all in one message."""
        if self.size == 1 or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
        total = self._accelerator.reduce(flat, reduction="sum")
        for tensor, piece in zip(tensors, total.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(piece.view(tensor.shape))

    def mean_in_place(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the processes."""
        self.sum_in_place(tensors)
        if self.size > 1:
            for tensor in tensors:
                tensor.div_(self.size)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; every process must ask at the same point."""
        if self.size == 1:
            return flag
        asked = torch.tensor([float(flag)], device=self.device)
        return bool(self._accelerator.reduce(asked, reduction="sum").item() > 0)

    def from_main(self, make: Callable[[], T]) -> T:
        """What ``make`` returns or raises in the first process, in every process; the others do not call it."""
        if self.size == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        message: list[Any] = [None, None]
        if self.main:
            try:
                message[0] = make()
            except Exception as error:
                message[1] = error
        broadcast_object_list(message)
        if message[1] is not None:
            raise message[1]
        return message[0]
