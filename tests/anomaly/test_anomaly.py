"""The detector against its formula and plain autograd; the attack; keyed noise."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastpure as fp
from fastpure.anomaly import AnomalyAttack, mean_score
from fastpure.data import load_dataset
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from tests.train.helpers import RoughDenoiser, fresh


def _denoiser(prediction: str = "eps", time_input: str = "continuous") -> fp.Denoiser:
    return fp.Denoiser.from_module(fresh(RoughDenoiser), prediction, time_input, (1, 8, 8)).eval()


def _digits(count: int) -> Tensor:
    return load_dataset("digits", "test").images[:count]


def _by_hand(network: nn.Module, x: Tensor, t_min: float, t_max: float, scales: list[int]) -> Tensor:
    """Error maps as in methods.md 2.12, the filter as a loop over pixels."""
    keys = NoiseKeys.make(0, range(len(x)), 3)
    u = philox_uniform(keys, 1, Stream.FORWARD, (1, 1, 1), dtype=torch.float64).flatten()
    noise = philox_normal(keys, 0, Stream.FORWARD, (1, 8, 8))
    t = t_min + (t_max - t_min) * u
    signal = torch.exp(-0.1 * t - 9.95 * t**2).view(-1, 1, 1, 1).to(x.dtype)
    state = signal.sqrt() * (2 * x - 1) + (1 - signal).sqrt() * noise
    output = network(state, (999 * t).float())
    rebuilt = (state - (1 - signal).sqrt() * output) / signal.sqrt()
    error = torch.zeros_like(x)
    for s in scales:
        pools = [F.avg_pool2d(image, s) for image in (rebuilt, 2 * x - 1)]
        error += F.interpolate((pools[0] - pools[1]) ** 2, size=(8, 8), mode="bilinear") / len(scales)
    smooth = torch.stack(
        [
            error[:, :, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2].mean((2, 3))
            for i in range(8)
            for j in range(8)
        ],
        -1,
    )
    return smooth.view_as(x)


def test_score_follows_the_formula() -> None:
    denoiser, x = _denoiser(), _digits(6)
    detector = fp.AnomalyDetector(denoiser, t_min=0.05, t_max=0.2, scales=(1, 2, 4, 8, 16))
    assert detector.scales == (1, 2, 4, 8)
    maps = _by_hand(denoiser.network, x, 0.05, 0.2, [1, 2, 4, 8])
    torch.testing.assert_close(detector.error_map(x, draw=3), maps, rtol=1e-4, atol=1e-6)
    detector.fit(_digits(20), draws=2)
    mean = torch.stack(
        [detector.error_map(_digits(20), draw=d, domain=Domain.TRAINING).mean((0, 1)) for d in (0, 1)]
    ).mean(0)
    torch.testing.assert_close(detector.mean_error, mean)
    expected = (maps - mean).abs().amax((1, 2, 3))
    torch.testing.assert_close(detector.score(x, draw=3), expected, rtol=1e-4, atol=1e-6)


def test_gradient_is_exact() -> None:
    denoiser = fp.Denoiser.from_module(fresh(RoughDenoiser).double(), image_shape=(1, 8, 8)).eval()
    detector = fp.AnomalyDetector(denoiser, scales=(1, 2)).double()
    detector.fit(_digits(10).double())
    x = (0.1 + 0.8 * _digits(2)).double().requires_grad_(True)
    (gradient,) = torch.autograd.grad(detector.score(x).sum(), x)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        ends = [detector.score(x + step * direction).sum() for step in (1e-6, -1e-6)]
    slope = (ends[0] - ends[1]) / 2e-6
    assert (gradient * direction).sum().item() == pytest.approx(slope.item(), rel=1e-5)
    assert all(weight.grad is None for weight in denoiser.parameters())


@pytest.mark.parametrize(
    ("prediction", "time_input"), [("eps", "index"), ("x0", "sigma"), ("v", "continuous"), ("eps", "sigma")]
)
def test_a_denoiser_that_knows_the_image_rebuilds_it_in_every_convention(
    prediction: str, time_input: str
) -> None:
    x = _digits(4)

    class Oracle(nn.Module):
        def forward(self, seen: Tensor, labels: Tensor) -> Tensor:
            x0 = 2 * x - 1
            if time_input == "index":
                bars = torch.cumprod(1 - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64), 0)[labels]
            elif time_input == "sigma":
                return x0 if prediction == "x0" else (seen - x0) / labels.view(-1, 1, 1, 1)
            else:
                t = labels.double() / 999
                bars = torch.exp(-0.1 * t - 9.95 * t**2)
            a, s = (level.view(-1, 1, 1, 1).float() for level in (bars.sqrt(), (1 - bars).sqrt()))
            noise = (seen - a * x0) / s
            return a * noise - s * x0 if prediction == "v" else noise

    detector = fp.AnomalyDetector(fp.Denoiser.from_module(Oracle(), prediction, time_input, (1, 8, 8)))
    torch.testing.assert_close(detector.reconstruct(x), x, rtol=0, atol=2e-5)


def test_noise_and_time_depend_on_id_and_draw_only() -> None:
    detector = fp.AnomalyDetector(_denoiser()).fit(_digits(10))
    x = _digits(5)
    whole = detector.score(x, [3, 1, 4, 5, 9], draw=2)
    part = detector.score(x[3:], [5, 9], draw=torch.tensor([2, 2]))
    torch.testing.assert_close(whole[3:], part)
    for other in (
        detector.score(x, [3, 1, 4, 5, 9], draw=1),
        detector.score(x, [3, 1, 4, 5, 9], draw=2, domain=Domain.ATTACK),
    ):
        assert not torch.isclose(whole, other).any()


def test_images_unlike_the_normal_ones_score_higher() -> None:
    denoiser, data = fp.load_denoiser("digits"), load_dataset("digits", "test")
    normal = data.images[:60]
    noise = torch.rand(30, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    detector = fp.AnomalyDetector(denoiser).fit(normal, draws=1)
    assert (
        mean_score(detector, noise, draws=2).median()
        > mean_score(detector, data.images[60:90], draws=2).max()
    )


@pytest.mark.parametrize("norm", ["Linf", "L2"])
def test_attack_moves_scores_both_ways_within_the_budget(norm: str) -> None:
    detector = fp.AnomalyDetector(fp.load_denoiser("digits")).fit(_digits(20), draws=1)
    x, anomalous = _digits(12), torch.arange(12) % 2 == 0
    attack = AnomalyAttack(norm=norm, eps=0.1 if norm == "Linf" else 0.5, n_iter=6, eot_iter=2, eval_draws=4)
    result = attack(detector, x, anomalous)
    change = result.attacked_score - result.clean_score
    assert change[anomalous].mean() < -0.02 * result.clean_score.mean()
    assert change[~anomalous].mean() > 0.1 * result.clean_score.mean()
    assert result.distance.max() <= attack.eps
    assert result.x_adv.min() >= 0
    assert result.x_adv.max() <= 1
    torch.testing.assert_close(result.clean_score, mean_score(detector, x, None, 4))


def test_mistakes_are_named() -> None:
    detector = fp.AnomalyDetector(_denoiser())
    with pytest.raises(RuntimeError, match=r"call fit\(normal\) first"):
        detector.score(_digits(1))
    for change, message in (
        ({"t_min": 0.3, "t_max": 0.1}, "`t_min, t_max` must be"),
        ({"scales": (16,)}, "`scales` must be with at least one block"),
        ({"window": 2}, "`window` must be odd"),
    ):
        with pytest.raises(ValueError, match=message):
            fp.AnomalyDetector(_denoiser(), **change)
    with pytest.raises(TypeError, match="`x` must be a float32 tensor"):
        detector.fit(torch.zeros(2, 3, 8, 8))
    with pytest.raises(ValueError, match="`x` must be in"):
        detector.fit(torch.full((1, 1, 8, 8), 255.0))
    with pytest.raises(ValueError, match="`anomalous` must be a bool tensor"):
        AnomalyAttack()(detector, _digits(2), torch.tensor([0, 1]))
    assert math.isnan(detector.mean_error[0, 0])
