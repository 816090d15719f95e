"""A sampler is a table: one row of float64 coefficients per step.

Row k maps the state x (and, for two-step methods, one saved register h) to

    x' = a x + b e + c g + d z + p h,        h' = q x + r e + u g + s h,

with e the predicted noise, g the guidance gradient and z standard normal noise. Everything that distinguishes
one solver from another is in the table, so one loop, one adjoint and one kernel serve all of them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property

import numpy as np

from ..errors import mistake
from ..shown import LISTED, Card, Grid, Shown

KERNEL_COLUMNS = ("a", "b", "c", "d", "p", "q", "r", "u", "s", "alpha", "sigma", "clip")
"""Columns the row kernel reads, in this order."""

KERNEL_WIDTH = 16
"""Row stride of the kernel matrix; the columns after ``KERNEL_COLUMNS`` are zero."""

DIGEST_COLUMNS = (*"abcdpqrus", "alpha", "sigma", "t", "tau", "index", "clip", "forward")
"""Columns that every digest holds. Never add one: a later column is digested where it differs from its default."""


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        a, b, c, d, p, q, r, u, s: coefficients of x, e, g, z and h, named as above.
        alpha, sigma: the state the network sees is alpha x0 + sigma noise.
        t: diffusion time in (0, 1] (for discrete chains (index + 1) / n).
        tau: label of a network with real-valued time input.
        index: label of a network with integer input.
        clip: whether the predicted clean image is clamped to [-1, 1].
        forward: whether this is the diffusion of the input, which calls no network.
        log_range: log of the least over the largest variance where the network learned one between them; d and c are
            then those of the largest. Only a procedure reads it (``fastpure.methods.learned``).
    """

    a: float
    b: float = 0.0
    c: float = 0.0
    d: float = 0.0
    p: float = 0.0
    q: float = 0.0
    r: float = 0.0
    u: float = 0.0
    s: float = 0.0
    alpha: float = 1.0
    sigma: float = 0.0
    t: float = 0.0
    tau: float = 0.0
    index: int = 0
    clip: bool = False
    forward: bool = False
    log_range: float = 0.0

    @property
    def calls_network(self) -> bool:
        """Whether the predicted noise enters the step."""
        return self.b != 0.0 or self.r != 0.0

    @property
    def calls_guidance(self) -> bool:
        """Whether the guidance gradient enters the step."""
        return self.c != 0.0 or self.u != 0.0

    @property
    def calls_something(self) -> bool:
        """Whether an answer enters the step, the denoiser's or the guidance's."""
        return self.calls_network or self.calls_guidance

    @property
    def writes_register(self) -> bool:
        """Whether the step leaves something in the register."""
        return any(value != 0.0 for value in (self.q, self.r, self.u, self.s))


@dataclass(frozen=True, repr=False)
class StepTable(Shown):
    """A whole sampler: immutable, hashable by value, concatenated with ``+`` for multi-round methods.

    Attributes:
        rows: the steps, in the order in which they are taken.

    Raises:
        ValueError: no rows, a coefficient that is not finite, a network row without a noise level, or a row
            that reads a register which no earlier row wrote.
    """

    rows: tuple[Row, ...]

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError(mistake("rows", "at least one Row", "none"))
        written = False
        for k, row in enumerate(self.rows):
            values = [float(getattr(row, field.name)) for field in fields(row)]
            if not all(math.isfinite(value) for value in values):
                raise ValueError(mistake("rows", "finite coefficients", f"{row} at row {k}"))
            if row.calls_network and not (row.sigma > 0 and row.alpha > 0):
                raise ValueError(mistake("rows", "sigma > 0 and alpha > 0 where a network is called", row))
            if (row.p != 0.0 or row.s != 0.0) and not written:
                raise ValueError(mistake("rows", "a register written before it is read", f"row {k}"))
            written = row.writes_register

    def __len__(self) -> int:
        return len(self.rows)

    def __add__(self, other: StepTable) -> StepTable:
        return StepTable(self.rows + other.rows)

    def column(self, name: str) -> np.ndarray:
        """One column as a read-only array [K]: float64, int64 for ``index``, bool for ``clip``, ``forward``."""
        dtype = {"index": np.int64, "clip": np.bool_, "forward": np.bool_}.get(name, np.float64)
        column: np.ndarray = np.array([getattr(row, name) for row in self.rows], dtype=dtype)
        column.setflags(write=False)
        return column

    @cached_property
    def matrix(self) -> np.ndarray:
        """What the row kernel reads: float64 [K, KERNEL_WIDTH]."""
        matrix = np.zeros((len(self.rows), KERNEL_WIDTH), dtype=np.float64)
        for j, name in enumerate(KERNEL_COLUMNS):
            matrix[:, j] = self.column(name)
        matrix.setflags(write=False)
        return matrix

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the table's values; names cached graphs and stored results.

        A column that this library gains later leaves the digest of a table that does not use it as it was, so that
        run files outlive it.
        """
        text = "\n".join(_digested(row) for row in self.rows)
        return hashlib.sha256(text.encode()).hexdigest()

    @property
    def n_network_calls(self) -> int:
        """How many rows call the denoiser; the guidance, where none does. ``Method.network_calls`` is the cost."""
        return sum(self.counted)

    @property
    def counted(self) -> tuple[bool, ...]:
        """Which rows are network calls: those that call the denoiser, or the guidance where none does."""
        denoised = tuple(row.calls_network for row in self.rows)
        return denoised if any(denoised) else tuple(row.calls_guidance for row in self.rows)

    @property
    def highest_level(self) -> float:
        """Highest noise level, sigma / alpha, at which a row asks the denoiser; 0 where none does."""
        return max((row.sigma / row.alpha for row in self.rows if row.calls_network), default=0.0)

    @property
    def n_forward_rows(self) -> int:
        """How many rows diffuse instead of denoise."""
        return sum(row.forward for row in self.rows)

    @property
    def uses_guidance(self) -> bool:
        """Whether any row has a guidance coefficient."""
        return any(row.calls_guidance for row in self.rows)

    def guided(self, scale: float) -> StepTable:
        """The same sampler for the score plus ``scale`` times the guidance gradient.

        The score is -e / sigma, so adding scale * g to it subtracts scale * sigma * g from e wherever e enters.
        """
        return StepTable(
            tuple(
                replace(row, c=-scale * row.sigma * row.b, u=-scale * row.sigma * row.r) for row in self.rows
            )
        )

    def pulled(self, coefficients: Sequence[float]) -> StepTable:
        """The same sampler with ``coefficients[k]`` times the guidance gradient added at row k."""
        rows = zip(self.rows, coefficients, strict=True)
        return StepTable(tuple(replace(row, c=float(c)) for row, c in rows))

    def corrected(self, implied: bool = False) -> StepTable:
        """The same sampler with the guidance added to the predicted clean image wherever a row uses that.

        A row is A x0hat + B e + ..., x0hat = (x - sigma e) / alpha: c = A, and e stays what the denoiser answered.
        ``implied``: e is that of the new image too, (x - alpha x0hat) / sigma; c = -(alpha / sigma) b.
        """
        rows = []
        for row in self.rows:
            if not row.calls_network:
                rows.append(row)
                continue
            implied_c, implied_u = (-row.alpha / row.sigma * value for value in (row.b, row.r))
            c, u = (implied_c, implied_u) if implied else (row.alpha * row.a, row.alpha * row.q)
            rows.append(replace(row, c=c, u=u))
        return StepTable(tuple(rows))

    def weakened(self, share: float) -> StepTable:
        """The same sampler with its guidance gradient times ``share``."""
        return StepTable(tuple(replace(row, c=share * row.c, u=share * row.u) for row in self.rows))

    def _shown(self) -> Card:
        times = [row.t for row in self.rows if row.t]
        rows = [("calls", f"{self.n_network_calls} of the network" + (", guided" * self.uses_guidance))]
        if times:
            rows.append(("t", f"{max(times):g} to {min(times):g}"))
        if self.n_forward_rows:
            rows.append(("diffused", f"by {self.n_forward_rows} of the rows"))
        noisy = sum(row.d != 0.0 for row in self.rows)
        rows.append(("noise", "in no row" if not noisy else f"in {noisy} of {len(self)} rows"))
        names = [
            name
            for name in ("t", "tau", "index", "alpha", "sigma", *"abcdpqrus")
            if any(getattr(row, name) for row in self.rows)
        ]
        n = len(self)
        shown = range(n) if n <= LISTED else (*range(LISTED // 2), None, *range(n - LISTED // 2, n))
        lines = tuple(
            ("…", *("" for _ in names))
            if k is None
            else (str(k), *(f"{getattr(self.rows[k], name):.6g}" for name in names))
            for k in shown
        )
        return Card(f"StepTable of {n} rows", tuple(rows), grids=(Grid("", ("row", *names), lines),))

    def __str__(self) -> str:
        names = ("t", "tau", "alpha", "sigma", "a", "b", "c", "d", "p")
        lines = ["row kind    " + "".join(f"{name:>12}" for name in names)]
        for k, row in enumerate(self.rows):
            kind = "forward" if row.forward else "clipped" if row.clip else "reverse"
            lines.append(f"{k:>3} {kind} " + "".join(f"{getattr(row, name):12.6g}" for name in names))
        return "\n".join(lines)


def _digested(row: Row) -> str:
    """The text of a row in a digest: ``repr`` as of version 0.1.0, and what came later where it is used."""
    later = [field for field in fields(row) if field.name not in DIGEST_COLUMNS]
    used = [field.name for field in later if getattr(row, field.name) != field.default]
    return "Row(" + ", ".join(f"{name}={getattr(row, name)!r}" for name in (*DIGEST_COLUMNS, *used)) + ")"
