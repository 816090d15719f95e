"""Blocks on several devices of one machine: a process for each, the caller alone writes, a lost one's block is redone.

The processes are started anew (spawned), so that each may use its own GPU: a script that evaluates with ``devices``
must do so under ``if __name__ == "__main__":``, as always with multiprocessing.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, final

import torch

from ..errors import EngineUnavailable, mistake
from ..threads import share
from .numerics import numerics, set_numerics
from .work import Block, Worker

MAX_LOSSES = 1
"""How often one block may lose its process before the run gives up: then the block itself is what kills."""

GRACE = 5
"""Seconds that processes get to end when told to."""


def checked_devices(devices: Any, defense_device: torch.device) -> tuple[str, ...]:
    """``devices`` as names, each of the kind of the device the defence is on.

    Raises:
        TypeError, ValueError: not a list of names of devices, none at all, or of another kind than the defence's.
    """
    if isinstance(devices, str) or not isinstance(devices, Sequence):
        remedy = "Give a list such as ['cuda:0', 'cuda:1']"
        raise TypeError(mistake("devices", "a list of devices", repr(devices), remedy))
    if not devices:
        raise ValueError(mistake("devices", "at least one device", "none"))
    names = []
    for name in devices:
        try:
            device = torch.device(name)
        except (RuntimeError, TypeError) as error:
            raise ValueError(mistake("devices", "cpu, cuda or cuda:N each", repr(name))) from error
        if device.type != defense_device.type:
            remedy = f"Move the defence first: defense.to({str(device)!r})"
            raise ValueError(
                mistake("devices", f"{defense_device.type} like the defence's", repr(name), remedy)
            )
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ValueError(
                mistake("devices", f"among the {torch.cuda.device_count()} that torch sees", repr(name))
            )
        names.append(str(device))
    return tuple(names)


def process_blocks(
    devices: Sequence[str],
) -> Callable[[Worker, list[list[int]], Callable[[int, int], None]], Iterator[Block]]:
    """The engine with one process for each of ``devices``, which may name one several times."""

    def run(worker: Worker, todo: list[list[int]], tick: Callable[[int, int], None]) -> Iterator[Block]:
        if todo:
            yield from _Pool(worker, devices[: len(todo)], tick).run(todo)

    return run


@final
@dataclass
class _Child:
    """A process, what it is called, and the block it has; ``iteration`` is how far the attack on it is."""

    process: Any
    pipe: Connection
    device: str
    number: int
    block: list[int] | None = None
    iteration: int = -1
    ready: bool = False

    def __str__(self) -> str:
        return f"process {self.number} (pid {self.process.pid}, {self.device})"


class _Pool:
    def __init__(self, worker: Worker, devices: Sequence[str], tick: Callable[[int, int], None]) -> None:
        self.worker, self.devices, self.tick = worker, devices, tick
        self.payload, self.numerics = _packed(worker), numerics()
        # What a process prints and how it is stopped is the caller's business; fork would share CUDA's state.
        self.context = multiprocessing.get_context("spawn")
        self.children: list[_Child] = []

    def run(self, todo: list[list[int]]) -> Iterator[Block]:
        waiting, losses = list(reversed(todo)), dict.fromkeys((tuple(block) for block in todo), 0)
        try:
            for number, device in enumerate(self.devices, 1):
                self.children.append(self._start(number, device))
            while waiting or any(child.block for child in self.children):
                self._hand_out(waiting)
                pipes = {child.pipe: child for child in self.children}
                for pipe in wait(list(pipes)):
                    child = pipes[pipe]  # type: ignore[index]
                    try:
                        kind, content = child.pipe.recv()
                    except (EOFError, OSError):
                        waiting += self._lost(child, losses)
                    else:
                        yield from self._heard(child, kind, content)
        finally:
            self._end()

    def _hand_out(self, waiting: list[list[int]]) -> None:
        for child in self.children:
            if waiting and child.ready and child.block is None:
                child.block, child.iteration = waiting.pop(), -1
                with suppress(OSError):  # it is gone, as its end of the pipe will say
                    child.pipe.send(child.block)

    def _heard(self, child: _Child, kind: str, content: Any) -> list[Block]:
        if kind == "ready":
            child.ready = True
        elif kind == "iteration":
            child.iteration = content
            busy = [(len(other.block), other.iteration + 1) for other in self.children if other.block]
            images = sum(n for n, _ in busy)
            # One number for all that are at work: as if they were one block.
            self.tick(images, round(sum(n * done for n, done in busy) / images) - 1)
        elif kind == "error":
            error, text = content
            raise error from _Elsewhere(f"{child}:\n{text}")
        else:
            blocks, limit = content
            self.worker.limit = min(self.worker.limit, limit)
            child.block = None
            return list(blocks)
        return []

    def _lost(self, child: _Child, losses: dict[tuple[int, ...], int]) -> list[list[int]]:
        """What a process that is gone had to do. Another one takes its place, unless that happened before."""
        child.process.join()
        how = f"{child} {_ended(child.process.exitcode)}"
        block = child.block
        key = tuple(block or ())
        losses[key] = losses.get(key, 0) + 1
        if losses[key] > MAX_LOSSES:
            what = f"while it computed the images at positions {key[0]}..{key[-1]}" if key else "at its start"
            remedy = "try a smaller batch_size" if key else "see what it said above"
            raise EngineUnavailable(
                f"{how} {what}, as another one before it. Finished blocks are safe; {remedy}"
            )
        warnings.warn(f"{how}; another one does its images again", RuntimeWarning, stacklevel=2)
        child.pipe.close()
        self.children[self.children.index(child)] = self._start(child.number, child.device)
        return [block] if block else []

    def _start(self, number: int, device: str) -> _Child:
        ours, theirs = self.context.Pipe()
        arguments = (theirs, self.payload, device, share(len(self.devices)), self.numerics)
        process = self.context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        return _Child(process, ours, device, number)

    def _end(self) -> None:
        for child in self.children:  # before the pipes are closed, which they would complain of
            child.process.terminate()
        for child in self.children:
            child.process.join(GRACE)
            if child.process.is_alive():
                child.process.kill()
                child.process.join()
            child.pipe.close()


class _Elsewhere(Exception):
    """The traceback of an error in another process."""


def _packed(worker: Worker) -> bytes:
    buffer = io.BytesIO()
    try:
        torch.save(worker, buffer)
    except (pickle.PicklingError, AttributeError, TypeError, RuntimeError) as error:
        remedy = "Define its modules at the top of a file and not inside a function, or leave `devices` away"
        expected = "one that can be sent to other processes"
        raise ValueError(mistake("defense", expected, f"an error of pickle: {error}", remedy)) from error
    return buffer.getvalue()


def _serve(
    pipe: Connection, payload: bytes, device: str, threads: int, arithmetic: Mapping[str, Any]
) -> None:
    """What runs in a process: blocks of positions come, finished blocks go, until the pipe is closed."""
    # Ctrl-C reaches all processes of a terminal: the first one decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _end_with_parent()
    torch.set_num_threads(threads)
    set_numerics(arithmetic)
    place = torch.device(device)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    worker: Worker = torch.load(
        io.BytesIO(payload),
        map_location={f"cuda:{i}": device for i in range(torch.cuda.device_count())},
        weights_only=False,
    )
    pipe.send(("ready", None))
    while True:
        try:
            positions = pipe.recv()
        except (EOFError, OSError):
            return
        try:
            blocks = list(worker.run(positions, lambda iteration, loss: pipe.send(("iteration", iteration))))
        except Exception as error:
            pipe.send(("error", (_portable(error), traceback.format_exc())))
            return
        pipe.send(("done", (blocks, worker.limit)))


def _end_with_parent() -> None:
    """A process whose parent was killed must not compute on for nobody."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _portable(error: Exception) -> Exception:
    """``error`` if it survives the way through a pipe, otherwise one that says the same."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return EngineUnavailable(f"{type(error).__name__}: {error}")
    return error


def _ended(code: int | None) -> str:
    if code is None or code >= 0:
        return f"ended with exit status {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    by = " (the system does that where memory runs out)" if -code == getattr(signal, "SIGKILL", 9) else ""
    return f"was killed by {name}{by}"
