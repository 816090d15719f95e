"""What a run file says of its own attack, and what runs that differ in one thing say of each other."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.evaluate import across
from fastpure.evaluate.store import RunStore
from fastpure.evaluate.weakness import findings, warnings
from tests.evaluate.stored import evaluate
from tests.evaluate.toys import attack, dataset, defense, run_file


def named(found, name):
    (one,) = [finding for finding in found if finding.name == name]
    return one


def test_a_weak_evaluation_is_printed_as_one(tmp_path):
    report = evaluate(tmp_path / "r.sqlite", fp.protocols.fresh(3))
    alarms = {warning.name for warning in report.warnings}
    assert {"iterations", "evaluation draws", "images"} <= alarms
    for name in alarms:
        assert f"WARNING   {name}: " in str(report)
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert {warning.name for warning in warnings(run)} == alarms


def test_an_attack_and_an_evaluation_see_the_same():
    data, made = dataset(12), attack(n_iter=12, eot_iter=4, eval_draws=6)
    report = fp.evaluate(defense(), data, made, fp.protocols.fresh(6), progress=False)
    alone = made(defense(), data.images, data.labels, sample_ids=data.sample_ids)
    measured = ("draws per gradient", "last noise", "zero gradients")
    for name in measured:
        assert named(report.findings, name).value == pytest.approx(
            named(alone.findings, name).value, rel=1e-4
        )
    assert {f.name for f in report.findings} == {f.name for f in alone.findings}


def test_agreement_is_kept_per_image_and_the_digest_does_without(tmp_path):
    path = tmp_path / "r.sqlite"
    digest = evaluate(path).digest
    with fp.Run.open(path) as run:
        assert np.isfinite(run.agreements).all()
        assert [r.agreement for r in run.records()] == run.agreements.tolist()
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE agreements")
    with fp.Run.open(path) as run:
        assert np.isnan(run.agreements).all()
        assert run.content_digest() == digest
        assert "not recorded" in str(named(findings(run), "draws per gradient"))


def test_a_file_of_an_older_version_is_continued(tmp_path):
    """Such a file has no table of agreements; it gets one, and the images it had stay without."""
    path, whole = tmp_path / "old.sqlite", evaluate(tmp_path / "whole.sqlite")
    half = RunStore.write
    calls = []

    def stop(self, *arguments):
        calls.append(1)
        if len(calls) > 2:
            raise KeyboardInterrupt
        half(self, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(path)
    with sqlite3.connect(path) as connection:
        connection.execute("DROP TABLE agreements")
    assert evaluate(path).digest == whole.digest
    with fp.Run.open(path) as run:
        assert np.isnan(run.agreements[:4]).all()
        assert np.isfinite(run.agreements[4:]).all()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE agreements SET value = value + 1e-9 WHERE position = 3",
        "UPDATE agreements SET position = 300 WHERE position = 3",
        "UPDATE agreements SET sha256 = zeroblob(32) WHERE position = 3",
        "ALTER TABLE agreements RENAME TO agreementt",
    ],
)
def test_a_damaged_agreement_is_found(tmp_path, change):
    path = tmp_path / "r.sqlite"
    evaluate(path)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    with pytest.raises(RunDamaged):
        fp.Run.open(path)


def test_shards_keep_it(tmp_path):
    parts = [tmp_path / f"{i}.sqlite" for i in (1, 2)]
    for i, path in enumerate(parts, 1):
        evaluate(path, shard=(i, 2))
    evaluate(tmp_path / "whole.sqlite")
    with (
        fp.Run.open(fp.merge(tmp_path / "all.sqlite", parts)) as merged,
        fp.Run.open(tmp_path / "whole.sqlite") as run,
    ):
        assert np.array_equal(merged.agreements, run.agreements)


def test_a_stored_run_knows_the_noise_its_method_leaves():
    clean = np.zeros((4, 6))
    few = named(findings(run_file(None, clean).read()), "last noise")
    assert few.value == pytest.approx(np.sqrt((0.1 + 0.01 * 19.9) * 0.01) / 2, rel=1e-3)
    report = fp.evaluate(defense().classifier, dataset(4), progress=False)
    assert "not known" in str(named(report.findings, "last noise"))


def test_members_that_do_not_exist_are_named_in_the_report():
    made = fp.attacks.AutoAttack(
        eps=0.05, version="rand", n_iter=2, eot_iter=2, eval_draws=2, decision_draws=2
    )
    report = fp.evaluate(defense(), dataset(4), made, fp.protocols.fresh(2), progress=False)
    assert "NOTE      apgd-dlr is left out: its loss needs 3 classes, and there are 2" in str(report)


def test_one_draw_of_a_purifier_is_taken_to_be_random():
    clean = np.zeros((200, 1))
    one = run_file(None, clean, clean, attack=attack(n_iter=20)).read()
    assert named(findings(one), "evaluation draws").alarm
    known = run_file(None, clean, clean, attack=attack(n_iter=20), protocol=fp.protocols.dw_box()).read()
    assert not named(findings(known), "evaluation draws").alarm
    assert not named(findings(known), "draws per gradient").alarm


def seeds(*broken, draws=1, n=60):
    """Runs of seeds 0, 1, ... whose attack broke these images."""
    for seed, images in enumerate(broken):
        predicted = np.zeros((n, draws))
        predicted[list(images)] = 1
        yield run_file(None, np.zeros((n, draws)), predicted, attack=attack(seed=seed)).read()


def test_starts_that_find_different_images_are_an_alarm():
    found = named(across(list(seeds(range(20), range(10, 30)))), "restarts")
    assert found.alarm
    assert found.value == pytest.approx(-10 / 60)
    assert "n_restarts" in str(found)
    assert not named(across(list(seeds(range(20), range(19)))), "restarts").alarm
    assert not [f for f in across(list(seeds(range(20)))) if f.name == "restarts"]


def test_a_minimum_over_noise_is_no_alarm():
    """Five seeds of one attack on a random defence: each image's best draw count is lower by chance alone."""
    random = np.random.default_rng(0)
    chance = random.random((200, 1))
    made = []
    for seed in range(5):
        predicted = (random.random((200, 10)) > chance).astype(int)
        made.append(run_file(None, np.zeros((200, 10)), predicted, attack=attack(seed=seed)).read())
    naive = np.stack([run.values("adversarial") for run in made]).min(0).mean()
    assert naive < made[0].values("adversarial").mean() - 0.1, "what a naive minimum would claim"
    assert not named(across(made), "restarts").alarm
