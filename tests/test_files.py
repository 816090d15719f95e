"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from fastpure.files import replace_file, replacing


def test_new_file_in_a_new_folder(tmp_path: Path) -> None:
    target = replace_file(tmp_path / "deep" / "file", b"content")
    assert target.read_bytes() == b"content"
    assert target.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in target.parent.iterdir()] == ["file"]


def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = replace_file(tmp_path / "file", b"old")

    def interrupted() -> None:
        with replacing(target) as file:
            file.write(b"new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        interrupted()
    assert target.read_bytes() == b"old"

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        replace_file(target, b"new")
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_old_file_stays_readable_until_the_block_ends(tmp_path: Path) -> None:
    target = replace_file(tmp_path / "file", b"old")
    with replacing(target) as file:
        file.write(b"new")
        file.flush()
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"new"
