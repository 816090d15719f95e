"""Shards of a run are blocks of the whole, and merge into it."""

from __future__ import annotations

import pytest

import fastpure as fp
from fastpure.errors import RunMismatch, StoreUnavailable
from fastpure.evaluate import merge
from fastpure.evaluate.shards import blocks, parse_shard, share
from tests.evaluate.toys import evaluate


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
    assert merge(out, paths) == out, "given again it is done already"
    with pytest.raises(StoreUnavailable, match="exists"):
        merge(paths[0], paths)
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
