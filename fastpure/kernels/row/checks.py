"""What a row kernel needs before it may touch memory; shared by running and tracing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from fastpure.errors import mistake
from fastpure.kernels.keys import STEP_MAX
from fastpure.kernels.layout import check_byte, check_images, check_state, check_step
from fastpure.kernels.noise.op import check_keys
from fastpure.schedule.table import KERNEL_WIDTH


def check_table(table: Tensor, state: Tensor, like: str) -> None:
    """Raise unless ``table`` is a dense [K, 16] matrix in the dtype and on the device of the state."""
    if not isinstance(table, Tensor):
        raise TypeError(mistake("table", f"a tensor [K, {KERNEL_WIDTH}]", type(table).__name__))
    shape = table.shape
    if len(shape) != 2 or shape[1] != KERNEL_WIDTH or not 1 <= shape[0] <= STEP_MAX + 1:
        raise ValueError(
            mistake("table", f"of shape [K, {KERNEL_WIDTH}], K in [1, {STEP_MAX + 1}]", list(shape))
        )
    if table.dtype != state.dtype:
        raise TypeError(mistake("table", f"of the dtype of `{like}`, {state.dtype}", table.dtype))
    if table.device != state.device:
        raise ValueError(mistake("table", f"on the device of `{like}`, {state.device}", table.device))
    if not table.is_contiguous():
        raise ValueError(mistake("table", "dense (call .contiguous())", f"strides {table.stride()}"))


def check_row(*args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row`` (order of its schema); returns ``x``."""
    x, noise_pred, guidance, register, noise, *_, x_next, register_next = args
    check_state("x", x)
    images = {"noise_pred": noise_pred, "guidance": guidance, "register": register, "noise": noise}
    check_images(x, "x", images | {"x_next": x_next, "register_next": register_next})
    return check_row_converted(*args)


def check_row_converted(*args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    x, _, _, _, noise, seed, ids, draws, table, step, stream, domain, _, _ = args
    check_table(table, x, "x")
    check_step(step, x.device)
    check_byte("stream", stream)
    check_byte("domain", domain)
    if seed is not None:
        if noise is not None:
            raise ValueError(mistake("noise", "either an array or keys", "both"))
        check_keys(seed, ids, draws, x.shape[0], x.device)
    return x


def check_vjp(*args: Any) -> Tensor:
    """Check the arguments of the operation ``affine_row_vjp`` (order of its schema); returns ``v``."""
    v, v_register, x, noise_pred, _, _, *outs = args
    check_state("v", v)
    names = ("v_x", "v_noise_pred", "v_guidance", "v_register_out")
    images = {"v_register": v_register, "x": x, "noise_pred": noise_pred}
    check_images(v, "v", images | dict(zip(names, outs, strict=True)))
    return check_vjp_converted(*args)


def check_vjp_converted(*args: Any) -> Tensor:
    """The same without the images, which the public function has made or converted itself."""
    v, table, step = args[0], args[4], args[5]
    check_table(table, v, "v")
    check_step(step, v.device)
    return v
