"""The adjoint against plain autograd through the whole unrolled loop, and against finite differences."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser, unrolled

METHODS = {
    "diffpure": lambda f: fp.methods.diffpure(t=0.2, dt=0.04),
    "diffpure_ode": lambda f: fp.methods.diffpure_ode(t=0.2, dt=0.04),
    "coup_step": lambda f: fp.methods.coup(f, t=0.2, dt=0.04, scale=3.0),
    "coup_input": lambda f: fp.methods.coup(f, t=0.2, dt=0.04, scale=3.0, label="input"),
    "coup_detached": lambda f: fp.methods.coup(f, t=0.2, dt=0.04, scale=3.0, guidance_grad="detached"),
    "coup_unguided": lambda f: fp.methods.coup_unguided(t=0.2, dt=0.04),
    "ddpm_clip": lambda f: fp.methods.ddpm(t=0.2, n_steps=5, variance="large"),
    "ddim_clip": lambda f: fp.methods.ddim(t=0.2, n_steps=5),
    "ddim_eta": lambda f: fp.methods.ddim(t=0.2, n_steps=5, eta=0.5, clip_x0=False),
    "dpm_ode": lambda f: fp.methods.dpm_solver(t=0.2, n_steps=5),
    "dpm_sde_clip": lambda f: fp.methods.dpm_solver(t=0.2, n_steps=5, stochastic=True, clip_x0=True),
}
PLANS = ["auto", "store", "recompute", 40_000]


def case(name: str, dtype: torch.dtype, batch: int = 3):
    method = METHODS[name](toy_classifier(dtype))
    generator = torch.Generator().manual_seed(3)
    u = torch.rand(batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    n_steps = len(method.table()) - method.table().n_forward_rows
    n_forward = method.table().n_forward_rows
    forward = (
        torch.randn(n_forward, batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
        if n_forward
        else None
    )
    steps = torch.randn(n_steps, batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    v = torch.randn(batch, *SHAPE, generator=generator, dtype=torch.float64).to(dtype)
    return method, u, forward, steps, v


def reference(name: str, dtype: torch.dtype):
    method, u, forward, steps, v = case(name, dtype)
    leaf = u.clone().requires_grad_(True)
    out = unrolled(method, toy_denoiser(dtype).network, toy_classifier(dtype), leaf, forward, steps)
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


def ours(name: str, dtype: torch.dtype, memory):
    method, u, forward, steps, v = case(name, dtype)
    precision = "fp64" if dtype == torch.float64 else "fp32"
    purifier = fp.Purifier(toy_denoiser(dtype), method, precision=precision, memory=memory)
    leaf = u.clone().requires_grad_(True)
    out = purifier(leaf, noise=fp.RecordedNoise(forward=forward, steps=steps))
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


def error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("memory", PLANS)
@pytest.mark.parametrize("name", METHODS)
def test_every_plan_is_plain_autograd_in_float64(name, memory):
    out, grad = reference(name, torch.float64)
    x, g = ours(name, torch.float64, memory)
    assert error(x, out) < 1e-12
    assert error(g, grad) < 1e-10


@pytest.mark.parametrize("memory", PLANS)
@pytest.mark.parametrize("name", ["diffpure", "coup_step", "ddpm_clip", "dpm_ode"])
def test_every_plan_is_plain_autograd_in_float32(name, memory):
    out, grad = reference(name, torch.float64)
    x, g = ours(name, torch.float32, memory)
    assert error(x.double(), out) < 1e-5
    assert error(g.double(), grad) < 1e-4


@pytest.mark.parametrize("name", ["diffpure", "coup_step"])
def test_plans_agree_bitwise(name):
    """Recomputation repeats the same operations on the same states, so nothing may differ at all."""
    grads = [ours(name, torch.float32, memory)[1] for memory in PLANS]
    assert all(torch.equal(grads[0], g) for g in grads[1:])


@pytest.mark.parametrize("name", ["diffpure", "coup_step", "coup_input", "dpm_ode", "ddim_eta"])
def test_finite_differences(name):
    method, u, forward, steps, v = case(name, torch.float64)
    # Stay inside [0, 1] and away from the output clamp's kinks.
    u = 0.3 + 0.4 * u
    purifier = fp.Purifier(toy_denoiser(), method, precision="fp64")
    noise = fp.RecordedNoise(forward=forward, steps=steps)
    leaf = u.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((purifier(leaf, noise=noise) * v).sum(), leaf)
    generator = torch.Generator().manual_seed(9)
    for _ in range(5):
        direction = torch.randn(u.shape, generator=generator, dtype=u.dtype)
        direction /= direction.norm()
        step = 1e-5
        ahead, behind = (float((purifier(u + s * direction, noise=noise) * v).sum()) for s in (step, -step))
        slope = (ahead - behind) / (2 * step)
        assert slope == pytest.approx(float((grad * direction).sum()), rel=1e-6, abs=1e-8)


def test_losing_the_hessian_would_show():
    _, exact = ours("coup_step", torch.float64, "store")
    _, detached = ours("coup_detached", torch.float64, "store")
    assert error(detached, exact) > 1e-3


def test_second_backward_through_a_kept_graph():
    method, u, forward, steps, v = case("coup_step", torch.float64)
    purifier = fp.Purifier(toy_denoiser(), method, precision="fp64", memory="store")
    leaf = u.clone().requires_grad_(True)
    out = purifier(leaf, noise=fp.RecordedNoise(forward=forward, steps=steps))
    first = torch.autograd.grad((out * v).sum(), leaf, retain_graph=True)[0]
    second = torch.autograd.grad((out * v).sum(), leaf)[0]
    assert torch.equal(first, second)


def test_weights_get_no_gradient():
    u = case("coup_step", torch.float64)[1]
    denoiser, classifier = toy_denoiser(), toy_classifier()
    method = fp.methods.coup(classifier, t=0.2, dt=0.04)
    defense = fp.Defense(fp.Purifier(denoiser, method, precision="fp64"), classifier)
    defense(u.requires_grad_(True), draw=0).sum().backward()
    assert u.grad is not None
    assert all(p.grad is None for p in [*denoiser.parameters(), *classifier.parameters()])
    assert all(p.requires_grad for p in classifier.parameters()), "the caller's module is left as it was"
