"""The row update and its transpose against float64, autograd, and each other."""

from __future__ import annotations

import pytest
import torch

from fastpure.kernels import NoiseKeys, Stream, affine_row, affine_row_vjp, philox_normal, use_backend
from fastpure.kernels.row import reference
from fastpure.schedule import KERNEL_COLUMNS
from tests.kernels.helpers import (
    BACKENDS,
    DTYPES,
    EXTENSION,
    FORMATS,
    guarded,
    guards_intact,
    needs_ext,
    step_of,
    table_of,
)
from tests.tolerances import CLIP_BORDER, NORMAL, ROW, ROW_CLIPPED, UNIT_ROUNDOFF

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (1, 1, 1, 1023), (3, 2, 33, 31), (2, 1, 1, 1025)]
PLAIN = {"a": 1.013, "b": -0.27, "c": 0.113, "alpha": 0.9, "sigma": 0.43}
NOISY = PLAIN | {"d": 0.31}
MULTISTEP = NOISY | {"p": -0.5, "q": 1.11, "r": -0.4778, "u": 0.2, "s": 0.07}
ROWS = {
    "forward": {"a": 0.9, "d": 0.43},
    "plain": PLAIN,
    "noisy": NOISY,
    "multistep": MULTISTEP,
    "clipped": MULTISTEP | {"clip": 1.0},
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    with use_backend(request.param):
        yield request.param


def images(shape, dtype, fmt=torch.contiguous_format, seed=0):
    """State, network output, guidance gradient and register; predicted images lie inside and outside."""
    generator = torch.Generator().manual_seed(seed)
    draws = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(4))
    return [d.contiguous(memory_format=fmt) for d in draws]


def keys_for(batch):
    return NoiseKeys.make(99, list(range(batch)), 3)


def coefficients(table):
    return dict(zip(KERNEL_COLUMNS, table.double()[0].tolist(), strict=False))


def exact_row(row, x, e, g, h, z):
    """(x', h', terms of x', terms of h', elements too close to the border of clipping), in float64."""
    x, e, g, h, z = (t.double() for t in (x, e, g, h, z))
    border = torch.zeros_like(x, dtype=torch.bool)
    if row["clip"]:
        x0 = (x - row["sigma"] * e) / row["alpha"]
        border = (x0.abs() - 1).abs() < CLIP_BORDER
        e = torch.where(x0.abs() <= 1, e, (x - row["alpha"] * x0.sign()) / row["sigma"])
    state = [row["a"] * x, row["b"] * e, row["c"] * g, row["p"] * h, row["d"] * z]
    saved = [row["q"] * x, row["r"] * e, row["u"] * g, row["s"] * h]
    return sum(state), sum(saved), sum(t.abs() for t in state), sum(t.abs() for t in saved), border


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ROWS)
def test_row_against_float64(backend, name, shape, dtype, fmt):
    table = table_of(ROWS[name], dtype=dtype)
    x, e, g, h = images(shape, dtype, fmt)
    keys, step = keys_for(shape[0]), step_of(0)
    z = reference.philox_normal(keys, 0, Stream.REVERSE, shape[1:], dtype=torch.float64)
    x_next, h_next = affine_row(x, e, g, h, table=table, step=step, noise=keys, want_register=True)
    row = coefficients(table)
    x_exact, h_exact, x_terms, h_terms, border = exact_row(row, x, e, g, h, z)
    u = UNIT_ROUNDOFF[dtype] * (ROW_CLIPPED if row["clip"] else ROW)
    inside = ~border
    assert bool(((x_next - x_exact).abs() <= u * x_terms + abs(row["d"]) * NORMAL[dtype])[inside].all())
    assert bool(((h_next - h_exact).abs() <= u * h_terms)[inside].all())
    assert x_next.stride() == x.stride()
    assert x_next.dtype == h_next.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ROWS)
def test_given_noise_equals_generated_noise(backend, name, dtype):
    shape, table, step = (2, 3, 8, 9), table_of(ROWS[name], dtype=dtype), step_of(0)
    x, e, g, h = images(shape, dtype)
    keys = keys_for(2)
    z = philox_normal(keys, 0, Stream.GUIDANCE, shape[1:], dtype=dtype)
    made, _ = affine_row(x, e, g, h, table=table, step=step, noise=keys, stream=Stream.GUIDANCE)
    given, _ = affine_row(x, e, g, h, table=table, step=step, noise=z)
    assert torch.equal(made, given)


def test_absent_inputs_count_as_zero(backend):
    shape, table, step = (2, 3, 5, 7), table_of(MULTISTEP), step_of(0)
    x, *others = images(shape, torch.float32)
    zero = torch.zeros(shape)
    for present in range(16):
        picked = [t if present >> i & 1 else None for i, t in enumerate((*others, images(shape, x.dtype)[0]))]
        *inputs, z = picked
        *filled, z_filled = [zero if t is None else t for t in picked]
        for want in (False, True):
            ours = affine_row(x, *inputs, table=table, step=step, noise=z, want_register=want)
            full = affine_row(x, *filled, table=table, step=step, noise=z_filled, want_register=want)
            assert torch.equal(ours[0], full[0])
            assert (ours[1] is None) == (not want)
            assert not want or torch.equal(ours[1], full[1])


def test_rows_and_noise_follow_the_step(backend):
    table = table_of(*[{"a": 1.0 + k, "d": 0.5} for k in range(4)])
    x = images((1, 3, 4, 4), torch.float32)[0]
    keys, step = keys_for(1), step_of(0)
    for k in range(4):
        expected = (1.0 + k) * x + 0.5 * philox_normal(keys, k, Stream.REVERSE, (3, 4, 4))
        assert torch.allclose(affine_row(x, table=table, step=step, noise=keys)[0], expected, atol=1e-6)
        step += 1
    with pytest.raises(ValueError, match=r"`step` must be in \[0, 3\], got 4"):
        affine_row(x, table=table, step=step, noise=None)
    with pytest.raises(ValueError, match="`step`"):
        affine_row_vjp(
            x,
            x=None,
            noise_pred=None,
            table=table,
            step=step_of(-1),
            want_guidance=False,
            want_register=False,
        )


def test_no_noise_where_d_is_zero(backend):
    x = images((1, 3, 4, 4), torch.float32)[0]
    bad = torch.full_like(x, float("nan"))
    x_next, _ = affine_row(x, table=table_of({"a": 2.0}), step=step_of(0), noise=bad)
    assert torch.equal(x_next, 2.0 * x)


def test_clipping_is_inclusive_and_keeps_nan(backend):
    """alpha = sigma = 1, so x0 = x - e exactly; b = 1 and a = 0 make the used e visible."""
    table = table_of({"b": 1.0, "clip": 1.0})
    x = torch.tensor([1.5, -1.5, 1.75, -1.75, float("nan"), 0.0, 3.0, -3.0]).view(1, 1, 2, 4)
    e = torch.tensor([0.5, -0.5, 0.5, -0.5, 0.25, float("nan"), 0.0, 0.0]).view(1, 1, 2, 4)
    used, _ = affine_row(x, e, table=table, step=step_of(0), noise=None)
    expected = torch.tensor([0.5, -0.5, 0.75, -0.75, float("nan"), float("nan"), 2.0, -2.0]).view(1, 1, 2, 4)
    # In the fifth place a = 0 times NaN stays NaN; the sixth shows that a NaN prediction is passed on.
    assert torch.equal(used.isnan(), expected.isnan())
    assert torch.equal(used.nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("registered", [False, True])
def test_vjp_against_float64_autograd(backend, name, shape, dtype, fmt, registered):
    table, step = table_of(ROWS[name], dtype=dtype), step_of(0)
    x, e, g, h = images(shape, dtype, fmt)
    v, w, *_ = images(shape, dtype, fmt, seed=1)
    leaves = [t.detach().double().requires_grad_() for t in (x, e, g, h)]
    outputs = reference.affine_row(
        *leaves, table=table.double(), step=step, noise=None, want_register=registered
    )
    used = [o for o in outputs if o is not None]
    expected = torch.autograd.grad(
        used, leaves, [v.double(), w.double()][: len(used)], allow_unused=True, materialize_grads=True
    )
    ours = affine_row_vjp(
        v,
        w if registered else None,
        x=x,
        noise_pred=e,
        table=table,
        step=step,
        want_guidance=True,
        want_register=True,
    )
    row = coefficients(table)
    outside, border = clip_masks(row, x, e)
    terms = vjp_terms(row, v, w if registered else torch.zeros_like(v), outside)
    factor = UNIT_ROUNDOFF[dtype] * (ROW_CLIPPED if row["clip"] else ROW)
    for name_, mine, theirs, scale in zip(("v_x", "v_e", "v_g", "v_h"), ours, expected, terms, strict=True):
        error = (mine - theirs).abs()
        assert bool((error <= factor * scale)[~border].all()), name_
        assert mine.stride() == v.stride()


def clip_masks(row, x, e):
    """Where the row clips, and where that depends on rounding."""
    x0 = (x.double() - row["sigma"] * e.double()) / row["alpha"]
    clips = bool(row["clip"])
    return clips & (x0.abs() > 1), clips & ((x0.abs() - 1).abs() < CLIP_BORDER)


def vjp_terms(row, v, w, outside):
    """Sums of magnitudes for the four cotangents."""
    v, w = v.double().abs(), w.double().abs()
    size = {name: abs(value) for name, value in row.items()}
    v_e = size["b"] * v + size["r"] * w
    return (
        size["a"] * v + size["q"] * w + torch.where(outside, v_e / size["sigma"], 0.0),
        v_e,
        size["c"] * v + size["u"] * w,
        size["p"] * v + size["s"] * w,
    )


def test_vjp_gives_what_is_wanted(backend):
    v = images((1, 2, 3, 4), torch.float32)[0]
    common = {"x": None, "noise_pred": None, "table": table_of(MULTISTEP), "step": step_of(0)}
    v_x, v_e, v_g, v_h = affine_row_vjp(v, **common, want_guidance=False, want_register=False)
    assert v_g is None
    assert v_h is None
    full = affine_row_vjp(v, **common, want_guidance=True, want_register=True)
    assert torch.equal(full[0], v_x)
    assert torch.equal(full[1], v_e)
    with pytest.raises(ValueError, match="`x` must be the state of the row, because the row clips"):
        affine_row_vjp(
            v,
            **(common | {"table": table_of({"clip": 1.0})}),
            want_guidance=False,
            want_register=False,
        )


@needs_ext
@pytest.mark.parametrize("dtype", DTYPES)
def test_instruction_sets_and_threads_agree_bit_by_bit(dtype):
    module, table = EXTENSION.module, table_of(ROWS["clipped"], dtype=dtype)
    shape = (3, 3, 37, 41)
    x, e, g, h = images(shape, dtype)
    keys, step, results = keys_for(3), step_of(0), []
    for isa in module.build_info()["instruction_sets"]:
        for threads in (1, 3):
            out = [torch.empty(shape, dtype=dtype) for _ in range(6)]
            x_next, h_next, *cotangents = (t.data_ptr() for t in out)
            module.affine_row(
                *(t.data_ptr() for t in (x, e, g, h)),
                0,
                *(t.data_ptr() for t in (keys.seed, keys.sample_ids, keys.draws, table)),
                1,
                step.data_ptr(),
                1,
                0,
                x_next,
                h_next,
                *(3, 3, 37 * 41, 0, int(dtype is torch.float64), threads),
                isa=isa,
            )
            module.affine_row_vjp(
                *(t.data_ptr() for t in (g, h, x, e, table)),
                1,
                step.data_ptr(),
                *cotangents,
                *(x.numel(), int(dtype is torch.float64), threads),
                isa=isa,
            )
            results.append(out)
    for out in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out, results[0], strict=True))


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("shape", SHAPES)
def test_nothing_is_written_outside(backend, shape, fmt):
    table, step, keys = table_of(ROWS["clipped"]), step_of(0), keys_for(shape[0])
    x, e, g, h = images(shape, torch.float32, fmt)
    (x_next, guard_x), (h_next, guard_h) = (guarded(shape, x.dtype, fmt) for _ in range(2))
    key_tensors = (keys.seed, keys.sample_ids, keys.draws)
    torch.ops.fastpure.affine_row(x, e, g, h, None, *key_tensors, table, step, 1, 0, x_next, h_next)
    expected = affine_row(x, e, g, h, table=table, step=step, noise=keys, want_register=True)
    assert torch.equal(x_next, expected[0])
    assert torch.equal(h_next, expected[1])
    outs = [guarded(shape, x.dtype, fmt) for _ in range(4)]
    torch.ops.fastpure.affine_row_vjp(g, h, x, e, table, step, *(out for out, _ in outs))
    assert all(guards_intact(guard) for guard in (guard_x, guard_h, *(buffer for _, buffer in outs)))
    assert all(bool((out.abs() < 1e6).all()) for out, _ in outs)


def test_in_place_update(backend):
    """The output may be the state itself."""
    table, step = table_of(ROWS["clipped"]), step_of(0)
    x, e, g, h = images((2, 3, 16, 16), torch.float32)
    expected, _ = affine_row(x, e, g, h, table=table, step=step, noise=None)
    torch.ops.fastpure.affine_row(x, e, g, h, None, None, None, None, table, step, 1, 0, x, None)
    assert torch.equal(x, expected)


def test_layouts_and_dtypes_of_inputs_are_adapted(backend):
    table, step = table_of(NOISY), step_of(0)
    x, e, g, z = images((2, 3, 6, 5), torch.float32)
    e, g, z = e.half().float(), g.half().float(), z.half().float()
    expected, _ = affine_row(x, e, g, table=table, step=step, noise=z)
    last = torch.channels_last
    mixed, _ = affine_row(
        x, e.contiguous(memory_format=last), g.double(), table=table, step=step, noise=z.half()
    )
    assert torch.equal(mixed, expected)
    sliced, _ = affine_row(
        torch.cat([x, x], 3)[..., :5], e.half(), g, table=table, step=step, noise=z.contiguous()
    )
    assert torch.equal(sliced, expected)
    expanded = affine_row_vjp(
        torch.ones(()).expand(2, 3, 6, 5),
        x=None,
        noise_pred=None,
        table=table,
        step=step,
        want_guidance=False,
        want_register=False,
    )
    assert torch.equal(expanded[0], torch.full_like(x, table[0, 0].item()))


def test_empty_batch(backend):
    x = torch.empty(0, 3, 4, 4)
    x_next, h_next = affine_row(
        x, x, table=table_of(NOISY), step=step_of(0), noise=keys_for(0), want_register=True
    )
    assert x_next.shape == h_next.shape == x.shape


def test_twice_the_same(backend):
    table, step, keys = table_of(ROWS["clipped"]), step_of(0), keys_for(40)
    inputs = images((40, 3, 32, 32), torch.float32)
    first, second = (affine_row(*inputs, table=table, step=step, noise=keys)[0] for _ in range(2))
    assert torch.equal(first, second)


X = torch.zeros(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": X.half()}, TypeError, "`x`.*float32 or float64"),
        ({"x": X[0]}, ValueError, "`x`"),
        ({"x": None}, TypeError, "`x`"),
        ({"noise_pred": X[:1]}, ValueError, "`noise_pred`.*shape"),
        ({"noise_pred": X.long()}, TypeError, "`noise_pred`.*int64"),
        ({"guidance": X[:, :1]}, ValueError, "`guidance`"),
        ({"register": X[..., :1]}, ValueError, "`register`"),
        ({"noise": X[:1]}, ValueError, "`noise`"),
        ({"noise": keys_for(3)}, ValueError, "`sample_ids`"),
        ({"table": torch.zeros(3, 12)}, ValueError, "`table`"),
        ({"table": torch.zeros(3, 16, dtype=torch.float64)}, TypeError, "`table`"),
        ({"table": torch.zeros(16, 3).t()}, ValueError, "`table`.*dense"),
        ({"table": None}, TypeError, "`table`"),
        ({"step": 1}, TypeError, "`step`"),
        ({"step": torch.tensor(1)}, TypeError, "`step`"),
        ({"stream": 300}, ValueError, "`stream`"),
    ],
)
def test_bad_arguments_are_named(backend, arguments, error, words):
    good = {"x": X, "table": table_of(NOISY), "step": step_of(0), "noise": None}
    with pytest.raises(error, match=words):
        affine_row(**(good | arguments))


def test_recording_autograd_is_refused():
    leaf = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no_grad"):
        affine_row(leaf, table=table_of(NOISY), step=step_of(0), noise=None)
    with torch.no_grad():
        affine_row(leaf, table=table_of(NOISY), step=step_of(0), noise=None)
