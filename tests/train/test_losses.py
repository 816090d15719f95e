"""The training contract: labels 999 t, VP coefficients, random numbers that depend on (seed, step) only."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastpure.train import Augment, Batch, ClassifierLoss, DenoiserLoss, StepRandom, Trainer, score_denoiser
from fastpure.train.batches import BatchOrder, Purpose
from tests.train.helpers import SmallClassifier, few_digits, fresh, quick

CPU = torch.device("cpu")


class Recorder(nn.Module):
    """Keeps what it was asked, predicts zero."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        self.x, self.labels = x, labels
        return torch.zeros_like(x)


def _batch(count: int, step: int = 7, seed: int = 5) -> Batch:
    digits = few_digits(count)
    return Batch(digits.images, digits.labels, StepRandom(seed, step, 0, count, CPU))


def test_denoiser_loss_uses_label_999t_and_the_vp_coefficients() -> None:
    recorder, batch = Recorder(), _batch(64)
    losses = DenoiserLoss(t_max=0.3)(recorder, batch)
    t = recorder.labels.double() / 999
    assert t.min() >= 1e-5
    assert 0.2 < t.max() <= 0.3  # labels of 1000 t or of another range would leave this interval
    x0 = 2 * batch.images.double() - 1
    signal = torch.exp(-0.1 * t - 9.95 * t**2).view(-1, 1, 1, 1)  # alpha-bar(t), methods of Song et al. 2021
    noise = (recorder.x.double() - signal.sqrt() * x0) / (1 - signal).sqrt()
    expected = batch.random.normal(Purpose.NOISE, (1, 8, 8)).double()
    torch.testing.assert_close(noise, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(losses.double(), expected.square().mean((1, 2, 3)), rtol=1e-5, atol=0)


def test_denoiser_loss_at_one_tenth_has_the_published_coefficients() -> None:
    recorder, batch = Recorder(), _batch(3)
    DenoiserLoss(t_min=0.1 - 1e-9, t_max=0.1)(recorder, batch)
    noise = batch.random.normal(Purpose.NOISE, (1, 8, 8))
    torch.testing.assert_close(recorder.labels, torch.full((3,), 99.9))
    expected = math.sqrt(0.896282) * (2 * batch.images - 1) + 0.322053 * noise
    torch.testing.assert_close(recorder.x, expected, rtol=0, atol=1e-5)


def test_perfect_denoiser_has_no_loss_and_perfect_score() -> None:
    """A network that knows the image: what the loss asks for is exactly the noise that was added."""
    digits = few_digits(8)

    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

        def forward(self, x: Tensor, labels: Tensor) -> Tensor:
            t = labels.double() / 999
            signal = torch.exp(-0.1 * t - 9.95 * t**2).view(-1, 1, 1, 1)
            return ((x.double() - signal.sqrt() * (2 * digits.images - 1)) / (1 - signal).sqrt()).float()

    assert DenoiserLoss(t_max=0.3)(Oracle(), _batch(8)).max() < 1e-6
    for score in score_denoiser(Oracle(), digits):
        assert score.noise_mse < 1e-9
        assert score.psnr > 80


def test_predicting_zero_scores_one_and_the_noise_level() -> None:
    class Zero(Recorder):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))

    (score,) = score_denoiser(Zero(), few_digits(), (0.1,), draws=4)
    assert score.noise_mse == pytest.approx(1, abs=0.02)
    # x / alpha is the image plus noise of deviation sigma / alpha; clamping can only reduce that error
    assert score.psnr > -20 * math.log10(0.322053 / math.sqrt(0.896282) / 2)


def test_random_numbers_do_not_depend_on_how_the_batch_is_cut() -> None:
    whole = StepRandom(3, 11, 0, 10, CPU)
    parts = [StepRandom(3, 11, 0, 4, CPU), StepRandom(3, 11, 4, 10, CPU)]
    for draw in (lambda r: r.normal(Purpose.NOISE, (1, 8, 8)), lambda r: r.uniform(Purpose.TIME)):
        torch.testing.assert_close(torch.cat([draw(part) for part in parts]), draw(whole), rtol=0, atol=0)
    for other in (StepRandom(3, 12, 0, 10, CPU), StepRandom(4, 11, 0, 10, CPU)):
        assert not torch.isclose(other.uniform(Purpose.TIME), whole.uniform(Purpose.TIME)).any()
    assert not torch.isclose(whole.uniform(Purpose.TIME), whole.uniform(Purpose.NOISE)).any()


def test_accumulation_gives_the_gradient_of_the_whole_batch() -> None:
    losses, weights = [], []
    for parts in (1, 3):
        model = nn.Sequential(nn.Flatten(), fresh(lambda: nn.Linear(64, 10)))  # type: ignore[arg-type]
        loss = ClassifierLoss(Augment(shift=1, flip=True))
        trainer = Trainer(model, loss, few_digits(), quick(accumulate=parts, optimizer="sgd"))
        losses.append(torch.stack([trainer.advance() for _ in range(5)]))
        weights.append(model[1].weight.detach())
    torch.testing.assert_close(losses[0], losses[1])
    torch.testing.assert_close(weights[0], weights[1])


def test_batches_visit_every_image_once_per_epoch_in_a_new_order() -> None:
    order = BatchOrder(few_digits(10), 4, seed=0)
    rows = torch.cat([order.rows(step) for step in range(10)])
    epochs = rows.view(4, 10)
    assert all(torch.equal(epoch.sort().values, torch.arange(10)) for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    assert torch.equal(BatchOrder(few_digits(10), 4, seed=0).rows(7), rows[28:32])
    assert not torch.equal(BatchOrder(few_digits(10), 4, seed=1).rows(0), rows[:4])
    assert len(BatchOrder(few_digits(10), 25, seed=0).rows(3)) == 25


def test_shift_moves_each_image_and_fills_with_black() -> None:
    digits, random = few_digits(60), StepRandom(0, 0, 0, 60, CPU)
    moved = Augment(shift=1)(digits.images, random)
    padded = np.pad(digits.images.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = set()
    for image, canvas in zip(moved.numpy(), padded, strict=True):
        places = [
            (y, x)
            for y in range(3)
            for x in range(3)
            if np.array_equal(canvas[:, y : y + 8, x : x + 8], image)
        ]
        assert places
        found.update(places if len(places) == 1 else [])
    assert len(found) == 9


def test_flip_mirrors_about_half_of_the_images() -> None:
    digits, random = few_digits(100), StepRandom(0, 0, 0, 100, CPU)
    flipped = Augment(flip=True)(digits.images, random)
    mirrored = (flipped == digits.images.flip(3)).flatten(1).all(1)
    kept = (flipped == digits.images).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert 30 < mirrored.sum() < 70


def test_classifier_loss_is_cross_entropy_per_image() -> None:
    batch, model = _batch(20), fresh(SmallClassifier).eval()
    with torch.no_grad():
        losses = ClassifierLoss()(model, batch)
        logits = model(batch.images)
    expected = logits.logsumexp(1) - logits.gather(1, batch.labels[:, None])[:, 0]
    torch.testing.assert_close(losses, expected)


@pytest.mark.parametrize("t_max", [0.0, 1.5, 1e-6])
def test_impossible_time_ranges_are_refused(t_max: float) -> None:
    with pytest.raises(ValueError, match="`t_max` must be above t_min"):
        DenoiserLoss(t_max=t_max)
