"""EDM's published pickles without the code in them.

Such a pickle holds modules that carry their own source text and would be executed by ``torch_utils.persistence``.
Here every class becomes an inert record of its attributes, only classes of the packages that occur in these
files are accepted at all, and the only functions that run are torch's two that put a tensor together, plus the
reading of a storage in restricted mode.
"""

from __future__ import annotations

import collections
import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Inert:
    """Stands for any object of a file that is not needed: takes every construction and state, does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state


class Record(Inert):
    """An object whose attributes are wanted: ``kind`` is the name of its class, ``state`` its attributes."""

    kind = ""

    def attributes(self) -> dict[str, Any]:
        return self.state if isinstance(self.state, dict) else {}


class _Mapping(dict):
    """A dict of a foreign class (dnnlib's EasyDict)."""

    def __setstate__(self, state: Any) -> None:
        pass


def _reconstruct(meta: Any) -> Record:
    """What ``torch_utils.persistence`` does, without the module source: keep class name and attributes."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError(f"expected a persistent object, found {type(meta).__name__}")
    record = Record()
    record.kind = meta["class_name"]
    record.state = meta.get("state")
    return record


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *rest: Any) -> Tensor:
    """``torch._utils._rebuild_tensor_v2``, which would enlarge a storage that is too small for the tensor."""
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if min(offset, *size, *stride, 0) < 0 or (all(size) and last >= storage._size()):
        raise pickle.UnpicklingError(f"a tensor {list(size)} in a storage of {storage._size()} numbers")
    return torch._utils._rebuild_tensor_v2(storage, offset, size, stride, *rest)


def _storage(content: bytes) -> Any:
    """``torch.storage._load_from_bytes`` in restricted mode."""
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


_FUNCTIONS: dict[tuple[str, str], Any] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _reconstruct,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("builtins", "set"): set,
    ("builtins", "slice"): Inert,
    ("dnnlib.util", "EasyDict"): _Mapping,
    ("dnnlib", "EasyDict"): _Mapping,
    ("numpy", "dtype"): Inert,
    ("numpy", "ndarray"): Inert,
    ("numpy.core.multiarray", "scalar"): Inert,
    ("numpy.core.multiarray", "_reconstruct"): Inert,
    ("numpy._core.multiarray", "scalar"): Inert,
    ("numpy._core.multiarray", "_reconstruct"): Inert,
    ("torch", "Size"): tuple,
    ("torch", "device"): Inert,
    ("torch", "dtype"): Inert,
}
_INERT_PACKAGES = ("torch.nn.modules.", "training.")


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = _FUNCTIONS.get((module, name))
        if known is not None:
            return known
        if module.startswith(_INERT_PACKAGES) and name.isidentifier():
            return type(name, (Record,), {"kind": name})
        raise pickle.UnpicklingError(f"refused: {module}.{name} is no part of a network's weights")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refused: references to objects outside the file")


def load_pickle(path: Path) -> Any:
    """The content of a pickle, with `Record` in the place of every module; no code in it runs.

    Raises:
        pickle.UnpicklingError: it names a function or class that is not on the list above.
        Exception: many other types, where it is damaged.
    """
    with path.open("rb") as file:
        return _Unpickler(file).load()


def state_dict(record: Record, prefix: str = "") -> dict[str, Tensor]:
    """Parameters and buffers of a module and its children by name, in the order of ``Module.state_dict``.

    Raises:
        ValueError: modules nested deeper than any network's, or something in their place.
    """
    if prefix.count(".") > 64:
        raise ValueError("modules are nested in one another without end")
    found: dict[str, Tensor] = {}
    attributes = record.attributes()
    for kind in ("_parameters", "_buffers"):
        for name, value in _items(attributes.get(kind)):
            if isinstance(value, Tensor):
                found[prefix + name] = value.detach()
    for name, child in _items(attributes.get("_modules")):
        if isinstance(child, Record):
            found.update(state_dict(child, f"{prefix}{name}."))
    return found


def _items(values: Any) -> list[tuple[str, Any]]:
    return [(str(name), value) for name, value in values.items()] if isinstance(values, dict) else []
