"""guided-diffusion's and improved-diffusion's U-Nets: plain state dicts, configuration beside or recognised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, mistake
from ..nets import ADM, ADMConfig, EDMConfig
from ..nets.adm import CONFIGS
from .report import Plan
from .sources import Source
from .weights import Entry, fits, listed, meta_shapes, on_meta, read_config, same_names

#: Levels where a configuration leaves ``channel_mult`` empty, by image size.
_MULTIPLIERS: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
_CLASSES = 1000
_COSINE_STEPS = 4000
#: Official network -> its training noise schedule and number of steps, for files without a configuration.
_OFFICIAL = {"adm-imagenet256": ("linear", 1000), "iddpm-cifar10": ("cosine", _COSINE_STEPS)}
#: Field -> the only value with which the reference network is `ADM`.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "dims": (2,),
    "predict_xstart": (False,),
    "timestep_respacing": ("", None),
    "use_kl": (False, True),
}
_NAMES = """image_size in_channels model_channels num_channels out_channels num_res_blocks dropout channel_mult
    attention_resolutions conv_resample num_classes class_cond num_heads num_head_channels num_heads_upsample
    use_scale_shift_norm resblock_updown use_new_attention_order use_checkpoint use_fp16 learn_sigma
    diffusion_steps steps noise_schedule rescale_timesteps rescale_learned_sigmas sigma_small"""
_FIELDS = frozenset(_NAMES.split()).union(_REQUIRED)


def is_guided_diffusion(source: Source) -> bool:
    """Whether the names are those of guided-diffusion's UNetModel."""
    names = source.tensors
    prefix = "module." if names and all(name.startswith("module.") for name in names) else ""
    return {f"{prefix}time_embed.0.weight", f"{prefix}input_blocks.0.0.weight"} <= set(names)


def plan_guided_diffusion(source: Source, config: Any = None) -> Plan:
    """Understand a state dict of guided-diffusion or improved-diffusion.

    Args:
        config: the arguments of the reference implementation as a dict or JSON file: those of
            ``create_model_and_diffusion`` (image_size, num_channels, num_res_blocks, channel_mult,
            attention_resolutions as a comma-separated text of resolutions, learn_sigma, class_cond,
            noise_schedule, diffusion_steps, ...), or of ``UNetModel`` (model_channels; attention_resolutions as
            numbers of down-sampling factors), possibly inside "create_model_kwargs", "config" or "unet_kwargs".
            None if the weights are those of the official 256x256_diffusion_uncond or cifar10_uncond_50M.

    The network predicts noise. With the linear schedule in 1000 steps its time input is the index; with the
    cosine schedule it is told where that schedule has the noise level (`fastpure.nets.edm`, "cosine").

    Raises:
        ValueError: no configuration, though the weights are not an official network's.
        CheckpointError: a field is missing or describes a network or schedule that we do not have.
    """
    weights = source.require_tensors()
    notes: tuple[str, ...] = ()
    if config is None:
        name, settings = _recognised(weights)
        schedule, steps = _OFFICIAL[name]
        notes = (
            f"recognised as {name} by its names and shapes; assumed: {schedule} schedule, {steps} steps",
        )
    else:
        content, called = read_config(config)
        settings, schedule, steps = translate(content, called)
    dropped: tuple[str, ...] = ()
    if settings.learned_sigma:
        channels = settings.channels
        dropped = (
            f"output channels {channels}..{2 * channels - 1} (learned variance, not used by any method)",
        )
    if schedule == "linear":
        return Plan("adm", settings, weights, same_names, dropped=dropped, notes=notes)
    wrapped = EDMConfig(settings, "cosine", cosine_steps=steps)
    return Plan("edm", wrapped, weights, wrapped_names, dropped=dropped, notes=notes)


def wrapped_names(network: Any) -> dict[str, Entry]:
    """Our name -> the file's, for a network inside a preconditioning."""
    return {f"network.{name}": entry for name, entry in same_names(network.network).items()}


def _recognised(weights: dict[str, Tensor]) -> tuple[str, ADMConfig]:
    for name in _OFFICIAL:
        if fits(meta_shapes(on_meta(lambda: ADM(CONFIGS[name]))), weights):  # noqa: B023
            return name, CONFIGS[name]
    official = " or ".join(_OFFICIAL)
    expected = f"the configuration of the weights (a dict or JSON file), as they are not those of {official}"
    raise ValueError(mistake("config", expected, "None"))


def translate(content: Any, source: str) -> tuple[ADMConfig, str, int]:
    """(network configuration, noise schedule, its steps) for the reference implementation's arguments.

    Raises:
        CheckpointError: a field is missing, unknown, or describes something that we do not have.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{source}: expected fields by name, found {type(content).__name__}")
    values: dict[str, Any] = {}
    nested = [content[name] for name in ("unet_kwargs", "create_model_kwargs", "config") if name in content][
        :1
    ]
    for part in (*(nested or [content]), content.get("diffusion", {})):
        if not isinstance(part, Mapping):
            raise CheckpointError(f"{source}: expected fields by name, found {type(part).__name__}")
        values.update(part)
    unknown = sorted(set(values) - _FIELDS)
    if unknown:
        raise CheckpointError(f"{source}: unknown fields {listed(unknown)}")
    for field, allowed in _REQUIRED.items():
        if values.get(field, allowed[0]) not in allowed:
            raise CheckpointError(f"{source}: {field} must be {allowed[0]!r}, found {values[field]!r}")
    try:
        return _network(values), *_schedule(values)
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _network(values: dict[str, Any]) -> ADMConfig:
    size, channels = values["image_size"], values.get("in_channels", 3)
    base = values["model_channels"] if "model_channels" in values else values["num_channels"]
    outputs = values.get("out_channels", 2 * channels if values.get("learn_sigma") else channels)
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"out_channels must be {channels} or {2 * channels}, found {outputs}")
    heads = values.get("num_heads", 4 if "num_channels" in values else 1)
    head_channels = values.get("num_head_channels", -1)
    if values.get("num_heads_upsample", -1) not in (-1, None, heads):
        found = values["num_heads_upsample"]
        raise ValueError(f"num_heads_upsample must be -1 or num_heads, {heads}, found {found}")
    classes = values.get("num_classes") or (_CLASSES if values.get("class_cond") else None)
    inside = values.get("resblock_updown", False)
    return ADMConfig(
        image_size=size,
        channels=channels,
        model_channels=base,
        widths=_widths(values.get("channel_mult"), size, base),
        n_blocks=values["num_res_blocks"],
        attn_resolutions=_resolutions(values["attention_resolutions"], size),
        head_channels=None if head_channels in (-1, None) else head_channels,
        heads=heads,
        legacy_attention=not values.get("use_new_attention_order", False),
        scale_shift=values.get("use_scale_shift_norm", "num_channels" in values),
        resample="block" if inside else "conv" if values.get("conv_resample", True) else "plain",
        learned_sigma=outputs == 2 * channels,
        classes=classes,
        dropout=values.get("dropout", 0.0),
    )


def _widths(multipliers: Any, size: int, base: int) -> tuple[int, ...]:
    """Channels per level; ``channel_mult`` is a sequence, a comma-separated text, or empty for the default."""
    if multipliers in (None, "", ()):
        if size not in _MULTIPLIERS:
            raise KeyError("channel_mult")
        multipliers = _MULTIPLIERS[size]
    if isinstance(multipliers, str):
        multipliers = [float(word) for word in multipliers.split(",")]
    return tuple(int(base * multiplier) for multiplier in multipliers)


def _resolutions(values: Any, size: int) -> tuple[int, ...]:
    """Resolutions with attention: a text lists them, a sequence gives down-sampling factors."""
    if isinstance(values, str):
        return tuple(int(word) for word in values.split(",") if word.strip())
    return tuple(size // int(factor) for factor in values)


def _schedule(values: dict[str, Any]) -> tuple[str, int]:
    name = values.get("noise_schedule", "linear")
    steps = values.get("diffusion_steps", values.get("steps", 1000))
    if name == "linear" and steps == 1000:
        return name, steps
    if name == "cosine" and (values.get("rescale_timesteps", True) or steps == 1000):
        return name, steps
    expected = "'linear' in 1000 steps, or 'cosine' with rescale_timesteps"
    raise ValueError(f"noise_schedule must be {expected}, found {name!r} in {steps} steps")
