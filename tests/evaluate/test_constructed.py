"""Evaluations that are wrong by construction differ, on purpose-made defences, from the ones that decide on fresh
noise; and the real networks on digits survive an interruption bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.errors import RunInterrupted
from fastpure.evaluate.work import Worker
from fastpure.nets.oracle import GaussianMixture
from tests.evaluate.toys import Brightness, dataset


class Stripes(nn.Module):
    """Two classes that alternate with brightness: which way out of a stripe is nearest depends on the noise."""

    def forward(self, u: Tensor) -> Tensor:
        score = torch.sin((u - 0.5).flatten(1).sum(1) * torch.pi / 0.3)
        return torch.stack([-score, score], 1)


def noisy(classifier: nn.Module, t: float) -> fp.Defense:
    """DiffPure in two steps towards a broad Gaussian: it removes little and adds noise."""
    denoiser = fp.Denoiser.from_module(GaussianMixture(torch.zeros(1, 16), 1.0), image_shape=(1, 4, 4))
    method = fp.methods.diffpure(t=t, dt=t / 2)
    return fp.Defense(fp.Purifier(denoiser, method), classifier.eval())


def test_an_attack_that_shares_its_noise_with_the_decision_seems_stronger_than_it_is():
    data = dataset(80)
    with torch.no_grad():
        data = replace(data, labels=Stripes()(data.images).argmax(1))
    attack = fp.attacks.PGD(eps=0.015, n_iter=5, eot_iter=1, random_start=False)
    target = noisy(Stripes(), 0.01)
    shared = fp.evaluate(target, data, attack, fp.protocols.dw_box(transfer_draws=20), progress=False)
    fresh = fp.evaluate(target, data, attack, fp.protocols.fresh(20), progress=False)
    assert shared.robust.estimate < fresh.robust.estimate - 0.1
    assert shared.robust.estimate < shared.transfer.estimate - 0.1, (
        "the same images, on noise the attack did not know"
    )


def test_single_draws_count_chance_as_an_attack():
    """Nothing is attacked here: one draw for the original and one for the image alone turn p into p squared."""
    data, nothing = dataset(300), fp.controls.GaussianNoise(std=1e-6)
    reports = {}
    for protocol in (fp.protocols.fresh(20), fp.protocols.legacy_autoattack(), fp.protocols.any_of_n(20)):
        reports[protocol.name] = fp.evaluate(
            noisy(Brightness(), 0.3), data, nothing, protocol, progress=False
        )
    fresh, legacy, worst = (
        reports[name].robust.estimate for name in ("fresh", "legacy_autoattack", "any_of_n")
    )
    assert reports["fresh"].clean.estimate == pytest.approx(fresh, abs=0.01)
    assert legacy < fresh - 0.05
    assert worst < legacy - 0.05


@pytest.mark.slow
def test_digits_interrupted_anywhere_sharded_or_not_give_the_same_bits(tmp_path, monkeypatch):
    data = load_dataset("digits", "test").subset(12)
    classifier, denoiser = fp.load_classifier("digits"), fp.load_denoiser("digits")
    method = fp.methods.coup(classifier, t=0.1, dt=0.05, scale=2.0)
    defense = fp.Defense(fp.Purifier(denoiser, method), classifier)
    attack = fp.attacks.PGD(eps=0.2, n_iter=3, eot_iter=2)

    def evaluate(out, **settings):
        how = fp.protocols.fresh(3)
        return fp.evaluate(defense, data, attack, how, out, batch_size=3, progress=False, **settings)

    expected = evaluate(tmp_path / "unbroken.sqlite").digest
    block = Worker.block
    for stop_at in (1, 2, 3):
        path, count = tmp_path / f"{stop_at}.sqlite", [0]

        def interrupted(self, positions, tick, count=count, stop_at=stop_at):
            def stop(iteration, loss):
                if count[0] == stop_at and iteration == 1:
                    raise KeyboardInterrupt

            finished = block(self, positions, stop)
            count[0] += 1
            return finished

        with monkeypatch.context() as patch:
            patch.setattr(Worker, "block", interrupted)
            with pytest.raises(RunInterrupted, match=f"stopped with {3 * stop_at} of 12"):
                evaluate(path)
        assert evaluate(path).digest == expected
    parts = [tmp_path / f"part-{i}.sqlite" for i in (1, 2)]
    for i, part in enumerate(parts, 1):
        evaluate(part, shard=(i, 2))
    with fp.Run.open(fp.merge(tmp_path / "merged.sqlite", parts)) as run:
        assert run.content_digest() == expected
