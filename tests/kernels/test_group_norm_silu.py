"""The definition of GroupNorm+SiLU, resampling and residual sums, their checks and registration, on the CPU."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from fastpure.errors import KernelUnavailable
from fastpure.kernels import (
    OPS,
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    registry,
    resample,
    resample_vjp,
    residual_add,
    use_backend,
)
from fastpure.kernels.group_norm_silu import reference
from tests.kernels.closeness import largest_error
from tests.kernels.helpers import EXTENSION

EPS = 1e-6


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, SKIP = normal(2, 12, 4, 6), normal(2, 8, 4, 6, seed=1)
WEIGHT, BIAS = normal(2, 20, seed=2).unbind()
ROW = normal(12, seed=3)
GROUPS = 4
BOTH = {"skip": SKIP, "row": ROW}


def plain(x, skip, row, weight, bias, resample, activate):
    """The same by torch's own operations."""
    h = torch.cat([x + (row if row.dim() == 2 else row[None])[:, :, None, None], skip], 1)
    a = F.group_norm(h, GROUPS, eps=EPS)
    a = a * reference.per_channel(weight, a.dtype) + reference.per_channel(bias, a.dtype)
    a = F.silu(a) if activate else a
    if resample == "up":
        return F.interpolate(a, scale_factor=2, mode="nearest")
    return F.avg_pool2d(a, 2) if resample == "down" else a


@pytest.mark.parametrize("resample", [None, "up", "down"])
@pytest.mark.parametrize("activate", [True, False])
@pytest.mark.parametrize("per_sample", [True, False])
def test_reference_is_what_torch_computes_and_its_gradient(resample, activate, per_sample):
    sizes = {3: 12, 4: 20, 5: 20}
    vectors = [normal(2, size, seed=s) for s, size in sizes.items()] if per_sample else [ROW, WEIGHT, BIAS]
    leaves = [X.clone().requires_grad_(), SKIP.clone().requires_grad_()]
    exact = plain(*leaves, *vectors, resample, activate)
    row, weight, bias = vectors
    options = {"skip": SKIP, "row": row, "resample": resample, "activate": activate}
    y, stats = group_norm_silu(X, weight, bias, GROUPS, EPS, **options)
    assert largest_error(y, exact) < 1e-13
    v, add = normal(*exact.shape, seed=6), normal(2, 20, 4, 6, seed=7)
    loss = (exact * v).sum() + (torch.cat(leaves, 1) * add).sum()
    wanted = torch.autograd.grad(loss, leaves)
    found = group_norm_silu_vjp(v, X, stats, weight, bias, GROUPS, add=add, **options)
    for one, other in zip(found, wanted, strict=True):
        assert largest_error(one, other) < 1e-12
        assert one.is_contiguous(memory_format=torch.channels_last)


def test_of_a_sum_and_its_gradient():
    plus, more = normal(*X.shape, seed=8), normal(*X.shape, seed=9)
    leaves = [t.clone().requires_grad_() for t in (X, plus, SKIP)]
    total = (leaves[0] + leaves[1] + ROW[:, None, None]) * 0.5
    exact = plain(total, leaves[2], torch.zeros(12, dtype=X.dtype), WEIGHT, BIAS, None, True)
    y, stats, found_total = group_norm_silu_of_sum(
        X, plus, WEIGHT, BIAS, GROUPS, EPS, row=ROW, scale=0.5, skip=SKIP
    )
    assert largest_error(y, exact) < 1e-13
    assert largest_error(found_total, total) < 1e-15
    v, add = normal(*exact.shape, seed=6), normal(2, 20, 4, 6, seed=7)
    loss = (exact * v).sum() + (torch.cat([total, leaves[2]], 1) * add).sum() + (total * more).sum()
    wanted = torch.autograd.grad(loss, leaves)
    v_sum, v_skip = group_norm_silu_vjp(
        v, found_total, stats, WEIGHT, BIAS, GROUPS, skip=SKIP, add=add, more=more, scale=0.5
    )
    for one, other in zip((v_sum, v_sum, v_skip), wanted, strict=True):
        assert largest_error(one, other) < 1e-12


def test_statistics_are_mean_and_inverse_deviation():
    _, stats = group_norm_silu(X, WEIGHT[:12], BIAS[:12], 3, EPS)
    groups = X.view(2, 3, -1)
    assert torch.allclose(stats[..., 0], groups.mean(-1))
    assert torch.allclose(stats[..., 1], (groups.var(-1, unbiased=False) + EPS).rsqrt())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_rounded_once(dtype):
    x = X.to(dtype)
    y, stats = group_norm_silu(x, WEIGHT[:12], BIAS[:12], 3, EPS)
    wide, _ = group_norm_silu(x.float(), WEIGHT[:12], BIAS[:12], 3, EPS)
    assert stats.dtype == torch.float32
    assert torch.equal(y, wide.to(dtype))


@pytest.mark.parametrize("kind", ["up", "down"])
def test_resampling_and_its_transpose(kind):
    x = X.clone().requires_grad_()
    exact = F.interpolate(x, scale_factor=2, mode="nearest") if kind == "up" else F.avg_pool2d(x, 2)
    assert largest_error(resample(X, kind), exact) < 1e-15
    v = normal(*exact.shape, seed=1)
    (wanted,) = torch.autograd.grad(exact, x, v)
    assert largest_error(resample_vjp(v, kind), wanted) < 1e-15


def test_residual_add():
    other, bias = normal(*X.shape, seed=1), BIAS[:12]
    exact = (X + other + bias[:, None, None]) * 0.5**0.5
    assert largest_error(residual_add(X, other, bias, 0.5**0.5), exact) < 1e-15
    assert torch.equal(residual_add(X, other), X + other)


def forward(**changes):
    arguments = {"x": X, "weight": WEIGHT[:12], "bias": BIAS[:12], "groups": 3, "eps": EPS} | changes
    return group_norm_silu(**arguments)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"x": X[0]}, ValueError, r"`x` must be of shape \[B, C, H, W\], got \[12, 4, 6\]"),
        ({"x": X.long()}, TypeError, "`x` must be float32, float64, bfloat16 or float16"),
        ({"groups": 5}, ValueError, "`groups` must be a divisor of the 12 channels, got 5"),
        ({"groups": 0}, ValueError, "`groups`"),
        ({"eps": 0.0}, ValueError, "`eps`"),
        ({"weight": WEIGHT}, ValueError, r"`weight` must be dense, of shape \[12\] or \[1 or 2, 12\]"),
        ({"bias": BIAS[:12].long()}, TypeError, "`bias` must be a floating-point tensor"),
        ({"row": normal(3, 12)}, ValueError, "`row`"),
        ({"row": ROW[:12].to("meta")}, ValueError, "`row` must be on the device of the input"),
        ({"skip": SKIP[:1]}, ValueError, "`skip`"),
        ({"skip": SKIP.float()}, TypeError, "`skip` must be of the dtype of the input"),
        ({"resample": "sideways"}, ValueError, "`resample` must be one of None, 'up', 'down'"),
        ({"x": X[:, :, :3], "resample": "down"}, ValueError, "`x` must be of even height and width"),
        ({"x": X.clone().requires_grad_()}, RuntimeError, "torch.no_grad"),
    ],
)
def test_mistakes_are_named(changes, error, words):
    with pytest.raises(error, match=words):
        forward(**changes)


def test_mistakes_of_the_backward_call_are_named():
    y, stats = forward()
    arguments = (stats, WEIGHT[:12], BIAS[:12], 3)
    with pytest.raises(ValueError, match=r"`v` must be of shape \[2, 12, 4, 6\]"):
        group_norm_silu_vjp(y[:, :, :2], X, *arguments)
    with pytest.raises(ValueError, match="`stats` must be dense"):
        group_norm_silu_vjp(y, X, stats[:1], *arguments[1:])
    with pytest.raises(ValueError, match="`add`"):
        group_norm_silu_vjp(y, X, *arguments, add=X[:1])
    with pytest.raises(ValueError, match="`more`"):
        group_norm_silu_vjp(y, X, *arguments, more=X[:1])
    with pytest.raises(ValueError, match="`plus` must be of shape"):
        group_norm_silu_of_sum(X, X[:1], *arguments[1:], EPS)
    with pytest.raises(ValueError, match="`kind` must be one of 'up', 'down'"):
        resample(X, "sideways")
    with pytest.raises(ValueError, match="even height and width"):
        resample(X[:, :, :3], "down")
    with pytest.raises(ValueError, match="`b` must be of shape"):
        residual_add(X, X[:1])


def test_a_forced_back_end_says_why_it_cannot_run():
    with use_backend("triton"), pytest.raises(KernelUnavailable, match="`group_norm_silu` on cpu: "):
        forward(x=X.float())


def test_empty_batches_pass_through():
    y, stats = forward(x=X[:0])
    assert y.shape == (0, 12, 4, 6)
    assert stats.shape == (0, 3, 2)


def test_tracing_needs_no_data_and_finds_mistakes():
    with FakeTensorMode():
        x, vector = torch.empty(2, 8, 4, 4), torch.empty(8)
        y, stats = group_norm_silu(x, vector, vector, 2, EPS, resample="up")
        assert y.shape == (2, 8, 8, 8)
        assert group_norm_silu_vjp(y, x, stats, vector, vector, 2, resample="up")[0].shape == x.shape
        with pytest.raises(ValueError, match="`weight`"):
            group_norm_silu(x, vector[:4], vector, 2, EPS)


def test_the_choice_prefers_triton_on_a_device_and_the_extension_on_the_cpu():
    for name in ("group_norm_silu", "group_norm_silu_vjp", "resample", "residual_add"):
        spec = OPS[name]
        assert spec.order["cuda"] == ("triton", "reference")
        assert registry.choose(spec, "cpu", torch.float64) == "reference"
    for spec in (OPS["group_norm_silu"], OPS["group_norm_silu_vjp"]):
        wanted = "reference" if EXTENSION.module is None else "host"
        assert registry.choose(spec, "cpu", torch.float32) == wanted
        assert registry.choose(spec, "cpu", torch.float16) == "reference"
