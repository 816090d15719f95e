"""Executors are values: named, given ready made, shared, and one more is a class and a line."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch

import fastpure as fp
from fastpure import reverse
from fastpure.errors import KernelUnavailable
from fastpure.reverse import EagerExecutor, EagerRows, Execution, Executor, Graphs, executor_for
from tests.reverse.capturing import both, images, same
from tests.reverse.toys import toy_denoiser

METHOD = fp.methods.coup_unguided(t=0.1, dt=0.05)
CPU = torch.device("cpu")
ASKED_FOR = Execution("counting", "asked for")


@dataclass(frozen=True)
class Counting(Executor):
    """Eager rows, counted by batch."""

    manner: ClassVar[str] = "batches are counted"
    execution: Execution = ASKED_FOR
    insist: bool = True
    sizes: list[int] = field(default_factory=list)

    @classmethod
    def reason_against(cls, device):
        return None if device is None or device.type == "cpu" else f"nobody counts on {device}"

    def rows(self, process, x, context, noise):
        self.sizes.append(len(x))
        return EagerRows(process, context, noise)


def test_one_more_executor_is_a_class_and_a_line(monkeypatch):
    monkeypatch.setitem(reverse.EXECUTORS, "counting", Counting)
    purifier = fp.Purifier(toy_denoiser(torch.float32), METHOD, backend="counting")
    purifier(images(3, CPU))
    assert purifier.executor.sizes == [3]
    assert str(purifier.execution) == "counting (asked for)"
    assert executor_for("auto", CPU).execution.backend == "eager", "behind 'eager' in the table: only by name"
    with pytest.raises(
        KernelUnavailable, match="backend='counting' was asked for, but nobody counts on cuda"
    ):
        executor_for("counting", torch.device("cuda"))


def test_auto_takes_the_first_that_serves_and_says_why(monkeypatch):
    others = dict(reverse.EXECUTORS)
    monkeypatch.setattr(reverse, "EXECUTORS", {"graph": Graphs, "counting": Counting, "eager": EagerExecutor})
    chosen = executor_for("auto", CPU).execution
    assert chosen.backend == "counting"
    assert "graphs need a CUDA device" in chosen.reason
    monkeypatch.setattr(reverse, "EXECUTORS", {"counting": Counting, **others})
    assert str(executor_for("auto", CPU).execution) == "counting (batches are counted on cpu)"


def test_an_executor_may_be_given_and_shared():
    counting, denoiser, x = Counting(), toy_denoiser(torch.float32), images(2, CPU)
    purifier = fp.Purifier(denoiser, METHOD, seed=7, backend=counting)
    assert same(both(purifier, x), both(fp.Purifier(denoiser, METHOD, seed=7, backend="eager"), x))
    assert counting.sizes == [2, 2], "one walk and one adjoint"
    purifier.with_method(METHOD)(x)
    assert counting.sizes == [2, 2, 2]


def test_a_given_executor_that_cannot_serve_is_refused(monkeypatch):
    denoiser = toy_denoiser(torch.float32)
    with pytest.raises(
        KernelUnavailable, match=r"was given, but graphs need a CUDA device.*Use backend='auto'"
    ):
        fp.Purifier(denoiser, METHOD, backend=Graphs())(images(1, CPU))
    procedure = fp.methods.vp_sde(strength=0.01)
    with pytest.raises(KernelUnavailable, match="a rule of its own"):
        fp.Purifier(denoiser, procedure, backend=Counting())(images(1, CPU))
    fp.Purifier(denoiser, procedure, backend=EagerExecutor())(images(1, CPU))
