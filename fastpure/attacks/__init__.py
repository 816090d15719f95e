"""Attacks on defended classifiers."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ..errors import mistake, one_of
from ..words import did_you_mean, no_attribute
from .adapters import as_art, as_autoattack, as_foolbox, as_torchattack
from .adaptive import Adaptive
from .apgd import APGDCE, APGDDLR, APGDT
from .autoattack import AutoAttack
from .base import Attack, AttackResult
from .budget import Budget
from .diffattack import DiffAttack
from .diffhammer import DiffHammer
from .ensemble import Ensemble
from .gradient_modes import MODES, GradientMode
from .low_frequency import LowFrequency
from .pgd import DWPGD, PGD
from .pyautoattack import FAB, Square
from .rays import RayS
from .spsa import SPSA
from .stadv import DiffPureStAdv, StAdv
from .start import Start
from .targets import Targets
from .transfer import Transfer

ATTACKS: dict[str, type[Attack]] = {
    "pgd": PGD,
    "apgd-ce": APGDCE,
    "apgd-dlr": APGDDLR,
    "apgd-t": APGDT,
    "fab": FAB,
    "square": Square,
    "spsa": SPSA,
    "rays": RayS,
    "autoattack": AutoAttack,
    "adaptive": Adaptive,
    "diffattack": DiffAttack,
    "diffhammer": DiffHammer,
    "dw-pgd": DWPGD,
    "stadv": StAdv,
    "diffpure-stadv": DiffPureStAdv,
    "low-frequency": LowFrequency,
}
"""Every attack that settings suffice to make, by name; `Transfer` needs images, `Ensemble` attacks."""

__all__ = [
    "APGDCE",
    "APGDDLR",
    "APGDT",
    "ATTACKS",
    "DWPGD",
    "FAB",
    "MODES",
    "PGD",
    "SPSA",
    "Adaptive",
    "Attack",
    "AttackResult",
    "AutoAttack",
    "Budget",
    "DiffAttack",
    "DiffHammer",
    "DiffPureStAdv",
    "Ensemble",
    "GradientMode",
    "LowFrequency",
    "RayS",
    "Square",
    "StAdv",
    "Start",
    "Targets",
    "Transfer",
    "as_art",
    "as_autoattack",
    "as_foolbox",
    "as_torchattack",
    "from_settings",
]


def from_settings(name: str, **settings: Any) -> Attack:
    """The attack called ``name`` with these settings, such as ``from_settings("apgd-ce", eps=8 / 255)``.

    Raises:
        ValueError: an unknown attack or setting; the message lists what there is.
    """
    kind = ATTACKS[one_of("attack", name, ATTACKS)]
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for setting in settings:
        if setting not in known:
            hint = did_you_mean(setting, known)
            raise ValueError(mistake(f"settings of {name}", f"among {', '.join(known)}", repr(setting), hint))
    return kind(**settings)


if not TYPE_CHECKING:  # which would take every name for one that is here

    def __getattr__(name: str) -> Any:
        raise no_attribute(__name__, name, __all__)
