"""Counter-based noise in plain torch: the definition the accelerated versions are tested against.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011). The key is
the 64-bit seed, low word first. The counter is::

    c0 = element // 4        element: flat logical C,H,W index inside the sample
    c1 = step | stream << 16 | domain << 24
    c2 = sample_id
    c3 = draw

Word j of the result belongs to element 4 c0 + j; ``u = ((word >> 9) + 0.5) * 2**-23``, exact in float32 and
never 0 or 1. Normals come from Box-Muller on the word pairs (0, 1) and (2, 3). No memory layout, batch
position or thread enters, so none can change a value.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..keys import NoiseKeys

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10


def philox4x32_10(counter: tuple[Tensor, ...], key: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Ten Philox rounds. Four counter words and two key words, int64 tensors holding 32-bit values.

    The 64-bit products may wrap around; their bits 32 to 63 are right all the same once masked.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        even, odd = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c2 = ((odd >> 32) & MASK) ^ c1 ^ k0, ((even >> 32) & MASK) ^ c3 ^ k1
        c1, c3 = odd & MASK, even & MASK
        k0, k1 = (k0 + KEY_INCREMENTS[0]) & MASK, (k1 + KEY_INCREMENTS[1]) & MASK
    return c0, c1, c2, c3


def philox_words(keys: NoiseKeys, step: int | Tensor, stream: int, quads: int) -> Tensor:
    """The raw words, int64 [B, quads, 4] holding 32-bit values."""
    batch = len(keys)
    c0 = torch.arange(quads, dtype=torch.int64, device=keys.device).expand(batch, quads)
    c1 = (step & 0xFFFF) | (int(stream) << 16) | (int(keys.domain) << 24)
    c1 = torch.as_tensor(c1, dtype=torch.int64, device=keys.device).expand(batch, quads)
    c2 = keys.sample_ids[:, None].expand(batch, quads)
    c3 = keys.draws[:, None].expand(batch, quads)
    key = (keys.seed & MASK, (keys.seed >> 32) & MASK)
    return torch.stack(philox4x32_10((c0, c1, c2, c3), key), dim=-1)


def _uniform_quads(
    keys: NoiseKeys, step: int | Tensor, stream: int, elements: int, dtype: torch.dtype
) -> Tensor:
    words = philox_words(keys, step, stream, -(-elements // 4))
    return ((words >> 9).to(dtype) + 0.5) * 2.0**-23


def philox_uniform(
    keys: NoiseKeys,
    step: int | Tensor,
    stream: int,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Uniform numbers in (0, 1); see :func:`fastpure.kernels.philox_uniform`."""
    elements = math.prod(shape)
    values = _uniform_quads(keys, step, stream, elements, dtype).flatten(1)[:, :elements]
    return values.reshape(len(keys), *shape).contiguous(memory_format=memory_format)


def philox_normal(
    keys: NoiseKeys,
    step: int | Tensor,
    stream: int,
    shape: tuple[int, ...],
    *,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Standard normal numbers; see :func:`fastpure.kernels.philox_normal`."""
    elements = math.prod(shape)
    u = _uniform_quads(keys, step, stream, elements, dtype)
    radius = torch.sqrt(-2.0 * torch.log(u[..., 0::2]))
    # The angle is taken in [-pi, pi] (the subtraction is exact): half the rounding error of [0, 2 pi].
    turn = u[..., 1::2]
    angle = (turn - (turn > 0.5).to(dtype)) * (2.0 * math.pi)
    pairs = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    values = pairs.flatten(1)[:, :elements]
    return values.reshape(len(keys), *shape).contiguous(memory_format=memory_format)
