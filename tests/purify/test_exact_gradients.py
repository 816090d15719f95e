"""Outputs and gradients of every method against its formulas written out, in float64."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.classifiers import FeatureHead, ResNet, ResNetConfig
from fastpure.nets import Denoiser
from tests.nets.helpers import golden_denoiser
from tests.purify import written_out as plain
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser

ADP = {"rate": 0.05, "bounds": (1e-5, 0.1), "stop": 0.0105}


def auxiliary() -> nn.Module:
    torch.manual_seed(4)
    layers = (
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(320, 7),
        nn.Tanh(),
        nn.Linear(7, 4),
    )
    return FeatureHead(nn.Sequential(*layers).double().eval(), head="5")


def frozen_resnet() -> nn.Module:
    torch.manual_seed(6)
    config = ResNetConfig(image_shape=SHAPE, classes=4, widths=(6, 9), mean=(0.5, 0.4), std=(0.3, 0.2))
    return ResNet(config).double().eval().requires_grad_(False)


def agdm_case(sampler, label="input", features="clean", network=None):
    network = network or auxiliary()
    settings = {"scale": 5e4, "eta": 3.0, "sampler": sampler, "label": label, "features": features}
    method = fp.methods.agdm(network, t=0.006, clip_output=False, **settings)
    return method, lambda eps, u, noise: plain.agdm(eps, network, u, noise, 6, *settings.values())


def edm_case(**changes):
    settings = {
        "sigma_max": 0.5,
        "sigma_min": 0.002,
        "n_steps": 4,
        "churn": 2.0,
        "s_noise": 1.007,
        "heun": True,
    }
    settings |= changes
    method = fp.methods.edm(**settings, clip_output=False)
    return method, lambda eps, u, noise: plain.edm(eps, u, noise, *settings.values())


def likelihood_case(classifier=None):
    method = fp.methods.likelihood_max(3, 0.1, (0.4, 0.6), classifier, 0.02, clip_output=False)
    return method, lambda eps, u, noise: plain.likelihood_max(eps, u, noise, 0.1, 0.4, 0.6, classifier, 0.02)


CASES = {
    "agdm_ddpm": lambda: agdm_case("ddpm"),
    "agdm_sde": lambda: agdm_case("sde"),
    "agdm_step_label": lambda: agdm_case("ddpm", label="step"),
    "agdm_noised_features": lambda: agdm_case("sde", features="noised"),
    "agdm_resnet": lambda: agdm_case("ddpm", network=frozen_resnet()),
    "adbm": lambda: (
        fp.methods.adbm(clip_output=False),
        lambda eps, u, noise: plain.adbm(eps, u, noise, 99, 5),
    ),
    "adbm_coup": lambda: (
        fp.methods.adbm(clip_output=False, classifier=toy_classifier(), scale=5.0),
        lambda eps, u, noise: plain.adbm(eps, u, noise, 99, 5, toy_classifier(), 5.0),
    ),
    "addt_ddpm": lambda: (
        fp.methods.addt("ddpm", 50, clip_output=False),
        lambda eps, u, noise: plain.addt(eps, u, noise, [100, 80, 60, 40, 20, 0], "ddpm"),
    ),
    "addt_ddim": lambda: (
        fp.methods.addt("ddim", 50, clip_output=False),
        lambda eps, u, noise: plain.addt(eps, u, noise, [100, 80, 60, 40, 20, 0], "ddim"),
    ),
    "addt_vp": lambda: (
        fp.methods.addt("vp", strength=0.005),
        lambda eps, u, noise: plain.vp_sde(
            eps, u, noise, [0.006, 0.005, 0.004, 0.003, 0.002, 0.001], 1e-3, 0.16
        ),
    ),
    "edm": edm_case,
    "edm_euler_ode": lambda: edm_case(churn=0.0, heun=False),
    "edm_full_churn": lambda: edm_case(churn=40.0),
    "gradual": lambda: (
        fp.methods.gradual(((5, 5), (20, 2))),
        lambda eps, u, noise: plain.gradual(eps, u, noise, ((5, 5), (20, 2))),
    ),
    "langevin": lambda: (
        fp.methods.langevin(n_steps=5),
        lambda eps, u, noise: plain.langevin(eps, u, noise, 5),
    ),
    "likelihood_max": likelihood_case,
    "likelihood_max_coup": lambda: likelihood_case(toy_classifier()),
    "adp": lambda: (
        fp.methods.adp(level=0.2, n_iter=4, stop=ADP["stop"], clip_output=False),
        lambda eps, u, noise: plain.adp(eps, u, noise, 0.25, 0.2, 4, ADP)[0],
    ),
}
PROCEDURES = ["addt_vp", "likelihood_max", "likelihood_max_coup", "adp"]


def networks():
    denoiser = toy_denoiser()
    return denoiser, lambda x, label: denoiser.network(x, x.new_full((len(x),), float(label)))


def inputs(method, batch=3):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, *SHAPE, generator=generator, dtype=torch.float64)

    u = torch.rand(batch, *SHAPE, generator=generator, dtype=torch.float64)
    n_forward = method.table().n_forward_rows
    n = len(method.table()) - n_forward
    forward = draw(batch) if n_forward == 1 else draw(n_forward, batch)
    return (
        u,
        draw(batch),
        {"forward": forward if n_forward else None, "steps": draw(n, batch), "guidance": draw(n, batch)},
    )


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def ours(method, u, v, noise, memory, precision="fp64"):
    purifier = fp.Purifier(networks()[0], method, precision=precision, memory=memory)
    leaf = u.clone().requires_grad_(True)
    out = purifier(leaf, noise=fp.RecordedNoise(**noise))
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


def reference(run, u, v, noise):
    leaf = u.clone().requires_grad_(True)
    out = run(networks()[1], leaf, noise)
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


@pytest.mark.parametrize("name", CASES)
def test_method_is_its_formula_written_out(name):
    method, run = CASES[name]()
    u, v, noise = inputs(method)
    out, grad = reference(run, u, v, noise)
    for memory in ("store", "recompute", "auto"):
        x, g = ours(method, u, v, noise, memory)
        assert error(x, out) < 1e-11
        assert error(g, grad) < 1e-9


def test_edm_with_a_network_that_is_told_sigma():
    """Karras et al.'s own kind of network: it must see x and sigma, though the table walks in other coordinates."""
    method, _ = edm_case()
    net = networks()[0].network
    denoiser = Denoiser.from_module(net, "x0", "sigma", SHAPE)
    u, v, noise = inputs(method)
    leaf = u.clone().requires_grad_(True)
    expected = plain.edm(
        None,
        leaf,
        noise,
        0.5,
        0.002,
        4,
        2.0,
        1.007,
        True,
        lambda x, sigma: net(x, x.new_full((len(x),), sigma)),
    )
    out = fp.Purifier(denoiser, method, precision="fp64")(leaf, noise=fp.RecordedNoise(**noise))
    assert error(out.detach(), expected.detach()) < 1e-11
    grads = [torch.autograd.grad((end * v).sum(), leaf)[0] for end in (out, expected)]
    assert error(*grads) < 1e-9


@pytest.mark.parametrize("name", ["agdm_ddpm", "adbm", "edm", *PROCEDURES])
def test_float32_is_close(name):
    method, run = CASES[name]()
    u, v, noise = inputs(method)
    out, grad = reference(run, u, v, noise)
    x, g = ours(method, u.float(), v.float(), noise, "recompute", "fp32")
    assert error(x.double(), out) < 2e-5
    assert error(g.double(), grad) < 2e-4


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


@pytest.mark.parametrize(
    ("name", "grad", "low"),
    [
        ("agdm_ddpm", "no_guide_path", 0.1),
        ("agdm_ddpm", "detached", 0.02),
        ("agdm_sde", "no_guide_path", 0.1),
        ("agdm_sde", "detached", 0.02),
        ("agdm_noised_features", "no_guide_path", 0.1),
        # The attraction's two terms nearly cancel where state and input move together.
        ("langevin", "no_guide_path", 0.2),
        ("langevin", "detached", 2e-4),
    ],
)
def test_what_is_left_out_shows(name, grad, low):
    method, _ = CASES[name]()
    u, v, noise = inputs(method)
    _, exact = ours(method, u, v, noise, "store")
    weaker = replace(method, guidance=replace(method.guidance, grad=grad))
    assert error(ours(weaker, u, v, noise, "store")[1], exact) > low


def test_adp_images_rest_at_different_steps():
    """Otherwise the freezing would be untested: the case above must contain images that stop early and late."""
    method, _ = CASES["adp"]()
    u, _, noise = inputs(method)
    _, counts = plain.adp(networks()[1], u, noise, 0.25, 0.2, 4, ADP)
    assert len(set(counts)) > 1, counts


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


@pytest.mark.parametrize(
    ("name", "precision", "least"),
    [
        ("likelihood_max", "fp16", 0.99),
        ("adp", "fp16", 0.99),
        ("vp_sde", "fp16", 0.9999),
        ("likelihood_max", "bf16", 0.85),  # Adam divides by gradients that are mostly rounding error
        ("vp_sde", "bf16", 0.999),
    ],
)
def test_half_precision_keeps_small_gradients(name, precision, least):
    """A confident classifier's gradients are below what float16 holds; they must survive."""
    denoiser, u, v, _ = real_case()
    exact = gradient(fp.Purifier(denoiser, REAL[name](), precision="fp64"), u, v)
    half = fp.Purifier(denoiser, REAL[name](), precision=precision)
    for size in (1.0, 1e-10):
        ours = gradient(half, u.float(), size * v.float()).double() / size
        cosine = float(torch.nn.functional.cosine_similarity(ours.flatten(), exact.flatten(), 0))
        assert cosine > least


def test_adp_refuses_bfloat16():
    with pytest.raises(ValueError, match="`precision` must be 'fp32', 'tf32' or 'fp16' for adp, got 'bf16'"):
        fp.Purifier(networks()[0], REAL["adp"](), precision="fp32", gradient_precision="bf16")
