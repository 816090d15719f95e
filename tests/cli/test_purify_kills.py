"""`fastpure purify` killed anywhere and given again writes the same bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpure.errors import RunLocked
from fastpure.purify.files.inputs import find_sources
from fastpure.purify.files.run import RUN_FILE, PurifyRun
from tests.cli.purifying import PIXELS, contents, pictures, run


def fake(images: torch.Tensor, ids: list[int], draw: int) -> torch.Tensor:
    """Results that depend on the image, its id, the draw, and (like float rounding) on the whole batch."""
    scale = 1 / (2 + torch.tensor(ids, dtype=torch.float32) + draw)
    return images * scale.view(-1, 1, 1, 1) + 1e-3 * images.mean()


def small_run(folder: Path, out: Path) -> PurifyRun:
    return PurifyRun(tuple(find_sources([folder])), out, {"a": 1}, (1, 8, 8), batch_size=3, draws=2)


def mixed(folder: Path) -> Path:
    """Pictures and arrays whose borders are not those of the batches."""
    pictures(folder, ["a.png", "d.png"])
    with (folder / "b.NPY").open("wb") as file:
        np.save(file, (PIXELS / 255).astype(np.float32))
    np.savez(folder / "c.npz", x=PIXELS[:4], y=np.arange(4))
    return folder


@pytest.mark.parametrize("where", ["compute", "replace"])
def test_killed_anywhere_and_continued_gives_the_same_bytes(tmp_path: Path, where: str) -> None:
    """A child process is killed with SIGKILL before its n-th batch or n-th rename, for every n, until it ends."""
    source = mixed(tmp_path / "in")
    with small_run(source, tmp_path / "whole").opened() as continued:
        assert not continued
        small_run(source, tmp_path / "whole").execute(fake, lambda n: None)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 2 * 4 + 1
    for kill_at in range(1, 60):
        out = tmp_path / f"killed{kill_at}"
        if _child(source, out, where, kill_at) == 0:
            break
        assert set(contents(out)) - {f"{RUN_FILE}.lock"} != set(whole)
        assert _child(source, out, where, 0) == 0
        assert contents(out) == whole
    assert kill_at > 5, "the loop went through real kill points"
    assert kill_at < 59


def _child(source: Path, out: Path, where: str, kill_at: int) -> int:
    """Run in a forked process that kills itself; its exit status (0: it ended)."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        real = os.replace

        def replace(*arguments: object) -> None:
            count()
            real(*arguments)  # type: ignore[arg-type]

        def purify(images: torch.Tensor, ids: list[int], draw: int) -> torch.Tensor:
            if where == "compute":
                count()
            return fake(images, ids, draw)

        try:
            if where == "replace":
                os.replace = replace  # type: ignore[assignment]
            task = small_run(source, out)
            with task.opened():
                task.execute(purify, lambda n: None)
            os._exit(0)
        except BaseException:
            os._exit(7)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    source = mixed(tmp_path / "in")
    other = small_run(source, tmp_path / "out").opened()
    with (
        small_run(source, tmp_path / "out").opened(),
        pytest.raises(RunLocked, match=r"out/fastpure-purify\.json is being written by another process"),
        other,
    ):
        pass


@pytest.mark.slow
def test_the_command_killed_and_given_again(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    images = np.random.RandomState(2).randint(0, 256, (12, 8, 8), dtype=np.uint8)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(source / f"{i:02}.png")
    np.save(source / "rest.npy", (images / 255).astype(np.float32))
    words = ["--denoiser", "digits", "--t", "0.1", "--dt", "0.01", "--batch-size", "2"]
    assert run(source, "--out", tmp_path / "whole", *words).exit_code == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastpure.cli.main", "purify", str(source), "--out", str(out), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        # More than a block of two: the first one's are noted then.
        while len(list(out.glob("*.png"))) < 3 and child.poll() is None:
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL, "killed in the middle"
    assert 0 < len(list(out.glob("*.png"))) <= 12
    result = run(source, "--out", out, *words)
    assert result.exit_code == 0
    assert "continued: " in result.output
    assert contents(out) == contents(tmp_path / "whole")
