"""The Slurm scripts of the documentation, run as Slurm would run them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastpure as fp

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "docs" / "slurm"
pytestmark = pytest.mark.skipif(not SCRIPTS.is_dir(), reason="the source tree is not here")


def command(folder: Path, name: str, text: str) -> None:
    """A program of this name that the scripts will find."""
    (folder / "bin").mkdir(exist_ok=True)
    file = folder / "bin" / name
    file.write_text(f"#!/usr/bin/env bash\n{text}\n")
    file.chmod(0o755)


def task(number: int, first: int = 1, last: int = 2, step: int = 1) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    values = {"TASK_ID": number, "TASK_MIN": first, "TASK_MAX": last, "TASK_STEP": step, "JOB_ID": 4711}
    return {f"SLURM_ARRAY_{name}": str(value) for name, value in values.items()}


def script(folder: Path, name: str, *words: str, slurm: dict[str, str]) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "OMP_"))}
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    return subprocess.Popen(
        ["bash", str(SCRIPTS / name), *words],
        cwd=folder,
        env={**kept, "PATH": path, "PYTHONPATH": str(ROOT), **slurm},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def said(process: subprocess.Popen[str], status: int = 0) -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


@pytest.mark.parametrize(
    ("slurm", "shard"),
    [(task(1, 1, 8), "1/8"), (task(8, 1, 8), "8/8"), (task(0, 0, 3), "1/4"), (task(14, 0, 14, 2), "8/8")],
)
def test_tasks_are_shards(tmp_path, slurm, shard):
    command(tmp_path, "fastpure", 'echo "threads $OMP_NUM_THREADS"; printf "%s|" "$@"')
    slurm = {**slurm, "SLURM_CPUS_PER_TASK": "3"}
    output = said(script(tmp_path, "evaluate.sh", "coup", "--t", "0.1", "--set", "a b", slurm=slurm))
    out = f"runs/coup/{shard.split('/')[0]}.sqlite"
    assert output == f"threads 3\nevaluate|--t|0.1|--set|a b|--shard|{shard}|--out|{out}|"


def test_a_task_told_to_stop_waits_for_its_end_and_is_queued_again(tmp_path):
    command(
        tmp_path,
        "fastpure",
        "trap 'sleep 0.5; echo stopped in good order; exit 130' TERM\ntouch begun\n"
        "for i in {1..600}; do sleep 0.1; done",
    )
    command(tmp_path, "scontrol", 'echo "scontrol $*"')
    process = script(tmp_path, "evaluate.sh", "coup", slurm=task(2))
    while not (tmp_path / "begun").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output = said(process, 130)
    assert output.index("stopped in good order") < output.index("scontrol requeue 4711_2")


def test_a_task_that_failed_is_not_queued_again(tmp_path):
    command(tmp_path, "fastpure", "exit 3")
    command(tmp_path, "scontrol", 'echo "scontrol $*"')
    assert "scontrol" not in said(script(tmp_path, "evaluate.sh", "coup", slurm=task(1)), 3)
    assert "give the run a name first" in said(
        script(tmp_path, "evaluate.sh", "--t", "0.1", slurm=task(1)), 2
    )
    assert "sbatch --array" in said(script(tmp_path, "evaluate.sh", "coup", slurm={}), 1)


@pytest.mark.slow
def test_two_tasks_and_a_merge_give_one_run(tmp_path):
    command(tmp_path, "fastpure", f'OMP_NUM_THREADS=1 exec "{sys.executable}" -m fastpure "$@"')
    words = ["--method", "none", "--n", "4", "--n-iter", "1", "--batch-size", "2", "--no-progress"]
    for number in (1, 2):
        said(script(tmp_path, "evaluate.sh", "bare", *words, slurm=task(number)))
    output = said(script(tmp_path, "merge.sh", "bare", slurm={}))
    assert "4 images" in output
    with fp.Run.open(tmp_path / "runs" / "bare.sqlite") as run:
        assert run.complete
        assert run.positions.tolist() == [0, 1, 2, 3]
