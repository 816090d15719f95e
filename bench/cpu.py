"""Purification and exact gradient on this machine's processor against plain and compiled loops: the results file.

    python -m bench.cpu build/cpu --report bench/results/cpu.md
    python -m bench.cpu build/cpu --workloads digits --precisions fp32 --repeats 3        a quick try
    python -m bench.cpu build/cpu --compile default max-autotune                          both modes of torch.compile

Every case (a workload in one precision, purified or differentiated) runs in a process of its own and appends its row to
OUT/rows.jsonl as soon as it is measured; its output is OUT/WORKLOAD-KIND-PRECISION.log. After a kill the same command
goes on with what is missing. Rows of another state of the code, of another torch, processor or settings do not count.
The exit status is 1 if a case failed; the report names it. Leave the machine alone meanwhile, or read the ratios by
processor time.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from bench.cpu_cases import KINDS, PRECISIONS, WORKLOADS, identity
from bench.cpu_report import report
from bench.gpu import ROOT, ROWS, commit_here
from bench.rows import append, read
from fastpure.baselines import Processor
from fastpure.baselines.plain_network import COMPILE_MODES
from fastpure.errors import whole
from fastpure.files import replace_file

LIMIT = 3600.0
"""Seconds after which a case is stopped."""


def state_of_code() -> str:
    """The commit of this tree, and a digest of what was changed since in the code that is measured."""
    commit = commit_here()
    if commit is None:
        return "unknown"
    words = ["git", "-C", str(ROOT), "diff", "HEAD", "--", "fastpure", "csrc", "bench/*.py"]
    changes = subprocess.run(words, capture_output=True, check=True, timeout=60).stdout
    return f"{commit[:12]} with changes {hashlib.sha256(changes).hexdigest()[:8]}" if changes else commit[:12]


def missing(plan: Sequence[dict[str, Any]], rows: Path) -> list[dict[str, Any]]:
    """Of the planned identities those without a measured row."""
    found = read(rows) if rows.exists() else []
    return [
        case
        for case in plan
        if not any("cases" in row and all(row.get(key) == case[key] for key in case) for row in found)
    ]


def run(case: dict[str, Any], out: Path) -> bool:
    """Measure a case in a process of its own; whether it ended well. A failure leaves a row that says how."""
    names = [str(case[key]) for key in ("workload", "kind", "precision")]
    words = [sys.executable, "-m", "bench.cpu_cases", str(out / ROWS), *names]
    words += ["--repeats", str(case["repeats"]), "--commit", case["commit"], "--modes", *case["modes"]]
    threads = str(WORKLOADS[case["workload"]].threads or Processor.here().cores)
    # Before the process starts: what torch.compile generates and MKL ask here, not torch.
    variables = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads}
    log = out / f"{'-'.join(names)}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, cwd=ROOT, env=variables, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        code = process.wait(LIMIT)
        outcome = "" if code == 0 else f"failed with {code}"
    except subprocess.TimeoutExpired:
        outcome = f"stopped after {LIMIT:.0f} s"
    finally:  # Ctrl-C too: the compiler's workers end with their parent
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    if outcome:
        last = log.read_text(errors="replace").splitlines()[-1:]
        append(out / ROWS, {**case, "outcome": f"{outcome}: {' '.join(last)}"})
    return not outcome


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--report", type=Path, help="the results file (default: OUT/cpu.md)")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=WORKLOADS)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--precisions", nargs="+", default=list(PRECISIONS), choices=PRECISIONS)
    parser.add_argument("--compile", nargs="*", default=["default"], choices=COMPILE_MODES, dest="modes")
    listed = ", ".join(f"{workload.name} {workload.repeats}" for workload in WORKLOADS.values())
    parser.add_argument("--repeats", type=int, help=f"measured turns of every case (default: {listed})")
    options = parser.parse_args(words)
    if options.repeats is not None:
        whole("--repeats", options.repeats, 1)
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    commit = state_of_code()
    plan = [
        identity(name, kind, precision, options.modes, options.repeats or WORKLOADS[name].repeats, commit)
        for name, kind, precision in itertools.product(options.workloads, options.kinds, options.precisions)
    ]
    status, todo = 0, missing(plan, out / ROWS)
    for number, case in enumerate(todo, 1):
        name, begin = f"{case['workload']}, {case['kind']}, {case['precision']}", time.monotonic()
        print(f"{number} of {len(todo)}: {name}", end=" ", flush=True)
        good = run(case, out)
        print(f"{'ok' if good else 'FAILED'}, {time.monotonic() - begin:.0f} s", flush=True)
        status |= not good
    path = options.report or out / "cpu.md"
    replace_file(path.resolve(), report(plan, read(out / ROWS)).encode())
    print(f"written: {path}")
    return status


if __name__ == "__main__":
    sys.exit(main())
