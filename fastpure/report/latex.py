"""The page's numbers as LaTeX tables, for a paper: `tabular` environments to be read in with ``\\input``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..intervals import Interval
from .data import LEVEL, Entry, Matrix, finding, headlines, matrices
from .plotting import printable
from .tables import difference_text, p_text

LATEX = ("headlines", "results", "comparisons")
"""Names of the files, without their endings."""

ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "ε": r"$\varepsilon$",
    "\u2212": "$-$",
    "\u221e": r"$\infty$",
    "\u2026": r"\dots{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}
"""What is a command in LaTeX, or no letter of every font, and how it is written."""

NOTE = "$^{*}$"
"""Behind numbers with warnings."""


def latex_tables(entries: Sequence[Entry]) -> dict[str, str]:
    """The tables by name, see `LATEX`; each says in comments what it needs and what its numbers are."""
    return {
        "headlines": _headlines(entries),
        "results": _results(entries),
        "comparisons": _comparisons(matrices(entries)[0]),
    }


def escaped(text: str) -> str:
    """``text`` as LaTeX prints it, on one line."""
    return "".join(ESCAPED.get(character, character) for character in printable(text))


def _headlines(entries: Sequence[Entry]) -> str:
    rows: list[tuple[str, ...]] = []
    warned: dict[str, None] = {}
    for found in headlines(entries):
        warned |= dict.fromkeys(found.alarms)
        rows.append(
            (
                _named(found.taken.defense_text, found.taken.defense_settings),
                escaped(f"{found.ball}, {found.told.protocol}" if found.ball else found.told.protocol),
                _accuracy(found.told.clean),
                _accuracy(found.told.robust) + (NOTE if found.alarms else ""),
                escaped(found.taken.attack_text)
                + (f" (of {n} runs)" if (n := len(found.entries)) > 1 else ""),
            )
        )
    said = (
        "The lowest robust accuracy found for each defence, over all finished runs on its images within its budget;",
        "in brackets 95 % intervals over images, of several runs one that holds the smallest of the true accuracies.",
    )
    heads = ("Defence", "Budget, protocol", "Clean, %", "Robust, %", "Found by")
    return _tabular("llrrl", heads, rows, said, _warning(warned))


def _results(entries: Sequence[Entry]) -> str:
    rows: list[tuple[str, ...]] = []
    warned: dict[str, None] = {}
    for entry in entries:
        summary = entry.summary
        warned |= {finding(w.name): None for w in summary.warnings}
        robust = "--" if summary.robust is None else _accuracy(summary.robust)
        rows.append(
            (
                _named(entry.defense_text, entry.defense_settings),
                _named(entry.attack_text, entry.attack_settings),
                escaped(", ".join(filter(None, (summary.protocol, entry.part)))),
                str(summary.n_images),
                _accuracy(summary.clean),
                robust + (NOTE if summary.warnings else ""),
            )
        )
    heads = ("Defence", "Attack", "Protocol", "Images", "Clean, %", "Robust, %")
    said = ("In brackets 95 % Wilson intervals over images.",)
    return _tabular("lllrrr", heads, rows, said, _warning(warned))


def _comparisons(found: Sequence[Matrix]) -> str:
    rows = []
    for matrix in found:
        names = {entry.key: entry.name for entry in matrix.entries}
        for pair in matrix.pairs:
            value, interval = difference_text(pair.comparison)
            mark = r"\textbf{%s}" if pair.marked else "%s"
            rows.append(
                (
                    escaped("robust" if matrix.which == "adversarial" else "clean"),
                    escaped(names[pair.first]),
                    escaped(names[pair.second]),
                    f"{mark % escaped(value)} {_small(interval)}",
                    p_text(pair.comparison.p_value),
                    p_text(pair.adjusted),
                )
            )
    heads = ("Accuracy", "First", "Second", "First minus second, points", "p (McNemar)", "p (Holm)")
    said = (
        "Paired on the same images; in brackets 95 % intervals (Agresti and Min).",
        f"Bold where p stays below {LEVEL} after Holm's correction for all pairs of one kind, images and protocol.",
    )
    return _tabular("lllrrr", heads, rows, said, "")


def _tabular(
    columns: str, heads: Sequence[str], rows: Iterable[Sequence[str]], said: Iterable[str], below: str
) -> str:
    lines = [r"% Needs \usepackage{booktabs}.", *(f"% {line}" for line in said)]
    lines += [f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}", r"\toprule"]
    lines += [" & ".join(map(escaped, heads)) + r" \\", r"\midrule"]
    lines += [" & ".join(row) + r" \\" for row in rows]
    lines.append(r"\bottomrule")
    if below:
        lines.append(f"\\multicolumn{{{len(columns)}}}{{@{{}}l@{{}}}}{{\\footnotesize {below}}} \\\\")
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def _named(text: str, settings: str) -> str:
    return f"{escaped(text)} {_small(settings)}" if settings else escaped(text)


def _small(text: str) -> str:
    return f"{{\\footnotesize {escaped(text)}}}"


def _accuracy(value: Interval) -> str:
    if not value.n:
        return "--"
    return f"{100 * value.estimate:.1f} " + _small(f"[{100 * value.low:.1f}, {100 * value.high:.1f}]")


def _warning(names: Iterable[str]) -> str:
    listed = ", ".join(names)
    return f"{NOTE} Not to be quoted before its warnings are settled: {escaped(listed)}." if listed else ""
