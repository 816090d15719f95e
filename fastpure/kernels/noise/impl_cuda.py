"""Counter-based noise by the compiled extension (CUDA devices)."""

from __future__ import annotations

from torch import Tensor

from .. import extension
from ..extension import STATE_CODES, layout_code, module_for, target


def _fill(
    kind: int, seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    batch, channels, height, width = out.shape
    index, cuda_stream = target(out)
    module_for(index).cuda_noise(  # by position, in the order of csrc/module_cuda.cpp
        kind,
        seed.data_ptr(),
        ids.data_ptr(),
        draws.data_ptr(),
        step.data_ptr(),
        stream,
        domain,
        out.data_ptr(),
        batch,
        channels,
        height * width,
        layout_code(out),
        STATE_CODES[out.dtype],
        index,
        cuda_stream,
    )


def normal(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write normals into ``out``; arguments as in the schema of ``philox_normal``."""
    _fill(extension.NOISE_CODES["normal"], seed, ids, draws, step, stream, domain, out)


def uniform(
    seed: Tensor, ids: Tensor, draws: Tensor, step: Tensor, stream: int, domain: int, out: Tensor
) -> None:
    """Write uniforms into ``out``; arguments as in the schema of ``philox_uniform``."""
    _fill(extension.NOISE_CODES["uniform"], seed, ids, draws, step, stream, domain, out)
