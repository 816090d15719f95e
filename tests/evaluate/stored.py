"""Runs of twelve images, and a hand-made one."""

from __future__ import annotations

import functools

import numpy as np

from fastpure.evaluate.record import Course, ImageRecord, Judged
from tests.evaluate import toys
from tests.evaluate.toys import SHAPE

N = 12
evaluate = functools.partial(toys.evaluate, n=N, batch_size=2)
ONE = {"data": {"n": N, "image_shape": list(SHAPE), "checksum": "c"}, "protocol": {}, "attack": None}


def record(position: int) -> ImageRecord:
    rng = np.random.default_rng(position)
    judged = {
        name: Judged(
            rng.integers(0, 3, 4),
            rng.normal(size=4).astype(np.float32),
            np.random.default_rng([position, len(name)]).normal(size=(4, 3)).astype(np.float32),
        )
        for name in ("clean", "adversarial")
    }
    x = rng.random(SHAPE, dtype=np.float32)
    trace = rng.normal(size=3).astype(np.float32)
    return ImageRecord(
        position, 7 + position, position % 3, x, x + 1, 0.1 * position, True, None, trace, judged,
        course=Course(trace / 3, np.cumsum(trace**2), 8.0 + position), ending=("the end", f"left out: {position} é"),
    )  # fmt: skip
