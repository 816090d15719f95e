"""The checks of `attacks.weakness` on run files, and what several runs of one defence show together."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np

from ..attacks import MODES
from ..attacks.weakness import (
    SHARE_ALARM,
    Effort,
    Finding,
    Seen,
    Setting,
    check,
    noise_left_by,
)
from .controls import KINDS
from .described import members, spends_as
from .identity import CannotRebuild, Head, canonical, differences, rebuild_method
from .run import Run
from .statistics import chosen_worst, compare_values


def findings(run: Run) -> tuple[Finding, ...]:
    """All checks one run allows."""
    if not len(run.positions):
        return ()
    attacked = run.identity["attack"] is not None
    seen = Seen(
        correct=run.correct("clean"),
        clean=run.values("clean"),
        robust=run.values("adversarial") if attacked else None,
        distances=run.distances,
        traces=run.traces(),
        zero_gradients=run.zero_gradients,
        agreement=run.agreements,
    )
    return check(setting(run), seen)


def warnings(run: Run) -> tuple[Finding, ...]:
    """Those that say the numbers should not be trusted as they are."""
    return tuple(finding for finding in findings(run) if finding.alarm)


def setting(run: Run) -> Setting:
    """What the checks need to know of a run."""
    identity = run.identity
    return Setting(
        n_classes=len(identity["data"]["classes"]),
        random=is_random(run),
        rule=run.protocol.rule,
        noise_left=_noise_left(canonical(identity["defense"])),
        effort=effort(identity),
    )


def is_random(run: Run) -> bool:
    """Whether different draws saw different noise; one draw of a purifier is taken to be random."""
    if run.predicted("clean").shape[1] > 1:
        return True
    known = run.protocol.noise == "known" and run.protocol.part == "all"
    return bool(_purifiers(run.identity["defense"])) and not known


def effort(identity: Mapping[str, Any]) -> Effort | None:
    """What the attack of an identity spends on an image; None for no attack, or a corruption that seeks nothing."""
    attack = identity["attack"]
    if attack is None or not seeks(attack["name"]):
        return None
    settings = attack["settings"]
    try:
        made = spends_as(attack)
    except (TypeError, ValueError):  # settings that stand in a file as text, such as a metric of the user's
        return Effort()
    if made is None:  # an attack of the user's own, by the names that the field gives to settings
        return Effort(steps=settings.get("n_iter") or 0, draws=settings.get("eot_iter") or 0)
    return made.effort(len(identity["data"]["classes"]))


def left_out(run: Run) -> tuple[str, ...]:
    """What was asked for and not done, see `AttackResult.notes`."""
    spent = effort(run.identity)
    return () if spent is None else spent.left_out


def _purifiers(defense: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The descriptions of all purifiers of a described defence."""
    return (
        [defense] if "method" in defense else [part for part in defense.get("inside", ()) if "method" in part]
    )


@cache
def _noise_left(defense: str) -> float:
    """See `noise_left_by`; of a description as canonical text."""
    found = []
    for described in _purifiers(json.loads(defense)):
        try:
            found.append(rebuild_method(described["method"], Head().eval()))
        except CannotRebuild:
            return math.nan
    return noise_left_by(found)


def across(runs: Sequence[Run]) -> tuple[Finding, ...]:
    """Checks that need several finished runs of one defence: more iterations or draws that still help, another start
    that finds what one has missed, and inexact gradients or transferred images that beat the exact gradient.

    Runs are compared where they agree in defence, data, protocol, norm and radius; others are left alone.
    """
    found = []
    for a, b in combinations(runs, 2):
        if _problem(a) != _problem(b):
            continue
        found += _budget_findings(a, b) + _gradient_findings(a, b)
    return (*found, *_restart_findings(runs))


def _restart_findings(runs: Sequence[Run]) -> list[Finding]:
    """For runs that differ in the attack's seed only: what the best start of each image finds beyond one start.

    The minimum over noisy scores is below all of them by chance, so no draw judges the start that it chose, see
    `worst_of`; where one draw decides, there is no noise to be fooled by.
    """
    groups: dict[str, list[Run]] = {}
    for run in runs:
        attack = run.identity["attack"]
        if (
            attack is None
            or not seeks(attack["name"])
            or "seed" not in attack["settings"]
            or not run.complete
        ):
            continue
        identity = copy.deepcopy(run.identity)
        identity["attack"]["settings"].pop("seed")
        groups.setdefault(canonical(identity), []).append(run)
    return [_restarts(group) for group in groups.values() if len(group) > 1]


def _restarts(runs: Sequence[Run]) -> Finding:
    correct = np.stack([run.correct("adversarial") for run in runs])
    values = correct.mean(2, dtype=np.float64)
    result = compare_values(values[values.mean(1).argmin()], chosen_worst(correct))
    alarm = result.difference < -SHARE_ALARM and result.p_value < 0.05
    text = (
        f"the best of {len(runs)} starts of each image leaves {100 * result.accuracies[1]:.1f} %, the best single run "
        f"{100 * result.accuracies[0]:.1f} % (p = {result.p_value:.2g})"
    )
    if alarm:
        text += "; one start is not enough: raise n_restarts, or take the worst case of more seeds"
    return Finding("restarts", result.difference, alarm, text)


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
    mode = _mode(attack)
    settings = defense.get("method", {}).get("settings", {})
    return "detached" if mode == "exact" and settings.get("guidance_grad") == "detached" else mode


def _mode(attack: Mapping[str, Any]) -> str:
    """The mode of an attack, or of all members of one; the name of the class where there is no such mode."""
    if modes := {_mode(member) for member in members(attack)}:
        return modes.pop() if len(modes) == 1 else str(attack["name"]).lower()
    kind = KINDS.get(attack["name"])
    mode = attack["settings"].get("gradient", "exact" if kind is None else kind.gradient)
    return str(attack["name"]).lower() if mode is None else str(mode)


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
