"""`evaluate`: what it measures is what it says; memory, interrupts, shards and mistakes."""

from __future__ import annotations

import dataclasses
import io
import signal
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.errors import MissingExtra, OutOfMemory, RunInterrupted, RunMismatch, StoreUnavailable
from fastpure.evaluate import merge
from fastpure.evaluate.judging import even
from fastpure.evaluate.progress import Progress
from fastpure.evaluate.protocol import FIRST_DRAW
from fastpure.evaluate.runner import iterations
from fastpure.evaluate.shards import blocks, parse_shard, share
from fastpure.evaluate.store import RunStore
from fastpure.evaluate.work import Worker
from fastpure.kernels import Domain
from tests.evaluate.toys import Brightness, attack, dataset, defense, run_file

FRESH = fp.protocols.fresh(3)


def evaluate(out=None, protocol=FRESH, n=8, **settings):
    settings = {"batch_size": 4, "progress": False, **settings}
    return fp.evaluate(defense(), dataset(n), attack(), protocol, out, **settings)


def test_records_are_those_of_the_defence_on_its_evaluation_draws(tmp_path):
    path = tmp_path / "run.sqlite"
    report = evaluate(path)
    data, target = dataset(8), defense()
    with fp.Run.open(path) as run:
        x_adv = torch.from_numpy(run.images("adversarial"))
        assert np.array_equal(run.images("clean"), data.images.numpy())
        for which, x in (("clean", data.images), ("adversarial", x_adv)):
            for draw in range(3):
                logits = target(x, data.sample_ids, FIRST_DRAW + draw, domain=Domain.EVALUATION)
                assert run.predicted(which)[:, draw].tolist() == logits.argmax(1).tolist()
                loss = nn.functional.cross_entropy(logits, data.labels, reduction="none")
                assert np.allclose(run.losses(which)[:, draw], loss.numpy(), atol=1e-6)
        by_hand = attack()(target, data.images, data.labels, sample_ids=data.sample_ids)
        assert torch.equal(by_hand.x_adv, x_adv)
        assert np.array_equal(run.distances, by_hand.distance.numpy())
        assert np.array_equal(run.traces().T, by_hand.losses.numpy())
        assert (run.distances <= 0.05).all()
        assert report.robust.estimate == pytest.approx(run.correct("adversarial").mean())
    assert report.robust.estimate < report.clean.estimate
    assert "fresh(3 draws)" in str(report)
    assert "PGD(" in str(report)
    assert "95 % Wilson intervals over 8 images" in str(report)


def test_a_deterministic_white_box_knows_the_noise_and_its_images_are_judged_on_fresh_noise_too():
    run_noise = fp.protocols.dw_box(draw=5, transfer_draws=4)
    data, target = dataset(8), defense()
    with target.fixed(5):
        by_hand = attack()(target, data.images, data.labels, sample_ids=data.sample_ids)
    report = fp.evaluate(target, data, attack(), run_noise, batch_size=3, progress=False)
    assert report.robust == by_hand.robust_accuracy
    assert report.clean == by_hand.clean_accuracy
    assert report.transfer is not None
    assert target.fixed_draw is None
    assert "the attacker knows the noise" in str(report)


def test_decisions_differ_between_protocols_on_the_same_images(tmp_path):
    digests = set()
    for protocol in (
        FRESH,
        fp.protocols.any_of_n(3),
        fp.protocols.majority(3),
        fp.protocols.legacy_autoattack(),
    ):
        report = evaluate(tmp_path / f"{protocol.name}.sqlite", protocol)
        digests.add(report.digest)
        assert report.protocol == str(protocol)
    assert len(digests) == 4
    with fp.Run.open(tmp_path / "fresh.sqlite") as run, fp.Run.open(tmp_path / "any_of_n.sqlite") as other:
        again = run.values("adversarial", fp.protocols.any_of_n(3))
        assert np.array_equal(again, other.values("adversarial"))
        with pytest.raises(ValueError, match="one that the records of fresh"):
            run.values("adversarial", fp.protocols.any_of_n(4))
        with pytest.raises(ValueError, match="one that the records of fresh"):
            run.values("adversarial", fp.protocols.dw_box())


def test_a_bare_classifier_is_asked_once_and_attacked(tmp_path):
    report = fp.evaluate(Brightness().eval(), dataset(8), attack(), out=tmp_path / "r.sqlite", progress=False)
    assert report.clean.estimate == 1.0
    assert report.spread is None
    assert report.defense == "none: Brightness alone"
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert run.predicted("clean").shape == (8, 1)


def test_without_attack_only_the_originals_are_judged():
    report = fp.evaluate(defense(), dataset(8), protocol=FRESH, progress=False)
    assert report.robust is None
    assert report.attack is None
    assert 0 < report.clean.estimate <= 1


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


def test_shards_make_the_whole(tmp_path):
    expected = evaluate(n=10).digest
    paths = [tmp_path / f"{i}.sqlite" for i in (1, 2, 3)]
    for i, path in enumerate(paths, 1):
        evaluate(path, n=10, batch_size=2, shard=(i, 3))
    with fp.Run.open(paths[1]) as run:
        assert run.positions.tolist() == [2, 3, 8, 9]
        assert run.share == {"index": 2, "of": 3, "unit": 2}
    out = merge(tmp_path / "all.sqlite", [paths[2], paths[0], paths[1]])
    with fp.Run.open(out) as run:
        assert run.complete
        assert run.content_digest() == expected
        assert run.seconds()["attack"] > 0
        assert fp.Report.of(run).n_images == 10
    with pytest.raises(StoreUnavailable, match="exists"):
        merge(out, paths)
    with pytest.raises(
        RunMismatch, match=r"4 of 10 images are in none of the shards \(1/3, 3/3\)|images are in none"
    ):
        merge(tmp_path / "less.sqlite", [paths[0], paths[2]])
    with pytest.raises(RunMismatch, match="overlap: both hold the image at position 0"):
        merge(tmp_path / "twice.sqlite", [paths[0], paths[0]])
    evaluate(tmp_path / "other.sqlite", fp.protocols.fresh(2), n=10, batch_size=2, shard=(2, 3))
    with pytest.raises(RunMismatch, match=r"different runs:\n  protocol\.draws: 3 -> 2"):
        merge(tmp_path / "mixed.sqlite", [paths[0], tmp_path / "other.sqlite", paths[2]])
    with pytest.raises(FileNotFoundError):
        merge(tmp_path / "none.sqlite", [tmp_path / "missing.sqlite"])
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "1.sqlite",
        "2.sqlite",
        "3.sqlite",
        "all.sqlite",
        "other.sqlite",
    ]


@pytest.mark.parametrize(("n", "batch_size", "of"), [(10, 3, 2), (7, 1, 3), (5, 8, 4), (64, 8, 1)])
def test_shards_partition_the_blocks_of_the_whole(n, batch_size, of):
    cut = [blocks(n, batch_size, share((i, of), batch_size), set()) for i in range(1, of + 1)]
    together = sorted(block for part in cut for block in part)
    assert together == blocks(n, batch_size, share(None, batch_size), set())
    assert sorted(position for block in together for position in block) == list(range(n))


def test_shards_are_written_as_one_of_n():
    assert parse_shard("2/4") == (2, 4)
    for text in ("0/4", "5/4", "1", "a/b", "1/2/3", "-1/2"):
        with pytest.raises(ValueError, match="`shard` must be"):
            parse_shard(text)


def test_iterations_for_the_progress_bar():
    assert iterations(None) == 0
    assert iterations(attack(n_iter=7)) == 7
    assert iterations(fp.attacks.APGDCE(n_iter=5, n_restarts=3)) == 15
    both = fp.attacks.AutoAttack(
        version="custom", attacks=("apgd-ce", "apgd-t"), n_iter=5, n_target_classes=4
    )
    assert iterations(both) == 5 + 20


def test_a_missing_ray_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(
        MissingExtra, match=r"engine='ray' needs the package ray: pip install 'fastpure\[ray\]'"
    ):
        evaluate(engine="ray")


@pytest.mark.parametrize(
    ("total", "rows", "expected"), [(260, 256, 130), (256, 256, 256), (5, 64, 5), (1, 1, 1), (7, 3, 3)]
)
def test_rows_are_cut_evenly(total, rows, expected):
    assert even(total, rows) == expected


class Restless(nn.Module):
    """Random without saying so."""

    def forward(self, u):
        return torch.randn(len(u), 2)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"defense": "x"}, TypeError, "`defense` must be a Defense"),
        (
            {"defense": Restless().eval()},
            ValueError,
            "`defense` must be deterministic, or a fastpure.Defense",
        ),
        ({"defense": nn.Linear(2, 2)}, ValueError, "`defense` must be in evaluation mode"),
        ({"dataset": torch.zeros(3)}, TypeError, "`dataset` must be a fastpure.data.Dataset"),
        ({"attack": "pgd"}, TypeError, "`attack` must be an Attack or None"),
        ({"protocol": "fresh"}, TypeError, "`protocol` must be a Protocol"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be an integer >= 1"),
        ({"shard": (3, 2)}, ValueError, "`shard` must be an integer in"),
        ({"engine": "slurm"}, ValueError, "`engine` must be one of 'local', 'ray'"),
    ],
)
def test_mistakes_are_named(arguments, error, words):
    given = {"defense": defense(), "dataset": dataset(2), "attack": attack(), "protocol": FRESH, **arguments}
    with pytest.raises(error, match=words):
        fp.evaluate(**given, progress=False)


def test_a_frozen_defence_does_not_pass_for_a_fresh_one():
    target = defense()
    with target.fixed(0), pytest.raises(ValueError, match="`protocol` must be dw_box for a frozen defence"):
        fp.evaluate(target, dataset(2), attack(), FRESH, progress=False)


def test_progress_shows_images_iterations_accuracy_and_time_left():
    stream = io.StringIO()
    run = run_file(None, [[0, 1], [0, 0]], [[1, 1], [0, 1]]).read()
    bar = Progress(run, 10, 4, stream=stream, pause=0.0)
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
