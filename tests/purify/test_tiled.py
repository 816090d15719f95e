"""Tiles: exact joining, no seams, noise that belongs to places, exact gradients, wrong input."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.diagnostics import distance_bound
from fastpure.purify import TiledPurifier, look_through
from fastpure.purify.tiled import Axis
from fastpure.reverse import PlacedNoise, RecordedNoise

METHOD = fp.methods.diffpure(0.1, 0.05)


def purifier(**options):
    return fp.Purifier(fp.load_denoiser("digits"), METHOD, seed=3, **options)


@pytest.mark.parametrize(
    ("length", "size", "overlap"),
    [(8, 8, 2), (9, 8, 2), (20, 8, 2), (21, 8, 0), (50, 8, 3), (3, 8, 2), (1, 8, 2)],
)
def test_an_axis_is_cut_and_joined_to_the_same(length, size, overlap):
    axis = Axis(length, size, overlap)
    starts = axis.starts
    assert starts[0] == 0
    assert max(starts) + size >= length
    assert all(0 < b - a <= size - overlap for a, b in pairwise(starts))
    x = torch.rand(2, length, 3, dtype=torch.float64)
    torch.testing.assert_close(axis.join(axis.cut(x, 1), 1), x, rtol=0, atol=1e-15)
    _, shares = axis.parts
    torch.testing.assert_close(shares.sum(0), torch.ones(length, dtype=torch.float64), rtol=0, atol=1e-15)
    assert (shares >= 0).all()
    # A seam is a jump of the shares: where there is overlap the largest step is a fraction of it.
    if overlap >= 2 and len(starts) > 1:
        tile = torch.zeros(len(starts) * size, 1, dtype=torch.float64)
        tile[:size] = 1.0
        assert axis.join(tile, 0).diff(dim=0).abs().max() <= 1.6 / overlap


def test_a_picture_of_one_tile_differs_from_a_purifier_in_its_noise_only():
    x = torch.rand(2, 1, 8, 8)
    tiled = purifier().tiled(8, 8)
    assert tiled.n_tiles == 1
    out = tiled(x, [4, 7], 1)
    keys = fp.kernels.NoiseKeys.make(3, [4, 7], 1)
    zeros = torch.zeros(2, dtype=torch.int64)
    where = PlacedNoise(keys, keys, torch.arange(2), zeros, zeros)
    bound = where.bind(METHOD.steps, x)
    rows = [bound.row(k) for k in range(len(METHOD.steps))]
    recorded = RecordedNoise(forward=rows[0], steps=torch.stack(rows[1:]))
    assert torch.equal(out, purifier()(x, noise=recorded))
    assert not torch.equal(rows[0][0], rows[0][1])


def test_noise_belongs_to_places():
    keys = fp.kernels.NoiseKeys.make(3, [4], 0)

    def at(top, left):
        zeros = torch.zeros(len(top), dtype=torch.int64)
        placed = PlacedNoise(keys, keys, zeros, torch.tensor(top), torch.tensor(left))
        return placed.bind(METHOD.steps, torch.zeros(len(top), 1, 8, 8)).row(1)

    many = at([0, 3, 8, 5], [0, 5, 8, 16])
    assert torch.equal(many[1, :, :5, :3], many[0, :, 3:, 5:])
    assert torch.equal(many[1, :, 5:, 3:], many[2, :, :3, :5])
    assert torch.equal(at([5], [16])[0], many[3])
    far = at([0] * 64, [8 * i for i in range(64)]).flatten(1).double()
    assert abs(float(far.mean())) < 0.05
    assert abs(float(far.std()) - 1) < 0.05
    assert torch.corrcoef(far).fill_diagonal_(0).abs().max() < 0.6


def test_no_batch_no_company_and_no_other_picture_matters():
    x = torch.rand(3, 1, 13, 20)
    base = purifier()
    whole = base.tiled(13, 20)(x, [5, 1, 9], 2)
    assert whole.shape == x.shape
    torch.testing.assert_close(base.tiled(13, 20, batch_size=5)(x, [5, 1, 9], 2), whole, rtol=0, atol=2e-6)
    torch.testing.assert_close(base.tiled(13, 20)(x[1:2], [1], 2), whole[1:2], rtol=0, atol=2e-6)
    assert not torch.allclose(base.tiled(13, 20)(x[1:2], [2], 2), whole[1:2], atol=1e-3)
    assert not torch.allclose(base.tiled(13, 20)(x, [5, 1, 9], 3), whole, atol=1e-3)


def test_no_seam_shows():
    # A denoiser that predicts nothing leaves the image and the noise of places: all tiles agree where they overlap.
    class Nothing(nn.Module):
        def forward(self, x, labels):
            return 0.0 * x

    denoiser = fp.Denoiser.from_module(Nothing().eval(), image_shape=(1, 8, 8))
    plain = fp.Purifier(denoiser, METHOD, seed=3, precision="fp64")
    x = torch.full((1, 1, 30, 30), 0.5, dtype=torch.float64)
    overlapping, apart = plain.tiled(30, 30, overlap=3)(x), plain.tiled(30, 30, overlap=0)(x)
    torch.testing.assert_close(overlapping, apart, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(11, 9), (5, 12)])
def test_gradients_are_exact(size):
    tiled = purifier(precision="fp64").tiled(*size, batch_size=3)
    x = 0.25 + 0.5 * torch.rand(2, 1, *size, dtype=torch.float64)
    direction, v, step = torch.randn_like(x), torch.randn_like(x), 1e-5
    x.requires_grad_()
    (gradient,) = torch.autograd.grad((tiled(x, [0, 1]) * v).sum(), x)
    with torch.no_grad():
        ahead, behind = ((tiled(x + s * step * direction, [0, 1]) * v).sum() for s in (1, -1))
    slope = float(ahead - behind) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-6)


def test_it_is_a_purifier_like_any_other():
    tiled = purifier().tiled(10, 12)
    assert isinstance(tiled, TiledPurifier)
    assert tiled.image_shape == (1, 10, 12)
    x = torch.rand(2, 1, 10, 12)
    path = tiled.trajectory(x, [0, 1])
    assert path.shape == (len(METHOD.steps) + 1, 2, 1, 10, 12)
    torch.testing.assert_close(path[0], x, rtol=0, atol=1e-6)
    torch.testing.assert_close(path[-1], tiled(x, [0, 1]), rtol=0, atol=1e-6)
    assert tiled(x[:0]).shape == (0, 1, 10, 12)
    assert tiled.trajectory(x[:0]).shape == (len(METHOD.steps) + 1, 0, 1, 10, 12)
    other = tiled.with_method(fp.methods.ddpm(0.05))
    assert other.image_shape == tiled.image_shape
    assert not torch.equal(other(x), tiled(x))

    class Mean(nn.Module):
        def forward(self, x):
            mean = x.mean((1, 2, 3))
            return torch.stack([mean, 1 - mean], 1)

    defense = fp.Defense(tiled, Mean().eval())
    assert look_through(defense).network_calls == 4 * METHOD.steps.n_network_calls
    with defense.fixed(part="forward"):
        assert defense(x).shape == (2, 2)
    found = fp.attacks.PGD(eps=0.05, n_iter=2, eot_iter=2)(defense, x, torch.tensor([0, 1]))
    assert (found.x_adv - x).abs().max() <= 0.05 + 1e-6
    assert "size=10x12, tiles=4, overlap=2" in repr(tiled)


def test_runs_name_the_overlap_and_other_purifiers_as_they_always_did():
    class Mean(nn.Module):
        def forward(self, x):
            return torch.stack([x.mean((1, 2, 3)), 1 - x.mean((1, 2, 3))], 1)

    described = [
        look_through(fp.Defense(one, Mean().eval())).describe()["purifier"]
        for one in (purifier().tiled(10, 12), purifier().tiled(10, 12, overlap=3), purifier())
    ]
    assert described == [
        {"class": "TiledPurifier", "image_shape": [1, 10, 12], "overlap": 2},
        {"class": "TiledPurifier", "image_shape": [1, 10, 12], "overlap": 3},
        {"class": "Purifier", "image_shape": [1, 8, 8]},
    ]


def test_wrong_input():
    base = purifier()
    with pytest.raises(
        ValueError, match="`purifier` must be a purifier of single images, got one of 9 tiles"
    ):
        distance_bound(base.tiled(20, 20), torch.rand(1, 1, 20, 20))
    with pytest.raises(ValueError, match=r"`overlap`.*less than half of the model's 8 pixels"):
        base.tiled(20, 20, overlap=4)
    with pytest.raises(ValueError, match="`height`"):
        base.tiled(0, 20)
    with pytest.raises(ValueError, match=r"`x`.*\[B, 1, 20, 20\]"):
        base.tiled(20, 20)(torch.rand(1, 1, 8, 8))
    with pytest.raises(ValueError, match=r"`x`.*in \[0, 1\]"):
        base.tiled(20, 20)(torch.full((1, 1, 20, 20), 2.0))
    with pytest.raises(TypeError, match="float32"):
        base.tiled(20, 20)(torch.zeros(1, 1, 20, 20, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"`noise`.*SplitNoise"):
        base.tiled(20, 20)(torch.rand(1, 1, 20, 20), noise=RecordedNoise())
    with pytest.raises(ValueError, match="one id per image"):
        base.tiled(20, 20)(torch.rand(1, 1, 20, 20), [1, 2])


def test_errors_name_the_picture_and_not_the_tile():
    class Broken(nn.Module):
        def forward(self, x, labels):
            return torch.where(torch.arange(len(x)).view(-1, 1, 1, 1) == len(x) - 1, torch.nan, 0.0 * x)

    broken = fp.Purifier(fp.Denoiser.from_module(Broken().eval(), image_shape=(1, 8, 8)), METHOD)
    with pytest.raises(fp.errors.NonFiniteError, match="4711"):
        broken.tiled(8, 16)(torch.rand(1, 1, 8, 16), [4711])


def test_tiles_of_tiles_keep_the_overlap():
    tiled = purifier().tiled(20, 20, overlap=3)
    assert tiled.tiled(30, 30).overlap == 3
    assert tiled.tiled(30, 30, overlap=1).overlap == 1
