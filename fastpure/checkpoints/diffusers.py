"""Folders of diffusers' UNet2DModel (for instance the layout of google/ddpm-cifar10-32), mapped onto our ADM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, mistake
from ..nets import ADM, ADMConfig
from .report import Plan
from .sources import Source
from .weights import Entry, read_config, read_json

#: Field -> the values with which UNet2DModel is a network that we have; the first is its default.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DModel",),
    "center_input_sample": (False,),
    "time_embedding_type": ("positional",),
    "mid_block_type": ("UNetMidBlock2D",),
    "mid_block_scale_factor": (1,),
    "downsample_type": ("conv",),
    "upsample_type": ("conv",),
    "act_fn": ("silu", "swish"),
    "add_attention": (True,),
    "class_embed_type": (None,),
    "time_embedding_dim": (None,),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "downsample_padding": (1, 0),
}
#: (flip_sin_to_cos, freq_shift) -> our name.
_SINUSOIDS = {(True, 0): "cos_sin", (False, 1): "sin_cos"}
_PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
_SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
#: Names before version 0.15 -> today's.
_OLD = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}
_BLOCK = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}


def is_diffusers(source: Source) -> bool:
    """Whether it is a folder of diffusers, or has the names of UNet2DModel."""
    return source.container == "folder" or {"conv_in.weight", "time_embedding.linear_1.weight"} <= set(
        source.tensors
    )


def plan_diffusers(source: Source, config: Any = None) -> Plan:
    """Understand a folder with config.json, or the weights file in it.

    Args:
        config: None, or another configuration than the config.json beside the weights.

    The time input is the index. What the network predicts stands in a scheduler_config.json of the folder or the
    pipeline, where there is one; otherwise it is taken to be noise.

    Raises:
        ValueError: neither a configuration nor a config.json beside the weights.
        CheckpointError: the configuration describes a network or schedule that we do not have.
    """
    beside = source.path.parent / "config.json"
    if config is not None:
        content, called = read_config(config)
    elif source.config is not None:
        content, called = source.config, str(beside)
    elif beside.is_file():
        content, called = read_json(beside), str(beside)
    else:
        raise ValueError(mistake("config", "the config.json of the weights (a dict or a file)", "None"))
    settings = translate(content, called)
    prediction, note = _prediction(source)
    dropped: tuple[str, ...] = ()
    if settings.learned_sigma:
        dropped = (f"output channels {settings.channels}.. (learned variance, not used by any method)",)
    tensors = {_today(name): value for name, value in source.require_tensors().items()}
    return Plan("adm", settings, tensors, diffusers_names, prediction, dropped=dropped, notes=(note,))


def translate(content: Any, source: str) -> ADMConfig:
    """Our configuration for a config.json.

    Raises:
        CheckpointError: a field is missing, or describes a network that `ADM` is not.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: expected fields by name, found {type(content).__name__}")
    for field, allowed in _REQUIRED.items():
        if content.get(field, allowed[0]) not in allowed:
            expected = " or ".join(repr(choice) for choice in allowed)
            raise CheckpointError(f"{source}: {field} must be {expected}, found {content[field]!r}")
    try:
        return _network(content)
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing or not one that we have") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _network(content: Mapping[str, Any]) -> ADMConfig:
    size, channels = content["sample_size"], content.get("in_channels", 3)
    if isinstance(size, list | tuple):
        if len(set(size)) != 1:
            raise ValueError(f"sample_size must be square, found {size}")
        size = size[0]
    widths = tuple(content["block_out_channels"])
    down, up = list(content["down_block_types"]), list(content["up_block_types"])
    attended = [name == "AttnDownBlock2D" for name in down]
    expected = ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attended)]
    plain = set(down) - {"DownBlock2D", "AttnDownBlock2D"}
    if plain or up != expected or len(down) != len(widths):
        raise ValueError(f"down_block_types and up_block_types must mirror each other, found {down}, {up}")
    outputs = content.get("out_channels", 3)
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"out_channels must be {channels} or {2 * channels}, found {outputs}")
    sinusoid = (bool(content.get("flip_sin_to_cos", True)), content.get("freq_shift", 0))
    if sinusoid not in _SINUSOIDS:
        raise ValueError(
            f"flip_sin_to_cos and freq_shift must be one of {list(_SINUSOIDS)}, found {sinusoid}"
        )
    groups = content.get("norm_num_groups", 32)
    if content.get("attn_norm_num_groups") not in (None, groups):
        raise ValueError(f"attn_norm_num_groups must be {groups}, found {content['attn_norm_num_groups']}")
    return ADMConfig(
        image_size=size,
        channels=channels,
        model_channels=widths[0],
        widths=widths,
        n_blocks=content.get("layers_per_block", 2),
        attn_resolutions=tuple(size >> level for level, attention in enumerate(attended) if attention),
        head_channels=content.get("attention_head_dim", 8),
        scale_shift=content.get("resnet_time_scale_shift", "default") == "scale_shift",
        resample="conv" if content.get("downsample_padding", 1) else "padded_conv",
        sinusoid=_SINUSOIDS[sinusoid],
        groups=groups,
        eps=content.get("norm_eps", 1e-5),
        learned_sigma=outputs == 2 * channels,
        classes=content.get("num_class_embeds"),
        dropout=content.get("dropout", 0.0),
    )


def _prediction(source: Source) -> tuple[str, str]:
    """What the network predicts, and where that is known from."""
    folder = source.path.parent
    for file in (folder / "scheduler_config.json", folder.parent / "scheduler" / "scheduler_config.json"):
        if file.is_file():
            content = read_json(file)
            content = content if isinstance(content, Mapping) else {}
            for field, value in _SCHEDULER.items():
                if content.get(field, value) != value:
                    raise CheckpointError(f"{file}: {field} must be {value!r}, found {content[field]!r}")
            name = content.get("prediction_type", "epsilon")
            if name not in _PREDICTIONS:
                expected = " or ".join(repr(choice) for choice in _PREDICTIONS)
                raise CheckpointError(f"{file}: prediction_type must be {expected}, found {name!r}")
            return _PREDICTIONS[name], f"prediction from {file.name}: {name}"
    return "eps", "assumed: predicts noise, linear schedule in 1000 steps (no scheduler_config.json)"


def _today(name: str) -> str:
    for old, new in _OLD.items():
        name = name.replace(old, new)
    return name


def part_names(config: ADMConfig) -> Iterator[str]:
    """diffusers' names of our parts in the order in which they run."""
    levels = range(len(config.widths))
    attended = [config.image_size >> level in config.attn_resolutions for level in levels]
    yield "conv_in"
    for level in levels:
        prefix = f"down_blocks.{level}"
        for index in range(config.n_blocks):
            yield f"{prefix}.resnets.{index}"
            if attended[level]:
                yield f"{prefix}.attentions.{index}"
        if level != levels[-1]:
            yield f"{prefix}.downsamplers.0"
    yield from ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    for number, level in enumerate(reversed(levels)):
        prefix = f"up_blocks.{number}"
        for index in range(config.n_blocks + 1):
            yield f"{prefix}.resnets.{index}"
            if attended[level]:
                yield f"{prefix}.attentions.{index}"
        if level:
            yield f"{prefix}.upsamplers.0"


def diffusers_names(network: Any) -> dict[str, Entry]:
    """Our name -> diffusers' names and shapes."""
    adm = cast(ADM, network)
    expected = adm.state_dict()
    pairs = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2"}
    pairs |= {"label_emb": "class_embedding", "out.0": "conv_norm_out", "out.2": "conv_out"}
    entries: dict[str, Entry] = {}
    parts = [(f"{s.name}.{i}", part) for s in adm.stages for i, part in enumerate(s.parts)]
    for (ours, part), theirs in zip(parts, part_names(adm.config), strict=True):
        if part.kind == "attention":
            entries |= _attention(ours, theirs, part.inputs)
        elif part.kind == "block":
            pairs |= {f"{ours}.{name}": f"{theirs}.{their}" for name, their in _BLOCK.items()}
        else:
            inner = {"conv": "", "down": ".op", "up": ".conv"}[part.kind]
            pairs[ours + inner] = theirs if part.kind == "conv" else f"{theirs}.conv"
    for ours, theirs in pairs.items():
        for kind in ("weight", "bias"):
            if f"{ours}.{kind}" in expected:
                shape = tuple(expected[f"{ours}.{kind}"].shape)
                entries[f"{ours}.{kind}"] = Entry({f"{theirs}.{kind}": shape}, lambda value: value)
    return entries


def _attention(ours: str, theirs: str, channels: int) -> dict[str, Entry]:
    matrix, vector = (channels, channels), (channels,)
    three = [f"{theirs}.to_{name}" for name in "qkv"]

    def joined(*parts: Tensor) -> Tensor:
        whole = torch.cat(parts)
        return whole[..., None] if whole.ndim == 2 else whole

    return {
        f"{ours}.norm.weight": Entry({f"{theirs}.group_norm.weight": vector}, lambda value: value),
        f"{ours}.norm.bias": Entry({f"{theirs}.group_norm.bias": vector}, lambda value: value),
        f"{ours}.qkv.weight": Entry({f"{name}.weight": matrix for name in three}, joined),
        f"{ours}.qkv.bias": Entry({f"{name}.bias": vector for name in three}, joined),
        f"{ours}.proj_out.weight": Entry(
            {f"{theirs}.to_out.0.weight": matrix}, lambda value: value[..., None]
        ),
        f"{ours}.proj_out.bias": Entry({f"{theirs}.to_out.0.bias": vector}, lambda value: value),
    }
