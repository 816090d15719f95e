"""Weak attacks raise alarms, each on a defence made for it, and an adequate one raises none."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.attacks import AttackResult, weakness
from fastpure.attacks.gradient import attack_logits, objective, query
from fastpure.attacks.losses import cross_entropy
from fastpure.attacks.weakness import Effort, chance, few_draws, few_images, gradient_draws, still_rising
from fastpure.data import load_dataset
from fastpure.intervals import wilson
from fastpure.purify import look_through
from tests.attacks.toys import Pixels, images, mixture_defense

PGD = fp.attacks.PGD
IDS = torch.arange(6)
Y = torch.tensor([0, 1, 2, 3, 4, 0])


def alarms(result: AttackResult) -> set[str]:
    return {warning.name for warning in result.warnings}


def test_an_adequate_attack_raises_no_alarm():
    x = images(110)
    defense = mixture_defense(Pixels(), fp.methods.diffpure(t=0.1, dt=0.025, solver="exponential"))
    y = torch.stack([defense(x, range(110), draw) for draw in range(8)]).mean(0).argmax(1)
    result = PGD(eps=0.01, n_iter=40, eot_iter=16)(defense, x, y)
    assert not result.warnings, "\n".join(map(str, result.findings))
    assert "WARNING" not in str(result)
    checked = {finding.name for finding in result.findings}
    assert checked >= {
        "draws per gradient",
        "evaluation draws",
        "images",
        "last noise",
        "unfinished",
        "chance",
    }


@pytest.mark.slow
def test_an_adequate_attack_on_the_bundled_digits_raises_no_alarm():
    data = load_dataset("digits").subset(40, 0)
    classifier = fp.load_classifier("digits")
    purifier = fp.Purifier(
        fp.load_denoiser("digits"), fp.methods.diffpure(t=0.1, dt=0.05, solver="exponential")
    )
    attack, defense = PGD(eps=0.05, n_iter=40, eot_iter=16), fp.Defense(purifier, classifier)
    result = attack(defense, data.images, data.labels, sample_ids=data.sample_ids)
    assert not result.warnings, str(result)


@pytest.mark.parametrize("n_iter", [1, 2, 3, 9])
def test_too_few_iterations_are_an_alarm(n_iter):
    x = images(6)
    y = Pixels()(x).argmax(1)
    result = PGD(eps=0.001, n_iter=n_iter)(Pixels(), x, y)
    assert "iterations" in alarms(result)
    few = "1 iteration is" if n_iter == 1 else f"{n_iter} iterations are"
    assert f"WARNING  iterations: {few} too few to tell" in str(result)
    assert "iterations" not in alarms(PGD(eps=0.001, n_iter=10)(Pixels(), x, y))


def test_few_iterations_that_broke_everything_are_enough():
    x = images(6)
    result = PGD(eps=0.9, n_iter=2)(Pixels(), x, (Pixels()(x).argmax(1)))
    assert float(result.robust_accuracy.estimate) == 0.0
    assert "iterations" not in alarms(result)


def test_iterations_are_those_of_one_start_not_of_all_members_together():
    x = images(6)
    y = Pixels()(x).argmax(1)
    many = fp.attacks.APGDT(eps=0.001, n_iter=3, n_restarts=5)(Pixels(), x, y)
    assert len(many.losses) >= 10
    assert "iterations" in alarms(many)
    ensemble = fp.attacks.AutoAttack(eps=0.001, version="custom", attacks=("apgd-ce", "apgd-t"), n_iter=3)
    assert "iterations" in alarms(ensemble(Pixels(), x, y))


def test_an_attack_of_the_users_own_is_judged_by_what_it_recorded():
    class Own(fp.attacks.Attack):
        """Says nothing of its effort."""

        eval_draws, batch_size, budget = 2, 8, fp.attacks.Budget("Linf", 0.1)

        def propose(self, problem, tick):
            return PGD(n_iter=4, eps=1e-4).propose(problem, tick)

    x = images(6)
    assert "iterations" in alarms(Own()(Pixels(), x, Pixels()(x).argmax(1)))


def test_few_queries_of_a_black_box_attack_are_an_alarm():
    robust = np.ones(50)
    assert still_rising(np.zeros((50, 0)), robust, Effort(queries=100)).name == "queries"
    assert still_rising(np.zeros((50, 0)), robust, Effort(queries=100)).alarm
    assert not still_rising(np.zeros((50, 0)), robust, Effort(queries=5000)).alarm


def test_one_draw_per_gradient_of_a_random_defence_is_an_alarm():
    x = images(6)
    one = PGD(eps=0.001, n_iter=10, eot_iter=1)
    assert "draws per gradient" in alarms(one(mixture_defense(Pixels()), x, Y))
    assert "draws per gradient" not in alarms(one(Pixels(), x, Y)), "nothing is random"
    with mixture_defense(Pixels()).fixed() as held:
        assert "draws per gradient" not in alarms(one(held, x, Y)), "the noise is known"
    known = fp.attacks.DWPGD(eps=0.001, n_iter=10, eot_iter=1)
    assert "draws per gradient" not in alarms(known(mixture_defense(Pixels()), x, Y))


@pytest.mark.parametrize("noise", [1.0, 50.0])
def test_agreement_is_the_cosine_of_two_halves(noise):
    """A gradient m plus noise of known size: the mean cosine is near |m|^2 / (|m|^2 + v)."""
    n, size, draws = 200, 400, 8

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, slope):
            ctx.slope = slope
            return (x * slope).flatten(1).sum(1)

        @staticmethod
        def backward(ctx, v):
            return v.view(-1, 1, 1, 1) * ctx.slope, None

    def goal(x, labels, ids, draw):
        generator = torch.Generator().manual_seed(0)
        all_noise = torch.randn(n, draws, 1, 20, 20, generator=generator)
        slope = 1.0 + noise * all_noise[ids, draw]
        return Linear.apply(x, slope), torch.zeros(len(x), 2)

    found = query(goal, torch.zeros(n, 1, 20, 20), torch.zeros(n).long(), torch.arange(n), range(draws), 64)
    half = noise**2 * size / (draws // 2)
    assert float(found.agreement.mean()) == pytest.approx(size / (size + half), abs=0.02)


def test_agreement_of_a_saturated_classifier_is_still_a_number():
    target = look_through(mixture_defense(Scale(Pixels(), 1e-25))).probed(images(1), IDS[:1])
    goal = objective(attack_logits(target), cross_entropy)
    found = query(goal, images(6), Y, IDS, range(4), 64)
    assert bool(torch.isfinite(found.agreement).all())
    assert bool(query(goal, images(6), Y, IDS, range(1), 64).agreement.isnan().all())


class Scale(torch.nn.Module):
    def __init__(self, inner, factor):
        super().__init__()
        self.inner, self.factor, self.training = inner, factor, False

    def forward(self, u):
        return self.factor * self.inner(u)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(n_iter=2, eot_iter=3, eval_draws=2),
        fp.attacks.APGDCE(n_iter=2, eot_iter=3, n_restarts=2, eval_draws=2),
        fp.attacks.APGDCE(norm="L1", eps=1.0, n_iter=4, eot_iter=2, eval_draws=2),
        fp.attacks.AutoAttack(n_iter=2, version="rand", eot_iter=2, eval_draws=2, decision_draws=2),
        fp.attacks.DiffAttack(n_iter=2, eot_iter=2, eval_draws=2),
        fp.attacks.StAdv(n_iter=2, eot_iter=2, eval_draws=2),
        fp.attacks.DWPGD(n_iter=2, eot_iter=2, eval_draws=2, variant="xi"),
    ],
    ids=lambda a: f"{type(a).__name__}-{getattr(a, 'norm', '')}",
)
def test_every_gradient_attack_records_it_for_every_image_alone_as_in_a_batch(attack):
    x, defense = images(6), mixture_defense(Pixels())
    y = defense(x, IDS, 0).argmax(1)  # AutoAttack leaves images alone that are wrong anyway
    together = attack(defense, x, y, sample_ids=IDS)
    assert together.agreement is not None
    assert together.agreement.shape == (6,)
    known = ~together.agreement.isnan()
    assert bool(known.any() if isinstance(attack, fp.attacks.AutoAttack) else known.all())
    assert bool((together.agreement[known].abs() <= 1).all())
    alone = attack(defense, x[3:4], y[3:4], sample_ids=IDS[3:4])
    assert torch.allclose(alone.agreement, together.agreement[3:4], equal_nan=True)


def test_gradients_that_are_noise_are_an_alarm():
    robust = np.array([1.0, 1.0, 0.0])
    effort = Effort(steps=20, draws=4)
    noise = gradient_draws(effort, True, np.array([0.1, 0.2, 0.9]), robust)
    assert noise.alarm
    assert noise.value == pytest.approx(0.15), "broken images need no better gradient"
    assert not gradient_draws(effort, True, np.array([0.7, 0.6, 0.0]), robust).alarm
    assert not gradient_draws(effort, False, np.array([0.1, 0.1, 0.1]), robust).alarm
    old = gradient_draws(effort, True, np.full(3, np.nan), robust)
    assert not old.alarm
    assert "not recorded" in str(old)
    assert gradient_draws(Effort(steps=20, draws=1), True, np.full(3, np.nan), robust).alarm


@pytest.mark.parametrize(("n_draws", "alarm"), [(1, True), (4, True), (5, False), (10, False)])
def test_few_evaluation_draws_are_an_alarm(n_draws, alarm):
    assert few_draws(n_draws, random=True).alarm == alarm
    assert not few_draws(n_draws, random=False).alarm
    assert not few_draws(max(n_draws, 2), random=True, rule="all").alarm, "they are the rule itself"
    x = images(6)
    result = PGD(eps=0.05, n_iter=10, eot_iter=2, eval_draws=n_draws)(mixture_defense(Pixels()), x, Y)
    assert ("evaluation draws" in alarms(result)) == alarm


def test_five_draws_halve_what_chance_leaves():
    """The bound behind the number: variance over draws, estimated from n, against that of the choice of images."""
    random = np.random.default_rng(0)
    for _ in range(20):
        p = random.beta(*random.uniform(0.1, 3.0, 2), size=400)
        draws = (p * (1 - p)).mean() / (weakness.MIN_DRAWS - 1)
        assert draws <= p.mean() * (1 - p.mean()) / 4 + 1e-12


@pytest.mark.parametrize("n", [8, 30, 60, 90, 200, 512])
def test_few_images_are_an_alarm(n):
    values = np.arange(n) % 2
    half = wilson(float(values.sum()), n)
    assert few_images(values).alarm == ((half.high - half.low) / 2 > 0.10)
    assert few_images(values).alarm == (n < 93)


def test_guessing_is_an_alarm_that_names_causes():
    right = np.zeros(512)
    right[:48] = 1.0  # a published CIFAR-10 network that was given the wrong range
    found = chance(right, 10)
    assert found.alarm
    for word in ("0..255", "normalisation", "order of the labels", "BGR", "fastpure doctor --classifier"):
        assert word in str(found)
    right[:150] = 1.0
    assert not chance(right, 10).alarm
    assert not chance(np.ones(1), 2).alarm, "one image that is right shows nothing either way"

    class Bytes(torch.nn.Module):
        """Wants 0..255: in [0, 1] all images look black to it."""

        def forward(self, u):
            return 1e-3 * Pixels()((u / 255).clamp(0, 1)) + torch.tensor([1.0, 0, 0, 0, 0])

    x = images(100)
    result = PGD(eps=0.01, n_iter=10)(Bytes().eval(), x, torch.arange(100) % 5)
    assert "chance" in alarms(result)


def test_noise_of_the_last_step_is_said():
    x = images(6)
    quick = PGD(eps=0.01, n_iter=1, eot_iter=1, eval_draws=1)

    def left(method):
        result = quick(mixture_defense(Pixels(), method), x, Y)
        (found,) = [f for f in result.findings if f.name == "last noise"]
        return found

    few = left(fp.methods.diffpure(t=0.1, dt=0.02))  # five steps of Euler-Maruyama
    beta = 0.1 + 0.02 * 19.9
    assert few.value == pytest.approx(math.sqrt(beta * 0.02) / 2, rel=1e-3)
    assert few.alarm
    assert "12.7 of 255" in str(few)
    published = left(fp.methods.diffpure(t=0.1, dt=1e-3))
    assert published.value == pytest.approx(0.0055, abs=1e-3)
    assert not published.alarm
    assert not left(fp.methods.diffpure(t=0.1, dt=0.02, solver="exponential")).alarm
    assert not left(fp.methods.ddpm(t=0.02)).alarm

    wrapped = torch.nn.Sequential(
        mixture_defense(Pixels(), fp.methods.diffpure(t=0.1, dt=0.02)), torch.nn.Identity()
    )
    assert "last noise" in alarms(quick(wrapped.eval(), x, Y))


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
def test_an_attack_that_helps_or_stands_still_is_said_without_an_evaluation():
    class Backwards(PGD):
        """Descends the loss it should ascend."""

        def ascend(self, problem, goal, tick):
            return super().ascend(problem, lambda *a: (-goal(*a)[0], goal(*a)[1]), tick)

    x = images(60)
    second = Pixels()(x).argsort(1)[:, -2]
    assert "easier images" in alarms(Backwards(eps=0.2, n_iter=12)(Pixels(), x, second))
    assert "easier images" not in alarms(PGD(eps=0.2, n_iter=12)(Pixels(), x, second))
    still = PGD(eps=0.1, n_iter=12, random_start=False)(Flat().eval(), x, torch.zeros(60).long())
    assert {"unmoved images", "zero gradients"} <= alarms(still)


class Flat(torch.nn.Module):
    """Always class 0, whatever comes."""

    def forward(self, u):
        return 0.0 * u.flatten(1)[:, :5] + torch.tensor([1.0, 0, 0, 0, 0])


def test_parts_join_to_the_whole():
    x, defense = images(6), mixture_defense(Pixels())
    attack = PGD(eps=0.05, n_iter=3, eot_iter=2)
    whole = attack(defense, x, Y, sample_ids=IDS)
    parts = [attack(defense, x[part], Y[part], sample_ids=IDS[part]) for part in (slice(0, 4), slice(4, 6))]
    joined = AttackResult.joined(parts)
    assert torch.allclose(joined.x_adv, whole.x_adv)
    assert joined.losses.shape == whole.losses.shape
    assert [f.name for f in joined.warnings] == [f.name for f in whole.warnings]
    assert joined.execution == whole.execution


def test_the_documented_numbers_are_those_that_decide():
    text = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text()
    rows = {row.split("|")[1].strip(): row for row in text.splitlines() if row.startswith("| ")}
    for name, number in {
        "iterations": weakness.MIN_ITERATES,
        "queries": weakness.MIN_QUERIES,
        "draws per gradient": weakness.MIN_AGREEMENT,
        "evaluation draws": weakness.MIN_DRAWS,
        "images": 100 * weakness.HALF_WIDTH_ALARM,
        "last noise": weakness.NOISE_LEFT_ALARM,
        "unfinished": 100 * weakness.RISE_ALARM,
        "zero gradients": 100 * weakness.SHARE_ALARM,
        "unmoved images": 100 * weakness.SHARE_ALARM,
        "draws": weakness.P_ALARM,
        "easier images": weakness.P_ALARM,
    }.items():
        assert re.search(rf"(?<![\d.]){number:g}(?![\d.]\d)", rows[name]), (name, number, rows[name])
