"""COUP's proposition 1: guidance lowers the label-flip probability, a noisy classifier raises it again."""

import pytest

from docs.two_gaussians import flip_probability


def test_clean_guidance_prevents_flips_and_noise_brings_them_back():
    unguided = flip_probability(0.0)
    guided = [flip_probability(scale) for scale in (1.0, 2.0)]
    noisy = [flip_probability(2.0, noise) for noise in (4.0, 16.0)]
    # Standard error of a share of 4000 is at most 0.008; the steps asserted are several of these.
    assert guided[0] < unguided - 0.03
    assert guided[1] < guided[0] - 0.02
    assert guided[1] + 0.02 < noisy[0] < noisy[1]
    assert noisy[1] > guided[1] + 0.05


def test_no_guidance_is_scale_zero():
    assert flip_probability(0.0, noise=0.0, n=500) == pytest.approx(flip_probability(0.0, noise=16.0, n=500))
