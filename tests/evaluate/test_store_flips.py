"""A changed byte of a run file is found, or changes nothing that anybody is shown; and a file that lies stays small."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import RunDamaged, RunMismatch, StoreUnavailable
from fastpure.evaluate.identity import canonical
from fastpure.evaluate.record import INPUTS, unpack
from fastpure.evaluate.store import RunStore
from tests.evaluate.stored import ONE, evaluate
from tests.evaluate.toys import telling


def shown(path: Path) -> str:
    """SHA-256 of everything that reports, tables and commands show of a run."""
    with fp.Run.open(path) as run:
        parts = [
            canonical(run.identity),
            canonical(run.share),
            canonical(run.sessions()),
            repr(run.history()),
        ]
        parts += [repr(run.seconds()), run.content_digest(), str(fp.Report.of(run))]
        arrays = [run.positions, run.labels, run.sample_ids, run.distances, run.zero_gradients, run.verdicts]
        arrays += [run.traces(), run.images("clean"), run.images("adversarial")]
        arrays += [run.agreements, run.spent, *run.progress()]
        for name in INPUTS:
            arrays += [run.predicted(name), run.losses(name), run.logits(name)]
    digest = hashlib.sha256("\n".join(parts).encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return digest.hexdigest()


def flip_all(path: Path, folder: Path, n: int, seed: int) -> dict[str, int]:
    """Change ``n`` bytes or bits of a run file, one at a time; counts of what came of it."""
    choose, content, file = random.Random(seed), path.read_bytes(), folder / "flipped.sqlite"
    file.write_bytes(content)
    expected = shown(file)
    counts = {"flips": n, "detected": 0, "without effect": 0, "shown": 0}
    for _ in range(n):
        changed, place = bytearray(content), choose.randrange(len(content))
        old = changed[place]
        changed[place] = old ^ (1 << choose.randrange(8)) if choose.random() < 0.5 else choose.randrange(256)
        file.write_bytes(changed)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                counts["without effect" if shown(file) == expected else "shown"] += 1
        except (RunDamaged, StoreUnavailable):
            counts["detected"] += 1
    return counts


@pytest.mark.slow
def test_five_hundred_flips_are_detected_or_show_nothing(tmp_path):
    evaluate(tmp_path / "run.sqlite", n=24, batch_size=8, attack=telling())
    counts = flip_all(tmp_path / "run.sqlite", tmp_path, 500, seed=0)
    assert counts["shown"] == 0, counts
    assert counts["detected"] > 100, counts


def edited(path: Path, change: str, *values: object) -> Path:
    connection = sqlite3.connect(path)
    connection.execute(change, values)
    connection.commit()
    connection.close()
    return path


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"eps":0.05', '"eps":0.95'),
        ('"n_iter":2', '"n_iter":62'),
        ('"draws":3', '"draws":9'),
        ('"n":8', '"n":9'),
    ],
)
def test_one_changed_digit_of_the_identity_is_found(tmp_path, old, new):
    path = tmp_path / "run.sqlite"
    evaluate(path, n=8)
    edited(path, "UPDATE meta SET value = replace(value, ?, ?) WHERE key = 'identity'", old, new)
    for attempt in (
        lambda: fp.Run.open(path),
        lambda: fp.Run.open(path, verify=False),
        lambda: evaluate(path, n=8),
    ):
        with pytest.raises(RunDamaged, match="identity, the settings under which it was measured"):
            attempt()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE meta SET value = replace(value, '\"of\":1', '\"of\":2') WHERE key = 'share'",
        "UPDATE sessions SET environment = replace(environment, 'torch', 'other')",
        "UPDATE blocks SET attack = attack + 1 WHERE id = 1",
        "DELETE FROM blocks WHERE id = 1",
        "DELETE FROM sessions",
        "UPDATE images SET zero_gradient = 3 WHERE position = 2",
        "UPDATE draws SET loss = loss + 1e-12 WHERE position = 2 AND draw = 0 AND input = 'clean'",
        "UPDATE draws SET draw = 7 WHERE position = 2 AND draw = 2",
        "CREATE TRIGGER t AFTER INSERT ON images BEGIN DELETE FROM draws; END",
        "ALTER TABLE sessions ADD COLUMN more TEXT",
    ],
)
def test_other_changes_are_found(tmp_path, change):
    path = tmp_path / "run.sqlite"
    evaluate(path, n=8)
    edited(path, change)
    with pytest.raises(RunDamaged, match=r"run\.sqlite is (damaged|not a readable)"):
        fp.Run.open(path)


def test_an_image_lost_with_its_draws_is_found(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path, n=8)
    edited(path, "DELETE FROM draws WHERE position = 3")
    edited(path, "DELETE FROM images WHERE position = 3")
    with pytest.raises(RunDamaged, match="8 images were written, 7 are there"):
        fp.Run.open(path)


def test_files_from_before_the_checksums_open_with_a_word_and_continue(tmp_path):
    path = tmp_path / "run.sqlite"
    digest = evaluate(path, n=8).digest
    edited(path, "DROP TABLE checksums")
    with pytest.warns(UserWarning, match="from before identities and timings had checksums"):
        run = fp.Run.open(path)
    with run:
        assert not run.sealed
        assert run.content_digest() == digest
    assert evaluate(path, n=8).digest == digest
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fp.Run.open(path) as run:
            assert run.sealed
    edited(path, "UPDATE meta SET value = replace(value, '0.05', '0.06') WHERE key = 'identity'")
    with pytest.raises(RunDamaged):
        fp.Run.open(path)


def test_a_row_that_an_older_version_added_is_no_damage(tmp_path):
    path = tmp_path / "run.sqlite"
    evaluate(path, n=8)
    edited(path, "INSERT INTO sessions (started, environment, settings) VALUES ('now', '{}', '{}')")
    with fp.Run.open(path) as run:
        assert len(run.sessions()) == 2


def measured(attempt) -> int:
    """Peak of Python's and numpy's memory while ``attempt`` is refused."""
    tracemalloc.start()
    try:
        with pytest.raises((RunDamaged, ValueError)):
            attempt()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_blob_that_unpacks_to_two_gigabytes_is_refused_before_it_does(tmp_path):
    stream, bomb = zlib.compressobj(9), b""
    for _ in range(2**7):
        bomb += stream.compress(bytes(2**24))
    bomb += stream.flush()
    assert len(bomb) < 2.2e6
    assert measured(lambda: unpack(bomb, (3, 32, 32))) < 2 * len(bomb)
    assert measured(lambda: unpack(bomb, (2**29,))) < 2 * len(bomb)
    path = tmp_path / "run.sqlite"
    evaluate(path, n=4)
    edited(path, "UPDATE images SET x_adv = ? WHERE position = 0", bomb)
    assert measured(lambda: fp.Run.open(path)) < 2e7
    evaluate(tmp_path / "trace.sqlite", n=4)
    edited(
        tmp_path / "trace.sqlite", "UPDATE images SET trace = ?, n_trace = ? WHERE position = 0", bomb, 2**29
    )
    assert measured(lambda: fp.Run.open(tmp_path / "trace.sqlite")) < 2e7


def test_an_array_with_something_behind_it_is_not_that_array():
    packed = zlib.compress(np.zeros(4, "<f4").tobytes())
    assert unpack(packed, (4,)).tolist() == [0] * 4
    for blob in (packed + b"x", packed[:-2], zlib.compress(bytes(12)), zlib.compress(bytes(20))):
        with pytest.raises((ValueError, zlib.error)):
            unpack(blob, (4,))


def test_a_view_in_place_of_a_table_is_not_run(tmp_path):
    """An endless one would keep the reader for ever."""
    path = tmp_path / "run.sqlite"
    evaluate(path, n=4)
    edited(path, "DROP TABLE blocks")
    edited(
        path,
        "CREATE VIEW blocks AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r) SELECT n FROM r",
    )
    with pytest.raises(RunDamaged, match="table blocks is not as fastpure makes it"):
        fp.Run.open(path)


@pytest.mark.parametrize(
    "identity",
    [
        "[",
        "[]",
        "7",
        '"text"',
        "{}",
        '{"data": {}}',
        '{"data": {"image_shape": [1], "n": 1e99}}',
        "[" * 10**5,
        "\ud800",
    ],
)
def test_an_identity_that_is_none_is_one_sentence(tmp_path, identity):
    path = tmp_path / "run.sqlite"
    RunStore(path, ONE).close()
    edited(path, "DROP TABLE checksums")
    edited(
        path,
        "UPDATE meta SET value = CAST(? AS TEXT) WHERE key = 'identity'",
        identity.encode(errors="surrogatepass"),
    )
    with pytest.raises(RunDamaged, match=r"run\.sqlite is not a readable run file"):
        fp.Run.open(path)
    with pytest.raises((RunDamaged, RunMismatch)):
        RunStore(path, json.loads(canonical(ONE)))
