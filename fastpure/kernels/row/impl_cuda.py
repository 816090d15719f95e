"""The row update and its transpose by the compiled extension (CUDA devices).

The state is float32 or float64; beside a float32 state the network output and the guidance gradient may be
bfloat16 or float16 and are widened as they are read. Steps outside the table cannot be reported without waiting
for the device: they make every result NaN.
"""

from __future__ import annotations

from torch import Tensor

from ..extension import STATE_CODES, address, input_code, layout_code, module_for, target


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
    batch, channels, height, width = x.shape
    index, cuda_stream = target(x)
    state = STATE_CODES[x.dtype]
    module_for(index).cuda_affine_row(  # by position, in the order of csrc/module_cuda.cpp
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
        state,
        input_code(noise_pred),
        input_code(guidance),
        index,
        cuda_stream,
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
    index, cuda_stream = target(v)
    module_for(index).cuda_affine_row_vjp(  # likewise
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
        input_code(noise_pred),
        index,
        cuda_stream,
    )
