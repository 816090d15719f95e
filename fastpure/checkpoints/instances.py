"""Modules of diffusers, as they come out of its pipelines: read like the folders they are saved in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..errors import CheckpointError, mistake
from ..nets import Denoiser
from .diffusers import plan_unet
from .diffusers_schedulers import Scheduler, scheduler_of
from .fields import require_fields
from .loading import assembled

_SCHEDULES = ("linear", "cosine")
#: What an instance's configuration holds besides what a config.json does.
_BOOKKEEPING = ("_use_default_values",)


def from_unet2d(
    unet: nn.Module,
    scheduler: Any = None,
    prediction: str = "eps",
    time_input: str | None = None,
    image_shape: tuple[int, int, int] | None = None,
    schedule: str = "linear",
    data_at: int | None = None,
    time_scale: float | None = None,
) -> Denoiser:
    """diffusers' ``UNet2DModel`` as a network of our own: weights copied, frozen, on the module's device.

    Args:
        scheduler: the pipeline's scheduler, or its configuration; None takes ``prediction`` and ``schedule``.
        time_input: "index" or None; flow matching and consistency models are told by their scheduler.
        image_shape: None, or that of the configuration.

    Raises:
        ValueError: an argument says another thing than configuration and scheduler.
        CheckpointError: a network or schedule that we do not have; the message says how to wrap the module as it is.
    """
    called = f"the configuration of {type(unet).__name__}"
    config = require_fields(getattr(unet, "config", None), called)
    content = {name: value for name, value in config.items() if name not in _BOOKKEEPING}
    if scheduler is not None and (prediction, schedule) != ("eps", "linear"):
        found = f"prediction={prediction!r} and schedule={schedule!r} beside it"
        raise ValueError(mistake("scheduler", "alone: it says what is predicted", found))
    told = _scheduler(scheduler, prediction, schedule)
    if time_input not in (None, "index") or data_at is not None or time_scale is not None:
        remedy = "Give the pipeline's scheduler where it is no chain"
        found = f"time_input={time_input!r}, data_at={data_at}, time_scale={time_scale}"
        raise ValueError(mistake("time_input", "'index' for diffusers' UNet2DModel", found, remedy))
    try:
        plan = plan_unet({**content, "_class_name": "UNet2DModel"}, called, told, unet.state_dict())
        denoiser = assembled(plan, called)
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}. To use it as it is, wrap it in a module whose forward(x, labels) returns "
            "unet(x, labels).sample, with time_input='index' and image_shape"
        ) from error
    if image_shape is not None and tuple(image_shape) != denoiser.image_shape:
        raise ValueError(mistake("image_shape", f"{denoiser.image_shape}, as configured", image_shape))
    device = next((tensor.device for tensor in unet.parameters()), None)
    return denoiser if device is None else denoiser.to(device)


def _scheduler(scheduler: Any, prediction: str, schedule: str) -> Scheduler:
    if scheduler is None:
        if schedule not in _SCHEDULES or prediction not in ("eps", "x0", "v"):
            expected = "'eps', 'x0' or 'v' with a linear or cosine schedule for diffusers' UNet2DModel"
            found = f"{prediction!r} with {schedule!r}"
            raise ValueError(mistake("prediction", expected, found, "Give the pipeline's scheduler"))
        return Scheduler(prediction, schedule, "as given")
    content = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(content, Mapping):
        expected = "a scheduler of diffusers or its configuration"
        raise TypeError(mistake("scheduler", expected, type(scheduler).__name__))
    kept = {name: value for name, value in content.items() if name not in _BOOKKEEPING}
    if not isinstance(scheduler, Mapping):
        kept["_class_name"] = type(scheduler).__name__
    return scheduler_of(kept, Path(f"the scheduler {kept.get('_class_name', '')}".strip()))
