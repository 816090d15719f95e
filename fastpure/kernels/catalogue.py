"""The list of operations, and what runs each of them here."""

from __future__ import annotations

from typing import Any

import torch

from fastpure.kernels import _ext
from fastpure.kernels.group_norm_silu.op import BACKWARD, FORWARD
from fastpure.kernels.noise.op import NORMAL, UNIFORM
from fastpure.kernels.registry import OpSpec, choose, describe, forced_backend
from fastpure.kernels.resample.op import RESAMPLE
from fastpure.kernels.residual.op import RESIDUAL
from fastpure.kernels.row.op import ROW, VJP

OPS: dict[str, OpSpec] = {
    spec.name: spec for spec in (NORMAL, UNIFORM, ROW, VJP, FORWARD, BACKWARD, RESAMPLE, RESIDUAL)
}


def serves(op: str, backend: str, x: torch.Tensor) -> bool:
    """Whether ``backend`` runs operation ``op`` for tensors like ``x``; False where another one is forced.

    Raises:
        KernelUnavailable: ``backend`` itself is forced and cannot run there.
    """
    if forced_backend(op) not in (None, backend):
        return False
    return choose(OPS[op], x.device.type, x.dtype) == backend


def backend_report() -> dict[str, Any]:
    """What is available and why not: ``{"extension": {...}, "ops": {op: {device: {dtype: {...}}}}}``.

    ``extension`` has ``available``, ``reason``, ``build`` (compiler, flags, instruction sets) and ``cuda``
    (``"available"``, or why the extension cannot serve CUDA tensors). Per
    operation, device type and dtype there are ``chosen`` (a back-end name), ``error`` (a forced back end that
    cannot run) and ``unavailable`` (back end -> reason). Everything in it can be written as JSON.
    """
    extension = _ext.load()
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    dtypes = {"float32": torch.float32, "float64": torch.float64}
    return {
        "extension": {
            "available": extension.module is not None,
            "reason": extension.reason,
            "build": extension.build,
            "cuda": _ext.reason_against_cuda() or "available",
        },
        "ops": {
            name: {
                device: {label: describe(spec, device, dtype) for label, dtype in dtypes.items()}
                for device in devices
            }
            for name, spec in OPS.items()
        },
    }
