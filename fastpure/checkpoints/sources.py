"""Opening a weights file without running anything in it: safetensors, ``torch.save`` files, pickles, folders."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, listed
from .choice import CHOICES, Chosen, choose, chosen_tensors, is_averaged, is_tensors, without_prefixes
from .torch_files import LEGACY_HEAD, load_archive, load_legacy, load_pickle
from .weights import read_json, read_safetensors, require_file


@dataclass(frozen=True, eq=False)
class Source:
    """An opened file: tensors are not copied yet where the container allows it.

    ``container`` is "safetensors", "torch", "pickle" or "folder"; ``content`` what it holds; ``weights`` which of
    several sets in it is wanted; ``metadata`` of a safetensors file; ``config`` the configuration found beside it
    (folders); ``set_name`` and ``others`` what it was called among others, and these, where the choice is made.
    """

    path: Path
    container: str
    content: Any
    weights: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    config: Mapping[str, Any] | None = None
    set_name: str = ""
    others: tuple[str, ...] = ()

    @cached_property
    def chosen(self) -> Chosen | None:
        """The set of tensors that is meant, where the content holds any.

        Raises:
            ValueError: ``weights`` names none of them.
            CheckpointError: several are left.
        """
        name = self.set_name or self.path.stem
        # A folder's name has settled the question already.
        weights = None if self.set_name else self.weights
        found = chosen_tensors(self.content, weights, str(self.path), name)
        beside = (*self.others, *self._averaged_beside())
        if found is None or not beside:
            return found
        said = f"raw ({name})" if found.name == name and not is_averaged(name) else found.said
        return replace(found, others=(*beside, *found.others), said=said)

    def _averaged_beside(self) -> tuple[str, ...]:
        """OpenAI's training code writes model500000.pt and ema_0.9999_500000.pt into one folder."""
        if self.set_name or not re.fullmatch(r"model\d+", self.path.stem) or not is_tensors(self.content):
            return ()
        files = sorted(self.path.parent.glob(f"ema_*{self.path.suffix}"))
        return tuple(f"{file.name} (averaged weights, a file of their own)" for file in files)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that are meant, by name; empty if the content is something else."""
        return self.chosen.value if self.chosen is not None else {}

    def require_tensors(self) -> dict[str, Tensor]:
        """The tensors that are meant, by name, without the prefix ``module.`` of data-parallel training.

        Raises:
            CheckpointError: the content is something else, or empty.
        """
        return self.tensors or tensors_by_name(self.content, str(self.path))

    def others_dropped(self) -> tuple[str, ...]:
        """What stands beside the chosen tensors, for the report."""
        if self.chosen is None:
            return ()
        entries = self.content if isinstance(self.content, Mapping) and not is_tensors(self.content) else {}
        taken = {
            self.chosen.name.split("/")[0],
            *(other.split("/")[0].split(" ")[0] for other in self.chosen.others),
        }
        return (
            *self.chosen.others,
            *(f"{str(name)[:80]} (of the training)" for name in entries if name not in taken),
        )

    def summary(self) -> str:
        """What was found, in a few words, for error messages."""
        if isinstance(self.content, dict) and self.content:
            kind = "tensors" if is_tensors(self.content) else "entries"
            return f"{len(self.content)} {kind}: {listed(self.content)}"
        return f"a {type(self.content).__name__}" if self.content else "nothing"


def tensors_by_name(content: Any, source: str) -> dict[str, Tensor]:
    """``content`` if it is a dict of tensors, without a prefix ``module.`` that all names have.

    Raises:
        CheckpointError: it is something else.
    """
    if not isinstance(content, dict) or not content:
        raise CheckpointError(f"{source}: expected tensors by name, found {type(content).__name__}")
    foreign = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if foreign:
        raise CheckpointError(
            f"{source}: expected tensors by name, but {listed(foreign)} hold something else"
        )
    return without_prefixes({str(name): value for name, value in content.items()})


def open_source(path: Path, weights: str | None = None) -> Source:
    """Open a file or folder of any container that is known.

    Args:
        weights: which of several sets of weights is wanted, see `fastpure.checkpoints.choice`.

    Raises:
        ValueError: ``weights`` names no weights of the folder.
        CheckpointError: no such file, damaged, or holding objects that the restricted unpicklers refuse.
    """
    if path.is_dir():
        return _open_folder(path, weights)
    require_file(path)
    if path.suffix == ".safetensors":
        metadata, tensors = read_safetensors(path)
        return Source(path, "safetensors", tensors, weights, metadata)
    with path.open("rb") as file:
        head = file.read(32)
    if _is_archive(path) or (head[:1] == b"\x80" and head[2 : 2 + len(LEGACY_HEAD)] == LEGACY_HEAD):
        return Source(path, "torch", load_torch(path), weights)
    if head[:1] == b"\x80":
        try:
            return Source(path, "pickle", load_pickle(path), weights)
        except Exception as error:  # as above
            raise _unreadable(path, error) from error
    if _is_safetensors(head):
        metadata, tensors = read_safetensors(path)
        return Source(path, "safetensors", tensors, weights, metadata)
    expected = "a safetensors file, a file of torch.save or a pickle, neither truncated nor damaged"
    raise CheckpointError(f"{path}: not readable: expected {expected}, found {_described(head)}")


def _is_safetensors(head: bytes) -> bool:
    return len(head) > 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000


def _is_archive(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # which it raises of some damaged ones, instead of saying no
        return True


def _described(head: bytes) -> str:
    return f"bytes that begin with {head[:8]!r}" if head else "an empty file"


def load_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, restricted to tensors and plain containers; mapped, so that only what is used is read.

    Raises:
        CheckpointError: damaged, or holding objects whose code would have to run, which is never done.
    """
    try:
        if _is_archive(path):
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


def _open_folder(path: Path, weights: str | None) -> Source:
    """A folder of diffusers: config.json beside the weights, or a pipeline with such folders ``unet...`` in it."""
    sets = {path.name: path} if (path / "config.json").is_file() else _networks(path)
    if not sets:
        raise CheckpointError(f"{path}: expected a folder with config.json, found none in it")
    chosen = choose(sets, None if len(sets) == 1 and weights not in CHOICES else weights, str(path))
    folder = chosen.value
    config = read_json(folder / "config.json")
    if not isinstance(config, Mapping):
        found = type(config).__name__
        raise CheckpointError(f"{folder / 'config.json'}: expected fields by name, found {found}")
    files = _weight_files(folder)
    if not files:
        expected = "diffusion_pytorch_model.safetensors or .bin"
        raise CheckpointError(f"{folder}: expected {expected}, found neither")
    one = choose(files, weights if weights in files else None, str(folder))
    source = open_source(one.value)
    name = chosen.name if len(files) == 1 else one.name
    others = (*chosen.others, *one.others)
    return replace(source, container="folder", config=config, set_name=name, others=others, weights=None)


def _networks(path: Path) -> dict[str, Path]:
    """The folders of a training or pipeline that hold a U-Net: ``unet`` and ``unet_ema``, say."""
    return {p.parent.name: p.parent for p in sorted(path.glob("*unet*/config.json"))}


def _weight_files(folder: Path) -> dict[str, Path]:
    """Sets of weights in a folder by name. Half-precision copies are left out where the full ones are there."""
    files: dict[str, Path] = {}
    for ending in ("safetensors", "bin"):  # a .bin is an older copy of the .safetensors beside it
        for file in sorted(folder.glob(f"diffusion_pytorch_model*.{ending}")):
            files.setdefault(file.name.removesuffix(f".{ending}"), file)
    whole = {name: file for name, file in files.items() if not name.endswith(("fp16", "bf16"))}
    return whole or files
