"""Threads sleep while the process shares its cores, and spin again afterwards; played out on a clock of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from fastpure import neighbours, openmp
from fastpure.neighbours import CALM, CROWDED, PATIENCE, PERIOD, Watcher


class Stop(Exception):
    """The story is over."""


class Machine:
    """Switches at a rate of its own in every period; ``log`` says when a crowd came and went."""

    def __init__(self, rates: list[float]) -> None:
        self.rates, self.now, self.count, self.log = list(rates), 0.0, 0.0, []  # type: ignore[var-annotated]
        self.watcher = Watcher(lambda: int(self.count), self.crowd, self.pause, lambda: self.now)
        self.watcher._users = 1

    def pause(self, seconds: float) -> None:
        if not self.rates:
            self.watcher._users, self.watcher._left = 0, self.now - PATIENCE
            return
        self.now += seconds
        self.count += self.rates.pop(0) * seconds

    def crowd(self) -> Any:
        self.log.append("came")
        return self

    def leave(self) -> None:
        self.log.append("left")


def periods(seconds: float) -> int:
    return round(seconds / PERIOD)


BUSY = 2 * CROWDED


@pytest.mark.parametrize(
    ("rates", "log"),
    [
        ([0.0] * 50, []),
        ([CALM] * 50, []),
        ([BUSY], ["came", "left"]),
        ([BUSY] * 50, ["came", "left"]),
        ([BUSY, *[0.0] * (periods(PATIENCE) + 2), *[BUSY] * 3], ["came", "left"] * 2),
        # A short silence is none.
        ([BUSY, *[0.0] * (periods(PATIENCE) // 2), *[BUSY] * 3], ["came", "left"]),
    ],
    ids=["idle", "a little", "at once", "long", "twice", "silence"],
)
def test_the_crowd_comes_and_goes(rates, log):
    machine = Machine(rates)
    machine.watcher.run()
    assert machine.log == log


def test_the_watcher_ends_some_time_after_its_last_user():
    machine = Machine([])
    machine.watcher._users = 0
    machine.now = PATIENCE / 2
    steps = []
    machine.watcher._pause = lambda seconds: (steps.append(seconds), setattr(machine, "now", PATIENCE))
    machine.watcher._thread = threading.current_thread()
    machine.watcher.run()
    assert steps == [PERIOD]
    assert not machine.watcher.running


def test_users_in_users_share_one_thread():
    go = threading.Event()
    watcher = Watcher(lambda: 0, lambda: pytest.fail("a crowd"), lambda seconds: go.wait() and None)
    with watcher.watching():
        thread = watcher._thread
        with watcher.watching():
            assert watcher._thread is thread
        assert watcher._users == 1
        with pytest.raises(KeyError), watcher.watching():
            raise KeyError
        assert watcher._users == 1
    watcher._left -= 2 * PATIENCE
    go.set()
    assert thread is not None
    thread.join()
    assert not watcher.running


def test_no_thread_to_be_had(monkeypatch):
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    watcher = Watcher(lambda: 0, lambda: pytest.fail("a crowd"))
    with watcher.watching():
        assert not watcher.running


def test_a_user_who_said_how_threads_wait_is_left_alone(monkeypatch):
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    monkeypatch.setattr(neighbours, "_known", False)
    monkeypatch.setattr(neighbours, "_watcher", None)
    with neighbours.watched():
        assert neighbours._watcher is None
    assert neighbours.effect() == "left as the user set it"
    monkeypatch.setattr(neighbours, "_known", False)


@pytest.mark.skipif(openmp.gnu_runtime() is None, reason="torch does not use GNU's OpenMP runtime here")
def test_a_crowd_leaves_results_and_numbers_alone():
    import torch

    x = torch.arange(1 << 20, dtype=torch.float32)
    before, expected = torch.get_num_threads(), x.exp().sum()
    crowd = openmp.Crowd(openmp.gnu_runtime())
    try:
        assert torch.get_num_threads() == before
        assert torch.equal(x.exp().sum(), expected)
    finally:
        crowd.leave()
    assert not crowd._thread.is_alive()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_child_starts_anew():
    code = (
        "import os, sys, time\n"
        "from fastpure import neighbours as n\n"
        "with n.watched():\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        os._exit(0 if n._watcher is None and not n._known else 1)\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
