"""GroupNorm+SiLU by Triton kernels: which of them run, on what, in which order."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import triton_support
from ..triton_support import ACCESS, Launch, Tile, finish_tile, free_tile, group_tile

UP, DOWN = 1, 2
_VECTORS = ("row_ptr", "weight_ptr", "bias_ptr", "stats_ptr")
_INPUTS = ("x_ptr", "skip_ptr")
_GIVEN = ("v_ptr", *_INPUTS, *_VECTORS)
_RESULTS = ("add_ptr", "v_x_ptr", "v_skip_ptr")


@dataclass(frozen=True)
class Problem:
    """Everything about a call that its kernels depend on: neither the batch nor any value is part of it.

    Attributes:
        first, second: channels of x and of skip (0 without one).
        height, width: of the input.
        groups, eps, resample, activate: as in the operation; ``eps`` is 0 in the backward direction.
        itemsize: bytes of an activation.
        rows, weights, biases: which per-channel vectors differ between samples.
        add: whether another cotangent is added (backward).
    """

    first: int
    second: int
    height: int
    width: int
    groups: int
    eps: float
    resample: int
    activate: bool
    itemsize: int
    rows: bool
    weights: bool
    biases: bool
    add: bool = False

    @property
    def channels(self) -> int:
        return self.first + self.second

    @property
    def size(self) -> int:
        return self.height * self.width

    def sizes(self) -> dict[str, int]:
        """The constants every kernel on activations wants."""
        group = self.channels // self.groups
        return {"C1": self.first, "C2": self.second, "CG": group, "SIZE": self.size, "W": self.width}

    def form(self) -> dict[str, bool | int]:
        """The constants of the kernels that normalise."""
        batched = {"ROWS": self.rows, "WEIGHTS": self.weights, "BIASES": self.biases}
        exact = self.itemsize == 4
        return batched | {"ACTIVATE": self.activate, "RESAMPLE": self.resample, "EXACT": exact}

    def access(self, block: int) -> int:
        """Bytes of the widest access that tiles beginning at multiples of ``block`` channels allow."""
        return math.gcd(ACCESS, *(width * self.itemsize for width in (block, self.first, self.second)))


@dataclass(frozen=True)
class Plan:
    """How a problem is solved.

    Attributes:
        launches: in the order they run.
        tiles: tiles of pixels for which partial sums need room; 0 if none are kept.
    """

    launches: tuple[Launch, ...]
    tiles: int = 0


def group_norm_silu(args: Any) -> None:
    """Write ``y`` and ``stats``; ``args`` as in the schema."""
    plan = forward_plan(triton_support.architecture(args.x.device), problem_of(args, args.eps))
    tensors = {"y_ptr": args.y, "stats_ptr": args.stats}
    _run(plan, args, tensors)


def group_norm_silu_vjp(args: Any) -> None:
    """Write ``v_x`` and ``v_skip``; ``args`` as in the schema."""
    problem = problem_of(args, add=args.add is not None)
    plan = backward_plan(triton_support.architecture(args.x.device), problem)
    tensors = {"v_ptr": args.v, "stats_ptr": args.stats, "v_x_ptr": args.v_x}
    tensors |= {"add_ptr": args.add, "v_skip_ptr": args.v_skip}
    if plan.tiles:
        tensors["means_ptr"] = torch.empty_like(args.stats)
    _run(plan, args, tensors)


def problem_of(args: Any, eps: float = 0.0, add: bool = False) -> Problem:
    """The problem that the arguments of either direction pose."""
    x, skip = args.x, args.skip
    _, first, height, width = x.shape
    rows, weights, biases = (
        vector is not None and vector.dim() == 2 and vector.shape[0] > 1
        for vector in (args.row, args.weight, args.bias)
    )
    return Problem(
        first=first,
        second=0 if skip is None else skip.shape[1],
        height=height,
        width=width,
        groups=args.groups,
        eps=eps,
        resample=args.resample,
        activate=args.activate,
        itemsize=x.element_size(),
        rows=rows,
        weights=weights,
        biases=biases,
        add=add,
    )


def _run(plan: Plan, args: Any, others: dict[str, Tensor | None]) -> None:
    """The launches of the plan, with the inputs that both directions have and ``others``; None is absent."""
    x = args.x
    inputs = {f"{name}_ptr": getattr(args, name) for name in ("x", "skip", "row", "weight", "bias")}
    tensors = {name: tensor for name, tensor in (inputs | others).items() if tensor is not None}
    if plan.tiles:
        room = (x.shape[0], plan.tiles, 2, args.weight.shape[-1])
        tensors["partial_ptr"] = torch.empty(room, dtype=torch.float32, device=x.device)
    triton_support.run(plan.launches, x.shape[0], tensors, x.device)


@functools.cache
def forward_plan(architecture: int, problem: Problem) -> Plan:
    """One launch where a program can hold whole groups, three where not."""
    from . import triton_programs as programs

    pair = 2 if problem.second else 1
    down, up = problem.resample == DOWN, problem.resample == UP
    constants: dict[str, Any] = problem.sizes() | problem.form()
    names = (*_INPUTS, *_VECTORS, "y_ptr")
    tile = _group_tile(architecture, "forward_fused", problem)
    if tile is not None:
        moves = (2 * pair, 0.25) if down else (pair, 4 if up else 1)
        constants |= {"EPS": problem.eps, "NG": tile.groups, "P": tile.pixels, "K": tile.channels}
        return Plan((_grouped(programs.forward_fused, names, constants, tile, problem, *moves),))

    first = _free_tile(architecture, "forward_partial", problem.size, problem)
    last_size = problem.size // 4 if down else problem.size
    last = _free_tile(architecture, "forward_apply", last_size, problem)
    part = {name: constants[name] for name in ("C1", "C2", "SIZE")}
    ends: dict[str, Any] = {"EPS": problem.eps, "ROWS": problem.rows}
    moves = (4 * pair, 1) if down else (pair, 4 if up else 1)
    launches = (
        _free(
            programs.forward_partial, (*_INPUTS, "partial_ptr"), part, first, problem.size, problem, pair, 0
        ),
        _finish(programs.forward_finish, ("partial_ptr", "row_ptr", "stats_ptr"), ends, first, problem),
        _free(programs.forward_apply, names, constants, last, last_size, problem, *moves),
    )
    return Plan(launches, -(-problem.size // first.pixels))


@functools.cache
def backward_plan(architecture: int, problem: Problem) -> Plan:
    """One launch where a program can hold whole groups, three where not."""
    from . import triton_programs as programs

    pair = 2 if problem.second else 1
    gathers = pair + (4 if problem.resample == UP else 1)
    reads = gathers + problem.add
    constants = problem.sizes() | problem.form()
    tile = _group_tile(architecture, "backward_fused", problem)
    if tile is not None:
        constants |= {"NG": tile.groups, "P": tile.pixels, "K": tile.channels}
        every = (*_GIVEN, *_RESULTS)
        return Plan((_grouped(programs.backward_fused, every, constants, tile, problem, reads, pair),))

    size = problem.size
    first = _free_tile(architecture, "backward_partial", size, problem)
    last = _free_tile(architecture, "backward_apply", size, problem)
    names = (*_GIVEN, "means_ptr", *_RESULTS)
    launches = (
        _free(
            programs.backward_partial, (*_GIVEN, "partial_ptr"), constants, first, size, problem, gathers, 0
        ),
        _finish(programs.backward_finish, ("partial_ptr", "means_ptr"), {}, first, problem),
        _free(programs.backward_apply, names, constants, last, size, problem, reads, pair),
    )
    return Plan(launches, -(-size // first.pixels))


def _group_tile(architecture: int, kernel: str, problem: Problem) -> Tile | None:
    return group_tile(architecture, kernel, problem.size, problem.channels, problem.groups, problem.itemsize)


def _free_tile(architecture: int, kernel: str, size: int, problem: Problem) -> Tile:
    return free_tile(architecture, kernel, size, problem.channels, problem.itemsize)


def _grouped(
    kernel: Any,
    names: tuple[str, ...],
    constants: dict[str, Any],
    tile: Tile,
    problem: Problem,
    reads: float,
    writes: float,
) -> Launch:
    """A kernel whose programs own whole groups."""
    access = problem.access(tile.groups * (problem.channels // problem.groups))
    return Launch(kernel, -(-problem.groups // tile.groups), names, constants, tile, reads, writes, access)


def _free(
    kernel: Any,
    names: tuple[str, ...],
    constants: dict[str, Any],
    tile: Tile,
    size: int,
    problem: Problem,
    reads: float,
    writes: float,
) -> Launch:
    """A kernel whose programs own a tile of ``size`` pixels by all channels."""
    programs = -(-size // tile.pixels) * -(-problem.channels // tile.channels)
    constants = constants | {"P": tile.pixels, "K": tile.channels}
    return Launch(kernel, programs, names, constants, tile, reads, writes, problem.access(tile.channels))


def _finish(
    kernel: Any, names: tuple[str, ...], constants: dict[str, Any], part: Tile, problem: Problem
) -> Launch:
    """A kernel that combines the partial numbers of ``part``; a program per group."""
    width = problem.channels // problem.groups
    tile = finish_tile(-(-problem.size // part.pixels), width)
    sizes = {"C": problem.channels, "CG": width, "SIZE": problem.size}
    sizes |= {"P": part.pixels, "T": tile.pixels, "K": tile.channels}
    return Launch(kernel, problem.groups, names, constants | sizes, tile)
