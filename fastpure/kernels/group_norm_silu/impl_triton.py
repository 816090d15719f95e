"""GroupNorm+SiLU by Triton kernels: which of them run, on what, in which order."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .. import triton_support
from ..pointwise.impl_triton import residual_launch
from ..triton_support import ACCESS, Launch, Runner, Tile, finish_tile, free_tile, group_tile

UP, DOWN = 1, 2
_VECTORS = ("row", "weight", "bias", "stats")
_GIVEN = ("v", "x", "skip", *_VECTORS)
_RESULTS = ("add", "more", "v_x", "v_skip")


@dataclass(frozen=True)
class Problem:
    """Everything about a call that its kernels depend on: neither the batch nor any value is part of it.

    Attributes:
        first, second: channels of x and of skip (0 without one).
        height, width: of the input.
        groups, eps, resample, activate: as in the operation; ``eps`` is 0 in the backward direction.
        itemsize: bytes of an activation.
        rows, weights, biases: which per-channel vectors differ between samples.
        plus: whether the first input is a sum (forward).
        scale: of that sum (forward), or of its cotangent (backward).
        add, more: which other cotangents are added (backward).
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
    plus: bool = False
    scale: float = 1.0
    add: bool = False
    more: bool = False

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


def group_norm_silu(args: Any) -> Runner:
    """What writes ``y``, ``stats`` and ``total`` for such arguments; ``args`` as in the schema."""
    problem = problem_of(args, eps=args.eps, plus=args.plus is not None)
    return _runner(forward_plan(triton_support.architecture(args.x.device), problem), args)


def group_norm_silu_vjp(args: Any) -> Runner:
    """What writes ``v_x`` and ``v_skip`` for such arguments; ``args`` as in the schema."""
    problem = problem_of(args, add=args.add is not None, more=args.more is not None)
    return _runner(backward_plan(triton_support.architecture(args.x.device), problem), args)


def problem_of(args: Any, eps: float = 0.0, **present: bool) -> Problem:
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
        scale=args.scale,
        **present,
    )


def _runner(plan: Plan, args: Any) -> Runner:
    batch, channels = args.x.shape[0], args.weight.shape[-1]
    used = {source for launch in plan.launches for source in launch.pointers.values()}
    room = {"partial": (batch, plan.tiles, 2, channels), "means": (batch, args.groups, 2)}
    return Runner(plan.launches, args, {name: shape for name, shape in room.items() if name in used})


@functools.cache
def forward_plan(architecture: int, problem: Problem) -> Plan:
    """One launch where a program can hold whole groups, three where not."""
    from . import triton_programs as programs

    pair = 2 if problem.second else 1
    total = 1 if problem.plus else 0
    down, up = problem.resample == DOWN, problem.resample == UP
    constants: dict[str, Any] = problem.sizes() | problem.form()
    tile = _group_tile(architecture, "forward_fused", problem)
    if tile is not None and problem.plus and _crowded(tile):
        alone = dataclasses.replace(problem, plus=False, rows=False)
        (launch,) = forward_plan(architecture, alone).launches
        pointers = {**launch.pointers, "x_ptr": "total"}
        del pointers["row_ptr"], pointers["plus_ptr"], pointers["total_ptr"]
        return Plan((_sum(architecture, problem), dataclasses.replace(launch, pointers=pointers)))
    if tile is not None:
        reads = (2 if down else 1) * (pair + total)
        names = _same("x", "plus", "skip", *_VECTORS, "y", "total")
        constants |= {"EPS": problem.eps, "SCALE": problem.scale}
        constants |= {"NG": tile.groups, "P": tile.pixels, "K": tile.channels}
        writes = total + (0.25 if down else 4 if up else 1)
        return Plan((_grouped(programs.forward_fused, names, constants, tile, problem, reads, writes),))

    first = _free_tile(architecture, "forward_partial", problem.size, problem)
    last_size = problem.size // 4 if down else problem.size
    last = _free_tile(architecture, "forward_apply", last_size, problem)
    part: dict[str, Any] = {name: constants[name] for name in ("C1", "C2", "SIZE", "ROWS")}
    part["SCALE"] = problem.scale
    ends: dict[str, Any] = {"EPS": problem.eps, "C1": problem.first, "ROWS": problem.rows}
    moves = (4 * pair, 1) if down else (pair, 4 if up else 1)
    if problem.plus:  # the first kernel writes the sum, and nothing is left to be added in the others
        once = _same("x", "plus", "skip", "row", "total", "partial")
        finish = _same("partial", "stats")
        apply = {"x_ptr": "total"} | _same("skip", "weight", "bias", "stats", "y")
    else:
        once = _same("x", "skip", "partial")
        finish = _same("partial", "row", "stats")
        apply = _same("x", "skip", *_VECTORS, "y")
    launches = (
        _free(programs.forward_partial, once, part, first, problem.size, problem, pair + total, total),
        _finish(programs.forward_finish, finish, ends, first, problem),
        _free(programs.forward_apply, apply, constants, last, last_size, problem, *moves),
    )
    return Plan(launches, -(-problem.size // first.pixels))


@functools.cache
def backward_plan(architecture: int, problem: Problem) -> Plan:
    """One launch where a program can hold whole groups, three where not."""
    from . import triton_programs as programs

    pair = 2 if problem.second else 1
    gathers = pair + (4 if problem.resample == UP else 1)
    reads = gathers + problem.add + problem.more
    constants: dict[str, Any] = problem.sizes() | problem.form()
    tile = _group_tile(architecture, "backward_fused", problem)
    if tile is not None:
        constants |= {"SCALE": problem.scale, "NG": tile.groups, "P": tile.pixels, "K": tile.channels}
        every = _same(*_GIVEN, *_RESULTS)
        return Plan((_grouped(programs.backward_fused, every, constants, tile, problem, reads, pair),))

    size = problem.size
    first = _free_tile(architecture, "backward_partial", size, problem)
    last = _free_tile(architecture, "backward_apply", size, problem)
    part, names = _same(*_GIVEN, "partial"), _same(*_GIVEN, "means", *_RESULTS)
    ends = constants | {"SCALE": problem.scale}
    launches = (
        _free(programs.backward_partial, part, constants, first, size, problem, gathers, 0),
        _finish(programs.backward_finish, _same("partial", "means"), {}, first, problem),
        _free(programs.backward_apply, names, ends, last, size, problem, reads, pair),
    )
    return Plan(launches, -(-size // first.pixels))


def _crowded(tile: Tile) -> bool:
    """Whether a thread's part of the tile leaves no registers to add something up on the way: 128 are all it has."""
    return tile.warps >= 16 and tile.elements > 32 * (32 * tile.warps)


def _sum(architecture: int, problem: Problem) -> Launch:
    """total = (x + plus + row) scale by a kernel of its own."""
    first, size, itemsize = problem.first, problem.size, problem.itemsize
    launch = residual_launch(architecture, first, size, itemsize, problem.scale, True, problem.rows)
    names = {"a_ptr": "x", "b_ptr": "plus", "bias_ptr": "row", "out_ptr": "total"}
    return dataclasses.replace(launch, pointers=names)


def _same(*names: str) -> dict[str, str]:
    """Kernel parameters that are called like the arguments they get."""
    return {f"{name}_ptr": name for name in names}


def _group_tile(architecture: int, kernel: str, problem: Problem) -> Tile | None:
    return group_tile(architecture, kernel, problem.size, problem.channels, problem.groups, problem.itemsize)


def _free_tile(architecture: int, kernel: str, size: int, problem: Problem) -> Tile:
    return free_tile(architecture, kernel, size, problem.channels, problem.itemsize)


def _grouped(
    kernel: Any,
    names: Mapping[str, str],
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
    names: Mapping[str, str],
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
    kernel: Any, names: Mapping[str, str], constants: dict[str, Any], part: Tile, problem: Problem
) -> Launch:
    """A kernel that combines the partial numbers of ``part``; a program per group."""
    width = problem.channels // problem.groups
    tile = finish_tile(-(-problem.size // part.pixels), width)
    sizes = {"C": problem.channels, "CG": width, "SIZE": problem.size}
    sizes |= {"P": part.pixels, "T": tile.pixels, "K": tile.channels}
    return Launch(kernel, problem.groups, names, constants | sizes, tile)
