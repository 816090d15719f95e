"""Which runs differ in one number only, and what that number does: found from the stored configurations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, final

from ..evaluate.identity import canonical
from ..shown import Card, Grid, Shown
from .data import Entry, value_text

METHOD, ATTACK = "defense.method.settings.", "attack.settings."

TITLES = {
    "t": "diffusion time t",
    "scale": "guidance scale",
    "steps": "reverse steps",
    "n_steps": "reverse steps",
    "dt": "step size dt",
    "n_iter": "attack iterations",
    "eot_iter": "EOT draws of the attack",
    "eps": "attack radius ε",
    "std": "standard deviation of the noise",
    "amount": "share of replaced pixels",
}
"""Setting -> what it is called; others are called by their name."""

UNITS = {
    "t": "0 is clean, 1 is noise",
    "dt": "in diffusion time",
    "eps": "pixels in [0, 1]",
    "std": "pixels in [0, 1]",
}
"""Setting -> on which scale it is, for its axis; counts and shares need none."""

DERIVED = ("defense.method.steps", "defense.method.guidance", "protocol.hash")
"""What follows from other values and would hide that only one setting differs."""


@final
@dataclass(frozen=True)
class Curve:
    """Runs along one setting, ascending; ``label`` says what else tells this curve from others of its chart."""

    label: str
    points: tuple[tuple[float, Entry], ...]


@final
@dataclass(frozen=True, repr=False)
class Sweep(Shown):
    """All curves over one setting, and which other settings differ between them; ``counts``: it is a whole number."""

    setting: str
    title: str
    curves: tuple[Curve, ...]
    counts: bool = False

    def _shown(self) -> Card:
        rows = tuple(
            (curve.label or entry.key, f"{value:g}", str(entry.summary.robust or entry.summary.clean))
            for curve in self.curves
            for value, entry in curve.points
        )
        values = sorted({value for curve in self.curves for value, _ in curve.points})
        return Card(
            f"Sweep over {self.title}: {len(rows)} runs",
            (("values", ", ".join(f"{value:g}" for value in values)), ("curves", str(len(self.curves)))),
            grids=(Grid("", ("", self.setting, "accuracy"), rows),),
        )

    @property
    def axis(self) -> str:
        """What stands at the axis of the setting."""
        return f"{self.title} ({UNITS[self.setting]})" if self.setting in UNITS else self.title


def sweeps(entries: Sequence[Entry]) -> list[Sweep]:
    """Every setting in which two or more runs differ while they agree in all else, in a fixed order.

    Step size and number of steps are one setting told twice: over t, runs agree if either does. Seeds and draws are
    no settings of interest, and unfinished runs are left out.
    """
    flat = {e.key: flatten(e) for e in entries if e.run.complete}
    by_key = {e.key: e for e in entries}
    names = sorted({name for values in flat.values() for name in values if _is_axis(name, values)})
    found = []
    for name in names:
        groups: dict[str, dict[float, Entry]] = {}
        for hidden in _hidden(name):
            for key, values in flat.items():
                if not _is_number(values.get(name)):  # a number in some runs may be None in others
                    continue
                rest = canonical({k: v for k, v in values.items() if k != name and k not in hidden})
                groups.setdefault(rest, {})[float(values[name])] = by_key[key]
        members = _distinct([group for group in groups.values() if len(group) > 1])
        if members:
            short = name.rsplit(".", 1)[-1]
            labels = _labels(members, flat, name)
            curves = tuple(
                Curve(label, tuple(sorted(group.items(), key=lambda item: item[0])))
                for label, group in zip(labels, members, strict=True)
            )
            counts = all(isinstance(flat[e.key][name], int) for group in members for e in group.values())
            found.append(Sweep(short, TITLES.get(short, short), curves, counts))
    return sorted(
        found, key=lambda sweep: list(TITLES).index(sweep.setting) if sweep.setting in TITLES else 99
    )


def flatten(entry: Entry) -> dict[str, Any]:
    """Leaves of the identity by dotted name, derived ones left out; steps t/dt added where they are whole."""
    leaves = dict(_leaves(entry.identity, ""))
    values = {k: v for k, v in leaves.items() if not any(k == d or k.startswith(d + ".") for d in DERIVED)}
    t, dt = (values.get(METHOD + name) for name in ("t", "dt"))
    if isinstance(t, float) and isinstance(dt, float) and dt > 0 and abs(t / dt - round(t / dt)) < 1e-6:
        values[METHOD + "steps"] = round(t / dt)
    return values


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    else:
        yield path, value


def _is_axis(name: str, values: dict[str, Any]) -> bool:
    if not name.startswith((METHOD, ATTACK)) or name.rsplit(".", 1)[-1] in ("seed", "eval_draws"):
        return False
    told_twice = name == METHOD + "dt" and METHOD + "steps" in values
    return _is_number(values[name]) and not told_twice


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _hidden(name: str) -> tuple[tuple[str, ...], ...]:
    """Settings that may vary along with ``name``; alternatives."""
    dt, steps = METHOD + "dt", METHOD + "steps"
    return {METHOD + "t": ((dt,), (steps,)), steps: ((dt,),), dt: ((steps,),)}.get(name, ((),))


def _distinct(groups: list[dict[float, Entry]]) -> list[dict[float, Entry]]:
    """Groups without those whose points all lie in another."""
    keys = [frozenset(entry.key for entry in group.values()) for group in groups]
    return [
        group
        for i, group in enumerate(groups)
        if not any(keys[i] < other or (keys[i] == other and j < i) for j, other in enumerate(keys))
    ]


def _labels(groups: list[dict[float, Entry]], flat: dict[str, dict[str, Any]], axis: str) -> list[str]:
    """Curves by what tells them apart: method or attack, then settings in which those of one kind differ.

    More than two such settings are too many to read: then the key of a run tells.
    """
    if len(groups) == 1:
        return [""]
    firsts = [next(iter(group.values())) for group in groups]
    kinds = [(entry.defense_text, entry.attack_text) for entry in firsts]
    alike = [len(set(column)) == 1 for column in zip(*kinds, strict=True)]
    labels = []
    for entry, kind in zip(firsts, kinds, strict=True):
        words = [text for text, same in zip(kind, alike, strict=True) if not same]
        peers = [flat[e.key] for e, k in zip(firsts, kinds, strict=True) if k == kind]
        words += _differing(flat[entry.key], peers, axis)
        labels.append(", ".join(words or kind))
    repeated = {label for label in labels if labels.count(label) > 1}
    return [
        f"{label} (run {entry.key}…)" if label in repeated else label
        for label, entry in zip(labels, firsts, strict=True)
    ]


def _differing(value: dict[str, Any], peers: list[dict[str, Any]], axis: str) -> list[str]:
    """One or two settings of a run in which it differs from its peers, as words; none if there are more."""
    varying = sorted(
        name
        for name in {name for peer in peers for name in peer}
        if name not in (axis, METHOD + "dt")
        and name.startswith((METHOD, ATTACK, "protocol.name"))
        and len({canonical(peer.get(name)) for peer in peers}) > 1
    )
    shown = [(name.rsplit(".", 1)[-1], value[name]) for name in varying if value.get(name) is not None]
    return [f"{TITLES.get(n, n)} {value_text(n, v)}" for n, v in shown] if len(shown) <= 2 else []
