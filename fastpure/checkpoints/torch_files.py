"""Files of ``torch.save``, today's archives and those of torch before 1.6, read without running anything in them.

Every length that such a file claims is compared with the file before memory is found for it: a header of 30 bytes can
announce 40 GB, and a storage of one number can be seen as a tensor of a million.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from ..pickles import RestrictedUnpickler
from .tensors import Reader, Storage, reader, storage_type

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
