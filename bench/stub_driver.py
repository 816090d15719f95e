"""Triton's real front end on a driver that launches nothing: what a network would launch, and what launching costs.

    python -m bench.stub_driver        host time per operation, and launches of one step of the official DDPM++

Kernels are compiled for a GPU that is not there and handed tensors in host memory, which nobody reads: results are
meaningless, counts and host time are not. Needs Triton (any machine; not under TRITON_INTERPRET=1).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import importlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

import fastpure as fp
from fastpure.kernels import (
    OPS,
    group_norm_silu,
    group_norm_silu_of_sum,
    group_norm_silu_vjp,
    registry,
    resample,
    residual_add,
    use_backend,
)
from fastpure.nets import products

CAPABILITY = 90
WARP = 32
VIEWS = frozenset(
    {
        "_reshape_alias",
        "_unsafe_view",
        "alias",
        "as_strided",
        "detach",
        "expand",
        "permute",
        "select",
        "slice",
        "split",
    }
    | {"split_with_sizes", "t", "transpose", "unbind", "unflatten", "unsqueeze", "view"}
    | {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "promote_types"}
)
"""Operations that run nothing on a device."""
PRODUCTS = frozenset(
    {"addmm", "addmm_", "baddbmm", "baddbmm_", "bmm", "convolution", "convolution_backward", "mm"}
)
"""Operations that the host would spend minutes on for results that nobody reads."""


@dataclass
class Seen:
    """What the driver was asked for.

    Attributes:
        compiled: the kernels compiled, in order.
        launches: how often each was launched, all variants of a name together.
        kernels: what was launched, in order, as numbers into ``compiled``.
    """

    compiled: list[str] = field(default_factory=list)
    launches: collections.Counter[str] = field(default_factory=collections.Counter)
    kernels: list[int] = field(default_factory=list)


class _Utils:
    def load_binary(self, *args: Any) -> tuple[int, ...]:
        return 1, 1, 32, 0, 1024  # module, function, registers, spills, threads at most

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {
            "max_shared_mem": 232448,
            "multiprocessor_count": 132,
            "max_num_regs": 65536,
            "warpSize": WARP,
        }


class _Driver:
    """What Triton asks a driver; the device that it speaks of does not exist."""

    def __init__(self, seen: Seen) -> None:
        driver = self

        class Launcher:
            def __init__(self, src: Any, metadata: Any) -> None:
                self.number = len(seen.compiled)
                seen.compiled.append(metadata.name)

            def __call__(self, *args: Any) -> None:
                seen.kernels.append(self.number)
                driver.listen(seen.compiled[self.number], *args)

        self.seen, self.utils, self.launcher_cls = seen, _Utils(), Launcher

    def listen(self, name: str, *args: Any) -> None:
        """A launch: grid, stream, handles, hooks and the kernel's arguments."""
        self.seen.launches[name] += 1

    def get_current_target(self) -> Any:
        from triton.backends.compiler import GPUTarget

        return GPUTarget("cuda", CAPABILITY, WARP)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_device_capability(self, device: int = 0) -> tuple[int, int]:
        return divmod(CAPABILITY, 10)

    def map_python_to_cpp_type(self, kind: str) -> str:
        return kind


@contextlib.contextmanager
def stub_driver() -> Iterator[Seen]:
    """Inside, Triton serves tensors in host memory and launches nothing."""
    from triton.runtime.driver import driver

    seen = Seen()
    anywhere = {
        spec.impls["triton"]: registry.Implementation(spec.impls["triton"].prepare, lambda *args: None)
        for spec in OPS.values()
        if "triton" in spec.impls
    }
    with contextlib.ExitStack() as stack:
        for spec in OPS.values():
            if "triton" in spec.impls:
                stack.enter_context(mock.patch.dict(spec.impls, triton=anywhere[spec.impls["triton"]]))  # type: ignore[arg-type]
        forget()
        stack.callback(forget)
        stack.callback(driver.set_active, driver._active)
        driver.set_active(_Driver(seen))
        # The GPU multiplies in 16 bits, whatever the host does.
        stack.enter_context(mock.patch.object(products, "computes", return_value=True))
        stack.enter_context(use_backend("triton"))
        yield seen


def forget() -> None:
    """Choices, prepared calls and compiled kernels, which know the driver they were made with."""
    registry.forget()
    for name in ("group_norm_silu", "pointwise"):
        module = importlib.import_module(f"fastpure.kernels.{name}.triton_programs")
        for value in vars(module).values():
            getattr(value, "device_caches", {}).clear()


class Operations(TorchDispatchMode):
    """Counts what would run on a device, by name; products get memory of their shape and are not computed."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.counts[name] += 1
        if name not in PRODUCTS:
            return func(*args, **(kwargs or {}))
        if name.endswith("_"):
            return args[0]
        shapes = tree_map_only(Tensor, lambda x: x.to("meta"), (args, kwargs or {}))
        return tree_map_only(Tensor, _memory, func(*shapes[0], **shapes[1]))


def _memory(like: Tensor) -> Tensor:
    """Zeros of a shape, in the order in which a device returns them: images, which lie in NHWC here, stay that way."""
    layout = torch.channels_last if like.dim() == 4 else torch.contiguous_format
    return torch.zeros(like.shape, dtype=like.dtype).contiguous(memory_format=layout)


def step(
    network: str = "ddpmpp-cifar10", batch: int = 1, dtype: torch.dtype = torch.bfloat16
) -> dict[str, Callable[[], Any]]:
    """One pass of a network's body over images, and one with its gradient."""
    denoiser = fp.Denoiser.from_config(network, seed=0).cast(dtype)
    body = denoiser.network.body
    rows = denoiser.network.embedding(torch.full((1,), 80.0))
    x = torch.randn(batch, *denoiser.image_shape).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)

    def gradient() -> Tensor:
        leaf = x.detach().requires_grad_(True)
        with torch.enable_grad():
            out = body(leaf, rows)
            return torch.autograd.grad(out, leaf, out.detach())[0]

    return {"forward": torch.no_grad()(lambda: body(x, rows)), "gradient": gradient}


def operations(dtype: torch.dtype = torch.bfloat16) -> dict[str, Callable[[], Any]]:
    """Every fused operation, at a size of the official network."""

    def image(channels: int, size: int) -> Tensor:
        return torch.randn(1, channels, size, size).to(dtype).contiguous(memory_format=torch.channels_last)

    x, other, skip, small = image(128, 16), image(128, 16), image(128, 16), image(128, 8)
    wide, row, bias = (torch.randn(size).to(dtype) for size in (256, 128, 128))
    both, stats = image(256, 16), torch.randn(1, 32, 2)
    affine, groups = (wide, wide), 32
    return {
        "group_norm_silu": lambda: group_norm_silu(x, row, bias, groups, 1e-6, row=row),
        "group_norm_silu, skip": lambda: group_norm_silu(x, *affine, groups, 1e-6, skip=skip),
        "group_norm_silu_of_sum, skip": lambda: group_norm_silu_of_sum(
            x, other, *affine, groups, 1e-6, row=row, scale=0.5, skip=skip
        ),
        "group_norm_silu_vjp": lambda: group_norm_silu_vjp(x, x, stats, row, bias, groups, row=row),
        "group_norm_silu_vjp, everything": lambda: group_norm_silu_vjp(
            both, x, stats, *affine, groups, skip=skip, add=both, more=other, scale=0.5
        ),
        "residual_add": lambda: residual_add(x, other, bias, 0.5),
        "resample": lambda: resample(small, "up"),
    }


def microseconds(call: Callable[[], Any], calls: int = 500, repeats: int = 7) -> list[float]:
    """Host time per call, for each repeat; what happens once has happened before."""
    for _ in range(20):
        call()
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        found.append(1e6 * (time.perf_counter() - begin) / calls)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--network", default="ddpmpp-cifar10")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with stub_driver() as seen:
        print(f"{'host time of one call':<36}{'median us':>10}{'least':>8}")
        for name, call in operations().items():
            with torch.no_grad():
                times = microseconds(call)
            print(f"{name:<36}{statistics.median(times):>10.1f}{min(times):>8.1f}")
        for name, call in step(options.network).items():
            with Operations():
                call()
            seen.launches.clear()
            compiled = len(seen.compiled)
            with Operations() as counted:
                call()
            print(
                f"\n{options.network}, {name}: {dict(seen.launches)}, compiled again {len(seen.compiled) - compiled}"
            )
            print(f"operations on the device {counted.counts.total()}: {dict(counted.counts.most_common())}")


if __name__ == "__main__":
    main()
