"""Signs that an attack was too weak for its result to mean anything (after Carlini et al. 2019, section 3).

Each check is a value with its explanation; ``Finding.alarm`` says whether the value is suspicious. That nobody can
tell, because too little was done, is suspicious too. None proves an attack strong. A printed attack, an evaluation and
its report ask the same checks, and every number that decides stands here; docs/evaluation.md argues for each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

import numpy as np

from ..intervals import cochran_q, mcnemar, wilson
from ..methods import Method
from ..shown import Settings

MIN_ITERATES = 10
"""Iterations below which nobody can tell whether the loss had stopped rising: fifths would be single iterates."""

MIN_QUERIES = 1000
"""Queries of a black-box attack below which Square's squares still cover a twentieth of the image and more."""

MIN_AGREEMENT = 0.5
"""Least cosine between the mean gradients of two halves of the draws; at 1/2 each half is as much noise as gradient."""

MIN_DRAWS = 5
"""Evaluation draws from which on their noise is at most half of what the choice of images leaves, see `few_draws`."""

HALF_WIDTH_ALARM = 0.10
"""Half the length of the interval over images, from which on defences ten points apart cannot be told apart."""

NOISE_LEFT_ALARM = 0.04
"""Standard deviation, in [0, 1] units, of noise that no later step removes: the mildest of CIFAR-10-C."""

Z_ALARM = 3.0
RISE_ALARM = 0.05
P_ALARM = 1e-3
SHARE_ALARM = 0.01

CAUSES = (
    "the usual causes are images in 0..255 where [0, 1] is expected or the other way round, a normalisation that is "
    "missing or done twice, another order of the labels, and BGR for RGB; `fastpure doctor --classifier` tries them"
)


@final
@dataclass(frozen=True)
class Finding(Settings):
    """One check.

    Attributes:
        name: short name of the check.
        value: what was measured; the explanation says in which units. NaN where it could not be.
        alarm: whether the value is suspicious.
        explanation: what the value is and what it suggests.
    """

    name: str
    value: float
    alarm: bool
    explanation: str

    def __str__(self) -> str:
        return f"{self.name}: {self.explanation}"


@final
@dataclass(frozen=True)
class Effort:
    """What an attack spends on an image.

    Attributes:
        steps: gradient steps from one start; 0 if it follows no gradient or does not say.
        queries: questions of an attack that follows none; 0 if it asks nothing.
        draws: draws averaged per gradient or answer where something is random; 0 if it asks nothing or does not say.
        noisy: whether what it asks sees the target's noise.
        left_out: members of an ensemble that do not exist for the target, each with the reason.
        remedy: what gives it more draws.
    """

    steps: int = 0
    queries: int = 0
    draws: int = 0
    noisy: bool = True
    left_out: tuple[str, ...] = ()
    remedy: str = "raise eot_iter"


@final
@dataclass(frozen=True)
class Setting:
    """What the checks need to know before they look at images.

    Attributes:
        n_classes: how many classes the target tells apart.
        random: whether different draws see different noise.
        rule: how draws decide, see `evaluate.Protocol`.
        noise_left: standard deviation in [0, 1] units of the noise in purified images; NaN if nobody knows.
        effort: of the attack; None where there is none, or a corruption that seeks nothing.
    """

    n_classes: int
    random: bool
    rule: str = "mean"
    noise_left: float = math.nan
    effort: Effort | None = None


@final
@dataclass(frozen=True, eq=False)
class Seen:
    """What was recorded of B images.

    Attributes:
        correct: of the originals on K draws, bool [B, K].
        clean: how far each original counts as correct, float64 [B] in [0, 1].
        robust: the same of what the attack returned; None without attack.
        distances: of the returned images [B].
        traces: the attack's loss at each iterate [B, T]; NaN where an image was left alone.
        zero_gradients: 1.0 where the first gradient was exactly zero, 0.0, or NaN where none is used, [B].
        agreement: cosines [B], see `Query.agreement`; NaN where not measured.
    """

    correct: np.ndarray
    clean: np.ndarray
    robust: np.ndarray | None
    distances: np.ndarray
    traces: np.ndarray
    zero_gradients: np.ndarray
    agreement: np.ndarray


def check(setting: Setting, seen: Seen) -> tuple[Finding, ...]:
    """All checks that one attack, or one evaluation, allows."""
    if not len(seen.clean):
        return ()
    found = [
        chance(seen.clean, setting.n_classes),
        few_images(seen.clean if seen.robust is None else seen.robust),
        few_draws(seen.correct.shape[1], setting.random, setting.rule),
        uneven_draws(seen.correct),
        noise_left(setting.noise_left),
    ]
    effort, robust = setting.effort, seen.robust
    if effort is None or robust is None:
        return tuple(found)
    found += [
        gradient_draws(effort, setting.random, seen.agreement, robust),
        zero_gradients(seen.zero_gradients, seen.clean),
        unmoved(seen.distances, robust),
        easier(seen.clean, robust),
        still_rising(seen.traces, robust, effort),
    ]
    return tuple(found)


def chance(clean: np.ndarray, n_classes: int) -> Finding:
    """Clean accuracy [B] against guessing. An interval from a guess up to perfection tells nothing, and is no alarm."""
    interval = wilson(float(clean.sum()), len(clean))
    guess = 1.0 / max(n_classes, 1)
    alarm = n_classes > 1 and interval.low <= guess and interval.high < 1.0
    text = f"clean accuracy is {interval}, guessing among {n_classes} classes would reach {100 * guess:.1f} %"
    return Finding(
        "chance", interval.estimate, alarm, f"{text}; no better than chance: {CAUSES}" if alarm else text
    )


def few_images(values: np.ndarray) -> Finding:
    """Half the length of the Wilson interval over images [B]."""
    interval = wilson(float(values.sum()), len(values))
    half = (interval.high - interval.low) / 2
    text = f"{len(values)} images leave {100 * half:.1f} points on either side"
    if half > HALF_WIDTH_ALARM:
        text += "; too few to tell defences apart, take more"
    return Finding("images", half, half > HALF_WIDTH_ALARM, text)


def few_draws(n_draws: int, random: bool, rule: str = "mean") -> Finding:
    """Evaluation draws per image.

    Draws of one image vary by p (1 - p), of which the mean over images is at most a (1 - a), a being the accuracy. The
    same images judged again therefore give a number that differs by less than half of the interval over images if
    a (1 - a) / (n - 1), the variance as it is estimated from n draws, is at most a quarter of a (1 - a): n >= 5. The
    number of draws of a rule that takes all of them or votes is part of the rule.
    """
    least = MIN_DRAWS if rule in ("mean", "one_shot") else 2
    alarm = random and n_draws < least
    text = f"{n_draws} evaluation draws decide" if n_draws > 1 else "1 evaluation draw decides"
    if not random:
        text = "nothing is random"
    if alarm:
        text += f" about a random defence; judge the same images on {least} or more"
    return Finding("evaluation draws", float(n_draws), alarm, text)


def uneven_draws(correct: np.ndarray) -> Finding:
    """Whether clean accuracy, bool [B, K], changes between draws more than independent noise can make it."""
    if correct.shape[1] < 2:
        return Finding("draws", math.nan, False, "nothing is random, or only one draw was taken")
    q, p = cochran_q(correct)
    rates = correct.mean(0)
    text = (
        f"clean accuracy ranges over {100 * rates.min():.1f}..{100 * rates.max():.1f} % between draws "
        f"(Cochran's Q = {q:.1f}, p = {p:.2g})"
    )
    if p < P_ALARM:
        text += "; more than chance: images share noise, or something outside the noise keys is random"
    return Finding("draws", p, p < P_ALARM, text)


def noise_left(std: float) -> Finding:
    """Noise of the last step, in [0, 1] units, which nothing after it removes."""
    if math.isnan(std):
        return Finding("last noise", std, False, "not known how much noise the last step leaves")
    text = (
        f"the last step leaves noise of standard deviation {std:.3f} ({255 * std:.1f} of 255) in every image"
    )
    if std >= NOISE_LEFT_ALARM:
        text += (
            ", which the classifier takes for part of it; use more steps, or solver='exponential', whose last step "
            "adds next to none"
        )
    return Finding("last noise", std, std >= NOISE_LEFT_ALARM, text)


def gradient_draws(effort: Effort, random: bool, agreement: np.ndarray, robust: np.ndarray) -> Finding:
    """Whether averaged gradients of a random target point somewhere: the mean ``agreement`` of unbroken images.

    Let |m|^2 be the squared length of the true mean gradient and v the variance of a mean over half of the draws,
    summed over pixels. The cosine between two such halves is about |m|^2 / (|m|^2 + v); at 1/2 that is v = |m|^2, and
    the mean over all draws, whose variance is v / 2, points 35 degrees away from the true gradient.
    """
    name, unbroken = "draws per gradient", robust > 0
    if not random or not effort.noisy:
        return Finding(name, math.nan, False, "nothing that the attack asks is random")
    if not unbroken.any():
        return Finding(name, math.nan, False, "no image is left that better gradients could break")
    if effort.draws == 1:
        text = f"1 draw per gradient or answer of a random defence is mostly its noise; {effort.remedy}"
        return Finding(name, math.nan, True, text)
    known = unbroken & np.isfinite(agreement)
    if not known.any():
        return Finding(name, math.nan, False, "how far the draws agree on the gradient was not recorded")
    cosine = float(agreement[known].mean())
    halves = f"two halves of {effort.draws or 'the'} draws"
    text = f"gradients from {halves} have a cosine of {cosine:.2f} on unbroken images"
    if cosine < MIN_AGREEMENT:
        text += f", less than {MIN_AGREEMENT:.2f}: more draws would find more; {effort.remedy}"
    return Finding(name, cosine, cosine < MIN_AGREEMENT, text)


def zero_gradients(zero: np.ndarray, clean: np.ndarray) -> Finding:
    """Share of the images that are right before the attack and whose first gradient was exactly zero.

    Args:
        zero: 1.0, 0.0, or NaN where the attack uses no gradient, [B].
        clean: how far each original counts as correct, [B].
    """
    known = np.isfinite(zero) & (clean > 0)
    if not known.any():
        return Finding("zero gradients", math.nan, False, "the attack uses no gradient")
    share = float(zero[known].mean())
    text = f"the first gradient is exactly zero at {100 * share:.1f} % of the originals"
    if share > SHARE_ALARM:
        text += (
            "; a masked or saturated gradient hides weaknesses: attack with loss='margin' or another loss, "
            "gradient='bpda', or a black-box attack"
        )
    return Finding("zero gradients", share, share > SHARE_ALARM, text)


def unmoved(distances: np.ndarray, robust: np.ndarray) -> Finding:
    """Share of not yet broken images that the attack returned unchanged."""
    left = robust > 0
    share = float((distances[left] == 0).mean()) if left.any() else 0.0
    text = f"the attack left {100 * share:.1f} % of the images it did not break unchanged"
    if share > SHARE_ALARM:
        text += "; it had no direction to go, so these images were not tested"
    return Finding("unmoved images", share, share > SHARE_ALARM, text)


def easier(clean: np.ndarray, robust: np.ndarray) -> Finding:
    """Images on which the defence does better after the attack than before."""
    up, down = int((robust > clean).sum()), int((robust < clean).sum())
    alarm = up > down and mcnemar(up, down) < P_ALARM
    text = f"the attack made {up} images easier and {down} harder"
    if alarm:
        text += "; it works for the defence: its gradient or the sign of its loss is wrong"
    return Finding("easier images", float(up), alarm, text)


def still_rising(traces: np.ndarray, robust: np.ndarray, effort: Effort | None = None) -> Finding:
    """Whether the loss [B, T] of images not yet broken still rose in the last fifth of the iterations.

    The value is the mean rise from the fourth to the last fifth, as a share of the rise from the first to the last. Too
    few iterations to tell, on images that more might have broken, are an alarm of their own.
    """
    effort = effort or Effort()
    if not effort.steps and not effort.queries:  # an attack that does not say: what it recorded counts
        effort = Effort(steps=traces.shape[1])
    if (few := _too_few(effort, robust)) is not None:
        return few
    name, left = "unfinished", traces[(robust > 0) & np.isfinite(traces).all(1)].astype(np.float64)
    if traces.shape[1] < MIN_ITERATES or len(left) < 2:
        return Finding(name, math.nan, False, "no losses of two or more unbroken images to tell from")
    fifth = traces.shape[1] // 5
    last, before, first = left[:, -fifth:], left[:, -2 * fifth : -fifth], left[:, :fifth]
    rise = last.mean(1) - before.mean(1)
    whole = float((last.mean(1) - first.mean(1)).mean())
    error = float(rise.std(ddof=1)) / math.sqrt(len(rise))
    share = float(rise.mean()) / whole if whole > 0 else 0.0
    alarm = share > RISE_ALARM and float(rise.mean()) > Z_ALARM * error
    text = f"the loss of unbroken images rose by {100 * share:.1f} % of its whole rise in the last fifth"
    if alarm:
        text += "; more iterations would find more: raise n_iter and compare"
    return Finding(name, share, alarm, text)


def _too_few(effort: Effort, robust: np.ndarray) -> Finding | None:
    left = int((robust > 0).sum())
    for made, least, what, one in (
        (effort.steps, MIN_ITERATES, "iterations", "iteration"),
        (effort.queries, MIN_QUERIES, "queries", "query"),
    ):
        if 0 < made < least and left:
            few = f"{made} {what} are" if made > 1 else f"1 {one} is"
            images = f"the {left} images that are left" if left > 1 else "the image that is left"
            text = f"{few} too few to tell whether more would break {images}; take {least} or more"
            return Finding(what, float(made), True, text)
    return None


def noise_left_by(methods: Iterable[Method]) -> float:
    """Standard deviation, in [0, 1] units, of the noise that the last step of the noisiest method adds.

    For Euler-Maruyama that is sqrt(beta dt) / 2. NaN where there is no method, or only one whose rows say nothing of
    what its procedure does with their noise.
    """
    known = [0.5 * abs(method.steps.rows[-1].d) for method in methods if method.procedure is None]
    return max(known, default=math.nan)
