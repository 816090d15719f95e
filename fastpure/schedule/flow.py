"""Solvers of the straight paths of flow matching as tables.

Let s be the distance from the clean image (``nets.conversion``). The velocity dx/ds is affine in the state and the
noise that a denoiser predicts, so Euler's and Heun's steps are ordinary rows.
"""

from __future__ import annotations

from itertools import pairwise

from ..errors import mistake, positive, whole
from .table import Row, StepTable


def _grid(start: float, n_steps: int) -> list[float]:
    """``n_steps`` equal steps from ``start`` to 0."""
    return [start * (n_steps - k) / n_steps for k in range(n_steps + 1)]


def _at(s: float) -> dict[str, float]:
    """The fields of a Row on the path (1 - s) x0 + s noise; the real label is the one diffusers' networks are told."""
    return {"alpha": 1.0 - s, "sigma": s, "t": s, "tau": 1000.0 * s}


def rectified_flow(t: float, n_steps: int, heun: bool = False) -> StepTable:
    """From x = (1 - t) x0 + t noise to the image in equal steps of the ODE dx/ds = noise - x0 (Liu et al. 2022).

    With x and the predicted noise e the velocity is (e - x) / (1 - s). Euler's step is order 1, ``heun`` order 2
    with two calls per step but the last, at whose end there is no noise to predict. Heun's register holds the step's
    start plus half its first slope.

    Args:
        t: in (0, 1); at 1 there would be no image in the state.
    """
    if positive("t", t) >= 1:
        raise ValueError(mistake("t", "a time in (0, 1)", t))
    whole("n_steps", n_steps, minimum=1)
    rows: list[Row] = []
    for now, later in pairwise(_grid(t, n_steps)):
        step, alpha, after = now - later, 1.0 - now, 1.0 - later
        corrects = heun and later > 0.0
        half = {"q": 1.0 + 0.5 * step / alpha, "r": -0.5 * step / alpha} if corrects else {}
        rows.append(Row(a=after / alpha, b=-step / alpha, **half, **_at(now)))  # type: ignore[arg-type]
        if corrects:
            rows.append(Row(a=0.5 * step / after, b=-0.5 * step / after, p=1.0, **_at(later)))  # type: ignore[arg-type]
    return StepTable(tuple(rows))


def straight_path(start: float, n_steps: int) -> StepTable:
    """Euler's steps of dx/ds = e from s = 1 - ``start`` to the clean image, e what the path adds s times to it.

    FlowPure's x' = x + h v with v = -e: a = 1, b = -h.

    Args:
        start: FlowPure's t0 in [0, 1), 0 being the attacked image.
    """
    if not 0.0 <= start < 1.0:
        raise ValueError(mistake("start", "a time in [0, 1)", start))
    whole("n_steps", n_steps, minimum=1)
    nodes = _grid(1.0 - start, n_steps)
    return StepTable(
        tuple(
            Row(a=1.0, b=later - now, alpha=1.0, sigma=now, t=now, tau=1000.0 * now)
            for now, later in pairwise(nodes)
        )
    )
