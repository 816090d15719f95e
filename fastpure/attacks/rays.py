"""RayS (Chen and Gu, KDD 2020): the shortest way out along rays to the corners of a cube, from decisions alone."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import mistake, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from .base import NormAttack, Problem, Proposal, Tick
from .gradient import logits_at
from .weakness import Effort

REMEASURED = 16
"""Blocks after which a best radius that was found under noise is measured again."""


@dataclass(frozen=True, kw_only=True)
class RayS(NormAttack):
    """RayS (Chen and Gu 2020, algorithms 2 and 3): hard labels only, Linf only, as published.

    A ray runs from the image along a vector of signs. Those of one block after the other are turned over: of the whole
    image, its halves, quarters, ... and single values. A turn is kept if it shortens the way to the first decision
    that is wrong, which one question tells (the fast check); then the way is measured by bisection. A question counts
    as wrong if more than half of its draws are.

    Ours: the first ray is measured itself; the fast check is made ``tolerance`` below the best radius, so that what
    passes it is shorter; after single values it begins again, with values in an order of its own for each round (the
    only chance in it); points are clamped to [0, 1]; where nothing is random an image is settled once its radius is
    within ``eps``; where something is, the best ray is measured again every 16 blocks, because a lucky check leaves a
    radius that nothing can beat. Decisions of a random defence tell little all the same: SPSA finds more.

    Attributes:
        norm: "Linf".
        n_queries: questions per image, each of ``eot_iter`` draws.
        eot_iter: draws that decide a question, fresh ones for each; 1 is used where nothing is random.
        tolerance: of a radius, in [0, 1] units; 0.001 / sqrt(values of an image) if None, as published.

    Raises:
        ValueError: another norm.
    """

    n_queries: int = 10_000
    eot_iter: int = 1
    tolerance: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.norm != "Linf":
            remedy = f"Use square{'' if self.norm == 'L1' else ' or spsa'} in {self.norm}"
            raise ValueError(mistake("norm", "'Linf' for RayS", repr(self.norm), remedy))
        whole("n_queries", self.n_queries, minimum=1)
        whole("eot_iter", self.eot_iter, minimum=1)
        if self.tolerance is not None and positive("tolerance", self.tolerance) > 0.5:
            raise ValueError(mistake("tolerance", "at most 0.5, radii being at most 1", self.tolerance))

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_queries

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(queries=self.n_queries, draws=self.eot_iter)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The point of the best ray at its radius, at ``eps`` if that is less.

        On a random target always at ``eps``: at the radius about half of the draws are right by construction, and a
        radius that is the smallest of many noisy ones is too small.
        """
        certain = not problem.target.is_random
        signs, radius = self.search(problem, tick, settled=self.eps if certain else 0.0)
        reach = radius.clamp_max(self.eps) if certain else torch.full_like(radius, self.eps)
        nothing = problem.x.new_empty((0, len(problem.x)))
        return Proposal(along(problem.x, signs, reach), nothing)

    @torch.no_grad()
    def search(self, problem: Problem, tick: Tick, settled: float = 0.0) -> tuple[Tensor, Tensor]:
        """The signs [B, C, H, W] of each image's best ray and its radius float64 [B], Inf if none was found.

        Args:
            problem: the target, images, labels and ids.
            tick: called after each round, in which every image that goes on asks one question.
            settled: images whose radius is at most this stop.
        """
        x, n = problem.x, self.eot_iter if problem.target.is_random else 1
        rays = [self._ray(int(name), x, problem.target.is_random) for name in problem.ids]
        asking = {i: ray.questions() for i, ray in enumerate(rays)}
        questions = {i: next(steps) for i, steps in asking.items()}
        for number in range(self.n_queries):
            if not questions:
                break
            image = torch.tensor(list(questions), device=x.device)
            signs = torch.stack([turned for turned, _ in questions.values()]).view(-1, *x.shape[1:])
            reach = torch.tensor([at for _, at in questions.values()], dtype=torch.float64, device=x.device)
            points, first = along(x[image], signs, reach), torch.full_like(image, number * n)
            logits = logits_at(problem.target, points, problem.ids[image], first, n, self.batch_size)
            wrong = (logits.argmax(2) != problem.y[image, None]).double().mean(1) > 0.5
            for i, answer in zip(list(questions), wrong.tolist(), strict=True):
                following = next_question(asking[i], answer)
                if following is None or rays[i].radius <= settled:
                    del questions[i]
                else:
                    questions[i] = following
            tick(number, float("nan"))
        if not rays:
            return torch.ones_like(x), x.new_zeros(0, dtype=torch.float64)
        found = torch.tensor([ray.radius for ray in rays], dtype=torch.float64, device=x.device)
        return torch.stack([ray.signs for ray in rays]).view_as(x), found

    def _ray(self, name: int, x: Tensor, random: bool) -> Ray:
        size = x[0].numel()
        tolerance = self.tolerance if self.tolerance is not None else 1e-3 / math.sqrt(size)
        return Ray(torch.ones(size, dtype=x.dtype, device=x.device), tolerance, random, self.seed, name)


Question = tuple[Tensor, float]
"""Signs [D] of a ray and a distance on it: is the decision there wrong?"""

Questions = Generator[Question, bool, None]


class Ray:
    """The search for one image.

    Attributes:
        signs: the best ray so far, [D].
        radius: its length up to the first wrong decision, as far as it is known; Inf where none was met.
    """

    def __init__(self, signs: Tensor, tolerance: float, random: bool, seed: int, name: int) -> None:
        self.signs, self.tolerance, self.radius = signs, tolerance, math.inf
        self.random, self.seed, self.name = random, seed, name

    def questions(self) -> Questions:
        """Asks and learns until no radius could be told from zero; may be left after any question."""
        yield from self._try(self.signs)
        for number, block in enumerate(self.blocks()):
            again = self.random and math.isfinite(self.radius)
            if again and number % REMEASURED == REMEASURED - 1:
                yield from self._measure()
            turned = self.signs.clone()
            turned[block] *= -1
            yield from self._try(turned)
            if self.radius <= self.tolerance:
                return

    def _try(self, signs: Tensor) -> Questions:
        # At distance 1 every ray has left [0, 1] and been clamped to a corner.
        end, start = min(self.radius - self.tolerance, 1.0), 0.0
        if end <= 0 or not (yield signs, end):
            return
        self.signs, self.radius = signs, end
        while self.radius - start > self.tolerance:
            middle = (start + self.radius) / 2
            if (yield signs, middle):
                self.radius = middle
            else:
                start = middle

    def _measure(self) -> Questions:
        start, end = 0.0, 1.0
        while end - start > self.tolerance:
            middle = (start + end) / 2
            wrong = yield self.signs, middle
            start, end = (start, middle) if wrong else (middle, end)
        self.radius = end

    def blocks(self) -> Iterator[Tensor]:
        """Indices of the values that are turned over together, without end."""
        size, rounds = len(self.signs), 0
        while True:
            order = torch.arange(size, device=self.signs.device) if not rounds else self._order(rounds)
            for level in range(math.ceil(math.log2(size)) + 1):
                edges = [k * size // 2**level for k in range(2**level + 1)]
                for begin, end in pairwise(edges):
                    if begin < end:
                        yield order[begin:end]
            rounds += 1

    def _order(self, number: int) -> Tensor:
        keys = NoiseKeys.make(self.seed, [self.name], number, Domain.ATTACK, self.signs.device)
        return philox_uniform(keys, 0, Stream.ATTACK_START, (1, 1, len(self.signs))).flatten().argsort()


def next_question(steps: Questions, answer: bool) -> Question | None:
    """What is asked after this answer; None at the end."""
    try:
        return steps.send(answer)
    except StopIteration:
        return None


def along(x: Tensor, signs: Tensor, reach: Tensor) -> Tensor:
    """The points at distance ``reach`` [B] from ``x`` [B, C, H, W] on rays, clamped to [0, 1]."""
    return (x + reach.to(x.dtype).view(-1, 1, 1, 1) * signs).clamp(0.0, 1.0)
