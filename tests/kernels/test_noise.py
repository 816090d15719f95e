"""Noise is a function of its keys: known answers, accuracy, distribution, and every part of the key counts."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from fastpure.kernels.noise import reference
from tests import golden
from tests.kernels.helpers import DTYPES, EXTENSION, FORMATS, SHAPE, keys_for, needs_ext
from tests.tolerances import NORMAL

GOLDEN = golden.arrays("noise")
CASES = range(5)


def case(index: int) -> tuple[NoiseKeys, int, int, np.ndarray, np.ndarray]:
    low, high, sample, draw, step, stream, domain = (int(v) for v in GOLDEN[f"case{index}_key"])
    keys = NoiseKeys.make(low | high << 32, [sample], draw, domain)
    return keys, step, stream, GOLDEN[f"case{index}_words"], GOLDEN[f"case{index}_normals"]


@pytest.mark.parametrize("index", range(3))
def test_published_known_answers(index):
    counter, key = GOLDEN["kat_counter"][index], GOLDEN["kat_key"][index]
    words = reference.philox4x32_10(
        tuple(torch.tensor([int(c)]) for c in counter), tuple(torch.tensor([int(k)]) for k in key)
    )
    assert [int(word) for word in words] == GOLDEN["kat_out"][index].tolist()


@needs_ext
@pytest.mark.parametrize("index", range(3))
def test_published_known_answers_of_the_extension(index):
    c0, c1, c2, c3 = (int(c) for c in GOLDEN["kat_counter"][index])
    k0, k1 = (int(k) for k in GOLDEN["kat_key"][index])
    words = EXTENSION.module.philox_words(c0=c0, c1=c1, c2=c2, c3=c3, k0=k0, k1=k1)
    assert list(words) == GOLDEN["kat_out"][index].tolist()


@pytest.mark.parametrize("index", CASES)
def test_golden_words(index):
    keys, step, stream, words, _ = case(index)
    assert np.array_equal(reference.philox_words(keys, step, stream, len(words))[0].numpy(), words)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", CASES)
def test_golden_values(backend, index, dtype, fmt):
    keys, step, stream, words, normals = case(index)
    u = philox_uniform(keys, step, stream, normals.shape, dtype=dtype, memory_format=fmt)
    first = min(words.size, u.numel())
    exact = ((words.reshape(-1)[:first] >> 9) + 0.5) * 2.0**-23
    assert np.array_equal(u.reshape(-1)[:first].double().numpy(), exact)
    z = philox_normal(keys, step, stream, normals.shape, dtype=dtype, memory_format=fmt)
    assert np.abs(z[0].double().numpy() - normals).max() <= NORMAL[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
def test_normals_close_to_the_float64_formula(backend, dtype):
    keys, shape = keys_for([7, 8, 9, 10]), (4, 256, 256)
    z = philox_normal(keys, 3, Stream.REVERSE, shape, dtype=dtype).double()
    u = (
        reference.philox_uniform(keys, 3, Stream.REVERSE, shape, dtype=torch.float64)
        .reshape(4, -1, 2)
        .numpy()
    )
    radius, angle = np.sqrt(-2 * np.log(u[..., 0])), 2 * np.pi * u[..., 1]
    exact = np.stack((radius * np.cos(angle), radius * np.sin(angle)), -1).reshape(z.shape)
    assert np.abs(z.numpy() - exact).max() <= NORMAL[dtype]


def test_distribution(backend):
    keys = keys_for(list(range(16)), draw=5, domain=Domain.EVALUATION)
    z = philox_normal(keys, 11, Stream.FORWARD, (1, 256, 256)).double().reshape(16, -1).numpy()
    flat = z.reshape(-1)
    n = flat.size
    assert n == 2**20
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        spread = np.sqrt((flat ** (2 * power)).mean() / n)
        assert abs((flat**power).mean() - moment) < 4 * spread
    assert stats.kstest(flat, "norm").pvalue > 1e-3
    assert abs(flat).max() < 5.78
    # Neighbours, box-muller partners, and samples are uncorrelated.
    for lag in (1, 2, 3, 4):
        assert abs((z[:, lag:] * z[:, :-lag]).mean()) < 4 / np.sqrt(n)
    assert abs((z[1:] * z[:-1]).mean()) < 4 / np.sqrt(n)
    assert abs((z[:, 1::2] ** 2 * z[:, ::2] ** 2).mean() - 1) < 4 * np.sqrt(8 / (n / 2))


def test_every_part_of_the_key_changes_all_values(backend):
    base = {"seed": 1, "ids": [1], "draw": 1, "domain": Domain.DEFENSE, "step": 1, "stream": Stream.REVERSE}
    changes = [{"seed": 2}, {"seed": 1 + 2**32}, {"ids": [2]}, {"draw": 2}, {"step": 2}]
    changes += [{"domain": d} for d in Domain if d != Domain.DEFENSE]
    changes += [{"stream": s} for s in Stream if s != Stream.REVERSE]
    # Swapping the numbers of two fields must not give the same noise either.
    changes += [{"step": 0, "stream": Stream.FORWARD}, {"ids": [0], "draw": 1}, {"ids": [1], "draw": 0}]
    seen = []
    for change in [{}, *changes]:
        p = base | change
        keys = keys_for(p["ids"], p["draw"], p["domain"], p["seed"])
        seen.append(philox_uniform(keys, p["step"], p["stream"], (1, 8, 8)))
    for one, other in itertools.combinations(seen, 2):
        # The 23-bit uniforms may meet by chance (64 pairs: once in 1e5), not often.
        assert int((one == other).sum()) <= 1


def test_draws_are_per_sample(backend):
    mixed = philox_normal(keys_for([4, 4, 9], torch.tensor([0, 1, 1])), 0, Stream.REVERSE, SHAPE)
    for row, (sample, draw) in enumerate(((4, 0), (4, 1), (9, 1))):
        assert torch.equal(philox_normal(keys_for([sample], draw), 0, Stream.REVERSE, SHAPE)[0], mixed[row])
