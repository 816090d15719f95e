"""Noise is a function of its keys: known answers, accuracy, distribution, and what must not matter."""

from __future__ import annotations

import itertools
import os
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform, use_backend
from fastpure.kernels.noise import reference
from tests import golden
from tests.kernels.helpers import BACKENDS, DTYPES, EXTENSION, FORMATS, guarded, guards_intact, needs_ext
from tests.tolerances import NORMAL

GOLDEN = golden.arrays("noise")
CASES = range(5)
SHAPE = (3, 5, 7)


def case(index: int) -> tuple[NoiseKeys, int, int, np.ndarray, np.ndarray]:
    low, high, sample, draw, step, stream, domain = (int(v) for v in GOLDEN[f"case{index}_key"])
    keys = NoiseKeys.make(low | high << 32, [sample], draw, domain)
    return keys, step, stream, GOLDEN[f"case{index}_words"], GOLDEN[f"case{index}_normals"]


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


def keys_for(ids, draw=0, domain=Domain.DEFENSE, seed=2024):
    return NoiseKeys.make(seed, ids, draw, domain)


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
            module.noise(
                kind=kind,
                seed=keys.seed.data_ptr(),
                sample_ids=keys.sample_ids.data_ptr(),
                draws=keys.draws.data_ptr(),
                step=step.data_ptr(),
                stream=1,
                domain=0,
                out=out.data_ptr(),
                batch=3,
                channels=3,
                pixels=19 * 21,
                layout=int(fmt is torch.channels_last),
                dtype=int(dtype is torch.float64),
                threads=1,
                isa=isa,
            )
            results.append(out)
    for i, out in enumerate(results):
        assert torch.equal(out, results[i % 2])
    with pytest.raises(ValueError, match="instruction set"):
        module.affine_row_vjp(*[0] * 14, isa="sse9")


@needs_ext
def test_uniforms_equal_across_back_ends():
    keys = keys_for([0, 1, 2**32 - 1], draw=2**32 - 1, domain=Domain.TRAINING, seed=2**64 - 1)
    with use_backend("reference"):
        expected = philox_uniform(keys, 65535, Stream.ATTACK_START, SHAPE)
    assert torch.equal(philox_uniform(keys, 65535, Stream.ATTACK_START, SHAPE), expected)


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
