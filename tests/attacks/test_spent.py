"""What attacks say they have spent is what the networks were asked for, whatever is differentiated."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.attacks import PGD, from_settings
from fastpure.attacks.base import Proposal
from fastpure.attacks.ledger import Ledger
from tests.attacks.toys import Meter, Pixels, images, mixture_defense

IDS = torch.tensor([3, 8, 1, 900])


def spent(monkeypatch, attack, method=None) -> tuple[torch.Tensor, torch.Tensor]:
    defense, x = mixture_defense(Pixels(), method), images(4)
    y = defense.predict(x)
    meter = Meter(monkeypatch, defense)
    result = attack(defense, x, y, sample_ids=IDS)
    return result.spent, meter.of(IDS)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("pgd", {"n_iter": 3}),
        ("pgd", {"n_iter": 3, "gradient": "bpda"}),
        ("pgd", {"n_iter": 3, "gradient": "surrogate", "surrogate_steps": 2}),
        ("apgd-ce", {"n_iter": 5, "n_restarts": 2}),
        ("apgd-ce", {"n_iter": 5, "norm": "L2", "eps": 0.5}),
        ("apgd-ce", {"n_iter": 5, "norm": "L1", "eps": 2.0}),
        ("apgd-ce", {"n_iter": 1, "norm": "L1", "eps": 2.0}),
        ("apgd-ce", {"n_iter": 5, "norm": "L1", "eps": 2.0, "n_restarts": 2, "start": images(4)}),
        ("apgd-ce", {"n_iter": 5, "start": images(4)}),
        ("apgd-dlr", {"n_iter": 5, "gradient": "bpda"}),
    ],
)
def test_a_walk_is_charged_for_every_look(monkeypatch, name, settings):
    said, asked = spent(monkeypatch, from_settings(name, eot_iter=3, **{"eps": 0.05, **settings}))
    assert torch.allclose(said, asked, rtol=0, atol=1e-9)
    assert float(said.min()) > 0


@pytest.mark.parametrize("gradient", ["exact", "detached", "unguided", "surrogate", "bpda"])
def test_a_guided_defence_is_charged_by_its_network_passes(monkeypatch, gradient):
    method = fp.methods.coup(Pixels(), t=0.1, dt=0.02)
    said, asked = spent(monkeypatch, PGD(eps=0.05, n_iter=2, eot_iter=3, gradient=gradient), method)
    assert torch.allclose(said, asked, rtol=0, atol=1e-9)


def test_a_deterministic_defence_is_charged_until_it_is_broken():
    class Metered(Pixels):
        asked = 0.0

        def forward(self, u):
            type(self).asked += len(u) if u.requires_grad and torch.is_grad_enabled() else 0.0
            return super().forward(u)

    x = images(6)
    attack = from_settings("apgd-ce", eps=0.08, n_iter=20, n_restarts=2)
    result = attack(Metered(), x, Pixels()(x).argmax(1))
    assert float(result.spent.sum()) == Metered.asked
    assert len(set(result.spent.tolist())) > 1


def test_a_ledger_keeps_what_was_seen_beside_what_it_had_cost():
    nan, ledger = torch.nan, Ledger(images(3), unit=2.0)
    ledger.walked(torch.tensor([[1.0, 0.5], [0.5, nan]]), torch.tensor([2, 0]), starts=1)
    ledger.charge(0.5)
    ledger.note(torch.tensor([0.25]), torch.tensor([1]))
    found = ledger.into(Proposal(images(3), torch.zeros(3, 3)))
    assert torch.equal(found.spent, torch.tensor([4.5, 0.5, 6.5], dtype=torch.float64))
    correct = torch.tensor([[0.5, nan, 1.0], [nan, nan, 0.5], [nan, 0.25, nan]])
    at = torch.tensor([[4.0, nan, 4.0], [nan, nan, 6.0], [nan, 0.5, nan]])
    assert torch.equal(found.correct.nan_to_num(-1), correct.nan_to_num(-1))
    assert torch.equal(found.spent_at.nan_to_num(-1), at.nan_to_num(-1))
    empty = Ledger(images(2)).into(Proposal(images(2), torch.zeros(0, 2)))
    assert empty.correct.shape == empty.spent_at.shape == (0, 2)
