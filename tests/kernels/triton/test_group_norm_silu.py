"""GroupNorm+SiLU by Triton against float64 and against torch's own kernels in the same precision."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastpure.kernels import (
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    registry,
    residual_add,
    triton_support,
    use_backend,
)
from fastpure.kernels.group_norm_silu import impl_triton, reference
from fastpure.kernels.triton_support import architecture
from tests.kernels.closeness import distance, largest_error
from tests.kernels.triton.cases import (
    DEVICE,
    DTYPES,
    EPS,
    Case,
    Inputs,
    guarded,
    inputs,
    rounding,
    small_rules,
    truncation,
    truth,
    written_within,
)
from tests.tolerances import NORM_BACKWARD, NORM_FORWARD, NORM_STATISTICS, ROUNDING

SHAPES = [
    Case(1, 1, 1, 1),
    Case(8, 2, 1, 1),
    Case(16, 4, 3, 5),  # 15 pixels, one less than the tile
    Case(16, 4, 4, 4),
    Case(16, 4, 1, 17),
    Case(16, 16, 4, 4),  # one channel per group
    Case(15, 3, 4, 4),  # groups of 5, and one channel less than the tile
    Case(17, 1, 4, 4),
    Case(36, 9, 4, 4),  # the last block of groups is not full
    Case(48, 4, 6, 6),  # groups of 12
    Case(32, 8, 8, 8),
]
SPLIT = [
    Case(8, 2, 3, 5, split=True),
    Case(7, 7, 4, 4, split=True),  # one channel less than the tile
    Case(8, 1, 1, 17, split=True),
    Case(9, 3, 4, 4, split=True),
    Case(24, 2, 7, 9, split=True),
    Case(16, 4, 8, 12, split=True),
]
FEATURES = [
    Case(16, 4, 4, 6, row="C"),
    Case(16, 4, 4, 6, row="1C", activate=False),
    Case(16, 4, 4, 6, row="BC", affine="BC", add=True),
    Case(16, 4, 4, 6, skip=8, add=True, row="C"),
    Case(20, 4, 3, 5, skip=4, row="BC"),  # groups of 6: the second holds channels of both
    Case(16, 4, 4, 6, resample="up", row="C", add=True),
    Case(16, 4, 4, 6, resample="down", row="C", add=True),
    Case(8, 4, 2, 2, resample="down", skip=8),
    Case(8, 4, 1, 3, resample="up", skip=8),
]
CASES = [*SHAPES, *SPLIT, *FEATURES, *(dataclasses.replace(case, split=True) for case in FEATURES)]
if DEVICE == "cuda":  # every case is compiled, which takes longer than running it: fewer, and the real sizes
    CASES = [*SHAPES[1::3], *SPLIT[::3], *FEATURES, *CASES[-len(FEATURES) :: 2]]
    CASES += [
        Case(128, 32, 32, 32, row="C"),
        Case(256, 32, 32, 32, skip=128),
        Case(256, 32, 16, 16, add=True),
    ]
    CASES += [Case(256, 32, 4, 4, skip=256), Case(256, 32, 16, 16, resample="up")]
    CASES += [Case(128, 32, 32, 32, resample="down"), Case(256, 32, 256, 256, row="C")]
SUMS = (
    CASES
    if DEVICE == "cpu"
    else [*FEATURES[2:7], Case(128, 32, 32, 32, row="C"), Case(256, 32, 8, 8, skip=256)]
)


@pytest.fixture
def tiles(monkeypatch):
    """A function that puts small tiles, or tiles that hold no group, in the place of the committed ones."""

    def forget():
        impl_triton.forward_plan.cache_clear()
        impl_triton.backward_plan.cache_clear()
        registry.forget()

    def use(split: bool) -> None:
        monkeypatch.setitem(triton_support.RULES, architecture(torch.device(DEVICE)), small_rules(split))
        monkeypatch.setattr(triton_support, "FINISH_BLOCK", 16)
        forget()

    forget()
    yield use
    forget()


@pytest.fixture(params=CASES, ids=str)
def case(request, tiles):
    """A case; all but the official sizes are cut into small tiles."""
    chosen: Case = request.param
    if chosen.channels < 128:
        tiles(chosen.split)
    return chosen


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    """Every case in float32; interpreted, which is slow, in one of the two shorter types: the cases take turns."""
    chosen, shorter = request.param, DTYPES[1:]
    given = request.node.callspec.params.get("case")
    turn = shorter[CASES.index(given) % len(shorter)] if given in CASES else chosen
    if chosen in shorter and chosen != turn:
        pytest.skip("the other short type's turn")
    return chosen


@pytest.fixture(autouse=True)
def triton_kernels():
    with use_backend("triton"):
        yield


def forward(given: Inputs) -> tuple[Tensor, Tensor]:
    return group_norm_silu(given.x, given.weight, given.bias, given.groups, EPS, **given.options)


def backward(given: Inputs, stats: Tensor) -> list[Tensor]:
    found = group_norm_silu_vjp(
        given.v, given.x, stats, given.weight, given.bias, given.groups, add=given.add, **given.options
    )
    return [v for v in found if v is not None]


def by_torch(given: Inputs) -> Tensor:
    """The same by torch's operations, one after another, in the dtype of the input."""
    options = given.options
    h = given.x
    if options["row"] is not None:
        h = h + reference.per_channel(options["row"], h.dtype)
    if options["skip"] is not None:
        h = torch.cat([h, options["skip"]], 1)
    if given.weight.dim() == 1:
        n = F.group_norm(h, given.groups, given.weight, given.bias, EPS)
    else:
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
    slack = floor + (rounding if exact.numel() < 1000 else truncation)(exact, dtype)
    assert largest_error(y, exact) <= factor * largest_error(by_torch(given), exact) + slack
    with use_backend("reference"):
        _, wanted = forward(given.double())
    assert stats.dtype == torch.float32
    assert (
        largest_error(stats / wanted.abs().clamp(min=0.1), wanted / wanted.abs().clamp(min=0.1))
        <= NORM_STATISTICS
    )


def test_backward_is_the_gradient(case, dtype):
    given = inputs(case, dtype)
    _, exact = truth(given)
    _, stats = forward(given)
    found = backward(given, stats)
    assert len(found) == len(exact)
    for v, wanted in zip(found, exact, strict=True):
        assert v.dtype == dtype
        assert v.shape == wanted.shape
        if max(case.height * case.width * (case.channels + case.skip) // case.groups, 1) == 1:
            assert not v.any()  # a group of one element is always normalised to 0
            continue
        limit = NORM_BACKWARD[dtype]
        chance = 4 * ROUNDING[dtype] / v.numel() ** 0.5  # independent roundings leave this much bias
        assert distance(v, wanted).within(dataclasses.replace(limit, bias=max(limit.bias, chance)))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=["float32", "bfloat16"])
def test_two_calls_agree_bit_for_bit_and_write_nothing_outside(case, dtype):
    """Outputs begin as NaN between NaN guards; inputs are surrounded by NaN, which would spread if read."""
    given = inputs(case, dtype)
    wanted_y, stats = forward(given)
    wanted = backward(given, stats)
    y, around = guarded(torch.full(wanted_y.shape, torch.nan), dtype)
    written = torch.full((case.batch, case.groups, 2), torch.nan, device=DEVICE)
    shared = (given.options["skip"], given.options["row"], given.weight, given.bias)
    code = {None: 0, "up": 1, "down": 2}[case.resample]
    ops = torch.ops.fastpure
    ops.group_norm_silu(given.x, *shared, case.groups, EPS, code, case.activate, y, written, None, 1.0, None)
    assert written_within(y, around)
    assert torch.equal(y, wanted_y)
    assert torch.equal(written, stats)
    outs = [guarded(torch.full(v.shape, torch.nan), dtype) for v in wanted]
    tensors = [out for out, _ in outs] + [None] * (2 - len(outs))
    ops.group_norm_silu_vjp(
        given.v, given.x, *shared, stats, case.groups, code, case.activate, given.add, *tensors, None, 1.0
    )
    for (out, buffer), v in zip(outs, wanted, strict=True):
        assert written_within(out, buffer)
        assert torch.equal(out, v)


SCALE = 0.5**0.5


@pytest.mark.parametrize("case", SUMS, ids=str, indirect=True)
def test_a_sum_is_added_up_on_the_way(case, dtype):
    """The same bits as adding first; nothing outside is read or written; every input is read before it is replaced."""
    given = inputs(case, dtype)
    plus, _ = guarded(torch.randn(given.x.shape, generator=torch.Generator().manual_seed(9)), dtype)
    affine = (given.weight, given.bias, given.groups, EPS)
    options = dict(given.options)
    row = options.pop("row")
    wanted_total = residual_add(given.x, plus, row, SCALE)
    wanted_y, wanted_stats = group_norm_silu(wanted_total, *affine, **options)
    y, stats, total = group_norm_silu_of_sum(given.x, plus, *affine, row=row, scale=SCALE, **options)
    assert torch.equal(total, wanted_total)
    assert torch.equal(stats, wanted_stats)
    assert torch.equal(y, wanted_y)
    out, around = guarded(torch.full(given.x.shape, torch.nan), dtype)
    code = {None: 0, "up": 1, "down": 2}[case.resample]
    shared = (options["skip"], row, given.weight, given.bias, case.groups, EPS, code, case.activate)
    torch.ops.fastpure.group_norm_silu(
        given.x, *shared, torch.empty_like(y), torch.empty_like(stats), plus, SCALE, out
    )
    assert written_within(out, around)
    assert torch.equal(out, wanted_total)


@pytest.mark.parametrize(
    "case", [case for case in FEATURES if not case.resample or case.skip], ids=str, indirect=True
)
def test_where_registers_are_short_the_sum_is_a_kernel_of_its_own(case, monkeypatch):
    monkeypatch.setattr(impl_triton, "_crowded", lambda tile: True)
    given = inputs(case, torch.bfloat16)
    plus, _ = guarded(torch.randn(given.x.shape, generator=torch.Generator().manual_seed(9)), torch.bfloat16)
    options = dict(given.options)
    row = options.pop("row")
    affine = (given.weight, given.bias, given.groups, EPS)
    found = group_norm_silu_of_sum(given.x, plus, *affine, row=row, scale=SCALE, **options)
    wanted_total = residual_add(given.x, plus, row, SCALE)
    wanted = (*group_norm_silu(wanted_total, *affine, **options), wanted_total)
    assert all(map(torch.equal, found, wanted))
    problem = impl_triton.Problem(
        first=case.channels, second=case.skip, height=case.height, width=case.width, groups=case.groups, eps=EPS,
        resample={None: 0, "up": 1, "down": 2}[case.resample], activate=case.activate, itemsize=2,
        rows=False, weights=False, biases=False, plus=True, scale=SCALE,
    )  # fmt: skip
    plan = impl_triton.forward_plan(architecture(torch.device(DEVICE)), problem)
    assert [launch.kernel.__name__ for launch in plan.launches] == ["add", "forward_fused"]


@pytest.mark.parametrize("case", SUMS, ids=str, indirect=True)
def test_backward_of_a_sum_is_the_gradient(case, dtype):
    """With cotangents of the total from elsewhere, and the scale, against float64."""
    given = inputs(dataclasses.replace(case, row=None), dtype)
    more, _ = guarded(torch.randn(given.x.shape, generator=torch.Generator().manual_seed(9)), dtype)
    _, exact = truth(given)
    _, stats = forward(given)
    found = group_norm_silu_vjp(
        given.v, given.x, stats, given.weight, given.bias, given.groups,
        add=given.add, more=more, scale=SCALE, **given.options,
    )  # fmt: skip
    exact[0] = (exact[0] + more.double()) * SCALE
    for v, wanted in zip([v for v in found if v is not None], exact, strict=True):
        limit = NORM_BACKWARD[dtype]
        chance = 4 * ROUNDING[dtype] / v.numel() ** 0.5
        assert distance(v, wanted).within(dataclasses.replace(limit, bias=max(limit.bias, chance)))


def test_a_sample_does_not_depend_on_its_batch(case):
    given = inputs(case, torch.float32)
    y, stats = forward(given)
    found = backward(given, stats)
    last = slice(case.batch - 1, case.batch)

    def alone(value):
        """The last sample in memory of its own (aligned as every fresh tensor is)."""
        per_sample = isinstance(value, Tensor) and value.dim() in (2, 4) and len(value) == case.batch
        return value[last].clone() if per_sample else value

    options = {name: alone(value) for name, value in given.options.items()}
    tensors = (alone(given.x), alone(given.weight), alone(given.bias), given.groups, alone(given.v))
    one = Inputs(*tensors, alone(given.add), options)
    y_one, stats_one = forward(one)
    assert torch.equal(y[last], y_one)
    assert torch.equal(stats[last], stats_one)
    for v, w in zip(found, backward(one, stats_one), strict=True):
        assert torch.equal(v[last], w)


@pytest.mark.parametrize("split", [False, True])
def test_a_large_mean_does_not_hurt_the_variance(tiles, split):
    """Mean 3000, standard deviation 1: E[x^2] - E[x]^2 in float32 would be off by about one."""
    tiles(split)
    case = Case(8, 2, 8, 8)
    given = inputs(case, torch.float32)
    given.x.add_(3000.0)
    _, stats = forward(given)
    with use_backend("reference"):
        _, wanted = forward(given.double())
    assert (stats / wanted - 1).abs().max() < 1e-5


def test_the_committed_tiles_work_too(dtype):
    """Every other test here cuts small inputs with small tiles."""
    given = inputs(Case(48, 4, 6, 6, skip=24, row="C", add=True), dtype)
    exact, gradients = truth(given)
    y, stats = forward(given)
    assert largest_error(y, exact) <= 2 * rounding(exact, dtype) + 1e-5
    for v, wanted in zip(backward(given, stats), gradients, strict=True):
        assert distance(v, wanted).within(NORM_BACKWARD[dtype])


def test_extreme_inputs_stay_finite(dtype):
    given = inputs(Case(8, 2, 4, 4, batch=3), dtype)
    given.x[0] = 1.25  # no variance at all
    given.weight[0], given.bias[0] = 0.0, 200.0  # SiLU far to the right
    given.weight[1], given.bias[1] = 0.0, -200.0  # and to the left
    y, stats = forward(given)
    assert y.isfinite().all()
    assert (y[:, 0] == 200).all()
    assert (y[:, 1] == 0).all()
    assert stats[0, 0].tolist() == pytest.approx([1.25, EPS**-0.5], rel=1e-5)
    assert all(v.isfinite().all() for v in backward(given, stats))


def test_an_empty_batch_is_no_error():
    given = inputs(Case(8, 2, 4, 4, batch=0), torch.float32)
    y, stats = forward(given)
    assert y.shape == (0, 8, 4, 4)
    assert backward(given, stats)[0].shape == (0, 8, 4, 4)
