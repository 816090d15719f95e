"""`evaluate`: attack a data set, judge it by a protocol, keep everything in one file that survives anything."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..attacks.base import Attack
from ..attacks.ensemble import Ensemble
from ..attacks.pgd import DWPGD, VARIANTS
from ..data import Dataset, as_dataset
from ..errors import RunInterrupted, mistake, one_of, whole
from ..purify import Target, look_through
from ..signatures import suggests_names
from ..trackers import Tracker, check_tracker
from .identity import canonical, environment, identity
from .progress import EvaluationProgress, Tracked, terminable
from .protocol import Protocol, fresh
from .shards import blocks, describe, share
from .store import RunStore
from .summary import Report
from .work import Block, Worker, enter, judged_by

ENGINES = ("local", "ray")
Blocks = Callable[[Worker, list[list[int]], Callable[[int, int], None]], Iterator[Block]]


@suggests_names
@torch.inference_mode(False)
@torch.enable_grad()
def evaluate(
    defense: nn.Module | Target,
    dataset: Dataset | Iterable[Any],
    attack: Attack | None = None,
    protocol: Protocol | None = None,
    out: str | Path | None = None,
    *,
    batch_size: int = 64,
    progress: bool = True,
    shard: tuple[int, int] | None = None,
    engine: str = "local",
    workers: int | None = None,
    devices: Sequence[str] | None = None,
    tracker: str | None = None,
) -> Report:
    """Robust and clean accuracy of ``defense`` on ``dataset``, with intervals, under a named protocol.

    Run again with the same arguments, an interrupted or killed evaluation continues where it was; its result
    equals that of an unbroken one, bit for bit on a CPU with the same batch and thread settings.

    Args:
        defense: a ``Defense``, a module around one, or any module from [0, 1] images to logits, in evaluation mode.
            One that answers differently each time is judged by as many calls as the protocol has draws; without
            ``out``, because such a run cannot be continued to the same content.
        dataset: images with labels and ids; or a ``DataLoader``, batches (images, labels) or (images, labels, ids), a
            pair of tensors, or a torch data set, as `fastpure.data.as_dataset` reads them. A run knows them by content.
        attack: from ``fp.attacks`` or ``fp.controls``; None measures clean accuracy only.
        protocol: who decides; ``fresh()``, ten fresh draws, if None.
        out: the run file (SQLite), made or continued; None keeps the run in memory.
        batch_size: images attacked together and written in one transaction. Halved when memory runs out. Noise
            does not depend on it; what rounding in a network's library does is at most the last bits.
        progress: show images, iterations, time left and accuracy so far on stderr.
        shard: (i, n): only the i-th of n parts, 1 <= i <= n; put them together with `merge`.
        engine: "local", or "ray" (pip install 'fastpure[ray]') for all workers of a Ray cluster.
        workers: Ray actors; one per GPU, or per CPU slot for a defence on the CPU, if None.
        devices: of this machine, such as ["cuda:0", "cuda:1"] or ["cpu", "cpu"]: a process for each, which share the
            cores. All of the kind of the defence's device. A process that is lost is named in a warning, and its
            images are done again. In a script this belongs under ``if __name__ == "__main__":``.
        tracker: "tensorboard" or "wandb" (extras of these names): where accuracies so far go after every block, kept
            in a folder beside ``out`` that is called like it, with ".tracked" in the place of its ending.

    Returns:
        The report of this file's images.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
        NonFiniteError: the defence answers NaN or Inf.
        RunMismatch, RunDamaged, RunLocked, StoreUnavailable, DiskFull: see `RunStore`; nothing is lost.
        OutOfMemory: not even one image fits.
        RunInterrupted: Ctrl-C or SIGTERM; finished blocks are in the file.
        MissingExtra: Ray or the tracker is not installed.
        EngineUnavailable: Ray has no slot, or workers or processes are lost again and again.
    """
    protocol = fresh() if protocol is None else protocol
    dataset = as_dataset(dataset)
    _check(dataset, attack, protocol)
    whole("batch_size", batch_size, 1)
    if tracker is not None:
        check_tracker(tracker)
        if out is None:
            raise ValueError(
                mistake("tracker", "None without `out`, which its folder lies beside", repr(tracker))
            )
    run_blocks = _engine(engine, workers, devices, look_through(defense).device)
    target = enter(defense, dataset, protocol)
    attack = judged_by(attack, protocol, dataset.sample_ids)
    _check_white_box(attack, protocol)
    if target.own_noise and out is not None:
        raise ValueError(_cannot_continue(target))
    worker = Worker(target, dataset, attack, protocol)
    part = share(shard, batch_size)
    rows = worker.rows
    store = RunStore(
        None if out is None else Path(out),
        identity(target, dataset, attack, protocol, batch_size),
        share=part,
        environment={
            **environment(worker.device),
            "answers": {} if out is None else target.answers(dataset.image_shape),
        },
        settings={"batch_size": batch_size, "rows": rows, "engine": engine, "workers": workers}
        | ({} if devices is None else {"devices": list(devices)}),
    )
    try:
        todo = blocks(len(dataset), batch_size, part, store.done)
        with terminable(), _tracked(tracker, store) as tracked:
            _run(store, worker, todo, run_blocks, progress, tracked)
        return Report.of(store.read())
    except KeyboardInterrupt as stop:
        raise RunInterrupted(_farewell(store, len(dataset), part)) from stop
    finally:
        if remark := store.close():
            warnings.warn(remark, stacklevel=2)


def tracked_folder(path: Path) -> Path:
    """Beside the run file. Only its own ending is taken off: eps0.1 and eps0.2 are two runs."""
    return path.with_name(f"{path.name.removesuffix('.sqlite')}.tracked")


@contextmanager
def _tracked(name: str | None, store: RunStore) -> Iterator[Tracked | None]:
    if name is None or store.path is None:
        yield None
        return
    tracker = Tracker(name, tracked_folder(store.path), len(store.done), canonical(store.identity))
    try:
        yield Tracked(store.read(), tracker)
    finally:
        tracker.close()


def _run(
    store: RunStore,
    worker: Worker,
    todo: list[list[int]],
    run_blocks: Blocks,
    progress: bool,
    tracked: Tracked | None,
) -> None:
    n_images = len(store.done) + sum(len(block) for block in todo)
    n_iter = worker.attack.iterations() if worker.attack is not None else 0
    bar = EvaluationProgress(store.read(), n_images, n_iter) if progress else None
    limit = worker.limit

    def tick(n_block: int, iteration: int) -> None:
        if bar is not None:
            bar.tick(n_block, iteration)

    try:
        for block in run_blocks(worker, todo, tick):
            store.write(block.records, block.seconds)
            if tracked is not None:
                tracked.finished(block.records, block.seconds)
            if bar is not None:
                bar.finished(block.records)
                if worker.limit < limit:
                    limit = worker.limit
                    bar.note(
                        f"memory ran out: from now on {limit} images at a time; the results stay the same"
                    )
    finally:
        if bar is not None:
            bar.close()


def local_blocks(worker: Worker, todo: list[list[int]], tick: Callable[[int, int], None]) -> Iterator[Block]:
    """Do the blocks one after the other in this process."""
    for positions in todo:
        size = len(positions)
        yield from worker.run(positions, lambda iteration, loss, n=size: tick(n, iteration))  # type: ignore[misc]


def _engine(engine: str, workers: int | None, devices: Sequence[str] | None, device: torch.device) -> Blocks:
    one_of("engine", engine, ENGINES)
    if workers is not None:
        whole("workers", workers, 1)
    if devices is not None:
        if engine != "local":
            raise ValueError(mistake("devices", "None with engine='ray', which has its own", list(devices)))
        from .process_engine import checked_devices, process_blocks

        return process_blocks(checked_devices(devices, device))
    if engine == "local":
        return local_blocks
    from .ray_engine import ray_blocks

    return ray_blocks(workers)


def _check(dataset: Dataset, attack: Any, protocol: Any) -> None:
    if not len(dataset):
        raise ValueError(mistake("dataset", "at least one image", "an empty data set"))
    if attack is not None and not isinstance(attack, Attack):
        got, remedy = type(attack).__name__, "Use for example fp.attacks.PGD(eps=8/255)"
        if isinstance(attack, type):
            got, remedy = f"the class {attack.__name__}", f"Make one: {attack.__name__}(eps=8/255)"
        raise TypeError(mistake("attack", "an Attack or None", got, remedy))
    if not isinstance(protocol, Protocol):
        remedy = "Use for example fp.protocols.fresh(10)"
        raise TypeError(mistake("protocol", "a Protocol", type(protocol).__name__, remedy))


def _check_white_box(attack: Attack | None, protocol: Protocol) -> None:
    for member in attack.attacks if isinstance(attack, Ensemble) else ():
        _check_white_box(member, protocol)
    if isinstance(attack, DWPGD) and protocol.noise == "known":
        own = (attack.draw, VARIANTS[attack.variant])
        if own != (protocol.fixed_draw, protocol.part):
            got = f"draw {own[0]}, {own[1]} noise, with {protocol}"
            raise ValueError(mistake("attack", "one that knows the noise of the protocol", got))


def _cannot_continue(target: Target) -> str:
    name = f"{target.own_noise} ({type(target.classifier).__name__})"
    return mistake(
        "out",
        "None for a defence that answers differently each time",
        f"a run file, though {name} draws noise of its own: a resumed run would not be the same run",
        "Leave `out` away, or let a fastpure.Defense draw the noise",
    )


def _farewell(store: RunStore, n_images: int, part: dict[str, int]) -> str:
    done = f"stopped with {len(store.done)} of {n_images} images finished"
    if store.path is None:
        return f"{done}; nothing was kept, because no `out` was given"
    name = f" ({describe(part)})" if part["of"] > 1 else ""
    return f"{done}{name}, all of them in {store.path}; the same command continues there"
