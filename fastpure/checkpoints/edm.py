"""EDM's networks: published pickles (whose code is not run), and state dicts with a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, listed, mistake
from ..nets import ADMConfig, DDPMppConfig, EDMConfig
from .choice import choose
from .edm_names import translate as translate_names
from .fields import Fields, merged, names, require_fields, shown
from .report import Plan
from .sources import Source
from .torch_files import Record, state_dict
from .weights import read_config

_WHOSE = "EDM"
_PRECONDITIONERS = {"VPPrecond": "vp", "EDMPrecond": "edm", "vp": "vp", "edm": "edm"}
#: Arguments of the preconditioners and of both networks.
_COMMON = names("""precond model_type img_resolution img_channels in_channels out_channels label_dim
    label_dropout""")
_OF_VP = {"beta_d": 19.9, "beta_min": 0.1, "M": 1000}
_OF_EDM = {"sigma_data": 0.5}
#: The range of the project's own sampler, precision, and what the training alone does.
_HARMLESS = names("""sigma_min sigma_max epsilon_t use_fp16 augment_dim name source class_name""")
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
    "channels_per_head": None,
}
_DHARIWAL: dict[str, Any] = {
    "model_channels": 192,
    "channel_mult": [1, 2, 3, 4],
    "channel_mult_emb": 4,
    "num_blocks": 3,
    "attn_resolutions": [32, 16, 8],
    "dropout": 0.10,
    "channels_per_head": None,
}
_HEAD_CHANNELS = 64
_PREFIX = "model."
#: Field -> its only values here.
_ONLY: dict[str, tuple[Any, ...]] = {"channel_mult_emb": (4,), "M": (1000,)}
_ONLY_SONG: dict[str, tuple[Any, ...]] = {
    "decoder_type": ("standard",),
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "residual"),
    "resample_filter": ([1, 1], [1, 3, 3, 1]),
}


def is_edm(source: Source) -> bool:
    """Whether it is a pickle with a network in it, or has the names of SongUNet or DhariwalUNet."""
    if source.container == "pickle":
        return bool(_records(source.content))
    names = [name.removeprefix(_PREFIX) for name in source.tensors]
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
    if source.container == "pickle":
        if config is not None:
            raise ValueError(mistake("config", "None for a pickle, which has its own", type(config).__name__))
        records = _records(source.content)
        if not records:
            raise CheckpointError(f"{path}: expected a pickled EDM network, found {source.summary()}")
        chosen = choose(records, source.weights, path)
        record, ema, dropped = chosen.value, chosen.said, list(chosen.others)
        if isinstance(source.content, dict):
            dropped += [f"{listed([key])} (of the training)" for key in source.content if key not in records]
        settings, assumed = understood(_arguments(record, path), f"{path}, {listed([record.kind])}")
        try:
            tensors = state_dict(record)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
    else:
        if config is None:
            expected = "the configuration of the weights (a dict or JSON file with precond, model_type, ...)"
            raise ValueError(mistake("config", expected, "None"))
        content, called = read_config(config)
        tensors = source.require_tensors()
        settings, assumed = understood(_flat(content, called), called)
        ema = source.chosen.said if source.chosen is not None else "as in the file"
        dropped = list(source.others_dropped())
    if tensors and all(name.startswith(_PREFIX) for name in tensors):
        tensors = {name.removeprefix(_PREFIX): value for name, value in tensors.items()}
    tensors, more = _without_constants(tensors, settings, path)
    notes = (f"assumed, as {_WHOSE} does: {', '.join(assumed)}",) if assumed else ()
    return Plan("edm", settings, tensors, translate_names, dropped=(*dropped, *more), ema=ema, notes=notes)


def _records(content: Any) -> dict[str, Record]:
    """The networks in a pickle by their names there; losses and augmentations are objects too, but hold no modules."""
    found = {"the file": content} if isinstance(content, Record) else content
    if not isinstance(found, dict):
        return {}
    return {
        str(name): value
        for name, value in found.items()
        if isinstance(value, Record) and _inner(value) is not None
    }


def _inner(record: Record) -> Record | None:
    modules = record.attributes().get("_modules")
    inner = modules.get("model") if isinstance(modules, dict) else None
    return inner if isinstance(inner, Record) else None


def _arguments(record: Record, source: str) -> dict[str, Any]:
    """Constructor arguments of the pickled preconditioner and of its network, and the former's constants."""
    attributes = record.attributes()
    values = {name: attributes[name] for name in (*_OF_VP, *_OF_EDM) if name in attributes}
    inner = _inner(record)
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
    values = merged(
        source, values, require_fields(content.get("model_kwargs") or {}, f"{source}, model_kwargs")
    )
    known = require_fields(content.get("preconditioners") or {}, f"{source}, preconditioners")
    if "precond" not in values and len(known) == 1:
        values["precond"] = next(iter(known))
    precond = values.get("precond")
    constants = known.get(precond) if isinstance(precond, str) else None
    constants = require_fields(constants or {}, f"{source}, preconditioners")
    return merged(source, values, {name: value for name, value in constants.items() if name != "class"})


def _settings(values: dict[str, Any], source: str) -> EDMConfig:
    """The configuration for the reference implementation's arguments; errors as for `understood`."""
    return understood(values, source)[0]


def understood(values: dict[str, Any], source: str) -> tuple[EDMConfig, tuple[str, ...]]:
    """(configuration, what was assumed) for the reference implementation's arguments.

    Raises:
        CheckpointError: a field is missing, unknown, or describes a network that we do not have.
    """
    kind, preconditioner = values.get("model_type"), values.get("precond")
    if kind not in ("SongUNet", "DhariwalUNet"):
        raise CheckpointError(
            f"{source}: model_type must be 'SongUNet' or 'DhariwalUNet', found {shown(kind)}"
        )
    if not isinstance(preconditioner, str) or preconditioner not in _PRECONDITIONERS:
        expected = " or ".join(repr(name) for name in _PRECONDITIONERS)
        raise CheckpointError(f"{source}: precond must be {expected}, found {shown(preconditioner)}")
    song, vp = kind == "SongUNet", _PRECONDITIONERS[preconditioner] == "vp"
    defaults = {**(_SONG if song else _DHARIWAL), **(_OF_VP if vp else _OF_EDM)}
    only = {**_ONLY, **_ONLY_SONG} if song else _ONLY
    of_other = frozenset(_OF_EDM if vp else _OF_VP)  # constants of the preconditioner that this one is not
    fields = Fields(
        _WHOSE,
        honoured=_COMMON | (set(defaults) - set(only)),
        required={name: allowed for name, allowed in only.items() if name in defaults},
        harmless=_HARMLESS | of_other,
        defaults=defaults,
    )
    found, assumed = fields.read(values, source)
    try:
        network = _song(found) if song else _dhariwal(found)
        if vp:
            low = found["beta_min"]
            return EDMConfig(network, "vp", beta_min=low, beta_max=low + found["beta_d"]), assumed
        return EDMConfig(network, "edm", found["sigma_data"]), assumed
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _song(fields: dict[str, Any]) -> DDPMppConfig:
    return DDPMppConfig(
        image_size=fields["img_resolution"],
        channels=fields.get("in_channels", fields.get("img_channels", 3)),
        nf=fields["model_channels"],
        ch_mult=tuple(fields["channel_mult"]),
        n_blocks=fields["num_blocks"],
        attn_resolutions=tuple(fields["attn_resolutions"]),
        dropout=fields["dropout"],
        embedding=fields["embedding_type"],
        embedding_mult=fields["channel_mult_noise"],
        fir=fields["resample_filter"] == [1, 3, 3, 1],
        residual_input=fields["encoder_type"] == "residual",
        classes=fields.get("label_dim") or None,
        null_class=_null_class(fields),
    )


def _dhariwal(fields: dict[str, Any]) -> ADMConfig:
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
        null_class=_null_class(fields),
    )


def _null_class(fields: dict[str, Any]) -> bool:
    """Whether the class was left out now and then in training: only then does the network know that question."""
    share = fields.get("label_dropout") or 0
    if isinstance(share, bool) or not isinstance(share, int | float) or not 0 <= share <= 1:
        raise ValueError(mistake("label_dropout", "a share in [0, 1]", repr(share)))
    return bool(fields.get("label_dim")) and share > 0


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
