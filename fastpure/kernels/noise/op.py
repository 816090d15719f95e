"""Noise as a function of its keys: the public operations and their registration."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...errors import mistake, one_of, whole
from .. import registry
from ..checks import (
    STATE_DTYPES,
    always,
    check_byte,
    check_images,
    check_state,
    check_step,
    check_step_value,
)
from ..extension import unavailable_on_cuda, unavailable_on_host
from ..keys import STEP_MAX, NoiseKeys, Stream, check_keys
from . import launch, reference

SCHEMA = (
    "(Tensor seed, Tensor sample_ids, Tensor draws, Tensor step, int stream, int domain, Tensor(a!) out)"
    " -> ()"
)
MEMORY_FORMATS = (torch.contiguous_format, torch.channels_last)


def _by_reference(function: Callable[..., Tensor]) -> Callable[[Any], None]:
    def run(args: Any) -> None:
        check_step_value(args.step, STEP_MAX + 1)
        keys = NoiseKeys(args.seed, args.sample_ids, args.draws, args.domain)
        shape = tuple(args.out.shape[1:])
        args.out.copy_(function(keys, args.step, args.stream, shape, dtype=args.out.dtype))

    return run


def _check(args: Any) -> Tensor:
    out = args.out
    check_state("out", out)
    check_images(out, "out", {})
    check_keys(args.seed, args.sample_ids, args.draws, out.shape[0], out.device)
    check_step(args.step, out.device)
    check_byte("stream", args.stream)
    check_byte("domain", args.domain)
    return out


ORDER = {"cpu": ("host", "reference"), "cuda": ("cuda", "reference")}
NORMAL = registry.OpSpec(
    name="philox_normal",
    schema=SCHEMA,
    reference=reference.philox_normal,
    impls={
        "host": registry.Implementation.of(launch.normal, unavailable_on_host),
        "cuda": registry.Implementation.of(launch.normal, unavailable_on_cuda),
        "reference": registry.Implementation.of(_by_reference(reference.philox_normal), always),
    },
    order=ORDER,
)
UNIFORM = registry.OpSpec(
    name="philox_uniform",
    schema=SCHEMA,
    reference=reference.philox_uniform,
    impls={
        "host": registry.Implementation.of(launch.uniform, unavailable_on_host),
        "cuda": registry.Implementation.of(launch.uniform, unavailable_on_cuda),
        "reference": registry.Implementation.of(_by_reference(reference.philox_uniform), always),
    },
    order=ORDER,
)
_run_normal = registry.define(NORMAL, _check)
_run_uniform = registry.define(UNIFORM, _check)


def step_tensor(step: int | Tensor, device: torch.device) -> Tensor:
    """``step`` as int64 [1] on ``device``; a tensor passes unchanged (a graph may replay other values)."""
    if isinstance(step, Tensor):
        return step
    return torch.full((1,), whole("step", step, 0, STEP_MAX), dtype=torch.int64, device=device)


def _allocate(
    keys: NoiseKeys,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    memory_format: torch.memory_format,
) -> Tensor:
    if len(shape) != 3 or any(not isinstance(size, int) or size < 0 for size in shape):
        raise ValueError(mistake("shape", "three sizes (C, H, W)", repr(tuple(shape))))
    one_of("dtype", dtype, STATE_DTYPES)
    one_of("memory_format", memory_format, MEMORY_FORMATS)
    return torch.empty((len(keys), *shape), dtype=dtype, device=keys.device, memory_format=memory_format)


def philox_normal(
    keys: NoiseKeys,
    step: int | Tensor,
    stream: Stream | int,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Standard normal noise, a pure function of its arguments.

    Philox4x32-10 and Box-Muller; :mod:`fastpure.kernels.noise.reference` states the counter layout. A
    sample's noise does not depend on the batch around it, the memory format, the number of threads or the
    back end (floats agree with the float64 formula to 2e-6, and exactly with themselves). Deterministic, not
    differentiable, capturable.

    Args:
        keys: B keys; the result lives on their device.
        step: row index in the method's table, integer in [0, 65535] or int64 tensor [1].
        stream: what the noise is for.
        shape: (C, H, W) of one sample.
        dtype: float32, or float64 (Box-Muller in float64 on the same uniforms).
        memory_format: contiguous or channels_last, of the result.

    Returns:
        Tensor [B, C, H, W]; magnitudes never exceed 5.77.

    Raises:
        TypeError, ValueError: naming the argument, what was expected and what came.
        KernelUnavailable: a back end was forced that cannot run here.
    """
    out = _allocate(keys, shape, dtype, memory_format)
    _run_normal(
        keys.seed,
        keys.sample_ids,
        keys.draws,
        step_tensor(step, keys.device),
        int(stream),
        int(keys.domain),
        out,
    )
    return out


def philox_uniform(
    keys: NoiseKeys,
    step: int | Tensor,
    stream: Stream | int,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Uniform noise in (0, 1), a pure function of its arguments: ``((word >> 9) + 0.5) * 2**-23``, exactly.

    Arguments, result and errors as in :func:`philox_normal`; the two share their random words.
    """
    out = _allocate(keys, shape, dtype, memory_format)
    _run_uniform(
        keys.seed,
        keys.sample_ids,
        keys.draws,
        step_tensor(step, keys.device),
        int(stream),
        int(keys.domain),
        out,
    )
    return out
