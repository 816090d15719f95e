"""Runs many loops that each ask one question at a time, and answers their questions together.

For attacks of other packages that would either attack one image per network call or mix the images' randomness:
each image gets a loop of its own, in a thread that runs only while it holds the baton. Threads take turns, never
run at once, and each has the global generator to itself, so that results depend neither on the company nor on the
order of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

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
