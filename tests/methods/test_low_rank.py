"""The Tucker truncation against SVDs and finite differences, where it has a derivative and where it has none."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastpure as fp
from fastpure.methods.low_rank import TuckerTruncation
from fastpure.purify.description import plain
from tests.methods.small import SMALL, images, purifier
from tests.methods.written_out import tucker
from tests.reverse.toys import toy_classifier, toy_denoiser


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _slope(function, x: torch.Tensor, direction: torch.Tensor, step: float = 1e-6) -> float:
    return float((function(x + step * direction) - function(x - step * direction)) / (2 * step))


@pytest.mark.parametrize("ranks", [(1, 3, 4), (3, 2, 7), (2, 6, 1), (3, 6, 7)])
def test_value_is_that_of_the_singular_vectors(ranks):
    x = _random(4, 3, 6, 7)
    found = TuckerTruncation(ranks)(x)
    torch.testing.assert_close(found, torch.stack([tucker(image, ranks) for image in x]))
    for mode, rank in enumerate(ranks):
        values = torch.linalg.svdvals(found.movedim(mode + 1, 1).flatten(2))
        assert int((values > 1e-9).sum(1).max()) <= rank


def test_an_image_of_that_rank_stays_and_what_is_orthogonal_goes():
    core, c, h, w = _random(2, 2, 3), _random(3, 2), _random(6, 2), _random(7, 3)
    low = torch.einsum("ijk,ci,hj,wk->chw", core, c, h, w)[None]
    torch.testing.assert_close(TuckerTruncation((2, 2, 3))(low), low)
    rows = torch.linalg.qr(torch.cat([h, _random(6, 4, seed=1)], 1))[0][:, 2:]
    cols = torch.linalg.qr(torch.cat([w, _random(7, 4, seed=2)], 1))[0][:, 3:]
    other = torch.einsum("jk,ci,hj,wk->chw", _random(4, 4, seed=3), c[:, :1], rows, cols)[None]
    torch.testing.assert_close(TuckerTruncation((2, 2, 3))(low + 1e-3 * other), low, rtol=0, atol=1e-9)


@pytest.mark.parametrize("ranks", [(1, 3, 4), (2, 6, 2), (3, 3, 7), (3, 6, 7), None])
def test_gradient_is_that_of_finite_differences(ranks):
    x, v = _random(2, 3, 6, 7), _random(2, 3, 6, 7, seed=1)
    truncate = TuckerTruncation(ranks)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((truncate(leaf) * v).sum(), leaf)
    for seed in range(3):
        direction = _random(*x.shape, seed=10 + seed)
        slope = _slope(lambda u: (truncate(u) * v).sum(), x, direction)
        assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_equal_singular_values_on_one_side_of_the_cut_do_no_harm():
    """Where the derivative of an SVD divides by zero."""
    q, r = (torch.linalg.qr(_random(6, 6, seed=seed))[0] for seed in (0, 1))
    x = (q * torch.tensor([3.0, 3, 3, 1, 1, 0.5], dtype=torch.float64) @ r)[None, None]
    truncate, v = TuckerTruncation((1, 3, 3)), _random(1, 1, 6, 6, seed=2)
    leaf = x.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((truncate(leaf) * v).sum(), leaf)
    direction = _random(1, 1, 6, 6, seed=3)
    slope = _slope(lambda u: (truncate(u) * v).sum(), x, direction)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_at_the_cut_the_gradient_is_finite_and_of_the_parts_that_can_be_told_apart():
    v = _random(1, 1, 6, 6, seed=2)

    def gradient_at(x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad((TuckerTruncation((1, 3, 3))(leaf) * v).sum(), leaf)[0]

    q, r = (torch.linalg.qr(_random(6, 6, seed=seed))[0] for seed in (0, 1))
    equal = (q * torch.tensor([4.0, 3, 2, 2, 1, 0.5], dtype=torch.float64) @ r)[None, None]
    assert gradient_at(equal).abs().max() < 10
    # Rank 2, which the derivative keeps: along a change within rank 2 it is right, across it is zero.
    low = (q[:, :2] * torch.tensor([4.0, 3.0], dtype=torch.float64) @ r[:2])[None, None]
    torch.testing.assert_close(TuckerTruncation((1, 3, 3))(low), low)
    left, right, away = _random(6, 2, seed=4) @ r[:2], q[:, :2] @ _random(2, 6, seed=5), q[:, 2:3] @ r[2:3]
    for change, expected in ((left + right, None), (away, 0.0)):
        wanted = float((change * v[0, 0]).sum()) if expected is None else expected
        assert float((gradient_at(low) * change).sum()) == pytest.approx(wanted, abs=1e-9)
    for blank in (torch.zeros(1, 1, 6, 6), torch.full((1, 1, 6, 6), -1.0)):
        assert bool(gradient_at(blank.double()).isfinite().all())


def test_float32_images_are_truncated_in_float64():
    x = _random(2, 3, 6, 7)
    wide, narrow = TuckerTruncation((2, 3, 3))(x), TuckerTruncation((2, 3, 3))(x.float())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow.double(), wide, rtol=0, atol=1e-6)


GUIDED = {
    "lorid": lambda: SMALL["lorid"](),
    "gdmp": lambda: replace(SMALL["gdmp"](), prepare=TuckerTruncation()),  # its guide is the image itself
    "likelihood_max": lambda: replace(SMALL["likelihood_max"](), prepare=TuckerTruncation((2, 3, 3))),
}


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_the_purifier_differentiates_through_preparation_and_table(name, memory):
    ours, u = purifier(GUIDED[name](), memory=memory), 0.1 + 0.8 * images(2)
    direction = _random(*u.shape)
    slope = _slope(lambda x: ours(x).square().sum(), u, direction)
    leaf = u.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(ours(leaf).square().sum(), leaf)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)
    states = ours.trajectory(u)
    torch.testing.assert_close(states[0], (ours.method.prepare(2 * u - 1) + 1) / 2)


def test_a_preparation_is_part_of_what_a_run_is_and_of_no_older_one():
    first, other = fp.methods.lorid(ranks=(1, 2, 2)), fp.methods.lorid(ranks=(1, 2, 3))
    assert first != other
    assert first.steps == other.steps
    assert plain(first) != plain(other)
    assert plain(first)["prepare"] == {"name": "TuckerTruncation", "settings": {"ranks": [1, 2, 2]}}
    assert "prepare" not in plain(fp.methods.ddpm())
    assert fp.methods.lorid(t=0.05, n_steps=10).coarser().prepare == TuckerTruncation()
    guided = replace(SMALL["coup"](), prepare=TuckerTruncation())
    assert guided.weakened(0.5).prepare == guided.weakened(0.0).prepare == TuckerTruncation()


def test_attacks_that_look_at_the_way_begin_at_the_prepared_image():
    ours = fp.Purifier(toy_denoiser(torch.float32), fp.methods.lorid(t=0.004, rounds=1, ranks=(1, 3, 3)))
    classifier = toy_classifier(torch.float32)
    u = 0.25 + 0.5 * images(3).float()
    result = fp.attacks.DiffAttack(eps=0.05, n_iter=2, eot_iter=1)(
        fp.Defense(ours, classifier), u, classifier(u).argmax(1)
    )
    assert float((result.x_adv - u).abs().max()) <= 0.05 + 1e-6


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"`ranks` must be three whole numbers of at most \(2, 8, 8\)"):
        purifier(fp.methods.lorid(ranks=(3, 4, 4)))
    for ranks in ((1, 2), (0, 1, 1), (1, 1, 2.5)):
        with pytest.raises((TypeError, ValueError), match="`ranks` must be"):
            fp.methods.lorid(ranks=ranks)
    with pytest.raises(ValueError, match="`rounds` must be"):
        fp.methods.lorid(rounds=0)
    leaf = images(1).requires_grad_(True)
    (gradient,) = torch.autograd.grad(TuckerTruncation()(leaf).sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        gradient.square().sum().backward()
