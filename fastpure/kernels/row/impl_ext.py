"""The row update and its transpose by the compiled extension (host memory)."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import extension
from ..extension import STATE_CODES, address, layout_code
from ..noise.impl_ext import unavailable

__all__ = ["affine_row", "affine_row_vjp", "unavailable"]


def affine_row(
    x: Tensor,
    noise_pred: Tensor | None,
    guidance: Tensor | None,
    register: Tensor | None,
    noise: Tensor | None,
    seed: Tensor | None,
    sample_ids: Tensor | None,
    draws: Tensor | None,
    table: Tensor,
    step: Tensor,
    stream: int,
    domain: int,
    x_next: Tensor,
    register_next: Tensor | None,
) -> None:
    """Write the updated state (and register); arguments as in the schema of ``affine_row``."""
    module = extension.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    batch, channels, height, width = x.shape
    module.affine_row(  # by position, in the order of csrc/module.cpp
        x.data_ptr(),
        address(noise_pred),
        address(guidance),
        address(register),
        address(noise),
        address(seed),
        address(sample_ids),
        address(draws),
        table.data_ptr(),
        table.shape[0],
        step.data_ptr(),
        stream,
        domain,
        x_next.data_ptr(),
        address(register_next),
        batch,
        channels,
        height * width,
        layout_code(x),
        STATE_CODES[x.dtype],
        torch.get_num_threads(),
    )


def affine_row_vjp(
    v: Tensor,
    v_register: Tensor | None,
    x: Tensor | None,
    noise_pred: Tensor | None,
    table: Tensor,
    step: Tensor,
    v_x: Tensor,
    v_noise_pred: Tensor,
    v_guidance: Tensor | None,
    v_register_out: Tensor | None,
) -> None:
    """Write the cotangents; arguments as in the schema of ``affine_row_vjp``."""
    module = extension.load().module
    assert module is not None, "dispatch only comes here when the extension is loaded"
    module.affine_row_vjp(  # likewise
        v.data_ptr(),
        address(v_register),
        address(x),
        address(noise_pred),
        table.data_ptr(),
        table.shape[0],
        step.data_ptr(),
        v_x.data_ptr(),
        v_noise_pred.data_ptr(),
        address(v_guidance),
        address(v_register_out),
        v.numel(),
        STATE_CODES[v.dtype],
        torch.get_num_threads(),
    )
