"""Evaluations that can be trusted: protocols, run files, statistics, plans, shards and clusters.

>>> report = fp.evaluate(defense, dataset, attack=fp.attacks.PGD(eps=8/255), out="runs/coup.sqlite")
>>> print(report)
"""

from . import controls, protocol
from .controls import CONTROLS, GaussianNoise, SaltAndPepper
from .plan import Plan, plan
from .protocol import PROTOCOLS, Protocol
from .published import PublishedReport, evaluate_published, protocol_of
from .run import Run
from .runner import evaluate
from .shards import merge
from .smaller import SmallerOf, smaller_of, versions_of
from .statistics import Comparison, compare_values, restart_spread, worst_of
from .statistics import compare as compare_runs
from .summary import Report
from .weakness import Finding, across

__all__ = [
    "CONTROLS",
    "PROTOCOLS",
    "Comparison",
    "Finding",
    "GaussianNoise",
    "Plan",
    "Protocol",
    "PublishedReport",
    "Report",
    "Run",
    "SaltAndPepper",
    "SmallerOf",
    "across",
    "compare_runs",
    "compare_values",
    "controls",
    "evaluate",
    "evaluate_published",
    "merge",
    "plan",
    "protocol",
    "protocol_of",
    "restart_spread",
    "smaller_of",
    "versions_of",
    "worst_of",
]
