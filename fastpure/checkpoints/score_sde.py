"""score-SDE's DDPM++ (what DiffPure and COUP use on CIFAR-10): training checkpoints and state dicts.

A training checkpoint holds ``model`` (raw weights, names prefixed by ``module.``), ``ema`` (averaged weights,
a list without names in the order of the trainable parameters), the optimizer's state and the step. Purification
uses the averaged weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, listed, mistake
from ..nets import CONFIGS, DDPMpp, DDPMppConfig, EDMConfig
from ..schedule import VP
from .choice import choose
from .fields import Fields, names, shown
from .report import Plan
from .sources import Source, tensors_by_name
from .weights import (
    fits,
    meta_shapes,
    on_meta,
    read_config,
    refuse_misfits,
    same_names,
    wrapped_names,
)

_SCORE_SDE = "score_sde"
#: Section -> its fields. The reference has no defaults: its code fails where one is left out.
_SECTIONS: dict[str, Fields] = {
    "data": Fields(
        _SCORE_SDE,
        honoured=names("image_size num_channels"),
        required={"centered": (True,)},
        harmless=names("dataset category random_flip uniform_dequantization tfrecords_path root"),
    ),
    "model": Fields(
        _SCORE_SDE,
        honoured=names(
            """nf ch_mult num_res_blocks attn_resolutions resblock_type dropout beta_min beta_max num_scales"""
        ),
        required={
            "name": ("ncsnpp",),
            "scale_by_sigma": (False,),
            "normalization": ("GroupNorm",),
            "nonlinearity": ("swish",),
            "resamp_with_conv": (True,),
            "conditional": (True,),
            "fir": (False,),
            "skip_rescale": (True,),
            "progressive": ("none",),
            "progressive_input": ("none",),
            "attention_type": ("ddpm",),
            "embedding_type": ("positional",),
            "conv_size": (3,),
        },
        # Of the VE schedule, of the training, of the initial weights, and of what the values above switch off.
        harmless=names(
            """sigma_min sigma_max ema_rate init_scale fir_kernel progressive_combine fourier_scale"""
        ),
        defaults={"conv_size": 3},  # the one field that no code reads
    ),
    "training": Fields(
        _SCORE_SDE,
        honoured=names("continuous"),
        required={"sde": ("vpsde",)},
        harmless=names(
            """reduce_mean n_iters batch_size snapshot_freq log_freq eval_freq snapshot_freq_for_preemption
        snapshot_sampling likelihood_weighting n_jitted_steps"""
        ),
    ),
}
_OTHER_SECTIONS = names("optim sampling eval evaluate test seed device")
_BETAS = (0.1, 20.0)
_STEPS = 1000
_BUFFER = "sigmas"
_OFFICIAL = "ddpmpp-cifar10"


def is_score_sde(source: Source) -> bool:
    """Whether the names are DDPM++'s, in a state dict or under ``model`` of a training checkpoint."""
    content = source.content
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
        return any(f"{prefix}all_modules.0.weight" in content for prefix in ("", "module."))
    return "all_modules.0.weight" in source.tensors


def plan_score_sde(source: Source, config: Any = None) -> Plan:
    """Understand a training checkpoint or a state dict (.safetensors, or .pt written by ``torch.save``).

    Args:
        config: the reference implementation's configuration as a dict or JSON file: sections "data"
            (image_size, num_channels), "model" (nf, ch_mult, num_res_blocks, attn_resolutions,
            resblock_type, dropout, beta_min, beta_max, ...) and "training" (sde, continuous), possibly inside
            "config". None if the weights are those of the official ``vp/cifar10_ddpmpp_deep_continuous``. The official
            network of the sub-VP SDE has the same names and shapes, and no file says which it is: the notes do.

    The network predicts noise. Its time input is "continuous" (999 t) unless the configuration says
    ``training.continuous: false``, then "index". One trained with other rates than 0.1 to 20 is told the time at which
    its own schedule has the noise level (`fastpure.nets.edm`, "vp").

    Raises:
        ValueError: no configuration, though the weights are not the official network's.
        CheckpointError: configuration incomplete or of another network, or averaged and raw weights disagree.
    """
    path = str(source.path)
    content: Any = source.content
    training = content if isinstance(content, dict) and isinstance(content.get("model"), dict) else None
    if training is None:
        raw, ema, others = source.require_tensors(), _said(source), source.others_dropped()
    else:
        raw = tensors_by_name(training["model"], path)
    weights = {name: value for name, value in raw.items() if name != _BUFFER}
    if config is None:
        understood = Understood(_official(weights), "continuous", _BETAS, ())
        notes: tuple[str, ...] = (
            f"recognised as {_OFFICIAL} by its names and shapes; assumed: vpsde, trained continuously, beta from "
            f"{_BETAS[0]} to {_BETAS[1]} (subvp/cifar10_ddpmpp_deep_continuous looks the same and is another network)",
        )
    else:
        understood = translate(*read_config(config))
        notes = understood.notes
    network = understood.network
    if training is not None:
        refuse_misfits(meta_shapes(network), weights, f"{path}, model", "DDPMpp")
        weights, ema, others = _of_training(training, weights, source.weights, path)
    dropped = [f"{_BUFFER} (noise levels of the training, unused)"] if _BUFFER in raw else []
    plan = Plan(
        "ddpmpp",
        network.config,
        weights,
        same_names,
        network=network,
        time_input=understood.time_input,
        dropped=(*dropped, *others),
        ema=ema,
        notes=notes,
    )
    if understood.betas == _BETAS:
        return plan
    # Told its own time by the noise level, a network of another VP schedule fits all methods.
    wrapped = EDMConfig(network.config, "vp", beta_min=understood.betas[0], beta_max=understood.betas[1])
    return replace(
        plan, architecture="edm", config=wrapped, translate=wrapped_names, network=None, time_input=None
    )


def _said(source: Source) -> str:
    return source.chosen.said if source.chosen is not None else "as in the file"


def _of_training(
    training: dict[str, Any], weights: dict[str, Tensor], wanted: str | None, path: str
) -> tuple[dict[str, Tensor], str, tuple[str, ...]]:
    """(weights, which they are, what is left) of a training checkpoint with the raw ``weights``."""
    rest = tuple(f"{name} (of the training)" for name in training if name not in ("model", "ema"))
    chosen = choose({name: training[name] for name in ("model", "ema") if name in training}, wanted, path)
    if chosen.name == "model":
        others = (f"ema ({len(weights)} averaged weights)",) if chosen.others else ()
        said = "raw (model)" if chosen.others else "raw: the checkpoint has no averaged ones"
        return weights, said, (*others, *rest)
    averaged = _averaged(chosen.value, list(weights), path)
    said = f"averaged (ema, decay {shown(chosen.value.get('decay', 'unknown'))})"
    return averaged, said, (f"model ({len(weights)} raw weights)", *rest)


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


@dataclass(frozen=True, eq=False)
class Understood:
    """A configuration translated: the network, how it is told the time, its schedule's rates, what was assumed."""

    network: DDPMpp
    time_input: str
    betas: tuple[float, float]
    notes: tuple[str, ...]


def translate(content: Any, source: str) -> Understood:
    """What the reference implementation's configuration describes.

    Raises:
        CheckpointError: a field is missing, unknown, or describes a network or schedule that we do not have.
    """
    if isinstance(content, Mapping) and "config" in content:
        content = content["config"]
    if not isinstance(content, Mapping):
        found = type(content).__name__
        raise CheckpointError(f"{source}: expected sections data, model, training, found {found}")
    if unknown := [name for name in content if name not in _SECTIONS and name not in _OTHER_SECTIONS]:
        raise CheckpointError(f"{source}: unknown sections {listed(sorted(map(str, unknown)))}")
    values = {}
    for section, fields in _SECTIONS.items():
        values[section], _ = fields.read(content.get(section, {}), source, section)
        if missing := sorted(fields.honoured - set(values[section])):
            raise CheckpointError(
                f"{source}: {section}.{missing[0]} is missing; score_sde has no default for it"
            )
    data, model = values["data"], values["model"]
    block = model["resblock_type"]
    if not isinstance(block, str) or block.lower() not in ("biggan", "ddpm"):
        raise CheckpointError(
            f"{source}: model.resblock_type must be 'biggan' or 'ddpm', found {shown(block)}"
        )
    try:
        config = DDPMppConfig(
            image_size=data["image_size"],
            channels=data["num_channels"],
            nf=model["nf"],
            ch_mult=tuple(model["ch_mult"]),
            n_blocks=model["num_res_blocks"],
            attn_resolutions=tuple(model["attn_resolutions"]),
            block=block.lower(),
            dropout=model["dropout"],
        )
        betas = VP(model["beta_min"], model["beta_max"])
    except (TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(f"{source}: {error}") from error
    continuous, steps = values["training"]["continuous"], model["num_scales"]
    if continuous not in (False, True):
        raise CheckpointError(
            f"{source}: training.continuous must be True or False, found {shown(continuous)}"
        )
    rates = (betas.beta_min, betas.beta_max)
    if not continuous and (rates, steps) != (_BETAS, _STEPS):
        expected = f"beta_min {_BETAS[0]}, beta_max {_BETAS[1]}, num_scales {_STEPS} where training.continuous is False"
        raise CheckpointError(
            f"{source}: model must have {expected}, found {rates[0]}, {rates[1]}, {shown(steps)}"
        )
    notes = [f"schedule: beta from {rates[0]} to {rates[1]}; told its own time by the noise level"] * (
        rates != _BETAS
    )
    if steps != _STEPS:
        notes.append(
            f"num_scales {shown(steps)}: steps of its sampler; a network trained continuously has none"
        )
    return Understood(
        on_meta(lambda: DDPMpp(config)), "continuous" if continuous else "index", rates, tuple(notes)
    )
