"""EDM's networks: published pickles (whose code is not run), and state dicts with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, mistake
from ..nets import ADMConfig, DDPMppConfig, EDMConfig
from .edm_names import translate as translate_names
from .report import Plan
from .sources import Source
from .unpickle import Record, state_dict
from .weights import listed, read_config

_PRECONDITIONERS = {"VPPrecond": "vp", "EDMPrecond": "edm", "vp": "vp", "edm": "edm"}
#: Constants of the preconditioners that ours assumes.
_CONSTANTS = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}
_UNUSED_NAMES = """img_channels in_channels out_channels use_fp16 sigma_min sigma_max epsilon_t augment_dim
    label_dropout name source precond model_type class_name sigma_data label_dim channels_per_head"""
_UNUSED = frozenset(_UNUSED_NAMES.split()).union(_CONSTANTS)
#: Defaults of the reference classes.
_SONG: dict[str, Any] = {
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": 4,
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.10,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
_DHARIWAL: dict[str, Any] = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
    "dropout": 0.10,
}
_HEAD_CHANNELS = 64
_PREFIX = "model."
_NETS = ("ema", "net", "model")


def is_edm(source: Source) -> bool:
    """Whether it is a pickle with a network in it, or has the names of SongUNet or DhariwalUNet."""
    if source.container == "pickle":
        return _record(source.content) is not None
    names = [name.removeprefix("module.").removeprefix(_PREFIX) for name in source.tensors]
    return "map_layer0.weight" in names and any(name.startswith("enc.") for name in names)


def plan_edm(source: Source, config: Any = None) -> Plan:
    """Understand a published pickle, or a state dict with its configuration.

    Args:
        config: for state dicts, a dict or JSON file with the arguments of the preconditioner and the network
            (precond, model_type, img_resolution, label_dim, model_channels, channel_mult, ...), or with
            "model_type", "model_kwargs" and "precond". None for pickles, which hold them.

    The network predicts noise, given the noise level (`fastpure.nets.edm`).

    Raises:
        ValueError: no configuration for a state dict, or one for a pickle.
        CheckpointError: a field is missing, unknown, or describes a network that we do not have.
    """
    path = str(source.path)
    ema = "as in the file"
    dropped: list[str] = []
    if source.container == "pickle":
        if config is not None:
            raise ValueError(mistake("config", "None for a pickle, which has its own", type(config).__name__))
        found = _record(source.content)
        if found is None:
            raise CheckpointError(f"{path}: expected a pickled EDM network, found {source.summary()}")
        name, record = found
        ema = "averaged (ema)" if name == "ema" else f"those under {name!r}"
        if isinstance(source.content, dict):
            dropped += [f"{key} (of the training)" for key in source.content if key != name]
        settings = _settings(_arguments(record, path), f"{path}, {record.kind}")
        try:
            tensors = state_dict(record)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    else:
        if config is None:
            expected = "the configuration of the weights (a dict or JSON file with precond, model_type, ...)"
            raise ValueError(mistake("config", expected, "None"))
        content, called = read_config(config)
        tensors, settings = source.require_tensors(), _settings(_flat(content, called), called)
    if tensors and all(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    tensors, more = _without_constants(tensors, settings, path)
    return Plan("edm", settings, tensors, translate_names, dropped=(*dropped, *more), ema=ema)


def _record(content: Any) -> tuple[str, Record] | None:
    """The network in a pickle, and its name there."""
    if isinstance(content, Record):
        return "the file", content
    if isinstance(content, dict):
        for name in _NETS:
            if isinstance(content.get(name), Record):
                return name, content[name]
    return None


def _arguments(record: Record, source: str) -> dict[str, Any]:
    """Constructor arguments of the pickled preconditioner and of its network, and the former's constants."""
    attributes = record.attributes()
    values = {name: attributes[name] for name in (*_CONSTANTS, "sigma_data") if name in attributes}
    modules = attributes.get("_modules")
    inner = modules.get("model") if isinstance(modules, dict) else None
    for part in (record, inner):
        found = part.attributes().get("_init_kwargs") if isinstance(part, Record) else None
        if not isinstance(found, dict) or not found:
            # Without them the defaults would be taken, and not all of these show in names and shapes.
            raise CheckpointError(f"{source}: expected the network's constructor arguments, found none")
        values.update({str(name): value for name, value in found.items()})
    for name in ("img_resolution", "img_channels", "label_dim"):
        if name in attributes:
            values[name] = attributes[name]
    values["precond"] = record.kind
    if isinstance(inner, Record):
        values["model_type"] = inner.kind
    return values


def _flat(content: Any, source: str) -> dict[str, Any]:
    """One dict of the arguments, however the configuration is nested."""
    if isinstance(content, Mapping) and isinstance(content.get("config"), Mapping):
        content = content["config"]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: expected fields by name, found {type(content).__name__}")
    nested = ("model_kwargs", "preconditioners", "architecture", "key_prefix", "param_count")
    skipped = (*nested, "channels_per_head_note")
    values = {str(name): value for name, value in content.items() if name not in skipped}
    values.update(content.get("model_kwargs") or {})
    known = content.get("preconditioners") or {}
    if "precond" not in values and len(known) == 1:
        values["precond"] = next(iter(known))
    constants = known.get(values.get("precond")) if isinstance(known, Mapping) else None
    values.update({name: value for name, value in (constants or {}).items() if name != "class"})
    return values


def _settings(values: dict[str, Any], source: str) -> EDMConfig:
    kind = values.get("model_type")
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise CheckpointError(f"{source}: model_type must be 'SongUNet' or 'DhariwalUNet', found {kind!r}")
    preconditioner = values.get("precond")
    if preconditioner not in _PRECONDITIONERS:
        expected = " or ".join(repr(name) for name in _PRECONDITIONERS)
        raise CheckpointError(f"{source}: precond must be {expected}, found {preconditioner!r}")
    defaults = _SONG if kind == "SongUNet" else _DHARIWAL
    unknown = sorted(set(values) - set(defaults) - _UNUSED - {"img_resolution"})
    if unknown:
        raise CheckpointError(f"{source}: unknown fields {listed(unknown)}")
    if preconditioner in ("VPPrecond", "vp"):
        for name, value in _CONSTANTS.items():
            if abs(float(values.get(name, value)) - value) > 1e-12:
                raise CheckpointError(f"{source}: {name} must be {value}, found {values[name]!r}")
    try:
        fields = {**defaults, **values}
        network = _song(fields) if kind == "SongUNet" else _dhariwal(fields)
        return EDMConfig(network, _PRECONDITIONERS[preconditioner], float(values.get("sigma_data", 0.5)))
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _only(fields: dict[str, Any], name: str, *allowed: Any) -> Any:
    value = list(fields[name]) if isinstance(fields[name], list | tuple) else fields[name]
    if value not in allowed:
        expected = " or ".join(repr(choice) for choice in allowed)
        raise ValueError(f"{name} must be {expected}, found {value!r}")
    return value


def _song(fields: dict[str, Any]) -> DDPMppConfig:
    _only(fields, "channel_mult_emb", 4)
    _only(fields, "decoder_type", "standard")
    return DDPMppConfig(
        image_size=fields["img_resolution"],
        channels=fields.get("in_channels", fields.get("img_channels", 3)),
        nf=fields["model_channels"],
        ch_mult=tuple(fields["channel_mult"]),
        n_blocks=fields["num_blocks"],
        attn_resolutions=tuple(fields["attn_resolutions"]),
        dropout=fields["dropout"],
        embedding=_only(fields, "embedding_type", "positional", "fourier"),
        embedding_mult=fields["channel_mult_noise"],
        fir=_only(fields, "resample_filter", [1, 1], [1, 3, 3, 1]) == [1, 3, 3, 1],
        residual_input=_only(fields, "encoder_type", "standard", "residual") == "residual",
        classes=fields.get("label_dim") or None,
    )


def _dhariwal(fields: dict[str, Any]) -> ADMConfig:
    _only(fields, "channel_mult_emb", 4)
    width = fields["model_channels"]
    return ADMConfig(
        image_size=fields["img_resolution"],
        channels=fields.get("in_channels", fields.get("img_channels", 3)),
        model_channels=width,
        widths=tuple(width * multiplier for multiplier in fields["channel_mult"]),
        n_blocks=fields["num_blocks"],
        attn_resolutions=tuple(fields["attn_resolutions"]),
        head_channels=fields.get("channels_per_head") or _HEAD_CHANNELS,
        narrow_groups=True,
        dropout=fields["dropout"],
        classes=fields.get("label_dim") or None,
    )


def _without_constants(
    tensors: dict[str, Tensor], settings: EDMConfig, path: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Without the filters, once they are seen to be those that we use, and the unused augmentation labels."""
    fir = isinstance(settings.network, DDPMppConfig) and settings.network.fir
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0] if fir else [1.0, 1.0])
    expected = (torch.outer(taps, taps) / taps.sum() ** 2)[None, None]
    kept, filters, dropped = {}, 0, []
    for name, value in tensors.items():
        if name.endswith(".resample_filter"):
            if value.shape != expected.shape or not torch.allclose(value.float(), expected):
                raise CheckpointError(f"{path}: {name} must be the filter {taps.tolist()}, found another")
            filters += 1
        elif name == "map_augment.weight":
            dropped.append(f"{name} (augmentation labels, for training only)")
        else:
            kept[name] = value
    if filters:
        dropped.append(f"{filters} resample_filter (constants)")
    return kept, dropped
