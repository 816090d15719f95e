"""Decisions by averaged logits and softmax: against tables worked out by hand, and from the logits in run files."""

from __future__ import annotations

import io
import math
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.evaluate import schema
from fastpure.evaluate.identity import identity
from fastpure.evaluate.plan import plan
from fastpure.evaluate.progress import EvaluationProgress
from fastpure.evaluate.protocol import FIRST_DRAW, Protocol, average, fresh, majority
from fastpure.evaluate.record import INPUTS
from fastpure.evaluate.store import RunStore
from fastpure.kernels import Domain
from fastpure.purify import look_through
from tests.evaluate.toys import SHAPE, attack, dataset, defense, evaluate, run_file

inf, nan = math.inf, math.nan
# Logits of five draws for the true class 0, of two rivals, and (mean, majority, logits, softmax) by hand.
LOUD = [
    [20, 0, 0],
    [20, 0, 0],
    [0, 5, 0],
    [0, 5, 0],
    [0, 5, 0],
]  # two loud right draws, three clear wrong ones
SHOUTED = [[5, 0, 0], [5, 0, 0], [5, 0, 0], [0, 20, 0], [0, 20, 0]]  # three clear right, two loud wrong
UNSURE = [[20, 0, 0], [20, 0, 0], [0, 0.5, 0], [0, 0.5, 0], [0, 0.5, 0]]  # two loud right, three unsure wrong
OUTVOTED = [[5, 0, 0], [5, 0, 0], [0, 0.2, 0], [0, 0.2, 0], [0, 20, 0]]  # two clear right, one loud wrong
TABLE = np.array([LOUD, SHOUTED, UNSURE, OUTVOTED], dtype=np.float32)
EXPECTED = {
    fresh(5): [0.4, 0.6, 0.4, 0.4],
    majority(5): [0, 1, 0, 0],
    average(5, "logits"): [1, 0, 1, 0],
    average(5, "softmax"): [0, 1, 1, 1],
}
Y = np.zeros(4, dtype=np.int64)


def made(path: Path | None = None, **settings) -> RunStore:
    predicted = TABLE.argmax(2)
    return run_file(path, predicted, predicted, logits=TABLE, **settings)


def test_four_rules_give_four_answers():
    run = made().read()
    for protocol, expected in EXPECTED.items():
        for which in ("clean", "adversarial"):
            assert run.values(which, protocol) == pytest.approx(expected), protocol
    assert len({sum(values) for values in EXPECTED.values()}) == 4
    for first in (1, 2, 3):  # a smaller number takes the first draws
        expected = TABLE[:, :first].astype(float).sum(1).argmax(1) == 0
        assert run.values("adversarial", average(first)).tolist() == expected.tolist()


def test_a_tie_is_wrong_and_so_is_an_answer_that_is_none():
    def values(rows, of="logits"):
        logits = np.array([rows], dtype=np.float32)
        return average(len(rows), of).clean_values(np.zeros((1, 0)), np.zeros(1, np.int64), logits)[0]

    for of in ("logits", "softmax"):
        assert values([[1, 0, 0], [0, 1, 0]], of) == 0, "two classes share the highest mean"
        assert values([[1, 0, 0], [1, 1, 0]], of) == 1
        assert values([[9, 0, 0], [9, nan, 0], [9, 0, 0]], of) == 0
        assert values([[9, 0, 0], [nan, 0, 0]], of) == 0
        assert values([[inf, 0, 0], [0, 1, 0]], of) == 1
        assert values([[inf, 0, 0], [0, inf, 0]], of) == 0
        assert values([[3, -inf, 0], [3, 0, -inf]], of) == 1
        assert values([[3e38, 0, 0], [3e38, 0, 0]], of) == 1, "the sum of two does not fit into float32"
    assert values([[inf, 0, 0], [-inf, 1, 0]]) == 0, "infinity minus infinity"


def test_the_order_of_the_draws_does_not_matter():
    rng = np.random.default_rng(0)
    logits = (8 * rng.normal(size=(500, 7, 3))).astype(np.float32)
    y, nobody = rng.integers(0, 3, 500), np.zeros((500, 0))
    for of in ("logits", "softmax"):
        mean = torch.from_numpy(logits).double()
        mean = (mean if of == "logits" else mean.softmax(2)).mean(1)
        values = average(7, of).clean_values(nobody, y, logits)
        assert values.tolist() == (mean.argmax(1).numpy() == y).tolist()
        assert np.array_equal(values, average(7, of).clean_values(nobody, y, logits[:, ::-1]))
        assert 0 < values.mean() < 1


def test_other_protocols_keep_their_names_and_fields():
    for made_before in (fresh(10), majority(11), fp.protocols.dw_box(), fp.protocols.legacy_autoattack()):
        assert "of" not in made_before.to_dict()
    assert average(10).to_dict()["of"] == "logits"
    assert average(10, "softmax").hash != average(10).hash
    assert str(average(10, "softmax")) == "average(softmax of 10 draws)"
    assert fp.protocols.make("average", 4, of="softmax") == average(4, "softmax")
    for call, words in (
        (lambda: average(10, "votes"), "`of` must be one of 'logits', 'softmax'"),
        (lambda: Protocol("x", "average", 3), "`of` must be one of 'logits'"),
        (lambda: Protocol("x", "mean", 3, of="logits"), "`of` must be left out for the rule 'mean'"),
        (lambda: average(3).robust_values(Y[:, None], Y[:, None], Y), "`logits` must be given"),
    ):
        with pytest.raises(ValueError, match=words):
            call()


@pytest.mark.parametrize("of", ["logits", "softmax"])
def test_an_evaluation_decides_by_what_the_defence_answers(tmp_path, of):
    """Its logits are those of the noise that decides, and a run under another rule can be decided again."""
    own = tmp_path / "own.sqlite"
    report = evaluate(own, average(3, of))
    evaluate(tmp_path / "fresh.sqlite")
    target, data = look_through(defense()), dataset(8)
    with fp.Run.open(own) as run, fp.Run.open(tmp_path / "fresh.sqlite") as other:
        x_adv = torch.from_numpy(run.images("adversarial"))
        draws = [torch.full((8,), FIRST_DRAW + k) for k in range(3)]
        with torch.no_grad():
            answers = [target.logits(x_adv, data.sample_ids, draw, Domain.EVALUATION) for draw in draws]
        logits = torch.stack(answers, 1)
        assert np.allclose(run.logits("adversarial"), logits.numpy(), rtol=1e-5, atol=1e-5)
        mean = (logits if of == "logits" else logits.softmax(2)).mean(1)
        assert run.values("adversarial").tolist() == (mean.argmax(1) == data.labels).tolist()
        assert np.array_equal(run.values("adversarial"), other.values("adversarial", average(3, of)))
        assert report.robust.estimate == run.values("adversarial").mean()
        for which in ("clean", "adversarial"):
            kept = run.logits(which)
            assert kept.dtype == np.float32
            assert np.array_equal(kept, other.logits(which))
            assert np.array_equal(kept.argmax(2), run.predicted(which))
            again = torch.from_numpy(kept).log_softmax(2)[torch.arange(8), :, torch.from_numpy(run.labels)]
            assert np.allclose(-again.numpy(), run.losses(which), atol=1e-6)
        assert run.logits("transfer").shape == (8, 0, 2)
        with pytest.raises(ValueError, match="one that the records of fresh"):
            other.values("adversarial", average(4, of))


def test_the_bar_shows_what_the_protocol_decides(tmp_path):
    report = evaluate(tmp_path / "r.sqlite", average(3, "softmax"))
    stream = io.StringIO()
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        records, empty = list(run.records()), RunStore(None, run.identity).read()
        bar = EvaluationProgress(empty, 8, 0, stream=stream, pause=0.0)
        bar.finished(records[:4])
        bar.finished(records[4:])
        assert str(report.robust) in stream.getvalue().splitlines()[-1]
        assert str(report.robust) in EvaluationProgress(run, 8, 0, stream=stream).line()


def test_transferred_images_and_single_answers_have_logits_too(tmp_path):
    evaluate(tmp_path / "known.sqlite", fp.protocols.dw_box(transfer_draws=4))
    with fp.Run.open(tmp_path / "known.sqlite") as run:
        assert [run.logits(which).shape for which in INPUTS] == [(8, 1, 2), (8, 1, 2), (8, 4, 2)]
        with pytest.raises(ValueError, match="one that the records of dw_box"):
            run.values("adversarial", average(1))
    bare = tmp_path / "bare.sqlite"
    fp.evaluate(defense().classifier, dataset(8), attack(), average(10), bare, progress=False)
    with fp.Run.open(bare) as run:
        assert run.logits("clean").shape == (8, 1, 2)
        assert np.array_equal(run.values("adversarial"), run.correct("adversarial")[:, 0])


def test_a_run_that_has_not_begun_and_one_without_attack():
    run = fp.evaluate(defense(), dataset(4), None, average(3), progress=False)
    assert run.robust is None
    assert 0 < run.clean.estimate <= 1
    empty = RunStore(None, identity(defense(), dataset(4), attack(), average(3))).read()
    assert empty.values("adversarial").shape == (0,)
    assert empty.logits("clean").shape == (0, 0, 2)


def without(path: Path, *tables: str) -> Path:
    with sqlite3.connect(path) as connection:
        for table in tables:
            connection.execute(f"DROP TABLE {table}")
    return path


def test_a_file_of_an_older_version_is_read_continued_and_says_what_it_cannot_decide(tmp_path, monkeypatch):
    whole = evaluate(tmp_path / "whole.sqlite").digest
    path, write, blocks = tmp_path / "old.sqlite", RunStore.write, []

    def stop(self, *arguments):
        if blocks:
            raise KeyboardInterrupt
        blocks.append(1)
        write(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(RunStore, "write", stop)
        with pytest.raises(KeyboardInterrupt):
            evaluate(path)
    without(path, "logits", "progress")
    with fp.Run.open(path) as run:
        assert len(run.positions) == 4
        assert np.isnan(run.spent).all()
        assert run.progress()[0].shape == (4, 0)
        with pytest.raises(ValueError, match=r"old\.sqlite has no logits for 4 of 4 images"):
            run.logits("clean")
    assert evaluate(path).digest == whole, "what was kept later is no part of the result"
    with fp.Run.open(path) as run:
        assert run.complete
        assert len(run.values("adversarial", fp.protocols.any_of_n(3))) == 8
        for ask in (
            lambda: run.logits("adversarial"),
            lambda: run.values("adversarial", average(3)),
            lambda: run.values("clean", average(3, "softmax")),
        ):
            with pytest.raises(ValueError, match=r"no logits for 4 of 8 images: .* in a new file"):
                ask()


def test_logits_that_decide_are_part_of_the_result_and_their_loss_is_damage(tmp_path):
    protocol = average(5)
    digests = {made(protocol=protocol).read().content_digest()}
    loud = TABLE.copy()
    loud[0, 0, 0] += 1  # the same classes and losses as before
    predicted = TABLE.argmax(2)
    digests.add(run_file(None, predicted, predicted, logits=loud, protocol=protocol).read().content_digest())
    assert len(digests) == 2
    path = tmp_path / "r.sqlite"
    made(path, protocol=protocol).close()
    for change in ("DELETE FROM logits WHERE position = 2", "DROP TABLE logits"):
        with sqlite3.connect(path) as connection:
            connection.execute(change)
        with pytest.raises(RunDamaged, match="logits that decide at position"):
            fp.Run.open(path)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE logits SET packed = (SELECT packed FROM logits WHERE position = 1) WHERE position = 2",
        "UPDATE logits SET input = 'transfer' WHERE position = 2 AND input = 'clean'",
        "UPDATE logits SET input = 'clear' WHERE position = 2 AND input = 'clean'",
        "UPDATE logits SET position = 900 WHERE position = 2 AND input = 'clean'",
        "UPDATE logits SET first = 1 WHERE position = 2",
        "UPDATE logits SET n = 1, classes = 6 WHERE position = 2",
        "UPDATE logits SET n = 'many' WHERE position = 2",
        "UPDATE logits SET sha256 = zeroblob(32) WHERE position = 2",
        "UPDATE logits SET n = 100000000, classes = 100000000 WHERE position = 2",
        "ALTER TABLE logits RENAME TO logitt",
    ],
)
def test_damaged_logits_are_found(tmp_path, change):
    path = tmp_path / "r.sqlite"
    evaluate(path)
    with sqlite3.connect(path) as connection:
        connection.execute(change)
    with pytest.raises(RunDamaged, match=r"r\.sqlite is damaged"):
        fp.Run.open(path)


def test_more_logits_than_one_blob_may_hold_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(schema, "LARGEST", 7)  # two draws of three classes
    path = tmp_path / "r.sqlite"
    made(path).close()
    with sqlite3.connect(path) as connection:
        rows = connection.execute("SELECT first, n FROM logits WHERE position = 0 AND input = 'clean'")
        assert rows.fetchall() == [(0, 2), (2, 2), (4, 1)]
    with fp.Run.open(path) as run:
        assert np.array_equal(run.logits("clean"), TABLE)
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM logits WHERE position = 0 AND first = 2")
    with pytest.raises(RunDamaged):
        fp.Run.open(path)


@pytest.mark.parametrize(("n_classes", "n_draws"), [(2, 3), (10, 10), (1000, 10)])
def test_a_plan_knows_what_logits_take(tmp_path, n_classes, n_draws):
    class Many(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.register_buffer("weight", torch.randn((16, n_classes), generator=generator))

        def forward(self, u):
            return u.flatten(1) @ self.weight

    inner, data, n = defense(), dataset(40), 40
    target = fp.Defense(inner.purifier, Many().eval())
    path, how = tmp_path / "r.sqlite", fresh(n_draws)
    fp.evaluate(target, data, attack(), how, path, progress=False)
    expected, found = plan(target, data, attack(), how).disk, path.stat().st_size
    assert 0.7 * found < expected < 1.6 * found, (found, expected)
    assert expected > n * 2 * n_draws * n_classes * 4 * 0.9
    assert data.image_shape == SHAPE
