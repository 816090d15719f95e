"""Images that an attack found elsewhere, judged on this defence."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from ..errors import mistake, whole
from .base import Attack, NormAttack, Problem, Proposal, Tick
from .budget import Budget
from .naming import check_names, check_tensor, rows


@final
@dataclass(frozen=True, kw_only=True, eq=False)
class Transfer(Attack):
    """Adversarial images of another defence (Papernot et al. 2016), as they are: no query, no gradient.

    Where a defence masks its gradients, images that fool a related one without that flaw break it more often than
    an attack on itself (Carlini et al. 2019). `fastpure.Run.as_attack` makes one from a finished run.

    Attributes:
        found: adversarial images [N, C, H, W] float32 in [0, 1].
        sample_ids: names of their originals, int64 [N], each once; images are matched by name.
        norm, eps: the budget they were found in, see `Budget`. An image outside of it belongs to another original.
        source: what they were found on, for people.
        eval_draws: fresh draws that decide in the end.
        batch_size: most (image, draw) pairs in one network call.

    Raises:
        TypeError, ValueError: images or names are not as described.
    """

    asks: ClassVar[bool] = False

    found: Tensor = field(repr=False)
    sample_ids: Tensor = field(repr=False)
    norm: str = "Linf"
    eps: float = 8 / 255
    source: str = ""
    eval_draws: int = 10
    batch_size: int = 256

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", Budget(self.norm, self.eps).norm)
        whole("eval_draws", self.eval_draws, minimum=1)
        whole("batch_size", self.batch_size, minimum=1)
        check_tensor("found", self.found, torch.float32, 4)
        check_names(self.sample_ids, len(self.found), "images")

    @property
    def budget(self) -> Budget:
        """The ball in which the images were found."""
        return Budget(self.norm, self.eps)

    def for_counting(self) -> Attack:
        """See ``Attack.for_counting``."""
        return Still(norm=self.norm, eps=self.eps)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The images of these names.

        Raises:
            ValueError: there is none of a name, or it is one of another original.
        """
        remedy = "Attack the same images, named alike, when looking for them"
        x = self.found[rows(self.sample_ids, problem.ids, remedy)].to(problem.x.device)
        if x.shape != problem.x.shape:
            raise ValueError(mistake("x", f"images of {list(x.shape[1:])}", list(problem.x.shape[1:])))
        far = ~self.budget.admits(self.budget.distance(x, problem.x))
        if bool(far.any()):
            names = problem.ids[far][:8].tolist()
            expected = f"the originals of the images found, within {self.norm} {self.eps:g}"
            raise ValueError(mistake("x", expected, f"others at sample ids {names}"))
        return Proposal(x, problem.x.new_empty((0, len(x))))


@final
@dataclass(frozen=True, kw_only=True)
class Still(NormAttack):
    """Leaves every image as it is: stands for attacks that ask nothing, where only questions are counted."""

    asks: ClassVar[bool] = False

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The images."""
        return Proposal(problem.x.clone(), problem.x.new_empty((0, len(problem.x))))
