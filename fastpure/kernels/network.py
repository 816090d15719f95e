"""A narrow U-Net as one call of the host extension: the layout of its program and of packed weights.

The extension takes every sample through all steps of a network by itself (csrc/host/network.h): nothing but the image,
and what a gradient has to keep, goes through memory, and threads meet once per pass. What the steps are is decided in
``fastpure.nets.narrow``; this file knows how they are written down.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from enum import IntEnum
from typing import final

import numpy as np
import torch
from torch import Tensor

from . import extension
from .extension import DTYPE_CODES, stride_of

OUTSIDE, ABSENT = -1, -2
"""In the place of an offset: the network's own input or output; nothing."""

ALIGNMENT = 32
"""Offsets are multiples of so many elements: of a cache line in either dtype."""

_CACHE_LINE = 64
_WIDEST_BESIDE_AMX = 32
_UNIT = {torch.float32: 1, torch.bfloat16: 2}
"""Inputs that are multiplied together."""


class Kind(IntEnum):
    """What a step computes; see csrc/host/network.h."""

    CONVOLUTION = 0
    BLOCK = 1
    ATTENTION = 2
    HEAD = 3


@final
@dataclass(frozen=True)
class Step:
    """One step, field by field as in csrc/host/network.h; offsets and sizes in elements, tensors by address."""

    kind: Kind
    input: int
    skip: int
    output: int
    middle: int
    v_input: int
    v_skip: int
    v_output: int
    adds: bool
    height: int
    width: int
    inputs: int
    skips: int
    outputs: int
    resample: int
    groups: int
    second_groups: int
    eps: float
    scale: float
    row: int
    stats: int
    second_stats: int
    norm_weight: Tensor | None = None
    norm_bias: Tensor | None = None
    second_norm_weight: Tensor | None = None
    second_norm_bias: Tensor | None = None
    first: Tensor | None = None
    second: Tensor | None = None
    shortcut: Tensor | None = None
    first_back: Tensor | None = None
    second_back: Tensor | None = None
    shortcut_back: Tensor | None = None
    first_bias: Tensor | None = None
    second_bias: Tensor | None = None


STEP = struct.Struct("".join("d" if field.type == "float" else "q" for field in fields(Step)))
"""How a step lies in memory: 64 bits per field."""


@final
class Program:
    """Steps as the extension reads them, and the memory one sample needs.

    Args:
        steps: in order.
        dtype: float32 or bfloat16, of activations, rows and weights alike.
        image_in, image_out: shapes [C, H, W] of what goes in and comes out.
        sizes: of the tape, of the statistics and of the cotangents, in elements per sample (per thread where nothing
            is kept).
        keep: whether the offsets are those of a tape on which nothing is written over, for ``transpose``.
    """

    def __init__(
        self,
        steps: Sequence[Step],
        dtype: torch.dtype,
        image_in: tuple[int, int, int],
        image_out: tuple[int, int, int],
        sizes: tuple[int, int, int],
        keep: bool,
    ) -> None:
        self.dtype, self.image_in, self.image_out, self.keep = dtype, image_in, image_out, keep
        self.tape_size, self.stats_size, _ = sizes
        self._steps = tuple(steps)  # whose tensors stay alive with it
        code = bytearray().join(STEP.pack(*_fields_of(step)) for step in steps)
        self._code = torch.frombuffer(code, dtype=torch.int64)
        images = torch.Size(image_in).numel(), torch.Size(image_out).numel()
        self._rest = (*sizes, *images, DTYPE_CODES[dtype])

    def forward(self, x: Tensor, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(result [B, C, H, W] channels_last, tape and statistics for ``transpose`` or None where nothing is kept).

        x [B, C, H, W] dense in channels_last, rows [1 or B, S] dense, both in the program's dtype in host memory.
        """
        batch = x.shape[0]
        out = self._images(batch, self.image_out)
        tape = stats = None
        if self.keep:
            tape = _large((batch, self.tape_size), self.dtype)
            stats = torch.empty((batch, self.stats_size), dtype=torch.float32, device="cpu")
        self._call("network", (x, rows, self._code, out, tape, stats), rows)
        return out, tape, stats

    def transpose(self, v: Tensor, rows: Tensor, tape: Tensor, stats: Tensor) -> Tensor:
        """The cotangent of x from ``v``, that of the result, [B, C, H, W] dense in channels_last."""
        v_x = self._images(v.shape[0], self.image_in)
        self._call("network_vjp", (v, rows, self._code, tape, stats, v_x), rows)
        return v_x

    def _images(self, batch: int, shape: tuple[int, int, int]) -> Tensor:
        # Neither the default dtype nor the default device: the extension writes to an address.
        return torch.empty((batch, *shape), dtype=self.dtype, device="cpu", memory_format=torch.channels_last)

    def _call(self, name: str, arguments: tuple[Tensor | None, ...], rows: Tensor) -> None:
        leading = arguments[0]
        assert leading is not None
        extension.call(
            name, leading, arguments, leading.shape[0], len(self._steps), stride_of(rows), *self._rest
        )


def _large(shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Memory that is written once, in large pages where the system has them: NumPy asks for those, torch does not.

    Touching a new tape of a hundred megabytes in small ones takes a twentieth of a gradient.
    """
    size = shape[0] * shape[1] * dtype.itemsize
    memory = np.empty(size + _CACHE_LINE, dtype=np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    return torch.from_numpy(memory[begin : begin + size]).view(dtype).view(shape)


def _fields_of(step: Step) -> tuple[int | float, ...]:
    found: list[int | float] = []
    for field in fields(Step):
        value = getattr(step, field.name)
        if isinstance(value, Tensor):
            value = value.data_ptr()
        found.append(0 if value is None else float(value) if field.type == "float" else int(value))
    return tuple(found)


@final
class Fingerprint:
    """Notices when tensors in host memory change, whoever writes to them and however.

    Args:
        tensors: whose memory is watched, and kept alive.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._memory = {
            storage.data_ptr(): storage for storage in (tensor.untyped_storage() for tensor in tensors)
        }
        spans = [(address, storage.nbytes()) for address, storage in self._memory.items()]
        self._spans = torch.tensor(spans, dtype=torch.int64, device="cpu").view(-1, 2)

    def take(self) -> int:
        """The number of what they hold now."""
        module = extension.load().module
        assert module is not None, "programs are only made where the extension is loaded"
        found: int = module.fingerprint(self._spans.data_ptr(), len(self._memory))
        return found


def runs(dtype: torch.dtype, widest: int) -> bool:
    """Whether programs of this dtype, for networks of at most so many channels, are this machine's fastest way.

    Measured (``bench.bench_network``, gradients on one thread of an AMD EPYC, oneDNN's time by the program's): float32
    1.2 to 2.3 with AVX2 and more, 1.3 to 1.6 with SSE; bfloat16 1.3 to 2.6 with products of bfloat16, 2.3 to 12
    without, where torch widens one number at a time. Beside AMX, whose products of bfloat16 are many times faster, only
    the narrowest are left (an estimate).
    """
    if extension.load().module is None or dtype not in _UNIT:
        return False
    return dtype == torch.float32 or widest <= _WIDEST_BESIDE_AMX or not _has_amx()


@functools.cache
def _has_amx() -> bool:
    """Whether oneDNN has tiles to multiply with."""
    asked = getattr(torch.cpu, "_is_amx_tile_supported", None)
    return asked is not None and bool(asked())


def pack(weight: Tensor) -> Tensor:
    """A convolution's weight [O, I, k, k] as the extension multiplies with it: [blocks, k k, units, block, unit].

    Float32 or bfloat16. Blocks are 32 outputs where these are a multiple of 32, else 16; a unit is one input, or two
    in bfloat16. What is missing to whole blocks and units is 0.
    """
    outputs, inputs, size, _ = weight.shape
    block, unit = 32 if outputs % 32 == 0 else 16, _UNIT[weight.dtype]
    blocks, units = -(-outputs // block), -(-inputs // unit)
    whole = weight.new_zeros((blocks * block, units * unit, size, size))
    whole[:outputs, :inputs] = weight.detach()
    parts = whole.view(blocks, block, units, unit, size * size)
    return parts.permute(0, 4, 2, 1, 3).contiguous()


def pack_back(weight: Tensor) -> Tensor:
    """The same for its transpose: mirrored, inputs and outputs exchanged."""
    return pack(weight.flip(2, 3).transpose(0, 1))
