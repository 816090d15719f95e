"""Files of a data set wherever they are: in a folder, in a folder below it, or in a tar archive."""

from __future__ import annotations

import bz2
import gzip
import io
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import final

from ..errors import DataError
from .listing import contents
from .regular import affordable, open_regular, read_regular, reason, size_of

#: No file of a known data set is larger.
_LARGEST = 2**28
_MOST_MEMBERS = 1000  # the official archives have nine
_BLOCK = 1 << 20
_PACKED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open))


@final
@dataclass(frozen=True)
class Archive:
    """A folder or a tar file (plain or compressed) with the files of a data set somewhere inside."""

    path: Path

    @staticmethod
    def find(path: Path, names: tuple[str, ...]) -> Archive:
        """``path`` itself, or the first of ``names`` (archives and folders) that stands in it.

        Raises:
            DataError: nothing is there.
        """
        if path.is_dir():
            for name in names:
                if (path / name).exists():
                    return Archive(path / name)
        if not path.exists():
            raise DataError(f"{path}: no such file or folder; expected {' or '.join(names)}")
        return Archive(path)

    def names(self) -> set[str]:
        """Names of all regular files, without their folders."""
        if self.path.is_dir():
            return {file.name for file in contents(self.path) if file.is_file()}
        with self._members() as members:
            return {Path(member.name).name for member, _ in members}

    def read(self, names: list[str]) -> dict[str, bytes]:
        """Contents of the files called ``names``, wherever in the archive they stand.

        Raises:
            DataError: a file is missing, stands there twice, is larger than any that is known, or the archive is
                damaged.
        """
        contents: dict[str, bytes] = {}
        if self.path.is_dir():
            contents = {
                name: read_regular(self.path / name, largest=_LARGEST)
                for name in names
                if (self.path / name).is_file()
            }
        else:
            # Read where they stand; nothing is ever extracted to the disk.
            with self._members() as members:
                for member, tar in members:
                    name = Path(member.name).name
                    if name not in names:
                        continue
                    if name in contents:
                        raise DataError(f"{self.path}: holds {name} twice")
                    file = tar.extractfile(member)
                    contents[name] = file.read() if file is not None else b""
        if missing := [name for name in names if name not in contents]:
            raise DataError(f"{self.path}: lacks {', '.join(missing)}")
        return contents

    @contextmanager
    def _members(self) -> Iterator[Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]]:
        """All regular members, as many as are believed."""

        def each(tar: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
            for count, member in enumerate(tar):
                if count == _MOST_MEMBERS:
                    raise DataError(
                        f"{self.path}: more than {_MOST_MEMBERS} files; expected an official archive"
                    )
                if member.isfile():
                    yield member, tar

        try:
            with tarfile.open(fileobj=io.BytesIO(self._unpacked), mode="r:") as tar:
                yield each(tar)
        except DataError:
            raise
        except Exception as error:  # damaged archives raise about every type there is
            raise DataError(f"{self.path}: damaged, or not a tar archive: {reason(error)}") from error

    @cached_property
    def _unpacked(self) -> bytes:
        """The tar file without its compression, so that no header can ask for more than is there."""
        with open_regular(self.path) as stream:
            size, start = size_of(stream), stream.read(8)
            stream.seek(0)
            opener = next((opener for magic, opener in _PACKED if start.startswith(magic)), None)
            if opener is None:
                return stream.read()
            unpacked = io.BytesIO()
            source = opener(stream)
            while block := source.read(_BLOCK):
                # twice, since a growing buffer is copied
                affordable(2 * (unpacked.tell() + len(block)), size, f"{self.path}: unpacking it")
                unpacked.write(block)
            return unpacked.getvalue()
