"""`fastpure list`: what there is by name, a line on each."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer

from .names import among

Rows = list[dict[str, str]]

DATA = {
    "digits": "handwritten digits of scikit-learn, 1x8x8, 10 classes; needs no file",
    "cifar10": "CIFAR-10, 3x32x32: the official archive, its folder, or a JPEG pack (.npz)",
    "cifar100": "CIFAR-100, 3x32x32, 100 classes: the official archive or its folder",
    "imagenet": "a folder per class; shorter side to 256, central 224x224",
    "folder": "a folder per class, images of one size",
    "arrays": "NumPy arrays: an .npz, or a folder of .npy",
}
"""A line on every data set of `fastpure.data`."""


def methods() -> Rows:
    """Purification methods: what each is, which network it takes besides the denoiser."""
    from ..methods import METHODS

    return [
        {"name": name, "network": make.spec.network or "", "what": _first_line(make)}
        for name, make in METHODS.items()
    ]


def attacks() -> Rows:
    """Attacks, and the corruptions to compare with."""
    from ..attacks import ATTACKS
    from ..evaluate import CONTROLS

    kinds: Mapping[str, Any] = {**ATTACKS, **CONTROLS}
    return [{"name": name, "what": _first_line(kind)} for name, kind in kinds.items()]


def models() -> Rows:
    """Bundled networks."""
    from ..checkpoints.weights import read_metadata
    from ..zoo import CLASSIFIERS, DENOISERS, ENERGIES, weights_path

    rows = []
    for kind, names in (("denoiser", DENOISERS), ("classifier", CLASSIFIERS), ("energy", ENERGIES)):
        for name in names:
            about = read_metadata(weights_path(kind, name))
            told = {**json.loads(about["config"]), **json.loads(about.get("denoiser", "{}"))}
            shape = "x".join(str(side) for side in told["image_shape"])
            loss = json.loads(about.get("loss", "{}"))
            by = loss.get("kind", loss.get("name", ""))
            trained = f"trained on {about['data'].split()[0]}" + (f" by {by}" if by else "")
            rows.append(
                {"name": name, "kind": kind, "what": f"{about['architecture']}, images {shape}, {trained}"}
            )
    return rows


def presets() -> Rows:
    """Published experiments."""
    from ..presets import PRESETS

    return [{"name": name, "what": preset.title} for name, preset in PRESETS.items()]


def datasets() -> Rows:
    """Kinds of data."""
    return [{"name": name, "what": what} for name, what in DATA.items()]


KINDS: dict[str, Callable[[], Rows]] = {
    "methods": methods,
    "attacks": attacks,
    "models": models,
    "presets": presets,
    "datasets": datasets,
}


def listing(
    what: Annotated[
        str,
        typer.Argument(
            help=f"One of {', '.join(KINDS)}.",
            metavar="WHAT",
            autocompletion=among(KINDS),
            show_default=False,
        ),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array of objects.")] = False,
) -> None:
    """Say what there is by name: methods, attacks, models, presets or datasets.

    Example: fastpure list attacks
    """
    from ..errors import one_of

    rows = KINDS[one_of("WHAT", what, KINDS)]()
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name, no_wrap=name != "what", overflow="fold")
    for row in rows:
        table.add_row(*(Text(value, "cyan" if name == "name" else "") for name, value in row.items()))
    Console().print(table)


def _first_line(thing: object) -> str:
    """The first sentence of a docstring, without the marks of its markup."""
    line = (thing.__doc__ or "").strip().split("\n", 1)[0]
    return line.replace("``", "").replace("`", "").rstrip(".")
