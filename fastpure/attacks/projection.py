"""Euclidean projection onto the intersection of an L1 ball and the box of images."""

from __future__ import annotations

import torch
from torch import Tensor


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
