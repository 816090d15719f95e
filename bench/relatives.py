"""How well do the cheap relatives that `Adaptive` derives from a defence know its gradient?

The mean gradient of a random defence is never known, only means over draws. Two means over draws of their own give its
squared length without bias, as their scalar product, and from that cosines that the noise does not lower.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.attacks.base import Problem
from fastpure.attacks.gradient import attack_logits, objective, query
from fastpure.attacks.losses import cross_entropy
from fastpure.attacks.relatives import calmer, itself, relatives
from fastpure.data import Dataset
from fastpure.purify import Target, look_through

FAR = 1 << 20
"""The number of the first draw: beyond those that the attack took, whose points would suit them."""


@dataclass(frozen=True)
class Sizes:
    """How much a comparison takes: images, draws of each of the two means, and (image, draw) pairs per call.

    Relatives that have next to no noise are asked for an eighth of the draws.
    """

    images: int
    draws: int
    batch_size: int


@dataclass(frozen=True, eq=False)
class Means:
    """Two independent mean gradients, float64 [B, D], each over ``n`` draws."""

    one: Tensor
    two: Tensor
    n: int

    @property
    def square(self) -> Tensor:
        """Squared length of the true mean, without bias, [B]."""
        return (self.one * self.two).sum(1)

    @property
    def signal(self) -> Tensor:
        """Squared length of the true mean by the variance of one draw, [B]."""
        variance = ((self.one - self.two) ** 2).sum(1) / 2 * self.n
        return self.square / variance.clamp_min(torch.finfo(variance.dtype).tiny)


def cosine(a: Means, b: Means) -> Tensor:
    """Between the true means, [B]; NaN where draws leave a squared length that is not positive."""
    product = ((a.one + a.two) / 2 * (b.one + b.two) / 2).sum(1)
    squares = torch.where((a.square > 0) & (b.square > 0), a.square * b.square, torch.nan)
    return product / squares.sqrt()


def means(target: Target, problem: Problem, x: Tensor, n: int, batch_size: int) -> Means:
    """Of the cross entropy's gradient at ``x`` [B, C, H, W] through ``target``, each over ``n`` draws."""
    goal = objective(attack_logits(target), cross_entropy)
    halves = []
    for half in range(2):
        draws = range(FAR + half * n, FAR + (half + 1) * n)
        found = query(goal, x, problem.y, problem.ids, draws, batch_size)
        halves.append(found.gradient.flatten(1).double())
    return Means(halves[0], halves[1], n)


def measure(defense: nn.Module, data: Dataset, eps: float, sizes: Sizes) -> list[dict[str, str | float]]:
    """A row per relative, the defence itself first: name, cost, and at the originals and at attacked points the median
    cosine, of how many images it is, and the median signal to noise.
    """
    x, y, ids = data.images, data.labels, data.sample_ids
    attack = fp.attacks.PGD(norm="Linf", eps=eps, n_iter=20, eot_iter=4, batch_size=sizes.batch_size)
    points = {"": x, " attacked": attack(defense, x, y, sample_ids=ids).x_adv}
    target = look_through(defense).probed(x, ids)
    problem, own, few = Problem(target, x, y, ids), itself(target), max(sizes.draws // 8, 2)
    rows: list[dict[str, str | float]] = []
    with target.environment():
        exact = {
            where: means(target, problem, at, sizes.draws, sizes.batch_size) for where, at in points.items()
        }
        calm = calmer(target)
        others = [relative for relative in relatives(target) if relative.target is not target]
        for one in (own, *others, *(() if calm is None else (calm,))):
            draws = sizes.draws if one is calm else few
            row: dict[str, str | float] = {"relative": one.name, "cost": one.cost}
            for where, at in points.items():
                found = (
                    exact[where] if one is own else means(one.target, problem, at, draws, sizes.batch_size)
                )
                cosines = cosine(exact[where], found)
                # Half of its means would be compared with themselves.
                row[f"cosine{where}"] = 1.0 if one is own else float(cosines.nanmedian())
                row[f"images{where}"] = int(cosines.isfinite().sum())
                row[f"signal{where}"] = float(found.signal.median())
            rows.append(row)
    return rows
