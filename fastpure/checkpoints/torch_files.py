"""Pickles of tensors, read without running anything in them: ``torch.save``, today and before 1.6, and EDM's.

Every length that such a file claims is compared with the file before memory is found for it: a header of 30 bytes can
announce 40 GB, and a storage of one number can be seen as a tensor of a million.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod
from pathlib import Path
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


LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_HEAD = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
"""How files of torch before 1.6 begin, after the two bytes of the pickle protocol."""

_PROTOCOL = 1001
_LOCAL_HEADER = 30


def load_archive(path: Path) -> Any:
    """The content of a zip archive of ``torch.save``; tensors are views of the mapped file, read when they are used.

    Raises:
        Exception: of many types, where it is damaged, refused or something else.
    """
    size = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if sum(member.file_size for member in members.values()) > size:
            raise pickle.UnpicklingError("an archive whose members are larger than itself")
        pickled = [name for name in members if name.rpartition("/")[2] == "data.pkl"]
        if len(pickled) != 1:
            raise pickle.UnpicklingError(f"{len(pickled)} data.pkl in the archive, expected 1")
        folder = pickled[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in members:
            raise pickle.UnpicklingError("a TorchScript program, not weights")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in members else b"little"
        if order.decode() != sys.byteorder:
            raise pickle.UnpicklingError(f"written on a {order.decode()!r}-endian machine")
        content = archive.read(pickled[0])
    unpickler = reader(io.BytesIO(content), len(content), _ArchiveUnpickler)
    unpickler.open(path, members, folder)
    return unpickler.load()


class _ArchiveUnpickler(RestrictedUnpickler):
    """Knows where in the archive each storage lies."""

    def open(self, path: Path, members: dict[str, zipfile.ZipInfo], folder: str) -> None:
        size = path.stat().st_size
        # Private: nothing written to a tensor reaches the file.
        self._bytes = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
        self._members, self._folder = members, folder
        self._storages: dict[str, Storage] = {}

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or type(pid[4]) is not int:
            raise pickle.UnpicklingError("a reference that is no storage")
        _, kind, key, _, numel = pid[:5]
        dtype, key = storage_type(kind), str(key)
        if key not in self._storages:
            member = self._members.get(f"{self._folder}data/{key}")
            if member is None or member.compress_type != zipfile.ZIP_STORED:
                raise pickle.UnpicklingError(f"storage {key[:40]!r} is not in the archive")
            if member.file_size != numel * dtype.itemsize:
                sizes = f"{member.file_size} bytes, expected {numel} numbers of {dtype}"
                raise pickle.UnpicklingError(f"storage {key[:40]!r} has {sizes}")
            self._storages[key] = Storage(
                self._at(member).view(dtype) if numel else torch.empty(0, dtype=dtype)
            )
        found = self._storages[key]
        if found.data.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key[:40]!r} of two types")
        return found

    def _at(self, member: zipfile.ZipInfo) -> Tensor:
        """The bytes of a member [file_size], behind its own header, whose length only that header says."""
        begin = member.header_offset
        header = bytes(self._bytes[begin : begin + _LOCAL_HEADER].tolist())
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise pickle.UnpicklingError(f"no member at byte {begin}")
        start = begin + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:30]))
        found = self._bytes[start : start + member.file_size]
        if found.numel() != member.file_size:
            raise pickle.UnpicklingError("a storage that ends behind the file")
        # Archives align storages; where one is not, its numbers cannot be seen in place.
        return found if found.data_ptr() % 16 == 0 else found.clone()


def load_legacy(file: IO[bytes], size: int) -> Any:
    """The content of a file of torch before 1.6: pickles one after the other, then the numbers of each storage.

    Raises:
        Exception: of many types, where it is damaged, refused or something else.
    """
    end = file.tell() + size

    def following(kind: type[Reader]) -> Reader:
        return reader(file, end - file.tell(), kind)

    magic, protocol, system = (following(RestrictedUnpickler).load() for _ in range(3))
    if magic != LEGACY_MAGIC or protocol != _PROTOCOL:
        raise pickle.UnpicklingError(f"protocol {protocol!r}, expected {_PROTOCOL}"[:200])
    if not isinstance(system, dict) or system.get("little_endian", True) is not (sys.byteorder == "little"):
        raise pickle.UnpicklingError("written on a machine of another byte order")
    unpickler = following(_LegacyUnpickler)
    unpickler.storages, unpickler.left = {}, size
    content, keys = unpickler.load(), following(RestrictedUnpickler).load()
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(unpickler.storages):
        raise pickle.UnpicklingError("storages that are announced and those that are used differ")
    for key in keys:
        data = unpickler.storages[str(key)].data
        (numel,) = struct.unpack("<q", file.read(8))
        content_of = file.read(data.numel() * data.dtype.itemsize)
        if numel != data.numel() or len(content_of) != data.numel() * data.dtype.itemsize:
            raise pickle.UnpicklingError(
                f"storage {str(key)[:40]!r} is cut off, or of another length than announced"
            )
        if numel:
            data.view(torch.uint8).copy_(torch.frombuffer(bytearray(content_of), dtype=torch.uint8))
    return content


class _LegacyUnpickler(RestrictedUnpickler):
    """Makes storages of the announced lengths, which the file must be long enough for; they are filled later."""

    storages: dict[str, Storage]
    left: int

    def persistent_load(self, pid: Any) -> Any:
        if type(pid) is not tuple or len(pid) < 5 or pid[0] != "storage" or type(pid[4]) is not int:
            raise pickle.UnpicklingError("a reference that is no storage")
        _, kind, key, _, numel = pid[:5]
        dtype, key = storage_type(kind), str(key)
        if key not in self.storages:
            self.left -= numel * dtype.itemsize
            if numel < 0 or self.left < 0:
                raise pickle.UnpicklingError("storages that are larger than the file")
            self.storages[key] = Storage(torch.empty(numel, dtype=dtype))
        found = self.storages[key]
        if found.data.dtype != dtype:
            raise pickle.UnpicklingError(f"storage {key[:40]!r} of two types")
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return found
        _, offset, length = view
        if not 0 <= offset <= offset + length <= found.data.numel():
            raise pickle.UnpicklingError("a view that ends behind its storage")
        return Storage(found.data[offset : offset + length])


def storage_from_bytes(content: Any) -> Storage:
    """``torch.storage._load_from_bytes``: the one storage in the bytes of a small file of ``torch.save``."""
    if type(content) is not bytes:
        raise pickle.UnpicklingError(f"a storage in a {type(content).__name__}")
    storage = load_legacy(io.BytesIO(content), len(content))
    if not isinstance(storage, Storage):
        raise pickle.UnpicklingError(f"expected a storage, found a {type(storage).__name__}")
    return storage


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
