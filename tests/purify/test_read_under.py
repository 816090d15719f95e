"""What is read from the input before the first step is computed and differentiated under the purifier's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.guidance import Guidance
from fastpure.methods import Method
from fastpure.methods.preparation import Preparation
from tests.reverse.toys import SHAPE, toy_denoiser

SEEN: list[tuple[str, Any]] = []


def settings() -> tuple[Any, ...]:
    """What decides products and convolutions on a GPU."""
    return (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
        torch.is_autocast_enabled("cpu"),
    )


class Squared(torch.autograd.Function):
    """x^2, which writes down under which settings it is computed and differentiated."""

    @staticmethod
    def forward(ctx: Any, name: str, x: Tensor) -> Tensor:
        SEEN.append((f"{name} forward", settings()))
        ctx.name = name
        ctx.save_for_backward(x)
        return x.square()

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        SEEN.append((f"{ctx.name} backward", settings()))
        return None, 2 * ctx.saved_tensors[0] * v


@dataclass(frozen=True)
class Reading(Guidance):
    """Pulls towards the square of the input; also reads the input itself and something without derivative."""

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        return Squared.apply("guidance", x0), x0, x0.detach().sign().long()

    def gradient(self, x: Tensor, context: tuple[Tensor, ...], step: Any) -> Tensor:
        return self.linearize(x, context, step)[0]

    def linearize(self, x: Tensor, context: tuple[Tensor, ...], step: Any) -> tuple[Tensor, Any]:
        square, own, sign = context
        return square + 0.5 * own + sign - x, lambda v: (-v, (v, 0.5 * v, None))

    def networks(self) -> tuple[nn.Module, ...]:
        return ()

    def cast(self, dtype: torch.dtype) -> Guidance:
        return self

    def check(self) -> None:
        pass


@dataclass(frozen=True)
class Prepared(Preparation):
    """x + x^2 / 8."""

    def __call__(self, x: Tensor) -> Tensor:
        return x + Squared.apply("preparation", x) / 8

    def check_images(self, shape: tuple[int, int, int]) -> None:
        pass


def purifier(precision: str) -> fp.Purifier:
    table = fp.methods.coup_unguided(t=0.2, dt=0.1).table().guided(0.1)
    method = replace(Method("reading", (), table, Reading(), False), prepare=Prepared())
    dtype = torch.float64 if precision == "fp64" else torch.float32
    return fp.Purifier(toy_denoiser(dtype), method, precision=precision, backend="eager")


@pytest.fixture
def caller():
    """A caller with settings of his own."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("medium")
    torch.backends.cudnn.allow_tf32 = True
    SEEN.clear()
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def test_forwards_and_backwards_under_the_purifiers_settings(caller):
    leaf = torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    one = purifier("fp32")
    end = one(leaf)
    with torch.autocast("cpu"):  # around the backward pass too
        (first,) = torch.autograd.grad(end.sum(), leaf, retain_graph=True)
    (again,) = torch.autograd.grad(end.sum(), leaf)
    assert torch.equal(first, again), "a retained graph is recorded again"
    assert {name for name, _ in SEEN} == {
        f"{who} {way}" for who in ("guidance", "preparation") for way in ("forward", "backward")
    }
    assert {found for _, found in SEEN} == {("highest", False, False)}
    assert torch.get_float32_matmul_precision() == "medium"
    SEEN.clear()
    with torch.no_grad():
        assert torch.equal(one(leaf), end)
    assert [found for _, found in SEEN] == [("highest", False, False)] * 2


def test_the_gradient_is_exact_through_what_was_read():
    one, x = (
        purifier("fp64"),
        torch.rand((1, *SHAPE), dtype=torch.float64, generator=torch.Generator().manual_seed(1)),
    )
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(one(leaf).sum(), leaf)
    for place in (0, 7):
        h = torch.zeros_like(x).flatten().index_fill(0, torch.tensor(place), 1e-6).view_as(x)
        with torch.no_grad():
            slope = float((one(x + h) - one(x - h)).sum() / 2e-6)
        assert float(gradient.flatten()[place]) == pytest.approx(slope, rel=1e-5)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(torch.autograd.grad(one(leaf).sum(), leaf, create_graph=True)[0].sum(), leaf)
