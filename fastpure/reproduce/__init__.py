"""Tables and figures of the papers as data, each one command.

>>> from fastpure.reproduce import EXPERIMENTS, Small, reproduce
>>> reproduce(EXPERIMENTS["coup-table1"], Small(), "reproduced/coup-table1")
"""

from __future__ import annotations

from . import advrad, coup, relatives
from .count import full_calls
from .experiment import Drawing, Experiment
from .parts import MISSING, ROLES, SMALL, Assault, Defence, Images, Role, Row
from .run import Cost, cost, reproduce
from .settings import Full, Setting, Small

EXPERIMENTS: dict[str, Experiment] = {
    one.name: one for one in (*coup.EXPERIMENTS, *relatives.EXPERIMENTS, *advrad.EXPERIMENTS)
}
"""Every table and figure by name."""

__all__ = [
    "EXPERIMENTS",
    "MISSING",
    "ROLES",
    "SMALL",
    "Assault",
    "Cost",
    "Defence",
    "Drawing",
    "Experiment",
    "Full",
    "Images",
    "Role",
    "Row",
    "Setting",
    "Small",
    "cost",
    "full_calls",
    "reproduce",
]
