"""How far a purification moves an image, and the bounds on it: proposition 2 of COUP, and one that needs no constants.

A table's end state is affine in what entered its rows: x_K = P x_0 + sum_k (B_k e_k + C_k g_k + D_k z_k), where P is
the product of all a, and B_k, C_k, D_k are b_k, c_k, d_k times A_k = prod_{j>k} a_j (with a register, its matrix form).
The triangle inequality gives a bound of four parts that holds for every image and table without any constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from ..errors import mistake
from ..methods import Method
from ..progress import Progress
from ..purify import Purifier
from ..reverse import RecordedNoise, Seen, SplitNoise
from ..schedule import VP, StepTable
from ..shown import Card, Shown, per_image, spread
from .checks import check_images, check_purifier, norms

UNDIFFUSED = ("coup", "coup_unguided")
"""Methods that solve the reverse VP-SDE from the image itself: proposition 2 speaks of no others."""

ADDS_UP = 1e-3
"""Share by which the rows' sum may miss the end state: rounding of a float32 state leaves a hundredth of it."""


@final
@dataclass(frozen=True)
class Constants:
    """The constants of proposition 2, in [-1, 1] coordinates: |x| <= c_x, |score| <= c_s / 2, |guidance| <= c_p / 2."""

    c_x: float
    c_s: float
    c_p: float = 0.0

    def __post_init__(self) -> None:
        for name in ("c_x", "c_s", "c_p"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise TypeError(mistake(name, "a number", f"{type(value).__name__} {value!r}"))
            if not 0 <= value < math.inf:
                raise ValueError(mistake(name, "a finite number of at least 0", value))


@final
@dataclass(frozen=True, eq=False, repr=False)
class DistanceBound(Shown):
    """How far images were moved, and what bounds it. All float64 [B], L2 norms in [-1, 1] coordinates.

    Halved they are norms of [0, 1] images. Clamping the output to the range of pixels moves no image further.

    Attributes:
        moved: |x_K - x_0|, the purified image before it is clamped against the input.
        image: |P - 1| |x_0|, what the linear part does to the input.
        noise: |sum_k D_k z_k|, all noise together as it arrives at the end.
        score: sum_k |B_k| |e_k| over the predicted noise (that of the clamped image where a row clips).
        guidance: sum_k |C_k| |g_k| over the guidance gradients.
        printed: the form of COUP's proposition 2, (e^gamma - 1) c_x + noise + gamma (c_s + scale c_p), gamma being half
            the integral of beta from 0 to t. No bound: the linear part acts on what the score adds too. None for
            methods of which the proposition does not speak.
        corrected: the same with e^gamma - 1 as the last factor: a bound for the exact solution of the SDE. Euler's
            steps may leave it by their error.
        c_x, c_s, c_p: the constants in these two, given or the least that hold on the way of each image; None as above.
    """

    moved: Tensor
    image: Tensor
    noise: Tensor
    score: Tensor
    guidance: Tensor
    printed: Tensor | None = None
    corrected: Tensor | None = None
    c_x: Tensor | None = None
    c_s: Tensor | None = None
    c_p: Tensor | None = None

    @property
    def bound(self) -> Tensor:
        """The sum of the four parts: ``moved`` is at most this, for any table, up to rounding."""
        return self.image + self.noise + self.score + self.guidance

    def _shown(self) -> Card:
        columns = {name: getattr(self, name) for name in ("moved", "bound", *_PARTS, "corrected", "printed")}
        known = {name: values for name, values in columns.items() if values is not None}
        return Card(
            f"DistanceBound of {len(self.moved)} images, L2 in [-1, 1] coordinates",
            tuple((name, spread(values)) for name, values in known.items()),
            grids=(per_image("images", tuple(known), tuple(known.values())),),
        )

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {_mean(getattr(self, name))}" for name in _PARTS)
        n = len(self.moved)
        lines = [
            f"moved      {_mean(self.moved)}   (mean L2 distance of {n} images, [-1, 1] coordinates)",
            f"bound      {_mean(self.bound)}   ({parts})",
        ]
        if self.printed is not None and self.corrected is not None:
            lines.append(f"corrected  {_mean(self.corrected)}   (proposition 2 of COUP with e^gamma - 1)")
            lines.append(f"printed    {_mean(self.printed)}   (with gamma, which is no bound)")
        return "\n".join(lines)


_PARTS = ("score", "noise", "image", "guidance")


def distance_bound(
    purifier: Purifier,
    x: Tensor,
    sample_ids: Tensor | list[int] | None = None,
    draw: int | Tensor = 0,
    *,
    noise: RecordedNoise | SplitNoise | None = None,
    constants: Constants | None = None,
    progress: bool = False,
) -> DistanceBound:
    """How far the purifier moves each image, the bound by its table, and those of COUP's proposition 2.

    One purification without gradient. Two-step tables (DPM-Solver, Heun) and rows that clip count exactly too. A
    purifier for images of another size is measured at its model's size.

    Args:
        purifier: what purifies; its method must be a table.
        x: images [B, C, H, W] in [0, 1], at least one.
        sample_ids, draw, noise: as for calling the purifier.
        constants: for the forms of proposition 2; measured on the way if None.
        progress: show a bar.

    Raises:
        TypeError, ValueError: not a purifier, no such images, a method with a procedure of its own or that prepares the
            image, ``constants`` for a method of which the proposition does not speak, or smaller than what was met on
            the way.
    """
    check_purifier(purifier)
    check_images(x)
    method = purifier.method
    if method.prepare is not None:
        got = f"{method.name}, whose {type(method.prepare).__name__} moves it too"
        raise ValueError(mistake("method", "one whose table begins with the image itself", got))
    spoken_of = method.name in UNDIFFUSED and method.procedure is None
    if constants is not None and not isinstance(constants, Constants):
        raise TypeError(
            mistake("constants", "fastpure.diagnostics.Constants or None", type(constants).__name__)
        )
    if constants is not None and not spoken_of:
        expected = f"None for {method.name}: proposition 2 is about {' and '.join(UNDIFFUSED)}"
        raise ValueError(mistake("constants", expected, constants))
    way = _Way(method.steps)
    with Progress(len(method.steps), "steps", doing="purifying", shown=progress) as bar:

        def see(seen: Seen) -> None:
            way.see(seen)
            bar.step()

        end = purifier.watch(x, see, sample_ids, draw, noise=noise)
    way.check(method, end)
    found = DistanceBound(
        moved=norms(end - way.start),
        image=abs(way.coefficients.initial - 1.0) * norms(way.start),
        noise=norms(way.noise),
        score=way.score,
        guidance=way.guidance,
    )
    return _with_proposition(found, way, constants) if spoken_of else found


@dataclass(frozen=True)
class _Coefficients:
    """What the initial state, and e, g and z of every row, are multiplied with on their way to the end state."""

    initial: float
    score: tuple[float, ...]
    guidance: tuple[float, ...]
    noise: tuple[float, ...]

    @staticmethod
    def of(table: StepTable) -> _Coefficients:
        found = list(_Coefficients._backwards(table))[::-1]
        score, guidance, noise, initial = zip(*found, strict=True)
        return _Coefficients(initial[0], score, guidance, noise)

    @staticmethod
    def _backwards(table: StepTable) -> Iterator[tuple[float, float, float, float]]:
        state, register = 1.0, 0.0  # what the end state depends on, after the row
        for row in reversed(table.rows):
            score, guidance = state * row.b + register * row.r, state * row.c + register * row.u
            noise = state * row.d
            state, register = state * row.a + register * row.q, state * row.p + register * row.s
            yield score, guidance, noise, state


class _Way:
    """Sums over the rows, as `Purifier.watch` shows them."""

    start: Tensor

    def __init__(self, table: StepTable) -> None:
        self.table, self.coefficients = table, _Coefficients.of(table)

    def see(self, seen: Seen) -> None:
        row, known = self.table.rows[seen.k], self.coefficients
        if seen.k == 0:
            self.start = seen.state
            zeros = torch.zeros(len(seen.state), dtype=torch.float64, device=seen.state.device)
            self.score, self.guidance = zeros.clone(), zeros.clone()
            self.largest_score, self.largest_guidance, self.scale = zeros.clone(), zeros.clone(), 0.0
            self.noise = torch.zeros_like(seen.state, dtype=torch.float64)
            self.sum = known.initial * seen.state.double()
        if seen.noise is not None:
            self.noise += known.noise[seen.k] * seen.noise.double()
        if seen.noise_pred is not None:
            size = norms(seen.noise_pred)
            self.score += abs(known.score[seen.k]) * size
            self.largest_score = torch.maximum(self.largest_score, size / row.sigma)
            self.sum += known.score[seen.k] * seen.noise_pred.double()
        if seen.guidance is not None:
            size = norms(seen.guidance)
            self.guidance += abs(known.guidance[seen.k]) * size
            self.largest_guidance = torch.maximum(self.largest_guidance, size)
            self.sum += known.guidance[seen.k] * seen.guidance.double()
            # The row weighs the score with -b sigma and the guidance with scale times as much.
            self.scale = max(self.scale, abs(row.c / (row.b * row.sigma)) if row.b else 0.0)

    def check(self, method: Method, end: Tensor) -> None:
        """Raise RuntimeError where something else than the rows has moved the image: the bound would not hold."""
        off = norms(end.double() - self.sum - self.noise)
        if bool((off > ADDS_UP * (1.0 + norms(end))).any()):
            raise RuntimeError(
                f"the rows of {method.name} do not add up to the purified image (off by {float(off.max()):.3g}): "
                "something else moves it, so that no bound can be told from its table"
            )


def _with_proposition(found: DistanceBound, way: _Way, constants: Constants | None) -> DistanceBound:
    """``found`` with both forms of proposition 2.

    Their noise part, sqrt(e^(2 gamma) - 1) |noise|, is the noise that was drawn, as it arrives at the end.
    """
    met = (norms(way.start), 2.0 * way.largest_score, 2.0 * way.largest_guidance)
    if constants is None:
        c_x, c_s, c_p = met
    else:
        given = {name: getattr(constants, name) for name in ("c_x", "c_s", "c_p")}
        for (name, value), least in zip(given.items(), met, strict=True):
            if value < float(least.max()) * (1.0 - 1e-6):
                expected = f"at least {float(least.max()):.6g}, which was met on the way"
                raise ValueError(mistake(f"constants.{name}", expected, value))
        c_x, c_s, c_p = (torch.full_like(found.moved, value) for value in given.values())
    gamma = -math.log(VP().alpha(way.table.rows[0].t))
    grown, pushed = math.expm1(gamma), c_s + way.scale * c_p
    common = grown * c_x + found.noise
    return DistanceBound(
        found.moved,
        found.image,
        found.noise,
        found.score,
        found.guidance,
        printed=common + gamma * pushed,
        corrected=common + grown * pushed,
        c_x=c_x,
        c_s=c_s,
        c_p=c_p,
    )


def _mean(values: Tensor) -> str:
    return f"{float(values.mean()):.4g}"
