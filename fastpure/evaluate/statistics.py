"""Statistics of randomised defences: what varies with the draws, and paired comparisons of runs.

Accuracies come with Wilson intervals from `fastpure.intervals`; here are the quantities that need the per-image and
per-draw records.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import final

import numpy as np

from ..errors import mistake
from ..intervals import cochran_q, mcnemar
from ..shown import Card, Settings, Shown
from .protocol import Protocol
from .run import Run


@final
@dataclass(frozen=True)
class DrawSpread(Settings):
    """How the accuracy of one draw varies.

    Attributes:
        n_draws: draws per image.
        lowest, highest: accuracy of the worst and of the best single draw over all images.
        std: standard deviation of single-draw accuracies.
        undecided: share of images that are right on some draws and wrong on others.
        p_value: of Cochran's Q test (1950) that all draws are equally hard; small if draws differ by more than
            chance, which independent noise cannot do.
    """

    n_draws: int
    lowest: float
    highest: float
    std: float
    undecided: float
    p_value: float

    def __str__(self) -> str:
        return (
            f"single-draw accuracy {100 * self.lowest:.1f}..{100 * self.highest:.1f} % over {self.n_draws} draws "
            f"(std {100 * self.std:.2f}); {100 * self.undecided:.1f} % of images depend on the draw"
        )


def draw_spread(correct: np.ndarray) -> DrawSpread:
    """Spread over the columns of ``correct``, bool [B, K] with K >= 2."""
    if correct.ndim != 2 or correct.shape[1] < 2:
        raise ValueError(mistake("correct", "of shape [B, K] with K >= 2", list(correct.shape)))
    if not len(correct):
        return DrawSpread(correct.shape[1], math.nan, math.nan, math.nan, math.nan, math.nan)
    by_draw = correct.mean(0, dtype=np.float64)
    mixed = float((correct.any(1) & ~correct.all(1)).mean())
    return DrawSpread(
        n_draws=correct.shape[1],
        lowest=float(by_draw.min()),
        highest=float(by_draw.max()),
        std=float(by_draw.std(ddof=1)),
        undecided=mixed,
        p_value=cochran_q(correct)[1],
    )


@final
@dataclass(frozen=True, repr=False)
class Comparison(Shown):
    """Two runs on the same images, b minus a.

    Attributes:
        names: what was compared.
        protocol, which: under which protocol, on which input ("clean" or "adversarial").
        n: images.
        accuracies: of a and of b.
        difference, low, high: accuracy of b minus that of a with its 95 % interval (Agresti and Min 2005).
        wins, losses: images on which b did better, and worse.
        p_value: exact McNemar; where images have fractional values (`fresh`), the same test on the sign of each
            image's difference.
    """

    names: tuple[str, str]
    protocol: str
    which: str
    n: int
    accuracies: tuple[float, float]
    difference: float
    low: float
    high: float
    wins: int
    losses: int
    p_value: float

    def _shown(self) -> Card:
        accuracies = [
            (f"{which}: {name}", f"{100 * value:.1f} %")
            for which, name, value in zip("ab", self.names, self.accuracies, strict=True)
        ]
        low, high = 100 * self.low, 100 * self.high
        return Card(
            f"Comparison of {self.n} images: b - a = {100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}]",
            (
                *accuracies,
                ("of", f"{self.which} images, {self.protocol}"),
                ("b better", f"on {self.wins} images, worse on {self.losses}"),
                ("p", f"{self.p_value:.3g} (exact McNemar)"),
            ),
        )

    def __str__(self) -> str:
        a, b = (f"{100 * value:.1f} %" for value in self.accuracies)
        return (
            f"{self.which}, {self.protocol}, {self.n} images: a {a}, b {b}\n"
            f"b - a = {100 * self.difference:+.1f} points [{100 * self.low:+.1f}, {100 * self.high:+.1f}]; "
            f"b better on {self.wins} images, worse on {self.losses}; exact McNemar p = {self.p_value:.3g}"
        )


def compare(
    run_a: Run | str | Path,
    run_b: Run | str | Path,
    *,
    protocol: Protocol | None = None,
    which: str = "adversarial",
) -> Comparison:
    """Paired comparison of two runs on the same images: far sharper than comparing two intervals.

    Args:
        run_a, run_b: runs, or the paths of their files.
        protocol: decide both by this one; their own if None, which must then be the same.
        which: "adversarial" or "clean".

    Raises:
        ValueError: other images, other protocols, an unfinished run, or no attack in one of them.
    """
    with ExitStack() as stack:
        runs = [run if isinstance(run, Run) else stack.enter_context(Run.open(run)) for run in (run_a, run_b)]
        return _compare(runs[0], runs[1], protocol, which)


def _compare(run_a: Run, run_b: Run, protocol: Protocol | None, which: str) -> Comparison:
    for name, run in (("run_a", run_a), ("run_b", run_b)):
        if not run.complete:
            raise ValueError(mistake(name, "finished", f"{len(run.positions)} of {run.n_total} images"))
    checksums = [run.identity["data"]["checksum"] for run in (run_a, run_b)]
    if checksums[0] != checksums[1]:
        got = f"data {checksums[0][:12]} and {checksums[1][:12]}"
        raise ValueError(mistake("run_b", "on the same images as run_a, in the same order", got))
    if protocol is None and run_a.protocol != run_b.protocol:
        raise ValueError(
            mistake(
                "protocol", "given where the runs have different ones", f"{run_a.protocol}, {run_b.protocol}"
            )
        )
    decided = protocol or run_a.protocol
    values = [run.values(which, decided) for run in (run_a, run_b)]
    names = tuple(str(run.path) if run.path else "in memory" for run in (run_a, run_b))
    return compare_values(
        values[0], values[1], names=(names[0], names[1]), protocol=str(decided), which=which
    )


def compare_values(
    a: np.ndarray,
    b: np.ndarray,
    *,
    names: tuple[str, str] = ("a", "b"),
    protocol: str = "",
    which: str = "adversarial",
) -> Comparison:
    """`compare` for per-image values float [n] in [0, 1] of the same images."""
    if a.shape != b.shape or a.ndim != 1:
        raise ValueError(mistake("b", f"of the shape of a, {list(a.shape)}", list(b.shape)))
    difference = b.astype(np.float64) - a
    n = len(difference)
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    # Agresti and Min: half a pseudo-image in each cell of the 2x2 table; keeps a length where all pairs agree.
    centre = float(difference.sum()) / (n + 2)
    variance = (float((difference**2).sum()) + 1.0) / (n + 2) - centre**2
    half = NormalDist().inv_cdf(0.975) * math.sqrt(variance / (n + 2))
    return Comparison(
        names=names,
        protocol=protocol,
        which=which,
        n=n,
        accuracies=(float(a.mean()) if n else math.nan, float(b.mean()) if n else math.nan),
        difference=float(difference.mean()) if n else math.nan,
        low=max(-1.0, centre - half),
        high=min(1.0, centre + half),
        wins=wins,
        losses=losses,
        p_value=mcnemar(wins, losses),
    )


def worst_of(runs: Sequence[Run]) -> np.ndarray:
    """How far each image counts as correct if an attacker takes the worst of several runs' images of it, float64 [n].

    The lowest of noisy values is below all of them by chance, so no draw judges what it has chosen: half of the
    recorded draws choose the run of each image and the other half judge it, then the other way round, and all
    judgements are averaged. Where nothing is random the one look does both. The mean over draws decides, whatever the
    protocol's rule.

    Args:
        runs: finished runs of one defence on the same images under the same protocol, with attacks.

    Raises:
        ValueError: other runs, or a single draw of a random defence.
    """
    check_alike(runs)
    _check_draws(runs[0])
    return chosen_worst(np.stack([run.correct("adversarial") for run in runs]))


def chosen_worst(correct: np.ndarray) -> np.ndarray:
    """`worst_of` for what was recorded, bool [runs, n, K]; K = 1 where nothing is random."""
    values = np.asarray(correct, dtype=np.float64)
    n_draws, images = values.shape[2], np.arange(values.shape[1])
    if n_draws == 1:
        return np.asarray(values[..., 0].min(0))
    half = np.arange(n_draws) < n_draws // 2
    right = np.zeros(len(images))
    for judging in (half, ~half):
        chosen = values[..., ~judging].mean(2).argmin(0)
        right += values[chosen, images][:, judging].sum(1)
    return right / n_draws


def check_alike(runs: Sequence[Run]) -> None:
    """Raise ValueError unless ``runs`` are finished and attacked, of one defence on the same images and protocol."""
    if not runs:
        raise ValueError(mistake("runs", "at least one", "none"))
    for run in runs:
        if not run.complete:
            raise ValueError(mistake("runs", "finished", f"{len(run.positions)} of {run.n_total} images"))
        if run.identity["attack"] is None:
            raise ValueError(mistake("runs", "runs with an attack", "one of clean accuracy"))
        for part in ("defense", "data", "protocol"):
            if run.identity[part] != runs[0].identity[part]:
                raise ValueError(
                    mistake("runs", f"alike in {part}", "several", "Compare others with `compare`")
                )


def _check_draws(first: Run) -> None:
    recorded = first.predicted("adversarial").shape[1]
    single = first.protocol.draws == 1 and first.protocol.noise == "fresh"
    if recorded == 1 and single and "method" in first.identity["defense"]:
        remedy = "Judge them by fresh(2) or more, so that a draw can choose and another judge"
        raise ValueError(
            mistake("runs", "runs of at least two draws of a random defence", "one draw", remedy)
        )


@final
@dataclass(frozen=True)
class RestartSpread:
    """The same experiment with several seeds of the attack.

    ``accuracies`` are those of the single runs, ``std`` their standard deviation, ``worst_case`` the accuracy if the
    strongest restart counts on each image: chosen on some draws and judged on others (`worst_of`) where the mean over
    draws decides, and the minimum of the decisions under other rules.
    """

    accuracies: tuple[float, ...]
    std: float
    worst_case: float

    def __str__(self) -> str:
        listed = ", ".join(f"{100 * value:.1f}" for value in self.accuracies)
        return (
            f"{len(self.accuracies)} restarts: {listed} %, std {100 * self.std:.2f}; "
            f"worst of them per image {100 * self.worst_case:.1f} %"
        )


def restart_spread(runs: Sequence[Run]) -> RestartSpread:
    """Spread over restarts: two or more finished runs that differ in the attack's seed only.

    Raises:
        ValueError: fewer than two runs, or they differ in something else.
    """
    from .identity import differences

    if len(runs) < 2:
        raise ValueError(mistake("runs", "at least two", len(runs)))
    for run in runs[1:]:
        other = [
            line
            for line in differences(runs[0].identity, run.identity)
            if not line.startswith("attack.settings.seed:")
        ]
        if other:
            raise ValueError(mistake("runs", "alike but for the attack's seed", "; ".join(other[:4])))
    values = np.stack([run.values("adversarial") for run in runs])
    means = values.mean(1)
    worst = values.min(0)
    if runs[0].protocol.rule == "mean":
        worst = chosen_worst(np.stack([run.correct("adversarial") for run in runs]))
    return RestartSpread(tuple(float(mean) for mean in means), float(means.std(ddof=1)), float(worst.mean()))
