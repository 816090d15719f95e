"""What every method in ``METHODS`` promises."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import fastpure as fp
from tests.methods.small import SMALL, denoiser, images, purifier, toy_energy
from tests.reverse.toys import toy_classifier, toy_denoiser


def test_every_method_is_tried_here():
    assert set(SMALL) == set(fp.methods.METHODS)
    assert set(SMALL) <= set(fp.methods.__all__)


class Counted(torch.nn.Module):
    """A network that tells ``note`` of how many images go through it, there and back."""

    def __init__(self, network, note):
        super().__init__()
        self.network, self.note = network, note

    def forward(self, x, *more):
        self.note(len(x))
        return _Back.apply(self.network(x, *more), self.note)


class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, y, note):
        ctx.note = note
        return y.clone()

    @staticmethod
    def backward(ctx, v):
        ctx.note(len(v))
        return v, None


@pytest.mark.parametrize("name", SMALL)
def test_a_purification_calls_its_network_as_often_as_it_says(name):
    """Where a step differentiates the network its way back is a call, too: plans and attacks' budgets count them."""
    passes = []
    method = SMALL[name]()
    if name == "ebm_langevin":
        method = fp.methods.ebm_langevin(Counted(toy_energy(), passes.append).eval(), n_steps=3, tau=0.2)
    around = denoiser(method, around=lambda network: Counted(network, passes.append).eval())
    ours = fp.Purifier(around, method, precision="fp64")
    passes.clear()  # whoever wraps a network may have asked it something
    ours(images(3))
    assert sum(passes) == 3 * method.network_calls == 3 * ours.network_calls


@pytest.mark.parametrize("name", SMALL)
def test_an_image_does_not_feel_its_batch(name):
    ours = purifier(SMALL[name](), seed=5)
    u, ids = images(4).requires_grad_(True), torch.tensor([7, 0, 12, 3])
    whole = ours(u, sample_ids=ids)
    (grad,) = torch.autograd.grad(whole.square().sum(), u)
    order = torch.tensor([2, 3, 1])
    part = u[order].detach().requires_grad_(True)
    some = ours(part, sample_ids=ids[order])
    (grad_some,) = torch.autograd.grad(some.square().sum(), part)
    assert torch.allclose(some, whole[order], atol=1e-12)
    assert torch.allclose(grad_some, grad[order], atol=1e-10 * float(grad.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_the_exact_gradient_is_that_of_finite_differences(name):
    """Of one draw, guidance included."""
    method = SMALL[name]()
    ours, generator = purifier(method, seed=3), torch.Generator().manual_seed(8)
    u = 0.2 + 0.6 * images(2)
    v, way = (torch.randn(u.shape, generator=generator, dtype=u.dtype) for _ in range(2))
    leaf = u.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad((ours(leaf) * v).sum(), leaf)
    step = 1e-6
    ahead, behind = (float((ours(u + s * way) * v).sum()) for s in (step, -step))
    assert float((grad * way).sum()) == pytest.approx((ahead - behind) / (2 * step), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_draws_are_repeatable_and_different(name):
    ours, u = purifier(SMALL[name]()), images(2)
    assert torch.equal(ours(u, draw=1), ours(u, draw=1))
    assert not torch.equal(ours(u, draw=1), ours(u, draw=2))


@pytest.mark.parametrize("name", SMALL)
def test_inference_mode_gives_the_same_and_spoils_nothing(name):
    u = images(2)
    expected = purifier(SMALL[name]())(u)
    ours = purifier(SMALL[name]())
    with torch.inference_mode():
        assert torch.equal(ours(u + 0.0), expected)
        assert torch.equal(ours.trajectory(u + 0.0)[0], ours.trajectory(u)[0])
    leaf = u.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(ours(leaf).square().sum(), leaf)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", SMALL)
def test_printing_names_the_method_and_its_cost(name):
    method = SMALL[name]()
    text = str(method)
    assert text.startswith(f"{name}(")
    assert f"{method.network_calls} network calls" in text
    assert ("AGDM-style" in text) == (name == "agdm")
    assert hash(method) == hash(method)


@pytest.mark.parametrize(
    "name",
    [
        "gdmp",
        "adbm",
        "addt",
        "edm",
        "one_shot",
        "likelihood_max",
        "adp",
        "langevin",
        "flow",
        "flowpure",
        "consistency",
    ],
)
def test_clip_output_belongs_to_the_method(name):
    make = fp.methods.METHODS[name]
    small = {"t": 0.004} if name == "gdmp" else {"n_steps": 4} if name in ("edm", "langevin") else {}
    small = {"sampler": "ddpm", "n_steps": 50} if name == "addt" else small
    free, held = (purifier(make(**small, clip_output=clip))(images(4)) for clip in (False, True))
    assert torch.equal(held, free.clamp(0, 1))


@pytest.mark.parametrize("name", ["gdmp", "agdm", "adbm", "vp_sde", "likelihood_max", "adp", "langevin"])
def test_attacks_take_every_method(name):
    """PGD with EOT through the public API: inside its budget, and the loss goes up."""
    ours = fp.Purifier(toy_denoiser(torch.float32), SMALL[name](), seed=1)
    classifier = toy_classifier(torch.float32)
    defense = fp.Defense(ours, classifier)
    u = 0.25 + 0.5 * images(4).float()
    y = classifier(u).argmax(1)
    result = fp.attacks.PGD(norm="Linf", eps=0.1, n_iter=4, eot_iter=2)(defense, u, y)
    assert float((result.x_adv - u).abs().max()) <= 0.1 + 1e-6
    assert float(result.losses[-1].mean()) > float(result.losses[0].mean())


def test_every_method_is_documented_with_its_source():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(fp.methods.METHODS)
