"""Triton, imported when first needed, and what a launch needs: the reason where it cannot run, tile sizes, the call.

Kernels are written with ``tl`` functions only (no libdevice, no inline assembly), so that Triton's interpreter
runs them on the CPU. The interpreter is chosen by ``TRITON_INTERPRET=1`` before Triton is first imported.

Tile sizes are a committed table instead of tuning at run time, which would choose differently from run to run, change
the order of sums with it, and break the capture of graphs. They follow from the image, the channels and the element
size by the rules below; the batch never enters, so that a sample's result does not depend on the batch around it. The
numbers were chosen from the compiled code (registers, occupancy, width of accesses; see
``bench/results/machine_code.md``), not yet from timings on a device; ``bench/bench_group_norm.py --sweep`` measures
the neighbours of a rule.
"""

from __future__ import annotations

import functools
import importlib
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch

OLDEST = (3, 6)
"""The oldest Triton these kernels are compiled with."""

NEWEST_DIRECT = (3, 9)
"""The newest whose compiled kernels are called as ``_Call`` does; newer ones are called by the front end only."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
OLDEST_CAPABILITY = (8, 0)
ARCHITECTURES = (80, 90)
"""The GPU generations the configuration table was made for."""

ACCESS = 16
"""Bytes of the widest load or store of one thread."""

WIDEST_PAIRING = 64
"""Most channels of a block whose groups have a size that is no power of two (their sums cost the square)."""

FINISH_BLOCK = 4096
"""Partial numbers that a program reads at a time when it combines those of a group."""

OPTIONS = {"enable_fp_fusion": False}
"""Compiler options of every kernel: sums and products stay as they are written."""


@dataclass(frozen=True)
class Support:
    """The outcome of loading.

    Attributes:
        module: Triton, or None.
        reason: why there is no module; None if there is one.
        interpreted: whether kernels run in Triton's interpreter, on the CPU.
        direct: whether compiled kernels may be called past the front end.
    """

    module: ModuleType | None
    reason: str | None
    interpreted: bool = False
    direct: bool = True


@functools.cache
def load() -> Support:
    """Import Triton (first call only; failure is remembered too)."""
    try:
        module = importlib.import_module("triton")
    except ModuleNotFoundError as error:
        if error.name == "triton":
            return Support(None, "Triton is not installed (pip install triton)")
        return Support(None, f"Triton is installed but cannot be imported: {error}")
    except Exception as error:  # a broken installation raises anything, and must not break the reference
        return Support(None, f"Triton is installed but cannot be imported: {type(error).__name__}: {error}")
    version = getattr(module, "__version__", "0.0")
    numbers = tuple(int(part) for part in version.split(".")[:2])
    if numbers < OLDEST:
        wanted = ".".join(str(part) for part in OLDEST)
        return Support(None, f"Triton {version} is too old (these kernels need {wanted})")
    return Support(module, None, os.environ.get("TRITON_INTERPRET") == "1", numbers <= NEWEST_DIRECT)


def unavailable(device_type: str, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run on this device type and dtype; None if they can."""
    support = load()
    if support.module is None:
        return support.reason
    if dtype not in DTYPES:
        return f"{dtype} is not supported by the Triton kernels (float32, bfloat16 and float16 are)"
    if support.interpreted:
        return None if device_type == "cpu" else "Triton is interpreting on the CPU (TRITON_INTERPRET=1)"
    if device_type != "cuda":
        return f"Triton kernels need a CUDA device, not {device_type} (TRITON_INTERPRET=1 runs them slowly)"
    return _cuda_trouble()


@functools.cache
def _cuda_trouble() -> str | None:
    """What keeps Triton's kernels from running on every CUDA device: the choice does not depend on which one."""
    if torch.version.cuda is None or not torch.cuda.is_available():
        return "no CUDA device"
    for index in range(torch.cuda.device_count()):
        capability = torch.cuda.get_device_capability(index)
        if capability < OLDEST_CAPABILITY:
            found = ".".join(str(part) for part in capability)
            return f"cuda:{index} has compute capability {found}, Triton kernels here need 8.0"
    return None


@functools.cache
def architecture(device: torch.device) -> int:
    """The generation whose configurations ``device`` uses: 80 or 90, the newest for anything else."""
    if device.type != "cuda":
        return ARCHITECTURES[-1]
    return 90 if torch.cuda.get_device_capability(device) >= (9, 0) else 80


@dataclass(frozen=True)
class TileRule:
    """How large a tile is, and who works on it.

    Attributes:
        most: bytes of the largest tile.
        good: bytes of a tile that leaves room for a second program on a multiprocessor.
        run: bytes of neighbouring channels wanted.
        per_thread: elements per thread, where a tile is large enough for ``fewest`` warps.
        least: bytes wanted at least, where the channels allow it.
        fewest: warps of a program at least, if each thread gets an access's worth of elements.
    """

    most: int
    good: int
    run: int
    per_thread: int
    least: int = 4096
    fewest: int = 4


_AMPERE = {
    "forward_fused": TileRule(65536, 32768, run=64, per_thread=64),
    "backward_fused": TileRule(32768, 32768, run=64, per_thread=32),
    "forward_partial": TileRule(16384, 16384, run=128, per_thread=32),
    "forward_apply": TileRule(8192, 8192, run=128, per_thread=32),
    "backward_partial": TileRule(16384, 16384, run=128, per_thread=32),
    "backward_apply": TileRule(8192, 8192, run=128, per_thread=16),
    "resample": TileRule(8192, 8192, run=128, per_thread=16),
    "residual": TileRule(8192, 8192, run=8192, per_thread=16),
}
RULES: dict[int, dict[str, TileRule]] = {80: _AMPERE, 90: _AMPERE | {}}
"""Generation (80: Ampere, 90: Hopper) -> kernel -> rule. The two still agree: no timing has told them apart."""


@dataclass(frozen=True)
class Tile:
    """What one program works on.

    Attributes:
        pixels, channels: its sides, powers of two.
        warps: how many warps share it.
        groups: whole groups it holds (fused kernels); 0 where it may cut groups.
    """

    pixels: int
    channels: int
    warps: int
    groups: int = 0

    @property
    def elements(self) -> int:
        return self.pixels * self.channels


def ceil_power(value: int) -> int:
    """The smallest power of two that is at least ``value``."""
    return 1 << max(0, value - 1).bit_length()


def group_tile(
    architecture: int, kernel: str, size: int, channels: int, groups: int, itemsize: int
) -> Tile | None:
    """All ``size`` pixels of a few whole groups; None where that is more than a program can hold."""
    rule = RULES[architecture][kernel]
    width = channels // groups
    pixels = ceil_power(size)
    # So many groups begin on a 16-byte boundary.
    unit = ACCESS // math.gcd(ACCESS, width * itemsize) if channels * itemsize % ACCESS == 0 else 1
    unit = min(unit, groups)
    blocks = {n: ceil_power(n * width) for n in range(unit, groups + 1, unit)}
    if width & (width - 1):
        blocks = {n: block for n, block in blocks.items() if block <= WIDEST_PAIRING or n == unit}
    fitting = [n for n, block in blocks.items() if pixels * block * itemsize <= rule.good]
    wanted = max(rule.run, rule.least // pixels) // itemsize
    number = next((n for n in fitting if n * width >= wanted), fitting[-1] if fitting else unit)
    block = blocks[number]
    if pixels * block * itemsize > rule.most:
        return None
    return Tile(pixels, block, _warps(rule, pixels * block, itemsize), number)


def free_tile(architecture: int, kernel: str, size: int, channels: int, itemsize: int) -> Tile:
    """A tile that may begin at any pixel and any block of channels."""
    rule = RULES[architecture][kernel]
    block = min(ceil_power(rule.run // itemsize), ceil_power(channels))
    pixels = min(rule.most // (block * itemsize), ceil_power(size))
    return Tile(pixels, block, _warps(rule, pixels * block, itemsize))


def finish_tile(tiles: int, width: int) -> Tile:
    """Partial numbers of ``tiles`` tiles by one group of ``width`` channels, read a block at a time."""
    block = ceil_power(width)
    count = min(ceil_power(tiles), max(1, FINISH_BLOCK // block))
    return Tile(count, block, min(4, max(1, count * block // 256)))


def flat_tile(architecture: int, kernel: str, itemsize: int) -> Tile:
    """A tile of neighbouring elements, whatever they are."""
    rule = RULES[architecture][kernel]
    elements = rule.most // itemsize
    return Tile(1, elements, _warps(rule, elements, itemsize))


def _warps(rule: TileRule, elements: int, itemsize: int) -> int:
    filled = elements * itemsize // (32 * ACCESS)  # so many warps make one full access per thread
    return min(16, max(1, elements // (32 * rule.per_thread), min(rule.fewest, filled)))


@dataclass(frozen=True, eq=False)
class Launch:
    """A kernel and everything about its call but the tensors: made once per shape, also for a GPU that is not there.

    Attributes:
        kernel: the ``triton.jit`` function.
        programs: how many programs run per sample.
        pointers: kernel parameter -> the argument of the operation, or temporary, that it is given.
        constants: kernel parameter -> compile-time constant.
        tile: what one program works on, and with how many warps.
        reads, writes: how many activation tiles a program reads and writes.
        access: bytes of the widest access to activations that the layout allows.
    """

    kernel: Any
    programs: int
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    tile: Tile
    reads: float = 0
    writes: float = 0
    access: int = 0


class Runner:
    """Runs the launches of one operation for arguments of one signature, on the current stream of their device.

    Args:
        launches: in their order.
        args: arguments of that signature, a named tuple; the first tensor says how many samples there are.
        temporaries: name -> shape, float32; made anew in every call.
    """

    def __init__(
        self, launches: Iterable[Launch], args: Any, temporaries: Mapping[str, tuple[int, ...]] | None = None
    ) -> None:
        self._shapes = tuple((temporaries or {}).values())
        self._device: torch.device = args[0].device
        names = (*args._fields, *(temporaries or {}))
        absent = {name for name, value in args._asdict().items() if value is None}
        self._calls = [_Call(launch, args[0].shape[0], names, absent) for launch in launches]

    def __call__(self, args: Any) -> None:
        device = self._device
        made = [torch.empty(shape, dtype=torch.float32, device=device) for shape in self._shapes]
        tensors = (*args, *made)
        if load().interpreted:
            for call in self._calls:
                call.by_front_end(tensors)
            return
        driver = _driver()
        if device.index is None or driver.get_current_device() == device.index:
            self._launch(tensors, driver)
        else:
            with torch.cuda.device(device):
                self._launch(tensors, driver)

    def _launch(self, tensors: tuple[Any, ...], driver: Any) -> None:
        stream = driver.get_current_stream(driver.get_current_device())
        for call in self._calls:
            call(tensors, stream)


class _Call:
    """One launch for so many samples: by Triton's front end at first, then by calling the compiled kernel.

    The front end looks at every argument again and finds the kernel that it compiled for such ones, which takes 18 us;
    of all it looks at, only the addresses' alignment can differ here, and that is looked at here too.
    """

    def __init__(self, launch: Launch, samples: int, names: tuple[str, ...], absent: set[str]) -> None:
        self._launch = launch
        self._grid = samples * launch.programs
        parameters = launch.kernel.arg_names
        self._values = [launch.constants.get(name) for name in parameters]
        self._moves = [
            (place, names.index(launch.pointers[name]))
            for place, name in enumerate(parameters)
            if name in launch.pointers and launch.pointers[name] not in absent
        ]
        self._start: Callable[..., None] | None = None
        self._handles: tuple[Any, ...] = ()

    def __call__(self, tensors: tuple[Any, ...], stream: int) -> None:
        values, addresses = self._values.copy(), 0
        for place, source in self._moves:
            values[place] = address = tensors[source].data_ptr()
            addresses |= address
        if addresses % ACCESS or self._start is None or _watched():
            compiled = self.by_front_end(tensors)
            if addresses % ACCESS == 0 and load().direct:
                self._start = compiled.run
                self._handles = (compiled.function, compiled.packed_metadata, None, None, None)
            return
        self._start(self._grid, 1, 1, stream, *self._handles, *values)

    def by_front_end(self, tensors: tuple[Any, ...]) -> Any:
        """The same as Triton's users write it; returns the compiled kernel, or None where Triton interprets."""
        kernel, parameters = self._launch.kernel, self._launch.kernel.arg_names
        arguments = dict(zip(parameters, self._values, strict=True))
        arguments |= {parameters[place]: tensors[source] for place, source in self._moves}
        return kernel[self._grid,](**arguments, num_warps=self._launch.tile.warps, **OPTIONS)


def _driver() -> Any:
    """Triton's own way to devices and streams."""
    module = load().module
    assert module is not None, "dispatch only comes here when Triton was imported"
    return module.runtime.driver.active


def _watched() -> bool:
    """Whether somebody asked Triton to be told of launches: a profiler, which only the front end tells."""
    module = load().module
    hook = getattr(getattr(module, "knobs", None), "runtime", None)
    enter = getattr(hook, "launch_enter_hook", None)
    return bool(getattr(enter, "calls", enter))
