"""ADDT: fine-tune a denoiser on noise that hides a perturbation against a classifier.

Liu et al., "Towards Better Adversarial Purification via Adversarial Denoising Diffusion Training" (arXiv
2404.14309); as its released code does it, where the paper is silent. The perturbation is optimised through the one-step
estimate of the clean image (classifier-guided perturbation optimisation), and its accumulated gradient is mapped
onto Gaussian values by rank (RBGM), so that the noisy image keeps its marginal distribution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...classifiers import require_eval
from ...errors import mistake, one_of, positive, whole
from ..batches import Batch, Purpose, StepRandom
from .base import Augment, Network, classification_gradient, inner_network, weights_digest
from .levels import ContinuousTimes, Level, Levels


def rbgm(gradient: Tensor, gauss: Tensor, per: str = "channel") -> Tensor:
    """Rank-based Gaussian mapping: the values of ``gauss`` in the order of ``gradient``.

    Args:
        gradient: ``[B, C, H, W]``; only the order of its values counts. Equal ones keep their position's order.
        gauss: standard normals of the same shape.
        per: "channel" ranks the H W pixels of each channel (as published), "image" all C H W values.

    Returns:
        ``[B, C, H, W]``: where the gradient has its r-th smallest value, the r-th smallest of ``gauss``.

    Raises:
        ValueError: the shapes differ, or an unknown ``per``.
    """
    if gradient.shape != gauss.shape:
        raise ValueError(mistake("gauss", f"of shape {list(gradient.shape)}", list(gauss.shape)))
    first = 2 if one_of("per", per, ("channel", "image")) == "channel" else 1
    order = gradient.flatten(first).argsort(dim=-1, stable=True)
    values = gauss.flatten(first).sort(-1).values
    return torch.empty_like(values).scatter_(-1, order, values).view(gradient.shape)


def mix(noise: Tensor, delta: Tensor, strength: Tensor) -> Tensor:
    """``sqrt(1 - s^2) noise + s delta``: variance 1 for uncorrelated parts. ``strength`` is float64 ``[B]``."""
    shape = (-1, 1, 1, 1)
    kept = (1 - strength**2).sqrt().to(noise.dtype).view(shape)
    return kept * noise + strength.to(noise.dtype).view(shape) * delta


@final
@dataclass(frozen=True, eq=False)
class AddtLoss:
    """ADDT with classifier guidance and RBGM. What is not in the paper follows the released code.

    One iteration, at one noise level per image: delta is a fresh normal; ``inner_steps`` times the gradient of
    the objective with respect to delta, under fresh noise, is added to a running sum, and delta becomes the
    mapping of that sum onto fresh Gaussian values. Then the network learns to predict the mixture
    ``sqrt(1 - s^2) noise + s delta``, where ``s = clip(unit alpha / sigma, 0, cap)``.

    Fields:
        classifier: guides the perturbation; images in [0, 1] to logits, evaluation mode, on the device of training.
        levels: which noise levels, and for which kind of network.
        unit: size of the perturbation in [-1, 1] images, as a standard deviation.
        cap: largest strength.
        inner_steps: gradients per iteration.
        objective: "classifier", or "noise" for the published ablation (error of the network's own answer).
        running_sum: whether gradients add up over the inner steps (as released).
        rank_per: "channel" (as released) or "image", see `rbgm`.
        inner_dropout: whether dropout acts in the inner steps too (as released).
        augment: applied before everything else.
    """

    classifier: nn.Module
    levels: Levels = ContinuousTimes()  # noqa: RUF009 (a frozen value)
    unit: float = 0.03
    cap: float = 0.3
    inner_steps: int = 5
    objective: str = "classifier"
    running_sum: bool = True
    rank_per: str = "channel"
    inner_dropout: bool = True
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        require_eval(self.classifier, "classifier")
        positive("unit", self.unit)
        if not 0 < self.cap <= 1:
            raise ValueError(mistake("cap", "a strength in (0, 1]", self.cap))
        whole("inner_steps", self.inner_steps, 0, 250)
        one_of("objective", self.objective, ("classifier", "noise"))
        one_of("rank_per", self.rank_per, ("channel", "image"))

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        level = self.levels.draw(batch.random)
        strength = level.signal_to_noise(self.unit, self.cap)
        with inner_network(model, self.inner_dropout) as network:
            delta = self.perturbation(network, x0, batch.labels, level, batch.random)
        mixed = mix(_normal(batch.random, Purpose.NOISE, x0), delta, strength)
        return self.levels.loss(model(level.noisy(x0, mixed), level.labels), x0, mixed, level)

    def perturbation(
        self, network: Network, x0: Tensor, labels: Tensor, level: Level, random: StepRandom
    ) -> Tensor:
        """delta after the inner steps: ``[B, C, H, W]``, standard normal values in the order of the gradient."""
        strength = level.signal_to_noise(self.unit, self.cap)
        delta = _normal(random, Purpose.MAPPING, x0)
        total = torch.zeros_like(delta)
        for k in range(self.inner_steps):
            noise = _normal(random, Purpose.INNER_NOISE, x0, k)
            gradient = self._gradient(network, x0, labels, level, strength, noise, delta)
            total = total + gradient if self.running_sum else gradient
            delta = rbgm(total, _normal(random, Purpose.MAPPING, x0, k + 1), self.rank_per)
        return delta

    def _gradient(
        self,
        network: Network,
        x0: Tensor,
        labels: Tensor,
        level: Level,
        strength: Tensor,
        noise: Tensor,
        delta: Tensor,
    ) -> Tensor:
        def clean_of(point: Tensor) -> Tensor:
            x = level.noisy(x0, mix(noise, point, strength))
            return self.levels.clean(x, network(x, level.labels), level)

        if self.objective == "classifier":
            return classification_gradient(self.classifier, labels, delta, clean_of)
        point = delta.detach().requires_grad_(True)
        output = network(level.noisy(x0, mix(noise, point, strength)), level.labels)
        return torch.autograd.grad(self.levels.loss(output, x0, noise, level).sum(), point)[0]

    def to_dict(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name)
            for name in (
                "unit",
                "cap",
                "inner_steps",
                "objective",
                "running_sum",
                "rank_per",
                "inner_dropout",
            )
        }
        return {"kind": "addt", **plain, **_identity(self.classifier, self.levels, self.augment)}


@final
@dataclass(frozen=True, eq=False)
class AddtLinfLoss:
    """The Linf ablation of ADDT: an ordinary perturbation of the image instead of a Gaussian one.

    delta starts at 0 and takes ``inner_steps`` sign steps under fresh noise, inside the ball and the image range;
    gradients are not accumulated. The network learns to predict ``noise + r delta`` with
    ``r = clip(alpha / sigma, 0, cap)``, so that its clean image is x0 where r is not clipped.

    Fields:
        classifier, levels, inner_steps, inner_dropout, augment: as in `AddtLoss`.
        eps, step_size: radius and step in [0, 1] units.
        cap: largest r.
    """

    classifier: nn.Module
    levels: Levels = ContinuousTimes()  # noqa: RUF009 (a frozen value)
    eps: float = 8 / 255
    step_size: float = 4 / 255
    inner_steps: int = 5
    cap: float = 10.0
    inner_dropout: bool = True
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        require_eval(self.classifier, "classifier")
        for name in ("eps", "step_size", "cap"):
            positive(name, getattr(self, name))
        whole("inner_steps", self.inner_steps, 0, 250)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        level = self.levels.draw(batch.random)
        ratio = level.column(level.signal_to_noise(1.0, self.cap), x0)
        delta = torch.zeros_like(x0)
        with inner_network(model, self.inner_dropout) as network:
            for k in range(self.inner_steps):
                noise = _normal(batch.random, Purpose.INNER_NOISE, x0, k)

                def clean_of(point: Tensor, noise: Tensor = noise) -> Tensor:
                    x = level.noisy(x0, noise + ratio * point)
                    return self.levels.clean(x, network(x, level.labels), level)

                gradient = classification_gradient(self.classifier, batch.labels, delta, clean_of)
                delta = sign_step(x0, delta, gradient, 2 * self.step_size, 2 * self.eps)
        mixed = _normal(batch.random, Purpose.NOISE, x0) + ratio * delta
        return self.levels.loss(model(level.noisy(x0, mixed), level.labels), x0, mixed, level)

    def to_dict(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name) for name in ("eps", "step_size", "inner_steps", "cap", "inner_dropout")
        }
        return {"kind": "addt-linf", **plain, **_identity(self.classifier, self.levels, self.augment)}


def sign_step(x0: Tensor, delta: Tensor, gradient: Tensor, step: float, eps: float) -> Tensor:
    """One ascent step in the Linf ball of radius ``eps`` around ``x0`` and in [-1, 1]; all in model space."""
    moved = (delta + step * gradient.sign()).clamp(-eps, eps)
    return (x0 + moved).clamp(-1.0, 1.0) - x0


def _normal(random: StepRandom, purpose: Purpose, x0: Tensor, repeat: int = 0) -> Tensor:
    return random.normal(purpose, (x0.shape[1], x0.shape[2], x0.shape[3]), repeat)


def _identity(classifier: nn.Module, levels: Levels, augment: Augment) -> dict[str, Any]:
    return {
        "classifier": weights_digest(classifier),
        "levels": levels.to_dict(),
        "augment": asdict(augment),
    }
