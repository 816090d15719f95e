"""Corruptions: what they do to pixels, that they are functions of seed and id, and that nothing else shares them."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.evaluate import CONTROLS, GaussianNoise, SaltAndPepper
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal
from tests.evaluate.toys import Brightness, dataset, defense

GREY = torch.full((400, 3, 5, 7), 0.5)
Y = torch.zeros(400, dtype=torch.int64)


def corrupt(control, x=GREY, ids=None):
    return control(Brightness().eval(), x, Y[: len(x)], sample_ids=ids).x_adv


def test_salt_and_pepper_replaces_whole_pixels_at_the_stated_rate():
    out = corrupt(SaltAndPepper(amount=0.1))
    replaced = out != 0.5
    assert torch.equal(replaced.any(1), replaced.all(1)), "all channels or none"
    assert set(out.unique().tolist()) == {0.0, 0.5, 1.0}
    n = 400 * 35
    for value in (0.0, 1.0):
        share = float((out[:, 0] == value).double().mean())
        assert abs(share - 0.05) < 4 * (0.05 * 0.95 / n) ** 0.5


def test_gaussian_noise_has_the_stated_spread_and_is_clamped():
    difference = (corrupt(GaussianNoise(std=0.05)) - GREY).double()
    assert float(difference.std()) == pytest.approx(0.05, rel=0.02)
    assert abs(float(difference.mean())) < 4 * 0.05 / difference.numel() ** 0.5
    wide = corrupt(GaussianNoise(std=2.0))
    assert (float(wide.min()), float(wide.max())) == (0.0, 1.0)


@pytest.mark.parametrize("control", CONTROLS.values())
def test_noise_depends_on_seed_and_id_only(control):
    ids = torch.arange(100, 140)
    whole = corrupt(control(seed=3), GREY[:40], ids)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(0))
    assert torch.equal(corrupt(control(seed=3, batch_size=7), GREY[:40], ids[order]), whole[order])
    assert torch.equal(corrupt(control(seed=3), GREY[:5], ids[:5]), whole[:5])
    assert not torch.equal(corrupt(control(seed=4), GREY[:40], ids), whole)


def test_corruption_is_not_the_defences_own_noise():
    ids = torch.arange(4)
    x = torch.full((4, 1, 8, 8), 0.5)
    own = corrupt(GaussianNoise(std=0.01), x, ids) - x
    for domain in Domain:
        for stream in (Stream.FORWARD, Stream.REVERSE, Stream.GUIDANCE):
            keys = NoiseKeys.make(seed=0, sample_ids=ids, draw=0, domain=domain)
            noise = philox_normal(keys, 0, stream, (1, 8, 8))
            correlation = torch.corrcoef(torch.stack([own.flatten(), noise.flatten()]))[0, 1]
            assert abs(float(correlation)) < 0.35, f"{domain.name} {stream.name}"


def test_controls_run_under_every_protocol():
    for control in CONTROLS.values():
        report = fp.evaluate(defense(), dataset(8), control(), fp.protocols.majority(3), progress=False)
        assert report.robust is not None
        assert "corrupt " in str(report)
        assert report.attack is not None
        assert control.__name__ in report.attack


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: SaltAndPepper(amount=0.0), "`amount`"),
        (lambda: SaltAndPepper(amount=1.5), "`amount` must be a share"),
        (lambda: GaussianNoise(std=-1.0), "`std`"),
        (lambda: GaussianNoise(seed=-1), "`seed`"),
    ],
)
def test_mistakes_are_named(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_an_empty_batch():
    for control in CONTROLS.values():
        assert corrupt(control(), GREY[:0]).shape == (0, 3, 5, 7)
