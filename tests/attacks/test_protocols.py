"""Who knows which noise and what decides: the evaluations that are wrong by construction give other numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks import DWPGD, AutoAttack
from fastpure.attacks.base import Problem
from fastpure.attacks.gradient import score
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal
from fastpure.purify import door, look_through
from tests.attacks.toys import SHAPE, SIZE, Pixels, images, mixture_defense, scaling_defense


class Waves(nn.Module):
    """Two classes by a sum of fast waves of the pixels: steep for known noise, flat on average over unknown."""

    def __init__(self, steepness: float = 15.0, bias: float = 9.0) -> None:
        super().__init__()
        self.steepness, self.bias = steepness, bias

    def forward(self, u):
        score = self.bias + torch.sin(self.steepness * u).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


class Coin(nn.Module):
    """Right on a share of the noise draws that no attack on the image can change (it looks at one noisy pixel)."""

    def forward(self, u):
        # The image has moved by at most eps = 0.001, the noise by about 0.37: only the noise matters.
        score = 20.0 * (u[:, 0, 0, 0] - 0.5) + 4.0
        zero = torch.zeros_like(score)
        return torch.stack([score, -score, zero - 50.0, zero - 60.0, zero - 70.0], 1)


def test_noise_shared_by_attack_and_evaluation_breaks_what_fresh_noise_does_not():
    defense, x = scaling_defense(Waves().eval(), 0.0, t=0.3), images(24)
    y = torch.zeros(24, dtype=torch.long)
    result = DWPGD(eps=0.15, n_iter=12)(defense, x, y)
    fresh = score(look_through(defense), result.x_adv, y, torch.arange(24), 20, 512).double().mean()
    assert result.clean_accuracy.estimate > 0.9
    assert result.robust_accuracy.estimate < 0.1, "the attacker knew the noise it was judged under"
    assert float(fresh) > 0.9, "the same images under noise the attack has not seen"


def test_one_draw_decisions_count_bad_luck_as_success():
    defense, x = scaling_defense(Coin().eval(), 0.0, t=0.3), torch.full((80, *SHAPE), 0.5)
    y = torch.zeros(80, dtype=torch.long)
    settings = {"version": "rand", "eps": 1e-3, "n_iter": 2, "eot_iter": 2, "batch_size": 4096}
    legacy, fresh = (AutoAttack(decision=name, **settings)(defense, x, y) for name in ("legacy", "fresh"))
    p = fresh.clean_accuracy.estimate
    assert 0.6 < p < 0.8
    assert fresh.robust_accuracy.estimate == pytest.approx(p, abs=0.06), "no attack works here"
    assert legacy.robust_correct.shape == (80, 1)
    # Correct once at the start and once after each of two attacks: p^3 instead of p.
    assert legacy.robust_accuracy.estimate == pytest.approx(p**3, abs=0.15)
    assert legacy.robust_accuracy.estimate < fresh.robust_accuracy.estimate - 0.2


def test_the_draws_that_choose_are_not_the_draws_that_count():
    # Minimum over candidates on the counted draws would be biased; here they are disjoint.
    seen: list[tuple[int, int]] = []
    defense = scaling_defense(Pixels(), 0.0)
    original = defense.purifier.forward

    def spy(x, sample_ids=None, draw=0, *, noise=None, domain=Domain.DEFENSE):
        if domain == Domain.EVALUATION:
            seen.extend((int(d), len(seen)) for d in torch.as_tensor(draw).unique())
        return original(x, sample_ids, draw, noise=noise, domain=domain)

    defense.purifier.forward = spy
    run = AutoAttack(version="rand", eps=0.05, n_iter=2, eot_iter=2, eval_draws=4, decision_draws=6)
    target = door(defense, images(3), torch.arange(3))
    problem = Problem(target, images(3), torch.tensor([0, 1, 2]), torch.arange(3))
    run.propose(problem, lambda i, loss: None)
    assert {draw for draw, _ in seen} == set(range(4, 10))
    seen.clear()
    run(defense, problem.x, problem.y)
    assert {draw for draw, _ in seen} == set(range(10))


def test_standard_and_rand_have_the_published_members():
    names = [type(member).__name__ for member in AutoAttack(version="standard").members()]
    assert names == ["APGDCE", "APGDT", "FAB", "Square"]
    rand = AutoAttack(version="rand").members()
    assert [type(member).__name__ for member in rand] == ["APGDCE", "APGDDLR"]
    assert {member.eot_iter for member in rand} == {20}
    assert {member.n_iter for member in rand} == {100}


def test_the_ensemble_is_at_least_as_strong_as_its_members_where_nothing_is_random():
    x = images(16, seed=4)
    y = Pixels()(x).argmax(1)
    settings = {"eps": 0.07, "n_iter": 10}
    ensemble = AutoAttack(version="custom", attacks=("apgd-ce", "apgd-t"), **settings)(Pixels(), x, y)
    for member in (fp.attacks.APGDCE(**settings), fp.attacks.APGDT(**settings)):
        assert not bool((ensemble.robust_correct & ~member(Pixels(), x, y).robust_correct).any())
    assert 0 < ensemble.robust_accuracy.estimate < 1


@pytest.mark.parametrize("part", ["forward", "reverse"])
def test_a_part_of_the_noise_is_held(part):
    defense, x, ids = mixture_defense(Pixels()), images(3), torch.tensor([7, 8, 9])
    shape, n = SHAPE, len(defense.purifier.method.table()) - 1

    def noise(draw, domain):
        keys = NoiseKeys.make(0, ids, draw, domain)
        steps = [philox_normal(keys, k + 1, Stream.REVERSE, shape) for k in range(n)]
        return philox_normal(keys, 0, Stream.FORWARD, shape), torch.stack(steps)

    held, free = noise(5, Domain.DEFENSE), noise(2, Domain.EVALUATION)
    mixed = (held[0], free[1]) if part == "forward" else (free[0], held[1])
    expected = defense.purifier(x, noise=fp.RecordedNoise(*mixed))
    with defense.fixed(draw=5, part=part):
        assert defense.fixed_draw is None, "something is still random"
        found = defense.purify(x, ids, 2, domain=Domain.EVALUATION)
        assert torch.equal(found, defense.trajectory(x, ids, 2, domain=Domain.EVALUATION)[-1])
        assert not torch.equal(defense(x), defense(x)), "the counter numbers what is random"
    assert torch.allclose(found, expected, atol=2e-6)


@pytest.mark.parametrize(("variant", "draws"), [("xi,z", 1), ("xi", 4), ("z", 4)])
def test_the_white_box_variants_are_judged_under_their_own_noise(variant, draws):
    defense, x = mixture_defense(Pixels()), images(4)
    y, ids = torch.tensor([0, 1, 2, 3]), torch.arange(4)
    run = DWPGD(eps=0.1, n_iter=2, eot_iter=2, eval_draws=4, draw=6, variant=variant)
    result = run(defense, x, y)
    assert result.robust_correct.shape == (4, draws)
    with defense.fixed(6, {"xi,z": "all", "xi": "forward", "z": "reverse"}[variant]):
        assert torch.equal(result.robust_correct, score(look_through(defense), result.x_adv, y, ids, 4, 99))
    assert defense.fixed_draw is None


def test_nothing_to_hold_is_an_error():
    undiffused = scaling_defense(Pixels(), 0.0)
    with pytest.raises(ValueError, match="`part` must be one of 'all', 'reverse' for coup_unguided"):
        DWPGD(variant="xi", n_iter=1)(undiffused, images(1), torch.tensor([0]))
    ode = mixture_defense(Pixels(), fp.methods.diffpure_ode(t=0.1, dt=0.05))
    with (
        pytest.raises(ValueError, match="`part` must be one of 'all', 'forward' for diffpure_ode"),
        ode.fixed(0, "reverse"),
    ):
        pass
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure.Defense for noise that can be held"):
        DWPGD(n_iter=1)(Pixels(), images(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="`variant` must be one of 'xi,z', 'xi', 'z'"):
        DWPGD(variant="both")


def test_wave_arithmetic():
    # What the first test rests on: the noise turns the phase by several full turns.
    row = scaling_defense(Waves().eval(), 0.0, t=0.3).purifier.method.table().rows[0]
    assert 15.0 * row.d / 2 > 2 * math.pi
    assert SIZE - 9.0 > 9.0
