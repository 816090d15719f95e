"""Targeted PGD and APGD: the loss is the target's, the verdict is misclassification."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.attacks import APGDCE, APGDDLR, PGD, Targets
from fastpure.attacks.losses import TARGETED
from fastpure.purify.description import plain
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

X = images(8)
LOGITS = Pixels()(X)
Y = LOGITS.argmax(1)
IDS = torch.tensor([4, 9, 2, 77, 5, 6, 30, 1])
KINDS = {
    "pgd-ce": lambda **s: PGD(n_iter=30, **s),
    "pgd-margin": lambda **s: PGD(n_iter=30, loss="margin", **s),
    "pgd-dlr": lambda **s: PGD(n_iter=30, loss="dlr", **s),
    "apgd-ce": lambda **s: APGDCE(n_iter=30, **s),
    "apgd-dlr": lambda **s: APGDDLR(n_iter=30, **s),
}


def expected(rule) -> torch.Tensor:
    order = LOGITS.scatter(1, Y[:, None], -torch.inf).argsort(1, descending=True)
    if rule == "most-likely":
        return order[:, 0]
    if rule == "least-likely":
        return order[:, -2]
    return torch.where(rule == Y, order[:, 0], rule)


@pytest.mark.parametrize("rule", ["most-likely", "least-likely", 2])
@pytest.mark.parametrize("kind", ["pgd-ce", "pgd-margin"])
def test_images_are_driven_to_the_class_of_the_rule(rule, kind):
    result = KINDS[kind](eps=0.45, targeted=rule)(Pixels(), X, Y)
    assert torch.equal(Pixels()(result.x_adv).argmax(1), expected(rule))
    assert not result.robust_correct.any()


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_step_ascends_the_targets_loss(kind):
    """APGD leaves an image alone once it is misclassified; its first steps are towards the target all the same."""
    seen = []

    class Recording(Pixels):
        def forward(self, u):
            if u.requires_grad:
                seen.append(u.detach().clone())
            return super().forward(u)

    target = expected("least-likely")
    KINDS[kind](eps=0.01, targeted="least-likely")(Recording(), X, Y)
    loss = TARGETED[kind.split("-")[1]]
    first, last = (loss(Pixels()(u), torch.stack([Y, target], 1)) for u in (seen[0], seen[-1]))
    assert (last > first).all()


def test_losses_by_hand():
    logits, labels = torch.tensor([[2.0, 1.0, 0.5, -1.0, 0.0]]), torch.tensor([[0, 2]])
    assert float(TARGETED["ce"](logits, labels)) == pytest.approx(float(logits.log_softmax(1)[0, 2]))
    assert float(TARGETED["margin"](logits, labels)) == -1.5
    assert float(TARGETED["dlr"](logits, labels)) == pytest.approx(-1.5 / (2.0 - 0.25))


def test_random_targets_are_functions_of_seed_and_name():
    def aims(run, ids=IDS, which=slice(None)):
        result = run(Pixels(), X[which], Y[which], sample_ids=ids[which])
        return Pixels()(result.x_adv).argmax(1)

    runs = [KINDS["pgd-ce"](eps=0.45, targeted="random", seed=seed) for seed in (0, 0, 1)]
    first, second, third = (aims(run) for run in runs)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert not (first == Y).any()
    part = torch.tensor([5, 1])
    assert torch.equal(aims(runs[0], which=part), first[part])
    many = torch.cat([aims(KINDS["pgd-ce"](eps=0.45, targeted="random", seed=s)) for s in range(12)])
    assert set(many.tolist()) == set(range(5))


def test_labels_of_ones_own_in_order_or_by_name():
    wanted = (Y + 1 + torch.arange(8) % 3) % 5
    one, two = (
        KINDS["pgd-ce"](eps=0.45, targeted=targeted)(Pixels(), X, Y, sample_ids=IDS)
        for targeted in (wanted, Targets(wanted.flip(0), IDS.flip(0)))
    )
    assert torch.equal(Pixels()(one.x_adv).argmax(1), wanted)
    assert torch.equal(one.x_adv, two.x_adv)
    data = fp.data.Dataset(X, Y, IDS, tuple("abcde"), "toy", "test")
    run = APGDCE(eps=0.1, n_iter=3, targeted=wanted)
    report = fp.evaluate(Pixels(), data, run, fp.protocols.fresh(2), batch_size=3, progress=False)
    assert report.digest
    assert fp.plan(Pixels(), data, run, fp.protocols.fresh(2)).gradients == 4
    with pytest.raises(ValueError, match="other classes than the true ones, got others for sample id 9"):
        KINDS["pgd-ce"](targeted=torch.where(IDS == 9, Y, wanted))(Pixels(), X, Y, sample_ids=IDS)
    with pytest.raises(ValueError, match=r"classes in 0..4"):
        KINDS["pgd-ce"](targeted=wanted + 3)(Pixels(), X, Y)
    with pytest.raises(ValueError, match=r"`targeted` must be one for each of 8 images, got 3"):
        KINDS["pgd-ce"](targeted=wanted[:3])(Pixels(), X, Y)
    with pytest.raises(ValueError, match="Give a target for every image"):
        KINDS["pgd-ce"](targeted=Targets(wanted, IDS + 100))(Pixels(), X, Y, sample_ids=IDS)


@pytest.mark.parametrize("kind", KINDS)
def test_alike_alone_and_in_any_batch(kind):
    defense = mixture_defense(Pixels())
    run = KINDS[kind](eps=0.1, eot_iter=2, eval_draws=2, targeted="least-likely")
    whole = run(defense, X, Y, sample_ids=IDS).x_adv
    alone = run(defense, X[3:4], Y[3:4], sample_ids=IDS[3:4]).x_adv
    assert torch.equal(alone[0], whole[3])
    assert run(defense, X[:0], Y[:0]).x_adv.shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"targeted": "likely"},
            "`targeted` must be one of 'most-likely', 'least-likely', 'random', a class, or",
        ),
        ({"targeted": -1}, "`targeted` must be an integer >= 0"),
    ],
)
def test_mistakes_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PGD(**settings)


def test_too_few_classes_and_no_such_class():
    with pytest.raises(ValueError, match=r"`targeted` must be an integer in \[0, 4\], got 5"):
        PGD(n_iter=1, targeted=5)(Pixels(), X, Y)
    with pytest.raises(ValueError, match="dlr-targeted needs 4"):
        APGDDLR(n_iter=1, targeted="random")(Pixels(3), X, torch.zeros(8).long())
    two = PGD(n_iter=20, eps=0.4, targeted="random")(Pixels(2), X, Pixels(2)(X).argmax(1))
    assert not two.robust_correct.any()


def test_identity_and_settings_by_name():
    assert "targeted" not in plain(PGD())["settings"]
    assert plain(fp.attacks.from_settings("apgd-ce", targeted=3))["settings"]["targeted"] == 3
