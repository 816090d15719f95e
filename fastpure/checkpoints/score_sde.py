"""score-SDE's DDPM++ (what DiffPure and COUP use on CIFAR-10): training checkpoints and state dicts.

A training checkpoint holds ``model`` (raw weights, names prefixed by ``module.``), ``ema`` (averaged weights,
a list without names in the order of the trainable parameters), the optimizer's state and the step. Purification
uses the averaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, mistake
from ..nets import CONFIGS, DDPMpp, DDPMppConfig
from .report import Plan
from .sources import Source, tensors_by_name
from .weights import fits, listed, meta_shapes, on_meta, read_config, refuse_misfits, same_names

#: Field -> the values under which the reference network is the one that `DDPMpp` computes. A field that a
#: configuration leaves out is taken to agree.
_REQUIRED: dict[tuple[str, str], tuple[Any, ...]] = {
    ("data", "centered"): (True,),
    ("model", "name"): ("ncsnpp",),
    ("model", "scale_by_sigma"): (False,),
    ("model", "normalization"): ("GroupNorm",),
    ("model", "nonlinearity"): ("swish",),
    ("model", "resamp_with_conv"): (True,),
    ("model", "conditional"): (True,),
    ("model", "fir"): (False,),
    ("model", "skip_rescale"): (True,),
    ("model", "resblock_type"): ("biggan", "ddpm"),
    ("model", "progressive"): ("none",),
    ("model", "progressive_input"): ("none",),
    ("model", "attention_type"): ("ddpm",),
    ("model", "embedding_type"): ("positional",),
    ("model", "conv_size"): (3,),
    ("training", "sde"): ("vpsde",),
}
_BUFFER = "sigmas"
_OFFICIAL = "ddpmpp-cifar10"


def is_score_sde(source: Source) -> bool:
    """Whether the names are DDPM++'s, in a state dict or under ``model`` of a training checkpoint."""
    content = source.content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    return isinstance(content, dict) and any(
        f"{prefix}all_modules.0.weight" in content for prefix in ("", "module.")
    )


def plan_score_sde(source: Source, config: Any = None) -> Plan:
    """Understand a training checkpoint or a state dict (.safetensors, or .pt written by ``torch.save``).

    Args:
        config: the reference implementation's configuration as a dict or JSON file: sections "data"
            (image_size, num_channels), "model" (nf, ch_mult, num_res_blocks, attn_resolutions,
            resblock_type, dropout, ...) and "training" (sde, continuous), possibly inside "config". None if the
            weights are those of the official ``vp/cifar10_ddpmpp_deep_continuous``.

    The network predicts noise. Its time input is "continuous" (999 t) unless the configuration says
    ``training.continuous: false``, then "index".

    Raises:
        ValueError: no configuration, though the weights are not the official network's.
        CheckpointError: configuration incomplete or of another network, or averaged and raw weights disagree.
    """
    path = str(source.path)
    content: Any = source.content
    notes: tuple[str, ...] = ()
    checkpoint = content if isinstance(content, dict) and isinstance(content.get("model"), dict) else None
    raw = tensors_by_name(content if checkpoint is None else checkpoint["model"], path)
    weights = {name: value for name, value in raw.items() if name != _BUFFER}
    if config is None:
        network, time_input = _official(weights), "continuous"
        notes = (f"recognised as {_OFFICIAL} by its names and shapes",)
    else:
        settings, time_input = translate(*read_config(config))
        network = on_meta(lambda: DDPMpp(settings))
    dropped = [f"{_BUFFER} (noise levels of the training, unused)"] if _BUFFER in raw else []
    ema = "as in the file"
    if checkpoint is not None:
        refuse_misfits(meta_shapes(network), weights, f"{path}, model", "DDPMpp")
        others = [name for name in checkpoint if name not in ("model", "ema")]
        if "ema" in checkpoint:
            weights = _averaged(checkpoint["ema"], list(weights), path)
            dropped.append(f"model ({len(weights)} raw weights)")
            ema = f"averaged (ema, decay {checkpoint['ema'].get('decay', 'unknown')})"
        else:
            ema = "raw: the checkpoint has no averaged ones"
        dropped += [f"{name} (of the training)" for name in others]
    return Plan(
        "ddpmpp",
        network.config,
        weights,
        same_names,
        network=network,
        time_input=time_input,
        dropped=tuple(dropped),
        ema=ema,
        notes=notes,
    )


def _official(weights: dict[str, Tensor]) -> DDPMpp:
    network = on_meta(lambda: DDPMpp(CONFIGS[_OFFICIAL]))
    if fits(meta_shapes(network), weights):
        return network
    expected = f"the configuration of the weights (a dict or JSON file), as they are not those of {_OFFICIAL}"
    raise ValueError(mistake("config", expected, "None"))


def _averaged(ema: Any, names: list[str], path: str) -> dict[str, Tensor]:
    """The averaged weights by name: the n-th belongs to the n-th trainable parameter."""
    if not isinstance(ema, dict) or not isinstance(ema.get("shadow_params"), list):
        found = listed(ema) if isinstance(ema, dict) else type(ema).__name__
        raise CheckpointError(f"{path}: expected ema with a list shadow_params, found {found}")
    shadows = ema["shadow_params"]
    if len(shadows) != len(names) or not all(isinstance(value, Tensor) for value in shadows):
        expected = f"{len(names)} averaged tensors, one per parameter"
        raise CheckpointError(
            f"{path}: expected {expected}, found {len(shadows)} entries in ema.shadow_params"
        )
    return dict(zip(names, shadows, strict=True))


def translate(content: Any, source: str) -> tuple[DDPMppConfig, str]:
    """(network configuration, time input) for the reference implementation's configuration.

    Raises:
        CheckpointError: a field is missing, or describes a network that `DDPMpp` is not.
    """
    if isinstance(content, Mapping) and "config" in content:
        content = content["config"]
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise CheckpointError(f"{source}: expected sections data, model, training, found {found}")
    sections = {key: value for key, value in content.items() if isinstance(value, Mapping)}
    for (section, field), allowed in _REQUIRED.items():
        value = sections.get(section, {}).get(field, allowed[0])
        if (value.lower() if field == "resblock_type" and isinstance(value, str) else value) not in allowed:
            expected = " or ".join(repr(choice) for choice in allowed)
            raise CheckpointError(f"{source}: {section}.{field} must be {expected}, found {value!r}")

    def get(section: str, field: str) -> Any:
        if field not in sections.get(section, {}):
            raise CheckpointError(f"{source}: {section}.{field} is missing")
        return sections[section][field]

    try:
        config = DDPMppConfig(
            image_size=get("data", "image_size"),
            channels=get("data", "num_channels"),
            nf=get("model", "nf"),
            ch_mult=tuple(get("model", "ch_mult")),
            n_blocks=get("model", "num_res_blocks"),
            attn_resolutions=tuple(get("model", "attn_resolutions")),
            block=get("model", "resblock_type").lower(),
            dropout=get("model", "dropout"),
        )
    except CheckpointError:
        raise
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    continuous = sections.get("training", {}).get("continuous", True)
    return config, "continuous" if continuous else "index"
