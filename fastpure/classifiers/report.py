"""What was loaded: `report_of` a classifier that came from a file."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final
from weakref import WeakKeyDictionary

from torch import nn


@final
@dataclass(frozen=True)
class ClassifierReport:
    """Where a classifier's weights come from and what they are.

    Attributes:
        path: the file.
        format: the layout that it was recognised as, or the library that built the network.
        architecture: the network's class.
        normalisation: what is done to images in [0, 1] before the first layer, and where that is known from.
        weights: which were taken where the file has averaged and raw ones.
        dropped: what the file holds and the classifier does not use.
        notes: what was assumed because the file does not say it.
        config: the network's configuration as plain values, empty for other libraries' networks.
    """

    path: str
    format: str
    architecture: str
    normalisation: str
    weights: str
    dropped: tuple[str, ...]
    notes: tuple[str, ...]
    config: dict[str, Any]

    def describe(self) -> dict[str, Any]:
        """Everything in values that JSON can hold."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in asdict(self).items()}

    def __str__(self) -> str:
        lines = []
        for name, value in self.describe().items():
            if isinstance(value, dict):
                value = ", ".join(f"{key}={item}" for key, item in value.items())
            elif isinstance(value, list):
                value = "; ".join(value)
            lines.append(f"{name:<14} {value or 'none'}")
        return "\n".join(lines)


#: Beside the modules, not on them: where a file lies is no part of what a classifier computes.
_REPORTS: WeakKeyDictionary[nn.Module, ClassifierReport] = WeakKeyDictionary()


def report_of(classifier: nn.Module) -> ClassifierReport | None:
    """What is known of the file that ``load_classifier`` read this very module from; None for any other."""
    return _REPORTS.get(classifier)


def keep(classifier: nn.Module, report: ClassifierReport) -> nn.Module:
    """``classifier``, which ``report_of`` knows from now on."""
    _REPORTS[classifier] = report
    return classifier
