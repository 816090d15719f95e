"""DiffAttack's loss and its gradient through every step, against one plain differentiable loop."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.attacks import DiffAttack
from fastpure.attacks.diffattack import deviation
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense, scaling_defense


@pytest.fixture
def defense():
    coarse = mixture_defense(Pixels(), fp.methods.diffpure(t=0.1, dt=0.05))
    method, denoiser = coarse.purifier.method, coarse.purifier.denoiser
    return fp.Defense(fp.Purifier(denoiser, method, precision="fp64"), Pixels())


def test_loss_and_gradient_are_those_of_the_plain_loop(defense):
    x = images(3).double()
    generator = torch.Generator().manual_seed(0)
    rows = defense.purifier.method.table().rows
    xi = torch.randn(3, *SHAPE, generator=generator, dtype=torch.float64)
    z = torch.randn(len(rows) - 1, 3, *SHAPE, generator=generator, dtype=torch.float64)
    net = defense.purifier.denoiser.network

    def plain(u):
        image = 2 * u - 1
        state, total = rows[0].a * image + rows[0].d * xi, 0.0
        for k, row in enumerate(rows[1:], start=1):
            state = row.a * state + row.b * net(state, torch.full((3,), row.tau)) + row.d * z[k - 1]
            after = rows[k + 1] if k + 1 < len(rows) else None
            alpha, sigma = (after.alpha, after.sigma) if after else (1.0, 0.0)
            total = total + alpha * (state - alpha * image - sigma * xi).square().flatten(1).mean(1)
        return total / (len(rows) - 1)

    ours, theirs = x.clone().requires_grad_(True), x.clone().requires_grad_(True)
    states = defense.purifier.trajectory(ours, noise=fp.RecordedNoise(xi, z))
    value, expected = deviation(defense.purifier.method, ours, states), plain(theirs)
    assert torch.allclose(value, expected, rtol=1e-9)
    found = torch.autograd.grad(value.sum(), ours)[0]
    assert torch.allclose(found, torch.autograd.grad(expected.sum(), theirs)[0], rtol=1e-8, atol=1e-12)


def test_it_raises_the_deviation_and_is_pgd_without_it():
    defense, x = mixture_defense(Pixels()), images(6)
    y, settings = torch.arange(6) % 5, {"eps": 0.1, "n_iter": 5, "eot_iter": 2, "eval_draws": 2}
    heavy = DiffAttack(weight=100.0, **settings)(defense, x, y)
    plain = DiffAttack(weight=0.0, **settings)(defense, x, y)
    assert torch.equal(plain.x_adv, fp.attacks.PGD(**settings)(defense, x, y).x_adv)

    def how_far(images):
        return float(deviation(defense.purifier.method, images, defense.trajectory(images, draw=0)).mean())

    assert how_far(heavy.x_adv) > how_far(x)
    assert how_far(heavy.x_adv) > how_far(plain.x_adv)


def test_it_needs_a_diffused_input_and_exact_gradients():
    with pytest.raises(ValueError, match="`defense` must be a defence that diffuses its input once"):
        DiffAttack(n_iter=1)(scaling_defense(Pixels(), 0.0), images(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="`gradient` must be 'exact', because"):
        DiffAttack(gradient="bpda")
