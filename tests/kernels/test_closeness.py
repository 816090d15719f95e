"""The comparators find the errors they are there for."""

from __future__ import annotations

import math

import pytest
import torch

from tests.kernels.closeness import Distance, distance, largest_error

TRUTH = torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_equal_tensors_are_at_no_distance():
    assert distance(TRUTH, TRUTH) == Distance(0.0, 0.0, 0.0)
    assert distance(0 * TRUTH, 0 * TRUTH).within(Distance(0, 0, 0))
    assert not distance(TRUTH, 0 * TRUTH).within(Distance(1e9, 1e9, 1e9))


def test_a_scale_is_no_angle():
    found = distance(1.01 * TRUTH, TRUTH)
    assert found.rel_l2 == pytest.approx(0.01)
    assert found.angle < 1e-15


def test_a_small_angle_is_not_lost_to_rounding():
    other = torch.zeros_like(TRUTH)
    other[0], other[1] = -TRUTH[1], TRUTH[0]
    other *= 1e-7 * TRUTH.norm() / other.norm()
    assert distance(TRUTH + other, TRUTH).angle == pytest.approx(0.5e-14, rel=1e-3)


def test_bias_has_a_sign():
    assert distance(TRUTH + 0.5, TRUTH).bias == pytest.approx(0.5 / float(TRUTH.abs().mean()))
    assert distance(TRUTH - 0.5, TRUTH).bias < 0
    assert not distance(TRUTH - 0.5, TRUTH).within(Distance(math.inf, math.inf, 0.1))


def test_nan_is_never_close():
    broken = TRUTH.clone()
    broken[3] = math.nan
    assert not distance(broken, TRUTH).within(Distance(math.inf, math.inf, math.inf))
    assert largest_error(broken, TRUTH) == math.inf
    assert largest_error(TRUTH + 2, TRUTH) == pytest.approx(2)
