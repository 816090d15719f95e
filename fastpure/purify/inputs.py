"""What a purifier is called with: images, seeds, the noise a caller around it asks for, torch's inference mode."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..errors import mistake
from ..kernels import Domain
from ..methods import Method
from ..reverse import Execution

Function = TypeVar("Function", bound=Callable[..., Tensor])


def sealed(function: Function) -> Function:
    """Run a method of (self, x, ...) outside of the caller's inference mode and of a compiler's tracing.

    Guidances and likelihood maximisation differentiate to purify at all, and what a purifier computes once and keeps
    must not be made of inference tensors, which no later gradient could use. ``torch.compile`` of a module around it
    breaks its graph here.
    """

    @functools.wraps(function)
    def run(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if torch.compiler.is_compiling():
            return torch._dynamo.disable(run)(self, x, *args, **kwargs)
        if not torch.is_inference_mode_enabled():
            return function(self, x, *args, **kwargs)
        with torch.inference_mode(False), torch.no_grad():
            return function(self, x.clone() if isinstance(x, Tensor) else x, *args, **kwargs)

    return run  # type: ignore[return-value]


RANGE_SLACK = 1e-6
"""How far outside [0, 1] a pixel may lie: attacks project in float32 and miss by a rounding error."""


def images_remedy(x: Any, argument: str = "x", channels: int | None = None) -> str:
    """What makes float32 images [B, C, H, W] of what was given instead; "" where nothing is plain."""
    if not isinstance(x, Tensor):
        return f"Use torch.from_numpy({argument}).float()" if type(x).__name__ == "ndarray" else ""
    if not x.is_floating_point():
        return f"Use {argument}.float(), and divide 8-bit images by 255"
    if x.dim() == 3:
        return f"Add the batch dimension with {argument}[None]"
    if x.dim() == 4 and channels is not None and x.shape[1] != channels == x.shape[3]:
        return f"Use {argument}.permute(0, 3, 1, 2)"
    return f"Use {argument}.float()" if x.dtype != torch.float32 else ""


def check_shape(x: Tensor, image_shape: tuple[int, int, int]) -> None:
    """Raise ValueError unless ``x`` is [B, C, H, W] for ``image_shape`` (C, H, W)."""
    if x.dim() != 4 or tuple(x.shape[1:]) != image_shape:
        channels, height, width = image_shape
        remedy = images_remedy(x, channels=channels)
        raise ValueError(
            mistake("x", f"of shape [B, {channels}, {height}, {width}]", f"{list(x.shape)}", remedy)
        )


def check_range(x: Tensor, argument: str = "x") -> None:
    """Raise ValueError unless every pixel is finite and in [0, 1] up to a float32 rounding error."""
    low, high = (float(v) for v in torch.aminmax(x.detach()))
    if not low <= high or abs(low) == float("inf") or abs(high) == float("inf"):
        raise ValueError(mistake(argument, "finite", "NaN or Inf in it"))
    if low < -RANGE_SLACK or high > 1.0 + RANGE_SLACK:
        remedy = "Undo a mean/std normalisation, map [-1, 1] with (x + 1) / 2, divide 8-bit images by 255"
        raise ValueError(mistake(argument, "in [0, 1]", f"values in [{low:g}, {high:g}]", remedy))


def check_seed(seed: int) -> int:
    """Return ``seed`` as an integer in [0, 2**64); raise TypeError or ValueError for anything else."""
    if isinstance(seed, bool) or not hasattr(seed, "__index__"):
        raise TypeError(mistake("seed", "an integer in [0, 2**64)", f"{type(seed).__name__} {seed!r}"))
    if not 0 <= seed.__index__() < 2**64:
        raise ValueError(mistake("seed", "an integer in [0, 2**64)", seed))
    return seed.__index__()


AGREEMENT = 1e-5
"""Share of the largest number by which two answers may differ and count as one: some GPU libraries add in any order."""


def differ(one: Tensor, other: Tensor) -> bool:
    """Whether two answers of a network to the same question are not the same answer."""
    return float((other - one).abs().max()) > AGREEMENT * float(one.abs().max().clamp_min(1e-30))


class Asked(nn.Module, ABC):
    """A module that takes ids and draws from the ``Question`` around it, where it is not told its noise."""

    @property
    @abstractmethod
    def network_calls(self) -> int:
        """Calls of a diffusion model for one image."""

    @property
    def methods(self) -> tuple[Method, ...]:
        """How it purifies; none where it does not."""
        return ()

    @property
    def execution(self) -> Execution | None:
        """How purification steps are carried out; None where nothing purifies."""
        return None


CALLS_APART = 1 << 24
"""How far apart the draws of one module's calls within one question lie; no attack or protocol counts that far."""


@dataclass
class Question:
    """Which noise purifiers use while a module around them is asked: one id and one draw per image.

    Wrappers call ``defense(x)`` and know nothing of ids and draws. Whatever purifies inside ``asking`` without being
    told its noise takes it from here, so that a wrapped defence answers as the defence itself would.

    Attributes:
        sample_ids, draws: int64 [B].
        domain: whose noise.
        calls: how often each module took noise from here, in the order of first use.
    """

    sample_ids: Tensor
    draws: Tensor
    domain: Domain
    calls: dict[Asked, int] = field(default_factory=dict)

    def take(self, module: Asked, n_images: int) -> tuple[Tensor, Tensor, Domain]:
        """Ids, draws and domain for the next call of ``module``; a second call sees other noise than the first.

        Raises:
            ValueError: it is called on another number of images than were asked about.
        """
        if n_images != len(self.sample_ids):
            expected = (
                f"the {len(self.sample_ids)} images that the module around this {type(module).__name__} got"
            )
            remedy = "Pass `sample_ids` and `draw` on where a wrapper changes the number of images"
            raise ValueError(mistake("x", expected, f"{n_images} images", remedy))
        number = self.calls.get(module, 0)
        self.calls[module] = number + 1
        return self.sample_ids, (self.draws + number * CALLS_APART) % (1 << 32), self.domain


_QUESTION: ContextVar[Question | None] = ContextVar("fastpure_question", default=None)


@contextmanager
def asking(sample_ids: Tensor, draws: Tensor, domain: Domain) -> Iterator[Question]:
    """Purifiers called inside, in this thread, without noise of their own take that of these ids and draws."""
    question = Question(sample_ids, draws, domain)
    token = _QUESTION.set(question)
    try:
        yield question
    finally:
        _QUESTION.reset(token)


def current_question() -> Question | None:
    """The question that is being asked in this thread."""
    return _QUESTION.get()


@dataclass(frozen=True)
class Held:
    """Noise that is held still: which draw, and of what part ("all", "forward" or "reverse")."""

    draw: int
    part: str = "all"


_HELD: ContextVar[Mapping[int, Held]] = ContextVar("fastpure_held", default=MappingProxyType({}))
"""What is held in this thread, by the ``id`` of a module that is alive as long as the entry."""


@contextmanager
def holding(module: nn.Module, held: Held) -> Iterator[None]:
    """Noise of ``module`` is held inside the block, in this thread; other threads' calls see it as random as ever."""
    token = _HELD.set({**_HELD.get(), id(module): held})
    try:
        yield
    finally:
        _HELD.reset(token)


def held_noise(module: nn.Module) -> Held | None:
    """What ``holding`` holds of ``module``."""
    return _HELD.get().get(id(module))
