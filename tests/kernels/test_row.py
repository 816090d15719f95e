"""The row update against float64, and against itself with its inputs given in other ways."""

from __future__ import annotations

import pytest
import torch

from fastpure.kernels import Stream, affine_row, affine_row_vjp, philox_normal
from fastpure.kernels.row import reference
from tests.kernels.helpers import DTYPES, FORMATS, step_of, table_of
from tests.kernels.rows import MULTISTEP, ROWS, SHAPES, coefficients, images, keys_for
from tests.tolerances import CLIP_BORDER, NORMAL, ROW, ROW_CLIPPED, UNIT_ROUNDOFF


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


def test_twice_the_same(backend):
    table, step, keys = table_of(ROWS["clipped"]), step_of(0), keys_for(40)
    inputs = images((40, 3, 32, 32), torch.float32)
    first, second = (affine_row(*inputs, table=table, step=step, noise=keys)[0] for _ in range(2))
    assert torch.equal(first, second)
