"""A chart as what is shown and not how: the page draws it in its own style, `standalone` as a file of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from .data import Entry, doubts
from .svg import Series, floor_percent, key, line_chart
from .tables import finding as called


@final
@dataclass(frozen=True, eq=False)
class Chart:
    """Lines with title, axes and caption.

    Attributes:
        name: short and of letters, digits and hyphens where possible; names the chart's file.
        caption: what the lines are, whole sentences.
        entries: the runs shown; none where nothing was evaluated.
        percent, backwards, marks, logarithmic: as for `line_chart`.
        warnings: what speaks against the numbers, see `warned`.
    """

    name: str
    title: str
    caption: str
    entries: tuple[Entry, ...]
    series: tuple[Series, ...]
    x_label: str
    y_label: str
    percent: bool = False
    backwards: bool = False
    marks: bool = True
    warnings: str = ""
    logarithmic: bool = False

    @property
    def runs(self) -> str:
        """The numbers of the runs on their page."""
        numbers = [int(entry.key) for entry in self.entries]
        return f"{'Run' if len(numbers) == 1 else 'Runs'} {listed(numbers)}."

    @property
    def conditions(self) -> str:
        """What the runs share of defence and attack, their images and protocols; sentences for who has no page."""
        shown = self.entries
        if not shown:
            return self.warnings
        said = [
            _shared("Defence", [(entry.defense_text, entry.defense_settings) for entry in shown]),
            _shared("Attack", [(entry.attack_text, entry.attack_settings) for entry in shown]),
        ]
        data = [entry.identity["data"] for entry in shown]
        images = _each(f"{len(entry.run.positions)}" for entry in shown)
        where = _each(f"{one['name']}/{one['split']}" for one in data)
        protocols = _each(str(entry.run.protocol) for entry in shown)
        named = f"protocol{'' if len(protocols) == 1 else 's'} {' and '.join(protocols)}"
        plural = "s" if len(shown) > 1 or images != ["1"] else ""
        on = f"Run{'s' if len(shown) > 1 else ''} on {' or '.join(images)} image{plural} of {' and '.join(where)}"
        return " ".join(filter(None, [*said, f"{on}, {named}.", self.warnings]))

    @property
    def description(self) -> str:
        """The chart in words: where each line begins and ends."""
        return told(self.title, self.series, self.percent)

    @property
    def svg(self) -> str:
        """An SVG element in the page's style, without title and legend."""
        return line_chart(
            self.series,
            description=self.description,
            x_label=self.x_label,
            y_label=self.y_label,
            percent=self.percent,
            backwards=self.backwards,
            marks=self.marks,
            logarithmic=self.logarithmic,
        )

    @property
    def legend(self) -> tuple[tuple[str, str], ...]:
        """(key as SVG, label) of every line."""
        return tuple((key(one.style, one.hollow), one.label) for one in self.series)


def warned(entries: Sequence[Entry]) -> str:
    """A sentence with the warnings of these runs and of what they show together; "" where there are none.

    Warnings go with numbers wherever these go.
    """
    names = Counter(called(name) for entry in entries for name in {w.name for w in entry.summary.warnings})
    of = f" of {len(entries)} runs" if len(entries) > 1 else ""
    found = [f"{name} ({count}{of})" if of else name for name, count in sorted(names.items())]
    for name in dict.fromkeys(doubt.name for doubt in doubts(entries) if doubt.alarm):
        found += [f"{name} still helps" if name.startswith("more ") else name.replace(" against ", " beats ")]
    return f"Warnings, see the report: {', '.join(found)}." if found else ""


def told(title: str, series: Sequence[Series], percent: bool) -> str:
    """The chart in words: where each line begins and ends."""
    parts = []
    for one in series:
        known = [(x, y) for x, y in zip(one.x, one.y, strict=True) if math.isfinite(y)]
        if known:
            ends = [f"{100 * y:.1f} %" if percent else f"{y:.3g}" for _, y in (known[0], known[-1])]
            parts.append(f"{one.name} from {ends[0]} at {known[0][0]:.4g} to {ends[1]} at {known[-1][0]:.4g}")
    return f"{title}. " + "; ".join(parts)


def cut(series: Sequence[Series]) -> str:
    return " The axis does not begin at 0." if floor_percent(series) > 0 else ""


def listed(numbers: Sequence[int]) -> str:
    """ "1, 3 and 4", "2 to 5 and 7"; ascending numbers."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][-1] + 1:
            spans[-1].append(number)
        else:
            spans.append([number])
    words = []
    for span in spans:
        words += [f"{span[0]} to {span[-1]}"] if len(span) > 2 else [str(number) for number in span]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _each(words: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(words))


def _shared(what: str, told: Sequence[tuple[str, str]]) -> str:
    """A sentence with the name and those settings that all have; "" where names differ."""
    if len({name for name, _ in told}) > 1:
        return ""
    settings = [setting.split(", ") for _, setting in told]
    common = [word for word in settings[0] if word and all(word in other for other in settings)]
    return f"{what}: {', '.join([told[0][0], *common])}."
