"""Modules whose noise is ours to number, and what the door asks of them."""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import mistake, one_of, whole
from ..kernels import Domain
from ..shown import Card, ShownModule, described
from .inputs import Asked, Held, current_question, held_noise, holding

_COUNTING = threading.Lock()

PARTS = ("all", "forward", "reverse")
"""What ``fixed`` can hold still: all noise, that of the diffusion only, that of the reverse steps only."""


def outermost(module: nn.Module) -> list[Asked]:
    """The ``Asked`` modules in ``module`` (itself included) that are not inside another."""
    if isinstance(module, Asked):
        return [module]
    return [part for child in module.children() for part in outermost(child)]


def calls_inside(module: nn.Module) -> int:
    """Calls of diffusion models in one answer of ``module``, if each of those that it has is asked once."""
    return sum(part.network_calls for part in outermost(module))


class Numbered(ShownModule, Asked):
    """A module from [0, 1] images to logits whose noise is numbered by (sample id, draw, domain).

    Called plainly it takes the next draw of a counter; inside ``fixed`` the held one; while a module around it is
    attacked or evaluated, the draw and ids that are asked for. It is not trained: always in evaluation mode.
    """

    def __init__(self) -> None:
        super().__init__()
        self.training = False
        self._next_draw = 0
        self._held: Held | None = None

    def _shown(self) -> Card:
        parts = {name: described(part) for name, part in self.named_children()}
        settings = [("settings", self.extra_repr())] if self.extra_repr() else []
        calls = f"{self.network_calls} network calls per image"
        return Card(f"{type(self).__name__}: {calls}", (*settings, *parts.items()))

    @property
    @abstractmethod
    def noisy_parts(self) -> tuple[str, frozenset[str]]:
        """Who draws noise, in words, and which of ``PARTS`` besides "all" are noise of its."""

    @contextmanager
    def fixed(self, draw: int = 0, part: str = "all") -> Iterator[Any]:
        """Use one draw for every call of this thread inside the block: the same noise for attacker and evaluation.

        ``part`` "forward" holds only the noise that diffuses the input, "reverse" only that of the reverse
        steps; the other part stays random, and ``draw`` of a call numbers it.

        Raises:
            ValueError: there is no such part to hold, so that nothing would be fixed.
        """
        held = Held(whole("draw", draw, maximum=2**32 - 1), one_of("part", part, PARTS))
        who, noisy = self.noisy_parts
        if part != "all" and part not in noisy:
            choices = ", ".join(repr(name) for name in PARTS if name == "all" or name in noisy)
            raise ValueError(
                mistake("part", f"one of {choices} for {who}, which has no other noise", repr(part))
            )
        with holding(self, held):
            yield self

    @property
    def held(self) -> Held | None:
        """The noise that ``fixed`` holds in this thread, if any."""
        return held_noise(self) or self._held

    @property
    def fixed_draw(self) -> int | None:
        """The frozen draw where ``fixed`` holds all noise, else None. Attacks and evaluations honour it."""
        return self.held.draw if self.held is not None and self.held.part == "all" else None

    def train(self, mode: bool = True) -> Numbered:
        """Keep evaluation mode: attack libraries toggle it, and what is under attack is never trained."""
        return self

    def _realisation(
        self, x: Tensor, sample_ids: Tensor | list[int] | None, draw: int | Tensor | None, domain: Domain
    ) -> tuple[Tensor | list[int] | None, int | Tensor, Domain]:
        """Ids, draw and domain of a call: those given, the held draw, those asked for around it, or the next draw."""
        if draw is not None:
            return sample_ids, draw, domain
        question = current_question()
        if question is not None:
            ids, draw, domain = question.take(self, len(x))
            sample_ids = ids if sample_ids is None else sample_ids
        if self.fixed_draw is not None:
            return sample_ids, self.fixed_draw, Domain.DEFENSE if question is not None else domain
        if draw is not None:
            return sample_ids, draw, domain
        with _COUNTING:
            self._next_draw += 1
            return sample_ids, self._next_draw - 1, domain


def as_pairs(x: Tensor, sample_ids: Tensor | list[int] | None, draw: int | Tensor) -> tuple[Tensor, Tensor]:
    """Ids and draws as int64 [B] on the device of ``x`` [B, ...]."""
    ids = torch.as_tensor(range(len(x)) if sample_ids is None else sample_ids, device=x.device)
    draws = draw.to(x.device) if isinstance(draw, Tensor) else torch.full_like(ids, draw)
    return ids, draws


def same_noise(x: Tensor, draw: int) -> tuple[Tensor, Tensor]:
    """Ids and draws int64 [B] that give every image of ``x`` [B, ...] the same noise, wherever in a batch it stands."""
    ids = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return ids, torch.full_like(ids, draw)
