"""APGD: averages over draws, leaves broken images alone only where nothing is random, merges restarts."""

from __future__ import annotations

import torch

import fastpure as fp
from fastpure.attacks.apgd_loop import DenseLoop
from fastpure.attacks.base import Problem
from fastpure.attacks.gradient import Query
from fastpure.purify import look_through
from fastpure.purify.target import ASKED
from tests.attacks.toys import Pixels, images, mixture_defense


def test_linear_optimum_is_reached():
    class Line(Pixels):
        def forward(self, u):
            score = ((u - 0.5).flatten(1) * self.weight[0]).sum(1)
            return torch.stack([score, -score], 1)

    net, x = Line(), torch.full((1, 1, 5, 5), 0.5)
    for norm, best in (
        ("Linf", 0.1 * net.weight[0].abs().sum()),
        ("L2", 0.1 * net.weight[0].norm()),
        ("L1", 0.1 * net.weight[0].abs().max()),
    ):
        run = fp.attacks.APGDCE(norm=norm, eps=0.1)
        loop_free = run(net, x + 0.3 * net.weight[0].sign().view_as(x), torch.tensor([0]))
        assert float(loop_free.distance) <= 0.1
        reached = net(x + 0.3 * net.weight[0].sign().view_as(x))[0, 0] - net(loop_free.x_adv)[0, 0]
        assert float(reached) > 0.995 * float(best)


def test_broken_images_are_left_alone_where_nothing_is_random():
    asked: list[int] = []

    class Counting(Pixels):
        def forward(self, u):
            asked.append(len(u))
            return super().forward(u)

    x = images(12)
    y = Pixels()(x).argmax(1)
    result = fp.attacks.APGDCE(eps=0.05, n_iter=20, n_restarts=3)(Counting(), x, y)
    broken = ~result.robust_correct[:, 0]
    assert 0 < int(broken.sum()) < 12
    assert asked[ASKED] == 12, "after the questions at the door"
    assert set(asked[-12:-2]) == {int((~broken).sum())}, "the last restart goes on with the others only"
    left = torch.isnan(result.losses).any(0)
    assert torch.equal(left, broken)

    noisy = fp.attacks.APGDCE(eps=0.12, n_iter=5, eot_iter=2)(mixture_defense(Pixels()), x, y)
    assert not torch.isnan(noisy.losses).any(), "being wrong on the attack's draws decides nothing"


def test_restarts_do_not_make_it_worse():
    x = images(20, seed=3)
    y = Pixels()(x).argmax(1)
    one, three = (
        fp.attacks.APGDDLR(eps=0.13, n_iter=8, n_restarts=n)(Pixels(), x, y).robust_correct for n in (1, 3)
    )
    assert not bool((three & ~one).any()), "what one run breaks stays broken"


def test_losses_and_gradients_are_averages_over_the_same_draws():
    defense, x = mixture_defense(Pixels()), images(3)
    y = torch.tensor([0, 1, 2])
    run = fp.attacks.APGDCE(eps=0.1, n_iter=1, eot_iter=6, batch_size=5)
    result = run(defense, x, y, sample_ids=[5, 6, 7])
    # The one step: the first query takes draws 0 to 5, the one after the step 6 to 11.
    ids = torch.tensor([5, 6, 7])
    start = run.first_point(Problem(look_through(defense), x, y, ids), 0)
    leaf = start.clone().requires_grad_(True)
    domain = fp.attacks.gradient.Domain.ATTACK
    total = sum(torch.nn.functional.cross_entropy(defense(leaf, ids, d, domain=domain), y) for d in range(6))
    (gradient,) = torch.autograd.grad(total, leaf)
    moved = (start + 0.2 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    losses = [
        torch.nn.functional.cross_entropy(defense(moved, ids, d, domain=domain), y, reduction="none")
        for d in range(6, 12)
    ]
    assert torch.allclose(result.losses[0], torch.stack(losses).mean(0), atol=1e-5)


def test_the_candidate_has_the_fewest_correct_draws_and_then_the_highest_loss():
    # Iterate i of the only image answers with the i-th of these.
    correct, loss = [1.0, 0.5, 0.25, 0.25, 0.75], [0.0, 9.0, 1.0, 2.0, 99.0]
    points: list[torch.Tensor] = []

    def ask(point, which, i):
        points.append(point.clone())
        gradient = torch.ones_like(point)
        return Query(gradient, torch.tensor([loss[i]]), torch.tensor([correct[i]]), torch.ones(1))

    x = torch.full((1, 1, 2, 2), 0.5)
    found = DenseLoop(ask, x, x - 0.3, "Linf", 0.3, 4).run(stop=False, tick=lambda i, value: None)
    assert torch.equal(found.x, points[3])
    assert (float(found.correct), float(found.loss)) == (0.25, 2.0)
    assert torch.equal(found.best, points[4])
