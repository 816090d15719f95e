"""Tensors by name: reading files of them, and filling a network only when every name and shape fits."""

from __future__ import annotations

import ctypes
import importlib
import json
import mmap
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ..errors import CheckpointError, listed, mistake

Network = TypeVar("Network", bound=nn.Module)
_LARGEST_CONFIG = 1 << 24
_ROOM = 4


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(metadata, tensors by name) of a safetensors file.

    Raises:
        CheckpointError: no such file, truncated, or not a safetensors file.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}") from error


def read_metadata(path: Path) -> dict[str, str]:
    """Metadata of a safetensors file; empty for any other file."""
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError, ValueError):
        return {}


def read_config(config: str | Path | Mapping[str, Any]) -> tuple[Any, str]:
    """(content, what to call it in messages) of a configuration given as a dict, a JSON file or a YAML file.

    Raises:
        TypeError: it is none of these.
        CheckpointError: no such file, or not readable.
    """
    if isinstance(config, Mapping):
        return config, "`config`"
    if not isinstance(config, str | Path):
        raise TypeError(mistake("config", "a dict or the path of a JSON or YAML file", type(config).__name__))
    path = Path(config)
    return (_read_yaml(path) if path.suffix in (".yml", ".yaml") else read_json(path)), str(config)


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        CheckpointError: no such file, or not JSON.
    """
    return parse_json(_text(path), str(path))


def parse_json(text: str, source: str) -> Any:
    """The content of a JSON file, in which no field stands twice.

    Raises:
        CheckpointError: it is not JSON, nested without end, or says a thing twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        words = "nested too deeply" if isinstance(error, RecursionError) else error
        raise CheckpointError(f"{source}: not a readable JSON file: {words}") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = [name for name, count in Counter(name for name, _ in pairs).items() if count > 1]
        raise ValueError(f"{listed(twice)} stands there twice")
    return found


def _read_yaml(path: Path) -> Any:
    try:
        yaml = importlib.import_module("yaml")
    except ImportError as error:
        remedy = "pip install pyyaml, or give its fields as a dict"
        raise CheckpointError(f"{path}: reading YAML needs the package pyyaml: {remedy}") from error
    try:
        return yaml.safe_load(_text(path))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        words = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(f"{path}: not readable YAML: {words}") from error


def _text(path: Path) -> str:
    """A configuration's text; none is as large as a network."""
    require_file(path)
    try:
        if (size := path.stat().st_size) > _LARGEST_CONFIG:
            raise CheckpointError(
                f"{path}: expected a configuration, found {size:,} bytes, which is no text by hand"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: not a readable text: {error}") from error


@dataclass(frozen=True)
class Entry:
    """One tensor of ours from one or several of a file's: their names and shapes, and how it is made of them."""

    theirs: Mapping[str, tuple[int, ...]]
    make: Callable[..., Tensor]


#: Our name -> where its value comes from, for a network on the meta device.
Translation = Callable[[Any], dict[str, Entry]]


def same_names(network: nn.Module) -> dict[str, Entry]:
    """The translation for files that use our names and shapes."""
    expected = network.state_dict()
    return {name: Entry({name: tuple(value.shape)}, _same) for name, value in expected.items()}


def wrapped_names(network: Any) -> dict[str, Entry]:
    """The translation for files that use our names for the network inside a preconditioning."""
    return {f"network.{name}": entry for name, entry in same_names(network.network).items()}


def _same(value: Tensor) -> Tensor:
    return value


def fill(
    build: Callable[[], Network],
    tensors: dict[str, Tensor],
    source: str,
    translate: Translation = same_names,
    file: Path | None = None,
) -> Network:
    """``build()`` with ``tensors`` as its weights: frozen, in evaluation mode.

    The network is built without memory and every name, shape and kind is checked first, in the names of the
    file, so that nothing is ever partly loaded. Half-precision weights become float32; float64 ones stay.
    Every tensor is copied, so that the file may change afterwards; if ``tensors`` are views of the mapped
    ``file``, its pages are given back on the way.

    Raises:
        CheckpointError: the tensors do not fit; the message says how many, which, and what was expected.
    """
    network = on_meta(build)
    entries = translate(network)
    shapes = {name: shape for entry in entries.values() for name, shape in entry.theirs.items()}
    kind = type(network).__name__
    refuse_misfits(shapes, tensors, source, kind)
    exact = all(value.dtype == torch.float64 for value in tensors.values())
    dtype = torch.float64 if exact else torch.float32
    mapped = MappedFile(file) if file is not None else None
    weights: dict[str, Tensor] = {}
    sums: list[Tensor] = []
    for name, value in network.state_dict().items():
        theirs = [tensors[their] for their in entries[name].theirs]
        weights[name] = _copied(entries[name].make(*theirs), value.shape, dtype)
        sums.append(weights[name].sum())
        if mapped is not None:
            for tensor in theirs:
                mapped.release(tensor)
    # A sum is finite if its terms are and do not overflow together: one look, and a closer one in the other case.
    if not torch.stack(sums).isfinite().all():
        bad = [name for name, value in weights.items() if not value.isfinite().all()]
        infinite = [their for name in bad for their in entries[name].theirs]
    else:
        infinite = []
    if infinite:
        found = f"{len(infinite)} with NaN or Inf: {listed(infinite)}"
        raise CheckpointError(f"{source}: weights do not fit {kind}: {found}")
    # What load_state_dict(assign=True) does, without looking through all names for every module.
    for prefix, module in network.named_modules():
        for tensors_of in (module.named_parameters, module.named_buffers):
            for name, value in list(tensors_of(recurse=False)):
                made = weights[f"{prefix}.{name}" if prefix else name]
                is_parameter = isinstance(value, nn.Parameter)
                setattr(module, name, nn.Parameter(made, requires_grad=False) if is_parameter else made)
    return network.eval().requires_grad_(False)


def refuse_inflated(tensors: Mapping[str, Tensor], size: int, source: str) -> None:
    """Raise CheckpointError where tensors repeat a few numbers so often that copies of them would fill the memory.

    Tensors of one file may share storages (tied weights), so a few times its size is in order.
    """
    needed = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if needed > _ROOM * size:
        raise CheckpointError(
            f"{source}: tensors of {needed:,} bytes in a file of {size:,}, which cannot be weights"
        )


def refuse_misfits(
    shapes: Mapping[str, tuple[int, ...]], tensors: dict[str, Tensor], source: str, kind: str
) -> None:
    """Raise CheckpointError unless names, shapes and kinds are those expected of a ``kind``."""
    common = [name for name in shapes if name in tensors]
    other = [
        f"{name} (expected {list(shapes[name])}, found {list(tensors[name].shape)})"
        for name in common
        if tuple(tensors[name].shape) != tuple(shapes[name])
    ]
    problems = {
        "missing": [name for name in shapes if name not in tensors],
        "unknown": [name for name in tensors if name not in shapes],
        "of another shape": other,
        "not floating": [
            f"{name} ({tensors[name].dtype})" for name in common if not tensors[name].is_floating_point()
        ],
    }
    if any(problems.values()):
        words = "; ".join(
            f"{len(names)} {what}: {listed(names)}" for what, names in problems.items() if names
        )
        found = f"{len(tensors)} tensors, expected {len(shapes)}"
        raise CheckpointError(f"{source}: weights do not fit {kind}: {found}; {words}")


def meta_shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a network's tensors."""
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def on_meta(build: Callable[[], Network]) -> Network:
    """``build()`` without memory."""
    with torch.device("meta"):
        return build()


def fits(shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]) -> bool:
    """Whether ``tensors`` has exactly these names and shapes."""
    return {name: tuple(value.shape) for name, value in tensors.items()} == {
        name: tuple(shape) for name, shape in shapes.items()
    }


def _copied(value: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    # 4-dimensional weights are convolutions', which the networks keep in channels_last.
    layout = torch.channels_last if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, memory_format=layout).copy_(value)


def require_file(path: Path) -> None:
    """Raise CheckpointError unless ``path`` is a file."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")


class MappedFile:
    """The address ranges at which ``path`` is mapped into this process; none where that cannot be found out."""

    def __init__(self, path: Path) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._madvise = None
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        try:
            name, lines = str(path.resolve()), Path("/proc/self/maps").read_text().splitlines()
            self._madvise = ctypes.CDLL(None).madvise
        except (OSError, AttributeError):
            return
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == name:
                start, end = (int(word, 16) for word in fields[0].split("-"))
                self._ranges.append((start, end))

    def release(self, tensor: Tensor) -> None:
        """Drop the pages that hold nothing but ``tensor``, if it lies in the file and nowhere else.

        Memory that is not of the file is left alone: there, the same call would erase it.
        """
        size = tensor.numel() * tensor.element_size()
        if self._madvise is None or not tensor.is_contiguous():
            return
        start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
        end = (tensor.data_ptr() + size) // mmap.PAGESIZE * mmap.PAGESIZE
        if end > start and any(low <= start and end <= high for low, high in self._ranges):
            self._madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), mmap.MADV_DONTNEED)
