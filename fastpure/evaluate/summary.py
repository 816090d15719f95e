"""`Report`: what a run came to, with its protocol, its intervals and its doubts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import numpy as np

from ..intervals import Interval, wilson
from .run import Run
from .statistics import DrawSpread, draw_spread
from .weakness import Finding, findings, left_out, seeks


@final
@dataclass(frozen=True)
class Report:
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

    def __str__(self) -> str:
        part = "" if self.n_images == self.n_total else f" (UNFINISHED: {self.n_images} of {self.n_total})"
        noise = "the attacker knows the noise" if "dw_box" in self.protocol else "on noise no attack has seen"
        lines = [
            f"defence   {self.defense}",
            f"attack    {self.attack or 'none'}",
            f"protocol  {self.protocol}, " + (noise if self.spread or self.transfer else "nothing is random"),
            f"data      {self.data}{part}",
            f"clean     {self.clean}",
        ]
        if self.robust is not None:
            name = "robust" if seeks((self.attack or "").split("(")[0]) else "corrupt"
            over = f"95 % Wilson intervals over {self.n_images} images"
            lines.append(f"{name:<9} {self.robust}   ({over})")
        if self.transfer is not None:
            lines.append(f"transfer  {self.transfer}   (the same images on fresh noise)")
        if self.spread is not None:
            lines.append(f"draws     {self.spread}")
        lines += [f"NOTE      {note}" for note in self.notes]
        lines += [f"WARNING   {warning}" for warning in self.warnings]
        if self.spent is not None:
            known = "" if self.n_spent == self.n_images else f" (known for {self.n_spent} images)"
            lines.append(f"spent     {self.spent:,.1f} gradients per image{known}")
        for said, n in self.endings:
            lines.append(f"ended     {said}" + ("" if n == self.n_images else f" ({n} images)"))
        seconds = ", ".join(f"{name} {value:.1f} s" for name, value in self.seconds.items())
        lines.append(f"time      {seconds}")
        if self.path is not None:
            lines.append(f"file      {self.path}   (content {self.digest[:12]})")
        return "\n".join(lines)


def accuracy(values: np.ndarray) -> Interval:
    """Mean of per-image values in [0, 1] with its Wilson interval over images."""
    return wilson(float(values.sum()), len(values))


def setting_text(name: str, settings: dict[str, Any]) -> str:
    """``name(field=value, ...)`` with floats short enough to read."""
    shown = (
        f"{key}={_value_text(value)}" for key, value in settings.items() if value is not None and value != []
    )
    return f"{name}({', '.join(shown)})"


def defense_text(defense: dict[str, Any]) -> str:
    """One line for the defence part of an identity."""
    classifier = defense["classifier"]["class"].rsplit(".", 1)[-1]
    if defense["kind"] == "module":
        return f"none: {classifier} alone"
    method = defense["method"]
    text = setting_text(method["name"], method["settings"])
    return f"{text}, seed {defense['seed']}, {defense['precision']}, before {classifier}"


def _value_text(value: Any) -> str:
    if isinstance(value, list) and any(isinstance(item, dict) for item in value):
        return f"({', '.join(map(_value_text, value))})"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return (
            value.get("name") or str(value.get("class") or value.get("sha256", "...")[:8]).rsplit(".", 1)[-1]
        )
    return repr(value)
