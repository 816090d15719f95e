"""The transposed row update against autograd in float64; both directions on every instruction set."""

from __future__ import annotations

import pytest
import torch

from fastpure.kernels import affine_row_vjp
from fastpure.kernels.extension import HOST, STATE_CODES
from fastpure.kernels.row import reference
from tests.kernels.helpers import DTYPES, EXTENSION, FORMATS, needs_ext, step_of, table_of
from tests.kernels.rows import MULTISTEP, ROWS, SHAPES, coefficients, images, keys_for
from tests.tolerances import CLIP_BORDER, ROW, ROW_CLIPPED, UNIT_ROUNDOFF


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
    keys, step, state, results = keys_for(3), step_of(0), STATE_CODES[dtype], []
    for isa in module.build_info()["instruction_sets"]:
        for threads in (1, 3):
            out = [torch.empty(shape, dtype=dtype) for _ in range(6)]
            x_next, h_next, *cotangents = out
            key_tensors = (keys.seed, keys.sample_ids, keys.draws)
            arguments = (x, e, g, h, None, *key_tensors, table, step, 1, 0, x_next, h_next)
            rest = (1, 3, 3, 37 * 41, 0, state, state, state)
            module.affine_row(HOST, threads, arguments, rest, isa=isa)
            arguments = (g, h, x, e, table, step, *cotangents)
            module.affine_row_vjp(HOST, threads, arguments, (1, x.numel(), state, state), isa=isa)
            results.append(out)
    for out in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(out, results[0], strict=True))
