"""What the row update takes and where it writes: guards, in place, other layouts and dtypes, mistakes."""

from __future__ import annotations

import pytest
import torch

from fastpure.kernels import affine_row, affine_row_vjp
from tests.kernels.helpers import FORMATS, guarded, guards_intact, step_of, table_of
from tests.kernels.rows import NOISY, ROWS, SHAPES, images, keys_for

X = torch.zeros(2, 3, 4, 4)


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
