"""What a page is made of: runs with their summaries, comparisons and the settings in which they differ.

Everything here is read from run files through `Run`, `Report` and `compare_runs`; nothing is measured anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np

from ..errors import mistake
from ..evaluate import Comparison, Finding, Report, Run, SmallerOf, compare_runs, smaller_of, versions_of
from ..evaluate.identity import canonical
from ..evaluate.shards import describe
from ..evaluate.smaller import budget_of
from ..evaluate.weakness import across, gradient_mode, seeks
from .rebuild import calls_per_purification, network_calls

LEADING = ("t", "dt", "n_steps", "scale")
"""Settings of methods that are told first."""

ASCENDED = {"APGDCE": "ce", "APGDDLR": "dlr", "APGDT": "dlr-targeted", "Adaptive": "margin"}
"""Attack -> the loss it tells of, where that is no setting: the same loss of several attacks is one quantity."""

LEVEL = 0.05
"""Below this adjusted p-value a difference is marked."""


@final
@dataclass(frozen=True, eq=False)
class Entry:
    """A run on the page: ``key`` is its short number there, ``name`` that of its file without the ending."""

    key: str
    name: str
    run: Run = field(repr=False)
    summary: Report = field(repr=False)

    @property
    def identity(self) -> dict[str, Any]:
        """Defence, attack, protocol and data as plain values."""
        return self.run.identity

    @property
    def attacked(self) -> bool:
        """Whether there are adversarial (or corrupted) images."""
        return self.identity["attack"] is not None

    @property
    def corrupted(self) -> bool:
        """Whether the "attack" is random corruption, which seeks nothing."""
        return self.attacked and not seeks(self.identity["attack"]["name"])

    @property
    def purified(self) -> bool:
        """Whether the defence purifies; a bare classifier does not."""
        return bool(self.identity["defense"]["kind"] != "module")

    @property
    def judged(self) -> str:
        """The input that matters most: "adversarial", or "clean" without attack."""
        return "adversarial" if self.attacked else "clean"

    @property
    def part(self) -> str:
        """ "shard 1/2, 20 of 40 images", or "" for a whole, finished run."""
        if self.run.complete:
            return ""
        shard = describe(self.run.share)
        count = f"{len(self.run.positions)} of {self.run.n_total} images"
        return f"{shard}, {count}" if shard else f"unfinished, {count}"

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return tuple(self.identity["data"]["classes"])

    @cached_property
    def judged_rows(self) -> int:
        """Recorded (image, input, draw) rows, one purification each."""
        return sum(self.run.predicted(which).size for which in ("clean", "adversarial", "transfer"))

    @cached_property
    def calls(self) -> int | None:
        """Images through the network, at most; None where the method or attack cannot be rebuilt."""
        spent = float(self.run.spent.sum()) if self.counted else None
        n = len(self.run.positions)
        return network_calls(self.identity, self.run.protocol, self.judged_rows, n, spent)

    @property
    def counted(self) -> bool:
        """Whether the attack says of every image what it spent: then `calls` were made, and are not a bound."""
        return bool(len(self.run.spent)) and bool(np.isfinite(self.run.spent).all())

    @cached_property
    def calls_per_gradient(self) -> int | None:
        """Network calls in one gradient, forward and backward; None where the method cannot be rebuilt."""
        calls = calls_per_purification(self.identity)
        return None if calls is None else 2 * calls

    @property
    def loss(self) -> str:
        """What the attack's loss is, a key of `LOSSES` where it is known; the attack's own name where it is not."""
        name, settings = str(self.identity["attack"]["name"]), self.identity["attack"]["settings"]
        own = settings.get("loss")
        kind = own if isinstance(own, str) else ASCENDED.get(name, name)
        return f"{kind}-targeted" if settings.get("targeted") is not None else kind

    @property
    def agreement(self) -> float | None:
        """Mean cosine between the gradients of two halves of the attack's draws; None where not recorded."""
        known = self.run.agreements[np.isfinite(self.run.agreements)]
        return float(known.mean()) if len(known) else None

    @property
    def seconds(self) -> float:
        """Time of all parts and sessions together."""
        return sum(self.summary.seconds.values())

    @property
    def defense_text(self) -> str:
        """Method and what identifies it, short."""
        described = self.identity["defense"]
        classifier = str(described["classifier"]["class"]).rsplit(".", 1)[-1]
        return (
            f"{described['method']['name']} + {classifier}" if self.purified else f"{classifier}, no defence"
        )

    @property
    def defense_settings(self) -> str:
        """The method's settings in short; "" for a bare classifier."""
        if not self.purified:
            return ""
        settings = self.identity["defense"]["method"]["settings"]
        shown = [k for k, v in settings.items() if isinstance(v, int | float) and not isinstance(v, bool)]
        shown.sort(key=lambda name: (LEADING.index(name) if name in LEADING else len(LEADING), name))
        return ", ".join(f"{name} {value_text(name, settings[name])}" for name in shown)

    @property
    def attack_text(self) -> str:
        """Name of the attack, short, and where transferred images come from; "none" without."""
        if not self.attacked:
            return "none"
        attack = self.identity["attack"]
        source = attack["settings"].get("source")
        return f"{attack['name']} from {source}" if source else str(attack["name"])

    @property
    def attack_settings(self) -> str:
        """Budget, effort and gradient of the attack in short."""
        if not self.attacked:
            return ""
        settings = self.identity["attack"]["settings"]
        words = [str(settings["norm"])] if isinstance(settings.get("norm"), str) else []
        shown = (
            ("eps", "ε "),
            ("amount", "amount "),
            ("std", "std "),
            ("n_iter", "iterations "),
            ("eot_iter", "EOT "),
        )
        words += [
            f"{label}{value_text(name, settings[name])}"
            for name, label in shown
            if isinstance(settings.get(name), int | float)
        ]
        mode = gradient_mode(self.run)
        if "gradient" in settings or mode == "detached":
            words.append(f"{mode} gradient")
        return ", ".join(words)


def value_text(name: str, value: Any) -> str:
    """A setting for reading: budgets on the 8-bit scale as fractions, other floats with six digits."""
    if isinstance(value, bool) or not isinstance(value, float):
        return str(value)
    short, bytes_ = f"{value:.6g}", round(255 * value)
    if name == "eps" and len(short) > 5 and bytes_ >= 1 and abs(255 * value - bytes_) < 1e-9:
        return f"{bytes_}/255"
    return short


def open_entries(runs: Sequence[Run | str | Path], stack: ExitStack) -> list[Entry]:
    """Open the runs (files are closed by ``stack``) and sum them up, in the order given.

    Raises:
        ValueError: no run, or one given twice, also as a copy under another name.
        FileNotFoundError, RunDamaged: a file is missing or not what was written.
    """
    if isinstance(runs, str | Path | Run) or not runs:
        raise ValueError(mistake("runs", "one or more run files", repr(runs)))
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for number, given in enumerate(runs, 1):
        run = given if isinstance(given, Run) else stack.enter_context(Run.open(given))
        name = run.path.stem if run.path is not None else f"run {number}"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # numpy's, of means over no image
            summary = Report.of(run)
        if summary.digest in seen:
            got = f"the same one twice: {seen[summary.digest]} and {run.path or name}"
            raise ValueError(mistake("runs", "different runs", got))
        seen[summary.digest] = str(run.path or name)
        entries.append(Entry(str(number), name, run, summary))
    return entries


@final
@dataclass(frozen=True)
class Pair:
    """One comparison, ``first`` minus ``second`` (keys of entries), and its p-value after Holm's correction."""

    first: str
    second: str
    comparison: Comparison
    adjusted: float

    @property
    def marked(self) -> bool:
        """Whether the difference stands after correction for all comparisons of its matrix."""
        return self.adjusted < LEVEL


@final
@dataclass(frozen=True)
class Matrix:
    """All pairs among ``entries``, which share images and protocol; ``which`` input was compared."""

    which: str
    title: str
    entries: tuple[Entry, ...]
    pairs: tuple[Pair, ...]

    @property
    def mixed(self) -> bool:
        """Whether the adversarial images compared come from attacks with different names or settings."""
        attacks = {canonical(entry.identity["attack"]) for entry in self.entries}
        return self.which == "adversarial" and len(attacks) > 1

    @property
    def rows(self) -> tuple[tuple[Entry, tuple[Pair, ...]], ...]:
        """Every entry but the first, with its pairs with those before it: each pair once, ``second`` is the row's."""
        return tuple(
            (entry, tuple(pair for pair in self.pairs if pair.second == entry.key))
            for entry in self.entries[1:]
        )


def matrices(entries: Sequence[Entry]) -> tuple[list[Matrix], list[str]]:
    """Paired comparisons within every group of runs on the same images under the same protocol.

    Returns the matrices, and a sentence for every run that is in none. For clean accuracy one run per defence
    counts: others have the same draws and so the same result.
    """
    groups: dict[tuple[str, str], list[Entry]] = {}
    for entry in entries:
        if entry.run.complete:
            key = (entry.identity["data"]["checksum"], entry.run.protocol.hash)
            groups.setdefault(key, []).append(entry)
    found: list[Matrix] = []
    for (checksum, _), group in groups.items():
        first = group[0].identity["data"]
        where = f"{first['name']}/{first['split']} ({checksum[:8]}), {group[0].run.protocol}"
        for which, members in (
            ("adversarial", [e for e in group if e.attacked]),
            ("clean", _by_defense(group)),
        ):
            if len(members) > 1:
                found.append(Matrix(which, where, tuple(members), _pairs(members, which)))
    compared = {entry.key for matrix in found for entry in matrix.entries}
    left = []
    for entry in entries:
        if not entry.run.complete:
            left.append(f"Run {entry.key} is compared with no other: {entry.part}.")
        elif entry.key not in compared and len(entries) > 1 and not _stands_for(entry, found):
            left.append(
                f"Run {entry.key} is compared with no other: none has its images, protocol and input."
            )
    return found, left


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979): the family-wise error stays below the level."""
    order = np.argsort(np.asarray(p_values, dtype=np.float64), kind="stable")
    adjusted, worst = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order.tolist()):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = worst
    return adjusted


CALLED = {
    "unfinished": "loss still rising",
    "draws": "uneven draws",
    "iterations": "few iterations",
    "queries": "few queries",
    "draws per gradient": "noisy gradients",
    "evaluation draws": "few evaluation draws",
    "images": "few images",
    "chance": "no better than chance",
    "last noise": "noise left",
}
"""Check -> what its alarm is called beside a number, where its own name says too little."""


def finding(name: str) -> str:
    """What the alarm of a check is called on the page: "unfinished" would be taken for a run that is."""
    return CALLED.get(name, name)


def in_words(name: str) -> str:
    """What the alarm of a check of several runs is called: "more n_iter still helps", "bpda beats exact"."""
    return f"{name} still helps" if name.startswith("more ") else name.replace(" against ", " beats ")


def doubts(entries: Sequence[Entry]) -> tuple[Finding, ...]:
    """Checks that need several runs, see `fastpure.evaluate.across`; finished runs only."""
    return across(
        [entry.run for entry in entries if entry.run.complete and entry.attacked and not entry.corrupted]
    )


def smallest(entries: Sequence[Entry]) -> list[tuple[tuple[Entry, ...], SmallerOf]]:
    """Runs that together are one published AutoAttack number, and the smaller accuracy of them."""
    groups = [tuple(entries[number] for number in group) for group in versions_of([e.run for e in entries])]
    return [(group, smaller_of([entry.run for entry in group])) for group in groups]


@final
@dataclass(frozen=True)
class Headline:
    """The lowest robust accuracy that was found for a defence, over ``entries``: every finished attack on it.

    They share images, protocol and budget; ``told`` says which of them it was, and in what interval the number is.
    """

    entries: tuple[Entry, ...]
    told: SmallerOf

    @property
    def taken(self) -> Entry:
        """The run that found least."""
        return self.entries[self.told.taken]

    @property
    def alarms(self) -> tuple[str, ...]:
        """What speaks against the number: warnings of its run, and what its runs show together."""
        own = [finding(warning.name) for warning in self.taken.summary.warnings]
        more = [in_words(doubt.name) for doubt in doubts(self.entries) if doubt.alarm]
        return tuple(dict.fromkeys([*own, *more]))

    @property
    def ball(self) -> str:
        """ "Linf 8/255"; "" where the attack has no such budget."""
        budget = budget_of(self.taken.run)
        words = (value_text(name, budget[name]) for name in ("norm", "eps", "bound") if name in budget)
        return " ".join(words)


def headlines(entries: Sequence[Entry]) -> list[Headline]:
    """One per defence, images, protocol and budget, in the order in which they come; unfinished runs do not count."""
    groups: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.run.complete and entry.attacked and not entry.corrupted:
            alike = [entry.identity[part] for part in ("defense", "data", "protocol")]
            groups.setdefault(canonical([*alike, budget_of(entry.run)]), []).append(entry)
    return [Headline(tuple(group), smaller_of([e.run for e in group])) for group in groups.values()]


def _pairs(members: Sequence[Entry], which: str) -> tuple[Pair, ...]:
    named = [(a, b) for i, a in enumerate(members) for b in members[i + 1 :]]
    compared = [compare_runs(b.run, a.run, which=which) for a, b in named]
    adjusted = holm([result.p_value for result in compared])
    return tuple(
        Pair(a.key, b.key, result, p) for (a, b), result, p in zip(named, compared, adjusted, strict=True)
    )


def _defense_key(entry: Entry) -> str:
    return canonical(entry.identity["defense"])


def _by_defense(group: Sequence[Entry]) -> list[Entry]:
    first: dict[str, Entry] = {}
    for entry in group:
        first.setdefault(_defense_key(entry), entry)
    return list(first.values())


def _stands_for(entry: Entry, found: Sequence[Matrix]) -> bool:
    return any(
        _defense_key(entry) == _defense_key(member) and entry.run.protocol == member.run.protocol
        for matrix in found
        for member in matrix.entries
    )
