"""Tensors in pickles: what a file of weights may name, and how a tensor is put together from a storage in it."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from typing import IO, Any, TypeVar, final

import torch
from torch import Tensor

from ..pickles import Grants, Inert, RestrictedUnpickler, plain_keys

Reader = TypeVar("Reader", bound=RestrictedUnpickler)
REASON = "refused: {} is no part of a network's weights"


@final
@dataclass(frozen=True, eq=False)
class Storage:
    """Numbers of one type, of which tensors are views."""

    data: Tensor


class ForeignDict(dict):
    """A dict of a foreign class (dnnlib's EasyDict, Lightning's AttributeDict), or with defaults."""

    def __init__(self, *_: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v2``, which would enlarge a storage that is too small for the tensor.

    A tensor that repeats its storage (strides of 0 in 24 KB make 11 GiB) is no weight either.
    """
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"a tensor in a {type(storage).__name__}")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or not all(type(number) is int and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor whose sizes and strides are no counts")
    available = storage.data.numel()
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if prod(size) > available or (all(size) and last >= available):
        raise pickle.UnpicklingError(f"a tensor {list(size)[:8]} in a storage of {available} numbers")
    # as_strided counts from the beginning of the memory, which for a mapped file is the file.
    return storage.data.as_strided(size, stride, storage.data.storage_offset() + offset)


def _typed_tensor(
    storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    """``torch._utils._rebuild_tensor_v3``: bytes seen as another type."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise pickle.UnpicklingError("a tensor without storage or type")
    return _tensor(Storage(storage.data.view(torch.uint8).view(dtype)), offset, size, stride)


def _parameter(data: Any, *_: Any) -> Tensor:
    """``torch._utils._rebuild_parameter``; whether it is trained does not matter here."""
    if not isinstance(data, Tensor):
        raise pickle.UnpicklingError(f"a parameter of a {type(data).__name__}")
    return data


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    if type(pairs) is not list and pairs != ():
        raise pickle.UnpicklingError("an OrderedDict of something else than pairs")
    plain_keys(key for key, _ in pairs)
    return OrderedDict(pairs)


def _set(values: Any = ()) -> set[Any]:
    if type(values) not in (list, tuple):
        raise pickle.UnpicklingError("a set of something else than values")
    plain_keys(values)
    return set(values)


def _size(values: Any = ()) -> tuple[Any, ...]:
    return tuple(values) if type(values) in (list, tuple) else ()


#: Tensors and plain containers.
_PLAIN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _typed_tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("collections", "OrderedDict"): _ordered,
    ("collections", "defaultdict"): ForeignDict,
    ("builtins", "set"): _set,
    ("__builtin__", "set"): _set,
    ("torch", "Size"): _size,
    ("dnnlib.util", "EasyDict"): ForeignDict,
    ("dnnlib", "EasyDict"): ForeignDict,
    ("lightning.fabric.utilities.data", "AttributeDict"): ForeignDict,
    ("lightning_fabric.utilities.data", "AttributeDict"): ForeignDict,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): ForeignDict,
}
#: What training code leaves beside the weights: learning rates as NumPy scalars, options, paths. It becomes inert.
_UNNEEDED = {
    "numpy": ("dtype", "ndarray"),
    "numpy.core.multiarray": ("scalar", "_reconstruct"),
    "numpy._core.multiarray": ("scalar", "_reconstruct"),
    "torch": ("device", "dtype"),
    "builtins": ("slice", "dict", "list", "int", "float", "bool", "str"),
    "_codecs": ("encode",),
    "argparse": ("Namespace",),
    "pathlib": ("Path", "PurePosixPath", "PosixPath", "PureWindowsPath", "WindowsPath"),
    "torch.serialization": ("_get_layout",),
}
_INERT = {(module, name): Inert for module, names in _UNNEEDED.items() for name in names}


@dataclass(frozen=True)
class _Kind:
    """Stands for the class of a storage: what its numbers are."""

    dtype: torch.dtype


_STORAGES = {f"{name}Storage": dtype for name, dtype in {
    "Double": torch.float64, "Float": torch.float32, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool, "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64, "Untyped": torch.uint8,
}.items()}  # fmt: skip
_KINDS = {name: _Kind(dtype) for name, dtype in _STORAGES.items()}


def tensor_grants(module: str, name: str) -> Any:
    """What files of ``torch.save`` may name: tensors, plain containers, and what becomes inert."""
    if module in ("torch", "torch.storage", "torch.cuda") and name in _KINDS:
        return _KINDS[name]
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    return _PLAIN.get((module, name)) or _INERT.get((module, name))


def storage_type(kind: Any) -> torch.dtype:
    """The type of a storage's numbers, from what stands for its class."""
    if not isinstance(kind, _Kind):
        raise pickle.UnpicklingError(f"a storage of a {type(kind).__name__}")
    return kind.dtype


def reader(file: IO[bytes], size: int, kind: type[Reader], grants: Grants = tensor_grants) -> Reader:
    """A reader of the next ``size`` bytes of ``file`` that makes what ``grants`` says."""
    return kind(file, size, grants, REASON, (Inert, ForeignDict))
