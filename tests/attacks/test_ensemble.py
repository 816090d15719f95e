"""`Ensemble`: chosen on draws of its own, judged on others, so that looking often does not look like strength."""

from __future__ import annotations

import pickle

import pytest
import torch

import fastpure as fp
from fastpure.attacks import APGDCE, FAB, PGD, AutoAttack, Ensemble, StAdv, Transfer
from fastpure.attacks.base import Problem
from fastpure.evaluate.runner import Worker
from fastpure.evaluate.weakness import effort, gradient_mode
from fastpure.purify import look_through
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense, scaling_defense

N = 400
QUICK = {"batch_size": 3, "progress": False}
FRESH = fp.protocols.fresh(4)
IDS = torch.tensor([7, 3, 11, 5, 20, 1])
X = images(6)
Y = Pixels()(X).argmax(1)
DATA = fp.data.Dataset(X, Y, IDS, tuple("abcde"), "toy", "test")


class Coin(torch.nn.Module):
    """Two classes by a digit far behind the point: every image and draw flips its own coin, whatever the image."""

    def forward(self, u):
        flip = (u.double().flatten(1).sum(1) * 1e5).floor() % 2
        return torch.stack([1.0 - flip, flip], 1).float()


def coins() -> fp.Defense:
    return scaling_defense(Coin().eval(), 0.0)


def moved(x: torch.Tensor, k: int, ids: torch.Tensor | None = None, eps: float = 0.05) -> Transfer:
    """Candidates that know nothing."""
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(100 + k)) - 0.5
    found = fp.attacks.Budget("Linf", eps).project(x + 0.09 * noise, x)
    return Transfer(found=found, sample_ids=torch.arange(len(x)) if ids is None else ids, eps=eps)


@pytest.mark.parametrize("draws", [1, 2, 5])
def test_many_looks_at_coins_do_not_bias_it(draws):
    x, y = images(N), torch.zeros(N).long()
    members = [moved(x, k) for k in range(5)]
    alone = torch.stack(
        [Transfer(found=m.found, sample_ids=m.sample_ids, eps=0.05, eval_draws=draws)(coins(), x, y).robust_correct
         for m in members]
    ).double().mean(2)  # fmt: skip
    naive = float(alone.min(0).values.mean())
    result = Ensemble(tuple(members), eval_draws=draws, choosing_draws=8)(coins(), x, y)
    honest, spread = result.robust_accuracy.estimate, 0.5 / (N * draws) ** 0.5
    assert abs(float(alone.mean()) - 0.5) < 4 * spread
    assert naive < 0.5 - 8 * spread, "the minimum over looks"
    if draws == 1:
        assert abs(naive - 0.5**5) < 0.05
    assert abs(honest - 0.5) < 4 * spread


@pytest.mark.parametrize("draws", [2, 12])
def test_nested_choices_are_not_made_on_judging_draws(draws):
    """A member that chooses on evaluation draws itself must not have seen those of the ensemble, nor the verdict's."""

    class Recorded(Pixels):
        pass

    seen: list[int] = []
    defense = mixture_defense(Recorded())
    target = look_through(defense)
    original = type(target).logits

    def logits(self, x, ids, draws, domain):
        if domain == fp.kernels.Domain.EVALUATION:
            seen.extend(draws.tolist())
        return original(self, x, ids, draws, domain)

    member = AutoAttack(
        version="custom", attacks=("apgd-ce",), n_iter=1, eps=0.05, decision_draws=3, eval_draws=2
    )
    run = Ensemble((member, PGD(eps=0.05, n_iter=1, eval_draws=40)), eval_draws=draws, choosing_draws=5)
    inner = Ensemble((run,), eval_draws=draws, choosing_draws=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(target), "logits", logits)
        problem = Problem(target.probed(X, IDS), X, Y, IDS)
        seen.clear()
        inner.propose(problem, lambda i, loss: None)
    assert set(seen) == set(range(draws, draws + 3 + 5 + 2))
    assert inner.spoken_for() == draws + 10


def test_the_worst_of_the_members_is_chosen_for_each_image():
    """Nothing is random: the ensemble breaks exactly what any member breaks."""
    members = (
        PGD(eps=0.08, n_iter=3),
        APGDCE(eps=0.08, n_iter=5),
        PGD(eps=0.08, n_iter=3, targeted="random"),
    )
    x = images(60, seed=5)
    y = Pixels()(x).argmax(1)
    broken = [~member(Pixels(), x, y).robust_correct[:, 0] for member in members]
    result = Ensemble(members)(Pixels(), x, y)
    assert torch.equal(~result.robust_correct[:, 0], broken[0] | broken[1] | broken[2])
    assert 0 < int(broken[0].sum()) < int(result.robust_correct.numel() - result.robust_correct.sum())
    assert result.losses.shape == (3 + 5 + 3, 60)


def test_a_tie_goes_to_the_first_that_is_not_the_image_itself():
    first, second = moved(X, 0, IDS, 1e-4), moved(X, 1, IDS, 1e-4)
    still = Transfer(found=X, sample_ids=IDS, eps=1e-4)
    result = Ensemble((still, first, second))(Pixels(), X, Y, sample_ids=IDS)
    assert result.robust_correct.all()
    assert torch.equal(result.x_adv, first.found)
    assert result.zero_gradients is None


def members(run: Transfer | None = None) -> tuple[fp.attacks.Attack, ...]:
    own = (
        PGD(eps=0.05, n_iter=2, eot_iter=2),
        APGDCE(eps=0.05, n_iter=3, eot_iter=2, gradient="bpda", start=moved(X, 3, IDS)),
    )
    return (*own, moved(X, 0, IDS) if run is None else run)


def test_alike_alone_and_in_any_batch_and_order():
    defense = mixture_defense(Pixels())
    run = Ensemble(members(), choosing_draws=3, eval_draws=2, batch_size=5)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    whole = run(defense, X, Y, sample_ids=IDS)
    assert torch.equal(torch.random.get_rng_state(), before)
    order = torch.tensor([4, 0, 3, 1, 2, 5])
    shuffled = run(defense, X[order], Y[order], sample_ids=IDS[order])
    assert torch.equal(shuffled.x_adv, whole.x_adv[order])
    alone = run(defense, X[2:3], Y[2:3], sample_ids=IDS[2:3])
    assert torch.equal(alone.x_adv[0], whole.x_adv[2])
    empty = run(defense, X[:0], Y[:0])
    assert empty.x_adv.shape == (0, *SHAPE)
    other = pickle.loads(pickle.dumps(run))(defense, X, Y, sample_ids=IDS)
    assert torch.equal(other.x_adv, whole.x_adv)


def test_its_seed_restarts_the_members():
    run = Ensemble((PGD(eps=0.05, n_iter=1, seed=2), FAB(eps=0.05)), seed=3)
    assert run.members()[0].seed == 5
    assert run.members()[1].seed == 3
    assert Ensemble((PGD(eps=0.05),), eval_draws=4).members()[0].eval_draws == 4


def test_evaluations_of_attacks_and_runs_together(tmp_path, monkeypatch):
    defense = mixture_defense(Pixels())
    fp.evaluate(Pixels(), DATA, PGD(eps=0.05, n_iter=4), FRESH, tmp_path / "a.sqlite", **QUICK)
    with fp.Run.open(tmp_path / "a.sqlite") as run:
        attack = Ensemble(members(run.as_attack()), choosing_draws=3)
    whole = fp.evaluate(defense, DATA, attack, FRESH, tmp_path / "whole.sqlite", **QUICK)
    done, original = [], Worker.block

    def block(self, positions, tick):
        if done:
            raise KeyboardInterrupt
        done.append(positions)
        return original(self, positions, tick)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "block", block)
        with pytest.raises(fp.errors.RunInterrupted, match="3 of 6"):
            fp.evaluate(defense, DATA, attack, FRESH, tmp_path / "b.sqlite", **QUICK)
    again = fp.evaluate(defense, DATA, attack, FRESH, tmp_path / "b.sqlite", **QUICK)
    assert again.digest == whole.digest
    assert "attacks=(PGD, APGDCE, Transfer)" in whole.attack
    with fp.Run.open(tmp_path / "b.sqlite") as run:
        settings = run.identity["attack"]["settings"]
        assert [part["name"] for part in settings["attacks"]] == ["PGD", "APGDCE", "Transfer"]
        assert (settings["norm"], settings["eps"], settings["choosing_draws"]) == ("Linf", 0.05, 3)
        assert effort(run.identity) == attack.effort(5)
        assert gradient_mode(run) == "ensemble"
        assert run.as_attack().eps == 0.05
    changed = Ensemble(attack.attacks[:2], choosing_draws=3)
    with pytest.raises(fp.errors.RunMismatch, match="attacks"):
        fp.evaluate(defense, DATA, changed, FRESH, tmp_path / "b.sqlite", **QUICK)


def test_its_cost_is_in_the_plan_and_the_report(tmp_path):
    from contextlib import ExitStack

    from fastpure.report.data import open_entries

    defense = mixture_defense(Pixels())
    attack = Ensemble(members(), choosing_draws=3)
    plan = fp.plan(defense, DATA, attack, FRESH)
    assert plan.gradients == 2 * 2 + 4 * 2
    assert plan.judgements == 4 * 3 + 2 * 4, "the image and three candidates, chosen and judged"
    fp.evaluate(defense, DATA, attack, FRESH, tmp_path / "a.sqlite", **QUICK)
    with ExitStack() as stack:
        (entry,) = open_entries([tmp_path / "a.sqlite"], stack)
        assert entry.counted, "calls that were made, images given up on the way left out"
        assert 0 < entry.calls < plan.network_calls
        assert "Ensemble" in entry.attack_text
        assert entry.attack_settings


def test_an_ensemble_of_one_mode_has_that_mode(tmp_path):
    for mode in ("exact", "bpda"):
        attack = Ensemble((PGD(eps=0.05, n_iter=1, gradient=mode), APGDCE(eps=0.05, n_iter=1, gradient=mode)))
        path = tmp_path / f"{mode}.sqlite"
        fp.evaluate(mixture_defense(Pixels()), DATA, attack, FRESH, path, **QUICK)
        with fp.Run.open(path) as run:
            assert gradient_mode(run) == mode


@pytest.mark.parametrize(
    ("attacks", "error", "message"),
    [
        ((), ValueError, "`attacks` must be at least one attack"),
        ((PGD(), "pgd"), TypeError, "`attacks` must be attacks, got str. Use run.as_attack"),
        ((PGD(), PGD(eps=0.1)), ValueError, "same norm and eps, got PGD in Linf 0.0313.*, PGD in Linf 0.1"),
        ((PGD(), PGD(norm="L2")), ValueError, "in one ball"),
        ((StAdv(),), ValueError, "got StAdv in no ball"),
    ],
)
def test_mistakes_are_named(attacks, error, message):
    with pytest.raises(error, match=message):
        Ensemble(attacks)


def test_settings_are_checked():
    with pytest.raises(ValueError, match="choosing_draws"):
        Ensemble((PGD(),), choosing_draws=0)
    defense, knows = mixture_defense(Pixels()), fp.attacks.DWPGD(eps=0.05, n_iter=1, draw=3)
    with pytest.raises(ValueError, match="one that knows the noise"):
        fp.evaluate(defense, DATA, Ensemble((knows,)), fp.protocols.dw_box(), **QUICK)


def test_it_says_what_all_members_and_the_choice_have_cost():
    defense, pgd = mixture_defense(Pixels()), PGD(eps=0.05, n_iter=2, eot_iter=3)
    assert set(pgd(defense, X, Y, sample_ids=IDS).spent.tolist()) == {6.0}
    result = Ensemble((pgd, pgd, moved(X, 0, IDS)), choosing_draws=4)(defense, X, Y, sample_ids=IDS)
    looks = {2.0: "the image", 10.0: "and one member", 18.0: "and both", 20.0: "and images that cost nothing"}
    assert set(result.spent.tolist()) <= set(looks), "four draws of half a gradient each time"
    assert result.spent.max() == 20
    legacy = AutoAttack(version="rand", eps=0.05, n_iter=2, eot_iter=3, decision="legacy")
    one = legacy(defense, X, Y, sample_ids=IDS).spent
    assert set(one.tolist()) <= {0.5, 0.5 + 9 + 0.5, 0.5 + 2 * (9 + 0.5)}
    assert one.max() > 0.5
    assert Ensemble((pgd, FAB(eps=0.05, n_iter=1)))(defense, X, Y, sample_ids=IDS).spent is None
