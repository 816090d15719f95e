"""`Trainer`: one optimiser step after another, in memory. Files, progress and interruption are the loop's."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import torch
from torch import Tensor, nn

from ..data import Dataset
from ..errors import MissingExtra, mistake
from ..nets.products import autocast_products
from .batches import Batch, BatchOrder, StepRandom, dropout_seed
from .config import TrainConfig, ema_decay, learning_rate, make_optimizer
from .losses import Loss

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


@final
class Trainer:
    """Network, averaged network, optimiser and step counter of one run.

    Every random number is a function of (seed, step), so `state` at step k and k more steps after
    `restore` give the same bits as the unbroken run (same machine, same number of threads).

    N processes compute what one computes with N times as many parts (``accumulate``), up to the rounding of the
    gradients' sum; but running statistics of batch normalisation are averaged over the processes.

    Args:
        model: the network; trained in place, on ``device``.
        dataset: its pixels move to ``device`` once.
        group: the processes that share the batch.

    Raises:
        ValueError: an empty data set, or more parts than images in a batch.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        dataset: Dataset,
        config: TrainConfig,
        device: str | torch.device = "cpu",
        group: Group | None = None,
    ) -> None:
        if len(dataset) == 0:
            raise ValueError("`dataset` must hold at least one image, got none")
        self.config, self.loss, self.device = config, loss, torch.device(device)
        self.group = Group() if group is None else group
        if (parts := self.group.size * config.accumulate) > config.batch_size:
            expected = f"at least {parts}, {config.accumulate} parts for each of {self.group.size} processes"
            raise ValueError(mistake("batch_size", expected, config.batch_size))
        self.model = model.to(self.device).train()
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = make_optimizer(self.model, config)
        self.step = 0
        self._pixels = dataset.pixels.to(self.device)
        self._scale = dataset.levels if dataset.pixels.dtype == torch.uint8 else 1
        self._labels = dataset.labels.to(self.device)
        self._order = BatchOrder(dataset, config.batch_size, config.seed)

    def advance(self) -> Tensor:
        """One optimiser step; returns the whole batch's mean loss (0-dim, on the device, detached)."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward()
        if self.config.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
        self.optimizer.step()
        self.group.mean_in_place([value for value in self.model.buffers() if value.is_floating_point()])
        self._update_average()
        self.step += 1
        return loss

    def _backward(self) -> Tensor:
        """Gradients of the batch's mean loss; returns that loss. Each process computes its share of the parts."""
        rows = self._order.rows(self.step).to(self.device)
        total = torch.zeros((), device=self.device)
        parts = rows.tensor_split(self.group.size * self.config.accumulate)
        first = self.group.rank * self.config.accumulate
        start = sum(map(len, parts[:first]))
        devices = [] if self.device.type == "cpu" else [self.device]
        with torch.random.fork_rng(devices=devices, device_type="cuda"):
            for part in parts[first : first + self.config.accumulate]:
                torch.manual_seed(dropout_seed(self.config.seed, self.step, start))
                loss = self._losses(part, start).sum() / len(rows)
                loss.backward()
                total += loss.detach()
                start += len(part)
        gradients = [weight.grad for weight in self.model.parameters() if weight.grad is not None]
        self.group.sum_in_place([*gradients, total])
        return total

    def _losses(self, part: Tensor, start: int) -> Tensor:
        random = StepRandom(self.config.seed, self.step, start, start + len(part), self.device)
        images = self._pixels[part].to(torch.float32) / self._scale
        cast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16")
        with cast, autocast_products(self.device):
            return self.loss(self.model, Batch(images, self._labels[part], random))

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = ema_decay(self.config, self.step)
        for mean, value in zip(
            [*self.average.parameters(), *self.average.buffers()],
            [*self.model.parameters(), *self.model.buffers()],
            strict=True,
        ):
            if mean.is_floating_point():
                mean.lerp_(value, 1 - keep)
            else:
                mean.copy_(value)

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs, as tensors and plain values."""
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "ema": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a `state` of the same configuration."""
        self.model.load_state_dict(state["model"])
        self.average.load_state_dict(state["ema"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = int(state["step"])
