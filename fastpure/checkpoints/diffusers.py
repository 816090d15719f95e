"""Folders of diffusers' UNet2DModel (for instance the layout of google/ddpm-cifar10-32), mapped onto our ADM."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ..errors import CheckpointError, mistake, whole
from ..nets import ADM, ADMConfig, EDMConfig
from .diffusers_schedulers import STEPS, Scheduler, read_scheduler
from .fields import Fields, names, shown
from .report import Plan
from .sources import Source
from .weights import Entry, read_config, read_json

_WHOSE = "diffusers"
#: The fields of UNet2DModel. Its defaults are part of what a config.json says.
_FIELDS = Fields(
    _WHOSE,
    honoured=names(
        """sample_size in_channels out_channels block_out_channels down_block_types up_block_types
        layers_per_block attention_head_dim norm_num_groups attn_norm_num_groups norm_eps
        flip_sin_to_cos freq_shift resnet_time_scale_shift downsample_padding num_class_embeds dropout"""
    ),
    required={
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
    },
    # num_train_timesteps is of the learned time embedding; the rest is EMAModel's bookkeeping.
    harmless=names(
        """_diffusers_version _name_or_path num_train_timesteps decay inv_gamma min_decay optimization_step
        power update_after_step use_ema_warmup"""
    ),
    defaults={
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "mid_block_type": "UNetMidBlock2D",
        "mid_block_scale_factor": 1,
        "downsample_type": "conv",
        "upsample_type": "conv",
        "act_fn": "silu",
        "add_attention": True,
        "class_embed_type": None,
        "time_embedding_dim": None,
        "resnet_time_scale_shift": "default",
        "downsample_padding": 1,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 2,
        "attention_head_dim": 8,
        "norm_num_groups": 32,
        "attn_norm_num_groups": None,
        "norm_eps": 1e-5,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "num_class_embeds": None,
        "dropout": 0.0,
    },
)
#: (flip_sin_to_cos, freq_shift) -> our name.
_SINUSOIDS = {(True, 0): "cos_sin", (False, 1): "sin_cos"}
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

    The time input is the index; for the cosine schedule it is told where that schedule has the noise level, for flow
    matching the real time, for consistency models the noise level. What the network predicts, and its schedule, stand
    in a scheduler_config.json of the folder or the pipeline. Without one it is taken to predict noise on the linear
    schedule, and the report says so.

    Raises:
        ValueError: neither a configuration nor a config.json beside the weights.
        CheckpointError: the configuration describes a network or schedule that we do not have, or the network works
            on the codes of an autoencoder.
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
    _refuse_latents(source.path.parent)
    scheduler = read_scheduler(source.path.parent)
    ema = source.chosen.said if source.chosen is not None else "as in the file"
    return plan_unet(content, called, scheduler, source.require_tensors(), source.others_dropped(), ema)


def plan_unet(
    content: Any,
    called: str,
    scheduler: Scheduler,
    weights: Mapping[str, Tensor],
    dropped: tuple[str, ...] = (),
    ema: str = "as in the module",
) -> Plan:
    """Understand a configuration of UNet2DModel (``called`` in messages), its scheduler and its weights.

    Raises:
        CheckpointError: they describe a network or schedule that we do not have.
    """
    settings, assumed = translate(content, called)
    if settings.learned_sigma:
        if scheduler.schedule not in ("linear", "cosine"):
            found = f"{2 * settings.channels} with a scheduler of {scheduler.schedule}"
            raise CheckpointError(f"{called}: out_channels must be {settings.channels}, found {found}")
        dropped = (
            f"output channels {settings.channels}.. (learned variance, for variance='learned' alone)",
            *dropped,
        )
    tensors = {_today(name): value for name, value in weights.items()}
    notes: tuple[str, ...] = (scheduler.note,)
    if assumed:
        notes += (f"assumed, as {_WHOSE} does: {', '.join(assumed)}",)
    prediction = scheduler.prediction
    plan = Plan("adm", settings, tensors, diffusers_names, prediction, dropped=dropped, notes=notes, ema=ema)
    if scheduler.schedule == "linear":
        return plan
    if scheduler.schedule == "flow":
        flow = {"data_at": scheduler.data_at, "time_scale": scheduler.time_scale}
        return replace(plan, time_input="continuous", schedule="flow", **flow)  # type: ignore[arg-type]
    if scheduler.schedule == "cosine":
        wrapped = EDMConfig(settings, "cosine", cosine_steps=STEPS)
    else:
        wrapped = EDMConfig(
            settings, "consistency", sigma_data=scheduler.sigma_data, sigma_min=scheduler.sigma_min
        )
    return replace(plan, architecture="edm", config=wrapped, translate=_wrapped)


def _wrapped(network: Any) -> dict[str, Entry]:
    return {f"network.{name}": entry for name, entry in diffusers_names(network.network).items()}


def _refuse_latents(folder: Path) -> None:
    """A pipeline with an autoencoder denoises its codes, which may have the shape of small pictures."""
    for name in ("vae", "vqvae", "movq", "vqgan"):
        if (folder.parent / name).is_dir() and (folder.parent / "model_index.json").is_file():
            raise CheckpointError(
                f"{folder.parent}: its network denoises the codes of an autoencoder ({name}), not images"
            )


def translate(content: Any, source: str) -> tuple[ADMConfig, tuple[str, ...]]:
    """Our configuration for a config.json, and what was assumed.

    Raises:
        CheckpointError: a field is missing, or describes a network that `ADM` is not.
    """
    values, assumed = _FIELDS.read(content, source)
    try:
        return _network(values), assumed
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _network(content: Mapping[str, Any]) -> ADMConfig:
    size, channels = content["sample_size"], content["in_channels"]
    if isinstance(size, list):
        if len(size) != 2 or size[0] != size[1]:
            raise ValueError(f"sample_size must be square, found {shown(size)}")
        size = size[0]
    whole("sample_size", size, 1)
    widths = tuple(content["block_out_channels"])
    down, up = list(content["down_block_types"]), list(content["up_block_types"])
    attended = [name == "AttnDownBlock2D" for name in down]
    expected = ["AttnUpBlock2D" if attention else "UpBlock2D" for attention in reversed(attended)]
    plain = set(down) - {"DownBlock2D", "AttnDownBlock2D"}
    if plain or up != expected or len(down) != len(widths):
        raise ValueError(f"down_block_types and up_block_types must mirror each other, found {down}, {up}")
    outputs = content["out_channels"]
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"out_channels must be {channels} or {2 * channels}, found {outputs}")
    sinusoid = (bool(content["flip_sin_to_cos"]), content["freq_shift"])
    if sinusoid not in _SINUSOIDS:
        raise ValueError(
            f"flip_sin_to_cos and freq_shift must be one of {list(_SINUSOIDS)}, found {sinusoid}"
        )
    groups = content["norm_num_groups"]
    if content["attn_norm_num_groups"] not in (None, groups):
        raise ValueError(f"attn_norm_num_groups must be {groups}, found {content['attn_norm_num_groups']}")
    return ADMConfig(
        image_size=size,
        channels=channels,
        model_channels=widths[0],
        widths=widths,
        n_blocks=content["layers_per_block"],
        attn_resolutions=tuple(size >> level for level, attention in enumerate(attended) if attention),
        head_channels=content["attention_head_dim"],
        scale_shift=content["resnet_time_scale_shift"] == "scale_shift",
        resample="conv" if content["downsample_padding"] else "padded_conv",
        sinusoid=_SINUSOIDS[sinusoid],
        groups=groups,
        eps=content["norm_eps"],
        learned_sigma=outputs == 2 * channels,
        classes=content["num_class_embeds"],
        dropout=content["dropout"],
    )


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
