"""What an attack says of its way is kept beside the result: accuracy on its own draws, and what it spent."""

from __future__ import annotations

import sqlite3
from dataclasses import replace

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.evaluate.record import Course
from fastpure.evaluate.store import RunStore, Seconds
from tests.evaluate.stored import ONE, record
from tests.evaluate.toys import evaluate, telling


def test_it_is_kept_per_image_and_the_digest_does_without(tmp_path):
    path = tmp_path / "r.sqlite"
    report = evaluate(path, attack=telling())
    with fp.Run.open(path) as run:
        correct, spent_at = run.progress()
        names = run.sample_ids
        assert correct.dtype == spent_at.dtype == np.float32
        assert correct.shape == spent_at.shape == (8, 3)
        steps = np.arange(1, 4)
        expected = 1 / (1 + steps * (1 + names[:, None] % 5))
        given_up = names % 3 == 0
        assert np.allclose(correct[~given_up], expected[~given_up])
        assert np.isnan(correct[given_up, 2]).all()
        assert np.allclose(correct[given_up, :2], expected[given_up, :2])
        assert np.array_equal(np.isnan(spent_at), np.isnan(correct))
        assert spent_at[:, 0].tolist() == [2.0] * 8
        unknown = names % 7 == 0
        assert unknown.any()
        assert np.array_equal(np.isnan(run.spent), unknown)
        known = np.where(given_up, 4.5, 6.5)[~unknown]
        assert run.spent[~unknown].tolist() == known.tolist()
        for course, total in zip((r.course for r in run.records()), run.spent.tolist(), strict=True):
            assert course.spent == total or (course.spent is None and total != total)
    mean = known.mean()
    assert report.spent == pytest.approx(mean)
    assert f"spent     {mean:,.1f} gradients per image (known for {len(known)} images)" in str(report)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE progress")
    with fp.Run.open(path) as run:
        assert run.content_digest() == report.digest
        assert np.isnan(run.spent).all()
        assert "spent " not in str(fp.Report.of(run))


def test_an_attack_that_says_nothing_leaves_no_row(tmp_path):
    report = evaluate(tmp_path / "r.sqlite", attack=fp.controls.GaussianNoise())
    with sqlite3.connect(tmp_path / "r.sqlite") as connection:
        assert connection.execute("SELECT count(*) FROM progress").fetchone() == (0,)
        assert connection.execute("SELECT count(*) FROM endings").fetchone() == (0,)
    assert report.spent is None
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert run.progress()[0].shape == (8, 0)


def test_each_part_may_be_missing_and_lengths_may_differ(tmp_path):
    one = np.array([0.5, np.nan, -0.0], np.float32)
    courses = [Course(one, None, None), Course(None, one[:2], 3.0), Course(None, None, 0.0), None]
    store = RunStore(tmp_path / "r.sqlite", ONE)
    store.write([replace(record(i), course=course) for i, course in enumerate(courses)], Seconds())
    store.close()
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        correct, spent_at = run.progress()
        assert np.array_equal(correct[0], one, equal_nan=True)
        assert np.array_equal(spent_at[1], [0.5, np.nan, np.nan], equal_nan=True)
        assert np.isnan(correct[1:]).all()
        assert np.array_equal(run.spent, [np.nan, 3.0, 0.0, np.nan], equal_nan=True)
        assert [r.course is None for r in run.records()] == [False, False, False, True]
    with pytest.raises(ValueError, match="`spent_at` must be of as many rows as correct"):
        Course(one, one[:2])


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE progress SET spent = spent + 1e-9 WHERE position = 3",
        "UPDATE progress SET spent = NULL WHERE position = 3",
        "UPDATE progress SET correct = spent_at WHERE position = 3",
        "UPDATE progress SET spent_at = NULL WHERE position = 3",
        "UPDATE progress SET n = 2 WHERE position = 3",
        "UPDATE progress SET n = 1000000000 WHERE position = 3",
        "UPDATE progress SET spent = 'much' WHERE position = 3",
        "UPDATE progress SET position = 300 WHERE position = 3",
        "UPDATE progress SET sha256 = zeroblob(32) WHERE position = 3",
        "ALTER TABLE progress RENAME TO progresr",
    ],
)
def test_a_damaged_course_is_found(tmp_path, change):
    path = tmp_path / "r.sqlite"
    evaluate(path, attack=telling())
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    with pytest.raises(RunDamaged):
        fp.Run.open(path)


@pytest.mark.parametrize(
    "change",
    [
        """UPDATE endings SET remarks = '["another end"]' WHERE position = 1""",
        "UPDATE endings SET remarks = '[]' WHERE position = 1",
        "UPDATE endings SET sha256 = zeroblob(32) WHERE position = 1",
        "UPDATE endings SET position = 300 WHERE position = 1",
        "UPDATE endings SET remarks = 'no list' WHERE position = 1",
    ],
)
def test_why_it_ended_is_kept_and_a_change_is_noticed(tmp_path, change):
    path = tmp_path / "r.sqlite"
    store = RunStore(path, ONE)
    endings = [("the budget is spent",), ("the budget is spent",), ("enough", "detached left out"), ()]
    store.write([replace(record(i), ending=said) for i, said in enumerate(endings)], Seconds())
    store.close()
    with fp.Run.open(path) as run:
        assert run.endings == {("the budget is spent",): 2, ("enough", "detached left out"): 1}
        assert [r.ending for r in run.records()] == endings
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    with pytest.raises(RunDamaged):
        fp.Run.open(path)
