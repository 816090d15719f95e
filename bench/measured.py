"""How the benches run under pytest-benchmark: small sizes, a group per case, few rounds.

    pytest bench --benchmark-only                        all of them: less than three minutes on one core
    pytest bench --benchmark-only --benchmark-autosave   and store the run, before a change
    pytest bench --benchmark-only --benchmark-compare    beside the stored run, after it

These figures tell one state of the code from another. Between two things of one state the ratios count that
`python -m bench.bench_NAME` prints: there the cases take turns, here they run one after another.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

ROUNDS = 5


def measure(benchmark: Any, group: str, run: Callable[[], object], calls: int = 1) -> None:
    """Time ``run`` in the group called ``group``: ``ROUNDS`` rounds of ``calls`` calls each, after one that warms up.

    Args:
        benchmark: the fixture.
        calls: more than one for what takes microseconds, so that a round is longer than the clock's own errors.
    """
    benchmark.group = group
    benchmark.extra_info["threads"] = torch.get_num_threads()
    benchmark.extra_info["torch"] = torch.__version__
    benchmark.pedantic(run, rounds=ROUNDS, iterations=calls, warmup_rounds=1)
