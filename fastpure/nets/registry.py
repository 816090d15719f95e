"""Architectures by name, and named configurations of them."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from torch import nn

from ..errors import mistake, one_of
from .ddpmpp import DDPMpp
from .ddpmpp_config import CONFIGS as DDPMPP_CONFIGS
from .ddpmpp_config import DDPMppConfig

#: Architecture -> (configuration class, network class built from one configuration).
ARCHITECTURES: dict[str, tuple[type[DDPMppConfig], type[DDPMpp]]] = {"ddpmpp": (DDPMppConfig, DDPMpp)}

#: Name -> (architecture, configuration).
NETWORKS: dict[str, tuple[str, DDPMppConfig]] = {
    name: ("ddpmpp", config) for name, config in DDPMPP_CONFIGS.items()
}


def named_config(name_or_dict: str | dict[str, Any]) -> tuple[str, DDPMppConfig]:
    """(architecture, configuration) for a name of `NETWORKS` or a dict of fields with "architecture".

    Raises:
        TypeError: neither a name nor a dict.
        ValueError: an unknown name, architecture or field, a missing field, or a value outside its range.
    """
    if isinstance(name_or_dict, str):
        return NETWORKS[one_of("name_or_dict", name_or_dict, NETWORKS)]
    if not isinstance(name_or_dict, dict):
        raise TypeError(mistake("name_or_dict", "a name or a dict of fields", type(name_or_dict).__name__))
    values = dict(name_or_dict)
    architecture = one_of("architecture", values.pop("architecture", "ddpmpp"), ARCHITECTURES)
    kind = ARCHITECTURES[architecture][0]
    for name in values:
        one_of("config", name, [field.name for field in fields(kind)])
    try:
        return architecture, kind(**values)
    except TypeError as error:
        raise ValueError(
            mistake("config", f"a complete set of fields of {kind.__name__}", str(error))
        ) from error


def config_dict(network: nn.Module) -> dict[str, Any]:
    """The dict from which `named_config` makes this network's architecture and configuration.

    Raises:
        TypeError: a network that is none of `ARCHITECTURES`, which only its own code could rebuild.
    """
    for architecture, (_, kind) in ARCHITECTURES.items():
        if isinstance(network, kind):
            return {"architecture": architecture, **_plain(asdict(network.config))}
    known = " or ".join(kind.__name__ for _, kind in ARCHITECTURES.values())
    raise TypeError(mistake("network", f"a {known}", type(network).__name__))


def build(architecture: str, config: DDPMppConfig) -> DDPMpp:
    """The network with uninitialised weights (on the meta device under ``torch.device("meta")``)."""
    return ARCHITECTURES[architecture][1](config)


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """Tuples as lists: what the values are after a visit to JSON."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
