"""Langevin dynamics of an energy: a Gaussian's stationary law, exact gradients, plans, refusals, its file format."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import fastpure as fp
from fastpure.checkpoints import load_denoiser, load_energy, save_denoiser, save_energy
from fastpure.errors import CheckpointError, NonFiniteError
from fastpure.nets import EnergyConfig, EnergyNet, HillEnergyNet
from tests.methods.cases import error, inputs, ours
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser

SMALL = EnergyConfig(SHAPE, (5, 6))


def energy(dtype=torch.float64, scale=30.0):
    """Steep enough for its curvature to matter over a few steps."""
    network = EnergyNet(SMALL).initialise(3).to(dtype).eval()
    with torch.no_grad():
        network.last.weight.mul_(scale)
    return network


class Quadratic(nn.Module):
    """U = |x - mean|^2 / (2 variance): the energy of a Gaussian."""

    def __init__(self, mean, variance):
        super().__init__()
        self.mean, self.variance = mean, variance
        self.training = False

    def forward(self, x):
        return (x - self.mean).square().flatten(1).sum(1) / (2 * self.variance)


def written_out(network, u, noise, tau, detached=False):
    x = 2 * u - 1
    for z in noise["steps"]:
        (g,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
        x = x - tau**2 / 2 * (g.detach() if detached else g) + tau * z
    return (x + 1) / 2


@pytest.mark.parametrize("memory", ["store", "recompute", "auto"])
@pytest.mark.parametrize("grad", ["exact", "detached"])
def test_method_is_its_formula_written_out(grad, memory):
    network = energy()
    method = fp.methods.ebm_langevin(network, 6, 0.3, guidance_grad=grad)
    u, v, noise = inputs(method)
    leaf = u.clone().requires_grad_(True)
    out = written_out(network, leaf, noise, 0.3, grad == "detached")
    (expected,) = torch.autograd.grad((out * v).sum(), leaf)
    x, g = ours(method, u, v, noise, memory)
    assert error(x, out.detach()) < 1e-11
    assert error(g, expected) < 1e-9
    # Detached, the whole purification is the identity to an attacker; exact it is far from that.
    assert (error(g, v) < 1e-12) == (grad == "detached")


def test_the_gaussian_is_known_at_every_step():
    """x_n = m + r^n (x_0 - m) + noise of variance tau^2 (1 - r^2n) / (1 - r^2), r = 1 - tau^2 / (2 variance)."""
    n, tau, variance, mean = 40, 0.2, 0.25, 0.3
    r = 1 - tau**2 / (2 * variance)
    method = fp.methods.ebm_langevin(Quadratic(mean, variance), n, tau)
    purifier = fp.Purifier(toy_denoiser(), method, precision="fp64")
    u = torch.full((64, *SHAPE), 0.9, dtype=torch.float64, requires_grad=True)
    out = purifier(u)
    (grad,) = torch.autograd.grad(out.sum(), u)
    assert torch.allclose(grad, torch.full_like(grad, r**n), atol=1e-12)
    x = 2 * out.detach() - 1
    deviation = math.sqrt(tau**2 * (1 - r ** (2 * n)) / (1 - r**2))
    count = x.numel()
    assert float(x.mean()) == pytest.approx(mean + r**n * (0.8 - mean), abs=5 * deviation / math.sqrt(count))
    assert float(x.std()) == pytest.approx(deviation, rel=5 / math.sqrt(2 * count))


def test_published_length_and_coefficients():
    method = fp.methods.ebm_langevin(Quadratic(0.0, 1.0))
    row = method.table().rows[0]
    assert len(method.table()) == 1500
    assert (row.a, row.b, row.c, row.d) == (1.0, 0.0, 0.5e-4, 0.01)
    # The energy's passes, there and back, are what it costs: nothing else is called.
    assert method.table().n_network_calls == 1500
    assert "3000 network calls" in str(method)


class Refusing(nn.Module):
    def forward(self, x, label):
        raise AssertionError("the denoiser was called")


@pytest.mark.parametrize("memory", ["store", "recompute", "auto"])
def test_the_denoiser_is_never_called(memory):
    denoiser = fp.Denoiser.from_module(Refusing().eval(), image_shape=SHAPE)
    method = fp.methods.ebm_langevin(energy(torch.float32), 3, 0.1)
    u = torch.rand(2, *SHAPE, requires_grad=True)
    fp.Purifier(denoiser, method, memory=memory)(u).sum().backward()
    assert bool(u.grad.isfinite().all())


def test_half_precision_keeps_small_gradients():
    method = fp.methods.ebm_langevin(energy(torch.float32, 300.0), 3, 0.3)
    denoiser = fp.Denoiser.from_module(Refusing().eval(), image_shape=SHAPE)  # has no dtype of its own
    purifier = fp.Purifier(denoiser, method, precision="fp16")
    u = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    v = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))

    def gradient(size):
        leaf = u.clone().requires_grad_(True)
        return torch.autograd.grad((purifier(leaf) * v * size).sum(), leaf)[0]

    whole, small = gradient(1.0), gradient(2.0**-33)
    assert torch.equal(small * 2.0**33, whole)
    assert error(whole, v) > 0.05  # the curvature is in it


@pytest.mark.parametrize("gradient", ["exact", "detached", "unguided", "surrogate", "bpda"])
def test_attacks_and_plans_take_it(gradient):
    method = fp.methods.ebm_langevin(energy(torch.float32), 10, 0.1)
    defense = fp.Defense(fp.Purifier(toy_denoiser(torch.float32), method), toy_classifier(torch.float32))
    u = torch.rand(2, *SHAPE)
    y = defense.classifier(u).argmax(1)
    result = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=2, gradient=gradient)(defense, u, y)
    assert float((result.x_adv - u).abs().max()) > 0


def test_a_run_is_planned_and_evaluated(tmp_path):
    from fastpure.data import load_dataset

    network = EnergyNet(EnergyConfig((1, 8, 8), (4, 5))).initialise(0).eval()
    data = load_dataset("digits", "test").subset(3, data_seed=0)
    purifier = fp.Purifier(fp.load_denoiser("digits"), fp.methods.ebm_langevin(network, 4))
    defense = fp.Defense(purifier, fp.load_classifier("digits"))
    planned = fp.plan(defense, data, attack=fp.attacks.PGD(eps=0.1, n_iter=1, eot_iter=1))
    assert planned.calls == 8, "there and back"
    assert planned.network_calls > 0
    report = fp.evaluate(defense, data, out=tmp_path / "run.sqlite", progress=False)
    assert report.n_images == 3


def test_an_energy_that_is_not_finite_is_named():
    class Steep(Quadratic):
        def forward(self, x):
            return -(x.abs() ** 0.5).flatten(1).sum(1)

    purifier = fp.Purifier(toy_denoiser(), fp.methods.ebm_langevin(Steep(0.0, 1.0), 2), precision="fp64")
    u = torch.full((1, *SHAPE), 0.5, dtype=torch.float64)
    with pytest.raises(NonFiniteError, match=r"step 0 .* sample id 9: the guidance EnergyDescent \(Steep\)"):
        purifier(u, sample_ids=[9])


@pytest.mark.parametrize(
    ("network", "error_type", "text"),
    [
        ("digits", TypeError, "`energy` must be an nn.Module"),
        (toy_classifier(), ValueError, r"`energy` must be a network from images .* got shape \[2, 4\]"),
        (nn.Conv2d(3, 1, 3).eval(), ValueError, "`energy` must be a network from images"),
        (EnergyNet(SMALL).train(), ValueError, "evaluation mode"),
    ],
)
def test_what_is_no_energy_is_refused(network, error_type, text):
    with pytest.raises(error_type, match=text):
        fp.Purifier(toy_denoiser(), fp.methods.ebm_langevin(network, 2))


def test_weights_that_change_are_followed():
    network = energy(torch.float32)
    purifier = fp.Purifier(toy_denoiser(torch.float32), fp.methods.ebm_langevin(network, 2, 0.3))
    u = torch.rand(1, *SHAPE)
    before = purifier(u)
    with torch.no_grad():
        network.last.weight.mul_(-1)
    assert not torch.equal(purifier(u), before)


def test_files_come_back(tmp_path):
    network = energy(torch.float32)
    path = save_energy(network, tmp_path / "energy.safetensors", notes={"why": "test"})
    again = load_energy(path)
    kept, loaded = network.state_dict(), again.state_dict()
    assert kept.keys() == loaded.keys()
    assert all(torch.equal(kept[name], loaded[name]) for name in kept)
    # At another address, or with a gradient to come, another convolution may be chosen, which rounds otherwise.
    x = torch.randn(3, *SHAPE)
    assert torch.allclose(again(x), network(x), rtol=1e-5, atol=1e-5)
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    half = load_energy(save_energy(network, tmp_path / "half.safetensors", dtype=torch.float16))
    assert half.first.weight.dtype == torch.float32
    assert torch.allclose(half(x), network(x), rtol=1e-2, atol=0.1)
    assert load_energy(network) is network
    with pytest.raises(TypeError, match="`energy` must be an EnergyNet"):
        save_energy(nn.Linear(2, 2), path)


def test_other_files_are_refused_with_what_to_do(tmp_path):
    with pytest.raises(ValueError, match=r"`source` must be a bundled name \(digits\), a file or a module"):
        load_energy("no-such")
    foreign = tmp_path / "other.pth"
    torch.save({"w": torch.zeros(1)}, foreign)
    with pytest.raises(CheckpointError, match="Build the network with its own code and give the module"):
        load_energy(foreign)
    named = tmp_path / "foreign.safetensors"
    save_file({"w": torch.zeros(1)}, named)
    with pytest.raises(CheckpointError, match=r"neither an energy of fastpure nor .* Hill et al\."):
        load_energy(named)
    image = load_denoiser("digits")
    with pytest.raises(CheckpointError, match="found format fastpure, kind denoiser"):
        load_energy(save_denoiser(image, tmp_path / "denoiser.safetensors"))
    path = save_energy(energy(torch.float32), tmp_path / "cut.safetensors")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError):
        load_energy(path)


def published(width=4):
    """Weights as Hill et al. save them, and the network that answers as theirs."""
    torch.manual_seed(5)
    layers, inputs_ = [nn.Conv2d(3, width, 3, padding=1)], width
    for _ in range(3):
        layers += [nn.LeakyReLU(0.05), nn.Conv2d(inputs_, 2 * inputs_, 4, 2, 1)]
        inputs_ *= 2
    network = nn.Sequential(*layers, nn.LeakyReLU(0.05), nn.Conv2d(inputs_, 1, 4)).double()
    return {f"f.{name}": value for name, value in network.state_dict().items()}, network


def prefixed(weights):
    return {f"module.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("saved", [lambda w: w, prefixed, lambda w: {"ebm": w}])
def test_published_networks_descend_as_published(tmp_path, saved):
    """There a step is x - f'(x) + 0.01 z, so that what the network answers is U times 0.01^2 / 2."""
    weights, network = published()
    torch.save(saved(weights), tmp_path / "ebm.pth")
    loaded = load_energy(tmp_path / "ebm.pth")
    assert isinstance(loaded, HillEnergyNet)
    assert not loaded.training
    assert not any(p.requires_grad for p in loaded.parameters())
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    assert loaded(x).shape == (2,)
    (theirs,) = torch.autograd.grad(network(x).sum(), x)
    (row,) = set(fp.methods.ebm_langevin(loaded, 3).table().rows)
    (gradient,) = torch.autograd.grad(loaded(x).sum(), x)
    assert theirs.abs().max() > 1e-4
    assert (row.c * gradient - theirs).abs().max() < 1e-14
    assert row.d == 0.01


def test_the_exact_gradient_of_the_published_network_is_the_identity(tmp_path):
    """It is linear between its kinks, so that the energy has no curvature: the adversary sees none of the steps."""
    torch.save(published()[0], tmp_path / "ebm.pth")
    denoiser = fp.Denoiser.from_module(nn.Identity().eval(), image_shape=(3, 32, 32))
    method = fp.methods.ebm_langevin(load_energy(tmp_path / "ebm.pth"), 4)
    x = torch.rand(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    v = torch.randn_like(x)
    out = fp.Purifier(denoiser, method, precision="fp64")(x)
    assert not torch.allclose(out, x, atol=1e-3)
    (gradient,) = torch.autograd.grad((out * v).sum(), x)
    assert torch.allclose(gradient, v, rtol=1e-12, atol=1e-12)


def test_published_networks_that_are_not_whole_are_refused(tmp_path):
    weights, _ = published()
    for name, changed, text in (
        ("less", {key: value for key, value in weights.items() if key != "f.8.bias"}, "missing: f.8.bias"),
        ("more", {**weights, "f.9.weight": torch.zeros(1)}, "unknown: f.9.weight"),
        ("other", {**weights, "f.2.weight": torch.zeros(3, 4, 4, 4)}, "of another shape: f.2.weight"),
        ("flat", {**weights, "f.0.weight": torch.zeros(3)}, "f.0.weight"),
        ("nan", {**weights, "f.4.bias": torch.full((16,), math.nan)}, "NaN or Inf: f.4.bias"),
    ):
        torch.save(changed, tmp_path / f"{name}.pth")
        with pytest.raises(CheckpointError, match=text):
            load_energy(tmp_path / f"{name}.pth")
    torch.save(weights, tmp_path / "ebm.pth")
    loaded = load_energy(tmp_path / "ebm.pth")
    denoiser = fp.Denoiser.from_module(nn.Identity().eval(), image_shape=(3, 16, 16))
    with pytest.raises(ValueError, match=r"`energy` must be a network from images \[3, 16, 16\]"):
        fp.Purifier(denoiser, fp.methods.ebm_langevin(loaded, 2))


@pytest.mark.parametrize(
    ("shape", "widths", "text"),
    [((1, 8, 8), (), "`widths`"), ((1, 6, 8), (4, 4, 4), "divisible by 4"), ((1, 8), (4,), "`image_shape`")],
)
def test_wrong_configurations_are_named(shape, widths, text):
    with pytest.raises(ValueError, match=text):
        EnergyConfig(shape, widths)
