"""Architectures by name, and named configurations of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, TypeAlias

from torch import nn

from ..errors import mistake, one_of
from .adm import ADM, ADMConfig
from .adm import CONFIGS as ADM_CONFIGS
from .ddpmpp import CONFIGS as DDPMPP_CONFIGS
from .ddpmpp import DDPMpp, DDPMppConfig
from .edm import EDM, EDMConfig

Config: TypeAlias = DDPMppConfig | ADMConfig | EDMConfig

#: Architecture -> (configuration class, network class built from one configuration).
ARCHITECTURES: dict[str, tuple[type[Any], type[Any]]] = {
    "ddpmpp": (DDPMppConfig, DDPMpp),
    "adm": (ADMConfig, ADM),
    "edm": (EDMConfig, EDM),
}

#: Name -> (architecture, configuration).
NETWORKS: dict[str, tuple[str, Config]] = {
    **{name: ("ddpmpp", config) for name, config in DDPMPP_CONFIGS.items()},
    **{name: ("adm", config) for name, config in ADM_CONFIGS.items()},
}

#: Fields that are younger than the first files and runs, with the value that these have: written only where it differs.
SINCE: dict[str, Any] = {"beta_min": 0.1, "beta_max": 20.0, "sigma_min": 0.002, "null_class": False}


def named_config(name_or_dict: str | dict[str, Any]) -> tuple[str, Config]:
    """(architecture, configuration) for a name of ``NETWORKS`` or a dict of fields with "architecture".

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
    if isinstance(values.get("network"), Mapping):
        values["network"] = named_config(dict(values["network"]))[1]
    try:
        return architecture, kind(**values)
    except TypeError as error:
        raise ValueError(
            mistake("config", f"a complete set of fields of {kind.__name__}", str(error))
        ) from error


def config_dict(network: nn.Module) -> dict[str, Any]:
    """The dict from which ``named_config`` makes this network's architecture and configuration.

    Raises:
        TypeError: a network that is none of ``ARCHITECTURES``, which only its own code could rebuild.
    """
    for _, kind in ARCHITECTURES.values():
        if isinstance(network, kind):
            return _plain(network.config)
    known = " or ".join(kind.__name__ for _, kind in ARCHITECTURES.values())
    raise TypeError(mistake("network", f"a {known}", type(network).__name__))


def classes_of(config: Config) -> tuple[int, bool]:
    """How many classes a network is told one of at each call (0: none, or always one), and if it may go without."""
    inner = config.network if isinstance(config, EDMConfig) else config
    if inner.classes is None or inner.class_label is not None:
        return 0, False
    return inner.classes, inner.null_class


def with_class(config: Any, class_label: int) -> Any:
    """The configuration of a network that is always told one class."""
    if isinstance(config, EDMConfig):
        return replace(config, network=with_class(config.network, class_label))
    return replace(config, class_label=class_label)


def build(architecture: str, config: Config) -> Any:
    """The network with uninitialised weights (on the meta device under ``torch.device("meta")``)."""
    return ARCHITECTURES[architecture][1](config)


def _plain(config: Config) -> dict[str, Any]:
    """The architecture and the fields; tuples as lists: what the values are after a visit to JSON."""
    architecture = next(name for name, (kind, _) in ARCHITECTURES.items() if isinstance(config, kind))
    values = {field.name: getattr(config, field.name) for field in fields(config)}
    values = {name: value for name, value in values.items() if name not in SINCE or value != SINCE[name]}
    return {"architecture": architecture, **{name: _value(value) for name, value in values.items()}}


def _value(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return _plain(value) if isinstance(value, DDPMppConfig | ADMConfig) else value
