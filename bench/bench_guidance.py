"""Guidance: gradient of a classifier's log-confidence and the Hessian's product, with weights as constants or not.

python -m bench.bench_guidance [repeats]
pytest bench/bench_guidance.py           the digits classifier under pytest-benchmark
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.measured import measure
from fastpure.baselines import interleave, table
from fastpure.classifiers import CONFIGS, ResNet
from fastpure.classifiers.base import call_frozen


def gradient_and_product(call: Callable[[Tensor], Tensor], x: Tensor, v: Tensor | None) -> tuple[Tensor, ...]:
    """Gradient, and with ``v`` the Hessian's product."""
    leaf = x.clone().requires_grad_(True)
    logits = call(leaf)
    confidence = -F.cross_entropy(logits, logits.detach().argmax(1), reduction="sum")
    (g,) = torch.autograd.grad(confidence, leaf, create_graph=v is not None)
    return (g,) if v is None else (g.detach(), *torch.autograd.grad(g, leaf, v))


CASES = ("gradient, constants", "gradient, torch", "Hessian, constants", "Hessian, torch")


def cases(network: nn.Module, x: Tensor) -> dict[str, Callable[[], object]]:
    v = torch.randn_like(x)
    frozen = lambda x: call_frozen(network, x)  # noqa: E731
    calls = (
        lambda: gradient_and_product(frozen, x, None),
        lambda: gradient_and_product(network, x, None),
        lambda: gradient_and_product(frozen, x, v),
        lambda: gradient_and_product(network, x, v),
    )
    return dict(zip(CASES, calls, strict=True))


def classifier(name: str) -> nn.Module:
    return ResNet(CONFIGS[name]).eval().requires_grad_(False)


@pytest.mark.parametrize("name", CASES)
def test_guidance(benchmark, name):
    found = cases(classifier("resnet-digits"), torch.rand(64, *CONFIGS["resnet-digits"].image_shape))
    measure(benchmark, f"guidance by resnet-digits, B = 64, {name.split(',')[0]}", found[name], calls=5)


def main(repeats: int = 7) -> None:
    torch.manual_seed(0)
    for name, batch in (("resnet-digits", 64), ("resnet-cifar10-small", 32), ("resnet-cifar10", 32)):
        timings = interleave(cases(classifier(name), torch.rand(batch, *CONFIGS[name].image_shape)), repeats)
        print(table(timings, "Hessian, constants", f"{name}, B = {batch}"), end="\n\n")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
