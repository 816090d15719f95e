"""The operations are registered soundly: schema, fake kernels, no hidden autograd, tracing."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastpure.kernels import (
    OPS,
    NoiseKeys,
    Stream,
    affine_row,
    affine_row_vjp,
    philox_normal,
    philox_uniform,
    use_backend,
)
from tests.kernels.helpers import needs_ext, step_of, table_of

SHAPE = (2, 3, 5, 7)


def sample_arguments(name: str) -> list[tuple]:
    """Arguments of the raw operation, with and without its optional inputs and outputs."""
    keys, step, table = (
        NoiseKeys.make(1, [4, 5]),
        step_of(0),
        table_of({"a": 0.9, "b": 0.1, "d": 0.2, "q": 1.0}),
    )
    x, e, g, h, v, w = torch.randn(6, *SHAPE).unbind()
    key_tensors = (keys.seed, keys.sample_ids, keys.draws)
    new = [torch.empty(SHAPE) for _ in range(4)]
    none3 = (None, None, None)
    big, small, stats = activations(12, 8, 10), activations(12, 4, 5), torch.empty(2, 3, 2)
    vectors = tuple(torch.randn(3, 12))
    return {
        "philox_normal": [(*key_tensors, step, 1, 0, new[0])],
        "philox_uniform": [(*key_tensors, step, 1, 0, new[0])],
        "affine_row": [
            (x, e, g, h, None, *key_tensors, table, step, 1, 0, new[0], new[1]),
            (x, None, None, None, w, *none3, table, step, 1, 0, new[0], None),
        ],
        "affine_row_vjp": [
            (v, w, x, e, table, step, *new),
            (v, *none3, table, step, new[0], new[1], None, None),
        ],
        "group_norm_silu": [
            (small, None, *vectors, 3, 1e-6, 1, True, big, stats, None, 1.0, None),
            (
                small,
                small.clone(),
                None,
                *torch.randn(2, 24),
                3,
                1e-6,
                0,
                False,
                activations(24, 4, 5),
                stats,
                small.clone(),
                0.5,
                small.clone(),
            ),
        ],
        "group_norm_silu_vjp": [
            (big, small, None, *vectors, stats, 3, 1, True, None, small.clone(), None, small.clone(), 0.5),
        ],
        "resample": [(small, True, 1.0, big), (big, False, 0.25, small)],
        "residual_add": [
            (small, small.clone(), vectors[0], 0.5, activations(12, 4, 5)),
            (small, small.clone(), None, 0.5, activations(12, 4, 5)),
        ],
    }[name]


def activations(channels: int, height: int, width: int) -> torch.Tensor:
    """Random activations of a network, channels_last."""
    return torch.randn(2, channels, height, width).contiguous(memory_format=torch.channels_last)


RUNNABLE = [
    pytest.param(name, backend, marks=needs_ext if backend == "host" else ())
    for name, spec in OPS.items()
    for backend in spec.impls
    if backend in ("reference", "host")  # the others: tests/kernels/triton, test_cuda.py
]


@pytest.mark.parametrize(("name", "implementation"), RUNNABLE)
def test_opcheck(name, implementation):
    op = getattr(torch.ops.fastpure, name).default
    with use_backend(implementation):
        for arguments in sample_arguments(name):
            torch.library.opcheck(op, arguments)


@pytest.mark.parametrize("name", OPS)
def test_the_argument_list_is_the_schemas(name):
    """Every implementation gets one named tuple made from the schema, so none spells the list again."""
    spec = OPS[name]
    schema = getattr(torch.ops.fastpure, name).default._schema
    assert spec.arguments._fields == tuple(argument.name for argument in schema.arguments)
    for implementation in spec.impls.values():
        (parameter,) = inspect.signature(implementation.prepare).parameters.values()
        assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD


@pytest.mark.parametrize("name", OPS)
def test_schema_mutates_outputs_and_returns_nothing(name):
    schema = getattr(torch.ops.fastpure, name).default._schema
    assert len(schema.returns) == 0
    assert any(
        argument.alias_info is not None and argument.alias_info.is_write for argument in schema.arguments
    )


def test_public_functions_trace_without_data():
    """Under a tracing mode nothing is computed, and mistakes are still found."""
    with FakeTensorMode():
        keys = NoiseKeys(torch.empty(1, dtype=torch.int64), *torch.empty(2, 2, dtype=torch.int64).unbind())
        x, table = torch.empty(SHAPE), torch.empty(4, 16)
        step = torch.empty(1, dtype=torch.int64)
        assert philox_normal(keys, 1, Stream.REVERSE, SHAPE[1:]).shape == SHAPE
        assert (
            philox_uniform(keys, step, Stream.REVERSE, SHAPE[1:], dtype=torch.float64).dtype == torch.float64
        )
        x_next, h_next = affine_row(x, x, table=table, step=step, noise=keys, want_register=True)
        assert x_next.shape == h_next.shape == SHAPE
        cotangents = affine_row_vjp(
            x, x=None, noise_pred=None, table=table, step=step, want_guidance=True, want_register=False
        )
        assert [c is None for c in cotangents] == [False, False, False, True]
        with pytest.raises(ValueError, match="`guidance`"):
            affine_row(x, guidance=x[:1], table=table, step=step, noise=None)
        with pytest.raises(ValueError, match="`table`"):
            affine_row(x, table=table[:, :3], step=step, noise=None)


def test_graph_capture_sees_the_operation(backend):
    """A recorded graph calls the operation again instead of keeping its result."""
    table = table_of({"a": 2.0})

    def double(x: torch.Tensor) -> torch.Tensor:
        return affine_row(x, table=table, step=step_of(0), noise=None)[0]

    graph = torch.fx.experimental.proxy_tensor.make_fx(double)(torch.ones(SHAPE))
    # While a script is traced sizes are tensors, whose addresses no kernel must take for sizes.
    script = torch.jit.trace(double, torch.ones(SHAPE), check_trace=False)
    other = torch.full(SHAPE, 3.0)
    assert torch.equal(graph(other), 2 * other)
    assert torch.equal(script(other), 2 * other)
