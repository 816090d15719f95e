"""Attacks on defended classifiers."""

from .base import Attack
from .budget import Budget
from .pgd import PGD
from .result import AttackResult

ATTACKS = {
    "pgd": PGD,
}
"""Every attack by name."""

__all__ = ["ATTACKS", "PGD", "Attack", "AttackResult", "Budget"]
