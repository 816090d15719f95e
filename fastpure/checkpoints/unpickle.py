"""EDM's published pickles without the code in them.

Such a pickle holds modules that carry their own source text and would be executed by ``torch_utils.persistence``.
Here every class becomes an inert record of its attributes, and only classes of the packages that occur in these files
are accepted at all. See `fastpure.pickles` for what else is held in check.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..pickles import Inert, RestrictedUnpickler
from .tensors import reader, tensor_grants
from .torch_files import storage_from_bytes

_MOST_MODULES = 100_000
_DEEPEST = 64
_RECORDS = ("torch.nn.modules.", "training.")


class Record(Inert):
    """An object whose attributes are wanted: ``kind`` is the name of its class, ``state`` its attributes."""

    kind = ""

    def attributes(self) -> dict[str, Any]:
        return self.state if isinstance(self.state, dict) else {}


def _persistent(meta: Any) -> Record:
    """What ``torch_utils.persistence`` does, without the module source: keep class name and attributes."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise pickle.UnpicklingError(f"expected a persistent object, found {type(meta).__name__}")
    record = Record()
    record.kind = meta["class_name"]
    record.state = meta.get("state")
    return record


def module_grants(module: str, name: str) -> Any:
    """What EDM's pickles may name: also modules, as records, and storages as bytes."""
    if (module, name) == ("torch_utils.persistence", "_reconstruct_persistent_obj"):
        return _persistent
    if (module, name) == ("torch.storage", "_load_from_bytes"):
        return storage_from_bytes
    if module.startswith(_RECORDS) and name.isidentifier():
        return type(name, (Record,), {"kind": name})
    return tensor_grants(module, name)


def load_pickle(path: Path) -> Any:
    """The content of a pickle, with `Record` in the place of every module; no code in it runs.

    Raises:
        pickle.UnpicklingError: it names a function or class that is not on the list above.
        Exception: many other types, where it is damaged.
    """
    with path.open("rb") as file:
        return reader(file, path.stat().st_size, RestrictedUnpickler, module_grants).load()


def state_dict(record: Record) -> dict[str, Tensor]:
    """Parameters and buffers of a module and its children by name, in the order of ``Module.state_dict``.

    Raises:
        ValueError: modules nested deeper or more of them than any network's, or something in their place.
    """
    found: dict[str, Tensor] = {}
    # A stack, not recursion: a module that is its own child, or twice its parent's, would have no end.
    waiting, seen = [("", 0, record)], 0
    while waiting:
        prefix, depth, module = waiting.pop()
        seen += 1
        if depth > _DEEPEST or seen > _MOST_MODULES:
            raise ValueError("modules are nested in one another without end")
        attributes = module.attributes()
        for kind in ("_parameters", "_buffers"):
            for name, value in _items(attributes.get(kind)):
                if isinstance(value, Tensor):
                    found[prefix + name] = value.detach()
        children = [
            (name, child) for name, child in _items(attributes.get("_modules")) if isinstance(child, Record)
        ]
        waiting += [(f"{prefix}{name}.", depth + 1, child) for name, child in reversed(children)]
    return found


def _items(values: Any) -> Iterable[tuple[str, Any]]:
    return [(str(name)[:200], value) for name, value in values.items()] if isinstance(values, dict) else []
