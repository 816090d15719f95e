"""What run files say of defences and attacks, in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..errors import RunDamaged
from ..intervals import wilson
from ..shown import Card, size
from .schema import READ_ERRORS


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


def run_card(run: Any) -> Card:
    """What is shown of a `Run`; of one that is closed or damaged, what is known without its file."""
    identity = run.identity
    attack, data = identity["attack"], identity["data"]
    rows = [
        ("file", "in memory" if run.path is None else str(run.path)),
        ("defence", defense_text(identity["defense"])),
        ("attack", "none" if attack is None else setting_text(attack["name"], attack["settings"])),
        ("data", f"{data['name']}/{data['split']}, {data['n']} images of {size(data['image_shape'])}"),
    ]
    try:
        rows += [("protocol", str(run.protocol)), *_accuracies(run)]
        title = f"Run, {len(run.positions)} of {run.n_total} images finished"
    except (RunDamaged, *READ_ERRORS) as error:
        title = f"Run, which cannot be read: {error}"
    return Card(title, tuple(rows))


def _accuracies(run: Any) -> Iterator[tuple[str, str]]:
    for name, which in (("clean", "clean"), ("robust", "adversarial"), ("transfer", "transfer")):
        if run.predicted(which).shape[1]:
            values = run.values(which)
            yield name, str(wilson(float(values.sum()), len(values)))
