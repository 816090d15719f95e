"""Inputs for the tests of the Triton kernels: shapes around block borders, guarded memory, the truth."""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastpure.kernels.group_norm_silu import reference
from fastpure.kernels.triton_support import RULES, TileRule
from tests.tolerances import ROUNDING

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETING else "cuda" if torch.cuda.is_available() else None
DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if INTERPRETING else [])]
GUARD = 64
EPS = 1e-6

FREE = TileRule(most=512, good=512, run=32, per_thread=4, least=64, fewest=1)
"""16 pixels by 8 channels of float32, or by 16 of half precision: small images have several such tiles."""

GROUPED = TileRule(most=2**20, good=2048, run=32, per_thread=4, least=64, fewest=1)
"""All pixels of two groups of four float32 channels: few channels make several such tiles."""


def small_rules(split: bool) -> dict[str, TileRule]:
    """Rules that cut small inputs into several tiles; ``split``: no program may hold a group."""
    grouped = dataclasses.replace(GROUPED, most=0) if split else GROUPED
    return {name: grouped if name.endswith("fused") else FREE for name in RULES[90]}


@dataclass(frozen=True)
class Case:
    """One input of the normalisation; ``split`` makes the kernels for large images run."""

    channels: int
    groups: int
    height: int
    width: int
    skip: int = 0
    row: str | None = None  # "C", "1C" or "BC"
    affine: str = "C"
    resample: str | None = None
    activate: bool = True
    add: bool = False
    split: bool = False
    batch: int = 2

    def __str__(self) -> str:
        words = [f"{self.channels}+{self.skip}" if self.skip else str(self.channels), f"g{self.groups}"]
        words += [f"{self.height}x{self.width}", self.resample or "", f"row{self.row}" if self.row else ""]
        words += [self.affine if self.affine != "C" else "", "" if self.activate else "linear"]
        words += ["add" if self.add else "", "split" if self.split else ""]
        return "-".join(word for word in words if word)


@dataclass(frozen=True)
class Inputs:
    """What both directions are called with, on the device under test."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    groups: int
    v: Tensor
    add: Tensor | None
    options: dict[str, Any]

    def double(self) -> Inputs:
        """The same numbers in float64."""
        options = {k: _double(value) for k, value in self.options.items()}
        given = (self.x.double(), self.weight.double(), self.bias.double(), self.groups, self.v.double())
        return Inputs(*given, _double(self.add), options)


def inputs(case: Case, dtype: torch.dtype, seed: int = 0) -> Inputs:
    """Random inputs whose activations lie between poisoned guards (NaN: reading one shows)."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def vector(kind: str | None, channels: int) -> Tensor | None:
        shapes = {"C": (channels,), "1C": (1, channels), "BC": (case.batch, channels)}
        return None if kind is None else normal(*shapes[kind]).to(dtype).to(DEVICE)

    channels = case.channels + case.skip
    shape = (case.batch, case.channels, case.height, case.width)
    x = guarded(2 * normal(*shape) + 0.5, dtype)[0]
    skip = guarded(normal(case.batch, case.skip, *shape[2:]), dtype)[0] if case.skip else None
    factor = {None: 1.0, "up": 2.0, "down": 0.5}[case.resample]
    size = (int(case.height * factor), int(case.width * factor))
    v = guarded(normal(case.batch, channels, *size), dtype)[0]
    add = guarded(normal(case.batch, channels, *shape[2:]), dtype)[0] if case.add else None
    weight, bias = vector(case.affine, channels), vector(case.affine, channels)
    assert weight is not None
    assert bias is not None
    row = vector(case.row, case.channels)
    options = {"skip": skip, "row": row, "resample": case.resample, "activate": case.activate}
    return Inputs(x, weight, bias, case.groups, v, add, options)


def guarded(values: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``values`` [B, C, H, W] in channels_last in the middle of a buffer of NaN, and that buffer."""
    batch, channels, height, width = values.shape
    buffer = torch.full((math.prod(values.shape) + 2 * GUARD,), math.nan, dtype=dtype, device=DEVICE)
    middle = buffer[GUARD:-GUARD].view(batch, height, width, channels).permute(0, 3, 1, 2)
    return middle.copy_(values), buffer


def written_within(out: Tensor, buffer: Tensor) -> bool:
    """Whether every element of ``out`` was written, and nothing around it."""
    outside = torch.cat([buffer[:GUARD], buffer[-GUARD:]])
    return bool(outside.isnan().all()) and not bool(out.isnan().any())


def rounding(exact: Tensor, dtype: torch.dtype) -> float:
    """The largest error of rounding ``exact`` to ``dtype``."""
    return ROUNDING[dtype] * float(exact.abs().max()) + truncation(exact, dtype)


def truncation(exact: Tensor, dtype: torch.dtype) -> float:
    """What Triton's interpreter adds to it by cutting off to bfloat16 instead of rounding."""
    cuts = INTERPRETING and dtype == torch.bfloat16
    return ROUNDING[dtype] * float(exact.abs().max()) if cuts else 0.0


def truth(given: Inputs) -> tuple[Tensor, list[Tensor]]:
    """y and the gradients of x (and skip) in float64, by autograd through the reference."""
    exact = given.double()
    leaves = [exact.x.clone().requires_grad_()]
    if exact.options["skip"] is not None:
        leaves.append(exact.options["skip"].clone().requires_grad_())
    options = exact.options | {"skip": leaves[1] if len(leaves) > 1 else None}
    y, _ = reference.group_norm_silu(leaves[0], exact.weight, exact.bias, exact.groups, EPS, **options)
    loss = (y * exact.v).sum()
    if exact.add is not None:
        loss = loss + (torch.cat(leaves, 1) * exact.add).sum()
    return y.detach(), list(torch.autograd.grad(loss, leaves))


def _double(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) else value
