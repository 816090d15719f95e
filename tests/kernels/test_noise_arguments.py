"""What noise and its keys take and where it is written: tensors, arrays, empty batches, guards, mistakes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastpure.kernels import NoiseKeys, Stream, philox_normal, philox_uniform
from tests.kernels.helpers import FORMATS, SHAPE, guarded, guards_intact, keys_for


def test_step_may_be_a_tensor_that_changes(backend):
    keys, step = keys_for([1]), torch.tensor([5])
    assert torch.equal(philox_normal(keys, step, 1, SHAPE), philox_normal(keys, 5, 1, SHAPE))
    step += 1
    assert torch.equal(philox_normal(keys, step, 1, SHAPE), philox_normal(keys, 6, 1, SHAPE))


@pytest.mark.parametrize("op", [torch.ops.fastpure.philox_normal, torch.ops.fastpure.philox_uniform])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize(
    "shape", [(1, 1, 1, 1), (2, 3, 5, 7), (1, 1, 1, 1023), (2, 1, 1, 1025), (3, 3, 21, 23)]
)
def test_nothing_is_written_outside(backend, op, fmt, shape):
    keys = keys_for(list(range(shape[0])))
    out, buffer = guarded(shape, torch.float32, fmt)
    op(keys.seed, keys.sample_ids, keys.draws, torch.tensor([1]), 1, 0, out)
    assert guards_intact(buffer)
    assert bool((out < 6).all())


def test_empty_batches(backend):
    assert philox_normal(keys_for([]), 0, Stream.REVERSE, SHAPE).shape == (0, *SHAPE)
    assert philox_uniform(keys_for([1]), 0, Stream.REVERSE, (3, 0, 7)).shape == (1, 3, 0, 7)


def test_keys_accept_arrays_and_do_not_alias():
    ids = np.array([1, 2**32 - 1], dtype=np.uint32)
    assert NoiseKeys.make(0, ids).sample_ids.tolist() == [1, 2**32 - 1]
    tensor = torch.tensor([1, 2])
    keys = NoiseKeys.make(0, tensor, draw=np.array([3, 4]))
    tensor += 1
    assert keys.sample_ids.tolist() == [1, 2]
    assert keys.draws.tolist() == [3, 4]
    assert len(keys) == 2
    assert keys[1:].draws.tolist() == [4]
    assert keys.to("cpu").seed.tolist() == [0]


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"seed": -1}, ValueError, "`seed`"),
        ({"seed": 2**64}, ValueError, "`seed`"),
        ({"seed": 1.5}, TypeError, "`seed`"),
        ({"sample_ids": [0, -3]}, ValueError, "`sample_ids`.*-3 at position 1"),
        ({"sample_ids": [2**32]}, ValueError, "`sample_ids`"),
        ({"sample_ids": [0.5]}, TypeError, "`sample_ids`"),
        ({"sample_ids": torch.tensor([1.0])}, TypeError, "`sample_ids`.*float32"),
        ({"sample_ids": [True]}, TypeError, "`sample_ids`"),
        ({"sample_ids": [[1]]}, ValueError, "`sample_ids`"),
        ({"sample_ids": ["a"]}, TypeError, "`sample_ids`"),
        ({"draw": -1}, ValueError, "`draw`"),
        ({"draw": 0.5}, TypeError, "`draw`"),
        ({"draw": [0, 1]}, ValueError, "`draw`.*got 2"),
        ({"domain": 256}, ValueError, "`domain`"),
    ],
)
def test_bad_keys_are_named(arguments, error, words):
    with pytest.raises(error, match=words):
        NoiseKeys.make(**({"seed": 0, "sample_ids": [1, 2, 3]} | arguments))


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"step": -1}, ValueError, "`step`"),
        ({"step": 65536}, ValueError, "`step`"),
        ({"step": torch.tensor([65536])}, ValueError, "`step`"),
        ({"step": torch.tensor([1, 2])}, TypeError, "`step`"),
        ({"step": torch.tensor([1], dtype=torch.int32)}, TypeError, "`step`"),
        ({"stream": 256}, ValueError, "`stream`"),
        ({"shape": (3, 4)}, ValueError, "`shape`"),
        ({"dtype": torch.float16}, ValueError, "`dtype`"),
        ({"memory_format": torch.preserve_format}, ValueError, "`memory_format`"),
    ],
)
def test_bad_arguments_are_named(backend, arguments, error, words):
    good = {"step": 0, "stream": 1, "shape": SHAPE}
    with pytest.raises(error, match=words):
        philox_normal(keys_for([1]), **(good | arguments))
