"""What stands in the page's tables, as text; and the tables that are exported, as values."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from ..evaluate import Comparison
from ..evaluate.protocol import Protocol
from .data import Entry, Matrix

EXPLAINED = {
    "fresh": "Each image is judged on {draws} fresh draws of the defence's noise, none of which the attack has seen; "
    "accuracy is the mean over draws, its interval over images.",
    "any_of_n": "An image counts as right only if all of {draws} fresh draws are: an attacker may submit it again.",
    "majority": "The most frequent class of {draws} fresh draws decides; a tied vote counts as wrong.",
    "average": "The class with the highest mean {of} over {draws} fresh draws decides; a tie counts as wrong.",
    "dw_box": "Attacker and decision share one known realisation of the noise (draw {fixed_draw}, {part} noise); "
    "transfer is the mean accuracy of the same images on {transfer_draws} fresh draws.",
    "legacy_autoattack": "One draw decides, as in published AutoAttack numbers: noisier than fresh draws, and for "
    "comparison with papers only.",
}
"""Protocol -> what it means, in one sentence."""

ENVIRONMENT = ("fastpure", "code_sha256", "python", "torch", "numpy", "platform", "device", "cpu", "threads")
"""What of a session's environment is shown: what a result may depend on, not whose machine it was."""


def explain(protocol: Protocol) -> str:
    """One sentence for a protocol."""
    known = EXPLAINED.get(protocol.name, "Rule {rule} over {draws} draws, {noise} noise.")
    return known.format(**protocol.to_dict())


def duration(seconds: float) -> str:
    """ "3.2 s", "12 min", "5 h 20 min", "2 d 3 h"."""
    if seconds < 99.5:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def count(number: int) -> str:
    """A whole number short enough for a table: 12 800, 3.4 million, 1.2 billion."""
    for size, word in ((10**9, "billion"), (10**6, "million")):
        if number >= size:
            return f"{number / size:.3g} {word}"
    return f"{number:,}".replace(",", "\u202f")


def decimals(value: float | None, digits: int) -> str:
    """ "0.123", "\u221e", or a dash where there is none."""
    if value is None:
        return "\u2013"
    return f"{value:.{digits}f}" if math.isfinite(value) else "\u221e"


def p_text(p: float) -> str:
    """ "0.032", "3.1e-05", "1"."""
    return f"{p:.2g}"


def difference_text(comparison: Comparison, sign: int = 1) -> tuple[str, str]:
    """Difference and interval in percentage points, turned round for sign -1."""
    value = sign * comparison.difference
    low, high = (comparison.low, comparison.high) if sign > 0 else (-comparison.high, -comparison.low)
    return _signed(100 * value), f"[{_signed(100 * low)}, {_signed(100 * high)}]"


def configuration(entry: Entry) -> str:
    """The stored configuration as indented JSON."""
    return json.dumps(entry.identity, indent=2, ensure_ascii=False)


def environments(entry: Entry) -> list[list[tuple[str, str]]]:
    """Per distinct session: when it began, what it ran on and with which batch sizes."""
    found = []
    for session in entry.run.sessions():
        shown = [("started", str(session["started"]))]
        shown += [
            (name, str(session["environment"][name]))
            for name in ENVIRONMENT
            if name in session["environment"]
        ]
        shown += [(name, str(value)) for name, value in session["settings"].items() if name != "merged_from"]
        found.append(shown)
    return found


def checksums(entry: Entry) -> list[tuple[str, str]]:
    """What a reader needs to tell whether he has the same networks, data and results; SHA-256."""
    defense = entry.identity["defense"]
    rows = [("result", entry.summary.digest), ("data", str(entry.identity["data"]["checksum"]))]
    if entry.purified:
        rows += [
            ("denoiser", str(defense["denoiser"]["sha256"])),
            ("step table", str(defense["method"]["steps"])),
        ]
    rows.append(("classifier", str(defense["classifier"]["sha256"])))
    return rows


Table = list[dict[str, Any]]


def run_table(entries: Sequence[Entry]) -> Table:
    """One row per run."""
    rows = []
    for entry in entries:
        summary, identity = entry.summary, entry.identity
        row: dict[str, Any] = {
            "run": entry.key,
            "name": entry.name,
            "experiment": summary.name,
            "result_sha256": summary.digest,
            "defense": summary.defense,
            "attack": summary.attack,
            "protocol": summary.protocol,
            "data": f"{identity['data']['name']}/{identity['data']['split']}",
            "data_checksum": identity["data"]["checksum"],
            "images": summary.n_images,
            "images_total": summary.n_total,
        }
        for name in ("clean", "robust", "transfer"):
            interval = getattr(summary, name)
            for part in ("estimate", "low", "high"):
                row[name if part == "estimate" else f"{name}_{part}"] = (
                    None if interval is None else getattr(interval, part)
                )
        row["warnings"] = "; ".join(warning.name for warning in summary.warnings)
        row["network_calls_at_most"] = entry.calls
        row.update({f"seconds_{part}": seconds for part, seconds in summary.seconds.items()})
        rows.append(row)
    return rows


def image_table(entries: Sequence[Entry]) -> Table:
    """One row per run and image; ``clean`` and ``robust`` are how far it counts as correct under the protocol."""
    rows = []
    for entry in entries:
        run = entry.run
        if not len(run.positions):
            continue
        values = {
            "clean": run.values("clean"),
            "robust": run.values("adversarial") if entry.attacked else None,
        }
        rights = {which: run.correct(which) for which in ("clean", "adversarial", "transfer")}
        for i, position in enumerate(run.positions.tolist()):
            row: dict[str, Any] = {
                "run": entry.key,
                "position": position,
                "sample_id": int(run.sample_ids[i]),
                "label": int(run.labels[i]),
                "label_name": entry.class_names[int(run.labels[i])],
            }
            row |= {name: None if value is None else float(value[i]) for name, value in values.items()}
            for which, right in rights.items():
                row[f"{which}_draws"] = right.shape[1]
                row[f"{which}_right"] = int(right[i].sum())
            for name, column in (
                ("distance", run.distances),
                ("zero_gradient", run.zero_gradients),
                ("gradient_agreement", run.agreements),
                ("gradients_spent", run.spent),
                ("verdict", run.verdicts),
            ):
                row[name] = None if column[i] != column[i] else float(column[i])
            rows.append(row)
    return rows


def draw_table(entries: Sequence[Entry]) -> Table:
    """One row per run, image, input and draw."""
    rows = []
    for entry in entries:
        for which in ("clean", "adversarial", "transfer"):
            predicted, losses = entry.run.predicted(which), entry.run.losses(which)
            for i, position in enumerate(entry.run.positions.tolist()):
                for draw in range(predicted.shape[1]):
                    loss = float(losses[i, draw])
                    rows.append(
                        {
                            "run": entry.key,
                            "position": position,
                            "input": which,
                            "draw": draw,
                            "predicted": int(predicted[i, draw]),
                            "correct": int(predicted[i, draw] == entry.run.labels[i]),
                            "loss": None if loss != loss else loss,
                        }
                    )
    return rows


def comparison_table(found: Sequence[Matrix]) -> Table:
    """One row per pair of runs: difference of ``first`` minus ``second`` in [-1, 1]."""
    return [
        {
            "input": matrix.which,
            "first": pair.first,
            "second": pair.second,
            "images": pair.comparison.n,
            "difference": pair.comparison.difference,
            "low": pair.comparison.low,
            "high": pair.comparison.high,
            "first_better": pair.comparison.wins,
            "second_better": pair.comparison.losses,
            "p_mcnemar": pair.comparison.p_value,
            "p_holm": pair.adjusted,
        }
        for matrix in found
        for pair in matrix.pairs
    ]


def _signed(value: float) -> str:
    """ "+1.2", "\u22120.3", "0.0"."""
    text = f"{abs(value):.1f}"
    return text if text == "0.0" else ("+" if value > 0 else "\u2212") + text
