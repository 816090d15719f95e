"""Where an attack begins instead of at a random point: images that another attack, stage or run has found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from ..errors import mistake, named
from ..readers import READERS
from ..shown import Settings
from .base import AttackResult
from .budget import Budget
from .naming import by_name, check_names, check_tensor, check_values, rows

ROUNDING = 2.0**-23
"""How far storing a pixel of [0, 1] and computing a bound in float32 may carry it out of the ball, see `Start.at`."""


@final
@dataclass(frozen=True, eq=False, repr=False)
class Start(Settings):
    """Images to begin at, matched with the attacked ones by sample id.

    In a run's identity the images stand as their checksum.

    Attributes:
        found: [N, C, H, W] float32 in [0, 1].
        sample_ids: names of their originals, int64 [N], each once; None for the images of one call (or of one data
            set, in `evaluate`) in their order.

    Raises:
        TypeError, ValueError: images or names are not as described.
    """

    found: Tensor
    sample_ids: Tensor | None = None

    def __post_init__(self) -> None:
        check_tensor("start", self.found, torch.float32, 4)
        if self.sample_ids is not None:
            check_names(self.sample_ids, len(self.found), "images")
        names = torch.arange(len(self.found)) if self.sample_ids is None else self.sample_ids
        check_values("start", self.found.detach().cpu(), names.cpu())

    def __repr__(self) -> str:
        return f"Start({len(self.found)} images)"

    @staticmethod
    def of(value: Any) -> Start | None:
        """The images of a tensor, an `AttackResult`, a `Transfer`, a `fastpure.Run` or a run file; None for None.

        Raises:
            TypeError: something else.
            FileNotFoundError, RunDamaged: a path that leads to no run.
            ValueError: a run without attack, or images that are not as described above.
        """
        if value is None or isinstance(value, Start):
            return value
        if isinstance(value, Tensor):
            return Start(value.detach())
        if isinstance(value, AttackResult):
            return Start(value.x_adv.detach(), value.sample_ids)
        if isinstance(value, str | Path):
            with READERS["run"](value) as run:
                return Start.of(run)
        if hasattr(value, "as_attack"):
            return Start.of(value.as_attack())
        if hasattr(value, "found") and hasattr(value, "sample_ids"):
            return Start(value.found, value.sample_ids)
        expected = "a tensor [N, C, H, W], an AttackResult, a run or the path of a run file"
        raise TypeError(mistake("start", expected, type(value).__name__))

    def named(self, sample_ids: Tensor) -> Start:
        """The same with names: its own, or these of images [B] in the same order.

        Raises:
            ValueError: it has none, and there are not as many images.
        """
        if self.sample_ids is not None:
            return self
        return Start(self.found, by_name(sample_ids, len(self.found), "start"))

    def at(self, x: Tensor, sample_ids: Tensor, budget: Budget) -> Tensor:
        """The first point of each of the images ``x`` [B, C, H, W] with these names [B], projected into ``budget``.

        What float32 rounding alone has carried out of the ball is taken back into it.

        Raises:
            ValueError: there is none of a name, of another shape, or outside the ball around its original.
        """
        start = self.named(sample_ids)
        assert start.sample_ids is not None
        remedy = "Start from what was found on the same images, named alike"
        at = rows(start.sample_ids, sample_ids, remedy)
        point = start.found[at].to(x.device)
        if point.shape != x.shape:
            raise ValueError(
                mistake("start", f"images of {list(x.shape[1:])}", list(point.shape[1:]), remedy)
            )
        pixels = x[0].numel() if len(x) else 0
        slack = ROUNDING * {"Linf": 1.0, "L2": pixels**0.5, "L1": float(pixels)}[budget.norm]
        far = ~(budget.distance(point, x) <= budget.eps + slack)
        if bool(far.any()):
            expected = f"inside the ball {budget.norm} {budget.eps:g} around the attacked images"
            remedy = "Start from images found on the same originals within this budget"
            raise ValueError(mistake("start", expected, f"others for {named(sample_ids, far)}", remedy))
        return budget.project(point, x)
