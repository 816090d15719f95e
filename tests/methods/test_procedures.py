"""Methods whose steps are procedures: both plans, images that rest early, second derivatives on a real architecture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.errors import NonFiniteError
from fastpure.nets import Denoiser
from tests.methods import written_out as plain
from tests.methods.cases import ADP, CASES, PROCEDURES, error, inputs, networks, ours
from tests.methods.small import SMALL, images
from tests.nets.helpers import golden_denoiser, plain_autograd
from tests.reverse.toys import SHAPE, ToyNet


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedures_serve_a_second_backward_pass(name):
    method, _ = CASES[name]()
    u, v, noise = inputs(method)
    leaf = u.clone().requires_grad_(True)
    for memory in ("store", "recompute"):
        purifier = fp.Purifier(networks()[0], method, precision="fp64", memory=memory)
        out = (purifier(leaf, noise=fp.RecordedNoise(**noise)) * v).sum()
        first = torch.autograd.grad(out, leaf, retain_graph=True)[0]
        assert torch.equal(first, torch.autograd.grad(out, leaf)[0])


@pytest.mark.parametrize("name", PROCEDURES)
def test_procedures_have_the_same_output_with_and_without_gradient(name):
    method, _ = CASES[name]()
    u, v, noise = inputs(method)
    with_gradient = ours(method, u, v, noise, "store")[0]
    purifier = fp.Purifier(networks()[0], method, precision="fp64")
    # Not to the bit: torch differentiates SiLU by another formula where the derivative itself has a graph.
    assert error(purifier(u, noise=fp.RecordedNoise(**noise)), with_gradient) < 1e-14
    states = purifier.trajectory(u, noise=fp.RecordedNoise(**noise))
    assert states.shape == (len(method.table()) + 1, *u.shape)
    assert torch.allclose(states[0], u, atol=1e-15)
    assert torch.equal(states[-1], purifier(u, noise=fp.RecordedNoise(**noise)))


def test_adp_images_rest_at_different_steps():
    """Otherwise the freezing would be untested: the case above must contain images that stop early and late."""
    method, _ = CASES["adp"]()
    u, _, noise = inputs(method)
    _, counts = plain.adp(networks()[1], u, noise, 0.25, 0.2, 4, ADP)
    assert len(set(counts)) > 1, counts


@pytest.mark.parametrize(
    ("rest", "stop", "moves"), [("before", 0.2, 0), ("before", 0.1, 0), ("before", 0.0, 3), ("after", 0.2, 1)]
)
def test_adp_stops_before_the_step_that_is_too_small(rest, stop, moves):
    """The published loop looks at the step before it takes it; steps are at most 0.1, and ``stop`` is too small too."""
    u, _, noise = inputs(fp.methods.adp(n_iter=3))
    purifier = fp.Purifier(networks()[0], fp.methods.adp(n_iter=3, stop=stop, rest=rest), precision="fp64")
    states = purifier.trajectory(u, noise=fp.RecordedNoise(**noise))[1:]
    assert [torch.equal(*pair) for pair in pairwise(states)].count(False) == moves


def test_adp_ends_when_all_images_rest():
    u, v, noise = inputs(fp.methods.adp())
    results = []
    for n_iter in (1, 10):
        purifier = fp.Purifier(networks()[0], fp.methods.adp(n_iter=n_iter, stop=1.0), precision="fp64")
        seen = []
        purifier.denoiser.network.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        few = {**noise, "steps": None, "guidance": None}
        purifier(u, noise=fp.RecordedNoise(**few))
        assert len(seen) == 2
        leaf = u.clone().requires_grad_(True)
        out = purifier(leaf, noise=fp.RecordedNoise(**few))
        results.append((out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.allclose(results[0][1], results[1][1], atol=1e-13)


def test_the_second_derivative_of_the_denoiser_is_in_the_gradient():
    """Treating Adam's gradient as a constant, as the published attack does, is another direction altogether."""
    method, _ = CASES["likelihood_max"]()
    u, v, noise = inputs(method)
    _, exact = ours(method, u, v, noise, "store")
    assert error(v, exact) > 0.1
    assert np.isfinite(exact.numpy()).all()


def test_recomputation_runs_every_step_twice_and_storing_once():
    calls = []
    for memory in ("store", "recompute"):
        method, _ = CASES["likelihood_max"]()
        u, v, noise = inputs(method)
        purifier = fp.Purifier(networks()[0], method, precision="fp64", memory=memory)
        seen = []
        purifier.denoiser.network.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        leaf = u.clone().requires_grad_(True)
        torch.autograd.grad((purifier(leaf, noise=fp.RecordedNoise(**noise)) * v).sum(), leaf)
        calls.append(len(seen))
    assert calls == [3, 6]


REAL = {
    "likelihood_max": lambda: fp.methods.likelihood_max(n_iter=2, clip_output=False),
    "adp": lambda: fp.methods.adp(n_iter=2, clip_output=False),
    "vp_sde": lambda: fp.methods.vp_sde(strength=0.003),
}


def real_case():
    denoiser = golden_denoiser("ddpmpp_ddpmblock_tiny")
    generator = torch.Generator().manual_seed(0)
    u, v, direction = (
        torch.rand(1, *denoiser.image_shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    return denoiser, 0.3 + 0.4 * u, v, direction


def gradient(purifier, u, v):
    leaf = u.clone().requires_grad_(True)
    return torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0]


@pytest.mark.parametrize("name", REAL)
def test_finite_differences_on_the_real_architecture(name):
    """Second derivatives through DDPM++ with frozen weights, attention included."""
    denoiser, u, v, direction = real_case()
    purifier = fp.Purifier(denoiser, REAL[name](), precision="fp64", memory="recompute")
    slope = float((gradient(purifier, u, v) * direction).sum())
    step = 1e-6
    ahead, behind = (float((purifier(u + s * direction) * v).sum()) for s in (step, -step))
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-5)


HALF = [
    ("adp", "fp16"),
    *((name, dtype) for name in ("likelihood_max", "vp_sde") for dtype in ("fp16", "bf16")),
]


@pytest.mark.parametrize(("name", "precision"), HALF)
def test_half_precision_keeps_small_gradients(name, precision):
    """A confident classifier's gradients are below what float16 holds; they must survive, and lose nothing by it.

    How near either gradient is to the exact one depends on the processor's instructions. That a power of two
    before the gradient is the same power of two after it, bit for bit, does not.
    """
    denoiser, u, v, _ = real_case()
    half = fp.Purifier(denoiser, REAL[name](), precision=precision)
    whole, small = (gradient(half, u.float(), size * v.float()) for size in (1.0, 2.0**-33))
    assert whole.abs().max() > 0
    assert torch.equal(small * 2.0**33, whole)


def half_case(name, plain_eps):
    """The method, its formula for networks ``plain_eps``, and images, cotangents and noise for it."""
    method = ACCURATE[name][0]()
    generator = torch.Generator().manual_seed(0)
    n_forward = method.table().n_forward_rows
    n = len(method.table()) - n_forward

    def draw(*shape):
        return torch.randn(*shape, 5, 3, 16, 16, generator=generator, dtype=torch.float64)

    u = 0.3 + 0.4 * torch.rand(5, 3, 16, 16, generator=generator, dtype=torch.float64)
    noise = {"forward": draw() if n_forward else None, "steps": draw(n), "guidance": draw(n)}
    return method, lambda u, noise: ACCURATE[name][1](plain_eps, u, noise), u, draw(), noise


ACCURATE = {
    # Probed at 0.1, since at the default 1e-3 the curvature is mostly the rounding error of half precision.
    "adp": (
        lambda: fp.methods.adp(n_iter=2, probe=0.1, clip_output=False),
        lambda eps, u, noise: plain.adp(eps, u, noise, 0.25, 0.25, 2, ADP | {"probe": 0.1, "stop": 1e-3})[0],
    ),
    "likelihood_max": (
        REAL["likelihood_max"],
        lambda eps, u, noise: plain.likelihood_max(eps, u, noise, 0.1, 0.4, 0.6),
    ),
    "vp_sde": (
        REAL["vp_sde"],
        lambda eps, u, noise: plain.vp_sde(eps, u, noise, [0.004, 0.003, 0.002, 0.001], 1e-3, 0.16),
    ),
}


@pytest.mark.parametrize(("name", "precision"), HALF)
def test_half_precision_is_as_accurate_as_plain_torch(name, precision):
    """Against float64, the median error is at most twice that of torch's own operations in the same precision.

    On the same processor, so that its instructions make no difference. Measured: 0.9 to 1.1 times torch's. Of
    likelihood maximisation the images are compared and no gradients: Adam divides by numbers that are mostly
    rounding error there, and the gradients of two correct programs have nothing in common.
    """
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    network = golden_denoiser("ddpmpp_ddpmblock_tiny").to(dtype).network
    method, formula, u, v, noise = half_case(
        name, lambda x, label: network(x.to(dtype), x.new_full((len(x),), float(label))).to(x.dtype)
    )

    def result(run, dtype):
        leaf = u.to(dtype).requires_grad_(True)
        image = run(
            leaf, {key: None if values is None else values.to(dtype) for key, values in noise.items()}
        )
        if name == "likelihood_max":
            return image.detach()
        return torch.autograd.grad((image * v).sum(), leaf)[0]

    def ours(precision):
        purifier = fp.Purifier(golden_denoiser("ddpmpp_ddpmblock_tiny"), method, precision=precision)
        return lambda u, noise: purifier(u, noise=fp.RecordedNoise(**noise))

    exact = result(ours("fp64"), torch.float64)
    with plain_autograd():
        torchs = result(formula, torch.float32)
    error_of_ours, error_of_torch = (
        float((one.double() - exact).abs().median())
        for one in (result(ours(precision), torch.float32), torchs)
    )
    assert error_of_ours <= 2 * error_of_torch
    assert error_of_torch < 0.1 * float(exact.abs().median()), "otherwise the comparison says nothing"


def test_adp_refuses_bfloat16():
    with pytest.raises(ValueError, match="`precision` must be 'fp32', 'tf32' or 'fp16' for adp, got 'bf16'"):
        fp.Purifier(networks()[0], REAL["adp"](), precision="fp32", gradient_precision="bf16")


@pytest.mark.parametrize("name", ["vp_sde", "likelihood_max"])
def test_procedures_name_step_and_sample_of_what_is_not_finite(name):
    class Broken(ToyNet):
        def forward(self, x, label):
            bad = (x.flatten(1).amax(1) > 40)[:, None, None, None]
            return torch.where(bad, torch.inf, super().forward(x, label))

    method = SMALL[name]()
    broken = fp.Purifier(Denoiser.from_module(Broken().eval(), image_shape=SHAPE), method)
    n = len(method.table())
    noise = {
        "forward": torch.zeros(2, *SHAPE) if method.table().n_forward_rows else None,
        "steps": torch.zeros(n - method.table().n_forward_rows, 2, *SHAPE) + 0.1,
        "guidance": torch.zeros(n - method.table().n_forward_rows, 2, *SHAPE),
    }
    noise["steps"][1, 1, 0, 0, 0] = 1e5
    with pytest.raises(NonFiniteError, match=r"step \d+ for sample id 42"):
        broken(images(2).float(), sample_ids=[41, 42], noise=fp.RecordedNoise(**noise))


@pytest.mark.parametrize("name", ["vp_sde", "likelihood_max", "adp"])
def test_procedures_refuse_a_denoiser_without_gradient(name):
    class Detached(ToyNet):
        def forward(self, x, label):
            return super().forward(x.detach(), label).detach()

    cut = fp.Purifier(Denoiser.from_module(Detached().eval(), image_shape=SHAPE), SMALL[name]())
    with pytest.raises(ValueError, match="`denoiser` must be differentiable"):
        cut(images(1).float().requires_grad_())
    if name != "likelihood_max":  # which needs the gradient to purify at all
        assert cut(images(1).float()).shape == (1, *SHAPE)
