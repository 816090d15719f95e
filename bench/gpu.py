"""Everything there is to run on a machine with a GPU, torch and nvcc, without network, in under nine minutes.

    python -m bench.gpu OUT [--commit HASH] [--stages smoke,headlines] [--seconds 530]

`make gpu` calls this. Stages run one after another, the most valuable first, each in processes of its own. A stage that
fails or does not end loses only itself; only a failed smoke test ends the run. Left behind are OUT/rows.jsonl (one row
per figure as soon as it is there, and how every stage ended; `python -m bench.gpu_report` makes tables of it), the
output of every process as OUT/NAME.log, and the tests' reports as OUT/NAME.xml. Exit status 1 if a stage failed.

A stage may run until the time planned for it and all before it is over, so what one does not need the next ones have.
Kernels compiled by Triton and by torch.compile are kept in build/triton-cache and build/inductor-cache (or where
TRITON_CACHE_DIR and TORCHINDUCTOR_CACHE_DIR say): brought along to another machine of this kind they save minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.rows import append

ROOT = Path(__file__).resolve().parents[1]
ROWS = "rows.jsonl"
SECONDS = 530.0
GRACE = 5.0
"""Seconds that an interrupted process has for its traceback, and a stage's own figures end before its limit."""

Command = tuple[str, ...]


@dataclass(frozen=True)
class Stage:
    """One stage.

    Fields:
        name: as in --stages.
        seconds: planned; all stages together are stretched or shrunk to the time of the run.
        commands: process name -> words; they run side by side. "{seconds}" is replaced by what is left for them,
            "{rows}" by the file of the rows, "{out}" by the folder.
        environment: variables added for them.
        gate: a failure ends the run.
        counts: a failure makes the run's exit status 1.
    """

    name: str
    seconds: float
    commands: Mapping[str, Command]
    environment: Mapping[str, str] = field(default_factory=dict)
    gate: bool = False
    counts: bool = True


def run(stages: Sequence[Stage], out: Path, seconds: float = SECONDS) -> int:
    """Run ``stages`` in order within ``seconds``; the exit status."""
    begin, planned, scale = time.monotonic(), 0.0, seconds / sum(stage.seconds for stage in stages)
    status, closed = 0, None
    for stage in stages:
        planned += stage.seconds * scale
        if closed is not None:
            append(out / ROWS, {"stage": stage.name, "outcome": f"not run: {closed} failed"})
            continue
        left = begin + planned - time.monotonic()
        print(f"== {stage.name} ({time.monotonic() - begin:.0f} s so far, {left:.0f} s for it)", flush=True)
        if not _run_stage(stage, out, left) and stage.counts:
            status = 1
            closed = stage.name if stage.gate else None
    words = "FAILED" if status else "passed"
    print(f"gpu: {words} in {time.monotonic() - begin:.0f} s, see {out}", flush=True)
    return status


def _run_stage(stage: Stage, out: Path, seconds: float) -> bool:
    """Whether all processes of the stage ended well; writes a row for each and prints the end of what failed."""
    begin = time.monotonic()
    for name in stage.commands:
        (out / f"{name}.xml").unlink(missing_ok=True)  # of an earlier run into the same folder
    own = {"seconds": f"{max(seconds - 2 * GRACE, 1.0):.0f}", "rows": str(out / ROWS), "out": str(out)}
    running = {
        name: _start([word.format(**own) for word in words], out / f"{name}.log", stage.environment)
        for name, words in stage.commands.items()
    }
    ended = _wait(running, begin + seconds - GRACE)
    for name, (outcome, moment) in ended.items():
        row = {"stage": stage.name, "process": name, "outcome": outcome, "seconds": round(moment - begin, 1)}
        append(out / ROWS, row | _tests(out / f"{name}.xml"))
        print(f"{name}: {outcome}", flush=True)
        if outcome != "ok":
            print(_end_of(out / f"{name}.log", 60 if stage.gate else 8), flush=True)
    return all(outcome == "ok" for outcome, _ in ended.values())


def _start(words: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    caches = {
        "TRITON_CACHE_DIR": str(ROOT / "build" / "triton-cache"),
        "TORCHINDUCTOR_CACHE_DIR": str(ROOT / "build" / "inductor-cache"),
    }
    variables = {**caches, **os.environ, "PYTHONUNBUFFERED": "1", **environment}
    with log.open("wb") as file, _heard():
        # A group of its own, so that children of a process that hangs end with it.
        return subprocess.Popen(
            words, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


@contextmanager
def _heard() -> Iterator[None]:
    """A shell that starts this in the background has told it, and so all it starts, to ignore Ctrl-C: not these."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _wait(running: Mapping[str, subprocess.Popen[bytes]], deadline: float) -> dict[str, tuple[str, float]]:
    """How each ended, and when: by itself, or stopped at ``deadline``, first by what makes Python say where it was."""
    ended: dict[str, tuple[str, float]] = {}

    def look(until: float, words: str) -> None:
        while len(ended) < len(running):
            for name, process in running.items():
                if name not in ended and process.poll() is not None:
                    code = process.returncode
                    ended[name] = words or ("ok" if code == 0 else f"failed with {code}"), time.monotonic()
            if time.monotonic() >= until:
                break
            time.sleep(0.02)

    look(deadline, "")
    for name, process in running.items():
        if name not in ended:
            process.send_signal(signal.SIGINT)
    look(deadline + GRACE, "stopped: its time was over")
    for name, process in running.items():
        ended.setdefault(name, ("killed: its time was over", time.monotonic()))
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return {name: ended[name] for name in running}


def _tests(report: Path) -> dict[str, Any]:
    """What a JUnit report says: counts and the names of what failed."""
    if not report.exists():
        return {}
    try:
        root = ElementTree.parse(report).getroot()
    except ElementTree.ParseError:
        return {}
    keys = ("tests", "failures", "errors", "skipped")
    counts = {key: sum(int(suite.get(key, 0)) for suite in root.iter("testsuite")) for key in keys}
    failed = [
        f"{case.get('classname')}::{case.get('name')}"
        for case in root.iter("testcase")
        if case.find("failure") is not None or case.find("error") is not None
    ]
    return {**counts, "failed": failed}


def _end_of(log: Path, lines: int) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def stages(python: str, commit: str | None) -> list[Stage]:
    """The run that `make gpu` does."""

    def figures(group: str) -> Command:
        return (python, "-m", "bench.gpu_figures", group, "{rows}", "--seconds", "{seconds}")

    def tests(name: str, *words: str) -> Command:
        plain = ("-v", "--durations=15", "-p", "no:cacheprovider", "--continue-on-collection-errors")
        return (python, "-m", "pytest", *plain, f"--junitxml={{out}}/{name}.xml", *words)

    named = ("--commit", commit) if commit else ()
    breaking = "tests/reverse/test_captures_that_fail.py"
    found = [
        Stage("environment", 70, {"environment": (*figures("environment"), *named)}),
        Stage("smoke", 70, {"smoke": figures("smoke")}, gate=True),
        Stage("headlines", 80, {"headlines": figures("headlines")}),
        Stage(
            "tests",
            130,
            {
                "captures": tests("captures", "-m", "gpu", "tests/reverse", f"--ignore={breaking}"),
                "triton": tests("triton", "-m", "gpu", "tests/kernels/triton", "tests/nets"),
                "cuda": tests("cuda", "-m", "gpu", "tests/kernels", "--ignore=tests/kernels/triton"),
            },
        ),
        # A capture that failed leaves torch's allocator broken for the rest of a process.
        Stage("failing-captures", 15, {"failing-captures": tests("failing-captures", breaking)}),
        Stage("norms", 25, {"norms": figures("norms")}),
        Stage("kernels", 15, {"kernels": figures("kernels")}),
        Stage("compiled", 95, {"compiled": figures("compiled")}),
        Stage("sweep", 10, {"sweep": figures("sweep")}),
    ]
    sanitizer = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
    if sanitizer is not None:
        words = (sanitizer, "--tool", "memcheck", "--error-exitcode", "9", "--target-processes", "all")
        smallest = tests("memcheck", "-m", "gpu", "tests/kernels/test_cuda.py", "-k", "test_smallest")
        # Inside torch's own segments of 2 MiB nothing is out of bounds.
        uncached = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        found.append(Stage("memcheck", 20, {"memcheck": (*words, *smallest)}, uncached, counts=False))
    return [stage for stage in found if stage.name != "failing-captures" or (ROOT / breaking).exists()]


def commit_here() -> str | None:
    """The commit of this tree; None where it did not travel with its history."""
    try:
        words = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--commit", help="what is measured; asked of git where there is a .git")
    parser.add_argument("--stages", help="only these, separated by commas")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for all stages together")
    options = parser.parse_args(words)
    chosen = stages(sys.executable, options.commit or commit_here())
    if options.stages:
        names = options.stages.split(",")
        known = [stage.name for stage in chosen]
        if unknown := [name for name in names if name not in known]:
            parser.error(f"--stages: expected some of {', '.join(known)}, got {', '.join(unknown)}")
        chosen = [stage for stage in chosen if stage.name in names]
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    return run(chosen, out, options.seconds)


if __name__ == "__main__":
    sys.exit(main())
