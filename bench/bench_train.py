"""One ADDT iteration against the network passes it is made of; and the memory that frozen weights save.

    python -m bench.bench_train [REPEATS]
    pytest bench/bench_train.py              digits, B = 16, under pytest-benchmark

The passes: per inner step the denoiser forward and backward to its input, the classifier likewise; then the
denoiser forward and backward to its weights. They are run on prepared tensors with nothing around them, each
kind as often as an iteration has it. The cases take turns in one process.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F

import fastpure as fp
from bench.measured import measure
from fastpure.baselines import interleave, ratio, table
from fastpure.classifiers import CONFIGS, ResNet
from fastpure.data import load_dataset
from fastpure.nets import Denoiser
from fastpure.reverse.memory import count_saved_bytes
from fastpure.train import AddtLoss, Batch, ContinuousTimes, StepRandom
from fastpure.train.losses import frozen_weights

STEPS = 5
ITERATION, PASSES = "ADDT iteration", "its network passes"
Case = tuple[str, Denoiser, torch.nn.Module, Batch]


def digits_case(batch_size: int = 64) -> Case:
    data = load_dataset("digits", "train")
    denoiser = copy.deepcopy(fp.load_denoiser("digits")).requires_grad_(True).train()
    random = StepRandom(0, 0, 0, batch_size, torch.device("cpu"))
    batch = Batch(data.images[:batch_size], data.labels[:batch_size], random)
    return f"digits, B = {batch_size}", denoiser, fp.load_classifier("digits"), batch


def cifar_case(batch_size: int = 8) -> Case:
    denoiser = fp.Denoiser.from_config("ddpmpp-cifar10-small").requires_grad_(True).train()
    classifier = ResNet(CONFIGS["resnet-cifar10-small"]).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch_size, 3, 32, 32, generator=generator)
    labels = torch.randint(10, (batch_size,), generator=generator)
    batch = Batch(images, labels, StepRandom(0, 0, 0, batch_size, torch.device("cpu")))
    return f"small CIFAR-10 networks, B = {batch_size}", denoiser, classifier, batch


def iteration(case: Case) -> Callable[[], None]:
    _, denoiser, classifier, batch = case
    loss = AddtLoss(classifier, ContinuousTimes(1e-3, 0.3))

    def run() -> None:
        denoiser.zero_grad(set_to_none=True)
        loss(denoiser, batch).mean().backward()

    return run


def passes(case: Case) -> Callable[[], None]:
    _, denoiser, classifier, batch = case
    x = torch.randn_like(batch.images)
    labels = torch.linspace(1, 300, len(x))
    v = torch.randn_like(x)

    def run() -> None:
        denoiser.zero_grad(set_to_none=True)
        with frozen_weights(denoiser):
            for _ in range(STEPS):
                leaf = x.clone().requires_grad_(True)
                torch.autograd.grad(denoiser(leaf, labels), leaf, v)
                image = batch.images.clone().requires_grad_(True)
                value = F.cross_entropy(classifier(image), batch.labels, reduction="sum")
                torch.autograd.grad(value, image)
        denoiser(x, labels).square().mean().backward()

    return run


@pytest.mark.parametrize("what", [iteration, passes], ids=[ITERATION, PASSES])
def test_iteration(benchmark, what):
    case = digits_case(16)
    measure(benchmark, f"ADDT, {case[0]}, {STEPS} inner steps", what(case))


def saved_megabytes(case: Case, frozen: bool) -> float:
    """MB per image that autograd keeps in one inner pass of the denoiser."""
    _, denoiser, _, batch = case
    x = torch.randn_like(batch.images).requires_grad_(True)
    labels = torch.linspace(1, 300, len(x))
    weights = list(denoiser.state_dict(keep_vars=True).values())
    if frozen:
        with frozen_weights(denoiser), count_saved_bytes(*weights) as saved:
            output = denoiser(x, labels)
    else:
        with count_saved_bytes(*weights) as saved:
            output = denoiser(x, labels)
    del output
    return saved.total / len(x) / 1e6


def main(repeats: int = 5) -> None:
    for case in (digits_case(), cifar_case()):
        timings = interleave({ITERATION: iteration(case), PASSES: passes(case)}, repeats)
        print(table(timings, PASSES, f"ADDT, {case[0]}, {STEPS} inner steps, fp32"))
        print(f"iteration / passes  {ratio(timings, ITERATION, PASSES):.3f}   (goal: at most 1.15)")
        kept = [saved_megabytes(case, frozen) for frozen in (False, True)]
        print(
            f"kept per image by an inner pass: {kept[0]:.2f} MB with trainable weights, {kept[1]:.2f} MB frozen"
        )
        print(f"saved: a factor of {kept[0] / kept[1]:.2f}\n")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
