"""One operation, several implementations, one place that chooses.

An :class:`OpSpec` names an operation, its schema and its implementations. The choice depends on the
operation, the device type and the dtype only, never on the values or the size, so that one run uses one
implementation throughout.
"""

from __future__ import annotations

import functools
import os
import warnings
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from ..errors import KernelUnavailable, one_of
from . import extension

BACKENDS = ("reference", "host", "cuda", "triton")
EXTENSION = {"cpu": "host", "cuda": "cuda"}
"""Device type -> the back end of the compiled extension that serves it. ``"ext"``, their older name, means either."""

LIBRARY = torch.library.Library("fastpure", "DEF")  # the operations live as long as this handle
OPS: dict[str, OpSpec] = {}
"""Every operation, by name; :func:`define` enters it."""

Run = Callable[[Any], None]

_forced: list[str] = []

_prepared: dict[tuple[Any, ...], Run] = {}
"""What was checked and prepared before: operation, forced back end and signature of the arguments -> what runs it."""

MOST_PREPARED = 4096
"""Signatures remembered; a program with more begins anew, which costs it the checks once more."""


@dataclass(frozen=True, eq=False)
class Implementation:
    """One way to run an operation.

    Attributes:
        prepare: takes the arguments of the schema as ``OpSpec.arguments`` and returns what runs the operation for
            arguments like these (same shapes, strides, dtypes, devices and numbers, any addresses and values): a
            function that takes the arguments and writes into its output tensors.
        unavailable: (device type, dtype) -> None if it can run there, otherwise the reason in words.
    """

    prepare: Callable[[Any], Run]
    unavailable: Callable[[str, torch.dtype], str | None]

    @staticmethod
    def of(run: Run, unavailable: Callable[[str, torch.dtype], str | None]) -> Implementation:
        """One that has nothing to prepare."""
        return Implementation(lambda args: run, unavailable)


@dataclass(frozen=True, eq=False)
class OpSpec:
    """An operation: ``schema`` as torch.library wants it, the definition, and what can run it.

    Attributes:
        name: without the namespace; ``torch.ops.fastpure.<name>`` is the registered operation.
        schema: argument list and return; outputs are mutated arguments, the return is ``()``.
        reference: the out-of-place definition in torch, with the signature of the public function.
        impls: back-end name -> implementation; always holds ``"reference"``.
        order: device type -> preference; a device type not named uses the reference.
    """

    name: str
    schema: str
    reference: Callable[..., Any]
    impls: Mapping[str, Implementation]
    order: Mapping[str, tuple[str, ...]]

    @functools.cached_property
    def arguments(self) -> Any:
        """The class of named tuples that checks and implementations get: the schema's arguments, in its order."""
        schema = torch._C.parse_schema(f"fastpure::{self.name}{self.schema}")
        return namedtuple(self.name, [argument.name for argument in schema.arguments])

    def reason_against(self, backend: str, device_type: str, dtype: torch.dtype) -> str | None:
        """Why ``backend`` cannot run this operation there; None if it can."""
        if backend not in self.impls:
            return f"`{self.name}` has no `{backend}` implementation"
        return self.impls[backend].unavailable(device_type, dtype)


def define(
    spec: OpSpec,
    check: Callable[[Any], torch.Tensor],
    check_converted: Callable[[Any], torch.Tensor] | None = None,
) -> Callable[..., None]:
    """Enter ``spec`` in :data:`OPS`, register ``torch.ops.fastpure.<name>`` and return the cheapest way to call it.

    That is the registered operation where something watches (a compiler, a tracing mode, a tensor subclass),
    and its kernel directly otherwise: the dispatcher takes longer than a row of a small batch.

    ``check`` gets the arguments of the schema (``spec.arguments``), raises on anything a kernel could stumble
    over, and returns the tensor whose device and dtype decide the back end. It is also the fake kernel (there are
    no returns to describe), so tracing reports the same errors as running. ``check_converted`` may leave out what
    holds for tensors that the public function made or converted itself; it serves the direct call.
    """
    OPS[spec.name] = spec
    LIBRARY.define(f"{spec.name}{spec.schema}")

    # What `_make` does, without the function around it: every call comes here.
    named = functools.partial(tuple.__new__, spec.arguments)

    def prepared(leading: torch.Tensor, args: Any) -> Run:
        if leading.numel() == 0:
            return _nothing
        return spec.impls[choose(spec, leading.device.type, leading.dtype)].prepare(args)

    def kernel(*values: Any) -> None:
        args = named(values)
        prepared(check(args), args)(args)

    def fake(*values: Any) -> None:
        check(named(values))

    LIBRARY.impl(spec.name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"fastpure::{spec.name}", fake, lib=LIBRARY)
    registered = getattr(torch.ops.fastpure, spec.name).default
    check_direct = check_converted or check

    def call(*values: Any) -> None:
        if (
            torch.compiler.is_compiling()
            or torch.jit.is_tracing()
            or is_in_torch_dispatch_mode()
            or type(values[0]) is not torch.Tensor
        ):
            return registered(*values)
        args = named(values)
        key = _signature(spec.name, values)
        run = _prepared.get(key)
        if run is None:
            run = prepared(check_direct(args), args)
            if len(_prepared) >= MOST_PREPARED:
                _prepared.clear()
            _prepared[key] = run
        return run(args)

    return call


def _nothing(args: Any) -> None:
    """Runs an operation on no elements."""


def _signature(op: str, values: tuple[Any, ...]) -> tuple[Any, ...]:
    """All that checks and preparations look at."""
    key: list[Any] = [op, forced_backend(op)]
    for value in values:
        if isinstance(value, torch.Tensor):
            key += (value.shape, value.stride(), value.dtype, value.device)
        else:
            key.append(value)
    return tuple(key)


def forget() -> None:
    """Choose, check and prepare everything anew: what implementations are made of has changed (tests, tuning)."""
    _prepared.clear()
    for cached in (_choose, _forced_by_environment):
        cached.cache_clear()


def choose(spec: OpSpec, device_type: str, dtype: torch.dtype) -> str:
    """The name of the implementation that runs ``spec`` for this device type and dtype.

    Raises:
        KernelUnavailable: a back end was forced (``use_backend``, ``FASTPURE_BACKEND``) and cannot run.
    """
    return _choose(spec, device_type, dtype, forced_backend(spec.name))


@functools.cache
def _choose(spec: OpSpec, device_type: str, dtype: torch.dtype, forced: str | None) -> str:
    if forced is not None:
        backend = _resolved(forced, device_type)
        reason = spec.reason_against(backend, device_type, dtype)
        if reason is not None:
            raise KernelUnavailable(
                f"back end `{forced}` was asked for, but cannot run `{spec.name}` on {device_type}: {reason}"
            )
        return backend
    for backend in spec.order.get(device_type, ("reference",)):
        if spec.reason_against(backend, device_type, dtype) is None:
            return backend
    return "reference"


def _resolved(name: str, device_type: str) -> str:
    """The back end of this name there."""
    return EXTENSION.get(device_type, "host") if name == "ext" else name


def forced_backend(op: str) -> str | None:
    """The back end the caller insists on: ``use_backend`` first, then the environment; None if free."""
    return _forced[-1] if _forced else _forced_by_environment(op)


@functools.cache
def _forced_by_environment(op: str) -> str | None:
    """Read once per operation: the choice must not change while a run goes on."""
    variable = f"FASTPURE_BACKEND_{op.upper()}"
    value = os.environ.get(variable)
    if not value:
        variable, value = "FASTPURE_BACKEND", os.environ.get("FASTPURE_BACKEND")
    return _known(variable, value) if value else None


def _known(name: str, value: str) -> str:
    return value if value == "ext" else one_of(name, value, BACKENDS)


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every operation inside the block by the back end ``name``, or raise KernelUnavailable there.

    The setting holds for the whole process, not for one thread: the backward pass of a CUDA graph runs in
    threads of its own and has to see it too. Meant for tests and comparisons. ``"ext"`` is deprecated and means
    ``"host"`` for tensors in host memory and ``"cuda"`` for those on CUDA devices.
    """
    if name == "ext":
        text = 'use_backend("ext") is deprecated: say "host" or "cuda"'
        warnings.warn(text, DeprecationWarning, stacklevel=3)
    _forced.append(_known("name", name))
    try:
        yield
    finally:
        _forced.pop()


def describe(spec: OpSpec, device_type: str, dtype: torch.dtype) -> dict[str, Any]:
    """What runs ``spec`` there and why the other back ends do not, leaving out those for other devices."""
    try:
        chosen: str | None = choose(spec, device_type, dtype)
        error = None
    except KernelUnavailable as unavailable:
        chosen, error = None, str(unavailable)
    elsewhere = set(EXTENSION.values()) - {EXTENSION.get(device_type)}
    others = [name for name in BACKENDS if name != chosen and name not in elsewhere]
    against = {name: spec.reason_against(name, device_type, dtype) for name in others}
    return {"chosen": chosen, "error": error, "unavailable": {k: v for k, v in against.items() if v}}


def serves(op: str, backend: str, x: torch.Tensor) -> bool:
    """Whether ``backend`` runs operation ``op`` for tensors like ``x``; False where another one is forced.

    Raises:
        KernelUnavailable: ``backend`` itself is forced and cannot run there.
    """
    forced = forced_backend(op)
    if forced is not None and _resolved(forced, x.device.type) != backend:
        return False
    return choose(OPS[op], x.device.type, x.dtype) == backend


def backend_report() -> dict[str, Any]:
    """What is available and why not: ``{"extension": {...}, "ops": {op: {device: {dtype: {...}}}}}``.

    ``extension`` has ``available``, ``reason``, ``build`` (compiler, flags, instruction sets) and ``cuda``
    (``"available"``, or why the extension cannot serve CUDA tensors). Per operation, device type and dtype there
    are ``chosen`` (a back-end name), ``error`` (a forced back end that cannot run) and ``unavailable`` (back end
    -> reason). Everything in it can be written as JSON.
    """
    loaded = extension.load()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    return {
        "extension": {
            "available": loaded.module is not None,
            "reason": loaded.reason,
            "build": loaded.build,
            "cuda": extension.reason_against_cuda() or "available",
        },
        "ops": {
            name: {
                device: {label: describe(spec, device, dtype) for label, dtype in dtypes.items()}
                for device in devices
            }
            for name, spec in OPS.items()
        },
    }
