"""A run file holds what was written, lets one process write, and belongs to one configuration."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import RunLocked, RunMismatch
from fastpure.evaluate.record import ImageRecord, Judged, pack, unpack
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.evaluate.work import Worker
from tests.evaluate.stored import ONE, N, evaluate, record
from tests.evaluate.toys import attack, dataset, defense, run_file


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 5, 7), (0,), (1,)])
def test_arrays_are_packed_exactly(shape):
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert np.array_equal(unpack(pack(values), shape), values)
    odd = np.array([np.nan, np.inf, -0.0, 1e-45, 3.4e38], dtype=np.float32)
    assert unpack(pack(odd), (5,)).tobytes() == odd.tobytes()
    smooth = np.full(10000, 0.5, dtype=np.float32)
    assert len(pack(smooth)) < 500


def test_records_come_back_as_written(tmp_path):
    store = RunStore(tmp_path / "r.sqlite", ONE)
    store.write([record(3), record(1)], Seconds(1.0, 2.0, 3.0))
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["r.sqlite"], "no log, lock or temporary file stays"
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert run.positions.tolist() == [1, 3]
        assert [r.sha256() for r in run.records()] == [record(1).sha256(), record(3).sha256()]
        assert run.seconds()["attack"] == 2.0
        assert np.array_equal(run.images("adversarial", [3])[0], record(3).x_adv)
        assert np.array_equal(run.predicted("clean")[0], record(1).judged["clean"].predicted)
        assert np.array_equal(run.logits("adversarial")[1], record(3).judged["adversarial"].logits)
        assert np.array_equal(run.progress()[0][1], record(3).course.correct)
        assert np.array_equal(run.progress()[1][0], record(1).course.spent_at)
        assert run.spent.tolist() == [9.0, 11.0]


def test_losses_that_a_database_rounds_are_not_taken_for_damage(tmp_path):
    """Where softmax saturates, cross-entropy is -0, which SQLite stores as 0; and it keeps no payload of NaN."""
    loss = np.array([-0.0, 0.0, -np.float32(np.nan), 2.5], dtype=np.float32)
    judged = {"clean": Judged(np.arange(4), loss)}
    store = RunStore(tmp_path / "r.sqlite", ONE)
    store.write([replace(record(0), judged=judged, distance=-0.0)], Seconds())
    store.close()
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        (again,) = run.records()
    assert np.array_equal(again.judged["clean"].loss, loss, equal_nan=True)


def test_every_value_enters_the_checksum():
    base = record(5)
    changed = [
        {"position": 6},
        {"sample_id": 0},
        {"label": 0},
        {"x": base.x + 1},
        {"x_adv": None},
        {"distance": 0.6},
        {"zero_gradient": None},
        {"verdict": False},
        {"trace": base.trace[:2]},
        {"judged": {"clean": base.judged["clean"]}},
    ]
    sums = {base.sha256()}
    for change in changed:
        fields = {name: getattr(base, name) for name in base.__dataclass_fields__}
        sums.add(ImageRecord(**{**fields, **change}).sha256())
    assert len(sums) == len(changed) + 1


def test_a_record_without_what_came_later_keeps_its_checksum():
    """Literal: files on disk hold it. Logits and course enter checksums of their own."""
    whole = record(3)
    bare = {name: replace(judged, logits=None) for name, judged in whole.judged.items()}
    for one in (whole, replace(whole, judged=bare, course=None)):
        assert one.sha256().hex() == "cb4aba26a6e3fd0e4bea6c89803bd46d465b111e5be9050b99ca35865b18269d"
    assert whole.decided_sha256() != replace(whole, judged=bare).decided_sha256()


def test_a_finished_run_is_only_read(tmp_path, monkeypatch):
    path = tmp_path / "run.sqlite"
    first = evaluate(path)
    monkeypatch.setattr(Worker, "block", None)
    assert evaluate(path).digest == first.digest


def test_another_process_is_kept_out(tmp_path):
    path = tmp_path / "run.sqlite"
    store = RunStore(path, ONE)
    with pytest.raises(RunLocked, match=rf"written by another process \(process {os.getpid()} on "):
        RunStore(path, ONE)
    store.write([record(0)], Seconds())
    with fp.Run.open(path) as run:
        assert run.positions.tolist() == [0], "readers are let in, and see finished blocks"
    store.close()
    RunStore(path, ONE).close()


def test_another_configuration_is_refused_and_named(tmp_path):
    path = tmp_path / "run.sqlite"
    digest = evaluate(path).digest
    with pytest.raises(RunMismatch, match=r"attack\.settings\.eps: 0\.05 -> 0\.06"):
        fp.evaluate(defense(), dataset(N), attack(eps=0.06), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"defense\.seed: 0 -> 1"):
        fp.evaluate(defense(1), dataset(N), attack(), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"data\.checksum"):
        fp.evaluate(defense(), dataset(N, seed=1), attack(), fp.protocols.fresh(3), path, progress=False)
    with pytest.raises(RunMismatch, match=r"protocol\.draws: 3 -> 4"):
        fp.evaluate(defense(), dataset(N), attack(), fp.protocols.fresh(4), path, progress=False)
    with pytest.raises(RunMismatch, match="share"):
        evaluate(path, shard=(1, 2))
    with fp.Run.open(path) as run:
        assert run.content_digest() == digest


def test_changed_weights_are_another_configuration(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path)
    other = defense()
    other.purifier.denoiser.network.means += 0.01
    with pytest.raises(RunMismatch, match=r"defense\.denoiser\.sha256"):
        fp.evaluate(other, dataset(N), attack(), fp.protocols.fresh(3), path, progress=False)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such run file"):
        fp.Run.open(tmp_path / "none.sqlite")


def test_hand_made_runs_can_be_read_in_memory():
    run = run_file(None, [[0, 1], [0, 0]], [[1, 1], [0, 1]]).read()
    assert run.values("clean").tolist() == [0.5, 1.0]
    assert run.values("adversarial").tolist() == [0.0, 0.5]
