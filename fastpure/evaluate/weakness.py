"""Signs that an attack was too weak for its result to mean anything (after Carlini et al. 2019, section 3).

Each check is a value with its explanation; `Finding.alarm` says whether the value is suspicious. None proves an
attack strong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, final

import numpy as np

from ..attacks import MODES
from .controls import KINDS
from .identity import canonical, differences
from .run import Run
from .statistics import cochran_q, compare_values, mcnemar

MIN_ITERATES = 10
Z_ALARM = 3.0
RISE_ALARM = 0.05
P_ALARM = 1e-3
SHARE_ALARM = 0.01


@final
@dataclass(frozen=True)
class Finding:
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


def findings(run: Run) -> tuple[Finding, ...]:
    """All checks one run allows."""
    if not len(run.positions):
        return ()
    found = [uneven_draws(run.correct("clean"))]
    attack = run.identity["attack"]
    if attack is None or not seeks(attack["name"]):
        return tuple(found)
    clean, robust = run.values("clean"), run.values("adversarial")
    found += [
        zero_gradients(run.zero_gradients, clean),
        unmoved(run.distances, robust),
        easier(clean, robust),
        still_rising(run.traces(), robust),
    ]
    return tuple(found)


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


def still_rising(traces: np.ndarray, robust: np.ndarray) -> Finding:
    """Whether the loss [B, T] of images not yet broken still rose in the last fifth of the iterations.

    The value is the mean rise from the fourth to the last fifth, as a share of the rise from the first to the last.
    """
    name, left = "unfinished", traces[(robust > 0) & np.isfinite(traces).all(1)].astype(np.float64)
    if traces.shape[1] < MIN_ITERATES or len(left) < 2:
        return Finding(name, math.nan, False, "too few iterations or unbroken images to tell")
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


def across(runs: Sequence[Run]) -> tuple[Finding, ...]:
    """Checks that need several finished runs of one defence: more iterations or draws that still help, and inexact
    gradients or transferred images that beat the exact gradient.

    Runs are compared where they agree in defence, data, protocol, norm and radius; others are left alone.
    """
    found = []
    for a, b in combinations(runs, 2):
        if _problem(a) != _problem(b):
            continue
        found += _budget_findings(a, b) + _gradient_findings(a, b)
    return tuple(found)


def _budget_findings(a: Run, b: Run) -> list[Finding]:
    changed = differences(a.identity["attack"], b.identity["attack"])
    fields = [line.split(":")[0].removeprefix("settings.") for line in changed]
    if len(fields) != 1 or fields[0] not in ("n_iter", "eot_iter"):
        return []
    settings = [run.identity["attack"]["settings"][fields[0]] for run in (a, b)]
    less, more = (a, b) if settings[0] < settings[1] else (b, a)
    low, high = sorted(settings)
    result = compare_values(less.values("adversarial"), more.values("adversarial"))
    alarm = result.difference < 0 and result.p_value < 0.05
    text = (
        f"robust accuracy goes from {100 * result.accuracies[0]:.1f} to {100 * result.accuracies[1]:.1f} % "
        f"between {fields[0]} = {low} and {high} (p = {result.p_value:.2g})"
    )
    if alarm:
        text += "; it is still falling, so neither number is the defence's robustness"
    return [Finding(f"more {fields[0]}", result.difference, alarm, text)]


def _gradient_findings(a: Run, b: Run) -> list[Finding]:
    modes = [gradient_mode(run) for run in (a, b)]
    if modes.count("exact") != 1:
        return []
    exact, other = (a, b) if modes[0] == "exact" else (b, a)
    mode = modes[1] if modes[0] == "exact" else modes[0]
    # The gradient alone must differ; attacks without gradients are held against every exact one.
    if mode in MODES and exact.identity["attack"]["name"] != other.identity["attack"]["name"]:
        return []
    result = compare_values(exact.values("adversarial"), other.values("adversarial"))
    alarm = result.difference < 0 and result.p_value < 0.05
    source = other.identity["attack"]["settings"].get("source")
    named = f"{mode} of what was found on {source}" if source else mode
    text = (
        f"{exact.identity['attack']['name']}: {named} reaches {100 * result.accuracies[1]:.1f} %, "
        f"the exact gradient {100 * result.accuracies[0]:.1f} % "
        f"(p = {result.p_value:.2g})"
    )
    if alarm:
        text += "; the exact gradient should not lose: it is masked, noisy (raise eot_iter), or given too few steps"
    return [Finding(f"{mode} against exact", result.difference, alarm, text)]


def gradient_mode(run: Run) -> str:
    """ "exact", or what the attack used instead: a gradient mode, or the name of an attack without gradients."""
    attack, defense = run.identity["attack"], run.identity["defense"]
    if attack is None or not seeks(attack["name"]):
        return "none"
    kind = KINDS.get(attack["name"])
    mode = attack["settings"].get("gradient", "exact" if kind is None else kind.gradient)
    if mode is None:
        return str(attack["name"]).lower()
    settings = defense.get("method", {}).get("settings", {})
    return "detached" if mode == "exact" and settings.get("guidance_grad") == "detached" else str(mode)


def seeks(name: str) -> bool:
    """Whether the attack whose class has this name looks for misclassified images; an unknown one is taken to."""
    return KINDS[name].seeks if name in KINDS else True


def _problem(run: Run) -> str:
    """Defence, data, protocol and budget of a run, with what concerns its gradient left out."""
    identity: dict[str, Any] = copy.deepcopy(run.identity)
    method = identity["defense"].get("method", {})
    method.get("settings", {}).pop("guidance_grad", None)
    (method.get("guidance") or {}).get("settings", {}).pop("grad", None)
    identity["defense"].pop("gradient_precision", None)
    settings = (identity.pop("attack") or {}).get("settings", {})
    return canonical([identity, settings.get("norm"), settings.get("eps"), run.complete])
