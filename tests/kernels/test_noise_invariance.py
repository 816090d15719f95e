"""What must not change noise: the batch, its order, memory layout, threads, forks, instruction sets, back ends."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
import torch

from fastpure.kernels import Domain, Stream, philox_normal, philox_uniform, use_backend
from fastpure.kernels.extension import HOST, LAYOUT_CODES, STATE_CODES
from tests.kernels.helpers import DTYPES, EXTENSION, FORMATS, SHAPE, keys_for, needs_ext


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", [philox_normal, philox_uniform])
def test_batch_split_and_order_do_not_matter(backend, function, dtype):
    ids = [3, 4_000_000_000, 0, 17, 8, 9]
    whole = function(keys_for(ids), 2, Stream.REVERSE, SHAPE, dtype=dtype)
    for i, sample in enumerate(ids):
        assert torch.equal(function(keys_for([sample]), 2, Stream.REVERSE, SHAPE, dtype=dtype)[0], whole[i])
    order = torch.tensor([5, 2, 0, 1, 4, 3])
    shuffled = function(keys_for(ids)[order], 2, Stream.REVERSE, SHAPE, dtype=dtype)
    assert torch.equal(shuffled, whole[order])


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (5, 1, 3), (3, 32, 32), (2, 41, 43), (1030, 2, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_memory_layout_does_not_matter(backend, shape, dtype):
    keys = keys_for([1, 2])
    plain = philox_normal(keys, 1, Stream.REVERSE, shape, dtype=dtype)
    last = philox_normal(keys, 1, Stream.REVERSE, shape, dtype=dtype, memory_format=torch.channels_last)
    assert torch.equal(plain, last)
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_larger_images_extend_smaller_ones(backend):
    """The element index is all that counts, so a prefix does not depend on how much follows."""
    long = philox_normal(keys_for([1]), 0, Stream.REVERSE, (1, 1, 3000)).reshape(-1)
    for length in (1, 3, 4, 5, 1023, 1024, 1025):
        short = philox_normal(keys_for([1]), 0, Stream.REVERSE, (1, 1, length)).reshape(-1)
        assert torch.equal(short, long[:length])


@needs_ext
def test_threads_do_not_matter():
    keys, results = keys_for(list(range(40))), []
    for threads in (1, 2, 3, 8):
        torch.set_num_threads(threads)
        results.append([philox_normal(keys, 0, Stream.REVERSE, (3, 33, 31)) for _ in range(5)])
    for z in itertools.chain(*results):
        assert torch.equal(z, results[0][0])


@needs_ext
def test_callers_on_several_threads():
    torch.set_num_threads(3)
    keys = keys_for(list(range(64)))
    expected = [philox_normal(keys, step, Stream.REVERSE, (3, 32, 32)) for step in range(4)]
    equal: list[bool] = []

    def work(step: int) -> None:
        equal.extend(
            torch.equal(philox_normal(keys, step, Stream.REVERSE, (3, 32, 32)), expected[step])
            for _ in range(10)
        )

    threads = [threading.Thread(target=work, args=(step,)) for step in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 40


@needs_ext
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_children_have_threads_of_their_own():
    torch.set_num_threads(3)
    keys = keys_for(list(range(64)))
    expected = philox_normal(keys, 0, Stream.REVERSE, (3, 32, 32))
    child = os.fork()
    if child == 0:  # a deadlock here would run into the alarm
        import signal

        signal.alarm(20)
        again = philox_normal(keys, 0, Stream.REVERSE, (3, 32, 32))
        # numpy compares: torch's own threads do not survive a fork.
        os._exit(0 if np.array_equal(again.numpy(), expected.numpy()) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@needs_ext
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fmt", FORMATS)
def test_instruction_sets_agree_bit_by_bit(dtype, fmt):
    module, keys, step = EXTENSION.module, keys_for([1, 99, 12345]), torch.tensor([6])
    results = []
    for isa in module.build_info()["instruction_sets"]:
        for kind in (0, 1):
            out = torch.empty(3, 3, 19, 21, dtype=dtype).to(memory_format=fmt)
            arguments = (keys.seed, keys.sample_ids, keys.draws, step, 1, 0, out)
            rest = (kind, 3, 3, 19 * 21, LAYOUT_CODES[fmt], STATE_CODES[dtype])
            module.noise(HOST, 1, arguments, rest, isa=isa)
            results.append(out)
    for i, out in enumerate(results):
        assert torch.equal(out, results[i % 2])
    with pytest.raises(ValueError, match="instruction set"):
        module.affine_row_vjp(HOST, 1, (0,) * 14, (), isa="sse9")


@needs_ext
def test_uniforms_equal_across_back_ends():
    keys = keys_for([0, 1, 2**32 - 1], draw=2**32 - 1, domain=Domain.TRAINING, seed=2**64 - 1)
    with use_backend("reference"):
        expected = philox_uniform(keys, 65535, Stream.ATTACK_START, SHAPE)
    assert torch.equal(philox_uniform(keys, 65535, Stream.ATTACK_START, SHAPE), expected)
