"""The sizes and the calls that bench/gpu_figures.py measures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.baselines.comparison import Cases, Networks
from fastpure.classifiers import WIDE_RESNETS, WideResNet
from fastpure.kernels import NoiseKeys, Stream, affine_row, affine_row_vjp, philox_normal
from fastpure.reverse.graphs import FIRST_KEEPING
from fastpure.schedule import KERNEL_COLUMNS, KERNEL_WIDTH

Run = Callable[[], object]
Describe = Callable[[], dict[str, Any]]
STEPS = 4
STATES = {"1e5": (33, 3, 32, 32), "1e6": (326, 3, 32, 32), "1e8": (32768, 3, 32, 32)}
PEERS: dict[str, dict[str, Any]] = {
    "plain loop": {},
    "keep everything": {},
    "keep everything, NCHW": {"channels_last": False},
    "checkpoint": {"recompute": True},
    "checkpoint, NCHW": {"recompute": True, "channels_last": False},
    "torch.compile default": {"mode": "default"},
    "torch.compile reduce-overhead": {"mode": "reduce-overhead"},
    "torch.compile max-autotune": {"mode": "max-autotune"},
}
"""The plain loops and how they are made; the compiled ones keep everything too."""


@dataclass(frozen=True)
class Sizes:
    """What is measured where; the defaults are those of the goals.

    Fields:
        batches: the largest, one in the middle, the smallest.
        states: name -> shape for the row kernels.
        norm_networks, norm_dtypes, norm_batch: sites of the normalisation.
        guide_widely: WRN-28-10 guides, otherwise the digits classifier.
        recorded: the back end of "fastpure"; an error where steps cannot be recorded.
    """

    device: str = "cuda"
    network: str = "ddpmpp-cifar10"
    batches: tuple[int, int, int] = (64, 20, 1)
    repeats: int = 9
    copy_bytes: int = 1 << 30
    product: int = 8192
    states: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: STATES)
    norm_networks: tuple[str, ...] = ("cifar10",)
    norm_dtypes: tuple[str, ...] = ("bf16",)
    norm_batch: int = 20
    smoke_batch: int = 20
    guide_widely: bool = True
    recorded: str = "graph"

    @staticmethod
    def quick() -> Sizes:
        """Everything once, small, on the CPU."""
        return Sizes(
            "cpu",
            "ddpmpp-digits",
            (3, 2, 1),
            repeats=2,
            copy_bytes=1 << 20,
            product=64,
            states={"1e3": (1, 3, 16, 16)},
            norm_networks=("digits",),
            norm_dtypes=("fp32",),
            norm_batch=2,
            smoke_batch=2,
            guide_widely=False,
            recorded="auto",
        )

    @property
    def cuda(self) -> bool:
        return torch.device(self.device).type == "cuda"


class Loops:
    """Gradients and purifications by everybody, on networks that are built once."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes, self.steps = sizes, STEPS

    @cached_property
    def networks(self) -> Networks:
        return Networks(self.sizes.network, torch.device(self.sizes.device))

    @cached_property
    def classifier(self) -> nn.Module:
        if not self.sizes.guide_widely:
            return fp.load_classifier("digits")
        torch.manual_seed(0)
        return WideResNet(WIDE_RESNETS["wrn-28-10"]).eval().requires_grad_(False)

    def case(self, figure: str, who: str, precision: str, batch: int, guided: bool) -> tuple[Run, Describe]:
        """A call, and what else is worth writing down after it was made; both hold everything they need."""
        cases = Cases(self.networks, batch, STEPS, self.classifier if guided else None)
        if who.startswith("fastpure"):
            return self._ours(cases, figure, who, precision)
        options = PEERS[who]
        loop = cases.loop(precision, **options)
        if figure == "purification":
            return partial(cases.peer_purification, loop), dict
        run = partial(cases.peer_gradient, loop)
        return run, partial(_difference, cases, run, precision) if "mode" in options else dict

    def _ours(self, cases: Cases, figure: str, who: str, precision: str) -> tuple[Run, Describe]:
        backend = "eager" if who.endswith(", eager") else self.sizes.recorded
        memory = "recompute" if "recompute" in who else "store" if "store" in who else "auto"
        purifier = cases.purifier(precision, memory, backend)
        if figure == "purification":
            return partial(cases.purification, purifier), dict
        if backend != "eager":
            for _ in range(FIRST_KEEPING):  # from this gradient on everything is replayed
                cases.gradient(purifier)
        return partial(cases.gradient, purifier), dict


def _difference(cases: Cases, run: Run, precision: str) -> dict[str, Any]:
    """How far a peer's gradient is from the checkpointed loop's: same noise, same weights."""
    other = cases.peer_gradient(cases.loop(precision, recompute=True))
    found: Any = run()
    return {"difference": float((found - other).norm() / other.norm())}


def table(noise: bool, clip: bool, device: str) -> Tensor:
    """One row of a step table."""
    values = {
        "a": 1.01,
        "b": -0.25,
        "c": 0.1,
        "d": 0.3 * noise,
        "alpha": 0.9,
        "sigma": 0.43,
        "clip": float(clip),
    }
    matrix = torch.zeros(1, KERNEL_WIDTH)
    for name, value in values.items():
        matrix[0, KERNEL_COLUMNS.index(name)] = value
    return matrix.to(device)


def kernel_cases(sizes: Sizes, size: str) -> dict[str, tuple[Run, float]]:
    """Name -> (call, bytes per element that have to move)."""
    shape, device = sizes.states[size], sizes.device
    x, e, g = (torch.randn(shape, device=device) for _ in range(3))
    half = e.bfloat16()
    last = [t.contiguous(memory_format=torch.channels_last) for t in (x, e)]
    keys = NoiseKeys.make(1, list(range(shape[0])), device=device)
    step = torch.zeros(1, dtype=torch.int64, device=device)
    plain, noisy, clipped = (table(*kind, device) for kind in ((False, False), (True, False), (True, True)))
    vjp = {"x": None, "noise_pred": None, "want_guidance": True, "want_register": False}
    common: dict[str, Any] = {"step": step}
    return {
        "row": (lambda: affine_row(x, e, table=plain, noise=None, **common), 12),
        "row with guidance": (lambda: affine_row(x, e, g, table=plain, noise=None, **common), 16),
        "row with noise": (lambda: affine_row(x, e, table=noisy, noise=keys, **common), 12),
        "row with noise, clipped": (lambda: affine_row(x, e, table=clipped, noise=keys, **common), 12),
        "row with noise, bfloat16 output": (
            lambda: affine_row(x, half, table=noisy, noise=keys, **common),
            10,
        ),
        "row with noise, channels_last": (lambda: affine_row(*last, table=noisy, noise=keys, **common), 12),
        "transposed row": (lambda: affine_row_vjp(x, table=plain, **common, **vjp), 16),
        "normals": (lambda: philox_normal(keys, step, Stream.REVERSE, shape[1:]), 4),
        "torch.randn": (lambda: torch.randn(shape, device=device), 4),
    }
