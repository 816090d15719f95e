"""The frame around steps that no table holds: environment, memory plans, states that carry more than an image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastpure.kernels import NoiseKeys
from fastpure.reverse import (
    Call,
    GeneratedNoise,
    MemoryPlan,
    Procedure,
    Process,
    perform,
    perform_states,
)
from fastpure.schedule import reverse_sde
from tests.reverse.toys import SHAPE, toy_denoiser

INSIDE: list[bool] = [False]


class Watched(torch.autograd.Function):
    """The identity; notes where its forward and backward pass ran."""

    seen: list[tuple[str, bool]] = []  # noqa: RUF012  (shared on purpose: one note book)

    @staticmethod
    def forward(ctx, x):
        Watched.seen.append(("forward", INSIDE[0]))
        return x.clone()

    @staticmethod
    def backward(ctx, v):
        Watched.seen.append(("backward", INSIDE[0]))
        return v


@dataclass(frozen=True)
class Toy(Procedure):
    """x <- x - count * noise_pred / 4 with a counter that is no float and a part that never changes."""

    def begin(self, x: Tensor):
        return x, torch.ones(len(x), dtype=torch.int64), x.detach().mean((1, 2, 3))

    def step(self, process, k, state, context, noise):
        x, count, mean = state
        e = process.denoiser.noise_pred(Watched.apply(x), process.conditioning, k)
        pull = count.view(-1, 1, 1, 1) * e / 4 + context[0] * mean.view(-1, 1, 1, 1)
        return x - pull, count + 1, mean

    def image(self, state):
        return state[0]


@contextmanager
def environment() -> Iterator[None]:
    INSIDE[0] = True
    try:
        yield
    finally:
        INSIDE[0] = False


def call(memory) -> Call:
    process = Process.build(toy_denoiser(), reverse_sde(0.1, 0.025), None, torch.device("cpu"), torch.float64)
    keys = NoiseKeys.make(seed=0, sample_ids=[0, 1])
    return Call(process, GeneratedNoise(keys), keys.sample_ids, MemoryPlan(memory), {}, environment)


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    return x, 0.1 * weight


def plain(x: Tensor, weight: Tensor) -> Tensor:
    mean, net = x.detach().mean((1, 2, 3), keepdim=True), toy_denoiser().network
    for k, t in enumerate([0.1, 0.075, 0.05, 0.025]):
        x = x - (k + 1) * net(x, x.new_full((2,), 999 * t)) / 4 - weight * mean
    return x


@pytest.mark.parametrize("memory", ["store", "recompute", "auto", 0])
def test_gradients_reach_the_image_and_the_context(memory):
    x, weight = (t.requires_grad_(True) for t in images())
    expected = plain(x, weight)
    out = perform(call(memory), Toy(), x, (weight,))
    assert torch.allclose(out, expected, atol=1e-12)
    grads = [torch.autograd.grad(end.square().sum(), (x, weight)) for end in (out, expected)]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-10)


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_both_passes_run_in_the_environment(memory):
    """Otherwise the backward pass of a float32 purifier would run in TF32 on a GPU."""
    x, weight = images()
    Watched.seen.clear()
    perform(call(memory), Toy(), x.requires_grad_(True), (weight,)).sum().backward()
    assert ("backward", True) in Watched.seen
    assert all(inside for _, inside in Watched.seen)


def test_states_are_every_image_on_the_way():
    x, weight = images()
    visited = perform_states(call("auto"), Toy(), x, (weight,))
    assert len(visited) == 5
    assert torch.equal(visited[0], x)
    assert torch.equal(visited[-1], perform(call("auto"), Toy(), x, (weight,)))
    assert torch.allclose(visited[-1], plain(x, weight), atol=1e-12)
