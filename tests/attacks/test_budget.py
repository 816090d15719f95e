"""Every budget holds exactly on the stored float32 pixels, whatever is proposed."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastpure.attacks import Budget
from fastpure.attacks.budget import onto_l1_ball_in_box

FINITE = st.floats(-3, 3, width=32)


def images(values: list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32).view(1, 1, 1, -1)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["Linf", "L2", "L1"]),
    st.floats(1e-3, 2.0),
    st.lists(st.tuples(st.floats(0, 1, width=32), FINITE), min_size=1, max_size=24),
)
def test_projection_stays_inside(norm, eps, pixels):
    x, candidate = images([p[0] for p in pixels]), images([p[1] for p in pixels])
    eps = min(eps, 1.0) if norm == "Linf" else eps
    budget = Budget(norm, eps)
    projected = budget.project(candidate, x)
    assert float(budget.distance(projected, x)) <= eps
    assert 0 <= float(projected.min()) <= float(projected.max()) <= 1
    assert torch.equal(budget.project(projected, x), projected), "projecting twice changes nothing"


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_projection_keeps_what_is_inside_and_reaches_the_edge(norm):
    x = torch.full((2, 3, 4, 4), 0.5)
    budget = Budget(norm, 0.3)
    inside = x + 0.001
    assert torch.equal(budget.project(inside, x), inside)
    far = budget.project(x + 10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), x)
    assert budget.distance(far, x) == pytest.approx([0.3, 0.3], abs=1e-5)


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_ascent_goes_uphill_by_the_step(norm):
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.rand(2, 1, 4, 4, generator=generator), torch.randn(2, 1, 4, 4, generator=generator)
    moved = Budget(norm, 1.0).ascend(x, gradient, 0.1)
    assert ((moved - x) * gradient).sum() > 0
    assert Budget(norm, 1.0).distance(moved, x) == pytest.approx([0.1, 0.1], abs=1e-6)
    still = Budget(norm, 1.0).ascend(x, torch.zeros_like(x), 0.1)
    assert torch.equal(still, x), "a zero gradient moves nothing and makes no NaN"


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_random_start_fills_the_ball(norm):
    x = torch.full((500, 1, 2, 2), 0.5)
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(0))
    budget = Budget(norm, 0.2)
    distance = budget.distance(budget.start(x, uniform), x)
    assert float(distance.max()) <= 0.2
    # In four dimensions (x/eps)^4 is uniform for both balls, so its mean is one half.
    assert float(((distance / 0.2) ** 4).mean()) == pytest.approx(0.5, abs=0.3 if norm == "Linf" else 0.1)


def test_mistakes():
    with pytest.raises(ValueError, match="`norm` must be one of 'Linf', 'L2', 'L1', got 'L3'"):
        Budget("L3", 0.1)
    with pytest.raises(ValueError, match=r"`eps` must be a finite number above 0"):
        Budget("Linf", 0.0)


def by_bisection(candidate: torch.Tensor, x: torch.Tensor, radius: float) -> torch.Tensor:
    """The same projection, with the multiplier found by halving instead of sorting."""
    wish = candidate - x
    room = torch.where(wish > 0, 1 - x, x)

    def moved(m):
        return torch.minimum((wish.abs() - m).clamp_min(0), room)

    low, high = 0.0, float(wish.abs().max()) + 1
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(moved(middle).sum()) > radius else (low, middle)
    return x + wish.sign() * moved(high if float(moved(0.0).sum()) > radius else 0.0)


@settings(max_examples=200, deadline=None)
@given(
    st.floats(0.0, 3.0),
    st.lists(st.tuples(st.floats(0, 1), st.floats(-3, 3)), min_size=1, max_size=12),
)
def test_l1_projection_is_the_nearest_point(radius, pixels):
    x = torch.tensor([p[0] for p in pixels], dtype=torch.float64)
    candidate = torch.tensor([p[1] for p in pixels], dtype=torch.float64)
    projected = onto_l1_ball_in_box(candidate[None], x[None], radius)[0]
    assert torch.allclose(projected, by_bisection(candidate, x, radius), atol=1e-9)
    assert float((projected - x).abs().sum()) <= radius + 1e-9
    assert 0 <= float(projected.min()) <= float(projected.max()) <= 1
    # Obtuse angle: no admissible point lies beyond the projection.
    others = onto_l1_ball_in_box(
        torch.rand(50, len(x), dtype=torch.float64) * 4 - 2, x.expand(50, -1), radius
    )
    assert float(((candidate - projected) * (others - projected)).sum(1).max()) <= 1e-7


def test_l1_projection_of_many_images_is_that_of_each():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(5, 30, generator=generator)
    candidate = x + torch.randn(5, 30, generator=generator)
    together = onto_l1_ball_in_box(candidate, x, 2.0)
    for i in range(5):
        assert torch.equal(onto_l1_ball_in_box(candidate[i : i + 1], x[i : i + 1], 2.0)[0], together[i])
    one_after_the_other = onto_l1_ball_in_box(candidate.clamp(0, 1), x, 2.0)
    assert not torch.allclose(together, one_after_the_other), "clamping first is another point"


def test_grey_levels_are_not_taken_for_a_budget():
    with pytest.raises(ValueError, match=r"`eps` must be at most 1 for norm 'Linf', got 8.* write 8/255"):
        Budget("Linf", 8)
    assert Budget("L2", 3.0).eps == 3.0
