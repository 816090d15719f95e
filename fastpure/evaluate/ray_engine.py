"""Blocks on a Ray cluster: workers compute, the driver alone writes, a lost worker's blocks are done again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from ..errors import EngineUnavailable, MissingExtra
from ..heap import keep_freed
from ..threads import available, share_of_hosts, told
from .numerics import numerics, set_numerics
from .work import Block, Worker

MAX_LOSSES = 3
"""How often one block may lose its worker before the run gives up: then the block itself is what kills."""

PATIENCE = 300
"""Seconds to wait for a worker while none has anything to do."""


class Remote:
    """What runs in a Ray actor: a `Worker` of its own, with its share of the cores and the driver's arithmetic."""

    def __init__(self, worker: Worker, threads: int, arithmetic: Mapping[str, Any], beside: int) -> None:
        set_numerics(arithmetic)
        torch.set_num_threads(min(threads, available()))
        keep_freed(beside)
        self.worker = worker

    def run(self, positions: list[int]) -> list[Block]:
        """Finish a block; several smaller ones if memory runs out; no positions only show that the worker is there."""
        return list(self.worker.run(positions)) if positions else []


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
        hosts = [node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]]
        self.threads = share_of_hosts(self.size, hosts)
        # How many of them a host holds: at least their share, which Ray packs as it likes.
        self.beside = max(self.size // max(len(hosts), 1), 1)
        if (wanted := told()) is not None:
            self.threads = min(self.threads, wanted)
        # More actors than slots share them, so that any number asked for can start. Fewer reserve every core that they
        # use: Ray puts no two of them side by side then, and tells their OpenMP the same number.
        share = min(1.0, slots / self.size)
        reserved = share
        if share == 1.0 and self.threads * self.size <= ray.available_resources().get("CPU", 0):
            reserved = float(
                self.threads
            )  # not where somebody has some already: an actor might wait for ever
        options = {"num_gpus": share, "num_cpus": 0} if cuda else {"num_cpus": reserved}
        self.actor = ray.remote(**options)(Remote)
        self.payload, self.numerics = ray.put(worker), numerics()

    def run(self, todo: list[list[int]]) -> Iterator[Block]:
        waiting, losses = list(reversed(todo)), dict.fromkeys((tuple(block) for block in todo), 0)
        running: dict[Any, tuple[Any, list[int]]] = {}
        # Blocks go only to workers that answer: one that replaces a lost one may wait for a slot for ever.
        starting = dict(self._start() for _ in range(self.size)) if waiting else {}
        idle: list[Any] = []
        try:
            while waiting or running:
                while waiting and idle:
                    actor, block = idle.pop(), waiting.pop()
                    running[actor.run.remote(block)] = (actor, block)
                patience = None if running else PATIENCE
                ready, _ = self.ray.wait([*running, *starting], num_returns=1, timeout=patience)
                if not ready:
                    raise EngineUnavailable(
                        f"no Ray worker could be started for {PATIENCE} s. Finished blocks are safe; the same command "
                        "continues when the cluster has free slots"
                    )
                (done,) = ready
                actor, block = running.pop(done) if done in running else (starting.pop(done), [])
                try:
                    finished = self.ray.get(done)
                except self._lost() as error:
                    self.ray.kill(actor, no_restart=True)
                    self._count(block, losses, error)
                    waiting += [block] if block else []
                    starting |= [self._start()]
                    continue
                except self.ray.exceptions.RayTaskError as error:
                    raise (error.cause if isinstance(error.cause, Exception) else error) from None
                idle.append(actor)
                yield from finished
        finally:
            for actor in (*idle, *starting.values(), *(actor for actor, _ in running.values())):
                self.ray.kill(actor, no_restart=True)

    def _lost(self) -> tuple[type[Exception], ...]:
        """What says that a worker, its host, or a result that lay there is gone."""
        known = self.ray.exceptions
        return known.RayActorError, known.WorkerCrashedError, known.ObjectLostError

    def _count(self, block: list[int], losses: dict[tuple[int, ...], int], error: Exception) -> None:
        losses[tuple(block)] = losses.get(tuple(block), 0) + 1
        if losses[tuple(block)] > MAX_LOSSES:
            what = f"the block at positions {block[0]}..{block[-1]}" if block else "the start of the run"
            raise EngineUnavailable(
                f"{what} lost its worker {MAX_LOSSES + 1} times: {str(error).splitlines()[0]}. Finished blocks are "
                "safe; try a smaller batch_size"
            ) from error

    def _start(self) -> tuple[Any, Any]:
        """A sign that a new actor answers, and the actor."""
        actor = self.actor.remote(self.payload, self.threads, self.numerics, self.beside)
        return actor.run.remote([]), actor
