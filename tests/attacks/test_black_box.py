"""SPSA and RayS against answers that are known: linear models, defences without gradients, counted questions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastpure as fp
from fastpure.attacks.base import Problem
from fastpure.attacks.rays import Ray, along
from fastpure.attacks.spsa import Adam
from fastpure.kernels import Domain
from fastpure.purify import look_through
from tests.attacks.toys import SHAPE, SIZE, Pixels, images, scaling_defense


class Linear(nn.Module):
    """Two logits whose difference is ``slope`` . (x - ``at``), computed image by image."""

    def __init__(self, slope: Tensor, at: float = 0.5) -> None:
        super().__init__()
        self.register_buffer("slope", slope)
        self.at, self.training = at, False

    def forward(self, u: Tensor) -> Tensor:
        difference = ((u.flatten(1) - self.at) * self.slope).sum(1)
        return torch.stack([difference / 2, -difference / 2], 1)


class Decides(nn.Module):
    """The decision of another classifier as a one-hot vector: piecewise constant, and cut off from autograd."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.training = inner, False

    @torch.no_grad()
    def forward(self, u: Tensor) -> Tensor:
        logits = self.inner(u)
        return F.one_hot(logits.argmax(1), logits.shape[1]).to(u.dtype)


def slope(seed: int = 0) -> Tensor:
    """Entries of both signs, none of them small."""
    generator = torch.Generator().manual_seed(seed)
    signs = torch.where(torch.rand(SIZE, generator=generator) < 0.5, -1.0, 1.0)
    return signs * (0.5 + torch.rand(SIZE, generator=generator))


def problem(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Problem:
    ids = torch.arange(len(x)) + 5
    target = look_through(model).probed(x, ids)
    return Problem(target, x, torch.zeros(len(x)).long() if y is None else y, ids)


def quiet(iteration: int, loss: float) -> None:
    pass


@pytest.mark.parametrize("m", [16, 1024])
def test_the_estimate_is_the_gradient_up_to_the_error_of_its_directions(m):
    w, x = slope(), images(40)
    x[:, 0, 0, :2] = torch.tensor([0.0, 1.0])  # at the edges a finite difference must not be cut in half
    gradient, loss = fp.attacks.SPSA(n_directions=m).estimate(problem(Linear(w), x), x, 0)
    error = (gradient.flatten(1) + w).square().sum(1)
    # The estimate is the mean of m terms v v'w: its squared error is (D - 1) |w|^2 / m on average.
    assert float(error.mean()) == pytest.approx((SIZE - 1) * float(w.square().sum()) / m, rel=0.15)
    edge = gradient[:, 0, 0, :2].mean(0) + w[:2]
    assert float(edge.abs().max()) < 5 * float(w.norm()) / math.sqrt(m * len(x))
    inside = x.clamp(0.01, 0.99).flatten(1)
    assert torch.allclose(loss, -((inside - 0.5) * w).sum(1), atol=1e-4)


def test_directions_depend_on_the_image_the_iteration_and_the_seed():
    x = torch.full((2, *SHAPE), 0.5)
    asked = problem(Linear(slope()), x)
    first, later, other = (
        fp.attacks.SPSA(n_directions=2, seed=seed).estimate(asked, x, i)[0]
        for seed, i in ((0, 0), (0, 1), (1, 0))
    )
    assert not torch.equal(first[0], first[1])
    assert not torch.equal(first, later)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("loss", ["margin", "ce"])
@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_spsa_finds_the_worst_point_of_a_linear_model(norm, loss):
    w, x = slope(), 0.4 + 0.2 * images(4)
    eps = {"Linf": 0.05, "L2": 0.3}[norm]
    dual = {"Linf": w.abs().sum(), "L2": w.norm()}[norm]
    y = Linear(w)(x).argmax(1)
    run = fp.attacks.SPSA(norm=norm, eps=eps, n_iter=60, n_directions=100, loss=loss)
    result = run(Linear(w), x, y)
    sign = torch.where(y == 0, -1.0, 1.0)
    gained = sign * ((result.x_adv - x).flatten(1) * w).sum(1)
    assert float(gained.min()) > 0.98 * eps * float(dual)
    # The best point of the cube is worse in L2, and would be found with a second moment per pixel.
    if norm == "L2":
        assert float(w.abs().sum()) / math.sqrt(SIZE) < 0.97 * float(dual)


def test_adam_is_the_published_one_and_has_no_direction_without_gradients():
    gradients = torch.randn(7, 3, *SHAPE, generator=torch.Generator().manual_seed(2))
    leaf = torch.zeros(3, *SHAPE, requires_grad=True)
    reference, ours = torch.optim.Adam([leaf], lr=0.1, eps=1e-12), Adam(leaf.detach(), shared=False)
    walked = torch.zeros_like(leaf)
    for gradient in gradients:
        leaf.grad = gradient.clone()
        reference.step()
        walked = walked - 0.1 * ours.direction(gradient)
    assert torch.allclose(walked, leaf.detach(), atol=1e-5)
    for shared in (False, True):
        still = Adam(walked, shared).direction(torch.zeros_like(walked))
        assert torch.equal(still, torch.zeros_like(walked))
    lengths = Adam(walked, shared=True).direction(gradients[0]).flatten(1).norm(dim=1)
    assert torch.allclose(lengths, torch.ones(3), atol=1e-5)


@pytest.mark.parametrize("batch_size", [256, 5])
def test_both_sides_of_a_direction_see_the_same_draws_and_nothing_else_does(monkeypatch, batch_size):
    defense, asked = scaling_defense(Pixels(), 0.0), {}
    original = defense.purifier.forward

    def spy(x, sample_ids=None, draw=0, **rest):
        if rest["domain"] == Domain.ATTACK:
            for i, name in enumerate(zip(sample_ids.tolist(), draw.tolist(), strict=True)):
                asked.setdefault(name, []).append(x[i].clone())
        return original(x, sample_ids, draw, **rest)

    monkeypatch.setattr(defense.purifier, "forward", spy)
    x, ids = 0.3 + 0.4 * images(2), [11, 12]
    run = fp.attacks.SPSA(n_iter=2, n_directions=3, eot_iter=2, batch_size=batch_size, eps=1e-4, delta=0.02)
    run(defense, x, torch.tensor([0, 1]), sample_ids=ids)
    assert sorted(asked) == [(name, draw) for name in ids for draw in range(2 * 3 * 2)]
    assert all(len(points) == 2 for points in asked.values())
    for first, second in asked.values():
        assert torch.allclose((first - second).abs(), torch.full(SHAPE, 0.04), atol=1e-6)
    for name in ids:
        for draw in range(0, 12, 2):  # draws of one direction: the same two points
            assert torch.equal(asked[name, draw][0], asked[name, draw + 1][0])
    shifts = {
        tuple((asked[name, draw][0] - asked[name, draw][1]).flatten().sign().tolist()) for name, draw in asked
    }
    assert len(shifts) == 2 * 2 * 3, "one direction for each image, iteration and number"


def test_common_draws_leave_a_difference_free_of_noise():
    # Noise that is only added drops out of a pair's difference on a linear model, whatever its size.
    w, x = slope(), 0.3 + 0.4 * images(3)
    noisy = problem(scaling_defense(Linear(w), 0.0), x)
    assert noisy.target.is_random
    run = fp.attacks.SPSA(n_directions=8)
    gain = noisy.target.module.purifier.method.steps.rows[0]
    found, exact = (run.estimate(asked, x, 0)[0] for asked in (noisy, problem(Linear(w), x)))
    ratio = found / exact
    assert torch.allclose(ratio, ratio.mean().expand_as(ratio), rtol=1e-2), gain


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_rays_finds_the_radius_of_a_linear_classifier(seed):
    w, x = slope(seed), 0.4 + 0.2 * images(6, seed)
    y = Linear(w)(x).argmax(1)
    exact = ((x.flatten(1) - 0.5) * w).sum(1).abs().double() / float(w.abs().sum())
    run = fp.attacks.RayS(n_queries=1500, eps=0.5, tolerance=1e-6)
    signs, radius = run.search(problem(Linear(w), x, y), quiet)
    assert float((radius - exact).abs().max()) < 5e-6
    best = torch.where(y == 0, -1.0, 1.0)[:, None] * w.sign()
    assert torch.equal(signs.flatten(1), best)


def test_rays_returns_its_radius_within_eps_and_the_ray_at_eps_beyond():
    w, x = slope(), 0.4 + 0.2 * images(6)
    y = Linear(w)(x).argmax(1)
    exact = ((x.flatten(1) - 0.5) * w).sum(1).abs() / w.abs().sum()
    eps = float(exact.median()) + 1e-4
    result = fp.attacks.RayS(n_queries=1500, eps=eps)(Linear(w), x, y)
    assert torch.equal(result.robust_correct[:, 0], exact > eps)
    within = exact <= eps
    assert bool((result.distance[within] <= eps).all())
    assert bool((result.distance[within] >= exact[within] - 1e-6).all())
    assert torch.allclose(result.distance[~within], torch.full_like(result.distance[~within], eps), atol=1e-6)


def test_rays_asks_no_more_than_it_may_and_keeps_what_it_has():
    rows = []

    class Counting(Linear):
        def forward(self, u: Tensor) -> Tensor:
            rows.append(len(u))
            return super().forward(u)

    x = 0.4 + 0.2 * images(3)
    asked = problem(Counting(slope()), x, Linear(slope())(x).argmax(1))
    for n in (1, 2, 3, 7, 30):
        rows.clear()
        signs, radius = fp.attacks.RayS(n_queries=n).search(asked, quiet)
        assert rows == [3] * n
        found = torch.isfinite(radius)
        wrong = Linear(slope())(along(x, signs, radius.clamp_max(1.0))).argmax(1) != asked.y
        assert bool(wrong[found].all()), "a radius that is reported was seen to be wrong"
    assert bool(found.all())


def test_an_image_that_is_wrong_already_stays_where_it_is_and_stays_wrong():
    x = 0.4 + 0.2 * images(4)
    y = 1 - Linear(slope())(x).argmax(1)
    result = fp.attacks.RayS(n_queries=50, eps=0.1)(Linear(slope()), x, y)
    assert not result.robust_correct.any()
    assert float(result.distance.max()) < 0.1


class Coin(nn.Module):
    """Draws from torch's generator: wrong with a probability that grows with the mean of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, u: Tensor) -> Tensor:
        wrong = torch.rand(len(u)) < u.flatten(1).mean(1)
        return F.one_hot(wrong.long(), 2).float()


def test_a_majority_of_draws_is_a_decision_and_random_targets_are_left_at_eps():
    x = torch.full((2, *SHAPE), 0.3)
    asked = problem(Coin(), x)
    assert asked.target.is_random
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        signs, radius = fp.attacks.RayS(n_queries=30, eot_iter=301, tolerance=0.02).search(asked, quiet)
        result = fp.attacks.RayS(n_queries=60, eot_iter=41, eps=0.3, eval_draws=200)(Coin(), x, asked.y)
    # With all signs up the mean passes 1/2 at 0.2; a turned value or two may have been lucky once.
    assert torch.allclose(radius, torch.full_like(radius, 0.2), atol=0.04)
    assert float(signs.flatten(1).mean(1).min()) > 0.8
    assert torch.allclose(result.distance, torch.full_like(result.distance, 0.3), atol=1e-6)
    assert result.robust_accuracy.estimate < result.clean_accuracy.estimate - 0.1


def test_a_lucky_radius_is_measured_again():
    # Five lies make a radius of 1/16; a ray whose way out is 0.2 never passes a check there.
    ray = Ray(torch.ones(8), 0.01, True, seed=0, name=0)
    steps, lies = ray.questions(), 5
    _, at = next(steps)
    for _ in range(400):
        lies -= 1
        _, at = steps.send(at > 0.2 or lies > 0)
    assert 0.2 < ray.radius < 0.22
    certain = Ray(torch.ones(8), 0.01, False, seed=0, name=0)
    steps, lies = certain.questions(), 5
    _, at = next(steps)
    for _ in range(400):
        lies -= 1
        _, at = steps.send(at > 0.2 or lies > 0)
    assert certain.radius < 0.2


def test_blocks_halve_down_to_single_values_and_later_rounds_cut_otherwise():
    for size in (1, 5, 8):
        levels = math.ceil(math.log2(size)) + 1
        expected = sum(min(2**level, size) for level in range(levels))
        rounds = []
        for seed in (0, 1):
            blocks = Ray(torch.ones(size), 0.01, False, seed, name=3).blocks()
            rounds.append([[next(blocks).tolist() for _ in range(expected)] for _ in range(3)])
        for first, *_ in rounds:
            assert first[0] == list(range(size))
            assert first[-size:] == [[i] for i in range(size)]
            assert first == rounds[0][0], "the published order has no chance in it"
        for cut in rounds[0]:
            assert sorted(cut[0]) == list(range(size))
            assert sorted(i for block in cut[-size:] for i in block) == list(range(size))
        if size == 8:
            assert rounds[0][1] != rounds[0][0]
            assert rounds[0][1] != rounds[0][2]
            assert rounds[0][1] != rounds[1][1]


@pytest.mark.parametrize(
    ("run", "drop"),
    [
        (fp.attacks.SPSA(eps=0.15, n_iter=40, n_directions=30, eval_draws=20), 0.35),
        (fp.attacks.SPSA(norm="L2", eps=0.8, n_iter=40, n_directions=30, eval_draws=20), 0.35),
        (fp.attacks.RayS(eps=0.15, n_queries=300, eot_iter=9, eval_draws=20), 0.2),
    ],
    ids=["spsa-linf", "spsa-l2", "rays"],
)
@pytest.mark.parametrize("classes", [2, 5])
def test_a_defence_without_any_gradient_is_attacked(run, drop, classes):
    defense = scaling_defense(Decides(Pixels(classes)), 0.0)
    x = images(8)
    y = Pixels(classes)(x).argmax(1)
    with pytest.raises(ValueError, match=r"attack without gradients \(SPSA, RayS, Square\)"):
        fp.attacks.PGD(n_iter=1)(defense, x, y)
    result = run(defense, x, y)
    assert result.robust_accuracy.estimate < result.clean_accuracy.estimate - drop
    again = run(defense, x[5:6], y[5:6], sample_ids=[5])
    assert torch.equal(again.x_adv[0], result.x_adv[5])


def test_what_does_not_exist_is_refused_with_what_does():
    with pytest.raises(ValueError, match=r"`norm` must be 'Linf' or 'L2' for SPSA, got 'L1'\. Use square"):
        fp.attacks.SPSA(norm="L1", eps=5.0)
    with pytest.raises(
        ValueError, match=r"`norm` must be 'Linf' for RayS, got 'L2'\. Use square or spsa in L2"
    ):
        fp.attacks.RayS(norm="L2", eps=0.5)
    with pytest.raises(ValueError, match=r"`delta` must be at most 0\.5"):
        fp.attacks.SPSA(delta=0.6)
    with pytest.raises(ValueError, match="`n_queries` must be an integer >= 1"):
        fp.attacks.RayS(n_queries=0)
    with pytest.raises(ValueError, match=r"dlr needs 3.*Use loss='ce' or loss='margin'"):
        fp.attacks.SPSA(loss="dlr", n_iter=1)(Pixels(2), images(1), torch.tensor([0]))


def test_what_is_spent_is_said():
    spsa = fp.attacks.SPSA(n_iter=7, n_directions=3, eot_iter=2)
    assert (spsa.iterations(), spsa.eot()) == (7, 12)
    assert (spsa.effort(10).queries, spsa.effort(10).draws, spsa.effort(10).steps) == (42, 6, 0)
    rays = fp.attacks.RayS(n_queries=70, eot_iter=3)
    assert (rays.iterations(), rays.eot(), rays.effort(10).queries, rays.effort(10).draws) == (70, 3, 70, 3)
    few = rays(Pixels(), images(12), Pixels()(images(12)).argmax(1))
    assert [alarm for alarm in few.warnings if alarm.name == "queries"]
