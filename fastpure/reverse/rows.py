"""How the rows of one purification are carried out: one interface, so that loop and adjoint need not know."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor

from .noise import NoiseSource
from .step import Context, Process, Tape, advance, evaluate, linearize, pull_row

Pulled = tuple[Tensor, tuple["Tensor | None", ...], "Tensor | None"]
"""Cotangents of (state, context, register)."""


class Rows(ABC):
    """The rows of a table for one batch. States and cotangents are [B, C, H, W]; nothing returned is used again."""

    @abstractmethod
    def forward(
        self, k: int, x: Tensor, register: Tensor | None, *, pulled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """The next state and register; ``pulled`` announces that ``backward`` will be asked for this row."""

    @abstractmethod
    def forward_keeping(
        self, k: int, x: Tensor, register: Tensor | None
    ) -> tuple[Tensor, Tensor | None, object | None]:
        """The same, and what ``backward`` needs to do without the networks (None: it will recompute)."""

    @abstractmethod
    def backward(self, k: int, x: Tensor, tape: object | None, v: Tensor, w: Tensor | None) -> Pulled:
        """The transpose of row ``k`` at state ``x`` for cotangents ``v`` of the state and ``w`` of the register."""

    @abstractmethod
    def kept(self, chosen: frozenset[int]) -> frozenset[int]:
        """The rows whose tapes are kept, given what the memory plan chose."""


class EagerRows(Rows):
    """Every operation is launched when it is due."""

    def __init__(self, process: Process, context: Context, noise: NoiseSource) -> None:
        self.process = process
        self.context = context
        self.noise = noise

    def forward(
        self, k: int, x: Tensor, register: Tensor | None, *, pulled: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """See ``Rows.forward``."""
        outputs = evaluate(self.process, k, x, self.context, self.noise)
        return advance(self.process, k, x, register, outputs, self.noise.row(k))

    def forward_keeping(
        self, k: int, x: Tensor, register: Tensor | None
    ) -> tuple[Tensor, Tensor | None, object | None]:
        """See ``Rows.forward_keeping``; what is kept is a ``Tape``."""
        tape = linearize(self.process, k, x, self.context, self.noise)
        outputs = (tape.noise_pred, tape.guidance)
        return *advance(self.process, k, x, register, outputs, self.noise.row(k)), tape

    def backward(self, k: int, x: Tensor, tape: Any, v: Tensor, w: Tensor | None) -> Pulled:
        """See ``Rows.backward``."""
        known = tape if isinstance(tape, Tape) else None
        if known is None and self.process.table.rows[k].calls_network:
            known = linearize(self.process, k, x, self.context, self.noise)
        return pull_row(self.process, k, x, known, v, w)

    def kept(self, chosen: frozenset[int]) -> frozenset[int]:
        """What was chosen."""
        return chosen


def rows_of(process: Process, x: Tensor, context: Context, noise: NoiseSource) -> Rows:
    """The rows of ``process`` for a batch like ``x``: replayed where it has graphs and they work, else eager."""
    eager = EagerRows(process, context, noise)
    return eager if process.graphs is None else process.graphs.rows(eager, x)
