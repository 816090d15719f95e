"""PGD with EOT: it finds what it must, stays inside, and never decides on noise it has adapted to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks.gradient import eot_gradient, score
from fastpure.attacks.losses import LOSSES
from fastpure.purify import look_through
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser


class Linear(nn.Module):
    """Two classes, one weight vector: the optimal attack is known in closed form."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight)

    def forward(self, u):
        score = ((u - 0.5) * self.weight).flatten(1).sum(1)
        return torch.stack([score, -score], 1)


@pytest.fixture
def defense():
    classifier = toy_classifier(torch.float32)
    method = fp.methods.coup(classifier, t=0.1, dt=0.02)
    return fp.Defense(fp.Purifier(toy_denoiser(torch.float32), method), classifier)


def images(n: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(n, *SHAPE, generator=generator), torch.arange(n) % 4


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_reaches_the_optimum_on_a_linear_classifier(norm):
    weight = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = torch.full((1, *SHAPE), 0.5)
    eps = 0.1
    result = fp.attacks.PGD(norm=norm, eps=eps, n_iter=50, eot_iter=1, step_size=eps)(
        Linear(weight).eval(), x, torch.tensor([0])
    )
    best = eps * {"Linf": weight.abs().sum(), "L2": weight.norm(), "L1": weight.abs().max()}[norm]
    reached = -Linear(weight)(result.x_adv)[0, 0]
    assert float(reached) == pytest.approx(float(best), rel=2e-3)
    assert float(result.distance) <= eps
    assert result.robust_accuracy.estimate == 0.0


def test_gradient_is_the_mean_over_draws_however_it_is_batched(defense):
    x, y = images()
    ids = torch.arange(len(x))
    whole, losses = eot_gradient(look_through(defense), x, y, ids, range(3, 7), LOSSES["ce"], 64)
    for batch_size in (1, 5, 24):
        part, part_losses = eot_gradient(
            look_through(defense), x, y, ids, range(3, 7), LOSSES["ce"], batch_size
        )
        assert torch.allclose(part, whole, atol=1e-6)
        assert torch.allclose(part_losses, losses, atol=1e-5)
    from fastpure.kernels import Domain

    leaf = x.clone().requires_grad_(True)
    total = sum(LOSSES["ce"](defense(leaf, ids, draw, domain=Domain.ATTACK), y).sum() for draw in range(3, 7))
    assert torch.allclose(torch.autograd.grad(total, leaf)[0] / 4, whole, atol=1e-6)


def test_decisions_use_noise_the_attack_has_not_seen(defense):
    x, y = images()
    ids = torch.arange(len(x))
    correct = score(look_through(defense), x, y, ids, 5, 64)
    assert correct.shape == (6, 5)
    from fastpure.kernels import Domain

    for draw in range(5):
        logits = defense(x, ids, draw, domain=Domain.EVALUATION)
        assert torch.equal(correct[:, draw], logits.argmax(1) == y)


def test_attack_is_reproducible_and_lowers_accuracy(defense):
    x, _ = images(8)
    with torch.no_grad():
        y = defense(x, draw=0).argmax(1)
    attack = fp.attacks.PGD(eps=0.15, n_iter=8, eot_iter=3, eval_draws=6, batch_size=7)
    first, second = attack(defense, x, y), attack(defense, x, y)
    assert torch.equal(first.x_adv, second.x_adv)
    assert float(first.distance.max()) <= 0.15
    assert first.robust_accuracy.estimate < first.clean_accuracy.estimate
    assert first.robust_accuracy.low <= first.robust_accuracy.estimate <= first.robust_accuracy.high
    assert first.losses.shape == (8, 8)
    assert float(first.losses[-1].mean()) > float(first.losses[0].mean())
    assert "PGD(norm='Linf', eps=0.15" in str(first)


def test_a_frozen_defense_is_attacked_and_judged_on_its_frozen_noise(defense):
    x, y = images(3)
    ids = torch.arange(3)
    with defense.fixed(draw=4):
        a, _ = eot_gradient(look_through(defense), x, y, ids, range(0, 1), LOSSES["ce"], 64)
        b, _ = eot_gradient(look_through(defense), x, y, ids, range(9, 10), LOSSES["ce"], 64)
        result = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=5, eval_draws=7)(defense, x, y)
    assert torch.equal(a, b)
    assert result.robust_correct.shape == (3, 1)
    expected = defense(result.x_adv, ids, 4).argmax(1) == y
    assert torch.equal(result.robust_correct[:, 0], expected)


def test_results_say_how_steps_were_carried_out(defense):
    attack = fp.attacks.PGD(eps=0.1, n_iter=1, eot_iter=1, eval_draws=1)
    x, y = torch.rand(1, *defense.purifier.image_shape), torch.zeros(1, dtype=torch.int64)
    assert attack(defense, x, y).execution == defense.purifier.execution
    assert attack(defense, x, y).execution.backend == "eager"
    assert attack(defense.classifier, x, y).execution is None


def test_losses():
    logits, y = torch.tensor([[1.0, 3.0, 2.0], [5.0, 0.0, 1.0]]), torch.tensor([1, 1])
    assert LOSSES["margin"](logits, y).tolist() == [-1.0, 5.0]
    expected = -logits.log_softmax(1)[torch.arange(2), y]
    assert torch.allclose(LOSSES["ce"](logits, y), expected)


def test_empty_batch(defense):
    result = fp.attacks.PGD(n_iter=2, eot_iter=2)(defense, torch.empty(0, *SHAPE), torch.empty(0).long())
    assert result.x_adv.shape == (0, *SHAPE)
    assert result.robust_accuracy.n == 0


X, Y = images(2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((X, torch.tensor([0, 4])), ValueError, r"`y` must be labels in 0..3, got values in 0..4"),
        ((X, torch.tensor([-1, 0])), ValueError, "`y` must be labels in 0..3"),
        ((X, torch.tensor([0.0, 1.0])), TypeError, "`y` must be an integer tensor"),
        ((X, torch.tensor([0])), ValueError, r"`y` must be of shape \[2\]"),
        ((X * 2 - 1, Y), ValueError, r"`x` must be in \[0, 1\]"),
        ((X.double(), Y), TypeError, "`x` must be a float32 tensor"),
    ],
)
def test_bad_arguments_are_named(defense, arguments, error, words):
    with pytest.raises(error, match=words):
        fp.attacks.PGD(n_iter=1, eot_iter=1)(defense, *arguments)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"norm": "L7"}, "`norm` must be one of"),
        ({"eps": -1.0}, "`eps` must be"),
        ({"n_iter": 0}, "`n_iter` must be an integer >= 1"),
        ({"eot_iter": 0}, "`eot_iter`"),
        ({"loss": "mse"}, "`loss` must be one of 'ce', 'margin'"),
        ({"step_size": 0.0}, "`step_size`"),
    ],
)
def test_bad_settings_are_named(settings, words):
    with pytest.raises(ValueError, match=words):
        fp.attacks.PGD(**settings)
