"""What a trained network is worth on held-out images, with fixed noise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from ..errors import finite
from ..kernels import Domain, NoiseKeys, Stream, philox_normal
from ..nets import Denoiser
from ..progress import Progress
from ..schedule import VP, DiscreteVP
from .batches import Batch, StepRandom
from .losses import Loss

BATCH = 256
HELD_OUT_STEP = 2**32 - 1
"""The training step whose random numbers serve held-out images; no run gets that far."""


@final
@dataclass(frozen=True)
class DenoiserScore:
    """Denoising at one time.

    Fields:
        t: diffusion time in (0, 1].
        noise_mse: mean squared error of the predicted noise (1 for a network that predicts zero).
        psnr: of the one-step estimate of the clean image, in dB, peak 1 in [0, 1] units, mean over images.
    """

    t: float
    noise_mse: float
    psnr: float


@torch.no_grad()
def score_denoiser(
    model: nn.Module,
    dataset: Dataset,
    times: Sequence[float] = (0.05, 0.1, 0.15, 0.2),
    *,
    draws: int = 1,
    schedule: VP | None = None,
    progress: bool = False,
) -> tuple[DenoiserScore, ...]:
    """Noise error and PSNR at each of ``times``.

    The noise of an image depends on its sample id, the draw and the time only, so that two networks are
    compared on the same noisy images. The clean estimate ``(x_t - sigma noise_pred) / alpha`` is clamped to
    the image range.

    Args:
        model: ``model(x [B, C, H, W], labels [B]) -> predicted noise``, labels 999 t; or a `Denoiser` of any
            convention, scored at the noise level of its own schedule that belongs to t; told the labels if it has
            classes.
        draws: noise realisations per image.
        progress: show a bar.
    """
    schedule = VP() if schedule is None else schedule
    device = next(model.parameters()).device
    scores = []
    with Progress(len(times) * draws * len(dataset), "images", doing="scoring", shown=progress) as bar:
        for index, t in enumerate(times):
            errors, ratios = [], []
            for draw in range(draws):
                for rows in torch.arange(len(dataset)).split(BATCH):
                    keys = NoiseKeys.make(0, dataset.sample_ids[rows], draw, Domain.EVALUATION, device)
                    noise = philox_normal(keys, index, Stream.FORWARD, dataset.image_shape)
                    images = dataset.batch(rows).to(device)
                    told = (dataset.labels[rows].to(device),) if getattr(model, "n_classes", 0) else ()
                    error, ratio = _denoise(model, images, t, noise, schedule, *told)
                    finite(error, dataset.sample_ids[rows].to(device), f"the denoiser {type(model).__name__}")
                    errors.append(error)
                    ratios.append(ratio)
                    bar.step(len(rows))
            scores.append(DenoiserScore(t, torch.cat(errors).mean().item(), torch.cat(ratios).mean().item()))
    return tuple(scores)


def _denoise(
    model: nn.Module, images: Tensor, t: float, noise: Tensor, schedule: VP, *told: Tensor
) -> tuple[Tensor, Tensor]:
    """Per image: mean squared error of the noise, PSNR of the clean estimate."""
    alpha, sigma, label = _level(model, t, schedule)
    x = alpha * (2 * images - 1) + sigma * noise
    predicted = model(x, torch.full((len(images),), label, device=x.device), *told)
    if isinstance(model, Denoiser):
        predicted = model.noise_of(x, predicted, alpha, sigma)
    clean = ((x - sigma * predicted) / alpha + 1) / 2
    error = (clean.clamp(0, 1) - images).square().flatten(1).mean(1)
    return (predicted - noise).square().flatten(1).mean(1), -10 * torch.log10(error.clamp_min(1e-12))


def _level(model: nn.Module, t: float, schedule: VP) -> tuple[float, float, float | int]:
    """alpha, sigma and the network's label at time t, for the schedule that the network was made for."""
    kind = model.time_input if isinstance(model, Denoiser) else "continuous"
    if isinstance(model, Denoiser) and model.path is not None:  # the state scaled onto the straight path
        width = schedule.alpha(t) + schedule.sigma(t)
        signal, noise = schedule.alpha(t) / width, schedule.sigma(t) / width
        return signal, noise, model.path.label(signal, noise)
    if kind == "index":
        index = max(round(t * DiscreteVP().n) - 1, 0)
        signal = DiscreteVP().alpha_bar(index)
        return signal**0.5, (1 - signal) ** 0.5, index
    if kind == "sigma":
        ratio = schedule.sigma(t) / schedule.alpha(t)
        return 1.0, ratio, ratio
    return schedule.alpha(t), schedule.sigma(t), 999 * t


def _batches(dataset: Dataset, progress: bool) -> Iterator[Tensor]:
    """Positions of the images of one batch after another; with a bar if wanted."""
    with Progress(len(dataset), "images", doing="scoring", shown=progress) as bar:
        for rows in torch.arange(len(dataset)).split(BATCH):
            yield rows
            bar.step(len(rows))


def score_loss(
    model: nn.Module, loss: Loss, dataset: Dataset, device: torch.device, *, progress: bool = False
) -> float:
    """Mean of a training loss over ``dataset`` in evaluation mode, with random numbers that are always the same."""
    was, total = model.training, 0.0
    model.eval()
    for rows in _batches(dataset, progress):
        start, stop = int(rows[0]), int(rows[-1]) + 1
        random = StepRandom(0, HELD_OUT_STEP, start, stop, device)
        batch = Batch(dataset.batch(rows).to(device), dataset.labels[rows].to(device), random)
        with torch.enable_grad():  # inner loops differentiate with respect to the images
            values = loss(model, batch).detach()
        total += finite(values, dataset.sample_ids[rows], f"the loss of {type(model).__name__}").sum().item()
    model.train(was)
    return total / len(dataset)


@final
@dataclass(frozen=True)
class FlowScore:
    """Mean training ``loss`` over ``images`` images, and what it is ``of_zero``, the answer that changes nothing."""

    loss: float
    of_zero: float
    images: int


@final
class Nothing(nn.Module):
    """Answers zero: a velocity that leaves every image where it is."""

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        """Zeros like ``x``."""
        return torch.zeros_like(x)


@final
@dataclass(frozen=True)
class EnergyScore:
    """An energy's gradient as a denoiser of ``images`` held-out images.

    Fields:
        noise: its deviation, in [-1, 1] units.
        noise_mse: mean squared error of noise * gradient of U as the noise (1 for a flat energy).
        higher: how much higher the noised images lie than the images, on average.
    """

    noise: float
    noise_mse: float
    higher: float
    images: int


def score_energy(
    network: nn.Module, dataset: Dataset, noise: float, *, progress: bool = False
) -> EnergyScore:
    """Scores of an energy, images in [-1, 1] to energies [B], at noise of deviation ``noise``, always the same."""
    device, error, higher = next(network.parameters()).device, 0.0, 0.0
    for rows in _batches(dataset, progress):
        x = 2.0 * dataset.batch(rows).to(device) - 1.0
        keys = NoiseKeys.make(0, dataset.sample_ids[rows], 0, Domain.EVALUATION, device)
        drawn = philox_normal(keys, 0, Stream.FORWARD, dataset.image_shape)
        noised = (x + noise * drawn).requires_grad_(True)
        with torch.enable_grad():
            energies = network(noised)
            (slope,) = torch.autograd.grad(energies.sum(), noised)
        finite(energies.detach(), dataset.sample_ids[rows].to(device), "the energy")
        error += (noise * slope - drawn).square().flatten(1).mean(1).double().sum().item()
        with torch.no_grad():
            higher += (energies - network(x)).double().sum().item()
    n = len(dataset)
    return EnergyScore(noise, error / n, higher / n, n)


@final
@dataclass(frozen=True)
class ClassifierScore:
    """``accuracy`` in [0, 1] and mean ``cross_entropy`` in nats over ``images`` images."""

    accuracy: float
    cross_entropy: float
    images: int


@torch.no_grad()
def score_classifier(model: nn.Module, dataset: Dataset, *, progress: bool = False) -> ClassifierScore:
    """Accuracy and cross-entropy of a classifier (images in [0, 1] -> logits)."""
    device = next(model.parameters()).device
    right, loss = 0, 0.0
    for rows in _batches(dataset, progress):
        logits, labels = model(dataset.batch(rows).to(device)), dataset.labels[rows].to(device)
        finite(logits, dataset.sample_ids[rows].to(device), f"the classifier {type(model).__name__}")
        right += int((logits.argmax(1) == labels).sum())
        loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return ClassifierScore(right / len(dataset), loss / len(dataset), len(dataset))
