"""Shards of a run are blocks of the whole, and merge into it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

import fastpure as fp
from fastpure.errors import DiskFull, RunLocked, RunMismatch, StoreUnavailable
from fastpure.evaluate import merge
from fastpure.evaluate.shards import blocks, parse_shard, share
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.files import FileLock
from tests.evaluate.stored import ONE, record
from tests.evaluate.toys import evaluate, telling


def test_shards_keep_logits_and_what_the_attack_said(tmp_path):
    protocol = fp.protocols.average(3, "softmax")
    paths = [tmp_path / f"{i}.sqlite" for i in (1, 2)]
    for i, path in enumerate(paths, 1):
        evaluate(path, protocol, n=10, batch_size=2, shard=(i, 2), attack=telling())
    evaluate(tmp_path / "whole.sqlite", protocol, n=10, attack=telling())
    with (
        fp.Run.open(merge(tmp_path / "all.sqlite", paths)) as merged,
        fp.Run.open(tmp_path / "whole.sqlite") as run,
    ):
        assert merged.content_digest() == run.content_digest()
        assert [r.decided_sha256() for r in merged.records()] == list(run.result_checksums().values())
        for which in ("clean", "adversarial"):
            assert np.array_equal(merged.logits(which), run.logits(which))
            assert np.array_equal(merged.values(which), run.values(which))
        assert np.array_equal(merged.spent, run.spent, equal_nan=True)
        for one, other in zip(merged.progress(), run.progress(), strict=True):
            assert np.array_equal(one, other, equal_nan=True)


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


def shards(folder: Path, n: int = 60) -> list[Path]:
    """Two shards of a run, each some hundred kilobytes."""
    paths = [folder / f"{i}.sqlite" for i in (1, 2)]
    for i, path in enumerate(paths):
        own = {"index": i + 1, "of": 2, "unit": n // 2}
        store = RunStore(path, {**ONE, "data": {**ONE["data"], "n": n}}, share=own)
        store.write([record(i * n // 2 + row) for row in range(n // 2)], Seconds())
        assert not store.close()
    return paths


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a file system of so many kilobytes."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = False

    def mount(kilobytes: int) -> Path:
        nonlocal mounted
        if mounted:
            subprocess.run(["umount", "-l", str(place)], check=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "fastpure-test", str(place)]
        done = subprocess.run(command, check=False, capture_output=True)
        mounted = done.returncode == 0
        if not mounted:
            pytest.skip("needs the right to mount; tests/test_faults.py fills the disk without")
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


def refusal(target: Path, paths: list[Path]) -> str:
    """What merging onto a disk says; empty if it is done."""
    try:
        merge(target, paths)
    except DiskFull as error:
        return str(error)
    return ""


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to mount")
def test_a_full_disk_loses_nothing_of_a_merge(tmp_path, small_disk):
    """At every size of the disk it is whole, or nothing was there and the shards are as before."""
    paths = shards(tmp_path)
    before = [path.read_bytes() for path in paths]
    whole = merge(tmp_path / "whole.sqlite", paths)
    needed = whole.stat().st_size // 1024
    with fp.Run.open(whole) as run:
        digest = run.content_digest()
    outcomes = []
    for kilobytes in [
        *range(4, needed + 8, max(needed // 24, 4)),
        needed - 4,
        needed,
        needed + 4,
        needed + 8,
        2 * needed,
    ]:
        target = small_disk(kilobytes) / "all.sqlite"
        said = refusal(target, paths)
        outcomes.append(said)
        if said:
            assert said.startswith(f"no space left to write {target}")
            assert not list(target.parent.iterdir())
        else:
            with fp.Run.open(target) as run:
                assert run.content_digest() == digest
        assert [path.read_bytes() for path in paths] == before
    assert len(outcomes) > 18
    assert outcomes[0]
    assert not outcomes[-1]
    assert sum("the shards are untouched" in said for said in outcomes) > 12


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to mount")
def test_a_full_disk_loses_no_finished_block_of_an_evaluation(small_disk):
    """What is in the file at any size is continued to the whole once there is room."""
    for kilobytes in range(8, 400, 20):
        place = small_disk(kilobytes)
        path, written, store = place / "run.sqlite", 0, None
        with suppress(DiskFull):
            store = RunStore(path, ONE)
            for position in range(12):
                store.write([record(position)], Seconds())
                written += 1
        if store is not None:
            store.close()
        subprocess.run(["mount", "-o", "remount,size=4m", str(place)], check=True)
        store = RunStore(path, ONE)
        assert store.done == set(range(written))
        assert not store.close()
        assert [file.name for file in place.iterdir()] == ["run.sqlite"]


def test_a_merge_that_cannot_be_read_back_gets_no_name(tmp_path, monkeypatch):
    paths, target = shards(tmp_path), tmp_path / "all.sqlite"
    fsync = os.fsync

    def lose(handle: int) -> None:  # a disk that forgets what it was given
        fsync(handle)
        os.pwrite(handle, bytes(4096), os.fstat(handle).st_size // 8192 * 4096)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", lose)
        with pytest.raises(StoreUnavailable, match=r"shards are untouched|read back"):
            merge(target, paths)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1.sqlite", "2.sqlite"]
    assert merge(target, paths) == target


def test_merging_into_what_is_written_or_nowhere_is_refused(tmp_path):
    paths = shards(tmp_path)
    lock = FileLock(tmp_path / "all.sqlite")
    with pytest.raises(RunLocked):
        merge(tmp_path / "all.sqlite", paths)
    lock.release()
    with pytest.raises(ValueError, match="`out` must be the name of a file"):
        merge(":memory:", paths)
