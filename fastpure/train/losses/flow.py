"""Losses that train flow networks: on the straight path from image to noise, or from attacked to clean image."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...classifiers import require_eval
from ...errors import mistake, one_of, positive, whole
from ...nets import FlowPath
from ...schedule import VP
from ..batches import Batch, Purpose, StepRandom
from .addt import sign_step
from .base import Augment, classification_gradient, weights_digest
from .denoiser import check_label_dropout, dropout_dict, told_classes
from .levels import Level, Levels


@final
@dataclass(frozen=True)
class FlowTimes(Levels):
    """s ~ U(0, t_max) on the straight path (1 - s) x0 + s noise, for networks that predict its velocity.

    ``t_max`` is a time of this path; ``data_at`` and ``time_scale`` are the network's, as for `fastpure.Denoiser`.
    """

    t_max: float = 1.0
    data_at: int = 0
    time_scale: float = 1000.0
    prediction = "flow"
    time_input = "continuous"

    def __post_init__(self) -> None:
        if positive("t_max", self.t_max) > 1:
            raise ValueError(mistake("t_max", "a time in (0, 1]", self.t_max))
        FlowPath("flow", self.data_at, self.time_scale)  # checks them

    @property
    def path(self) -> FlowPath:
        """What a `fastpure.Denoiser` must have."""
        return FlowPath("flow", self.data_at, self.time_scale)

    def draw(self, random: StepRandom) -> Level:
        return self.at(self.t_max * random.uniform(Purpose.TIME)[:, 0])

    def at(self, times: Tensor) -> Level:
        """The levels of given times, float64 ``[B]``."""
        return Level(1 - times, times, self.path.label(1 - times, times).float())

    def clean(self, x: Tensor, output: Tensor, level: Level) -> Tensor:
        return self.path.clean(x, output, level.column(level.alpha, x), level.column(level.sigma, x))

    def loss(self, output: Tensor, x0: Tensor, noise: Tensor, level: Level) -> Tensor:
        return (output.float() - self.path.target(x0, noise)).square().flatten(1).mean(1)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "flow", **asdict(self)}


@final
@dataclass(frozen=True)
class FlowLoss:
    """Flow matching (Lipman et al. 2022; rectified flow, Liu et al. 2022): the velocity of the straight path to noise.

    For x0 = 2 image - 1, z ~ N(0, I) and s as `FlowTimes` says: the mean over pixels of
    ``(network((1 - s) x0 + s z, label) - (z - x0))^2``, with the sign turned where the network's clean image is at
    time 1. Classes and ``label_dropout`` as in `DenoiserLoss`.
    """

    levels: FlowTimes = FlowTimes()
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    label_dropout: float = 0.0

    def __post_init__(self) -> None:
        check_label_dropout(self.label_dropout)

    @property
    def t_max(self) -> float:
        """Time at which the VP schedule reaches the largest noise relative to the image; 1 without a bound."""
        s = self.levels.t_max
        return 1.0 if s == 1 else min(VP().time_of(math.log((1 - s) / s)), 1.0)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        level = self.levels.draw(batch.random)
        noise = _normal(batch.random, Purpose.NOISE, x0)
        told = told_classes(model, batch, self.label_dropout)
        return self.levels.loss(model(level.noisy(x0, noise), level.labels, *told), x0, noise, level)

    def to_dict(self) -> dict[str, Any]:
        values = {"kind": "flow", "levels": self.levels.to_dict(), "augment": asdict(self.augment)}
        return {**values, **dropout_dict(self.label_dropout)}


@final
@dataclass(frozen=True, eq=False)
class FlowPureLoss:
    """FlowPure (Collaert et al. 2025): the velocity of the straight path from an attacked image to the clean one.

    t ~ U(0, 1) per image: the mean over pixels of
    ``(network((1 - t) attacked + t clean + path_noise n, label) - (clean - attacked))^2``.

    Fields:
        perturbation: "attack" is an image that the classifier mistakes: a uniform start in the Linf ball, then sign
            steps that raise its cross-entropy, within [-1, 1]. "gaussian" is the clean image plus ``sigma`` times
            normal noise, the variant that knows no attack.
        classifier: as in `AddtLoss`, for "attack" only.
        sigma: of the Gaussian, in units of [-1, 1]. `fastpure.methods.flowpure` wants the same.
        eps, step_size, attack_steps: the attack's radius and step in [0, 1] units, and how many.
        path_noise: deviation of the noise on the path.
        data_at, time_scale: the network's, as for `fastpure.Denoiser`.
        augment: applied before everything else.
    """

    perturbation: str = "attack"
    classifier: nn.Module | None = None
    sigma: float = 0.5
    eps: float = 8 / 255
    step_size: float = 2 / 255
    attack_steps: int = 10
    path_noise: float = 0.0
    data_at: int = 1
    time_scale: float = 1000.0
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        one_of("perturbation", self.perturbation, ("attack", "gaussian"))
        if self.perturbation == "attack":
            if self.classifier is None:
                raise ValueError(mistake("classifier", "given for perturbation 'attack'", None))
            require_eval(self.classifier, "classifier")
        elif self.classifier is not None:
            found = type(self.classifier).__name__
            raise ValueError(mistake("classifier", "None for perturbation 'gaussian'", found))
        for name in ("sigma", "eps", "step_size"):
            positive(name, getattr(self, name))
        whole("attack_steps", self.attack_steps, 0)
        if isinstance(self.path_noise, bool) or not 0 <= self.path_noise < math.inf:
            raise ValueError(mistake("path_noise", "a finite number >= 0", self.path_noise))
        FlowPath("flowpure", self.data_at, self.time_scale)  # checks them

    @property
    def path(self) -> FlowPath:
        """What a `fastpure.Denoiser` must have."""
        return FlowPath("flowpure", self.data_at, self.time_scale)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        attacked = self.attacked(x0, batch.labels, batch.random)
        from_clean = 1 - batch.random.uniform(Purpose.TIME)[:, 0]
        s = from_clean.to(x0.dtype).view(-1, 1, 1, 1)
        x = x0 + s * (attacked - x0)
        if self.path_noise:
            x = x + self.path_noise * _normal(batch.random, Purpose.INNER_NOISE, x0)
        labels = self.path.label(torch.ones_like(from_clean), from_clean).float()
        target = self.path.target(x0, attacked)
        return (model(x, labels).float() - target).square().flatten(1).mean(1)

    def attacked(self, x0: Tensor, labels: Tensor, random: StepRandom) -> Tensor:
        """The other end of the path for clean images x0 in [-1, 1], ``[B, C, H, W]``."""
        if self.classifier is None:
            return x0 + self.sigma * _normal(random, Purpose.NOISE, x0)
        eps, step = 2 * self.eps, 2 * self.step_size
        uniform = random.uniform(Purpose.START, x0[0].numel()).to(x0.dtype).view(x0.shape)
        delta = sign_step(x0, eps * (2 * uniform - 1), torch.zeros_like(x0), 0.0, eps)
        for _ in range(self.attack_steps):
            gradient = classification_gradient(self.classifier, labels, delta, lambda point: x0 + point)
            delta = sign_step(x0, delta, gradient, step, eps)
        return x0 + delta

    def to_dict(self) -> dict[str, Any]:
        attack = ("eps", "step_size", "attack_steps")
        names = attack if self.perturbation == "attack" else ("sigma",)
        return {
            "kind": "flowpure",
            "perturbation": self.perturbation,
            **{name: getattr(self, name) for name in (*names, "path_noise", "data_at", "time_scale")},
            "classifier": None if self.classifier is None else weights_digest(self.classifier),
            "augment": asdict(self.augment),
        }


def _normal(random: StepRandom, purpose: Purpose, x0: Tensor) -> Tensor:
    return random.normal(purpose, (x0.shape[1], x0.shape[2], x0.shape[3]))
