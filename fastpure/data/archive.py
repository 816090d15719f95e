"""Files of a data set wherever they are: in a folder, in a folder below it, or in a tar archive."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import final

from ..errors import DataError

__all__ = ["Archive"]

#: No file of a known data set is larger; a tar member that claims to be would only fill the memory.
_LARGEST = 2**28
_DAMAGED = (tarfile.TarError, OSError, EOFError, zlib.error, gzip.BadGzipFile)


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
            return {file.name for file in self.path.iterdir() if file.is_file()}
        return {Path(member.name).name for member in self._members() if member.isfile()}

    def read(self, names: list[str]) -> dict[str, bytes]:
        """Contents of the files called ``names``, wherever in the archive they stand.

        Raises:
            DataError: a file is missing, stands there twice, or the archive is damaged.
        """
        if self.path.is_dir():
            found = {name: self.path / name for name in names if (self.path / name).is_file()}
            self._require(names, set(found))
            return {name: file.read_bytes() for name, file in found.items()}
        return self._read_tar(names)

    def _members(self) -> list[tarfile.TarInfo]:
        try:
            with tarfile.open(self.path) as tar:
                return tar.getmembers()
        except _DAMAGED as error:
            raise DataError(f"{self.path}: damaged, or not a tar archive: {error}") from error

    def _read_tar(self, names: list[str]) -> dict[str, bytes]:
        contents: dict[str, bytes] = {}
        try:
            # Read where they stand; nothing is ever extracted to the disk.
            with tarfile.open(self.path) as tar:
                for member in tar:
                    name = Path(member.name).name
                    if name not in names or not member.isfile():
                        continue
                    if name in contents:
                        raise DataError(f"{self.path}: holds {name} twice")
                    if member.size > _LARGEST:
                        raise DataError(f"{self.path}: {name} claims to have {member.size} bytes")
                    file = tar.extractfile(member)
                    contents[name] = file.read() if file is not None else b""
        except _DAMAGED as error:
            raise DataError(f"{self.path}: damaged, or not a tar archive: {error}") from error
        self._require(names, set(contents))
        return contents

    def _require(self, names: list[str], found: set[str]) -> None:
        if missing := [name for name in names if name not in found]:
            raise DataError(f"{self.path}: lacks {', '.join(missing)}")
