"""Wilson intervals against SciPy's."""

import math

import pytest
from scipy.stats import binomtest

from fastpure.intervals import wilson


@pytest.mark.parametrize(("k", "n"), [(0, 10), (10, 10), (5, 10), (358, 512), (1, 1), (37, 64)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_same_as_scipy(k, n, confidence):
    ours = wilson(k, n, confidence)
    theirs = binomtest(k, n).proportion_ci(confidence, method="wilson")
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert ours.low <= ours.estimate <= ours.high


def test_width_users_should_expect():
    interval = wilson(0.7 * 512, 512)
    assert (interval.high - interval.low) / 2 == pytest.approx(0.040, abs=0.001)
    assert str(interval) == "70.0 % [65.9, 73.8]"


def test_nothing_measured():
    interval = wilson(0, 0)
    assert math.isnan(interval.estimate)
    assert (interval.low, interval.high) == (0.0, 1.0)


@pytest.mark.parametrize("bad", [(-1, 5), (6, 5)])
def test_impossible_counts(bad):
    with pytest.raises(ValueError, match="`successes` must be in"):
        wilson(*bad)
