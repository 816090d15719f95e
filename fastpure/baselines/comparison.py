"""The comparison: one network, the same weights, steps and images for everybody; gradient error beside the speed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .. import methods
from ..errors import mistake, one_of, whole
from ..nets import CONFIGS, DDPMpp, Denoiser
from ..purify import Purifier
from ..purify.precision import PRECISIONS
from ..reverse import RecordedNoise
from .plain_network import COMPILE_MODES, Cast, Loop, PlainDDPMpp, confidence_gradient
from .processor import Rate, probes, share
from .timing import Timing, interleave, peak_megabytes, ratio
from .torchsde_adjoint import AdjointGradient, ReverseVPSDE

DT = 1e-3
MEMORY = ("store", "recompute")
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
        torch_compile: also the plain network under ``torch.compile``, in each of ``COMPILE_MODES`` (takes minutes).
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
    """One case.

    Fields:
        ratio, cpu_ratio: its time over that of the first row, by the wall's clock and by the processor's.
        share, cpu_share: of the processor's product rate, what the passes reach that nobody can do without (one per
            step for a purification, two for a gradient): recomputed passes take time and are no useful work. None
            where the rate was not measured.
        error, cosine: of its gradient against float64; None for a purification.
        peak_mb: memory at the peak; None where the system does not tell.
    """

    name: str
    timing: Timing
    ratio: float
    cpu_ratio: float
    share: float | None
    cpu_share: float | None
    error: float | None
    cosine: float | None
    peak_mb: float | None


@final
@dataclass(frozen=True)
class Table:
    """The rows of one comparison, ours first, and the processor's rates measured in the same turns.

    Fields:
        flops: floating-point operations that every case of the table has to do.
    """

    rows: tuple[Row, ...]
    rates: tuple[Rate, ...]
    flops: int


def compare(
    what: Comparison, report: Callable[[str, float], None] = lambda stage, share: None
) -> dict[str, Table]:
    """Measure, and return the tables ``"purification"`` and ``"exact gradient"``.

    ``report`` is called with the current stage and the share of it that is done.

    torchsde's rows are left out where the package is missing. A few steps of 1e-3 end at t = 1e-5, where the
    continuous adjoint is at its worst; over the 100 steps of a published purification it errs less per step.
    """
    with _room_to_compile() if what.torch_compile else nullcontext():
        return _compare(_Tables(what), report)


def _room_to_compile() -> AbstractContextManager[object]:
    """All compiled networks share one function's code, of which torch would compile 8 versions and refuse a ninth."""
    import torch._dynamo

    config: Any = torch._dynamo.config
    patched: AbstractContextManager[object] = config.patch(recompile_limit=64)
    return patched


def _compare(tables: _Tables, report: Callable[[str, float], None]) -> dict[str, Table]:
    found, what, device = {}, tables.what, tables.cases.device
    products = {
        f"{one.name}, {one.precision}": one for name in what.precisions for one in probes(name, device)
    }
    for (title, cases), flops in zip(
        (("purification", tables.purifications()), ("exact gradient", tables.gradients())),
        tables.cases.flops(),
        strict=True,
    ):
        errors = tables.errors() if title == "exact gradient" else {}
        calls = cases | {name: probe.run for name, probe in products.items()}
        total = len(calls) * (what.repeats + 1)
        timings = interleave(
            calls,
            what.repeats,
            wait=tables.wait,
            report=lambda done, title=title, total=total: report(title, done / total),  # type: ignore[misc]
        )
        timed = {timing.name: timing for timing in timings}
        rates = tuple(Rate(p.name, p.precision, p.flops, timed[name]) for name, p in products.items())
        first = next(iter(cases))
        found[title] = Table(
            tuple(
                Row(
                    name,
                    timed[name],
                    ratio=ratio(timings, name, first),
                    cpu_ratio=ratio(timings, name, first, "cpu"),
                    share=share(timed[name], flops, rates, precision_of(name)),
                    cpu_share=share(timed[name], flops, rates, precision_of(name), "cpu"),
                    error=errors[name][0] if errors else None,
                    cosine=errors[name][1] if errors else None,
                    peak_mb=peak_megabytes(cases[name], device),
                )
                for name in cases
            ),
            rates,
            flops,
        )
    return found


def precision_of(name: str) -> str:
    """The precision of a case, with which its name ends."""
    return name.rpartition(", ")[2]


@final
class Networks:
    """The denoiser of a configuration and its plain port, with the same weights on one device; both are built once."""

    def __init__(self, network: str | dict[str, Any], device: torch.device) -> None:
        self.device = device
        self.denoiser = Denoiser.from_config(network, seed=0).to(device)
        ours = self.denoiser.network
        assert isinstance(ours, DDPMpp), "the plain port is of this architecture"
        with torch.device("meta"):
            self._port = PlainDDPMpp(ours.config).eval()
        self._port.load_state_dict(ours.state_dict(), assign=True)

    def plain(self) -> PlainDDPMpp:
        """A copy of the plain port for one case: casting it, or asking for gradients of its weights, is in place."""
        return copy.deepcopy(self._port)


@final
class Cases:
    """Everybody's purification and gradient of one batch of images; what a case needs is built at its first call.

    Args:
        networks: what purifies.
        batch, steps, classifier: as in ``Comparison``.
    """

    def __init__(
        self, networks: Networks, batch: int, steps: int, classifier: nn.Module | None = None
    ) -> None:
        self.networks, self.device = networks, networks.device
        shape = networks.denoiser.image_shape
        generator = torch.Generator().manual_seed(1)
        self.x, v = (torch.rand(batch, *shape, generator=generator).to(self.device) for _ in range(2))
        self.v = v - 0.5
        self.noise = torch.randn(steps, batch, *shape, generator=generator).to(self.device)
        self.time = steps * DT
        self.classifier = None if classifier is None else classifier.to(self.device).eval()
        self.method = (
            methods.coup_unguided(t=self.time, dt=DT, clip_output=False)
            if self.classifier is None
            else methods.coup(self.classifier, t=self.time, dt=DT, clip_output=False)
        )
        self._kept: dict[tuple[object, ...], Any] = {}

    def purifier(self, precision: str, memory: str = "auto", backend: str = "auto") -> Purifier:
        return self._once(
            ("purifier", precision, memory, backend),
            lambda: Purifier(
                self.networks.denoiser, self.method, memory=memory, precision=precision, backend=backend
            ),
        )

    @torch.no_grad()
    def purification(self, purifier: Purifier) -> Tensor:
        return purifier(self.x)

    def gradient(self, purifier: Purifier, noise: Tensor | None = None) -> Tensor:
        """Gradient of sum(purifier(x) v), under recorded ``noise`` if it is given."""
        dtype = torch.float64 if purifier.precision == "fp64" else torch.float32
        leaf = self.x.to(dtype, copy=True).requires_grad_(True)
        recorded = None if noise is None else RecordedNoise(steps=noise.to(dtype))
        with torch.enable_grad():
            return torch.autograd.grad((purifier(leaf, noise=recorded) * self.v.to(dtype)).sum(), leaf)[0]

    def loop(
        self, precision: str, recompute: bool = False, mode: str | None = None, channels_last: bool = True
    ) -> Loop:
        """The plain loop; see ``Loop`` and ``Cast``."""

        def make() -> Loop:
            dtype = PRECISIONS[precision].network
            network = Cast(self.networks.plain(), dtype, channels_last)
            guide = None
            if self.classifier is not None:
                classifier = Cast(copy.deepcopy(self.classifier), dtype, channels_last).requires_grad_(False)
                guide = confidence_gradient(classifier, True)
            return Loop(network, self.method.table(), self.noise, guide, precision, recompute, mode)

        return self._once(("loop", precision, recompute, mode, channels_last), make)

    def flops(self) -> tuple[int, int]:
        """Floating-point operations of a purification and of its gradient, with nothing done twice.

        A step is one pass of the network, and two of the classifier for the guidance's gradient. Its adjoint is as
        much again: a pass back through the network, and for the Hessian's product two more through the classifier.
        """
        one = self.x[:1]
        passes = _flops(self.networks._port, one, torch.ones(1, device=self.device))
        if self.classifier is not None:
            passes += 2 * _flops(self.classifier, one)
        every = passes * len(self.x) * len(self.noise)
        return every, 2 * every

    def adjoint(self, frozen: bool, noise: Tensor | None) -> AdjointGradient:
        def make() -> AdjointGradient:
            classifier = copy.deepcopy(self.classifier)
            sde = ReverseVPSDE(self.networks.plain(), self.networks.denoiser.image_shape, classifier, 1.0)
            return AdjointGradient(sde, self.time, DT, frozen, self.device, noise)

        return self._once(("adjoint", frozen, noise is None), make)

    @torch.no_grad()
    def peer_purification(self, loop: Loop) -> Tensor:
        return loop.purify(2 * self.x - 1)

    def peer_gradient(self, peer: Loop | AdjointGradient) -> Tensor:
        """The same gradient as ``gradient``: a loop differentiates by x = 2 u - 1 and returns no (x + 1) / 2."""
        with torch.enable_grad():
            return peer.gradient(2 * self.x - 1, self.v)

    def _once(self, key: tuple[object, ...], make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]


@torch.no_grad()
def _flops(network: nn.Module, *arguments: Tensor) -> int:
    """Floating-point operations of one pass, by torch's count of products."""
    with FlopCounterMode(display=False) as counter:
        network(*arguments)
    return counter.get_total_flops()


@final
class _Tables:
    """Which cases a comparison has, and what they are called."""

    def __init__(self, what: Comparison) -> None:
        self.what, device = what, torch.device(what.device)
        self.cases = Cases(Networks(what.network, device), what.batch, what.steps, what.classifier)

    def wait(self) -> None:
        if self.cases.device.type == "cuda":
            torch.cuda.synchronize(self.cases.device)

    def purifications(self) -> dict[str, Call]:
        cases, found = self.cases, dict[str, Call]()
        for precision in self.what.precisions:
            found[f"fastpure, {precision}"] = partial(cases.purification, cases.purifier(precision))
            for name, mode in {"": None, **self._modes()}.items():
                loop = cases.loop(precision, mode=mode)
                found[f"plain loop{name}, {precision}"] = partial(cases.peer_purification, loop)
        return found

    def gradients(self) -> dict[str, Call]:
        cases = self.cases
        ours: dict[str, Call] = {
            f"fastpure, {memory}, {precision}": partial(cases.gradient, cases.purifier(precision, memory))
            for precision in self.what.precisions
            for memory in MEMORY
        }
        return ours | {name: partial(cases.peer_gradient, peer) for name, peer in self._peers(None).items()}

    def errors(self) -> dict[str, tuple[float, float]]:
        """Relative error and cosine of every gradient, all under the same recorded noise."""
        cases = self.cases
        truth = cases.gradient(cases.purifier("fp64", "recompute"), cases.noise.double())
        found = {
            f"fastpure, {memory}, {precision}": cases.gradient(cases.purifier(precision, memory), cases.noise)
            for precision in self.what.precisions
            for memory in MEMORY
        }
        found |= {name: cases.peer_gradient(peer) for name, peer in self._peers(cases.noise).items()}
        return {name: _difference(gradient.double(), truth) for name, gradient in found.items()}

    def _modes(self) -> dict[str, str]:
        names = {mode: f", torch.compile{'' if mode == 'default' else ' ' + mode}" for mode in COMPILE_MODES}
        return {name: mode for mode, name in names.items()} if self.what.torch_compile else {}

    def _peers(self, noise: Tensor | None) -> dict[str, Loop | AdjointGradient]:
        loop, peers = self.cases.loop, dict[str, Loop | AdjointGradient]()
        for precision in self.what.precisions:
            peers[f"plain autograd, keep everything, {precision}"] = loop(precision)
            peers[f"plain autograd, keep everything, NCHW, {precision}"] = loop(
                precision, channels_last=False
            )
            for name, mode in self._modes().items():
                peers[f"keep everything{name}, {precision}"] = loop(precision, mode=mode)
            peers[f"checkpoint every step, frozen, {precision}"] = loop(precision, recompute=True)
        if importlib.util.find_spec("torchsde") is not None:
            peers["torchsde adjoint, frozen weights, fp32"] = self.cases.adjoint(True, noise)
            peers["torchsde adjoint as DiffPure, fp32"] = self.cases.adjoint(False, noise)
        return peers


def _difference(gradient: Tensor, truth: Tensor) -> tuple[float, float]:
    error = float((gradient - truth).norm() / truth.norm())
    return error, float(torch.nn.functional.cosine_similarity(gradient.flatten(), truth.flatten(), dim=0))
