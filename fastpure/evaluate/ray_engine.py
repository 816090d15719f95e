"""Blocks on a Ray cluster: workers compute, the driver alone writes, a lost worker's blocks are done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from ..errors import EngineUnavailable, MissingExtra
from .work import Block, Worker

MAX_LOSSES = 3
"""How often one block may lose its worker before the run gives up: then the block itself is what kills."""


class Remote:
    """What runs in a Ray actor: a `Worker` of its own, with the driver's number of threads."""

    def __init__(self, worker: Worker, threads: int) -> None:
        torch.set_num_threads(threads)
        self.worker = worker

    def run(self, positions: list[int]) -> list[Block]:
        """Finish a block; several smaller ones if memory runs out."""
        return list(self.worker.run(positions))


def ray_blocks(
    workers: int | None,
) -> Callable[[Worker, list[list[int]], Callable[[int, int], None]], Iterator[Block]]:
    """The engine for ``workers`` actors (None: one per GPU or CPU slot of the cluster).

    A running Ray (``ray start``, RAY_ADDRESS) is used; otherwise one is started on this machine and stopped at
    the end.

    Raises:
        MissingExtra: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtra("ray", "ray", "engine='ray'") from error

    def run(worker: Worker, todo: list[list[int]], tick: Callable[[int, int], None]) -> Iterator[Block]:
        ours = not ray.is_initialized()
        if ours:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        try:
            yield from _Pool(ray, worker, workers, len(todo)).run(todo)
        finally:
            if ours:
                ray.shutdown()

    return run


class _Pool:
    """One actor per slot; each has one block at a time."""

    def __init__(self, ray: Any, worker: Worker, workers: int | None, n_blocks: int) -> None:
        self.ray = ray
        cuda = worker.device.type == "cuda"
        slots = int(ray.cluster_resources().get("GPU" if cuda else "CPU", 0))
        if slots < 1:
            raise EngineUnavailable(f"the Ray cluster has no {'GPU' if cuda else 'CPU'} slot")
        self.size = max(min(workers or slots, n_blocks), 1)
        # More actors than slots share them, so that any number asked for can start.
        share = min(1.0, slots / self.size)
        options = {"num_gpus": share, "num_cpus": 0} if cuda else {"num_cpus": share}
        self.actor = ray.remote(**options)(Remote)
        self.payload = ray.put(worker)

    def run(self, todo: list[list[int]]) -> Iterator[Block]:
        waiting, losses = list(reversed(todo)), dict.fromkeys(range(len(todo)), 0)
        numbers = {tuple(block): i for i, block in enumerate(todo)}
        running: dict[Any, tuple[Any, list[int]]] = {}
        idle = [self._start() for _ in range(self.size)] if waiting else []
        try:
            while waiting or running:
                while waiting and idle:
                    actor, block = idle.pop(), waiting.pop()
                    running[actor.run.remote(block)] = (actor, block)
                (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
                actor, block = running.pop(ready)
                try:
                    finished = self.ray.get(ready)
                except (self.ray.exceptions.RayActorError, self.ray.exceptions.WorkerCrashedError) as error:
                    number = numbers[tuple(block)]
                    losses[number] += 1
                    if losses[number] > MAX_LOSSES:
                        raise EngineUnavailable(
                            f"the block at positions {block[0]}..{block[-1]} lost its worker {MAX_LOSSES + 1} times: "
                            f"{str(error).splitlines()[0]}. Finished blocks are safe; try a smaller batch_size"
                        ) from error
                    waiting.append(block)
                    idle.append(self._start())
                    continue
                except self.ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from None
                idle.append(actor)
                yield from finished
        finally:
            for actor in (*idle, *(actor for actor, _ in running.values())):
                self.ray.kill(actor, no_restart=True)

    def _start(self) -> Any:
        return self.actor.remote(self.payload, torch.get_num_threads())
