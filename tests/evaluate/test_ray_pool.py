"""How blocks are given to Ray's workers, with a Ray made of plain objects: no cluster, no waiting."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from fastpure.errors import EngineUnavailable
from fastpure.evaluate import ray_engine
from fastpure.evaluate.ray_engine import _Pool


class Lost(Exception):
    """Stands for the errors of a lost worker or result."""


class Ray:
    """Just enough of Ray. ``fates`` says of each actor in turn how many calls it answers; -1: it never starts."""

    def __init__(self, fates: list[int], slots: int = 2, busy: int = 0) -> None:
        self.fates, self.slots, self.busy, self.killed = iter(fates), slots, busy, 0
        self.options: dict[str, Any] = {}
        self.started: list[tuple[Any, ...]] = []
        self.exceptions = SimpleNamespace(
            RayActorError=Lost, WorkerCrashedError=Lost, ObjectLostError=Lost, RayTaskError=RuntimeError
        )

    def cluster_resources(self) -> dict[str, int]:
        return {"CPU": self.slots}

    def available_resources(self) -> dict[str, float]:
        return {"CPU": float(self.slots - self.busy)}

    def nodes(self) -> list[dict[str, Any]]:
        here = {"Alive": True, "Resources": {"CPU": float(self.slots)}}
        return [here, {"Alive": False, "Resources": {"CPU": 64.0}}]

    def put(self, worker: Any) -> Any:
        return worker

    def remote(self, **options: Any) -> Any:
        self.options = options

        def start(*arguments: Any) -> Actor:
            self.started.append(arguments)
            return Actor(next(self.fates, -1))

        return lambda kind: SimpleNamespace(remote=start)

    def wait(self, refs: list[Any], num_returns: int, timeout: float | None) -> tuple[list[Any], list[Any]]:
        ready = [ref for ref in refs if ref.outcome is not None][:1]
        if not ready and timeout is None:
            raise AssertionError("the run waits for a worker that will never answer")
        return ready, [ref for ref in refs if ref not in ready]

    def get(self, ref: Any) -> Any:
        if isinstance(ref.outcome, Exception):
            raise ref.outcome
        return ref.outcome

    def kill(self, actor: Any, no_restart: bool) -> None:
        self.killed += 1


class Actor:
    def __init__(self, answers: int) -> None:
        self.answers = answers
        self.run = SimpleNamespace(remote=self.call)

    def call(self, block: list[int]) -> Any:
        if self.answers < 0:
            return Ref(None)
        self.answers -= 1
        if self.answers < 0:
            self.answers = 0
            return Ref(Lost("gone"))
        return Ref([tuple(block)] if block else [])


class Ref:
    def __init__(self, outcome: Any) -> None:
        self.outcome = outcome


TODO = [[0, 1], [2, 3], [4, 5], [6, 7]]


def run(fates: list[int]) -> list[Any]:
    worker = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    ray = Ray(fates)
    return sorted(_Pool(ray, worker, 2, len(TODO)).run(TODO))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fates",
    [
        [99, 99],
        [2, 99, 99],
        [2, 99, -1],  # the lost worker's host is gone, and nothing can replace it
        [99, 2, -1],
        [99, -1],  # one slot was taken from the start
        [1, 2, 2, 99],
    ],
)
def test_every_block_is_done_once_whatever_becomes_of_workers(fates):
    assert run(fates) == [(0, 1), (2, 3), (4, 5), (6, 7)]


def test_no_worker_at_all_ends_the_run():
    with pytest.raises(
        EngineUnavailable, match=f"no Ray worker could be started for {ray_engine.PATIENCE} s"
    ):
        run([2, 2, -1, -1])


def test_workers_that_die_at_once_end_the_run():
    with pytest.raises(EngineUnavailable, match="the start of the run lost its worker"):
        run([0] * 20)


def test_a_block_that_kills_its_workers_ends_the_run():
    with pytest.raises(EngineUnavailable, match=r"the block at positions \d\.\.\d lost its worker"):
        run([1] * 20)


@pytest.mark.parametrize(
    ("slots", "workers", "threads", "reserved"),
    [(8, 2, 4, 4.0), (8, 3, 2, 2.0), (2, 4, 1, 0.5), (4, 4, 1, 1.0)],
)
def test_each_worker_gets_its_share_of_the_cores(monkeypatch, slots, workers, threads, reserved):
    monkeypatch.setattr(ray_engine, "told", lambda: None)
    ray, worker = Ray([99] * 8, slots), SimpleNamespace(device=SimpleNamespace(type="cpu"))
    list(_Pool(ray, worker, workers, len(TODO)).run(TODO))  # type: ignore[arg-type]
    assert ray.options == {"num_cpus": reserved}
    assert {arguments[1] for arguments in ray.started} == {threads}


def test_cores_that_somebody_has_are_not_waited_for(monkeypatch):
    """A driver inside a Ray task holds one: an actor that wants them all would never start."""
    monkeypatch.setattr(ray_engine, "told", lambda: None)
    ray, worker = Ray([1], slots=4, busy=1), SimpleNamespace(device=SimpleNamespace(type="cpu"))
    assert _Pool(ray, worker, 1, 4).threads == 4  # type: ignore[arg-type]
    assert ray.options == {"num_cpus": 1.0}


def test_a_number_that_the_driver_was_told_is_the_most(monkeypatch):
    monkeypatch.setattr(ray_engine, "told", lambda: 3)
    worker = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    assert _Pool(Ray([], 16), worker, 2, 4).threads == 3  # type: ignore[arg-type]
