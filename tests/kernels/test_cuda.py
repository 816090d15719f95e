"""The CUDA half on a GPU: the same bits as the host's kernels, from graphs too, at every size and alignment."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from fastpure.kernels import (
    OPS,
    NoiseKeys,
    Stream,
    affine_row,
    affine_row_vjp,
    philox_normal,
    philox_uniform,
    preload,
    registry,
    use_backend,
)
from tests import golden
from tests.kernels.helpers import DTYPES, FORMATS, GUARD, POISON, guards_intact, table_of
from tests.kernels.rows import ROWS, SHAPES, images
from tests.tolerances import NORMAL

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
GOLDEN = golden.arrays("noise")
SMALLEST = (2, 3, 5, 7)


@pytest.fixture(autouse=True, scope="module")
def extension():
    """A missing half is an error and not a silent use of the reference."""
    for name in ("philox_normal", "philox_uniform", "affine_row", "affine_row_vjp"):
        for device, backend in (("cpu", "host"), ("cuda", "cuda")):
            with use_backend(backend):
                registry.choose(OPS[name], device, torch.float32)


def on_gpu(value):
    """Tensors to the device, everything else as it is; memory formats are kept."""
    return value.to("cuda") if isinstance(value, torch.Tensor | NoiseKeys) else value


def step_of(k, device="cpu"):
    return torch.tensor([k], dtype=torch.int64, device=device)


def keys_for(batch, draw=3):
    return NoiseKeys.make(99, list(range(7, 7 + batch)), draw)


def same(ours, theirs):
    """Equal on both machines, NaN in the same places; strides too."""
    if ours is None or theirs is None:
        return ours is theirs
    ours_, theirs_ = ours.cpu(), theirs.cpu()
    return ours.stride() == theirs.stride() and torch.equal(ours_.nan_to_num(7e7), theirs_.nan_to_num(7e7))


def both(function, *args, **options):
    """The results on the host and on the device."""
    host = function(*args, **options)
    device = function(*map(on_gpu, args), **{name: on_gpu(value) for name, value in options.items()})
    return (host, device) if isinstance(host, tuple) else ((host,), (device,))


def agree(function, *args, **options):
    host, device = both(function, *args, **options)
    return all(same(a, b) for a, b in zip(host, device, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("index", range(5))
def test_golden_noise(index, dtype):
    low, high, sample, draw, step, stream, domain = (int(v) for v in GOLDEN[f"case{index}_key"])
    words, normals = GOLDEN[f"case{index}_words"], GOLDEN[f"case{index}_normals"]
    keys = NoiseKeys.make(low | high << 32, [sample], draw, domain, device="cuda")
    u = philox_uniform(keys, step, stream, normals.shape, dtype=dtype).cpu()
    first = min(words.size, u.numel())
    exact = ((words.reshape(-1)[:first] >> 9) + 0.5) * 2.0**-23
    assert np.array_equal(u.reshape(-1)[:first].double().numpy(), exact)
    z = philox_normal(keys, step, stream, normals.shape, dtype=dtype).cpu()
    assert np.abs(z[0].double().numpy() - normals).max() <= NORMAL[dtype]


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 32, 32), (3, 4, 6, 6)])
def test_noise_has_the_bits_of_the_host(shape, dtype, fmt):
    for function in (philox_normal, philox_uniform):
        options = {"dtype": dtype, "memory_format": fmt}
        assert agree(function, keys_for(shape[0]), 5, Stream.REVERSE, shape[1:], **options)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 32, 32)])
@pytest.mark.parametrize("name", ROWS)
def test_row_has_the_bits_of_the_host(name, shape, dtype, fmt):
    x, e, g, h = images(shape, dtype, fmt)
    common = {"table": table_of(ROWS[name], dtype=dtype), "step": step_of(0)}
    for noise in (None, keys_for(shape[0]), images(shape, dtype, fmt, seed=2)[0]):
        assert agree(affine_row, x, e, g, h, **common, noise=noise, want_register=True)
        assert agree(affine_row, x, e, **common, noise=noise)
        assert agree(affine_row, x, **common, noise=noise)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 3, 32, 32)])
@pytest.mark.parametrize("name", ROWS)
def test_vjp_has_the_bits_of_the_host(name, shape, dtype, fmt):
    v, w, x, e = images(shape, dtype, fmt)
    common = {"x": x, "noise_pred": e, "table": table_of(ROWS[name], dtype=dtype), "step": step_of(0)}
    assert agree(affine_row_vjp, v, w, **common, want_guidance=True, want_register=True)
    assert agree(affine_row_vjp, v, **common, want_guidance=False, want_register=False)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("narrow", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [SMALLEST, (2, 3, 32, 32), (1, 1, 1, 1023)])
def test_narrow_inputs_count_as_their_values(shape, narrow, fmt):
    """The host converts first; the device widens as it reads."""
    x, e, g, h = images(shape, torch.float32, fmt)
    e, g = e.to(narrow), g.to(narrow)
    common = {"table": table_of(ROWS["clipped"]), "step": step_of(0)}
    assert agree(affine_row, x, e, g, h, **common, noise=keys_for(shape[0]), want_register=True)
    assert agree(affine_row, x, e, g.float(), **common, noise=None)
    wanted = {"want_guidance": True, "want_register": True}
    assert agree(affine_row_vjp, h, x=x, noise_pred=e, **common, **wanted)


def guarded_on_gpu(shape, dtype, fmt, offset):
    """As tests.kernels.helpers.guarded, on the device and ``offset`` elements away from good alignment."""
    size = torch.Size(shape).numel()
    buffer = torch.full((size + 2 * GUARD + offset,), POISON, dtype=dtype, device="cuda")[offset:]
    batch, channels, height, width = shape
    middle = buffer[GUARD : GUARD + size]
    if fmt is torch.channels_last:
        return middle.view(batch, height, width, channels).permute(0, 3, 1, 2), buffer
    return middle.view(shape), buffer


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_written_outside(shape, fmt, offset):
    dtype = torch.float32
    x, e, g, h = (t.cuda() for t in images(shape, dtype, fmt))
    keys, table, step = keys_for(shape[0]).to("cuda"), table_of(ROWS["clipped"]).cuda(), step_of(0, "cuda")
    key_tensors = (keys.seed, keys.sample_ids, keys.draws)
    outs = [guarded_on_gpu(shape, dtype, fmt, offset) for _ in range(7)]
    (noise, _), (x_next, _), (h_next, _), *cotangents = outs
    torch.ops.fastpure.philox_normal(*key_tensors, step, 1, 0, noise)
    torch.ops.fastpure.affine_row(x, e, g, h, None, *key_tensors, table, step, 1, 0, x_next, h_next)
    torch.ops.fastpure.affine_row_vjp(g, h, x, e, table, step, *(out for out, _ in cotangents))
    torch.cuda.synchronize()
    assert all(guards_intact(buffer) for _, buffer in outs)
    assert all(bool((out.abs() < 1e6).all()) for out, _ in outs)
    expected = affine_row(x, e, g, h, table=table, step=step, noise=keys, want_register=True)
    assert torch.equal(x_next, expected[0])
    assert torch.equal(h_next, expected[1])


@pytest.mark.parametrize("fmt", FORMATS)
def test_batch_split_does_not_matter(fmt):
    shape = (6, 3, 5, 7)
    x, e, *_ = (t.cuda() for t in images(shape, torch.float32, fmt))
    keys = keys_for(6).to("cuda")
    common = {"table": table_of(ROWS["noisy"]).cuda(), "step": step_of(0, "cuda")}
    whole, _ = affine_row(x, e, **common, noise=keys)
    for parts in ((1,) * 6, (2, 4), (5, 1)):
        begins = np.cumsum((0, *parts))
        rows = [slice(int(a), int(b)) for a, b in itertools.pairwise(begins)]
        split = [affine_row(x[row], e[row], **common, noise=keys[row])[0] for row in rows]
        assert torch.equal(torch.cat(split), whole)


def test_a_graph_follows_step_draw_seed_and_table():
    x, e, *_ = (t.cuda() for t in images((2, 3, 8, 8), torch.float32))
    table = table_of(*[{"a": 1.0 + k, "b": 0.1, "d": 0.5, "clip": float(k == 2)} for k in range(4)]).cuda()
    keys, step = keys_for(2).to("cuda"), step_of(0, "cuda")
    preload()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded, _ = affine_row(x, e, table=table, step=step, noise=keys)
        cotangent = affine_row_vjp(
            x, x=x, noise_pred=e, table=table, step=step, want_guidance=False, want_register=False
        )[0]
    for k in range(4):
        step.fill_(k)
        keys.draws.add_(1)
        keys.seed.mul_(3)
        table[k, 1] += 0.25
        graph.replay()
        expected, _ = affine_row(x, e, table=table, step=step, noise=keys)
        assert torch.equal(recorded, expected)
        wanted = {"want_guidance": False, "want_register": False}
        assert torch.equal(
            cotangent, affine_row_vjp(x, x=x, noise_pred=e, table=table, step=step, **wanted)[0]
        )


def test_work_goes_to_the_current_stream():
    """Behind a long wait on a side stream nothing may have been written yet."""
    x = torch.zeros(2, 3, 8, 8, device="cuda")
    table, step = table_of({"a": 2.0}).cuda(), step_of(0, "cuda")
    affine_row(x, table=table, step=step, noise=None)  # kernels are loaded
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(200_000_000)
        x.fill_(1.0)
        x_next, _ = affine_row(x, table=table, step=step, noise=None)
    assert not side.query(), "the call waited for the device"
    side.synchronize()
    assert torch.equal(x_next, torch.full_like(x, 2.0))


def test_mistakes_in_device_memory_show_as_nan():
    x = torch.ones(1, 1, 2, 2, device="cuda")
    table = table_of({"a": 1.0, "clip": 1.0}).cuda()
    for k in (-1, 1, 1 << 40):
        assert bool(affine_row(x, table=table, step=step_of(k, "cuda"), noise=None)[0].isnan().all())
    wanted = {"want_guidance": False, "want_register": False}
    vjp = affine_row_vjp(x, x=None, noise_pred=None, table=table, step=step_of(0, "cuda"), **wanted)
    assert bool(vjp[0].isnan().all())


def test_tensors_elsewhere_are_named():
    x = torch.ones(1, 1, 2, 2, device="cuda")
    with pytest.raises(ValueError, match="`table` must be on the device"):
        affine_row(x, table=table_of({"a": 1.0}), step=step_of(0, "cuda"), noise=None)
    with pytest.raises(ValueError, match="`step` must be on the device"):
        affine_row(x, table=table_of({"a": 1.0}).cuda(), step=step_of(0), noise=None)


def test_smallest():
    """One call of every kernel, for the memory checker."""
    x, e, g, h = images(SMALLEST, torch.float32)
    common = {"table": table_of(ROWS["clipped"]), "step": step_of(0)}
    for fmt in FORMATS:
        x = x.contiguous(memory_format=fmt)
        assert agree(affine_row, x, e, g, h, **common, noise=keys_for(2), want_register=True)
    wanted = {"want_guidance": True, "want_register": True}
    assert agree(affine_row_vjp, g, h, x=x, noise_pred=e, **common, **wanted)
    assert agree(philox_normal, keys_for(2), 5, Stream.REVERSE, SMALLEST[1:])
