"""`fastpure doctor --classifier`: what its file is, and how images have to be shown to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .images import test_images

if TYPE_CHECKING:
    from torch import nn

_DEFAULT_N = 500


def classifier(
    source: str,
    data: str | None,
    data_path: Path | None,
    n: int | None,
    weights: str | None,
    options: dict[str, Any],
    as_json: bool,
) -> None:
    """Say what the classifier is, and which of the usual inputs fits it, if there is data."""
    from ..classifiers import report_of

    found: dict[str, Any] = {"classifier": source}
    lines: list[str] = []
    networks = _networks(source, weights, options)
    report = report_of(networks[0][1])
    if report is not None:
        found["report"] = report.describe()
        lines.append(str(report))
    if data is not None:
        found["inputs"], more = _inputs(networks, data, data_path, n)
        lines += more
    elif data_path is not None:
        raise ValueError("`--data` must be given with --data-path: the kind of data set")
    elif report is None:
        lines.append("nothing is known of its file; give --data to try the usual inputs")
    print(json.dumps(found, indent=2) if as_json else "\n".join(lines))


def _networks(source: str, weights: str | None, options: dict[str, Any]) -> list[tuple[str, nn.Module]]:
    """The network with nothing done to its images, in every reading of what its file leaves open."""
    from ..classifiers import CIFAR_RESNETS, is_foreign, load_classifier

    given = {name: value for name, value in options.items() if value is not None}
    if weights is not None:
        given["weights"] = weights
    if not is_foreign(source):
        return [("", load_classifier(source, **given))]
    given.setdefault("normalise", "none")
    readings: list[dict[str, str]] = [{}]
    try:
        load_classifier(source, **given)
    except ValueError as error:
        if "`activation`" in str(error):
            readings = [{"activation": name} for name in ("silu", "relu")]
        elif "`architecture`" in str(error):
            readings = [{"architecture": name} for name in CIFAR_RESNETS if "preact" in name]
        else:
            raise
    named = []
    for reading in readings:
        words = "".join(f", {name}={value!r}" for name, value in reading.items())
        named.append((words, load_classifier(source, **{**given, **reading})))
    return named


def _inputs(
    networks: Sequence[tuple[str, nn.Module]], data: str, data_path: Path | None, n: int | None
) -> tuple[dict[str, Any], list[str]]:
    """(the table as plain values, its lines)."""
    from ..classifiers.inputs import best, try_inputs

    dataset = test_images(data, data_path)
    count = min(len(dataset), n if n is not None else _DEFAULT_N)
    dataset = dataset.subset(count, 0) if count < len(dataset) else dataset
    tried = [
        (words, one)
        for words, network in networks
        for one in try_inputs(network, dataset.images, dataset.labels)
    ]
    tried.sort(key=lambda pair: -pair[1].right)
    sentence, _ = best([one for _, one in tried], len(dataset.classes))
    rows: list[dict[str, Any]] = [
        {
            "input": one.presentation.name,
            "accuracy": one.accuracy,
            "argument": one.presentation.argument + words,
        }
        for words, one in tried
    ]
    lines = [f"\n{count} images of {dataset.name}, shown in the usual ways", f"{'input':<34} accuracy"]
    lines += [f"{row['input'] + '':<34} {100 * row['accuracy']:6.1f} %  {row['argument']}" for row in rows]
    return {"images": count, "rows": rows, "verdict": sentence}, [*lines, f"\n{sentence}{tried[0][0]}"]
