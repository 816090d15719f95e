"""What every measurement asks of its arguments before it measures anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import mistake
from ..purify import Defense, Purifier
from ..purify.inputs import check_range


def check_purifier(purifier: Any) -> Purifier:
    """Return ``purifier`` if it is one; otherwise raise TypeError."""
    if not isinstance(purifier, Purifier):
        remedy = "Pass defense.purifier" if isinstance(purifier, Defense) else ""
        raise TypeError(mistake("purifier", "a fastpure.Purifier", type(purifier).__name__, remedy))
    return purifier


def check_images(x: Any, argument: str = "x", like: Tensor | None = None, bounded: bool = True) -> Tensor:
    """Return ``x`` if it is at least one image [B, C, H, W], float32 or float64.

    Args:
        x: what was given.
        argument: its name.
        like: images that it must have the shape and device of, called x.
        bounded: whether pixels must be in [0, 1]; purified images need only be finite.

    Raises:
        TypeError: no floating tensor.
        ValueError: no image, another shape, another device, or pixels out of range.
    """
    if not isinstance(x, Tensor):
        raise TypeError(mistake(argument, "a float32 tensor [B, C, H, W]", type(x).__name__))
    if x.dtype not in (torch.float32, torch.float64):
        remedy = "" if x.is_floating_point() else "Use x.float(), and divide 8-bit images by 255"
        raise TypeError(mistake(argument, "of dtype float32", str(x.dtype).removeprefix("torch."), remedy))
    if x.dim() != 4:
        remedy = "Add the batch dimension with x[None]" if x.dim() == 3 else ""
        raise ValueError(mistake(argument, "of shape [B, C, H, W]", list(x.shape), remedy))
    if like is not None and x.shape != like.shape:
        raise ValueError(mistake(argument, f"of shape {list(like.shape)} like x", list(x.shape)))
    if like is not None and x.device != like.device:
        raise ValueError(mistake(argument, f"on {like.device} like x", x.device))
    if not x.numel():
        raise ValueError(mistake(argument, "at least one image", f"none, shape {list(x.shape)}"))
    if bounded:
        check_range(x, argument)
    elif not bool(x.isfinite().all()):
        raise ValueError(mistake(argument, "finite", "NaN or Inf in it"))
    return x


def check_ids(sample_ids: Tensor | list[int] | None, x: Tensor) -> Tensor:
    """Sample ids int64 [B] of images ``x``, on their device; 0..B-1 if None."""
    ids = torch.arange(len(x)) if sample_ids is None else torch.as_tensor(sample_ids)
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise TypeError(mistake("sample_ids", "whole numbers", str(ids.dtype).removeprefix("torch.")))
    if tuple(ids.shape) != (len(x),):
        raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", list(ids.shape)))
    return ids.to(x.device, torch.int64)


def check_labels(y: Any, x: Tensor) -> Tensor:
    """Labels int64 [B] of images ``x``, on their device."""
    if not isinstance(y, Tensor) or y.dtype not in (torch.int64, torch.int32, torch.uint8):
        got = str(y.dtype) if isinstance(y, Tensor) else type(y).__name__
        raise TypeError(mistake("y", "an integer tensor [B]", got))
    if tuple(y.shape) != (len(x),):
        raise ValueError(mistake("y", f"of shape [{len(x)}], one label per image", list(y.shape)))
    if int(y.min()) < 0:
        raise ValueError(mistake("y", "labels from 0 on", int(y.min())))
    return y.to(x.device, torch.int64)


def norms(tensor: Tensor) -> Tensor:
    """L2 norms [B] of [B, ...], in float64."""
    return tensor.detach().double().flatten(1).norm(dim=1)
