"""Guidance by the predicted image: closed forms on a Gaussian, exactness, what is left out, calls, fall-backs."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import NonFiniteError
from fastpure.guidance import CleanDistance, GuidanceStep
from fastpure.guidance.prediction import predicted_image
from fastpure.nets import Denoiser
from fastpure.nets.oracle import GaussianMixture
from fastpure.schedule import VP
from tests.methods.cases import error, inputs, networks, ours, reference
from tests.methods.written_newer import dps, mimic
from tests.nets.helpers import golden_denoiser
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser

INDICES = [round(100 * (4 - k) / 4) - 1 for k in range(4)]


def dps_case(norm="l2", scale=0.3, clip=False, **settings):
    method = fp.methods.dps(
        n_steps=4, scale=scale, norm=norm, eta=0.5, clip_x0=clip, clip_output=False, **settings
    )
    detach = {"no_guide_path": "guide", "detached": "detached"}.get(settings.get("guidance_grad", ""), "")
    return method, lambda eps, u, noise: dps(eps, u, noise, INDICES, scale, norm, 0.5, clip, detach)


def mimic_case(grad="smoothed"):
    method = fp.methods.mimic(
        n_steps=5, scale=3.0, window=(10, 70), width=0.3, guidance_grad=grad, clip_output=False
    )
    # k = 80, 60, 40, 20, 0.
    inside = [False, True, True, True, False]
    indices = [999, 799, 599, 399, 199]
    return method, lambda eps, u, noise: mimic(eps, u, noise, indices, inside, 3.0, 0.3)


CASES = {
    "l2": dps_case,
    "squared": lambda: dps_case("squared", 0.02),
    "l1": lambda: dps_case("l1", 0.02),
    "clipped": lambda: dps_case(clip=True),
    "no_guide_path": lambda: dps_case(guidance_grad="no_guide_path"),
    "detached": lambda: dps_case(guidance_grad="detached"),
    "mimic": mimic_case,
}


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("name", CASES)
def test_method_is_its_formula_written_out(name, memory):
    method, run = CASES[name]()
    u, v, noise = inputs(method)
    out, grad = reference(run, u, v, noise)
    x, g = ours(method, u, v, noise, memory)
    assert error(x, out) < 1e-11
    assert error(g, grad) < 1e-9


@pytest.mark.parametrize(("grad", "low"), [("no_guide_path", 0.05), ("detached", 0.05)])
def test_what_is_left_out_shows(grad, low):
    method, _ = dps_case()
    u, v, noise = inputs(method)
    x, exact = ours(method, u, v, noise, "store")
    y, weaker = ours(method.rebuilt(guidance_grad=grad), u, v, noise, "store")
    assert error(y, x) < 1e-14
    assert error(weaker, exact) > low


def test_finite_differences_on_the_real_architecture():
    """The denoiser's second derivative through DDPM++ with frozen weights, attention included."""
    denoiser = golden_denoiser("ddpmpp_ddpmblock_tiny")
    generator = torch.Generator().manual_seed(0)
    u, v, direction = (
        torch.rand(1, *denoiser.image_shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    u = 0.3 + 0.4 * u
    purifier = fp.Purifier(
        denoiser, fp.methods.dps(n_steps=2, clip_output=False), precision="fp64", memory="recompute"
    )
    leaf = u.clone().requires_grad_(True)
    slope = float((torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0] * direction).sum())
    step = 1e-6
    ahead, behind = (float((purifier(u + s * direction) * v).sum()) for s in (step, -step))
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-5)


def oracle_step(t=0.3, std=0.5):
    """A Gaussian N(mean, std^2): x0hat = mean + K (x - alpha mean), J = K."""
    mean = torch.linspace(-0.5, 0.5, 128, dtype=torch.float64)
    net, alpha, sigma = GaussianMixture(mean[None], std), VP().alpha(t), VP().sigma(t)
    gain = alpha * std**2 / ((alpha * std) ** 2 + sigma**2)

    def noise_pred(x):
        return net(x, x.new_full((len(x),), 999 * t))

    return GuidanceStep(0, alpha, sigma, lambda: torch.zeros(1), noise_pred), mean.view(SHAPE), alpha, gain


@pytest.mark.parametrize("norm", ["l1", "l2", "squared"])
@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_gradient_on_a_gaussian_is_known(norm, reduction):
    step, mean, alpha, gain = oracle_step()
    generator = torch.Generator().manual_seed(0)
    x, wanted = (torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64) for _ in range(2))
    r = mean + gain * (x - alpha * mean) - wanted
    n = 128 if reduction == "mean" else 1
    length = r.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
    expected = {"l1": r.sign() / n, "l2": r / length / math.sqrt(n), "squared": 2 * r / n}[norm]
    guidance = CleanDistance(norm, reduction)
    e, g = guidance.evaluate(x, (wanted,), step)
    assert torch.allclose(g, -gain * expected, atol=1e-13)
    assert torch.allclose(e, step.noise_pred(x), atol=1e-15)
    # H of the squared distance is 2 K^2 by the state and -2 K by the input; both of minus the distance.
    if norm == "squared":
        v = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
        v_x, (v_wanted,) = guidance.linearize(x, (wanted,), step)[1](v)
        assert torch.allclose(v_x, -2 * gain**2 / n * v, atol=1e-13)
        assert torch.allclose(v_wanted, 2 * gain / n * v, atol=1e-13)


def test_where_nothing_is_left_the_l2_norm_has_no_direction():
    step, mean, alpha, _ = oracle_step()
    x = (alpha * mean).expand(2, *SHAPE).contiguous()
    reached = predicted_image(x, step.noise_pred(x), step)
    g, vjp = CleanDistance("l2").linearize(x, (reached,), step)
    assert bool((g == 0).all())
    assert bool(vjp(torch.ones_like(x))[0].isfinite().all())


def test_mimic_is_constant_almost_everywhere():
    """What its published robustness rests on: a gradient that is zero whatever is attacked."""
    method, _ = mimic_case("exact")
    u, v, noise = inputs(method)
    x, grad = ours(method, u, v, noise, "store")
    assert bool((grad == 0).all())
    purifier = fp.Purifier(networks()[0], method, precision="fp64")
    moves = torch.randn(u.shape, generator=torch.Generator().manual_seed(1), dtype=u.dtype)
    here, near, far = (
        purifier((u + s * moves).clamp(0, 1), noise=fp.RecordedNoise(**noise)) for s in (0.0, 1e-7, 0.2)
    )
    assert torch.equal(here, near)
    assert not torch.allclose(here, far, atol=1e-3)
    smoothed = ours(mimic_case("smoothed")[0], u, v, noise, "store")
    assert error(smoothed[0], x) < 1e-13
    assert float(smoothed[1].abs().max()) > 0


def test_mimic_starts_from_noise_alone():
    """Outside of its window nothing of the input is left in the result."""
    method = fp.methods.mimic(n_steps=4, window=(200, 300), clip_output=False)
    assert not method.table().uses_guidance
    u = torch.rand(2, *SHAPE, dtype=torch.float64)
    purifier = fp.Purifier(toy_denoiser(), method, precision="fp64")
    assert torch.equal(purifier(u), purifier(1 - u))


def test_windows_mean_the_same_in_fewer_steps():
    rows = fp.methods.mimic().table().rows[1:]
    guided = [99 - k for k, row in enumerate(rows) if row.c]
    assert (max(guided), min(guided)) == (89, 21)
    assert rows[50].c == pytest.approx(3000 * rows[50].alpha)
    few = fp.methods.mimic().coarser(steps=20).table().rows[1:]
    assert [5 * (19 - k) for k, row in enumerate(few) if row.c] == list(range(85, 20, -5))


class Counting(ToyNet):
    calls = 0

    def forward(self, x, label):
        Counting.calls += 1
        return super().forward(x, label)


@pytest.mark.parametrize(("memory", "calls"), [("store", 4), ("recompute", 8)])
def test_the_answer_is_shared_and_not_asked_twice(memory, calls):
    torch.manual_seed(0)
    denoiser = Denoiser.from_module(Counting().eval(), image_shape=SHAPE)
    purifier = fp.Purifier(denoiser, dps_case()[0], memory=memory)
    u = torch.rand(2, *SHAPE)
    Counting.calls = 0
    purifier(u)
    assert Counting.calls == 4
    Counting.calls = 0
    leaf = u.requires_grad_(True)
    purifier(leaf).sum().backward()
    assert Counting.calls == calls


def test_the_automatic_memory_plan_sees_the_larger_graph():
    denoiser, u = toy_denoiser(torch.float32), torch.rand(2, *SHAPE)
    costs = []
    for method in (fp.methods.ddim(n_steps=4), dps_case()[0]):
        purifier = fp.Purifier(denoiser, method)
        purifier(u.clone().requires_grad_(True)).sum().backward()
        costs.append(next(iter(purifier._costs.values())))
    assert costs[1] > 1.5 * costs[0]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_half_precision_keeps_small_gradients(precision):
    denoiser = golden_denoiser("ddpmpp_ddpmblock_tiny")
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(1, *denoiser.image_shape, generator=generator) for _ in range(2))
    purifier = fp.Purifier(denoiser, fp.methods.dps(n_steps=2, clip_output=False), precision=precision)

    def gradient(size):
        leaf = (0.3 + 0.4 * u).requires_grad_(True)
        return torch.autograd.grad((purifier(leaf) * v * size).sum(), leaf)[0]

    whole, small = gradient(1.0), gradient(2.0**-33)
    assert torch.equal(small * 2.0**33, whole)
    exact = fp.Purifier(denoiser, purifier.method, precision="fp32")
    leaf = (0.3 + 0.4 * u).requires_grad_(True)
    wanted = torch.autograd.grad((exact(leaf) * v).sum(), leaf)[0]
    assert torch.cosine_similarity(whole.flatten(), wanted.flatten(), dim=0) > 0.9


def test_weaker_relatives():
    method, _ = dps_case()
    u, v, noise = inputs(method)
    plain = fp.methods.ddim(t=0.1, n_steps=4, eta=0.5, clip_x0=False, clip_output=False)
    assert method.weakened(0.0).guidance is None
    for one, other in zip(
        ours(method.weakened(0.0), u, v, noise, "store"), ours(plain, u, v, noise, "store"), strict=True
    ):
        assert torch.equal(one, other)
    half, _ = dps_case(scale=0.15)
    for one, other in zip(
        ours(method.weakened(0.5), u, v, noise, "store"), ours(half, u, v, noise, "store"), strict=True
    ):
        assert torch.allclose(one, other, atol=1e-13)
    assert method.detached() == method.rebuilt(guidance_grad="detached")


@pytest.mark.parametrize("gradient", ["exact", "detached", "unguided", "surrogate", "bpda"])
def test_attacks_differentiate_it_in_every_mode(gradient):
    defense = fp.Defense(
        fp.Purifier(toy_denoiser(torch.float32), fp.methods.dps(n_steps=5)), toy_classifier(torch.float32)
    )
    u = torch.rand(2, *SHAPE)
    y = defense.classifier(u).argmax(1)
    result = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=2, gradient=gradient)(defense, u, y)
    assert float((result.x_adv - u).abs().max()) > 0


class Straight(nn.Module):
    """Its answer has a derivative, and that one none."""

    def forward(self, x, label):
        return _Once.apply(x)


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 0.5 * x

    @staticmethod
    def backward(ctx, v):
        return 0.5 * v.detach()


def test_a_denoiser_that_is_differentiable_once_purifies_and_serves_the_detached_attack():
    denoiser = Denoiser.from_module(Straight().eval(), image_shape=SHAPE)
    u = torch.rand(1, *SHAPE)
    assert bool(fp.Purifier(denoiser, dps_case()[0])(u).isfinite().all())
    detached = fp.Purifier(denoiser, dps_case(guidance_grad="detached")[0])
    detached(u.requires_grad_(True)).sum().backward()
    assert bool(u.grad.isfinite().all())


class Broken(nn.Module):
    """Finite, with a derivative that is not."""

    def forward(self, x, label):
        return 0.1 * x + torch.sqrt((x - x.detach()).abs())


def test_a_derivative_that_is_not_finite_is_the_guidances():
    purifier = fp.Purifier(
        Denoiser.from_module(Broken().eval(), image_shape=SHAPE), fp.methods.dps(n_steps=4)
    )
    with pytest.raises(NonFiniteError, match=r"step 1 .* sample id 7: the guidance CleanDistance answered"):
        purifier(torch.rand(1, *SHAPE), sample_ids=[7])


def test_identity_holds_the_new_settings():
    from fastpure.purify.description import plain

    described = plain(fp.methods.mimic(width=0.2))
    assert described["settings"]["width"] == 0.2
    assert described["guidance"]["settings"]["pooled"] == 4
    assert plain(replace(fp.methods.dps(), note=""))["steps"] == fp.methods.dps().steps.digest


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"window": (5, 2)}, "`window` must be two steps"),
        ({"reduction": "max"}, "`reduction` must be one of"),
        ({"width": 0.0}, "`width` must be"),
        ({"guidance_grad": "blind"}, "`guidance_grad` must be one of"),
        ({"pooled": 3}, r"`pooled` must be a divisor of the sides \(8, 8\), got 3"),
    ],
)
def test_wrong_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        fp.Purifier(toy_denoiser(), fp.methods.mimic(**settings))
