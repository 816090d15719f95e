"""FAB and Square through pyautoattack (Croce and Hein 2020; Andriushchenko et al. 2020), extra "attacks".

The package's attacks choose the images that go on by themselves and share random numbers between them. Here each
image has a loop and a seed of its own: its result depends neither on the other images nor on the caller's
generator, which is left as it was. Square's loops advance in lockstep and share the network calls. FAB without
restarts draws nothing and treats the rows of its batch one by one, so it is given whole batches.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import MissingExtra, mistake, one_of, whole
from .base import Count, NormAttack, Problem, Proposal, Tick
from .gradient import logits_at
from .weakness import Effort


@dataclass(frozen=True, kw_only=True)
class ForeignAttack(NormAttack):
    """Base of the attacks whose loop is pyautoattack's; budget and decisions are ours.

    Attributes:
        eot_iter: draws whose mean logits answer a query, fresh ones for each; 1 where nothing is random.
    """

    eot_iter: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("eot_iter", self.eot_iter, minimum=1)

    def eot(self) -> int:
        """See ``Attack.eot``."""
        return self.eot_iter

    def draws(self, problem: Problem) -> int:
        """Draws per query."""
        return self.eot_iter if problem.target.is_random else 1


@dataclass(frozen=True, kw_only=True)
class FAB(ForeignAttack):
    """Fast Adaptive Boundary attack (Croce and Hein, ICML 2020), targeted as in AutoAttack, without restarts.

    It looks for the nearest misclassified point and believes the one draw on which it found it, so that against
    random defences it ends near the original with nothing but luck: it is meant for deterministic ones.

    Attributes:
        n_iter: iterations for each target.
        n_target_classes: how many of the other classes, most probable first.
    """

    gradient = "exact"

    n_iter: int = 100
    n_target_classes: int = 9

    def iterations(self) -> int:
        """See ``Attack.iterations``; one per target."""
        return self.n_target_classes

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(steps=self.n_iter, draws=self.eot_iter)

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_iter", self.n_iter, minimum=1)
        whole("n_target_classes", self.n_target_classes, minimum=1)

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """For each image the nearest misclassified point within ``eps``, the image itself where there is none."""
        kind = _published("fab_pt", "FABAttack_PT", "FAB")
        proposals, nearest = problem.x.clone(), torch.full_like(problem.x[:, 0, 0, 0], torch.inf).double()
        group, certain = max(1, self.batch_size // self.draws(problem)), not problem.target.is_random
        for target in range(2, 2 + min(self.n_target_classes, problem.n_classes - 1)):
            playing = ~(torch.isfinite(nearest) & certain)
            for chosen in playing.nonzero()[:, 0].split(group):
                part = problem.part(chosen)
                oracle = Oracle(part, self.draws(problem), self.batch_size, target - 2)
                attack = kind(oracle, norm=self.norm, n_iter=self.n_iter, eps=self.eps, targeted=True)
                attack.target_class = target
                found = attack.attack_single_run(part.x.clone(), part.y, is_targeted=True).detach()
                distance = self.budget.distance(found, part.x)
                better = (distance > 0) & (distance <= self.eps) & (distance < nearest[chosen])
                proposals[chosen[better]], nearest[chosen[better]] = found[better], distance[better]
            tick(target - 2, float("nan"))
        return Proposal(proposals, problem.x.new_empty((0, len(problem.x))))


@dataclass(frozen=True, kw_only=True)
class Square(ForeignAttack):
    """Square attack (Andriushchenko et al., ECCV 2020): queries only, no gradients.

    Attributes:
        n_queries: queries for each restart.
        p_init: share of the pixels the first squares cover.
        loss: "margin" or "ce", the score that is lowered.
    """

    n_queries: int = 5000
    p_init: float = 0.8
    loss: str = "margin"

    def iterations(self) -> int:
        """See ``Attack.iterations``."""
        return self.n_queries

    def effort(self, n_classes: int) -> Effort:
        """See ``Attack.effort``."""
        return Effort(queries=self.n_queries, draws=self.eot_iter)

    def planned(self, random: bool, n_classes: int, count: Count) -> tuple[float, float]:
        """See ``Attack.planned``; the first point, and one for each query."""
        return 0.0, float((1 + self.n_queries) * (self.eot_iter if random else 1))

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("n_queries", self.n_queries, minimum=1)
        one_of("loss", self.loss, ("margin", "ce"))

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """The point of lowest score, whether or not it was misclassified on its own draw: fresh draws decide."""
        if self.norm != "Linf" and len(problem.x) and min(problem.x.shape[2:]) < 5:
            size = f"{list(problem.x.shape[1:])}"
            raise ValueError(mistake("x", f"at least 5 pixels high and wide for Square in {self.norm}", size))
        kind = _published("square", "SquareAttack", "Square")
        n, rounds = self.draws(problem), 0
        asked = [0] * len(problem.x)
        proposals = problem.x.clone()

        def job(i: int) -> Job:
            return lambda ask: self._loop(kind, ask, problem.x[i : i + 1].clone(), problem.y[i : i + 1])

        def answer(numbers: list[int], points: list[Tensor]) -> list[Tensor]:
            nonlocal rounds
            images = torch.tensor([first + number for number in numbers], device=problem.x.device)
            counts = torch.tensor([asked[first + number] for number in numbers], device=problem.x.device)
            logits = mean_logits_at(problem, torch.cat(points), images, counts * n, n, self.batch_size)
            for number in numbers:
                asked[first + number] += 1
            tick(rounds, float("nan"))
            rounds += 1
            return list(logits.split(1))

        group = max(1, self.batch_size // n)
        for first in range(0, len(problem.x), group):
            members = range(first, min(first + group, len(problem.x)))
            seeds = [_seed(self.seed, int(problem.ids[i])) for i in members]
            found = together([job(i) for i in members], seeds, answer)
            for i, image in zip(members, found, strict=True):
                proposals[i] = image[0]
        return Proposal(proposals, problem.x.new_empty((0, len(problem.x))))

    def _loop(self, kind: Any, ask: Ask, x: Tensor, y: Tensor) -> Tensor:
        settings = {name: getattr(self, name) for name in ("norm", "n_queries", "eps", "p_init", "loss")}
        attack = kind(ask, resc_schedule=False, **settings)
        attack.init_hyperparam(x)
        _, found = attack.attack_single_run(x, y)
        return found


class Oracle:
    """What FAB sees of the defence: mean logits of every image's variant over fresh attack draws.

    FAB begins by asking which images are classified correctly and leaves the others out. It is told that all are,
    so that from then on every question is about all images in their order: then their names are known.
    """

    def __init__(self, problem: Problem, n_draws: int, batch_size: int, stretch: int) -> None:
        self.problem, self.n_draws, self.batch_size = problem, n_draws, batch_size
        self.asked, self.first = 0, stretch << 16

    def __call__(self, points: Tensor) -> Tensor:
        """Logits [B, classes] of ``points`` [B, C, H, W], differentiable."""
        self.asked += 1
        if self.asked == 1:
            return torch.nn.functional.one_hot(self.problem.y, self.problem.n_classes).to(points.dtype)
        image = torch.arange(len(points), device=points.device)
        first = torch.full_like(image, self.first + self.asked * self.n_draws)
        return mean_logits_at(self.problem, points, image, first, self.n_draws, self.batch_size)


def mean_logits_at(
    problem: Problem, points: Tensor, image: Tensor, first: Tensor, n_draws: int, batch_size: int
) -> Tensor:
    """Mean logits of points [n, C, H, W], variants of the images numbered ``image`` [n].

    Point i is seen under the ``n_draws`` attack draws from ``first[i]`` on. Differentiable.
    """
    # The package leaves [0, 1] by rounding errors, which a purifier refuses beyond 1e-6.
    inside, ids = points.clamp(0.0, 1.0), problem.ids[image]
    return logits_at(problem.target, inside, ids, first, n_draws, batch_size).mean(1)


def _seed(seed: int, sample_id: int) -> int:
    """A generator seed for this image; unrelated for neighbouring seeds and ids."""
    digest = hashlib.blake2b(f"{seed} {sample_id}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "little")


def _published(module: str, name: str, purpose: str) -> Any:
    try:
        package = __import__(f"pyautoattack.{module}", fromlist=[name])
    except ImportError as error:
        raise MissingExtra("pyautoattack", "attacks", purpose) from error
    return getattr(package, name)


Ask = Callable[[Tensor], Tensor]
"""(points [n, C, H, W]) to their logits [n, classes]."""

Job = Callable[[Ask], Tensor]
"""One loop: asks, and returns its result."""

Answer = Callable[[list[int], list[Tensor]], list[Tensor]]
"""(numbers of the asking jobs, their points) to one answer for each."""


class _Stopped(BaseException):
    """Raised in the loops that are left when one has failed."""


class _Worker:
    def __init__(self, job: Job, seed: int, main: threading.Event) -> None:
        self.job, self.main, self.turn = job, main, threading.Event()
        self.question: Tensor | None = None
        self.answer: Tensor | None = None
        self.result: Tensor | None = None
        self.error: BaseException | None = None
        self.stopped = False
        self.state = torch.Generator().manual_seed(seed).get_state()
        self.thread = threading.Thread(target=self._body, daemon=True)

    def resume(self) -> None:
        """Let the loop run to its next question or its end; called by the main thread only."""
        self.question = None
        torch.set_rng_state(self.state)
        self.main.clear()
        if self.thread.ident is None:
            self.thread.start()
        else:
            self.turn.set()
        self.main.wait()
        self.state = torch.get_rng_state()

    def ask(self, points: Tensor) -> Tensor:
        """Hand the baton back with a question, wait for the answer."""
        self.question = points.detach()
        self.turn.clear()
        self.main.set()
        self.turn.wait()
        if self.stopped or self.answer is None:
            raise _Stopped
        return self.answer.clone()

    def _body(self) -> None:
        try:
            self.result = self.job(self.ask)
        except BaseException as error:
            self.error = error
        finally:
            self.main.set()


def together(jobs: Sequence[Job], seeds: Sequence[int], answer: Answer) -> list[Tensor]:
    """Results of ``jobs``, whose questions are answered in common rounds, without gradients.

    Args:
        jobs: the loops; each may draw from torch's global generator (of the CPU), which is seeded for it.
        seeds: one for each job.
        answer: called once per round with everything that was asked in it.

    Raises:
        Whatever a job or ``answer`` raises; the other jobs are stopped first.
    """
    main, before = threading.Event(), torch.get_rng_state()
    workers = [_Worker(job, seed, main) for job, seed in zip(jobs, seeds, strict=True)]
    live = list(range(len(workers)))
    try:
        while live:
            for number in live:
                workers[number].resume()
                if (error := workers[number].error) is not None:
                    raise error
            live = [number for number in live if workers[number].question is not None]
            questions = [question for number in live if (question := workers[number].question) is not None]
            for number, reply in zip(live, answer(live, questions) if live else [], strict=True):
                workers[number].answer = reply
    finally:
        for worker in workers:
            if worker.thread.is_alive():
                worker.stopped = True
                worker.turn.set()
                worker.thread.join()
        torch.set_rng_state(before)
    return [worker.result for worker in workers if worker.result is not None]
