"""What a plan counts is what a run asks for; what it measures of memory grows with the steps."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.evaluate.plan import _bytes, _duration, _truncated, count_queries, plan
from fastpure.nets.oracle import GaussianMixture
from fastpure.purify import look_through
from fastpure.purify.target import ASKED
from tests.evaluate.toys import Brightness, attack, dataset, defense


class Counting(GaussianMixture):
    """Counts the images that pass through it."""

    rows = 0

    def forward(self, x, label):
        type(self).rows += len(x)
        return super().forward(x, label)


@pytest.mark.parametrize(
    ("how", "gradients", "judgements"),
    [
        (attack(n_iter=5, eot_iter=3), 15, 0),
        (attack(n_iter=5, eot_iter=3, gradient="bpda"), 15, 0),
        (fp.attacks.APGDCE(n_iter=6, eot_iter=2), 14, 0),
        (fp.attacks.DWPGD(n_iter=4), 4, 0),
        (fp.attacks.SPSA(n_iter=5, n_directions=3, eot_iter=2), 0, 2 * 3 * 2 * 5),
        (fp.attacks.RayS(n_queries=170, eot_iter=3), 0, 170 * 3),
        (None, 0, 0),
    ],
)
def test_queries_of_an_attack_are_counted_without_running_it(how, gradients, judgements):
    counted = count_queries(dataset(4), how, fp.protocols.fresh(2), random=True, purifies=True)
    assert counted == (gradients, judgements)


def test_under_known_noise_nothing_is_averaged():
    how, known = attack(n_iter=5, eot_iter=3), fp.protocols.dw_box()
    assert count_queries(dataset(4), how, known, random=True, purifies=True) == (5, 0)


MEMBERS = ("apgd-ce", "fab", "square")


@pytest.mark.parametrize(
    ("protocol", "random"),
    [(fp.protocols.fresh(), True), (fp.protocols.fresh(), False), (fp.protocols.dw_box(), True)],
    ids=["fresh", "bare", "known"],
)
@pytest.mark.parametrize(
    "how",
    [
        fp.attacks.Square(n_queries=7, eot_iter=3),
        fp.attacks.AutoAttack(
            version="custom", attacks=MEMBERS, n_iter=2, n_queries=5, eot_iter=2, decision_draws=4
        ),
        fp.attacks.AutoAttack(version="rand", n_iter=2, eot_iter=2, decision="legacy", gradient="bpda"),
        fp.attacks.Ensemble(
            (attack(n_iter=2, eot_iter=3), fp.attacks.Square(eps=0.05, n_queries=3)), choosing_draws=5
        ),
    ],
    ids=["square", "autoattack", "legacy", "ensemble"],
)
def test_what_is_known_of_an_attack_is_what_its_rehearsal_counts(monkeypatch, how, protocol, random):
    pytest.importorskip("pyautoattack")

    def found():
        return count_queries(dataset(4), how, protocol, random=random, purifies=random)

    known = found()
    for kind in (fp.attacks.Square, fp.attacks.AutoAttack, fp.attacks.Ensemble):
        monkeypatch.setattr(kind, "planned", lambda self, *rest: None)
    assert known == found()
    assert known[1] > 0


def test_a_bare_classifier_is_counted_too():
    how = attack(n_iter=5, eot_iter=3)
    assert count_queries(dataset(4), how, fp.protocols.fresh(), random=False, purifies=False) == (5, 0)
    for how, asked in (
        (fp.attacks.SPSA(n_iter=5, n_directions=3, eot_iter=2), 2 * 3 * 5),
        (fp.attacks.RayS(n_queries=170, eot_iter=3), 170),
    ):
        assert count_queries(dataset(4), how, fp.protocols.fresh(), random=False, purifies=False) == (
            0,
            asked,
        )


@pytest.mark.parametrize(
    "how", [fp.attacks.SPSA(n_iter=2, n_directions=3, eps=0.1), fp.attacks.RayS(n_queries=9, eps=0.1)]
)
def test_what_has_no_gradient_can_be_planned_and_evaluated_without_one(how):
    class Decides(Brightness):
        """Answers with a class and nothing else, and counts how often it is asked."""

        rows = 0

        @torch.no_grad()
        def forward(self, x):
            type(self).rows += len(x)
            logits = super().forward(x)
            return torch.nn.functional.one_hot(logits.argmax(1), logits.shape[1]).float()

    data = dataset(6)
    expected = plan(Decides().eval(), data, how)
    assert expected.gradients == 0
    assert expected.memory == 0
    Decides.rows = 0
    report = fp.evaluate(Decides().eval(), data, how, progress=False)
    assert report.clean.estimate == 1.0
    assert Decides.rows - ASKED <= 6 * expected.judgements
    if isinstance(how, fp.attacks.SPSA):
        assert Decides.rows - ASKED == 6 * expected.judgements


def test_network_calls_are_those_of_the_run():
    target, data, how = defense(), dataset(6), fp.protocols.fresh(3)
    means = target.purifier.denoiser.network.means
    denoiser = fp.Denoiser.from_module(Counting(means, 0.3), image_shape=data.image_shape)
    purifier = fp.Purifier(denoiser, target.purifier.method, memory="store")
    target = fp.Defense(purifier, target.classifier)
    expected = plan(target, data, attack(), how)
    Counting.rows = 0
    fp.evaluate(target, data, attack(), how, progress=False)
    # A gradient is two passes, of which the network's forward is called for one. Twice it is asked at the door.
    assert Counting.rows - 2 == 6 * expected.calls * (expected.gradients + expected.judgements)
    assert expected.network_calls == 6 * expected.calls * (2 * expected.gradients + expected.judgements)
    assert (expected.gradients, expected.judgements) == (4, 6)


def test_calls_and_memory_grow_with_the_steps():
    data = dataset(4)
    means = defense().purifier.denoiser.network.means
    plans = []
    for dt in (0.01, 0.0005):
        denoiser = fp.Denoiser.from_module(GaussianMixture(means, 0.3), image_shape=data.image_shape)
        purifier = fp.Purifier(denoiser, fp.methods.diffpure(t=0.02, dt=dt), memory="store")
        plans.append(plan(fp.Defense(purifier, Brightness().eval()), data, attack()))
    assert plans[1].calls == 20 * plans[0].calls
    assert plans[1].network_calls == 20 * plans[0].network_calls
    assert plans[1].memory > 3 * plans[0].memory > 0
    assert plans[1].disk == plans[0].disk


def test_a_truncated_defence_calls_its_network_less():
    whole = look_through(defense())
    assert _truncated(whole, 1).network_calls == 1
    assert _truncated(whole, 3) is whole
    classifier = look_through(Brightness().eval())
    assert _truncated(classifier, 1) is classifier


def test_planning_leaves_no_trace():
    target = defense()
    before = target.purifier(dataset(2).images)
    state = torch.random.get_rng_state()
    text = str(plan(target, dataset(2), attack()))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(target.purifier(dataset(2).images), before)
    for word in ("network calls", "time", "memory", "disk", "ms per gradient"):
        assert word in text


def test_sizes_and_durations_are_readable():
    assert [_bytes(n) for n in (12, 3400, 5_600_000, 7.8e9)] == ["12 B", "3.4 KB", "5.6 MB", "7.8 GB"]
    assert _duration(100) == "100 hours (4.2 days)"
    assert _duration(0.5) == "30.0 minutes (0.5 hours)"
    assert _duration(0.001) == "3.6 seconds"
