"""StAdv moves pixels by no more than its bound, the low-frequency attack blurs within its perceptual one."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.attacks import DiffPureStAdv, LowFrequency, StAdv
from fastpure.attacks.low_frequency import PerceptualBudget, filtered
from fastpure.attacks.stadv import roughness, warp
from fastpure.errors import MissingExtra
from tests.attacks.test_every_attack import mean_square
from tests.attacks.toys import Pixels, images, mixture_defense


def test_warp_moves_pixels_where_the_flow_says():
    x = images(2)
    still = torch.zeros(2, 2, 5, 5)
    assert torch.allclose(warp(x, still), x, atol=1e-6)
    right = still.clone()
    right[:, 0] = 2 / 5  # one of five pixels, in units of half the side
    moved = warp(x, right)
    assert torch.allclose(moved[..., :4], x[..., 1:], atol=1e-6)
    assert torch.allclose(moved[..., 4], x[..., 4], atol=1e-6), "the edge is repeated"
    assert float(roughness(right).max()) < 1e-4, "a common shift is smooth"


def test_stadv_breaks_a_classifier_and_stays_within_its_flow():
    x = images(10)
    y = Pixels()(x).argmax(1)
    result = StAdv(bound=0.3, n_iter=15)(Pixels(), x, y)
    assert result.robust_accuracy.estimate < 0.7 < result.clean_accuracy.estimate
    assert float(result.losses[-1].mean()) > float(result.losses[0].mean())
    # A displacement of less than a pixel only mixes neighbours: values stay within each 3 x 3 patch.
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
    highest = torch.nn.functional.max_pool2d(padded, 3, 1)
    lowest = -torch.nn.functional.max_pool2d(-padded, 3, 1)
    assert bool((result.x_adv <= highest + 1e-6).all())
    assert bool((result.x_adv >= lowest - 1e-6).all())


def test_a_strong_penalty_keeps_the_flow_together():
    x = images(4)
    y = Pixels()(x).argmax(1)
    free, held = (
        StAdv(bound=0.2, n_iter=8, smoothness=s)(Pixels(), x, y).losses[-1].mean() for s in (0.0, 50.0)
    )
    assert float(free) > float(held)


def test_diffpures_stadv_is_adam_on_the_margin_and_a_penalty_that_falls_with_the_bound():
    x = images(3)
    y = Pixels()(x).argmax(1)
    n_iter, bound = 7, 0.05
    # Written out, in float64: the penalty of 0.0025 / bound, Adam with rate 0.01, the flow cut back after every step.
    model, pictures = Pixels().double(), x.double()
    flow = torch.zeros(3, 2, 5, 5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([flow], lr=0.01)
    losses = []
    for _ in range(n_iter):
        logits = model(warp(pictures, flow))
        true = logits.gather(1, y[:, None])[:, 0]
        best = logits.scatter(1, y[:, None], -torch.inf).amax(1)
        losses.append((best - true).detach())
        goal = (best - true).sum() - (0.0025 / bound) * roughness(flow).sum()
        (gradient,) = torch.autograd.grad(goal, flow)
        flow.grad = -gradient
        adam.step()
        with torch.no_grad():
            flow.clamp_(-bound, bound)
    result = DiffPureStAdv(n_iter=n_iter)(Pixels(), x, y)
    assert torch.allclose(result.x_adv.double(), warp(pictures, flow).detach(), atol=1e-4)
    assert torch.allclose(result.losses.double(), torch.stack(losses), atol=1e-4)
    signed = StAdv(n_iter=n_iter, loss="margin", smoothness=0.05, step_size=0.01)(Pixels(), x, y)
    assert not torch.allclose(signed.x_adv, result.x_adv, atol=1e-3), "sign steps are another attack"


def test_diffpures_stadv_has_its_published_constants():
    attack = fp.attacks.from_settings("diffpure-stadv")
    assert (attack.bound, attack.n_iter, attack.step_size, attack.loss) == (0.05, 100, 0.01, "margin")
    assert attack.weight == pytest.approx(0.05), "0.0025 / 0.05"
    assert DiffPureStAdv(bound=0.1).weight == pytest.approx(0.025)
    assert DiffPureStAdv(smoothness=0.0).weight == 0.0
    assert StAdv().weight == 0.0005
    for kind in (StAdv, DiffPureStAdv):
        with pytest.raises(ValueError, match="`smoothness` must be a finite number >= 0"):
            kind(smoothness=-1.0)
    with pytest.raises(ValueError, match="`step_size` must be a finite number above 0"):
        DiffPureStAdv(step_size=0.0)


def test_filters_average_what_has_one_colour_and_spare_edges():
    flat = torch.full((1, 1, 6, 6), 0.4)
    assert torch.allclose(filtered(flat, flat, torch.zeros(1, 9, 6, 6), 3, 0.05), flat)
    edge = torch.zeros(1, 1, 6, 6)
    edge[..., 3:] = 1.0
    assert torch.allclose(filtered(edge, edge, torch.zeros(1, 9, 6, 6), 3, 0.05), edge, atol=1e-6)
    blurred = filtered(edge, flat, torch.zeros(1, 9, 6, 6), 3, 0.05)
    assert float(blurred[0, 0, 2, 2]) == pytest.approx(1 / 3)


def test_the_low_frequency_attack_works_within_its_bound():
    x = images(8)
    y = Pixels()(x).argmax(1)
    result = LowFrequency(bound=0.01, n_iter=40, metric=mean_square, penalty=1e4)(Pixels(), x, y)
    assert float(result.distance.max()) <= 0.01
    assert torch.allclose(result.distance, mean_square(result.x_adv, x).double())
    assert result.robust_accuracy.estimate < 0.7 < result.clean_accuracy.estimate


def test_the_perceptual_projection_goes_as_far_as_it_may():
    x, budget = images(3), PerceptualBudget(0.01, mean_square)
    far = 1.0 - x
    projected = budget.project(far, x)
    assert budget.distance(projected, x) == pytest.approx([0.01] * 3, rel=1e-3)
    assert float(budget.distance(projected, x).max()) <= 0.01
    near = (x + 0.001).clamp(0, 1)
    assert torch.equal(budget.project(near, x), near)


def test_lpips_is_asked_for_by_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lpips", None)
    from fastpure.attacks.low_frequency import lpips_vgg

    lpips_vgg.cache_clear()
    with pytest.raises(
        MissingExtra, match=r"LPIPS distance needs the package lpips .*fastpure\[perceptual\]"
    ):
        LowFrequency(n_iter=1)(Pixels(), images(1), torch.tensor([0]))
    with pytest.raises(ValueError, match="`kernels` must be odd sizes"):
        LowFrequency(kernels=(4,))
    with pytest.raises(ValueError, match="`bound` must be a finite number above 0"):
        fp.attacks.from_settings("stadv", bound=0.0)
    assert StAdv(n_iter=2)(mixture_defense(Pixels()), images(2), torch.tensor([0, 1])).x_adv.shape == (
        2,
        1,
        5,
        5,
    )
