"""The comparison: one network, the same weights, steps and images for everybody; gradient error beside the speed."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from .. import methods
from ..errors import mistake, one_of, whole
from ..nets import CONFIGS, Denoiser
from ..purify import Purifier
from ..purify.precision import PRECISIONS
from ..reverse import RecordedNoise
from .plain_network import Cast, Loop, PlainDDPMpp, confidence_gradient
from .timing import Timing, interleave, peak_megabytes, ratio
from .torchsde_adjoint import AdjointGradient, ReverseVPSDE

DT = 1e-3
Call = Callable[[], Tensor]


@final
@dataclass(frozen=True)
class Comparison:
    """What is compared.

    Fields:
        network: a DDPM++ configuration by name, with random weights (speed does not depend on them).
        batch: images.
        steps: reverse steps of 1e-3; time and memory grow in proportion.
        precisions: of our networks and of the plain loops; torchsde always computes in float32, as DiffPure does.
        classifier: adds COUP's guidance by this network from [0, 1] images to logits; None for no guidance.
        torch_compile: also compile the checkpointed loop's network (takes minutes).
        repeats: measured turns; the cases take turns in each.
        device: "cpu" or a CUDA device.

    Raises:
        TypeError, ValueError: a field out of range.
    """

    network: str = "ddpmpp-cifar10"
    batch: int = 2
    steps: int = 4
    precisions: tuple[str, ...] = ("fp32",)
    classifier: nn.Module | None = None
    torch_compile: bool = False
    repeats: int = 3
    device: str = "cpu"

    def __post_init__(self) -> None:
        one_of("network", self.network, CONFIGS)
        for name in ("batch", "repeats"):
            whole(name, getattr(self, name), 1)
        whole("steps", self.steps, 2, 1000)
        object.__setattr__(self, "precisions", tuple(self.precisions))
        for precision in self.precisions:
            one_of("precisions", precision, [name for name in PRECISIONS if name != "fp64"])
        if not self.precisions:
            raise ValueError(mistake("precisions", "at least one of fp32, tf32, bf16, fp16", "none"))


@final
@dataclass(frozen=True)
class Row:
    """One case: times in seconds; error and cosine of its gradient against float64, None for a purification."""

    name: str
    timing: Timing
    ratio: float
    error: float | None
    cosine: float | None
    peak_mb: float | None


def compare(
    what: Comparison, report: Callable[[str, float], None] = lambda stage, share: None
) -> dict[str, tuple[Row, ...]]:
    """Measure, and return the rows of ``"purification"`` and ``"exact gradient"``, ours first.

    ``report`` is called with the current stage and the share of it that is done.

    torchsde's rows are left out where the package is missing. A few steps of 1e-3 end at t = 1e-5, where the
    continuous adjoint is at its worst; over the 100 steps of a published purification it errs less per step.
    """
    bench = _Bench(what)
    tables = {}
    for title, cases in (("purification", bench.purifications()), ("exact gradient", bench.gradients())):
        errors = bench.errors() if title == "exact gradient" else {}
        total = len(cases) * (what.repeats + 1)
        timings = interleave(
            {name: call for name, (call, _) in cases.items()},
            what.repeats,
            wait=bench.wait,
            report=lambda done, title=title, total=total: report(title, done / total),  # type: ignore[misc]
        )
        first = next(iter(cases))
        tables[title] = tuple(
            Row(
                timing.name,
                timing,
                ratio(timings, timing.name, first),
                errors[timing.name][0] if errors else None,
                errors[timing.name][1] if errors else None,
                peak_megabytes(cases[timing.name][0], bench.device),
            )
            for timing in timings
        )
    return tables


@final
class _Bench:
    """The cases of a comparison; networks are built once per kind of use."""

    def __init__(self, what: Comparison) -> None:
        self.what, self.device = what, torch.device(what.device)
        self.denoiser = Denoiser.from_config(what.network, seed=0).to(self.device)
        shape = self.denoiser.image_shape
        generator = torch.Generator().manual_seed(1)
        self.x, self.v = (
            torch.rand(what.batch, *shape, generator=generator).to(self.device) for _ in range(2)
        )
        self.v = self.v - 0.5
        self.noise = torch.randn(what.steps, what.batch, *shape, generator=generator).to(self.device)
        time = what.steps * DT
        guided = what.classifier is not None
        self.classifier = what.classifier.to(self.device).eval() if what.classifier is not None else None
        self.method = (
            methods.coup(self.classifier, t=time, dt=DT, clip_output=False)
            if guided and self.classifier is not None
            else methods.coup_unguided(t=time, dt=DT, clip_output=False)
        )
        self._kept: dict[tuple[object, ...], Any] = {}

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # ------------------------------------------------------------------------------------------- cases
    def purifications(self) -> dict[str, tuple[Call, None]]:
        cases: dict[str, Call] = {}
        for precision in self.what.precisions:
            purifier = self._purifier("auto", precision)
            cases[f"fastpure, {precision}"] = lambda purifier=purifier: self._no_grad(
                lambda: purifier(self.x)
            )  # type: ignore[misc]
            loop = self._loop(precision, recompute=False)
            cases[f"plain loop, {precision}"] = lambda loop=loop: self._no_grad(
                lambda: loop.purify(2 * self.x - 1)
            )  # type: ignore[misc]
        return {name: (call, None) for name, call in cases.items()}

    def gradients(self) -> dict[str, tuple[Call, None]]:
        cases: dict[str, Call] = {}
        for precision in self.what.precisions:
            for memory in ("store", "recompute"):
                purifier = self._purifier(memory, precision)
                cases[f"fastpure, {memory}, {precision}"] = lambda p=purifier: self._ours(p, None)  # type: ignore[misc]
        for name, loop in self._peers().items():
            cases[name] = lambda loop=loop: loop.gradient(2 * self.x - 1, self.v)  # type: ignore[misc]
        return {name: (call, None) for name, call in cases.items()}

    def errors(self) -> dict[str, tuple[float, float]]:
        """Relative error and cosine of every gradient, all under the same recorded noise."""
        truth = self._ours(self._purifier("recompute", "fp64"), self.noise.double()).double()
        found: dict[str, Tensor] = {}
        for precision in self.what.precisions:
            for memory in ("store", "recompute"):
                ours = self._ours(self._purifier(memory, precision), self.noise)
                found[f"fastpure, {memory}, {precision}"] = ours
        for name, loop in self._peers(self.noise).items():
            # A loop differentiates with respect to x = 2 u - 1 and returns no (x + 1) / 2: the factors cancel.
            found[name] = loop.gradient(2 * self.x - 1, self.v)
        return {name: _difference(gradient.double(), truth) for name, gradient in found.items()}

    def _peers(self, noise: Tensor | None = None) -> Mapping[str, Loop | AdjointGradient]:
        peers: dict[str, Loop | AdjointGradient] = {}
        for precision in self.what.precisions:
            peers[f"plain autograd, keep everything, {precision}"] = self._loop(precision, recompute=False)
            peers[f"checkpoint every step, frozen, {precision}"] = self._loop(precision, recompute=True)
            if self.what.torch_compile:
                peers[f"the same, torch.compile, {precision}"] = self._loop(
                    precision, recompute=True, compiled=True
                )
        if importlib.util.find_spec("torchsde") is not None:
            peers["torchsde adjoint, frozen weights, fp32"] = self._adjoint(True, noise)
            peers["torchsde adjoint as DiffPure, fp32"] = self._adjoint(False, noise)
        return peers

    # -------------------------------------------------------------------------------------- the networks
    def _purifier(self, memory: str, precision: str) -> Purifier:
        return self._once(
            ("purifier", memory, precision),
            lambda: Purifier(self.denoiser, self.method, memory=memory, precision=precision),
        )

    def _ours(self, purifier: Purifier, noise: Tensor | None) -> Tensor:
        dtype = torch.float64 if purifier.precision == "fp64" else torch.float32
        leaf = self.x.to(dtype, copy=True).requires_grad_(True)
        recorded = None if noise is None else RecordedNoise(steps=noise.to(dtype))
        return torch.autograd.grad((purifier(leaf, noise=recorded) * self.v.to(dtype)).sum(), leaf)[0]

    def _plain(self) -> PlainDDPMpp:
        # Each its own copy: requires_grad is switched on in one of them, and casting is in place.
        network = PlainDDPMpp(CONFIGS[self.what.network]).eval().to(self.device)
        network.load_state_dict(self.denoiser.network.state_dict())
        return network

    def _copy_of_classifier(self) -> nn.Module | None:
        import copy

        return copy.deepcopy(self.classifier)

    def _loop(self, precision: str, recompute: bool, compiled: bool = False) -> Loop:
        def make() -> Loop:
            dtype = PRECISIONS[precision].network
            network: nn.Module = Cast(self._plain(), dtype, channels_last=recompute).requires_grad_(False)
            if compiled:
                network = torch.compile(network)  # type: ignore[assignment]
            classifier = self._copy_of_classifier()
            guide = None
            if classifier is not None:
                guide = confidence_gradient(Cast(classifier, dtype, recompute).requires_grad_(False), True)
            return Loop(network, self.method.table(), self.noise, guide, recompute)

        return self._once(("loop", precision, recompute, compiled), make)

    def _adjoint(self, frozen: bool, noise: Tensor | None) -> AdjointGradient:
        def make() -> AdjointGradient:
            classifier = self._copy_of_classifier()
            sde = ReverseVPSDE(self._plain(), self.denoiser.image_shape, classifier, 1.0)
            return AdjointGradient(sde, self.what.steps * DT, DT, frozen, self.device, noise)

        return self._once(("adjoint", frozen, noise is None), make)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    @staticmethod
    @torch.no_grad()
    def _no_grad(call: Call) -> Tensor:
        return call()


def _difference(gradient: Tensor, truth: Tensor) -> tuple[float, float]:
    error = float((gradient - truth).norm() / truth.norm())
    return error, float(torch.nn.functional.cosine_similarity(gradient.flatten(), truth.flatten(), dim=0))
