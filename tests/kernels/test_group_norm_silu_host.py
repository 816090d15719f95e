"""GroupNorm+SiLU by the host extension, against float64 and against torch's own operations in the same precision."""

from __future__ import annotations

import dataclasses
import functools
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F

from fastpure.errors import KernelUnavailable
from fastpure.kernels import (
    extension,
    fused_on_host,
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    use_backend,
)
from fastpure.kernels.group_norm_silu import reference
from fastpure.kernels.pointwise.reference import residual_add as reference_residual
from tests.kernels.closeness import distance, largest_error
from tests.kernels.helpers import EXTENSION, needs_ext
from tests.kernels.triton import cases
from tests.kernels.triton.cases import EPS, Case, Inputs, guarded, inputs, truth, written_within
from tests.tolerances import NORM_BACKWARD, NORM_FORWARD, NORM_STATISTICS, ROUNDING

pytestmark = needs_ext
DTYPES = [torch.float32, torch.bfloat16]
CASES = [
    Case(1, 1, 1, 1),
    Case(8, 2, 1, 1),
    Case(16, 4, 3, 5),
    Case(15, 3, 7, 9),  # 63 pixels, one less than a partial sum; one channel less than a tile
    Case(17, 1, 8, 8),
    Case(33, 33, 5, 13),  # a channel per group, 65 pixels, one channel more than two tiles
    Case(36, 9, 4, 4),  # the last unit has fewer groups
    Case(48, 4, 6, 6),
    Case(200, 1, 3, 3),  # a group of more channels than any tile
    Case(132, 4, 2, 5),
    Case(96, 8, 20, 20),  # a unit too large to keep its cotangents
    Case(16, 4, 4, 6, row="C"),
    Case(16, 4, 4, 6, row="1C", activate=False),
    Case(16, 4, 4, 6, row="BC", affine="BC", add=True),
    Case(16, 4, 4, 6, skip=8, add=True, row="C"),
    Case(20, 4, 3, 5, skip=4, row="BC"),  # groups of 6: the last holds channels of both
    Case(64, 8, 4, 4, skip=32, add=True),  # groups of 12 across the border of x and skip
    Case(16, 4, 4, 6, resample="up", row="C", add=True),
    Case(16, 4, 4, 6, resample="down", row="C", add=True),
    Case(8, 4, 2, 2, resample="down", skip=8),
    Case(8, 4, 1, 3, resample="up", skip=8, activate=False),
    Case(128, 32, 16, 16, row="C"),
]


@pytest.fixture(autouse=True)
def on_the_host(monkeypatch):
    monkeypatch.setattr(cases, "DEVICE", "cpu")
    with use_backend("host"):
        yield


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


@pytest.fixture(params=DTYPES, ids=["float32", "bfloat16"])
def dtype(request):
    return request.param


def forward(given: Inputs):
    return group_norm_silu(given.x, given.weight, given.bias, given.groups, EPS, **given.options)


def backward(given: Inputs, stats):
    settings = (stats, given.weight, given.bias, given.groups)
    found = group_norm_silu_vjp(given.v, given.x, *settings, add=given.add, **given.options)
    return [v for v in found if v is not None]


def by_torch(given: Inputs):
    """torch's operations one after another, in the dtype of the input."""
    options = given.options
    h = given.x
    if options["row"] is not None:
        h = h + reference.per_channel(options["row"], h.dtype)
    if options["skip"] is not None:
        h = torch.cat([h, options["skip"]], 1)
    n = F.group_norm(h, given.groups, eps=EPS)
    n = n * reference.per_channel(given.weight, h.dtype) + reference.per_channel(given.bias, h.dtype)
    a = F.silu(n) if options["activate"] else n
    if options["resample"] == "up":
        return F.interpolate(a, scale_factor=2, mode="nearest")
    return F.avg_pool2d(a, 2) if options["resample"] == "down" else a


def test_forward_is_as_good_as_torch(case, dtype):
    given = inputs(case, dtype)
    exact, _ = truth(given)
    y, stats = forward(given)
    assert y.dtype == dtype
    assert y.is_contiguous(memory_format=torch.channels_last)
    factor, floor = NORM_FORWARD
    rounded_once = ROUNDING[dtype] * float(exact.abs().max()) if exact.numel() < 10_000 else 0.0
    assert largest_error(y, exact) <= factor * largest_error(by_torch(given), exact) + floor + rounded_once
    with use_backend("reference"):
        _, wanted = forward(given.double())
    scale = wanted.abs().clamp(min=0.1)
    assert largest_error(stats / scale, wanted / scale) <= NORM_STATISTICS


def test_backward_is_the_gradient(case, dtype):
    given = inputs(case, dtype)
    _, exact = truth(given)
    found = backward(given, forward(given)[1])
    assert len(found) == len(exact)
    for v, wanted in zip(found, exact, strict=True):
        assert (v.dtype, v.shape) == (dtype, wanted.shape)
        if case.height * case.width * (case.channels + case.skip) == case.groups:
            assert not v.any()  # a group of one element is always normalised to 0
            continue
        limit = NORM_BACKWARD[dtype]
        chance = 4 * ROUNDING[dtype] / v.numel() ** 0.5  # independent roundings leave this much bias
        assert distance(v, wanted).within(dataclasses.replace(limit, bias=max(limit.bias, chance)))


def raw(given: Inputs, case: Case, dtype):
    """The registered operations into poisoned memory; checks that they filled it and nothing else."""
    shared = (given.options["skip"], given.options["row"], given.weight, given.bias)
    code = {None: 0, "up": 1, "down": 2}[case.resample]
    y, around = guarded(torch.full(given.v.shape, math.nan), dtype)
    stats = torch.full((case.batch, case.groups, 2), math.nan)
    ops = torch.ops.fastpure
    ops.group_norm_silu(given.x, *shared, case.groups, EPS, code, case.activate, y, stats, None, 1.0, None)
    assert written_within(y, around)
    shapes = [t.shape for t in (given.x, given.options["skip"]) if t is not None]
    outs = [guarded(torch.full(shape, math.nan), dtype) for shape in shapes]
    tensors = [out for out, _ in outs] + [None] * (2 - len(outs))
    ops.group_norm_silu_vjp(
        given.v, given.x, *shared, stats, case.groups, code, case.activate, given.add, *tensors, None, 1.0
    )
    assert all(written_within(*out) for out in outs)
    return [y, stats, *(out for out, _ in outs)]


def test_sums_are_added_up_first_and_their_cotangents_last(case, dtype):
    given, factor = inputs(case, dtype), 0.5**0.5
    generator = torch.Generator().manual_seed(8)
    plus, more = torch.randn(2, *given.x.shape, generator=generator).to(dtype).unbind()
    options = dict(given.options)
    row = options.pop("row")
    affine = (given.weight, given.bias, given.groups)
    y, stats, total = group_norm_silu_of_sum(given.x, plus, *affine, EPS, row=row, scale=factor, **options)
    wanted = reference_residual(given.x, plus, row, factor)
    assert torch.equal(total, wanted)
    again, statistics = group_norm_silu(wanted, *affine, EPS, **options)
    assert torch.equal(y, again)
    assert torch.equal(stats, statistics)
    without = group_norm_silu_vjp(given.v, total, stats, *affine, add=given.add, **options)
    found = group_norm_silu_vjp(
        given.v, total, stats, *affine, add=given.add, more=more, scale=factor, **options
    )
    exact = (without[0].double() + more.double()) * factor
    assert largest_error(found[0], exact) <= 3 * ROUNDING[dtype] * float(exact.abs().max())
    assert found[1] is None or torch.equal(found[1], without[1])


def test_every_instruction_set_and_number_of_threads_gives_the_same_bits(case, dtype, monkeypatch):
    """Inputs lie between NaN, which would spread if read; outputs begin as NaN.

    The baseline, which rounds after every multiplication, has bits of its own; how near they are is checked in
    csrc/tests/group_norm_check.cpp.
    """
    given = inputs(case, dtype)
    wanted = raw(given, case, dtype)
    module = EXTENSION.module
    on_the_baseline = None
    for name in EXTENSION.build["instruction_sets"]:
        for threads in (1, 3):
            functions = {
                f: functools.partial(getattr(module, f), isa=name) for f in ("group_norm", "group_norm_vjp")
            }
            loaded = extension.Extension(SimpleNamespace(**functions), None)
            monkeypatch.setattr(extension, "load", lambda loaded=loaded: loaded)
            torch.set_num_threads(threads)
            found = raw(given, case, dtype)
            if name == "baseline" and EXTENSION.build["instruction_sets"][0] != name:
                on_the_baseline = wanted = found if on_the_baseline is None else on_the_baseline
            for one, other in zip(found, wanted, strict=True):
                assert torch.equal(one, other), (name, threads)


def test_a_sample_does_not_depend_on_its_batch(case, dtype):
    given = inputs(case, dtype)
    y, stats = forward(given)
    found = backward(given, stats)

    def last(value):
        per_sample = isinstance(value, torch.Tensor) and value.dim() in (2, 4) and len(value) == case.batch
        return value[case.batch - 1 :].clone() if per_sample else value

    options = {name: last(value) for name, value in given.options.items()}
    tensors = (last(given.x), last(given.weight), last(given.bias), given.groups, last(given.v))
    one = Inputs(*tensors, last(given.add), options)
    y_one, stats_one = forward(one)
    assert torch.equal(y[-1:], y_one)
    for v, w in zip(found, backward(one, stats_one), strict=True):
        assert torch.equal(v[-1:], w)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_is_not_a_number_stays_in_its_group_and_is_seen(poison, dtype):
    given = inputs(Case(40, 10, 4, 4), dtype)
    given.x[1, 13, 2, 1] = poison
    y, stats = forward(given)
    (v,) = backward(given, stats)
    for result in (y, v):
        assert result[1, 12:16].isnan().all()
        assert result[0].isfinite().all()
        assert result[1, :12].isfinite().all()
        assert result[1, 16:].isfinite().all()


def test_a_cotangent_that_is_not_a_number_is_seen(dtype):
    given = inputs(Case(8, 2, 4, 4), dtype)
    given.v[0, 1, 2, 3] = math.nan
    (v,) = backward(given, forward(given)[1])
    assert v[0, :4].isnan().all()
    assert v[0, 4:].isfinite().all()


def test_a_large_mean_does_not_hurt_the_variance():
    """Mean 3000, standard deviation 2: E[x^2] - E[x]^2 in float32 would be off by about one."""
    given = inputs(Case(8, 2, 8, 8), torch.float32)
    given.x.add_(3000.0)
    with use_backend("reference"):
        _, wanted = forward(given.double())
    assert (forward(given)[1] / wanted - 1).abs().max() < 1e-6


def test_extreme_inputs_stay_finite(dtype):
    given = inputs(Case(8, 2, 4, 4, batch=3), dtype)
    given.x[0] = 1.25  # no variance at all
    given.weight[0], given.bias[0] = 0.0, 200.0  # SiLU far to the right
    given.weight[1], given.bias[1] = 0.0, -200.0  # and to the left
    y, stats = forward(given)
    assert y.isfinite().all()
    assert (y[:, 0] == 200).all()
    assert (y[:, 1].abs() < 1e-30).all()
    assert stats[0, 0].tolist() == pytest.approx([1.25, EPS**-0.5], rel=1e-5)
    assert all(v.isfinite().all() for v in backward(given, stats))


def test_vectors_of_another_dtype(dtype):
    """A bfloat16 network with float32 norms, and the other way round."""
    given = inputs(Case(16, 4, 4, 4, row="C"), dtype)
    row = given.options["row"]
    wanted = forward(given)[0]
    for weight, bias, other in [
        (given.weight.float(), given.bias.float(), row.float()),
        (given.weight.double(), given.bias, row),
    ]:
        assert torch.equal(group_norm_silu(given.x, weight, bias, 4, EPS, row=other)[0], wanted)


def test_it_says_what_it_cannot_do():
    x, vector = torch.zeros(1, 4, 2, 2, dtype=torch.float64), torch.ones(4)
    with pytest.raises(KernelUnavailable, match="float64 is not supported"):
        group_norm_silu(x, vector, vector, 2, EPS)
    assert not fused_on_host(x)
    assert not fused_on_host(torch.zeros(1, 4, 2, 2))
    last = torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    assert fused_on_host(last)
    with use_backend("reference"):
        assert not fused_on_host(last)


def test_transformations_that_carry_derivatives_are_left_to_torch():
    x = torch.zeros(1, 4, 2, 2).contiguous(memory_format=torch.channels_last)
    seen = []

    def note(x):
        seen.append(fused_on_host(x))
        return x

    torch.func.vmap(note)(x[None])
    torch.func.jvp(note, (x,), (x,))
    with torch.autograd.forward_ad.dual_level():
        note(x)
    assert seen == [False] * 3
