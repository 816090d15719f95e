"""Narrow DDPM++ networks as one call of the host extension per pass.

With tens of channels and images of tens of pixels, starting operations and carrying activations through memory cost
more than the arithmetic. Such networks, with frozen weights on a CPU, run as a program (``fastpure.kernels.network``):
one call takes every sample through all blocks, one call takes its cotangent back. Wider networks gain nothing, as
oneDNN's convolutions are then as fast as the processor.

Whether a network runs so depends on its configuration, dtype and machine, never on the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..errors import mistake
from ..kernels import RESAMPLE_CODES, fused_on_host
from ..kernels import network as programs
from ..kernels.network import ABSENT, ALIGNMENT, OUTSIDE, Fingerprint, Kind, Program
from .base import PLAIN, Watch
from .layers import RESIDUAL, Attention, Conv, Norm, ResBlock

WIDEST = 128
"""Channels of a level beyond which a network is left to oneDNN."""

MOST_TOKENS = 1024
"""Pixels beyond which attention's matrix would not stay in the cache."""

_LANES = 16
"""Channels and tokens come in multiples of so many."""


class Layout(Protocol):
    """What this file reads of ``ddpmpp.Step``."""

    @property
    def kind(self) -> str: ...
    @property
    def inputs(self) -> int: ...
    @property
    def outputs(self) -> int: ...
    @property
    def resample(self) -> str | None: ...
    @property
    def push(self) -> bool: ...
    @property
    def pop(self) -> bool: ...


class Sizes(Protocol):
    """What it reads of ``ddpmpp.DDPMppConfig``."""

    @property
    def image_size(self) -> int: ...
    @property
    def fir(self) -> bool: ...


class Network(Protocol):
    """What it asks of ``ddpmpp.DDPMpp``."""

    config: Any
    watch: Watch

    def walk(self) -> Iterator[tuple[Layout, nn.Module, tuple[int, int]]]:
        """The steps, each with its module and its columns of the rows."""

    def plain(self, x: Tensor, embedding: Tensor) -> Tensor:
        """The network in operations that can be differentiated twice."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All weights."""


# --------------------------------------------------------------------------------- which networks, and when
def suits(steps: Sequence[Layout], config: Sizes) -> bool:
    """Whether a network of these steps can be a program and gains by being one."""
    size = config.image_size
    if config.fir or size % 2:
        return False
    for number, step in enumerate(steps[:-1]):
        if step.kind not in ("conv", "block", "attention", "norm") or step.outputs > WIDEST:
            return False
        if step.outputs % _LANES or (number and step.inputs % _LANES):  # the image's own channels may be any
            return False
        if step.kind == "attention" and (size * size % _LANES or size * size > MOST_TOKENS):
            return False
        size = {None: size, "up": 2 * size, "down": size // 2}[step.resample]
    return [step.kind for step in steps[-2:]] == ["norm", "conv"]


@final
class _Made:
    """The programs of a network as its weights are now. Threads may share it: it is replaced, never emptied.

    Programs hold packed copies of the weights, so every pass looks at all of them: writes through ``.data``, which
    torch does not count, are seen too.
    """

    def __init__(self, network: Network, state: tuple[int, ...]) -> None:
        weights = list(network.parameters())
        found = {weight.dtype for weight in weights}
        # An address elsewhere is none of ours.
        usable = all(type(weight) in PLAIN and weight.device.type == "cpu" for weight in weights)
        self.dtype = found.pop() if usable and len(found) == 1 else None
        self.columns = max(end for *_, (_, end) in network.walk())
        self._state = state
        # Kept alive by it, as weights that come later must not get the addresses of these and look like them.
        self._watched = Fingerprint(weights) if usable else None
        self._values = None if self._watched is None else self._watched.take()
        self._programs: dict[bool, Program] = {}

    def holds(self, state: tuple[int, ...]) -> bool:
        """Whether no weight has changed since; ``state`` is theirs as far as torch counts changes."""
        return state == self._state and (self._watched is None or self._watched.take() == self._values)

    def program(self, network: Network, keep: bool) -> Program:
        """That which keeps what a gradient needs, or that which reuses the memory."""
        made = self._programs.get(keep)
        if made is None:
            assert self.dtype is not None, "programs are only asked for where all weights have one dtype"
            made = _compile(list(network.walk()), network.config.image_size, self.dtype, keep)
            self._programs[keep] = made
        return made


@final
class Programs:
    """Cache beside one network: its programs, made when they are first needed and again when a weight has changed."""

    def __init__(self, steps: Sequence[Layout]) -> None:
        self._steps = steps
        self._widest = max(step.outputs for step in steps)
        self._made: _Made | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Programs:
        return Programs(self._steps)  # a copy has weights of its own

    def __reduce__(self) -> tuple[type[Programs], tuple[Sequence[Layout]]]:
        return Programs, (self._steps,)

    def suit(self, dtype: torch.dtype) -> bool:
        """Whether this machine runs the network as a program in this dtype."""
        return programs.runs(dtype, self._widest)

    def run(self, network: Network, x: Tensor, rows: Tensor) -> Tensor | None:
        """The network on x [B, C, H, W] (dense, channels_last) and rows [1 or B, S].

        None where a program does not serve: without the extension, for images of another size than the network's,
        where x, rows and all weights are not of one dtype it computes in or do not lie in host memory, and where
        somebody records operations: a program is none, so all that would be seen is an empty tensor.

        Raises:
            ValueError: there is not one row for all images or each of them.
        """
        if torch.jit.is_tracing() or is_in_torch_dispatch_mode():
            return None
        if not (self.suit(x.dtype) and _are_plain(x, rows) and fused_on_host(x)):
            return None
        state = network.watch.state(network)  # type: ignore[arg-type]
        made = self._made
        if made is None or not made.holds(state):
            self._made = made = _Made(network, state)
        config = network.config
        if made.dtype != x.dtype or x.shape[1:] != (config.channels, config.image_size, config.image_size):
            return None
        if rows.dim() != 2 or rows.shape[0] not in (1, len(x)) or rows.shape[1] != made.columns:
            wanted = f"of shape [1 or {len(x)}, {made.columns}]"
            raise ValueError(mistake("embedding", wanted, list(rows.shape)))
        rows = rows.contiguous()
        if torch.is_grad_enabled() and x.requires_grad:
            result: Tensor = _Run.apply(x, rows, made.program(network, True), network, state)
            return result
        return made.program(network, False).forward(x, rows)[0]


def _are_plain(x: Tensor, rows: Tensor) -> bool:
    """Whether both have memory of the host, and one dtype."""
    return x.dtype == rows.dtype and rows.device.type == "cpu" and type(x) in PLAIN and type(rows) in PLAIN


def runs_in_one_call(network: nn.Module, dtype: torch.dtype) -> bool:
    """Whether all of a network's layers are one call of the extension on the host, once its weights have this dtype."""
    found = (getattr(module, "programs", None) for module in network.modules())
    return any(isinstance(one, Programs) and one.suit(dtype) for one in found)


class _Run(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, rows: Tensor, program: Program, network: Network, state: tuple[int, ...]
    ) -> Tensor:
        ctx.program, ctx.network, ctx.state = program, network, state
        result, tape, stats = program.forward(x, rows)
        ctx.save_for_backward(x, rows, tape, stats)
        return result

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:
        x, rows, tape, stats = ctx.saved_tensors
        if not torch.is_grad_enabled():
            v = v.contiguous(memory_format=torch.channels_last)
            return ctx.program.transpose(v, rows, tape, stats), None, None, None, None
        if ctx.network.watch.state(ctx.network) != ctx.state:
            raise RuntimeError(
                "a weight was modified by an inplace operation between a pass and its second derivative, which would "
                "be that of neither network. Call the network again after changing weights"
            )
        leaf = x.view_as(x)
        y = ctx.network.plain(leaf, rows)
        return torch.autograd.grad(y, leaf, v, create_graph=True)[0], None, None, None, None


# ------------------------------------------------------------------------------------ from steps to a program
Walk = Sequence[tuple[Layout, nn.Module, tuple[int, int]]]


@dataclass(frozen=True)
class _Span:
    """Memory needed from one step to another, both included."""

    size: int
    first: int
    last: int


def _place(spans: Sequence[_Span], reuse: bool) -> tuple[list[int], int]:
    """Offsets, and the size of it all; spans that are never needed together may share memory if ``reuse``."""
    offsets: list[int] = []
    end = 0
    for number, span in enumerate(spans):
        taken = sorted(
            (offsets[other], offsets[other] + spans[other].size)
            for other in range(number)
            if not reuse or (spans[other].first <= span.last and span.first <= spans[other].last)
        )
        place = 0
        for start, stop in taken:
            if place + span.size <= start:
                break
            place = max(place, stop)
        offsets.append(place)
        end = max(end, place + span.size)
    return offsets, end


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


@dataclass(frozen=True)
class _Flow:
    """One step of the program before memory is given to it: which steps' results it reads, and its input's size."""

    layout: Layout
    module: nn.Module
    column: int
    input: int | None  # the number of the step that made it; None for the image
    skip: int | None
    side: int
    last: Conv | None = None  # the convolution behind the last normalisation

    @property
    def result_side(self) -> int:
        return {None: self.side, "up": 2 * self.side, "down": self.side // 2}[self.layout.resample]

    @property
    def outputs(self) -> int:
        return self.layout.outputs if self.last is None else self.last.weight.shape[0]


def _flows(walk: Walk, image_size: int) -> list[_Flow]:
    flows: list[_Flow] = []
    kept: list[int] = []
    side, previous = image_size, None
    *body, (_, last, _) = walk
    assert isinstance(last, Conv)
    for number, (step, module, (column, _)) in enumerate(body):
        skip = kept.pop() if step.pop else None
        end = last if isinstance(module, Norm) else None
        flows.append(_Flow(step, module, column, previous, skip, side, end))
        previous, side = number, flows[-1].result_side
        if step.push:
            kept.append(number)
    return flows


def _channels_of(flow: _Flow, flows: Sequence[_Flow]) -> tuple[int, int]:
    """Channels of the input and of the skip."""
    skips = 0 if flow.skip is None else flows[flow.skip].outputs
    return flow.layout.inputs - skips, skips


def _compile(walk: Walk, image_size: int, dtype: torch.dtype, keep: bool) -> Program:
    flows = _flows(walk, image_size)
    steps = range(len(flows))
    readers: list[list[int]] = [[] for _ in steps]
    for number, flow in enumerate(flows):
        for source in (flow.input, flow.skip):
            if source is not None:
                readers[source].append(number)
    sizes = [_aligned(flow.outputs * flow.result_side**2) for flow in flows]
    middles = [_aligned(_middle_size(flow)) for flow in flows]
    # What the network returns lies outside, and is nobody's input.
    results = [_Span(sizes[i], i, max(readers[i])) for i in steps[:-1]]
    tape, tape_size = _place([*results, *(_Span(middles[i], i, i) for i in steps)], reuse=not keep)
    cotangents, cotangents_size = _backwards(results, len(flows))
    norms = [_norms(flow) for flow in flows]
    stats, stats_size = _place(
        [_Span(2 * norm.groups, 0, 0) for of_step in norms for norm in of_step], reuse=False
    )
    place_of_stats = iter(stats)
    made = []
    for i, flow in enumerate(flows):
        step_stats = [next(place_of_stats) for _ in norms[i]]
        made.append(
            _step(
                flow,
                _channels_of(flow, flows),
                input=OUTSIDE if flow.input is None else tape[flow.input],
                skip=ABSENT if flow.skip is None else tape[flow.skip],
                output=tape[i] if i in steps[:-1] else OUTSIDE,
                middle=tape[len(results) + i],
                v_input=OUTSIDE if flow.input is None else cotangents[flow.input],
                v_skip=ABSENT if flow.skip is None else cotangents[flow.skip],
                v_output=cotangents[i] if i in steps[:-1] else OUTSIDE,
                adds=flow.input is not None and max(readers[flow.input]) > i,
                stats=step_stats,
            )
        )
    image_in = (flows[0].layout.inputs, image_size, image_size)
    image_out = (flows[-1].outputs, image_size, image_size)
    return Program(made, dtype, image_in, image_out, (tape_size, stats_size, cotangents_size), keep)


def _backwards(results: Sequence[_Span], count: int) -> tuple[list[int], int]:
    """Where the cotangents of the results lie: needed from the last reader's transpose to the maker's."""
    turned = [_Span(span.size, count - 1 - span.last, count - 1 - span.first) for span in reversed(results)]
    offsets, size = _place(turned, reuse=True)
    return offsets[::-1], size


def _middle_size(flow: _Flow) -> int:
    if isinstance(flow.module, ResBlock):
        return flow.outputs * flow.result_side**2
    return 3 * flow.outputs * flow.side**2 if isinstance(flow.module, Attention) else 0


def _norms(flow: _Flow) -> list[Norm]:
    module = flow.module
    if isinstance(module, ResBlock):
        return [module.GroupNorm_0, module.GroupNorm_1]
    if isinstance(module, Attention):
        return [module.GroupNorm_0]
    return [module] if isinstance(module, Norm) else []


def _step(flow: _Flow, channels: tuple[int, int], *, stats: Sequence[int], **places: Any) -> programs.Step:
    module, norms = flow.module, _norms(flow)
    kind, scale, tensors = Kind.CONVOLUTION, 1.0, dict[str, Any]()
    if isinstance(module, ResBlock):
        kind, scale = Kind.BLOCK, RESIDUAL
        tensors |= _packed("first", module.Conv_0.weight) | _packed("second", module.Conv_1.weight)
        if (matrix := module.shortcut_matrix()) is not None:
            tensors |= _packed("shortcut", matrix[:, :, None, None])
    elif isinstance(module, Attention):
        kind, scale = Kind.ATTENTION, RESIDUAL
        # Not ``joined``, whose memory does not notice every change.
        parts = (module.NIN_0, module.NIN_1, module.NIN_2)
        matrix = torch.cat([part.W.detach() for part in parts], 1)
        bias = torch.cat([part.b.detach() for part in parts])
        tensors |= _packed("first", matrix.t()[:, :, None, None]) | {"first_bias": bias}
        tensors |= _packed("second", module.NIN_3.W.t()[:, :, None, None])
        tensors |= {"second_bias": _copied(module.NIN_3.b)}
    else:
        conv = flow.last or module
        assert isinstance(conv, Conv)
        kind = Kind.CONVOLUTION if flow.last is None else Kind.HEAD
        tensors |= _packed("first", conv.weight) | {"first_bias": _copied(conv.bias)}
    for name, norm in zip(("norm", "second_norm"), norms, strict=False):
        tensors |= {f"{name}_weight": _copied(norm.weight), f"{name}_bias": _copied(norm.bias)}
    return programs.Step(
        kind=kind,
        height=flow.side,
        width=flow.side,
        inputs=channels[0],
        skips=channels[1],
        outputs=flow.outputs,
        resample=RESAMPLE_CODES[flow.layout.resample],
        groups=norms[0].groups if norms else 1,
        second_groups=norms[1].groups if len(norms) > 1 else 1,
        eps=norms[0].eps if norms else 1.0,
        scale=scale,
        row=flow.column,
        stats=stats[0] if stats else 0,
        second_stats=stats[-1] if stats else 0,
        **tensors,
        **places,
    )


def _packed(name: str, weight: Tensor) -> dict[str, Tensor]:
    return {name: programs.pack(weight), f"{name}_back": programs.pack_back(weight)}


def _copied(vector: Tensor) -> Tensor:
    """As the extension reads it, dense; and like the packed weights what it is now, whatever becomes of it."""
    return vector.detach().clone(memory_format=torch.contiguous_format)
