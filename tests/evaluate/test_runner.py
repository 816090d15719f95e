"""`evaluate`: what it measures is what it says, for every protocol; mistakes are named."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import MissingExtra
from fastpure.evaluate.protocol import FIRST_DRAW
from fastpure.kernels import Domain
from tests.evaluate.toys import FRESH, Brightness, attack, dataset, defense, evaluate


def test_records_are_those_of_the_defence_on_its_evaluation_draws(tmp_path):
    path = tmp_path / "run.sqlite"
    report = evaluate(path)
    data, target = dataset(8), defense()
    with fp.Run.open(path) as run:
        x_adv = torch.from_numpy(run.images("adversarial"))
        assert np.array_equal(run.images("clean"), data.images.numpy())
        for which, x in (("clean", data.images), ("adversarial", x_adv)):
            for draw in range(3):
                logits = target(x, data.sample_ids, FIRST_DRAW + draw, domain=Domain.EVALUATION)
                assert run.predicted(which)[:, draw].tolist() == logits.argmax(1).tolist()
                loss = nn.functional.cross_entropy(logits, data.labels, reduction="none")
                assert np.allclose(run.losses(which)[:, draw], loss.numpy(), atol=1e-6)
        by_hand = attack()(target, data.images, data.labels, sample_ids=data.sample_ids)
        assert torch.equal(by_hand.x_adv, x_adv)
        assert np.array_equal(run.distances, by_hand.distance.numpy())
        assert np.array_equal(run.traces().T, by_hand.losses.numpy())
        assert (run.distances <= 0.05).all()
        assert report.robust.estimate == pytest.approx(run.correct("adversarial").mean())
    assert report.robust.estimate < report.clean.estimate
    assert "fresh(3 draws)" in str(report)
    assert "PGD(" in str(report)
    assert "95 % Wilson intervals over 8 images" in str(report)


def test_a_deterministic_white_box_knows_the_noise_and_its_images_are_judged_on_fresh_noise_too():
    run_noise = fp.protocols.dw_box(draw=5, transfer_draws=4)
    data, target = dataset(8), defense()
    with target.fixed(5):
        by_hand = attack()(target, data.images, data.labels, sample_ids=data.sample_ids)
    report = fp.evaluate(target, data, attack(), run_noise, batch_size=3, progress=False)
    assert report.robust == by_hand.robust_accuracy
    assert report.clean == by_hand.clean_accuracy
    assert report.transfer is not None
    assert target.fixed_draw is None
    assert "the attacker knows the noise" in str(report)


def test_decisions_differ_between_protocols_on_the_same_images(tmp_path):
    digests = set()
    for protocol in (
        FRESH,
        fp.protocols.any_of_n(3),
        fp.protocols.majority(3),
        fp.protocols.legacy_autoattack(),
    ):
        report = evaluate(tmp_path / f"{protocol.name}.sqlite", protocol)
        digests.add(report.digest)
        assert report.protocol == str(protocol)
    assert len(digests) == 4
    with fp.Run.open(tmp_path / "fresh.sqlite") as run, fp.Run.open(tmp_path / "any_of_n.sqlite") as other:
        again = run.values("adversarial", fp.protocols.any_of_n(3))
        assert np.array_equal(again, other.values("adversarial"))
        with pytest.raises(ValueError, match="one that the records of fresh"):
            run.values("adversarial", fp.protocols.any_of_n(4))
        with pytest.raises(ValueError, match="one that the records of fresh"):
            run.values("adversarial", fp.protocols.dw_box())


def test_a_bare_classifier_is_asked_once_and_attacked(tmp_path):
    report = fp.evaluate(Brightness().eval(), dataset(8), attack(), out=tmp_path / "r.sqlite", progress=False)
    assert report.clean.estimate == 1.0
    assert report.spread is None
    assert report.defense == "none: Brightness alone"
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert run.predicted("clean").shape == (8, 1)


def test_without_attack_only_the_originals_are_judged():
    report = fp.evaluate(defense(), dataset(8), protocol=FRESH, progress=False)
    assert report.robust is None
    assert report.attack is None
    assert 0 < report.clean.estimate <= 1


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtra, match=r"engine='ray' needs the package ray: pip install 'fastpure\[ray\]'"
    ):
        evaluate(engine="ray")


class Restless(nn.Module):
    """Random without saying so."""

    def forward(self, u):
        return torch.randn(len(u), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"defense": "x"}, TypeError, "`defense` must be a Defense"),
        (
            {"defense": Restless().eval()},
            ValueError,
            "`defense` must be differentiable, got logits without a gradient",
        ),
        ({"defense": nn.Linear(2, 2)}, ValueError, "`defense` must be in evaluation mode"),
        ({"dataset": torch.zeros(3)}, TypeError, "`dataset` must be a fastpure.data.Dataset"),
        ({"attack": "pgd"}, TypeError, "`attack` must be an Attack or None"),
        ({"protocol": "fresh"}, TypeError, "`protocol` must be a Protocol"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"shard": (3, 2)}, ValueError, "`shard` must be an integer in"),
        ({"engine": "slurm"}, ValueError, "`engine` must be one of 'local', 'ray'"),
    ],
)
def test_mistakes_are_named(arguments, error, words):
    given = {"defense": defense(), "dataset": dataset(2), "attack": attack(), "protocol": FRESH, **arguments}
    with pytest.raises(error, match=words):
        fp.evaluate(**given, progress=False)


def test_a_frozen_defence_does_not_pass_for_a_fresh_one():
    target = defense()
    with target.fixed(0), pytest.raises(ValueError, match="`protocol` must be dw_box for a frozen defence"):
        fp.evaluate(target, dataset(2), attack(), FRESH, progress=False)
