"""`Transfer`: other defences' images, matched by name, refused where they are of other originals."""

from __future__ import annotations

import hashlib
import pickle

import pytest
import torch

import fastpure as fp
from fastpure.attacks import PGD, Transfer
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

IDS = torch.tensor([7, 3, 11, 5])
X = images(4)
Y = Pixels()(X).argmax(1)


def transfer(found=None, ids=IDS, **settings) -> Transfer:
    found = (X + 0.02).clamp(0, 1) if found is None else found
    return Transfer(
        **{"found": found, "sample_ids": ids, "norm": "Linf", "eps": 0.05, "eval_draws": 3, **settings}
    )


def test_images_are_judged_on_this_defence_bit_by_bit():
    found = PGD(norm="Linf", eps=0.05, n_iter=4, eot_iter=1)(Pixels(), X, Y, sample_ids=IDS)
    defense = mixture_defense(Pixels())
    result = transfer(found.x_adv)(defense, X, Y, sample_ids=IDS)
    assert torch.equal(result.x_adv, found.x_adv)
    assert torch.equal(result.distance, found.distance)
    assert result.losses.shape == (0, 4)
    assert result.zero_gradients is None
    again = PGD(norm="Linf", eps=0.05, n_iter=1, step_size=1e-9, random_start=False, eot_iter=1, eval_draws=3)
    own = again(defense, found.x_adv.clamp(0, 1), Y, sample_ids=IDS)
    assert torch.equal(result.robust_correct, own.clean_correct), "the same images on the same draws"


def test_images_are_matched_by_name_whatever_their_order():
    order = torch.tensor([2, 0, 3])
    result = transfer()(Pixels(), X[order], Y[order], sample_ids=IDS[order])
    assert torch.equal(result.x_adv, (X + 0.02).clamp(0, 1)[order])


def test_the_defence_is_not_asked_by_the_attack_itself():
    class Untouchable(torch.nn.Module):
        def forward(self, u):
            raise AssertionError("asked")

    from fastpure.attacks.base import Problem
    from fastpure.purify import look_through

    problem = Problem(look_through(Untouchable()), X, Y, IDS)
    assert torch.equal(transfer().propose(problem, lambda i, loss: None).x, (X + 0.02).clamp(0, 1))
    assert not Transfer.asks
    assert PGD.asks


def test_other_originals_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match=r"originals of the images found.*sample ids \[7, 3\]"):
        transfer()(Pixels(), X[[1, 0]], Y[[1, 0]], sample_ids=IDS[[0, 1]])
    with pytest.raises(ValueError, match=r"among the 4 found.*\[8\]"):
        transfer()(Pixels(), X, Y, sample_ids=torch.tensor([7, 3, 8, 5]))
    with pytest.raises(ValueError, match="within"):
        transfer(eps=0.01)(Pixels(), X, Y, sample_ids=IDS)
    with pytest.raises(ValueError, match="images of"):
        transfer(torch.rand(4, 3, 5, 5))(Pixels(), X, Y, sample_ids=IDS)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"found": [1.0]}, TypeError, "found.*tensor.*list"),
        ({"found": torch.zeros(4, *SHAPE, dtype=torch.float64)}, ValueError, "found.*float32.*float64"),
        ({"found": torch.zeros(3, *SHAPE)}, ValueError, "sample_ids.*each of 3"),
        ({"ids": IDS.float()}, ValueError, "sample_ids.*int64"),
        ({"ids": torch.tensor([7, 7, 11, 5])}, ValueError, "sample_ids.*twice"),
        ({"norm": "L7"}, ValueError, "norm"),
        ({"eps": -1.0}, ValueError, "eps"),
        ({"eval_draws": 0}, ValueError, "eval_draws"),
    ],
)
def test_mistakes_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        transfer(**settings)


def test_it_prints_short_and_travels():
    attack = transfer(source="diffpure")
    assert len(str(attack)) < 160
    assert "diffpure" in str(attack)
    other = pickle.loads(pickle.dumps(attack))
    assert torch.equal(other.found, attack.found)


def test_a_run_as_an_attack(tmp_path):
    data = fp.data.Dataset(X, Y, IDS, tuple("abcde"), "toy", "test")
    attack = PGD(norm="L2", eps=0.5, n_iter=3, eot_iter=1)
    settings = {"batch_size": 3, "progress": False}
    fp.evaluate(Pixels(), data, attack, fp.protocols.fresh(2), tmp_path / "a.sqlite", **settings)
    with fp.Run.open(tmp_path / "a.sqlite") as run:
        found, images_found = run.as_attack(), run.images("adversarial")
    assert (found.norm, found.eps, found.source) == ("L2", 0.5, "none")
    report = fp.evaluate(
        mixture_defense(Pixels()), data, found, fp.protocols.fresh(2), tmp_path / "b.sqlite", **settings
    )
    assert report.n_images == 4
    assert "source='none'" in report.attack
    assert hashlib.sha256(found.found.numpy().tobytes()).hexdigest()[:8] in report.attack
    with fp.Run.open(tmp_path / "b.sqlite") as run:
        assert (run.images("adversarial") == images_found).all()
        stored = run.identity["attack"]["settings"]
        assert stored["found"]["sha256"]
        assert len(stored["found"]) == 3, "a checksum, not the pixels"
    plan = fp.plan(mixture_defense(Pixels()), data, found, fp.protocols.fresh(2))
    assert plan.gradients == 0
    assert plan.judgements == 4
    fp.evaluate(Pixels(), data, None, fp.protocols.fresh(2), tmp_path / "c.sqlite", **settings)
    with fp.Run.open(tmp_path / "c.sqlite") as run, pytest.raises(ValueError, match="no attack"):
        run.as_attack()
