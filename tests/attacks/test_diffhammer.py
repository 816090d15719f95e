"""`DiffHammer` against its formulas, written out once more, and against plain autograd."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks import DiffHammer
from fastpure.attacks.apgd_loop import DenseLoop
from fastpure.attacks.base import Problem
from fastpure.attacks.diffhammer import Hammer, common
from fastpure.attacks.losses import margin
from fastpure.errors import NonFiniteError
from fastpure.kernels import Domain
from fastpure.purify import look_through
from tests.attacks.toys import Meter, Pixels, images, mixture_defense


def problem(defense, x, y, ids=None) -> Problem:
    ids = torch.arange(len(x)) if ids is None else ids
    return Problem(look_through(defense).probed(x, ids), x, y, ids)


def by_hand(g: list[list[float]], losses: list[float], norm: str, eps: float) -> tuple[int, list[float]]:
    """The draw begun with and the common direction of one image, number by number."""

    def unit(v):
        length = math.sqrt(sum(a * a for a in v))
        return [math.copysign(1.0, a) if a else 0.0 for a in v] if norm == "Linf" else [a / length for a in v]

    def dot(a, b):
        return sum(p * q for p, q in zip(a, b, strict=True))

    def elu(a):
        return a if a > 0 else math.exp(a) - 1.0

    gains = [
        sum(elu(loss + eps * dot(unit(one), other)) for loss, other in zip(losses, g, strict=True))
        for one in g
    ]
    first = max(range(len(g)), key=lambda i: gains[i])
    r = g[first]
    for _ in range(5):
        w = [
            1.0 / (1.0 + math.exp(-5.0 * (loss + dot(unit(r), o)))) for loss, o in zip(losses, g, strict=True)
        ]
        r = [sum(wj * gj[k] for wj, gj in zip(w, g, strict=True)) / sum(w) for k in range(len(r))]
    return first, r


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("size", [0.02, 1.0])
def test_the_common_direction_is_that_of_the_formulas(norm, size):
    generator = torch.Generator().manual_seed(3)
    g = size * torch.randn(20, 6, 7, generator=generator, dtype=torch.float64)
    losses = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    chosen, r = common(g, losses, norm, 0.3)
    assert len(set(chosen.tolist())) > 2
    for i in range(20):
        first, direction = by_hand(g[i].tolist(), losses[i].tolist(), norm, 0.3)
        assert int(chosen[i]) == first
        assert torch.allclose(r[i], torch.tensor(direction, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def test_draws_that_nothing_breaks_still_give_a_direction():
    # Every sigmoid underflows in float64; their ratios do not.
    g = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]], dtype=torch.float64)
    losses = torch.tensor([[-400.0, -401.0, -402.0]], dtype=torch.float64)
    _, r = common(g, losses, "L2", 0.1)
    assert torch.isfinite(r).all()
    assert float(r.norm()) > 0.5


@pytest.mark.parametrize("norm", ["Linf", "L2"])
@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_what_goes_back_is_the_direction_through_the_chosen_draw(norm, batch_size):
    defense, x, y = mixture_defense(Pixels()), images(3), torch.tensor([0, 1, 2])
    ids, first, n = torch.tensor([5, 9, 2]), 40, 4
    asked = problem(defense, x, y, ids)
    found = Hammer(asked, margin, norm, 0.1, n, batch_size, 0).query(x, torch.arange(3), first)
    g, losses, correct = [], [], []
    for draw in range(first, first + n):
        purified = defense.purify(x, ids, draw, domain=Domain.ATTACK).detach().requires_grad_(True)
        logits = defense.classify(purified)
        value = margin(logits, y)
        g.append(torch.autograd.grad(value.sum(), purified)[0].flatten(1))
        losses.append(value.detach())
        correct.append((logits.argmax(1) == y).float())
    chosen, r = common(torch.stack(g, 1).double(), torch.stack(losses, 1).double(), norm, 0.1)
    assert len(set(chosen.tolist())) > 1, "or another draw than the chosen one would pass"
    leaf = x.clone().requires_grad_(True)
    purified = defense.purify(leaf, ids, first + chosen, domain=Domain.ATTACK)
    (expected,) = torch.autograd.grad(purified, leaf, r.view_as(x).float())
    assert torch.allclose(found.gradient, expected, rtol=1e-4, atol=1e-6)
    assert torch.allclose(found.loss, torch.stack(losses, 1).mean(1), atol=1e-5)
    assert torch.equal(found.correct, torch.stack(correct, 1).mean(1))


def test_directions_are_smoothed_with_falling_weights(monkeypatch):
    seen, asked = [], []

    def query(self, x, which, first):
        answer = query.own(self, x, which, first)
        seen.append(answer.gradient)
        return answer

    class Spy(DenseLoop):
        def __init__(self, ask, *rest):
            super().__init__(lambda *a: asked.append(ask(*a)) or asked[-1], *rest)

    query.own = Hammer.query
    monkeypatch.setattr(Hammer, "query", query)
    monkeypatch.setattr("fastpure.attacks.diffhammer.DenseLoop", Spy)
    attack = DiffHammer(eps=0.1, n_iter=3, eot_iter=2, n_restarts=1)
    attack(mixture_defense(Pixels()), images(2), torch.tensor([0, 1]))
    mean = torch.zeros_like(seen[0])
    for k, (gradient, given) in enumerate(zip(seen, asked, strict=True)):
        mean = (k + 1) ** -0.5 * gradient + (1 - (k + 1) ** -0.5) * mean
        assert torch.allclose(given.gradient, mean, atol=1e-6)
    assert len(seen) == 4


@pytest.mark.parametrize("n_restarts", [1, 3])
def test_what_it_says_it_spent_is_what_the_networks_were_asked(monkeypatch, n_restarts):
    defense, x, ids = mixture_defense(Pixels()), images(5), torch.tensor([3, 8, 1, 900, 4])
    y = Pixels()(x).argmax(1)
    y[0] = (y[0] + 1) % 5
    meter = Meter(monkeypatch, defense)
    attack = DiffHammer(eps=1e-4, n_iter=4, eot_iter=6, n_restarts=n_restarts, eval_draws=2)
    result = attack(defense, x, y, sample_ids=ids)
    assert torch.allclose(result.spent, meter.of(ids), rtol=0, atol=1e-9)
    assert float(result.spent.max()) <= n_restarts * 5 * (6 / 2 + 1)
    if n_restarts == 3:
        assert len(set(result.spent.tolist())) > 1, "later restarts leave broken images alone"


def test_images_that_half_of_the_draws_get_wrong_are_tried_again(monkeypatch):
    run, sizes = Hammer.run, []

    def half(self, start, n_iter, tick):
        found = run(self, start, n_iter, tick)
        sizes.append(len(start))
        found.correct.copy_(torch.tensor([0.4, 0.5, 0.6, 0.0])[: len(start)])
        return found

    monkeypatch.setattr(Hammer, "run", half)
    attack = DiffHammer(eps=0.1, n_iter=1, eot_iter=2, n_restarts=2)
    attack(mixture_defense(Pixels()), images(4), torch.tensor([0, 1, 2, 3]))
    assert sizes == [4, 2]


def test_without_noise_it_follows_the_one_draw_there_is():
    defense, x = mixture_defense(Pixels()), images(4)
    with defense.fixed(3):
        y = defense(x).argmax(1)
        attack = DiffHammer(eps=0.1, n_iter=8, eot_iter=5)
        result = attack(defense, x, y)
        assert (result.spent % 1.5 == 0).all(), "one draw there, and once more there and back"
        assert float(result.spent.max()) <= 3 * 9 * 1.5
        assert torch.equal(result.x_adv, attack(defense, x, y).x_adv)
    assert result.robust_correct.shape == (4, 1)
    assert result.robust_accuracy.estimate < 0.5


def test_two_classes_leave_out_what_needs_three():
    classifier, x = Pixels(2), images(4)
    attack = DiffHammer(eps=0.3, n_iter=4, eot_iter=3)
    result = attack(mixture_defense(classifier), x, classifier(x).argmax(1))
    assert result.notes == ("dlr is left out: it needs 3 classes, and there are 2",)
    assert len(result.losses) in (4, 8)
    assert not DiffHammer(n_restarts=2).effort(2).left_out, "it was not asked for"


def test_it_breaks_what_can_be_broken():
    defense, x = mixture_defense(Pixels()), images(8)
    result = DiffHammer(eps=0.15, n_iter=10, eot_iter=4)(defense, x, defense.predict(x))
    assert result.robust_accuracy.estimate < 0.1 < 0.4 < result.clean_accuracy.estimate


def test_its_start_is_where_it_begins(monkeypatch):
    defense, x, begins = mixture_defense(Pixels()), images(3), []
    run = Hammer.run
    monkeypatch.setattr(
        Hammer, "run", lambda self, start, *rest: begins.append(start) or run(self, start, *rest)
    )
    given = (x + 0.05).clamp(0, 1)
    DiffHammer(eps=0.1, n_iter=1, eot_iter=2, start=given)(defense, x, torch.tensor([0, 1, 2]))
    assert torch.equal(begins[0], given)
    assert all(not torch.equal(other, given[: len(other)]) for other in begins[1:])


class Blocked(nn.Module):
    def forward(self, u):
        return Pixels()(u).detach()


class Endless(nn.Module):
    """Finite logits whose slope is not."""

    def forward(self, u):
        return Pixels()(u) + (u - u.detach()).clamp_min(0).sqrt().flatten(1)[:, :1] * torch.arange(5)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="`norm` must be 'Linf' or 'L2' for DiffHammer"):
        DiffHammer(norm="L1")
    with pytest.raises(ValueError, match="`gradient` must be 'exact'"):
        DiffHammer(gradient="bpda")
    with pytest.raises(ValueError, match="`n_restarts` must be an integer in"):
        DiffHammer(n_restarts=4)
    x, y, quick = images(2), torch.tensor([0, 1]), {"n_iter": 1, "eot_iter": 2}
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure.Defense for DiffHammer"):
        DiffHammer(**quick)(Pixels(), x, y)
    with pytest.raises(ValueError, match=r"`defense` must be differentiable.*SPSA"):
        DiffHammer(**quick)(mixture_defense(Blocked().eval()), x, y)
    with pytest.raises(NonFiniteError, match="answered NaN or Inf for sample id 0"):
        DiffHammer(**quick)(mixture_defense(Endless().eval()), x, y)


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_an_ensemble_and_a_plan_know_what_it_costs(norm):
    from fastpure.evaluate.plan import count_queries
    from tests.evaluate.toys import dataset

    attack = DiffHammer(norm=norm, n_iter=4, eot_iter=6)
    counted = count_queries(dataset(4), attack, fp.protocols.fresh(2), random=True, purifies=True)
    # Two classes, so two restarts of five looks: one way there and back, six ways there.
    assert counted == (2 * 5, 2 * 5 * 6)
    known = count_queries(dataset(4), attack, fp.protocols.dw_box(), random=True, purifies=True)
    assert known == (10, 10)
