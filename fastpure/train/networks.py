"""The networks that training starts from, and whether they fit the data and the loss."""

from __future__ import annotations

import copy

import torch
from torch import nn

from ..classifiers import ResNet, call_frozen
from ..data import Dataset
from ..errors import mistake
from ..nets import Denoiser, FlowPath, config_dict
from .losses import ContinuousTimes, DiscreteDenoiserLoss, EdmDenoiserLoss, FlowLoss, Loss
from .recipes import ClassifierRecipe, DenoiserRecipe


def check_shape(network: str, image_shape: tuple[int, ...], dataset: Dataset) -> None:
    """Raise ValueError unless the network takes images of this size."""
    if tuple(image_shape) != dataset.image_shape:
        raise ValueError(
            mistake(
                "network", f"one for images {dataset.image_shape}", f"{network!r} for {tuple(image_shape)}"
            )
        )


def new_classifier(recipe: ClassifierRecipe, start: nn.Module | None) -> ResNet:
    """A network with random weights, or a copy of ``start``, which must be one of the recipe's configuration."""
    config = recipe.config
    if start is not None:
        if not isinstance(start, ResNet) or start.config != config:
            found = f"{type(start).__name__} {getattr(start, 'config', '')}".strip()
            raise ValueError(mistake("start", f"a ResNet of the network {recipe.name!r}", found))
        return copy.deepcopy(start).requires_grad_(True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        return ResNet(config)


def new_denoiser(recipe: DenoiserRecipe, n_classes: int = 0) -> Denoiser:
    """The recipe's network as the loss wants it: told times, indices, or noise levels (EDM's preconditioning).

    A class-conditional one knows ``n_classes`` classes, and what no class means if the loss leaves labels out.

    Raises:
        ValueError: the loss leaves out labels that the network is not told.
    """
    seed, dropout = recipe.train.seed, recipe.loss.label_dropout
    model = Denoiser.from_config(recipe.network, seed=seed, init_scale=0.0)
    if recipe.class_conditional:
        told = {**config_dict(model.network), "classes": n_classes, "null_class": dropout > 0}
        model = Denoiser.from_config(told, seed=seed, init_scale=0.0)
    elif dropout:
        raise ValueError(mistake("label_dropout", "0 without class_conditional", dropout))
    if isinstance(recipe.loss, DiscreteDenoiserLoss):
        return Denoiser.from_module(model.network, "eps", "index", model.image_shape)
    if isinstance(recipe.loss, FlowLoss):
        return flow_network(model, recipe.loss.levels.path)
    if isinstance(recipe.loss, EdmDenoiserLoss) and model.time_input != "sigma":
        wrapped = {"architecture": "edm", "network": config_dict(model.network)}
        return Denoiser.from_config(wrapped, seed=seed, init_scale=0.0)
    return model


def flow_network(model: Denoiser, path: FlowPath) -> Denoiser:
    """The network of ``model`` as one that predicts the velocity of ``path``."""
    conventions = {"schedule": path.schedule, "data_at": path.data_at, "time_scale": path.time_scale}
    return Denoiser.from_module(model.network, "flow", image_shape=model.image_shape, **conventions)  # type: ignore[arg-type]


def conventions(loss: Loss) -> tuple[str, str, FlowPath | None]:
    """Prediction, time input and path of the denoisers that a loss trains."""
    if isinstance(loss, FlowLoss):
        return loss.levels.prediction, loss.levels.time_input, loss.levels.path
    levels = loss.levels if isinstance(loss, DiscreteDenoiserLoss | EdmDenoiserLoss) else ContinuousTimes()
    return levels.prediction, levels.time_input, None


def check_conventions(
    argument: str, denoiser: Denoiser, prediction: str, time_input: str, path: FlowPath | None = None
) -> None:
    """Raise ValueError unless the loss trains denoisers of this kind."""
    schedule = "linear" if path is None else path.schedule
    found = (denoiser.prediction, denoiser.time_input, getattr(denoiser, "schedule", "linear"))
    if found != (prediction, time_input, schedule) or denoiser.path != path or denoiser.learned_sigma:
        expected = (
            f"a denoiser that predicts {prediction!r} with time input {time_input!r}, {schedule} schedule"
        )
        learned = " and a learned variance" if denoiser.learned_sigma else ""
        raise ValueError(mistake(argument, expected, f"{found[0]!r} with {found[1]!r}, {found[2]}{learned}"))


def check_classes(classifier: nn.Module, dataset: Dataset, device: torch.device) -> None:
    """Raise ValueError unless the classifier takes the images and knows as many classes."""
    image = dataset.batch(torch.arange(1)).to(device)
    expected = f"one for images {dataset.image_shape} and {len(dataset.classes)} classes"
    # Pooling networks take images of any size, and grey ones broadcast to colour: ask those that know their own.
    made_for = getattr(getattr(classifier, "config", None), "image_shape", dataset.image_shape)
    if tuple(made_for) != dataset.image_shape:
        raise ValueError(mistake("classifier", expected, f"one for images {tuple(made_for)}"))
    try:
        with torch.no_grad():
            logits = call_frozen(classifier, image)
    except RuntimeError as error:
        raise ValueError(mistake("classifier", expected, f"one that cannot take them: {error}")) from error
    if tuple(logits.shape) != (1, len(dataset.classes)):
        raise ValueError(mistake("classifier", expected, f"logits of shape {list(logits.shape)}"))
