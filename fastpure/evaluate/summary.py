"""`Report`: what a run came to, with its protocol, its intervals and its doubts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import numpy as np

from ..intervals import Interval, wilson
from ..shown import Card, Grid, Row, Shown
from .run import Run
from .statistics import DrawSpread, draw_spread
from .weakness import Finding, findings, left_out, seeks
from .words import defense_text, setting_text


@final
@dataclass(frozen=True, repr=False)
class Report(Shown):
    """The result of an evaluation; ``print`` it.

    Attributes:
        defense, attack, protocol, data: what was evaluated, as text; ``attack`` is None for clean accuracy only.
        name: hexadecimal digits of the run's identity; equal names mean the same experiment.
        n_images, n_total: finished images, and images of the whole run.
        clean: accuracy on the originals under the protocol, Wilson interval over images.
        robust: the same on the adversarial images; None without attack.
        transfer: where the attacker knew the noise, mean accuracy of the same images on fresh draws.
        spread: how accuracy varies from draw to draw on the adversarial (else the clean) images; None if nothing
            is random.
        findings: every check for a weak attack with its value; `warnings` are those that gave alarm.
        notes: what was asked for and not done, such as members of an ensemble that need more classes.
        seconds: time by part.
        path: the run file, None if it was kept in memory.
        digest: SHA-256 of identity and results, see `Run.content_digest`.
        spent: gradients of the deployed defence that the attack spent on an image, mean over those of which it says so;
            a forward pass counts a half. None where it says nothing.
        n_spent: how many images these are.
        endings: why an attack that decides so itself has ended and what it left out, with the number of images.
    """

    defense: str
    attack: str | None
    protocol: str
    data: str
    name: str
    n_images: int
    n_total: int
    clean: Interval
    robust: Interval | None
    transfer: Interval | None
    spread: DrawSpread | None
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    seconds: dict[str, float]
    path: str | None
    digest: str
    spent: float | None = None
    n_spent: int = 0
    endings: tuple[tuple[str, int], ...] = ()

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """The findings that say the numbers should not be trusted as they are."""
        return tuple(finding for finding in self.findings if finding.alarm)

    @staticmethod
    def of(run: Run) -> Report:
        """Sum up a run, finished or not."""
        import hashlib

        from .identity import canonical

        attack, protocol = run.identity["attack"], run.protocol
        judged = "adversarial" if attack is not None else "clean"
        data = run.identity["data"]
        spent = run.spent[np.isfinite(run.spent)]
        text = None if attack is None else setting_text(attack["name"], attack["settings"])
        return Report(
            defense=defense_text(run.identity["defense"]),
            attack=text,
            protocol=str(protocol),
            data=f"{data['name']}/{data['split']}, {data['n']} images, checksum {data['checksum'][:12]}",
            name=hashlib.sha256(canonical(run.identity).encode()).hexdigest()[:12],
            n_images=len(run.positions),
            n_total=run.n_total,
            clean=accuracy(run.values("clean")),
            robust=None if attack is None else accuracy(run.values("adversarial")),
            transfer=accuracy(run.values("transfer")) if run.predicted("transfer").shape[1] else None,
            spread=draw_spread(run.correct(judged)) if run.predicted(judged).shape[1] > 1 else None,
            findings=findings(run),
            notes=left_out(run),
            seconds=run.seconds(),
            path=None if run.path is None else str(run.path),
            digest=run.content_digest(),
            spent=float(spent.mean()) if len(spent) else None,
            n_spent=len(spent),
            endings=tuple(("; ".join(said), n) for said, n in run.endings.items()),
        )

    def _shown(self) -> Card:
        rows = self._rows()
        first = [row for row in rows if row[0] not in _LATER]
        number = self.robust or self.clean
        part = "" if self.n_images == self.n_total else f" (UNFINISHED: of {self.n_total})"
        return Card(
            f"Report of {self.n_images} images{part}: {number}",
            tuple(first),
            tuple(row for row in rows if row[0] in _LATER),
            (Grid("checks of the attack", ("", "found"), _checks(self.findings)),) if self.findings else (),
            tuple(map(str, self.warnings)),
        )

    def _rows(self) -> list[Row]:
        """Everything but the warnings, as names and what is said of them."""
        part = "" if self.n_images == self.n_total else f" (UNFINISHED: {self.n_images} of {self.n_total})"
        noise = "the attacker knows the noise" if "dw_box" in self.protocol else "on noise no attack has seen"
        rows = [
            ("defence", self.defense),
            ("attack", self.attack or "none"),
            (
                "protocol",
                f"{self.protocol}, " + (noise if self.spread or self.transfer else "nothing is random"),
            ),
            ("data", f"{self.data}{part}"),
            ("clean", str(self.clean)),
        ]
        if self.robust is not None:
            name = "robust" if seeks((self.attack or "").split("(")[0]) else "corrupt"
            over = f"95 % Wilson intervals over {self.n_images} images"
            rows.append((name, f"{self.robust}   ({over})"))
        if self.transfer is not None:
            rows.append(("transfer", f"{self.transfer}   (the same images on fresh noise)"))
        if self.spread is not None:
            rows.append(("draws", str(self.spread)))
        rows += [("NOTE", note) for note in self.notes]
        if self.spent is not None:
            known = "" if self.n_spent == self.n_images else f" (known for {self.n_spent} images)"
            rows.append(("spent", f"{self.spent:,.1f} gradients per image{known}"))
        for said, n in self.endings:
            rows.append(("ended", said + ("" if n == self.n_images else f" ({n} images)")))
        rows.append(("time", ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())))
        if self.path is not None:
            rows.append(("file", f"{self.path}   (content {self.digest[:12]})"))
        return rows

    def __str__(self) -> str:
        rows = self._rows()
        at = next(k for k, (name, _) in enumerate(rows) if name in ("spent", "ended", "time"))
        alarms = [("WARNING", str(warning)) for warning in self.warnings]
        return "\n".join(f"{name:<9} {text}" for name, text in (*rows[:at], *alarms, *rows[at:]))


_LATER = ("draws", "spent", "ended", "time", "file")
"""What a notebook shows and a prompt does not."""


def _checks(found: tuple[Finding, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((finding.name, str(finding)) for finding in found)


def accuracy(values: np.ndarray) -> Interval:
    """Mean of per-image values in [0, 1] with its Wilson interval over images."""
    return wilson(float(values.sum()), len(values))
