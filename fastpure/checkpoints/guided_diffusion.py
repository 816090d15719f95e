"""guided-diffusion's and improved-diffusion's U-Nets: plain state dicts, configuration beside or recognised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, listed, mistake, one_of
from ..nets import ADM, ADMConfig, EDMConfig
from ..nets.adm import CONFIGS
from .fields import Fields, merged, names, require_fields, shown
from .report import Plan
from .sources import Source
from .weights import fits, meta_shapes, on_meta, read_config, same_names, wrapped_names

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
_WHOSE = "guided-diffusion"
_NETWORK = """image_size in_channels model_channels num_channels out_channels num_res_blocks dropout channel_mult
    attention_resolutions conv_resample num_classes class_cond num_heads num_head_channels num_heads_upsample
    use_scale_shift_norm resblock_updown use_new_attention_order learn_sigma"""
_DIFFUSION = "diffusion_steps steps noise_schedule rescale_timesteps predict_xstart"
#: Arguments of ``create_model_and_diffusion`` and of ``UNetModel``.
_FIELDS = Fields(
    _WHOSE,
    honoured=names(f"{_NETWORK} {_DIFFUSION}"),
    required={"dims": (2,)},
    # Precision and memory of the training, its loss, and steps and variance of the project's own sampler.
    harmless=names(
        """use_checkpoint use_fp16 use_kl rescale_learned_sigmas sigma_small timestep_respacing"""
    ),
    defaults={"dims": 2},
)
#: What the arguments are taken to be where they are left out, if names and shapes do not show it.
_DEFAULTS: dict[str, Any] = {
    "noise_schedule": "linear",
    "predict_xstart": False,
    "use_new_attention_order": False,
    "num_head_channels": -1,
}
#: DiffPure's configurations have sections: "model" holds the arguments, "data" how images are shown.
_DATA = Fields(
    "DiffPure",
    honoured=names("image_size num_channels"),
    required={"centered": (True,), "rescaled": (True,), "logit_transform": (False,)},
    harmless=names(
        """dataset category random_flip uniform_dequantization gaussian_dequantization num_workers root
        subset_len out_of_dist channels num_classes tfrecords_path"""
    ),
    defaults={"centered": True, "rescaled": True, "logit_transform": False},
)
_SECTIONS = names("data model diffusion optim optimization sampling training seed device")
#: Where published descriptions keep the arguments, and what else stands there for people to read.
_NESTS = ("unet_kwargs", "create_model_kwargs", "config")
_PROSE = names(
    """architecture attention_resolutions_note param_count output_channels weights state_dict_key_order
        file name source num_parameter_tensors num_entries buffers
        parameter_order_equals_entry_order_without_buffers on_disk notes entries parameter_order"""
)


def is_guided_diffusion(source: Source) -> bool:
    """Whether the names are those of guided-diffusion's UNetModel."""
    return {"time_embed.0.weight", "input_blocks.0.0.weight"} <= set(source.tensors)


def plan_guided_diffusion(source: Source, config: Any = None) -> Plan:
    """Understand a state dict of guided-diffusion or improved-diffusion.

    Args:
        config: the arguments of the reference implementation as a dict or JSON file: those of
            ``create_model_and_diffusion`` (image_size, num_channels, num_res_blocks, channel_mult,
            attention_resolutions as a comma-separated text of resolutions, learn_sigma, class_cond,
            noise_schedule, diffusion_steps, ...), or of ``UNetModel`` (model_channels; attention_resolutions as
            numbers of down-sampling factors), possibly inside "create_model_kwargs", "config" or "unet_kwargs",
            or DiffPure's imagenet.yml with its sections "data" and "model".
            None if the weights are those of the official 256x256_diffusion_uncond or cifar10_uncond_50M.

    The network predicts noise, or the clean image with ``predict_xstart``. With the linear schedule in 1000 steps
    its time input is the index; with the cosine schedule it is told where that schedule has the noise level
    (`fastpure.nets.edm`, "cosine").

    Raises:
        ValueError: no configuration, though the weights are not an official network's.
        CheckpointError: a field is missing or describes a network or schedule that we do not have.
    """
    weights = source.require_tensors()
    prediction = "eps"
    if config is None:
        name, settings = _recognised(weights)
        schedule, steps = _OFFICIAL[name]
        notes: tuple[str, ...] = (
            f"recognised as {name} by its names and shapes; assumed: {schedule} schedule, {steps} steps",
        )
    else:
        understood = translate(*read_config(config))
        settings, (schedule, steps) = understood.network, understood.schedule
        prediction, notes = understood.prediction, understood.notes
    dropped = source.others_dropped()
    if settings.learned_sigma:
        channels = settings.channels
        dropped = (
            f"output channels {channels}..{2 * channels - 1} (learned variance, for variance='learned' alone)",
            *dropped,
        )
    ema = source.chosen.said if source.chosen is not None else "as in the file"
    plan = Plan("adm", settings, weights, same_names, prediction, dropped=dropped, notes=notes, ema=ema)
    if schedule == "linear":
        return plan
    return replace(
        plan,
        architecture="edm",
        config=EDMConfig(settings, "cosine", cosine_steps=steps),
        translate=wrapped_names,
    )


def _recognised(weights: dict[str, Tensor]) -> tuple[str, ADMConfig]:
    for name in _OFFICIAL:
        if fits(meta_shapes(on_meta(lambda: ADM(CONFIGS[name]))), weights):  # noqa: B023
            return name, CONFIGS[name]
    official = " or ".join(_OFFICIAL)
    expected = f"the configuration of the weights (a dict or JSON file), as they are not those of {official}"
    raise ValueError(mistake("config", expected, "None"))


@dataclass(frozen=True, eq=False)
class Understood:
    """A configuration translated: the network, (schedule, steps), what it predicts, what was assumed."""

    network: ADMConfig
    schedule: tuple[str, int]
    prediction: str
    notes: tuple[str, ...]


def translate(content: Any, source: str) -> Understood:
    """What the reference implementation's arguments describe.

    Raises:
        CheckpointError: a field is missing, unknown, or describes something that we do not have.
    """
    values, _ = _FIELDS.read(_flat(require_fields(content, source), source), source)
    if "diffusion_steps" not in values and "steps" not in values:
        values["diffusion_steps"] = 1000
        assumed = ["diffusion_steps 1000"]
    else:
        assumed = []
    assumed += [f"{name} {value!r}" for name, value in _DEFAULTS.items() if name not in values]
    values = {**_DEFAULTS, **values}
    if "num_heads" not in values and values["num_head_channels"] in (-1, None):
        values["num_heads"] = _heads(values)
        assumed.append(f"num_heads {values['num_heads']}")
    try:
        predicts_image = one_of("predict_xstart", values["predict_xstart"], (False, True))
        return Understood(
            _network(values),
            _schedule(values),
            "x0" if predicts_image else "eps",
            (f"assumed, as {_WHOSE} does: {', '.join(assumed)}",) if assumed else (),
        )
    except KeyError as error:
        raise CheckpointError(f"{source}: {error.args[0]} is missing") from error
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{source}: {error}") from error


def _flat(content: Mapping[str, Any], source: str) -> dict[str, Any]:
    """One dict of the arguments, however the configuration is nested; everything beside them is read too."""
    nest = next((name for name in _NESTS if name in content), None)
    if nest is None and isinstance(content.get("model"), Mapping):
        if unknown := sorted(set(content) - _SECTIONS):
            raise CheckpointError(f"{source}: unknown sections {listed(unknown)}")
        data, _ = _DATA.read(content.get("data", {}), source, "data")
        values = merged(
            source, content["model"], require_fields(content.get("diffusion", {}), f"{source}, diffusion")
        )
        for ours, theirs, default in (("image_size", "image_size", None), ("num_channels", "in_channels", 3)):
            expected = values.get(theirs, default)
            if data.get(ours, expected) != expected:
                raise CheckpointError(
                    f"{source}: data.{ours} must be the network's {theirs}, {shown(expected)}, "
                    f"found {shown(data[ours])}"
                )
        return values
    inside = require_fields(content[nest], f"{source}, {nest}") if nest is not None else {}
    outside = {name: value for name, value in content.items() if name not in (*_NESTS, "diffusion")}
    if nest is not None:
        outside = {name: value for name, value in outside.items() if name not in _PROSE}
        if "channel_mult" in inside:  # published descriptions spell out what an empty one means
            outside.pop("channel_mult", None)
    diffusion = require_fields(content.get("diffusion", {}), f"{source}, diffusion")
    return merged(source, inside, outside, diffusion)


def _network(values: dict[str, Any]) -> ADMConfig:
    size, channels = values["image_size"], values.get("in_channels", 3)
    base = values["model_channels"] if "model_channels" in values else values["num_channels"]
    outputs = values.get("out_channels", 2 * channels if values.get("learn_sigma") else channels)
    if outputs not in (channels, 2 * channels):
        raise ValueError(f"out_channels must be {channels} or {2 * channels}, found {outputs}")
    heads = values.get("num_heads", _heads(values))
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


def _heads(values: dict[str, Any]) -> int:
    """How many attention heads ``create_model_and_diffusion`` and ``UNetModel`` take where none are named."""
    return 4 if "num_channels" in values else 1


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
    name = values["noise_schedule"]
    steps = values.get("diffusion_steps", values.get("steps", 1000))
    if name == "linear" and steps == 1000:
        return name, steps
    if name == "cosine":
        if steps != 1000 and "rescale_timesteps" not in values:
            # True by default in improved-diffusion, False in guided-diffusion: labels of another scale.
            raise KeyError("rescale_timesteps")
        if steps == 1000 or values["rescale_timesteps"]:
            return name, steps
    expected = "'linear' in 1000 steps, or 'cosine' with rescale_timesteps"
    raise ValueError(f"noise_schedule must be {expected}, found {shown(name)} in {shown(steps)} steps")
