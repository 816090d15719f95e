"""Opening a weights file without running anything in it: safetensors, ``torch.save`` files, pickles, folders."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError
from .torch_files import LEGACY_HEAD, load_archive, load_legacy
from .unpickle import load_pickle
from .weights import listed, read_json, read_safetensors, require_file

@dataclass(frozen=True, eq=False)
class Source:
    """An opened file: tensors are not copied yet where the container allows it.

    ``container`` is "safetensors", "torch", "pickle" or "folder"; ``content`` what it holds; ``tensors`` that
    content if it is nothing but tensors by name, otherwise empty; ``metadata`` of a safetensors file;
    ``config`` the configuration found beside it (folders).
    """

    path: Path
    container: str
    content: Any
    metadata: dict[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        content = self.content
        if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
            return {}
        return content

    def require_tensors(self) -> dict[str, Tensor]:
        """The tensors by name, without the prefix ``module.`` of data-parallel training.

        Raises:
            CheckpointError: the content is something else, or empty.
        """
        return tensors_by_name(self.content, str(self.path))

    def summary(self) -> str:
        """What was found, in a few words, for error messages."""
        if isinstance(self.content, dict) and self.content:
            kind = "tensors" if self.tensors else "entries"
            return f"{len(self.content)} {kind}: {listed(map(str, self.content))}"
        return f"a {type(self.content).__name__}" if self.content else "nothing"


def tensors_by_name(content: Any, source: str) -> dict[str, Tensor]:
    """``content`` if it is a dict of tensors, without a prefix ``module.`` that all names have.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{source}: expected tensors by name, found {type(content).__name__}")
    foreign = [str(name) for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"{source}: expected tensors by name, but {listed(foreign)} hold something else"
        )
    if all(str(name).startswith("module.") for name in content):
        return {str(name).removeprefix("module."): value for name, value in content.items()}
    return {str(name): value for name, value in content.items()}


def open_source(path: Path) -> Source:
    """Open a file or folder of any container that is known.

    Raises:
        CheckpointError: no such file, damaged, or holding objects that the restricted unpicklers refuse.
    """
    if path.is_dir():
        return _open_folder(path)
    require_file(path)
    if path.suffix == ".safetensors":
        metadata, tensors = read_safetensors(path)
        return Source(path, "safetensors", tensors, metadata)
    with path.open("rb") as file:
        head = file.read(32)
    if zipfile.is_zipfile(path) or (head[:1] == b"\x80" and head[2 : 2 + len(LEGACY_HEAD)] == LEGACY_HEAD):
        return Source(path, "torch", load_torch(path))
    if head[:1] == b"\x80":
        try:
            return Source(path, "pickle", load_pickle(path))
        except Exception as error:  # as above
            raise _unreadable(path, error) from error
    if _is_safetensors(head):
        metadata, tensors = read_safetensors(path)
        return Source(path, "safetensors", tensors, metadata)
    expected = "a safetensors file, a file of torch.save or a pickle, neither truncated nor damaged"
    raise CheckpointError(f"{path}: not readable: expected {expected}, found {_described(head)}")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _described(head: bytes) -> str:
    return f"bytes that begin with {head[:8]!r}" if head else "an empty file"


def load_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, restricted to tensors and plain containers; mapped, so that only what is used is read.

    Raises:
        CheckpointError: damaged, or holding objects whose code would have to run, which is never done.
    """
    try:
        if zipfile.is_zipfile(path):
            return load_archive(path)
        with path.open("rb") as file:
            return load_legacy(file, path.stat().st_size)
    except Exception as error:  # damaged pickles raise about every type there is
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    words = str(error).strip()
    reason = words.splitlines()[0][:300] if words else type(error).__name__
    return CheckpointError(
        f"{path}: not readable as weights; it is damaged, or holds objects whose code would have to run "
        f"(a pickled module), which is never done: {reason}"
    )


def _open_folder(path: Path) -> Source:
    """A folder of diffusers: config.json beside the weights, or a pipeline with such a folder ``unet`` in it."""
    folder = path / "unet" if (path / "unet" / "config.json").is_file() else path
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{path}: expected a folder with config.json, found none in it")
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping):
        found = type(config).__name__
        raise CheckpointError(f"{folder / 'config.json'}: expected fields by name, found {found}")
    for name in ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"):
        if (folder / name).is_file():
            source = open_source(folder / name)
            return Source(folder / name, "folder", source.content, source.metadata, config)
    expected = "diffusion_pytorch_model.safetensors or .bin"
    raise CheckpointError(f"{folder}: expected {expected}, found neither")
