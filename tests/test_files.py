"""A file is the old one or the new one, whatever happens while it is written."""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import filelock
import pytest

from fastpure import files
from fastpure.errors import DiskFull, RunLocked, StoreUnavailable
from fastpure.files import NO_LOCKS, FileLock, Unfinished, replace_file, replacing


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
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(DiskFull, match="no space"):
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


def test_a_link_stays_one_and_leads_to_the_new_file(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "elsewhere" / "file")
    replace_file(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "elsewhere" / "file").read_bytes() == b"new"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_ours_even_through_a_library_that_raises_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    target = replace_file(tmp_path / "file", b"old")

    def full(self: files.Watched, data: object) -> int:
        self.error = OSError(code, "full")
        raise self.error

    def encode() -> None:
        with replacing(target) as file:
            try:
                file.write(b"new" * 10000)
            except OSError:
                raise RuntimeError("the encoder's own words") from None

    monkeypatch.setattr(files.Watched, "write", full)
    with pytest.raises(DiskFull, match=r"no space left to write .*file"):
        encode()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert target.read_bytes() == b"old"


def test_leftovers_of_dead_processes_are_swept_and_nothing_else(tmp_path: Path) -> None:
    killed = """
import os, sys
from fastpure.files import replacing
with replacing(sys.argv[1]) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""
    target = tmp_path / "file"
    assert subprocess.run([sys.executable, "-c", killed, str(target)], check=False).returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.endswith(".partial")
    foreign = [
        ".file.download.partial",
        "file.partial",
        left.name.replace(f".{files._machine()}", ".0badcafe"),
    ]
    living = left.name.replace(re.findall(r"-(\d+)-", left.name)[0], str(os.getppid()))
    for name in (*foreign, living):
        (tmp_path / name).write_bytes(b"somebody's")
    replace_file(target, b"whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["file", living, *foreign])


def test_long_names_can_still_be_written(tmp_path: Path) -> None:
    for name in ("n" * 255, "\N{LATIN SMALL LETTER E WITH ACUTE}" * 120):
        assert replace_file(tmp_path / name, b"content").read_bytes() == b"content"


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    lock = FileLock(path)
    with pytest.raises(
        RunLocked, match=rf"by another process \(process {os.getpid()} on {socket.gethostname()}\)"
    ):
        FileLock(path)
    with pytest.raises(RunLocked, match=rf"process {os.getpid()} on"):
        FileLock(path)  # asking does not erase the name
    lock.release()
    lock.release()
    assert not list(tmp_path.iterdir())
    FileLock(path).release()


def test_a_link_does_not_defeat_the_lock(tmp_path: Path) -> None:
    path, link, folder = tmp_path / "file", tmp_path / "link", tmp_path / "folder"
    link.symlink_to(path)
    folder.symlink_to(tmp_path)
    lock = FileLock(path)
    for other in (link, folder / "file", folder / "link"):
        with pytest.raises(RunLocked):
            FileLock(other)
    lock.release()
    FileLock(link).release()
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    with pytest.raises(StoreUnavailable):
        FileLock(loop)


HELD = """
import os, sys
from pathlib import Path
from fastpure.files import FileLock
lock = FileLock(Path(sys.argv[1]))
print("held", flush=True)
os._exit(9) if sys.argv[2] == "die" else sys.stdin.read()
"""


def no_flock(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def flock(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)


@pytest.mark.parametrize("code", sorted(set(NO_LOCKS)))
def test_file_systems_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """The lock is a file there; one of a dead process of this machine is taken over, any other is named."""
    path = tmp_path / "file"
    no_flock(monkeypatch, code)
    pid = os.fork()
    if pid == 0:
        held = FileLock(path)
        os._exit(0 if held else 1)
    os.waitpid(pid, 0)
    assert [left.name for left in tmp_path.iterdir()] == ["file.lock-soft"]
    lock = FileLock(path)
    with pytest.raises(RunLocked, match=rf"process {os.getpid()} on .*delete .*file\.lock-soft"):
        FileLock(path)
    lock.release()
    assert not list(tmp_path.iterdir())
    (tmp_path / "file.lock-soft").write_text("17\nanother-host\n")
    with pytest.raises(RunLocked, match=r"process 17 on another-host\).*delete .*file\.lock-soft"):
        FileLock(path)


def test_a_killed_holder_leaves_no_lock(tmp_path: Path) -> None:
    path = tmp_path / "file"
    command = [sys.executable, "-c", HELD, str(path)]
    assert subprocess.run([*command, "die"], check=False, capture_output=True).returncode == 9
    FileLock(path).release()
    with subprocess.Popen([*command, "wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        with pytest.raises(RunLocked, match=f"process {child.pid} on"):
            FileLock(path)
        child.communicate(b"")
    FileLock(path).release()


def test_a_lock_on_a_file_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last holder removes the file between our opening it and our lock: whoever comes then makes another."""
    path, acquire, removed = tmp_path / "file", filelock.FileLock.acquire, []

    def late(self: filelock.FileLock, *arguments: object, **named: object) -> object:
        taken = acquire(self, *arguments, **named)
        if not removed:
            removed.append(True)
            os.unlink(self.lock_file)
        return taken

    with monkeypatch.context() as patch:
        patch.setattr(filelock.FileLock, "acquire", late)
        lock = FileLock(path)
    assert removed
    with pytest.raises(RunLocked):
        FileLock(path)
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_full_disk_while_the_lock_is_named_leaves_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: files.Watched, data: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(files.Watched, "write", full)
        with pytest.raises(DiskFull):
            FileLock(tmp_path / "file")
    assert not list(tmp_path.iterdir())
    FileLock(tmp_path / "file").release()


def test_a_command_of_several_files_knows_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    batch = Unfinished(first)
    batch.write(first, b"one")
    batch.write(second, b"two")
    again = Unfinished(first)
    assert again.ours(first)
    assert again.ours(second)
    second.write_bytes(b"changed by somebody")
    assert not again.ours(second)
    assert not again.ours(tmp_path / "c")
    again.done()
    assert not Unfinished(first).ours(first)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


WINDOWS = """
import sys
EXTRAS = ("art",)  # modules of which a module of ours is a subclass: it imports where they are installed
import torch, numpy, PIL.Image, sklearn.datasets, safetensors.torch  # theirs may look for anything
for name in ("fcntl", "resource", "pwd", "grp", "termios"):
    sys.modules[name] = None
for name in [name for name in sys.modules if name.partition(".")[0] == "filelock"]:
    del sys.modules[name]
import os
for name in ("fork", "pread", "pwrite", "geteuid", "getuid", "uname", "statvfs", "sched_getaffinity", "getloadavg"):
    delattr(os, name)
import warnings
warnings.simplefilter("ignore")  # filelock says that it cannot lock without fcntl
import importlib, pkgutil
import fastpure as fp
for module in pkgutil.walk_packages(fp.__path__, "fastpure."):
    if module.name not in ("fastpure._C",) and "triton" not in module.name:
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as missing:
            if missing.name not in EXTRAS:
                raise
from fastpure.cli.main import app
app(["purify", *sys.argv[1:]], standalone_mode=False)
"""


@pytest.mark.slow
def test_imports_and_purifies_without_what_windows_lacks(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    (tmp_path / "in").mkdir()
    image.new("L", (8, 8), 100).save(tmp_path / "in" / "a.png")
    words = [tmp_path / "in", "--out", tmp_path / "out", "--denoiser", "digits", "--t", "0.1", "--dt", "0.05"]
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS, *map(str, words)], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.png").is_file()
