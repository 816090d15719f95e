"""State dicts of score-SDE's DDPM++ (what DiffPure and COUP use on CIFAR-10), configuration beside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import CheckpointError, mistake
from ..nets import DDPMpp, DDPMppConfig, Denoiser
from .weights import fill, read_json, read_state_dict

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


def read_score_sde(path: Path, config: str | Path | Mapping[str, Any] | None = None) -> Denoiser:
    """Read a score-SDE state dict (.safetensors, or .pt written by ``torch.save``).

    Args:
        config: the reference implementation's configuration as a dict or JSON file: sections "data"
            (image_size, num_channels), "model" (nf, ch_mult, num_res_blocks, attn_resolutions,
            resblock_type, dropout, ...) and "training" (sde, continuous), possibly inside "config".

    Returns:
        A denoiser that predicts noise, frozen and in evaluation mode. Its time input is "continuous" (999
        t) unless the configuration says ``training.continuous: false``, then "index".

    Raises:
        ValueError: no configuration.
        CheckpointError: the file is damaged, the configuration incomplete or of another network, or the
            weights do not fit it.
    """
    if config is None:
        raise ValueError(mistake("config", "the configuration of the weights (a dict or JSON file)", "None"))
    content = config if isinstance(config, Mapping) else read_json(Path(config))
    source = "`config`" if isinstance(config, Mapping) else str(config)
    settings, time_input = translate(content, source)
    network = fill(lambda: DDPMpp(settings), _weights(read_state_dict(path)), str(path))
    shape = (settings.channels, settings.image_size, settings.image_size)
    return Denoiser.from_module(network, "eps", time_input, shape).eval()


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


def _weights(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without the prefix of data-parallel training and the buffer of noise levels, which is never used."""
    if all(name.startswith("module.") for name in tensors):
        tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
    return {name: value for name, value in tensors.items() if name != "sigmas"}
