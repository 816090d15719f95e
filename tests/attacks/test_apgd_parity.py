"""On a deterministic model APGD visits the same points as pyautoattack's, in float64."""

from __future__ import annotations

import contextlib
import io

import pytest
import torch
from pyautoattack import autopgd_base as autopgd
from torch import nn

from fastpure.attacks.apgd_loop import DenseLoop, SparseLoop
from fastpure.attacks.budget import onto_l1_ball_in_box
from fastpure.attacks.gradient import attack_logits, objective, query
from fastpure.attacks.losses import cross_entropy, dlr, dlr_targeted
from fastpure.purify import look_through

SHAPE, N_ITER = (1, 6, 6), 100


@pytest.fixture
def double():
    # The published code allocates some of its bookkeeping in the default dtype.
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def model() -> nn.Module:
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.Tanh(), nn.Linear(24, 6)).eval()
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * 0.6
    return net.requires_grad_(False)


def visited_by_published_code(net, x, y, start, norm, eps, loss, target):
    points: list[torch.Tensor] = []

    def spy(u):
        points.append(u.detach().clone())
        return net(u)

    arguments = {"norm": norm, "eps": eps, "n_iter": N_ITER, "device": "cpu"}
    if loss is dlr_targeted:
        attack = autopgd.APGDAttack_targeted(spy, **arguments)
        attack.y_target = target
    else:
        attack = autopgd.APGDAttack(spy, loss="ce" if loss is cross_entropy else "dlr", **arguments)
    attack.init_hyperparam(x)
    with contextlib.redirect_stdout(io.StringIO()):
        best, _, best_loss, _ = attack.attack_single_run(x, y, x_init=start)
    return points, best, best_loss


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("loss", [cross_entropy, dlr, dlr_targeted])
def test_same_iterates_as_the_published_code(double, norm, loss):
    generator = torch.Generator().manual_seed(5)
    net, eps = model(), 0.15 if norm == "Linf" else 0.6
    x = torch.rand(7, *SHAPE, generator=generator)
    y = net(x).argmax(1)
    target = net(x).argsort(1)[:, -3]
    start = (x + 0.05 * torch.randn(x.shape, generator=generator)).clamp(0, 1)
    theirs, best, best_loss = visited_by_published_code(net, x, y, start, norm, eps, loss, target)

    ours: list[torch.Tensor] = []
    goal = objective(attack_logits(look_through(net)), loss)
    labels = torch.stack([y, target], 1) if loss is dlr_targeted else y

    def ask(points, which, i):
        ours.append(points.clone())
        return query(goal, points, labels[which], which, range(1), 64)

    loop = DenseLoop(ask, x, start, norm, eps, N_ITER)
    found = loop.run(stop=False, tick=lambda i, value: None)
    assert len(ours) == len(theirs) == N_ITER + 1
    assert float(loop.step_size.min()) < 2 * eps, "the schedule must have been used"
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(a, b, rtol=0, atol=1e-11), f"iterate {i}: {float((a - b).abs().max())}"
    assert torch.allclose(found.best, best, rtol=0, atol=1e-11)
    assert torch.allclose(loop.best_loss, best_loss, rtol=0, atol=1e-11)


def test_same_iterates_as_the_published_code_in_l1(double, monkeypatch):
    generator = torch.Generator().manual_seed(5)
    net, eps, x = model(), 3.0, torch.rand(7, *SHAPE, generator=generator)
    y = net(x).argmax(1)
    start = onto_l1_ball_in_box(
        x.flatten(1) + torch.randn(7, 36, generator=generator), x.flatten(1), eps
    ).view_as(x)

    # The published projection computes in float32, and x + d - d need not be x: unchanged pixels are counted.
    def project(centre, offset, radius):
        flat = centre.flatten(1)
        moved = onto_l1_ball_in_box(flat + offset.flatten(1), flat, radius)
        return moved.view_as(centre) - centre - offset

    monkeypatch.setattr(autopgd, "L1_projection", project)
    monkeypatch.setattr(autopgd, "L0_norm", lambda u: (u.abs() > 1e-12).flatten(1).sum(-1))
    theirs, best, _ = visited_by_published_code(net, x, y, start, "L1", eps, cross_entropy, None)

    ours: list[torch.Tensor] = []
    goal = objective(attack_logits(look_through(net)), cross_entropy)

    def ask(points, which, i):
        ours.append(points.clone())
        return query(goal, points, y[which], which, range(1), 64)

    found = SparseLoop(ask, x, start, eps, N_ITER).run(stop=False, tick=lambda i, value: None)
    for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.allclose(a, b, rtol=0, atol=1e-10), f"iterate {i}: {float((a - b).abs().max())}"
    assert torch.allclose(found.best, best, rtol=0, atol=1e-10)


def test_same_l1_projection_as_the_published_code():
    generator = torch.Generator().manual_seed(6)
    x, wish = torch.rand(20, *SHAPE, generator=generator), torch.randn(20, *SHAPE, generator=generator)
    theirs = x + wish + autopgd.L1_projection(x, wish, 3.0)
    ours = onto_l1_ball_in_box((x + wish).flatten(1), x.flatten(1), 3.0).view_as(x)
    assert torch.allclose(ours, theirs, atol=2e-6)
