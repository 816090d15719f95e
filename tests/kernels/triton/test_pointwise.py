"""Resampling and the end of a residual block by Triton, against the reference."""

from __future__ import annotations

import pytest
import torch

from fastpure.kernels import resample, resample_vjp, residual_add, use_backend
from fastpure.kernels.pointwise import reference
from fastpure.kernels.triton_support import flat_tile
from tests.kernels.closeness import largest_error
from tests.kernels.triton.cases import DEVICE, DTYPES, guarded, rounding, written_within

BLOCK = flat_tile(90, "residual", 4).channels


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def dtype(request):
    return request.param


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def close(found: torch.Tensor, exact: torch.Tensor) -> bool:
    """Summed in float32, rounded once."""
    floor = 1e-6 * float(exact.abs().max())
    return largest_error(found, exact) <= rounding(exact, found.dtype) + floor


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 3, 5), (2, 64, 4, 4), (1, 65, 1, 17), (2, 8, 15, 17)])
def test_resample(shape, dtype):
    batch, channels, height, width = shape
    small, _ = guarded(normal(*shape), dtype)
    large, _ = guarded(normal(batch, channels, 2 * height, 2 * width, seed=1), dtype)
    for call, x, kind in (
        (resample, small, "up"),
        (resample, large, "down"),
        (resample_vjp, large, "up"),
        (resample_vjp, small, "down"),
    ):
        with use_backend("triton"):
            found = call(x, kind)
        with use_backend("reference"):
            exact = call(x.double(), kind)
        assert found.shape == exact.shape
        assert found.dtype == dtype
        assert close(found, exact)


@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1, 1), (1, 1, 1, BLOCK - 1), (1, 4, 8, BLOCK // 32), (1, 1, 1, BLOCK + 1), (2, 24, 16, 15)],
)
@pytest.mark.parametrize("with_bias", [False, True])
def test_residual_add(shape, dtype, with_bias):
    a, _ = guarded(normal(*shape), dtype)
    b, _ = guarded(normal(*shape, seed=1), dtype)
    bias = normal(shape[1], seed=2).to(dtype).to(DEVICE) if with_bias else None
    with use_backend("triton"):
        found = residual_add(a, b, bias, 0.5**0.5)
        assert torch.equal(found, residual_add(a, b, bias, 0.5**0.5))
    wide = None if bias is None else bias.double()
    assert close(found, reference.residual_add(a.double(), b.double(), wide, 0.5**0.5))


def test_nothing_is_written_outside(dtype):
    a, _ = guarded(normal(2, 5, 6, 6), dtype)
    with use_backend("triton"):
        for operation, arguments, shape in (
            (torch.ops.fastpure.residual_add, (a, a, None, 1.0), (2, 5, 6, 6)),
            (torch.ops.fastpure.resample, (a, True, 1.0), (2, 5, 12, 12)),
            (torch.ops.fastpure.resample, (a, False, 0.25), (2, 5, 3, 3)),
        ):
            out, buffer = guarded(torch.full(shape, torch.nan), dtype)
            operation(*arguments, out)
            assert written_within(out, buffer)
