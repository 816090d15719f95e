"""What a run will cost, measured in seconds before anything is run."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
from torch import Tensor, nn

from .. import methods
from ..attacks.base import Attack, Problem
from ..attacks.gradient import eot_gradient
from ..attacks.losses import LOSSES
from ..data import Dataset, as_dataset
from ..kernels import Domain
from ..methods import Method
from ..progress import Progress
from ..purify import Target
from ..purify.inputs import Held, held_noise, holding
from ..reverse.memory import available_bytes, count_saved_bytes
from ..schedule import StepTable
from ..shown import Card, Row, Shown
from .protocol import Protocol, fresh
from .work import Worker, enter, frozen, judge, judged_by


@final
@dataclass(frozen=True, eq=False, repr=False)
class _StandIn(Target):
    """Answers class 0 with certainty whatever comes, at no cost but with a gradient, and counts what it is asked.

    It purifies by doing nothing, for attacks that look at the steps.
    """

    random: bool = True
    purifying: bool = False
    gradients: list[int] = field(default_factory=list)
    judgements: list[int] = field(default_factory=list)

    @property
    def numbered(self) -> bool:
        return self.random

    @property
    def frozen(self) -> bool:
        return held_noise(self.module) is not None

    def fixed(self, draw: int = 0, part: str = "all") -> AbstractContextManager[object]:
        return holding(self.module, Held(draw, part)) if part == "all" else nullcontext()

    @property
    def purifies(self) -> bool:
        return self.purifying

    @property
    def method(self) -> Method:
        return methods.diffpure(t=0.01, dt=0.01)

    def with_method(self, method: Method) -> Target:
        return self

    def purify(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return self._counted(x) * 1.0

    def trajectory(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return torch.stack([self._counted(x) * 1.0] * (len(self.method.steps) + 1))

    def _counted(self, x: Tensor) -> Tensor:
        # The classifier's own passes count for nothing: what costs is the way to a purified image.
        asked = self.gradients if torch.is_grad_enabled() and x.requires_grad else self.judgements
        asked.append(len(x))
        return x

    def _classify(self, purified: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return self._guess(purified)

    def _guess(self, purified: Tensor) -> Tensor:
        slope = torch.arange(1, self.n_classes + 1, dtype=purified.dtype, device=purified.device)
        certain = 10.0 * (slope == 1).to(purified.dtype)
        return certain + 1e-3 * purified.flatten(1).mean(1, keepdim=True) * slope

    def describe(self) -> dict[str, Any]:
        return {"kind": "stand-in"}

    def _answer(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        return self._guess(self._counted(x))

    def _probed(self, x: Tensor, ids: Tensor) -> Target:
        return self


def count_queries(
    dataset: Dataset, attack: Attack | None, protocol: Protocol, *, random: bool, purifies: bool
) -> tuple[float, float]:
    """Purifications with and without gradient per image that the attack asks for when it breaks nothing.

    Args:
        dataset: for the shape of the images and the number of classes.
        attack: whose queries.
        protocol: that decides.
        random: whether the target draws noise that has a number.
        purifies: whether it is a ``Defense``.
    """
    if attack is None or not attack.asks:
        return 0.0, 0.0

    def count(member: Attack) -> tuple[float, float]:
        return count_queries(dataset, member, protocol, random=random, purifies=purifies)

    n, n_classes = 2, max(len(dataset.classes), 2)
    target = _StandIn(nn.Identity().eval(), n_classes, random=random, purifying=purifies)
    with frozen(target, protocol):
        planned = attack.planned(target.is_random, n_classes, count)
    if planned is not None:
        return planned
    x = torch.rand((n, *dataset.image_shape), generator=torch.Generator().manual_seed(0))
    problem = Problem(target, x, torch.zeros(n, dtype=torch.int64), torch.arange(n))
    attack = attack.for_counting()
    with frozen(target, protocol), attack.conditions(target):
        attack.propose(problem, lambda iteration, loss: None)
    return sum(target.gradients) / n, sum(target.judgements) / n


BUDGET_SECONDS = 2.0
"""About how long one measurement may take."""

REPEATS = 2
"""How often each of three measurements is made; the shortest counts."""

PROBE_STEPS = 3
"""Rows that call the network in the longer of the two purifications that are timed."""


@final
@dataclass(frozen=True, repr=False)
class Plan(Shown):
    """The cost of an evaluation, before it is run.

    Attributes:
        n_images: images.
        gradients, judgements: purifications with and without gradient per image; where an attack stops early on
            images it has broken, the most it can need.
        calls: network calls in one purification (1 for a bare classifier), see ``Method.network_calls``.
        network_calls: of the whole run, in images: a gradient counts twice, for its forward and backward pass.
        seconds_gradient, seconds_judgement: measured, per image and draw in a batch of ``rows``.
        hours: of the whole run on this device, one process.
        memory: bytes needed by one gradient batch beside the weights.
        disk: bytes of the run file.
        rows: (image, draw) pairs per network call.
        device: where it was measured.
    """

    n_images: int
    gradients: float
    judgements: float
    calls: int
    network_calls: int
    seconds_gradient: float
    seconds_judgement: float
    hours: float
    memory: int
    disk: int
    rows: int
    device: str

    def _shown(self) -> Card:
        return Card(f"Plan: about {_duration(self.hours)} on {self.device}", self._rows())

    def _rows(self) -> tuple[Row, ...]:
        per = f"{self.gradients:,.0f} gradients and {self.judgements:,.0f} judgements per image"
        return (
            ("images", f"{self.n_images}, at most {per}"),
            (
                "network calls",
                f"{self.network_calls:,} (images through the network; {self.calls} per purification)",
            ),
            (
                "measured",
                f"{1e3 * self.seconds_gradient:.3g} ms per gradient, "
                f"{1e3 * self.seconds_judgement:.3g} ms per judgement, {self.rows} at a time on {self.device}",
            ),
            ("time", f"about {_duration(self.hours)} on this device"),
            ("memory", f"about {_bytes(self.memory)} for {self.rows} rows, beside the weights"),
            ("disk", f"about {_bytes(self.disk)}"),
        )

    def __str__(self) -> str:
        return "\n".join(f"{name:<14} {text}" for name, text in self._rows())


@torch.inference_mode(False)
@torch.enable_grad()
def plan(
    defense: nn.Module | Target,
    dataset: Dataset | Iterable[Any],
    attack: Attack | None = None,
    protocol: Protocol | None = None,
    *,
    batch_size: int = 64,
    progress: bool = False,
) -> Plan:
    """What ``evaluate`` with these arguments will cost: calls counted on a stand-in, time measured on a few steps.

    Takes seconds. The attack runs in full against a network that costs nothing and never errs, which gives its
    number of queries whatever its inner loops are; the real networks are timed over one and three steps. With
    ``progress`` a bar is shown.
    """
    protocol = fresh() if protocol is None else protocol
    dataset = as_dataset(dataset)
    target = enter(defense, dataset, protocol)
    attack = judged_by(attack, protocol, dataset.sample_ids)
    worker = Worker(target, dataset, attack, protocol)
    n, calls = len(dataset), target.network_calls
    with frozen(target, protocol):
        draws = protocol.draws if target.is_random else 1
    bar = Progress(1 + 3 * REPEATS, "steps", doing="counting queries", shown=progress)
    with bar:
        gradients, judgements = count_queries(
            dataset,
            attack,
            protocol,
            random=target.numbered or bool(target.own_noise),
            purifies=target.purifies,
        )
        bar.step(doing="timing the networks")
        per_block = min(batch_size, n) * (attack.eot() if attack is not None else 1)
        rows = max(min(worker.rows, per_block), 1)
        with_gradient, without, memory = _calibrate(
            target, dataset, rows, worker.device, gradients > 0, bar.step
        )
    judgements += draws * (1 if attack is None else 2)
    if attack is not None:
        judgements += protocol.transfer_draws if protocol.noise == "known" else 0
    seconds = n * (gradients * with_gradient + judgements * without)
    return Plan(
        n_images=n,
        gradients=gradients,
        judgements=judgements,
        calls=calls,
        network_calls=round(n * calls * (2 * gradients + judgements)),
        seconds_gradient=with_gradient,
        seconds_judgement=without,
        hours=seconds / 3600,
        memory=memory,
        disk=_disk(dataset, attack, draws, protocol.transfer_draws, target.n_classes),
        rows=rows,
        device=torch.cuda.get_device_name(worker.device) if worker.device.type == "cuda" else "cpu",
    )


def _calibrate(
    target: Target,
    dataset: Dataset,
    rows: int,
    device: torch.device,
    attacked: bool,
    step: Callable[[], None],
) -> tuple[float, float, int]:
    """Seconds per row with and without gradient, and bytes for ``rows`` rows with gradient."""
    short, long = _truncated(target, 1), _truncated(target, PROBE_STEPS)
    n = min(rows, 4)
    total, timed = target.network_calls, long.network_calls
    between = timed - short.network_calls
    once = _time(long, dataset, n, device, attacked, step)
    # As many rows as the budget allows: networks are faster per image in larger batches.
    n = max(min(rows, int(n * BUDGET_SECONDS / max(sum(once), 1e-9))), n)
    first, last = (_time(part, dataset, n, device, attacked, step) for part in (short, long))
    saved = [_saved(part, dataset, min(n, 4), device) if attacked else 0 for part in (short, long)]
    grown = []
    for a, b in zip((*first, saved[0] * rows), (*last, saved[1] * rows), strict=True):
        slope = max(b - a, 0.0) / between if between else 0.0
        grown.append(b + slope * (total - timed))
    memory = int(grown[2])
    if target.budgets_memory:
        memory = min(memory, max(available_bytes(device), saved[0] * rows))
    return grown[0] / n, grown[1] / n, memory


def _time(
    target: Target,
    dataset: Dataset,
    n: int,
    device: torch.device,
    attacked: bool,
    step: Callable[[], None],
) -> tuple[float, float]:
    x, y, ids = _rows(dataset, n, device)
    best = [float("inf"), float("inf")]
    for _ in range(REPEATS):  # the first call builds tables and warms caches
        begin = _now(device)
        if attacked:
            eot_gradient(target, x, y, ids, range(1), LOSSES["ce"], n)
        middle = _now(device)
        judge(target, x, y, ids, 1, n)
        best = [min(best[0], middle - begin), min(best[1], _now(device) - middle)]
        step()
    return best[0], best[1]


def _saved(target: Target, dataset: Dataset, n: int, device: torch.device) -> int:
    """Bytes autograd keeps per row."""
    x, _, ids = _rows(dataset, n, device)
    weights = (*target.module.parameters(), *target.module.buffers())
    draws = torch.zeros(n, dtype=torch.int64, device=device)
    with torch.enable_grad(), count_saved_bytes(*weights) as counter:
        target.logits(x.clone().requires_grad_(True), ids, draws, Domain.ATTACK)
    return counter.total // n


def _rows(dataset: Dataset, n: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    at = torch.arange(n) % len(dataset)
    x, y = dataset.batch(at).to(device), dataset.labels[at].to(device)
    return x, y, torch.arange(n, device=device)


def _truncated(target: Target, calls: int) -> Target:
    """The same target, stopped after ``calls`` rows that call the network; its result means nothing, its speed does."""
    if not target.purifies or target.method.steps.n_network_calls <= calls:
        return target
    if target.method.procedure is not None:
        return target  # only a procedure knows what part of its table makes sense alone
    kept, left = [], calls
    for row, counted in zip(target.method.steps.rows, target.method.steps.counted, strict=True):
        if counted and left == 0:
            break
        left -= counted
        kept.append(row)
    return target.with_method(replace(target.method, steps=StepTable(tuple(kept))))


def _disk(dataset: Dataset, attack: Attack | None, draws: int, transfer_draws: int, n_classes: int) -> int:
    pixels = 1
    for size in dataset.image_shape:
        pixels *= size
    n_iter = attack.iterations() if attack is not None else 0
    inputs = [draws] if attack is None else [draws, draws, transfer_draws]
    # Packed, CIFAR-10's originals measure 69 % of their float32 size and perturbed ones 72 to 81 %; digits 33 % and
    # 59 to 95 %. Logits hardly shrink (1000 classes: 89 %, 10 classes: not at all); loss, accuracy and cost of an
    # iterate take 4 bytes each at most. The rest is an allowance for draws, checksums and half-filled pages.
    logits = sum(4 * n_classes * n + 80 for n in inputs if n)
    per_image = 4 * pixels * (1.5 if attack is not None else 0.7) + logits + 12 * n_iter + 80 * draws + 300
    return int(len(dataset) * per_image) + 64 * 1024


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _duration(hours: float) -> str:
    if hours >= 48:
        return f"{hours:,.0f} hours ({hours / 24:.1f} days)"
    if hours >= 1:
        return f"{hours:.1f} hours"
    return (
        f"{60 * hours:.1f} minutes ({hours:.2g} hours)" if hours >= 1 / 60 else f"{3600 * hours:.1f} seconds"
    )


def _bytes(n: int) -> str:
    size = float(n)
    for unit in ("B", "KB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.1f} {unit}" if unit != "B" else f"{n} B"
        size /= 1000
    raise AssertionError
