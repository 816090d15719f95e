"""`evaluate` where memory ends or somebody interrupts; what it shows meanwhile."""

from __future__ import annotations

import dataclasses
import io
import signal

import pytest
import torch

import fastpure as fp
from fastpure.errors import OutOfMemory, RunInterrupted
from fastpure.evaluate.progress import EvaluationProgress
from fastpure.evaluate.store import RunStore
from fastpure.evaluate.work import Worker, even
from tests.evaluate.toys import attack, evaluate, run_file

OUT_OF_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you ..."
    ),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_a_block_that_does_not_fit_is_halved_and_the_result_stays(tmp_path, monkeypatch, error):
    expected = evaluate(batch_size=8).digest
    sizes, block = [], Worker.block

    def small(self, positions, tick):
        sizes.append(len(positions))
        if len(positions) > 2:
            raise error
        return block(self, positions, tick)

    monkeypatch.setattr(Worker, "block", small)
    report = evaluate(tmp_path / "r.sqlite", batch_size=8)
    assert sizes == [8, 4, 2, 2, 2, 2], "what did not fit once is not tried again"
    assert report.digest == expected


def test_rows_are_halved_when_a_single_image_does_not_fit(monkeypatch):
    expected = evaluate().digest
    block, rows = Worker.block, []

    def small(self, positions, tick):
        rows.append(self.rows)
        if self.rows > 2 or len(positions) > 1:
            raise MemoryError
        return block(self, positions, tick)

    monkeypatch.setattr(Worker, "block", small)
    assert evaluate().digest == expected
    assert rows[-1] == 2


@pytest.mark.parametrize(
    ("total", "rows", "expected"), [(260, 256, 130), (256, 256, 256), (5, 64, 5), (1, 1, 1), (7, 3, 3)]
)
def test_rows_are_cut_evenly(total, rows, expected):
    assert even(total, rows) == expected


def test_no_memory_at_all_is_said(tmp_path, monkeypatch):
    def never(self, positions, tick):
        raise MemoryError("nothing left")

    monkeypatch.setattr(Worker, "block", never)
    with pytest.raises(OutOfMemory, match="not even one image"):
        evaluate(tmp_path / "r.sqlite")


def test_other_errors_are_not_taken_for_memory(monkeypatch):
    def wrong(self, positions, tick):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Worker, "block", wrong)
    with pytest.raises(RuntimeError, match="shapes"):
        evaluate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_the_finished_blocks_and_says_how_to_go_on(tmp_path, monkeypatch, number, ctrl_c):
    path, block, count = tmp_path / "r.sqlite", Worker.block, [0]

    def interrupted(self, positions, tick):
        count[0] += 1
        if count[0] == 2:
            signal.raise_signal(number)
        return block(self, positions, tick)

    with monkeypatch.context() as patch:
        patch.setattr(Worker, "block", interrupted)
        with pytest.raises(
            RunInterrupted, match=r"stopped with 4 of 8 images finished, all of them in .*r\.sqlite"
        ):
            evaluate(path)
    assert not list(tmp_path.glob("*.lock"))
    assert evaluate(path).digest == evaluate().digest


def test_iterations_for_the_progress_bar():
    assert attack(n_iter=7).iterations() == 7
    assert fp.attacks.APGDCE(n_iter=5, n_restarts=3).iterations() == 15
    assert fp.controls.GaussianNoise().iterations() == 0
    both = fp.attacks.AutoAttack(
        version="custom", attacks=("apgd-ce", "apgd-t"), n_iter=5, n_target_classes=4
    )
    assert both.iterations() == 5 + 20


def test_progress_shows_images_iterations_accuracy_and_time_left():
    stream = io.StringIO()
    run = run_file(None, [[0, 1], [0, 0]], [[1, 1], [0, 1]]).read()
    bar = EvaluationProgress(run, 10, 4, stream=stream, pause=0.0)
    bar.tick(4, 1)
    line = stream.getvalue()
    assert line.startswith("4.0/10 images  robust 25.0 % ["), line
    assert " left  " in line
    assert line.rstrip().endswith("iteration 2")
    bar.finished(list(run.records()))
    assert "4.0/10 images" in stream.getvalue().splitlines()[-1]


def test_a_report_tells_an_unfinished_run():
    store = run_file(None, [[0, 1], [0, 0]], [[1, 1], [0, 1]])
    whole = fp.Report.of(store.read())
    assert whole.n_images == whole.n_total == 2
    half = dataclasses.replace(whole, n_total=4)
    assert "(UNFINISHED: 2 of 4)" in str(half)
    assert "UNFINISHED" not in str(whole)
    assert isinstance(store, RunStore)
