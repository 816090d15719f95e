"""`torch.compile` as an option changes speed and nothing else, survives copies, and says why it cannot run."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import CompileError
from fastpure.nets import Denoiser
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier


class Counting(ToyNet):
    """Counts how often its Python code runs."""

    def __init__(self):
        super().__init__()
        self.runs = []

    def forward(self, x, label):
        if not torch.compiler.is_compiling():
            self.runs.append(len(x))
        return super().forward(x, label)


def denoiser(network: nn.Module | None = None) -> Denoiser:
    torch.manual_seed(0)
    return Denoiser.from_module((network or ToyNet()).eval(), image_shape=SHAPE)


def purified(model: Denoiser) -> tuple[torch.Tensor, torch.Tensor]:
    method = fp.methods.coup(toy_classifier(torch.float32), t=0.1, dt=0.05)
    x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    out = fp.Purifier(model, method)(x)
    return out.detach(), torch.autograd.grad(out.square().sum(), x)[0]


@pytest.fixture(autouse=True)
def fresh():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def test_the_results_are_those_of_the_network():
    plain = denoiser(Counting())
    exact = purified(plain)
    compiled = plain.compiled(backend="aot_eager")
    found = purified(compiled)
    for one, other in zip(found, exact, strict=True):
        assert torch.allclose(one, other, atol=1e-6)
    assert plain._call is None


def test_casts_and_frozen_copies_are_compiled_and_the_original_is_shared():
    network = Counting()
    compiled = denoiser(network).compiled(backend="aot_eager")
    assert compiled.network is network
    for other in (compiled.cast(torch.float64), compiled.frozen(), copy.deepcopy(compiled)):
        assert other._call is not None
        assert other._call is not compiled._call
        assert other._call.backend == "aot_eager"
        x = torch.rand(1, *SHAPE, dtype=other.dtype)
        table = fp.methods.coup_unguided(t=0.1, dt=0.05).table()
        steps = other.conditioning(*(table.column(name) for name in ("tau", "index", "alpha", "sigma")))
        other.noise_pred(x, steps, 0)
        assert other.network.runs == [], "the compiled code runs, not the network's"
    assert pickle.loads(pickle.dumps(compiled._call)).backend == "aot_eager"


def test_hoisted_networks_are_compiled_behind_their_embedding():
    plain = fp.load_denoiser("digits")
    method = fp.methods.coup_unguided(t=0.1, dt=0.05)
    x = torch.rand(2, 1, 8, 8)
    found = fp.Purifier(plain.compiled(backend="eager"), method)(x)
    assert torch.allclose(found, fp.Purifier(plain, method)(x), atol=1e-6)


def test_a_compiler_that_is_missing_or_fails_is_named(monkeypatch):
    def fails(graph, inputs):
        raise OSError("no C++ compiler was found")

    torch._dynamo.register_backend(name="fails", compiler_fn=fails)
    with pytest.raises(CompileError, match=r"could not be compiled .*fails.*no C\+\+ compiler was found"):
        purified(denoiser().compiled(backend="fails"))


def test_errors_of_the_network_stay_its_own():
    class Wrong(ToyNet):
        def forward(self, x, label):
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        purified(denoiser(Wrong()).compiled(backend="eager"))


def test_unknown_choices_are_named():
    with pytest.raises(ValueError, match="`mode` must be one of 'default', 'max-autotune-no-cudagraphs'"):
        denoiser().compiled(mode="reduce-overhead")
    with pytest.raises(ValueError, match="`backend` must be one of"):
        denoiser().compiled(backend="gcc")


@pytest.mark.slow
def test_inductor_agrees_up_to_rounding():
    plain = denoiser()
    compiled = Denoiser.from_module(plain.network, image_shape=SHAPE, compile=True)
    table = fp.methods.coup_unguided(t=0.1, dt=0.05).table()
    results = []
    for model in (plain.frozen(), compiled.frozen()):
        steps = model.conditioning(*(table.column(name) for name in ("tau", "index", "alpha", "sigma")))
        x = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
        out = model.noise_pred(x, steps, 0)
        results.append((out.detach(), torch.autograd.grad(out.square().sum(), x)[0]))
    for one, other in zip(*results, strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    assert results[1][1].abs().max() > 0.1
