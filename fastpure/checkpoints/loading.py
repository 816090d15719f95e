"""`load_denoiser`: a bundled name, or a file or folder in one of `FORMATS`."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import zoo
from ..errors import CheckpointError, mistake, one_of
from ..hub import find, hub_remedy
from ..nets import Denoiser, build, config_dict
from ..nets.registry import Config, with_class
from ..signatures import suggests_names
from .diffusers import is_diffusers, plan_diffusers
from .edm import is_edm, plan_edm
from .guided_diffusion import is_guided_diffusion, plan_guided_diffusion
from .native import is_native, plan_native
from .report import CheckpointReport, Plan
from .score_sde import is_score_sde, plan_score_sde
from .sources import Source, open_source
from .weights import fill, refuse_inflated


@dataclass(frozen=True)
class Format:
    """How files of one kind are recognised, and understood given a configuration or None."""

    recognises: Callable[[Source], bool]
    plan: Callable[[Source, Any], Plan]


#: Format -> its two functions. A file is tried in this order.
FORMATS: dict[str, Format] = {
    "native": Format(is_native, plan_native),
    "score_sde": Format(is_score_sde, plan_score_sde),
    "guided_diffusion": Format(is_guided_diffusion, plan_guided_diffusion),
    "edm": Format(is_edm, plan_edm),
    "diffusers": Format(is_diffusers, plan_diffusers),
}


@suggests_names
@torch.inference_mode(False)
def load_denoiser(
    path: str | Path,
    format: str | None = None,
    config: str | Path | Mapping[str, Any] | None = None,
    *,
    class_label: int | None = None,
    weights: str | None = None,
) -> Denoiser:
    """Load a denoiser: frozen weights, evaluation mode, on the CPU. ``denoiser.checkpoint`` says what was loaded.

    No code in a file is run. Names and shapes are compared before anything is built, and weights are copied, so
    that the file may be changed or deleted afterwards.

    Args:
        path: a bundled name ("digits"), a file, or a folder of diffusers; ``"hf:OWNER/REPOSITORY[@REVISION][:FILE]"``,
            fetched from the Hugging Face hub the first time; or a name of `fastpure.hub.CARDS`, once downloaded.
        format: a name of `FORMATS`; None recognises it by what the file holds.
        config: for formats whose files do not describe their network: the original project's configuration,
            as a dict or a JSON file. Not needed for the official CIFAR-10 and ImageNet networks.
        class_label: the one class that a class-conditional network is always told, 0-based. None leaves the class to
            each call: ``denoiser.n_classes`` says how many there are, and what knows no classes, such as
            `fp.Purifier`, refuses the denoiser unless it was trained without them too (``denoiser.null_class``).
        weights: "ema" (averaged), "raw", or a name in the file, where it holds several sets of weights; None takes
            averaged ones where they are there. ``denoiser.checkpoint.ema`` says which were taken.

    Raises:
        TypeError: ``path`` is neither a name nor a path.
        ValueError: an unknown format, a configuration missing or superfluous for it, or a class or set of weights
            that is not there.
        DownloadError: what is asked for by "hf:" cannot be fetched, or a download is not what it was.
        CheckpointError: no such file or name, damaged, not recognised, refused because of code in it, or
            weights and configuration do not fit, or it is not clear which weights are meant; nothing is loaded
            then.
    """
    if not isinstance(path, str | Path):
        raise TypeError(mistake("path", "a bundled name or a path", type(path).__name__))
    if format is not None:
        one_of("format", format, FORMATS)
    file = Path(path)
    if format is None and isinstance(path, str) and path in zoo.DENOISERS:
        file, format = zoo.weights_path("denoiser", path), "native"
    elif isinstance(path, str) and not file.exists() and (place := find(path, "denoiser")) is not None:
        file = Path(place.path)
        format, config = format or place.options.get("format"), config or place.options.get("config")
    if format is None and not file.exists():
        bundled = ", ".join(zoo.DENOISERS)
        raise CheckpointError(
            f"`path` {str(path)!r} is neither a file nor a bundled denoiser (bundled: {bundled}), nor one that "
            f"`fastpure download` lists, nor hf:OWNER/REPOSITORY{hub_remedy(str(path))}"
        )
    with _collector_paused():
        source = open_source(file, weights)
        name = format or _recognised(source)
        plan = FORMATS[name].plan(source, config)
        plan = replace(plan, config=_with_class(plan.config, class_label))
        return _loaded(source, name, plan)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Without the cyclic garbage collector, which thousands of new tensors would call for no use (measured: a fifth
    of the time)."""
    paused = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if paused:
            gc.enable()


def _recognised(source: Source) -> str:
    for name, candidate in FORMATS.items():
        if candidate.recognises(source):
            return name
    known = ", ".join(FORMATS)
    raise CheckpointError(f"{source.path}: expected one of the formats {known}, found {source.summary()}")


def _with_class(config: Config, class_label: int | None) -> Config:
    """The configuration with the class that the network is always told, where one is given."""
    return config if class_label is None else with_class(config, class_label)


def assembled(plan: Plan, source: str, file: Path | None = None) -> Denoiser:
    """The denoiser of a plan, its weights copied; ``file`` is the one that they are mapped from.

    Raises:
        CheckpointError: the weights do not fit.
    """
    config = plan.config

    def make() -> nn.Module:
        return build(plan.architecture, config) if plan.network is None else plan.network

    network = fill(make, plan.tensors, source, plan.translate, file)
    return Denoiser.from_module(
        network,
        plan.prediction,
        plan.time_input or config.time_input,
        plan.image_shape or (config.channels, config.image_size, config.image_size),
        learned_sigma=config.learned_sigma if plan.learned_sigma is None else plan.learned_sigma,
        schedule=plan.schedule,
        data_at=plan.data_at,
        time_scale=plan.time_scale,
    ).eval()


def _loaded(source: Source, name: str, plan: Plan) -> Denoiser:
    status = source.path.stat()
    refuse_inflated(plan.tensors, status.st_size, str(source.path))
    denoiser = assembled(plan, str(source.path), source.path)
    network = denoiser.network
    denoiser.checkpoint = CheckpointReport(
        path=source.path,
        format=name,
        architecture=plan.architecture,
        config=config_dict(network),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        ema=plan.ema,
        dropped=plan.dropped,
        notes=plan.notes,
        prediction=denoiser.prediction,
        time_input=denoiser.time_input,
        schedule=denoiser.schedule,
        image_shape=denoiser.image_shape,
        learned_sigma=denoiser.learned_sigma,
        bytes=status.st_size,
        modified_ns=status.st_mtime_ns,
        t_max=plan.t_max,
    )
    return denoiser
