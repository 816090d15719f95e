"""`Adaptive`: pays what it says, is not fooled by luck or by masked gradients, and says why it ended."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from pyautoattack import AutoAttack as PublishedAutoAttack
from torch import nn

import fastpure as fp
from fastpure.attacks import PGD, Adaptive, Ensemble
from fastpure.attacks.adaptive_stages import FEWEST_DRAWS, MOST_DRAWS, _adapted
from fastpure.attacks.adaptive_tour import least
from fastpure.attacks.apgd import random_point
from fastpure.attacks.base import Problem
from fastpure.attacks.gradient import attack_logits
from fastpure.attacks.relatives import Relative, calmer, meet, relatives
from fastpure.data import load_dataset
from fastpure.methods import Method
from fastpure.purify import look_through
from fastpure.schedule import StepTable
from fastpure.schedule.table import Row
from tests.attacks.toys import SHAPE, Meter, Pixels, images, mixture_defense
from tests.methods.small import SMALL, denoiser
from tests.reverse import toys

BROKEN = "every image is broken on all choosing draws"
SPENT = "the budget is spent, or pays no further stage"
ENOUGH = "another stage would not move the accuracy by more than the verdict's draws leave uncertain"


def problem(defense, x, y) -> Problem:
    ids = torch.arange(len(x))
    return Problem(look_through(defense).probed(x, ids), x, y, ids)


def guided(classifier: nn.Module, **settings) -> fp.Defense:
    return mixture_defense(classifier, fp.methods.coup(classifier, t=0.1, dt=0.02, **settings))


# What it spends


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
@pytest.mark.parametrize("eps", [0.01, 0.1])
@pytest.mark.parametrize(
    "make",
    [
        lambda: mixture_defense(Pixels()),
        lambda: guided(Pixels(), scale=2.0),
        lambda: mixture_defense(Pixels(), fp.methods.gdmp(t=0.004, rounds=2)),
        lambda: mixture_defense(Pixels(), fp.methods.dps(t=0.1, n_steps=4)),
        lambda: mixture_defense(Pixels(), fp.methods.likelihood_max(n_iter=2)),
    ],
    ids=["diffpure", "coup", "gdmp", "dps", "likelihood"],
)
def test_what_it_says_it_spent_is_what_the_networks_were_asked(monkeypatch, make, norm, eps):
    defense, x, ids = make(), images(6), torch.tensor([3, 8, 1, 900, 4, 77])
    y = defense.predict(x)
    meter = Meter(monkeypatch, defense)
    radius = eps * {"Linf": 1.0, "L2": 3.0, "L1": 10.0}[norm]
    result = Adaptive(norm=norm, eps=radius, budget=60, eval_draws=2)(defense, x, y, sample_ids=ids)
    assert torch.allclose(result.spent, meter.of(ids), rtol=0, atol=1e-9)
    assert float(result.spent.mean()) <= 60 + 1e-9
    assert result.stopped in (BROKEN, SPENT, ENOUGH)
    if result.stopped == SPENT:
        assert float(result.spent.mean()) > 30, "a budget is there to be used"
    assert float(result.distance.max()) <= radius


@pytest.mark.parametrize("budget", [12, 20, 33.3, 60, 150])
def test_a_module_that_purifies_nothing_is_charged_by_its_own_passes(budget):
    class Metered(Pixels):
        asked = 0.0

        def forward(self, u):
            type(self).asked += (1.0 if u.requires_grad and torch.is_grad_enabled() else 0.5) * len(u)
            return super().forward(u)

    x = images(6)
    y = Pixels()(x).argmax(1)
    attack = Adaptive(eps=0.03, budget=budget)
    asked, target = problem(Metered(), x, y), Metered
    target.asked = 0.0
    proposal = attack.propose(asked, lambda i, loss: None)
    assert float(proposal.spent.sum()) == pytest.approx(target.asked)
    assert float(proposal.spent.mean()) <= budget + 1e-9


def test_the_way_is_recorded_by_what_it_cost():
    x = images(4)
    proposal = Adaptive(eps=0.05, budget=80).propose(
        problem(mixture_defense(Pixels()), x, Pixels()(x).argmax(1)), lambda i, loss: None
    )
    assert proposal.correct.shape == proposal.spent_at.shape == proposal.losses.shape
    known = ~proposal.correct.isnan()
    assert torch.equal(known, ~proposal.spent_at.isnan())
    assert ((proposal.correct[known] >= 0) & (proposal.correct[known] <= 1)).all()
    for i in range(4):
        own = proposal.spent_at[known[:, i], i]
        assert (own.diff() > 0).all()
        assert float(own[-1]) <= float(proposal.spent[i]) + 1e-4


# Luck decides nothing


class Coin(nn.Module):
    """Right with probability 0.7 whatever the image is, by noise that each image meets otherwise."""

    RATE = 0.7

    def forward(self, u):
        phase = 1e3 * (u.flatten(1) * torch.linspace(0.2, 1.0, u[0].numel())).sum(1)
        return torch.stack([phase.sin() + math.sin((self.RATE - 0.5) * math.pi), 0.0 * phase], 1)


def coins() -> fp.Defense:
    noise = Method("noise", (), StepTable((Row(1.0, d=0.5),)))
    return mixture_defense(Coin().eval(), noise)


def test_the_verdict_on_coin_flips_is_the_coins_rate_and_the_luckiest_look_is_not():
    x, y = images(150, seed=4), torch.zeros(150, dtype=torch.int64)
    attack = Adaptive(eps=0.3, budget=150, eval_draws=20)
    looks = attack.propose(problem(coins(), x, y), lambda i, loss: None).correct
    result = attack(coins(), x, y)
    error = math.sqrt(Coin.RATE * (1 - Coin.RATE) / (150 * 20))
    assert abs(result.robust_accuracy.estimate - Coin.RATE) < 3.5 * error
    assert abs(result.clean_accuracy.estimate - Coin.RATE) < 3.5 * error
    best = float(looks.nan_to_num(1.0).amin(0).mean())
    assert best < Coin.RATE - 0.05, "who reports the minimum of the looks reports luck"


# Masks


class Ripples(nn.Module):
    """Guides next to nowhere, but whichever way that is changes with every last bit of the image."""

    def forward(self, u):
        v = u.flatten(1)
        waves = torch.sin(400.0 * v).sum(1) * 1e-3
        return torch.stack([waves, -waves, 0.0 * waves], 1)


def test_a_gradient_masked_by_guidance_does_not_save_a_defence():
    method = fp.methods.coup(Ripples().eval(), t=0.1, dt=0.02, scale=20.0)
    defense, x = mixture_defense(Pixels(), method), images(12)
    y = defense.predict(x)
    settings = {"eps": 0.12, "eval_draws": 8}
    found = {
        mode: PGD(gradient=mode, n_iter=15, eot_iter=4, **settings)(defense, x, y).robust_accuracy.estimate
        for mode in ("exact", "unguided")
    }
    adaptive = Adaptive(budget=80, **settings)(defense, x, y).robust_accuracy.estimate
    assert found["exact"] > found["unguided"] + 0.3, "or nothing is masked here"
    assert adaptive <= found["unguided"] + 0.1


def test_relatives_that_mislead_do_not_take_what_a_refinement_needs(monkeypatch):
    # A small budget, many classes, nothing calmer: what one search has left pays some searches more, or a refinement.
    method = fp.methods.coup_unguided(t=0.1, dt=0.025)
    defense, x = mixture_defense(Pixels(10), method), images(24)
    y = defense.predict(x)
    other = mixture_defense(Pixels(10, seed=5), method)
    misleading = Relative("of another classifier", problem(other, x, y).target, 0.25)
    monkeypatch.setattr("fastpure.attacks.adaptive_tour.relatives", lambda target: (misleading,))
    monkeypatch.setattr("fastpure.attacks.adaptive_tour.calmer", lambda target: None)
    settings = {"eps": 0.12, "eval_draws": 8}
    plain = PGD(n_iter=20, eot_iter=1, **settings)(defense, x, y).robust_accuracy.estimate
    found = Adaptive(budget=41, **settings)(defense, x, y)
    assert not found.agreement.isnan().all(), "the defence itself was never differentiated"
    assert found.robust_accuracy.estimate <= plain + 0.1


# Why it ends


def test_it_ends_when_every_image_is_broken_and_says_so():
    x = images(6)
    result = Adaptive(eps=0.5, budget=400)(mixture_defense(Pixels()), x, Pixels()(x).argmax(1))
    assert result.stopped == BROKEN
    assert float(result.spent.mean()) < 200
    assert result.robust_accuracy.estimate < 0.1
    assert BROKEN in str(result)


def test_it_ends_when_the_budget_is_spent_and_says_so():
    x = images(6)
    result = Adaptive(eps=0.02, budget=30)(mixture_defense(Pixels()), x, Pixels()(x).argmax(1))
    assert result.stopped == SPENT
    assert float(result.spent.mean()) <= 30


def test_it_ends_when_more_would_not_matter_and_says_so():
    x, y = images(100), torch.zeros(100, dtype=torch.int64)
    result = Adaptive(eps=0.05, budget=2000, eval_draws=4)(coins(), x, y)
    assert result.stopped == ENOUGH
    assert float(result.spent.mean()) < 1000


def test_what_is_settled_leaves_its_budget_to_the_others():
    # Half of the images are labelled wrong: broken from the start.
    x = images(8)
    y = Pixels()(x).argmax(1)
    y[::2] = (y[::2] + 1) % 5
    result = Adaptive(eps=0.01, budget=60)(Pixels(), x, y)
    assert float(result.spent[::2].max()) < float(result.spent[1::2].min())
    assert float(result.spent[1::2].mean()) > 60
    assert float(result.spent.mean()) <= 60 + 1e-9


# What it refuses


def test_a_budget_that_pays_nothing_names_the_least_that_works():
    with pytest.raises(ValueError, match="`budget` must be at least 10 gradients per image"):
        Adaptive(budget=9.9)
    with pytest.raises(ValueError, match="`budget`"):
        Adaptive(budget=-1)
    x, y = images(2), torch.tensor([0, 1])
    for defense, words in ((Pixels(), "11.5"), (coins(), "48")):
        labels = y % 2
        with pytest.raises(
            ValueError, match=f"`budget` must be at least {words} gradients per image"
        ) as said:
            Adaptive(budget=11)(defense, x, labels)
        named = float(str(said.value).split("at least ")[1].split()[0])
        assert Adaptive(budget=named)(defense, x, labels).stopped in (SPENT, BROKEN)


@pytest.mark.parametrize("n_calls", [1, 3, 7])
def test_the_least_that_is_named_can_be_given(n_calls):
    t = 0.02 * n_calls
    defense = mixture_defense(Pixels(), fp.methods.diffpure(t=t, dt=0.02))
    x, y = images(2), torch.tensor([0, 1])
    needed = least(problem(defense, x, y))
    try:
        found = Adaptive(budget=10)(defense, x, y)
    except ValueError as error:
        named = float(str(error).split("at least ")[1].split()[0])
        assert needed <= named < needed + 0.011
        found = Adaptive(budget=named)(defense, x, y)
    assert found.spent is not None


@pytest.mark.parametrize("classes", [2, 3, 4])
@pytest.mark.parametrize("random", [True, False])
def test_few_classes_suffice(classes, random):
    classifier = Pixels(classes)
    defense = mixture_defense(classifier) if random else classifier
    x = images(5)
    result = Adaptive(eps=0.4, budget=60)(defense, x, classifier(x).argmax(1))
    assert result.robust_accuracy.estimate < 0.3


def test_a_defence_without_gradient_is_told_what_to_use():
    class Decides(Pixels):
        def forward(self, u):
            return torch.nn.functional.one_hot(super().forward(u).argmax(1), 5).float()

    for defense in (Decides(), mixture_defense(Decides())):
        with pytest.raises(ValueError, match=r"`defense` must be differentiable.*\(SPSA, RayS, Square\)"):
            Adaptive(budget=60)(defense, images(2), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", SMALL)
def test_every_method_has_relatives_that_answer(name):
    method = SMALL[name]()
    defense = fp.Defense(fp.Purifier(denoiser(method, torch.float32), method), toys.toy_classifier())
    x = torch.rand(2, *toys.SHAPE, generator=torch.Generator().manual_seed(0))
    target, ids = look_through(defense.float()), torch.arange(2)
    found = relatives(target)
    assert found
    assert [one.cost for one in found] == sorted(one.cost for one in found)
    for one in found:
        assert 0 < one.cost <= 1
        assert one.cost == pytest.approx(one.target.network_calls / target.network_calls)
        logits = one.target.logits(x, ids, ids, fp.attacks.gradient.Domain.ATTACK)
        assert torch.isfinite(logits).all()
    assert Adaptive(eps=0.1, budget=60)(defense, x, torch.tensor([0, 1])).spent.mean() <= 60


# Strength


@pytest.mark.parametrize(
    ("norm", "eps"), [("Linf", 0.05), ("Linf", 0.07), ("L2", 0.25)], ids=["small", "larger", "L2"]
)
def test_on_a_deterministic_model_it_is_not_weaker_than_the_published_ensemble(norm, eps):
    x = images(40, seed=8)
    y = Pixels()(x).argmax(1)
    ours = Adaptive(norm=norm, eps=eps)(Pixels(), x, y)
    theirs = published(Pixels(), x, y, norm, eps)
    assert 0 < theirs < 40
    assert int(ours.robust_correct.sum()) <= theirs


def test_on_the_bundled_classifier_it_is_not_weaker_than_the_published_ensemble():
    classifier, data = fp.load_classifier("digits"), load_dataset("digits", n=24)
    x, y = data.images, data.labels
    ours = Adaptive(eps=0.06)(classifier, x, y)
    theirs = published(classifier, x, y, "Linf", 0.06)
    assert 0 < theirs < 24
    assert int(ours.robust_correct.sum()) <= theirs


def published(model, x, y, norm, eps) -> int:
    """How many images the package's standard ensemble leaves, with a shorter random search."""
    ensemble = PublishedAutoAttack(model, norm=norm, eps=eps, version="standard", seed=0)
    ensemble.logger.setLevel(logging.CRITICAL)
    ensemble.square.n_queries = 200
    others = int(model(x[:1]).shape[1]) - 1
    ensemble.apgd_targeted.n_target_classes = ensemble.fab.n_target_classes = min(others, 9)
    with torch.random.fork_rng(devices=[]):
        found = ensemble.run_standard_evaluation(x, y)
    found = found[0] if isinstance(found, tuple) else found
    with torch.no_grad():
        return int((model(found).argmax(1) == y).sum())


def test_draws_follow_the_agreement_of_their_halves():
    agreement = torch.tensor([0.2, 0.5, 0.7, 0.9, 0.95, float("nan"), -0.3], dtype=torch.float64)
    assert _adapted(8, agreement).tolist() == [16, 8, 8, 8, 4, 8, 16]
    assert _adapted(MOST_DRAWS, agreement).tolist() == [32, 32, 32, 32, 16, 32, 32]
    assert _adapted(FEWEST_DRAWS, agreement).tolist() == [4, 2, 2, 2, 2, 2, 4]
    assert _adapted(1, agreement).tolist() == [1] * 7, "nothing is random, and nothing is averaged"


def test_it_joins_an_ensemble_whose_images_then_share_a_budget_too():
    members = (Adaptive(eps=0.1, budget=40), PGD(eps=0.1, n_iter=3, eot_iter=2))
    joint = Ensemble(members)
    assert (joint.norm, joint.eps, joint.shares) == ("Linf", 0.1, True)
    assert not Ensemble(members[1:]).shares
    x = images(3)
    result = joint(mixture_defense(Pixels()), x, Pixels()(x).argmax(1))
    assert float(result.distance.max()) <= 0.1


def test_guidance_that_cannot_be_left_out_is_noted():
    class Held(fp.Defense):
        pass

    classifier = toys.toy_classifier(torch.float32)
    coup = fp.methods.coup(classifier, t=0.1, dt=0.02)
    by_hand = Method(coup.name, (), coup.steps, coup.guidance)
    defense = Held(fp.Purifier(toys.toy_denoiser(torch.float32), by_hand), classifier)
    x = torch.rand(2, *toys.SHAPE, generator=torch.Generator().manual_seed(0))
    result = Adaptive(eps=0.1, budget=60)(defense, x, torch.tensor([0, 1]))
    assert [note for note in result.notes if "the gradient mode detached is left out" in note]
    assert not [note for note in result.notes if "unguided" in note]


def test_the_images_lie_in_the_box():
    x = (images(4) > 0.5).float()
    for norm, eps in (("Linf", 0.3), ("L2", 1.0), ("L1", 3.0)):
        result = Adaptive(norm=norm, eps=eps, budget=40)(
            mixture_defense(Pixels()), x, torch.tensor([0, 1, 2, 3])
        )
        assert result.x_adv.shape == (4, *SHAPE)
        assert 0 <= float(result.x_adv.min()) <= float(result.x_adv.max()) <= 1
        assert float(result.distance.max()) <= eps


def test_held_noise_makes_it_deterministic():
    defense, x = mixture_defense(Pixels()), images(6)
    with defense.fixed(3):
        y = defense(x).argmax(1)
        run = Adaptive(eps=0.03, budget=60)
        result = run(defense, x, y)
        assert torch.equal(result.x_adv, run(defense, x, y).x_adv)
    assert result.robust_correct.shape == (6, 1)
    assert 0 < result.robust_accuracy.estimate < result.clean_accuracy.estimate
    assert result.stopped in (SPENT, BROKEN)
    assert float(result.spent.mean()) <= 60


def test_a_module_that_draws_its_own_noise_is_attacked_and_charged():
    class Restless(Pixels):
        def forward(self, u):
            return super().forward(u + 0.05 * torch.randn_like(u))

    x = images(6)
    result = Adaptive(eps=0.3, budget=100)(Restless(), x, Pixels()(x).argmax(1))
    assert result.robust_accuracy.estimate < 0.2
    assert 0 < float(result.spent.mean()) <= 100


def test_seeds_share_no_starts(monkeypatch):
    # The next seed must not begin where this one began one search earlier.
    starts: list[torch.Tensor] = []

    def spy(*arguments):
        starts.append(random_point(*arguments))
        return starts[-1]

    monkeypatch.setattr("fastpure.attacks.adaptive_stages.random_point", spy)
    x, y = images(1), Pixels()(images(1)).argmax(1)
    for seed in (0, 1, 2**64 - 1):
        Adaptive(eps=0.01, budget=150, seed=seed)(Pixels(), x, y)
    assert len(starts) >= 6
    assert len({tuple(start.flatten().tolist()) for start in starts}) == len(starts)


class Linear:
    """A target whose logits are linear, plus noise of the draw; its cross entropy pulls along ``weights``."""

    def __init__(self, weights, noise=0.0):
        self.weights, self.noise, self.asked = weights, noise, []

    def logits(self, x, ids, draws, domain):
        self.asked += draws.tolist()
        shifts = torch.stack(
            [torch.randn(4, generator=torch.Generator().manual_seed(d)) for d in draws.tolist()]
        )
        return x.flatten(1) @ self.weights.T + self.noise * (x.flatten(1) * shifts).sum(1, keepdim=True) * (
            torch.tensor([1.0, -1.0])
        )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_relatives_are_met_even_where_all_are_against_the_defence(sign):
    x, y, ids = torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64), torch.arange(3)
    weights = torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]])
    near, far = weights * sign, torch.tensor([[4.0, -3.0, 2.0, -1.0], [0.0, 0.0, 0.0, 0.0]]) * sign
    found = tuple(
        Relative(name, Linear(w), 0.1) for name, w in (("far", far), ("near", near), ("near too", near))
    )
    charged = []
    own, calm = Linear(weights, 3.0), Relative("calm", Linear(weights), 0.5)
    groups, kept = meet(
        Problem(own, x, y, ids), found, calm, (attack_logits(own), 1.0), None, (100, 2), 8, charged.append
    )
    names = [[one.name for one in group] for group in groups]
    assert sorted(name for group in names for name in group) == ["far", "near", "near too"]
    assert names[0] == (["near", "near too"] if sign > 0 else ["far"])
    assert sum(charged) == pytest.approx(2 * 1.0 + 3 * 0.1 + 2 * 0.5)
    # What is calmer must not be compared under the noise that the defence was asked under.
    assert not set(calm.target.asked) & set(own.asked)
    assert kept is calm


SAME, OTHER, FAR = [1.0, 2.0, 3.0, 4.0], [4.0, 3.0, 2.0, 1.0], [4.0, -3.0, 2.0, -1.0]


def met(noise, known, calm, calm_noise, guided=None):
    """Whether ``calm`` is kept, and what was paid: weights of the relative, of the calm one, and under guidance."""
    x, y, ids = torch.rand(64, 1, 2, 2), torch.zeros(64, dtype=torch.int64), torch.arange(64)

    def linear(weights, noise=0.0):
        return Linear(torch.tensor([weights, [0.0] * 4]), noise)

    own, charged = linear(SAME, noise), []
    one, candidate = Relative("one", linear(known), 0.1), Relative("calm", linear(calm, calm_noise), 0.25)
    _, kept = meet(
        Problem(own, x, y, ids),
        (one,),
        candidate,
        (attack_logits(own), 1.0),
        None if guided is None else attack_logits(linear(guided, noise)),
        (0, 2),
        64,
        charged.append,
    )
    return kept is candidate, sum(charged)


def test_what_is_calmer_is_kept_where_it_knows_more_than_draws_of_the_defence():
    assert met(3.0, SAME, SAME, 0.5)[0]  # though the other one is calmer still
    assert not met(0.0, FAR, SAME, 0.5)[0]  # a defence without noise
    assert not met(0.5, OTHER, FAR, 0.0)[0]


def test_where_guidance_turns_the_gradient_knowing_more_than_the_others_is_enough():
    spent = met(0.0, FAR, SAME, 0.5)[1]
    assert met(0.0, FAR, SAME, 0.5, guided=FAR) == (True, pytest.approx(spent + 1.0))
    assert met(0.0, FAR, SAME, 0.5, guided=SAME) == (False, pytest.approx(spent + 1.0))
    # Not asked where the answer is known.
    assert met(0.0, SAME, SAME, 0.5, guided=FAR) == (False, pytest.approx(spent))
    assert met(3.0, SAME, SAME, 0.5, guided=FAR) == (True, pytest.approx(spent))


def test_the_calmer_relative_is_offered_against_defences_that_do_not_diffuse():
    for method in (fp.methods.diffpure(0.1, 0.02), fp.methods.coup_unguided(0.1, 0.02)):
        defense, x = mixture_defense(Pixels(), method), images(2)
        found = calmer(problem(defense, x, Pixels()(x).argmax(1)).target)
        assert found is not None
        assert found.cost == pytest.approx(0.2)
        assert any(row.forward for row in found.target.method.steps.rows)
    single = mixture_defense(Pixels(), fp.methods.coup_unguided(0.1, 0.1))
    assert calmer(problem(single, x, Pixels()(x).argmax(1)).target) is None
