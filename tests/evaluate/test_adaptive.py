"""`evaluate` with an attack whose images share a budget: blocks are never cut otherwise, and what was spent is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import fastpure as fp
from fastpure.attacks import Adaptive, DiffHammer, Ensemble
from fastpure.errors import OutOfMemory, RunMismatch
from fastpure.evaluate import merge, plan
from fastpure.evaluate.described import spends_as
from fastpure.evaluate.identity import identity
from fastpure.evaluate.weakness import across
from fastpure.evaluate.work import Worker
from fastpure.report.rebuild import network_calls, rebuild_attack
from tests.evaluate.toys import FRESH, Brightness, attack, dataset, defense, evaluate

BUDGET = 30


def adaptive(**settings):
    return Adaptive(**{"eps": 0.02, "budget": BUDGET, "batch_size": 16, **settings})


class Killed(Exception):
    pass


@pytest.mark.parametrize(
    "how", [adaptive(), Ensemble((adaptive(), attack(eps=0.02)))], ids=["alone", "joined"]
)
def test_killed_between_blocks_and_continued_the_run_is_the_same(tmp_path, monkeypatch, how):
    expected = evaluate(n=10, attack=how).digest
    block, count = Worker.block, [0]

    def killed(self, positions, tick):
        count[0] += 1
        if count[0] == 2:
            raise Killed
        return block(self, positions, tick)

    monkeypatch.setattr(Worker, "block", killed)
    with pytest.raises(Killed):
        evaluate(tmp_path / "r.sqlite", n=10, attack=how)
    assert evaluate(tmp_path / "r.sqlite", n=10, attack=how).digest == expected
    assert count == [4]


def test_shards_merged_are_the_whole(tmp_path):
    expected = evaluate(tmp_path / "whole.sqlite", n=10, attack=adaptive()).digest
    paths = [tmp_path / f"{i}.sqlite" for i in (1, 2)]
    for i, path in enumerate(paths, 1):
        evaluate(path, n=10, shard=(i, 2), attack=adaptive())
    with fp.Run.open(merge(tmp_path / "all.sqlite", paths)) as merged:
        assert merged.content_digest() == expected
        with fp.Run.open(tmp_path / "whole.sqlite") as whole:
            assert np.array_equal(merged.spent, whole.spent)


def test_a_block_of_another_size_does_not_continue_a_file(tmp_path):
    path = tmp_path / "r.sqlite"
    evaluate(path, n=10, shard=(1, 2), attack=adaptive())
    with pytest.raises(RunMismatch, match=r"attack\.block: 4 -> 5\n(.|\n)*attack.block is batch_size"):
        evaluate(path, n=10, batch_size=5, shard=(1, 2), attack=adaptive())
    with pytest.raises(RunMismatch, match=r"attack\.block"):
        evaluate(path, n=10, batch_size=5, attack=Ensemble((adaptive(),)))
    # Others do not mind.
    evaluate(tmp_path / "p.sqlite", n=10)
    evaluate(tmp_path / "p.sqlite", n=10, batch_size=5)


def test_blocks_that_hold_all_images_are_the_same_block(tmp_path):
    path = tmp_path / "r.sqlite"
    first = evaluate(path, n=6, batch_size=6, attack=adaptive())
    assert evaluate(path, n=6, batch_size=64, attack=adaptive()).digest == first.digest


def test_a_whole_number_is_the_same_budget():
    data = dataset(4)
    assert identity(defense(), data, adaptive(budget=30), FRESH, 4) == identity(
        defense(), data, adaptive(budget=30.0), FRESH, 4
    )


def test_the_identity_holds_the_block_only_where_it_counts():
    data = dataset(10)
    of = {
        block: [identity(defense(), data, how, FRESH, block) for how in (adaptive(), attack(), None)]
        for block in (4, 5)
    }
    assert of[4][0] != of[5][0]
    assert of[4][0]["attack"]["block"] == 4
    assert of[4][1:] == of[5][1:]


def test_memory_that_runs_out_halves_the_rows_and_never_the_block(tmp_path, monkeypatch):
    expected = evaluate(n=8, attack=adaptive()).digest
    block, seen = Worker.block, []

    def small(self, positions, tick):
        seen.append((len(positions), self.rows))
        if self.rows > 3:
            raise MemoryError
        return block(self, positions, tick)

    monkeypatch.setattr(Worker, "block", small)
    assert evaluate(tmp_path / "r.sqlite", n=8, attack=adaptive()).digest == expected
    assert seen == [(4, 16), (4, 8), (4, 4), (4, 2), (4, 2)]
    monkeypatch.setattr(Worker, "block", lambda *_: (_ for _ in ()).throw(MemoryError("gone")))
    with pytest.raises(OutOfMemory, match="gone") as said:
        evaluate(n=8, attack=adaptive())
    assert "smaller batch_size" in str(said.value), "here fewer images at a time would help, as another run"


def test_what_was_spent_is_kept_and_is_what_the_attack_said(tmp_path):
    path, data = tmp_path / "r.sqlite", dataset(4)
    report = evaluate(path, n=4, attack=adaptive())
    by_hand = adaptive()(defense(), data.images, data.labels, sample_ids=data.sample_ids)
    with fp.Run.open(path) as run:
        assert np.array_equal(run.spent, by_hand.spent.numpy())
        assert np.array_equal(run.images("adversarial"), by_hand.x_adv.numpy())
        assert run.spent.mean() <= BUDGET
        assert by_hand.stopped
        assert run.endings == {(by_hand.stopped, *by_hand.own_notes): 4}
        assert f"ended     {by_hand.stopped}" in str(report)
        correct, spent_at = run.progress()
        assert correct.shape == spent_at.shape
        assert np.isfinite(correct[:, 0]).all()


@pytest.mark.parametrize("target", [defense(), Brightness().eval()], ids=["defence", "classifier"])
def test_a_plan_shows_the_budget(target):
    found = plan(target, dataset(6), adaptive(), FRESH)
    assert found.gradients == BUDGET
    assert f"at most {BUDGET} gradients" in str(found)
    assert found.network_calls == 6 * found.calls * (2 * BUDGET + found.judgements)


def test_a_plan_counts_it_in_an_ensemble():
    members = (adaptive(), attack(eps=0.02))
    found = plan(defense(), dataset(6), Ensemble(members, choosing_draws=7), FRESH)
    alone = [plan(defense(), dataset(6), member, FRESH) for member in members]
    assert found.gradients == sum(one.gradients for one in alone) > BUDGET
    verdicts = alone[0].judgements
    # The images themselves and two candidates are compared; each plan judges once more for the verdict.
    assert found.judgements == sum(one.judgements for one in alone) - verdicts + 3 * 7


@pytest.mark.parametrize(
    "how", [adaptive(), DiffHammer(eps=0.05, n_iter=3, eot_iter=3)], ids=lambda how: type(how).__name__
)
def test_a_run_file_leads_back_to_the_attack_and_to_what_it_cost(tmp_path, how):
    path = tmp_path / "r.sqlite"
    evaluate(path, n=4, attack=how)
    with fp.Run.open(path) as run:
        described = run.identity["attack"]
        # How many rows a call has is no part of a run; how many draws decide, the protocol says.
        same = {"batch_size": how.batch_size, "eval_draws": how.eval_draws}
        assert described["settings"]["eval_draws"] == (FRESH.draws if how.shares else how.eval_draws)
        assert replace(rebuild_attack(described), **same) == how
        assert replace(spends_as(described), **same) == how
        judged, total = 2 * 4 * 3, float(run.spent.sum())
        assert network_calls(run.identity, FRESH, judged, 4, total) == round(2 * (judged + 2 * total))
        most = network_calls(run.identity, FRESH, judged, 4)
        assert most is not None
        assert most >= round(2 * (judged + 2 * total))
        report = fp.Report.of(run)
    assert report.robust is not None


def test_two_runs_are_compared_wherever_their_images_were_attacked_together(tmp_path):
    evaluate(tmp_path / "a.sqlite", n=8, attack=adaptive())
    evaluate(tmp_path / "b.sqlite", n=8, batch_size=8, attack=adaptive())
    evaluate(tmp_path / "c.sqlite", n=8, attack=attack(eps=0.02))
    opened = [fp.Run.open(tmp_path / f"{name}.sqlite") for name in "abc"]
    names = {finding.name for finding in across(opened)}
    for run in opened:
        run.close()
    assert not [name for name in names if "against exact" in name], "it differentiates what is deployed"
