"""What is modelled and measured: one row of a purification, forward and linearised, on any device, fake or real."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fastpure import methods
from fastpure.classifiers import CIFAR_RESNETS, CONFIGS, WIDE_RESNETS, CifarResNet, ResNet, WideResNet
from fastpure.errors import one_of
from fastpure.kernels import Domain, NoiseKeys
from fastpure.nets import NETWORKS, Denoiser
from fastpure.nets.registry import build
from fastpure.reverse import GeneratedNoise, Process
from fastpure.reverse.memory import watch_saved
from fastpure.reverse.step import advance, evaluate, linearize, row_vjp

DT = 1e-3
CLASSIFIERS: dict[str, tuple[Callable[[Any], nn.Module], Any]] = {
    name: (network, config)
    for network, configs in ((ResNet, CONFIGS), (WideResNet, WIDE_RESNETS), (CifarResNet, CIFAR_RESNETS))
    for name, config in configs.items()
}
"""Name -> (network, its configuration), of all named classifiers."""


@dataclass(frozen=True)
class Workload:
    """One step of a batch.

    Fields:
        forward: evaluates the networks at a state and applies the row.
        adjoint: linearises the row at a state, applies it, and pulls a cotangent back through it.
        kept_bytes: bytes that the step's tape keeps.
    """

    network: str
    guidance: str | None
    batch: int
    precision: str
    forward: Callable[[], object]
    adjoint: Callable[[], object]
    kept_bytes: Callable[[], float]


def workload(
    network: str, guidance: str | None, batch: int, dtype: torch.dtype, precision: str, device: str = "cpu"
) -> Workload:
    """A step of COUP on ``network``, guided by the classifier configuration ``guidance`` if there is one.

    Inside `bench.roofline.fake_tensors` everything is made of fake tensors.
    """
    architecture, config = NETWORKS[network]
    shape = (config.channels, config.image_size, config.image_size)
    with torch.device(device):
        denoiser = Denoiser(_random(build(architecture, config)), "eps", "continuous", shape).cast(dtype)
    classifier = None if guidance is None else _classifier(guidance, device, dtype)
    method = (
        methods.coup_unguided(t=DT, dt=DT) if classifier is None else methods.coup(classifier, t=DT, dt=DT)
    )
    process = Process.build(denoiser, method.table(), method.guidance, torch.device(device), torch.float32)
    keys = NoiseKeys(
        torch.zeros(1, dtype=torch.int64, device=device),
        torch.arange(batch, device=device),
        torch.zeros(batch, dtype=torch.int64, device=device),
        Domain.DEFENSE,
    )
    noise = GeneratedNoise(keys)
    x = torch.randn(batch, *shape, device=device)

    def forward() -> object:
        with torch.no_grad():
            return advance(process, 0, x, None, evaluate(process, 0, x, (), noise), keys)

    def adjoint() -> object:
        tape = linearize(process, 0, x, (), noise)
        with torch.no_grad():
            after = advance(process, 0, x, None, (tape.noise_pred, tape.guidance), keys)
            return after, row_vjp(process, 0, x, tape, torch.ones_like(x), None)

    def kept_bytes() -> float:
        modules = [denoiser] if classifier is None else [denoiser, classifier]
        constants = {
            _storage(tensor) for module in modules for tensor in (*module.parameters(), *module.buffers())
        }
        kept: dict[int, int] = {}

        def note(tensor: Tensor) -> None:
            kept[_storage(tensor)] = tensor.untyped_storage().nbytes()

        with watch_saved(note):
            tape = linearize(process, 0, x, (), noise)
        del tape
        return float(sum(size for key, size in kept.items() if key not in constants))

    return Workload(network, guidance, batch, precision, forward, adjoint, kept_bytes)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # fake tensors have no address


def _random(network: nn.Module) -> nn.Module:
    for tensor in network.parameters():
        nn.init.normal_(tensor.data, std=0.02)
    return network.eval()


def _classifier(name: str, device: str, dtype: torch.dtype) -> nn.Module:
    network, config = CLASSIFIERS[one_of("guidance", name, CLASSIFIERS)]
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # fake modules cannot be cast afterwards
    try:
        with torch.device(device):
            return network(config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
