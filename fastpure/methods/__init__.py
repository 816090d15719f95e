"""Purification methods as data: a table, a guidance and what happens at the two ends.

Each function returns a frozen, printable, hashable ``Method``; none has a loop of its own. A new method is one
function decorated with ``method`` in a file of this folder and one line in ``METHODS``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import one_of
from ..words import no_attribute
from .adaptive import adp
from .base import Factory, Method, Spec, spaced_indices
from .diffpure import coup, coup_unguided, diffpure, diffpure_ode
from .energy import ebm_langevin
from .flows import consistency, flow, flowpure
from .guided import agdm, gdmp, langevin
from .heterogeneous import heterogeneous
from .likelihood import likelihood_max
from .low_rank import lorid
from .predicted import dps, freqpure, mimic
from .retrained import adbm, addt
from .samplers import ddim, ddpm, dpm_solver, edm, vp_sde
from .staged import GRADUAL, SURROGATE, gradual, one_shot

__all__ = [
    "GRADUAL",
    "METHODS",
    "SURROGATE",
    "Method",
    "Spec",
    "adbm",
    "addt",
    "adp",
    "agdm",
    "consistency",
    "coup",
    "coup_unguided",
    "ddim",
    "ddpm",
    "diffpure",
    "diffpure_ode",
    "dpm_solver",
    "dps",
    "ebm_langevin",
    "edm",
    "flow",
    "flowpure",
    "freqpure",
    "gdmp",
    "gradual",
    "heterogeneous",
    "langevin",
    "likelihood_max",
    "lorid",
    "make",
    "mimic",
    "one_shot",
    "spaced_indices",
    "spec",
    "vp_sde",
]

METHODS: dict[str, Factory[...]] = {
    "diffpure": diffpure,
    "diffpure_ode": diffpure_ode,
    "coup": coup,
    "coup_unguided": coup_unguided,
    "ddpm": ddpm,
    "ddim": ddim,
    "dpm_solver": dpm_solver,
    "gdmp": gdmp,
    "agdm": agdm,
    "adbm": adbm,
    "addt": addt,
    "vp_sde": vp_sde,
    "edm": edm,
    "gradual": gradual,
    "one_shot": one_shot,
    "langevin": langevin,
    "likelihood_max": likelihood_max,
    "adp": adp,
    "flow": flow,
    "flowpure": flowpure,
    "consistency": consistency,
    "lorid": lorid,
    "mimic": mimic,
    "dps": dps,
    "freqpure": freqpure,
    "ebm_langevin": ebm_langevin,
    "heterogeneous": heterogeneous,
}
"""Every method by name."""


def make(name: str, **settings: Any) -> Method:
    """The method called ``name`` with these settings; ValueError lists the known names."""
    return METHODS[one_of("method", name, METHODS)](**settings)


def spec(name: str) -> Spec:
    """What the method called ``name`` takes; ValueError lists the known names."""
    return METHODS[one_of("method", name, METHODS)].spec


if not TYPE_CHECKING:  # which would take every name for one that is here

    def __getattr__(name: str) -> Any:
        raise no_attribute(__name__, name, __all__)
