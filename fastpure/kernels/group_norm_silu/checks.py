"""What the GroupNorm+SiLU kernels need before they may touch memory; shared by running and tracing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastpure.errors import mistake, one_of, positive, whole
from fastpure.kernels.activations import check_activations, check_channels, check_like

RESAMPLE_CODES: dict[str | None, int] = {None: 0, "up": 1, "down": 2}
RESAMPLE_NAMES = {code: name for name, code in RESAMPLE_CODES.items()}


def check_forward(*args: Any) -> Tensor:
    """Check the arguments of ``group_norm_silu`` (order of its schema); returns ``x``."""
    x, skip, row, weight, bias, groups, eps, resample, _, y, stats = args
    channels = _check_input(x, skip, row, weight, bias, groups, resample)
    positive("eps", eps)
    check_like("y", y, x, output_shape(x, channels, resample))
    _check_stats(stats, x, groups)
    return x


def check_backward(*args: Any) -> Tensor:
    """Check the arguments of ``group_norm_silu_vjp`` (order of its schema); returns ``x``."""
    v, x, skip, row, weight, bias, stats, groups, resample, _, add, v_x, v_skip = args
    channels = _check_input(x, skip, row, weight, bias, groups, resample)
    check_like("v", v, x, output_shape(x, channels, resample))
    _check_stats(stats, x, groups)
    if add is not None:
        check_like("add", add, x, (x.shape[0], channels, *x.shape[2:]))
    check_like("v_x", v_x, x, tuple(x.shape))
    if (skip is None) != (v_skip is None):
        raise ValueError(mistake("v_skip", "given exactly where `skip` is", "one without the other"))
    if v_skip is not None:
        check_like("v_skip", v_skip, x, tuple(skip.shape))
    return x


def output_shape(x: Tensor, channels: int, resample: int) -> tuple[int, ...]:
    """[B, channels, H', W'] behind the resampling."""
    height, width = x.shape[2:]
    if resample == RESAMPLE_CODES["up"]:
        return x.shape[0], channels, 2 * height, 2 * width
    if resample == RESAMPLE_CODES["down"]:
        return x.shape[0], channels, height // 2, width // 2
    return x.shape[0], channels, height, width


def check_resample(x: Tensor, resample: int) -> None:
    """Raise unless ``resample`` is a known code and ``x`` can be halved where it asks for that."""
    one_of("resample", resample, RESAMPLE_NAMES)
    if resample == RESAMPLE_CODES["down"] and (x.shape[2] % 2 or x.shape[3] % 2):
        raise ValueError(mistake("x", "of even height and width to be halved", list(x.shape)))


def _check_input(
    x: Tensor,
    skip: Tensor | None,
    row: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    resample: int,
) -> int:
    """Everything both directions share; returns the number of channels."""
    check_activations("x", x)
    channels = x.shape[1]
    if skip is not None:
        check_activations("skip", skip)
        check_like("skip", skip, x, (x.shape[0], skip.shape[1], *x.shape[2:]))
        channels += skip.shape[1]
    whole("groups", groups, 1)
    if channels % groups:
        raise ValueError(mistake("groups", f"a divisor of the {channels} channels", groups))
    check_resample(x, resample)
    for name, values in (("row", row), ("weight", weight), ("bias", bias)):
        if values is not None:
            check_channels(name, values, x, channels)
    return channels


def _check_stats(stats: Tensor, x: Tensor, groups: int) -> None:
    wanted = torch.promote_types(x.dtype, torch.float32)
    shape = (x.shape[0], groups, 2)
    if stats.dtype != wanted or tuple(stats.shape) != shape or not stats.is_contiguous():
        got = f"{stats.dtype} {list(stats.shape)}"
        raise ValueError(mistake("stats", f"dense {wanted} of shape {list(shape)}", got))
    if stats.device != x.device:
        raise ValueError(mistake("stats", f"on the device of the input, {x.device}", stats.device))
