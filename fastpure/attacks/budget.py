"""Attack budgets as values: a norm, a radius, and the geometry that follows from them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import mistake, positive
from ..norms import norm_called
from ..shown import Settings

NORMS = ("Linf", "L2", "L1")


class Admissible(ABC):
    """The set of images an attack may return."""

    @abstractmethod
    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """An admissible float32 image for each candidate; ``x`` are the originals, both [B, C, H, W]."""

    @abstractmethod
    def distance(self, candidate: Tensor, x: Tensor) -> Tensor:
        """How far each image is from its original, float64 [B]."""

    @abstractmethod
    def admits(self, distance: Tensor) -> Tensor:
        """Whether images at this distance [B] are admissible, bool [B]."""


@dataclass(frozen=True)
class Box(Admissible):
    """All images in [0, 1]; for attacks that bound something else than the pixels."""

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """Clamped to [0, 1]."""
        return candidate.clamp(0.0, 1.0)

    def distance(self, candidate: Tensor, x: Tensor) -> Tensor:
        """Largest pixel change, float64 [B]; for information."""
        return Budget("Linf", 1.0).distance(candidate, x)

    def admits(self, distance: Tensor) -> Tensor:
        """Always."""
        return torch.ones_like(distance, dtype=torch.bool)


@dataclass(frozen=True)
class Budget(Settings, Admissible):
    """All images in [0, 1] within distance ``eps`` of the original, in [0, 1] units.

    ``norm`` is "Linf" (8/255 and the like), or "L2" or "L1" over all pixels and channels of an image. Other spellings
    ("linf", "L-inf", ``float("inf")``, 2) are kept as these.
    """

    norm: str = "Linf"
    eps: float = 8 / 255

    def __post_init__(self) -> None:
        object.__setattr__(self, "norm", norm_called("norm", self.norm, NORMS))
        if positive("eps", self.eps) > 1.0 and self.norm == "Linf":
            remedy = f"Images are in [0, 1]: write {self.eps:g}/255 for {self.eps:g} grey levels"
            raise ValueError(mistake("eps", "at most 1 for norm 'Linf'", self.eps, remedy))

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The nearest admissible float32 image: inside the ball in exact arithmetic, and in [0, 1]."""
        if self.norm == "Linf":
            low, high = self._bounds(x)
            return torch.minimum(torch.maximum(candidate, low), high).clamp(0.0, 1.0)
        if self.norm == "L1":
            return self._into_l1_ball(candidate, x)
        return self._into_ball(candidate.clamp(0.0, 1.0), x)

    def distance(self, candidate: Tensor, x: Tensor) -> Tensor:
        """Distance of each image from its original, float64 [B]."""
        difference = (candidate.double() - x.double()).flatten(1)
        if self.norm == "Linf":
            return difference.abs().amax(1) if difference.shape[1] else difference.new_zeros(len(x))
        return difference.abs().sum(1) if self.norm == "L1" else difference.norm(dim=1)

    def admits(self, distance: Tensor) -> Tensor:
        """Inside the ball in exact arithmetic."""
        return distance <= self.eps

    def ascend(self, x: Tensor, gradient: Tensor, step_size: float) -> Tensor:
        """Move by ``step_size``, measured in this norm, along its ascent direction; nowhere where it is zero.

        For L1 the strictly steepest direction is a single pixel; as in SLIDE (Tramer and Boneh 2019) the
        largest hundredth of the entries share the step equally, by sign.
        """
        if self.norm == "Linf":
            return x + step_size * gradient.sign()
        if self.norm == "L1":
            return x + step_size * _sparse_direction(gradient)
        length = gradient.flatten(1).norm(dim=1).clamp_min(torch.finfo(gradient.dtype).tiny)
        return x + step_size * gradient / length.view(-1, 1, 1, 1)

    def start(self, x: Tensor, uniform: Tensor) -> Tensor:
        """A point of the ball from noise in (0, 1): uniform in the cube, or on a random ray at eps times u^(1/D)."""
        if self.norm == "Linf":
            return self.project(x + self.eps * (2.0 * uniform - 1.0), x)
        # Logistic noise is symmetric and full of directions; one of its values doubles as the radius.
        direction = torch.log(uniform) - torch.log1p(-uniform)
        order = 1 if self.norm == "L1" else 2
        direction = direction / direction.flatten(1).norm(order, dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
        radius = uniform.flatten(1)[:, :1].pow(1.0 / uniform[0].numel()).view(-1, 1, 1, 1)
        return self.project(x + self.eps * radius * direction, x)

    def _bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # x +- eps rounded towards x, so that the bound holds for the stored float32 pixels and not only nearly.
        exact = x.double()
        low, high = (exact - self.eps).to(x.dtype), (exact + self.eps).to(x.dtype)
        low = torch.where(exact - low.double() > self.eps, torch.nextafter(low, x), low)
        high = torch.where(high.double() - exact > self.eps, torch.nextafter(high, x), high)
        return low, high

    def _into_l1_ball(self, candidate: Tensor, x: Tensor) -> Tensor:
        # As in `_into_ball`; in this norm the rounding errors of D stored pixels add up to D times 2^-25.
        radius = max(self.eps - x[0].numel() * 2.0**-25, 0.0) if len(x) else 0.0
        inside = candidate.clamp(0.0, 1.0)
        projected = onto_l1_ball_in_box(candidate.flatten(1), x.flatten(1), radius).view_as(candidate)
        return torch.where((self.distance(inside, x) > self.eps).view(-1, 1, 1, 1), projected, inside)

    def _into_ball(self, candidate: Tensor, x: Tensor) -> Tensor:
        distance = self.distance(candidate, x)
        # Storing a pixel of [0, 1] as float32 moves it by up to 2^-25, an image of D pixels by sqrt(D) times that:
        # aiming this much inside keeps the stored image in the ball in exact arithmetic.
        radius = max(self.eps - math.sqrt(x[0].numel()) * 2.0**-24, 0.0) if len(x) else 0.0
        factor = (radius / distance.clamp_min(self.eps)).to(x.dtype).view(-1, 1, 1, 1)
        scaled = (x + (candidate - x) * factor).clamp(0.0, 1.0)
        return torch.where((distance > self.eps).view(-1, 1, 1, 1), scaled, candidate)


def _sparse_direction(gradient: Tensor, share: float = 0.01) -> Tensor:
    """Signs of the largest entries of each image's gradient, scaled to unit L1 length; zero where it is zero."""
    size = gradient.flatten(1).abs()
    k = max(1, round(share * size.shape[1]))
    threshold = size.topk(k, dim=1).values[:, -1:]
    signs = torch.where((size >= threshold) & (size > 0), gradient.flatten(1).sign(), 0.0)
    return (signs / signs.abs().sum(1, keepdim=True).clamp_min(1.0)).view_as(gradient)


def onto_l1_ball_in_box(candidate: Tensor, x: Tensor, radius: float | Tensor) -> Tensor:
    """The nearest point to ``candidate`` with ||. - x||_1 <= ``radius`` and values in [0, 1].

    Args:
        candidate: [B, D], any values.
        x: [B, D] in [0, 1], the centres.
        radius: at least 0, one for all or [B].

    The minimiser moves pixel i by sign(d_i) clip(|d_i| - m, 0, room_i), with d the wish, room_i the distance to
    the edge of the box on that side and m >= 0 the multiplier of the ball. The length of that move is piecewise
    linear and falling in m with kinks at |d_i| - room_i and |d_i|, so m is found exactly by sorting the kinks
    (Croce and Hein 2021, "Mind the box", proposition 2.1). Projecting onto the two sets one after the other is
    not this point. Computed in float64, returned in the dtype of ``candidate``.
    """
    wish = candidate.double() - x.double()
    size = wish.abs()
    room = torch.where(wish > 0, 1.0 - x.double(), x.double())
    limit = torch.as_tensor(radius, dtype=torch.float64, device=x.device).expand(len(x))
    multiplier = torch.where(torch.minimum(size, room).sum(1) > limit, _multiplier(size, room, limit), 0.0)
    moved = torch.minimum((size - multiplier[:, None]).clamp_min(0.0), room)
    return (x.double() + wish.sign() * moved).clamp(0.0, 1.0).to(candidate.dtype)


def _multiplier(size: Tensor, room: Tensor, limit: Tensor) -> Tensor:
    """The m at which sum_i clip(size_i - m, 0, room_i) equals ``limit``; any number where none does."""
    # Between kinks the slope is minus the number of pixels that are partly moved: one enters at size - room and
    # leaves at size. A zero-length interval (room = 0) enters and leaves at once.
    kinks = torch.cat([size - room, size], 1)
    change = torch.cat([torch.ones_like(size), -torch.ones_like(size)], 1)
    kinks, order = kinks.sort(dim=1, stable=True)
    slope = change.gather(1, order).cumsum(1)
    drop = torch.cat([torch.zeros_like(kinks[:, :1]), (slope[:, :-1] * kinks.diff(dim=1)).cumsum(1)], 1)
    length = room.sum(1, keepdim=True) - drop
    # The last kink at which the move is still at least as long as allowed; from there the line is followed.
    at = (length >= limit[:, None]).sum(1, keepdim=True).clamp_min(1) - 1
    excess = length.gather(1, at)[:, 0] - limit
    return (kinks.gather(1, at)[:, 0] + excess / slope.gather(1, at)[:, 0].clamp_min(1.0)).clamp_min(0.0)
