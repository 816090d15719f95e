"""ADBM: fine-tune a denoiser to lead a diffused adversarial image back to the clean one.

Li et al., "ADBM: Adversarial diffusion bridge model for reliable adversarial purification" (ICLR 2025), as its released
code does it.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from ...classifiers import require_eval
from ...errors import mistake, one_of, positive, whole
from ...schedule import VP
from ..batches import Batch, Purpose, StepRandom
from .addt import sign_step
from .base import Augment, Network, classification_gradient, evaluation_mode, inner_network, weights_digest
from .levels import ContinuousTimes, Level


@final
@dataclass(frozen=True, eq=False)
class Bridge:
    """The path from the diffused adversarial image at time T to the clean image at time 0.

    With a = alpha^2(t) and A = alpha^2(T), per image:
    ``x_t = sqrt(a) x0 + sqrt(1 - a) z + delta A (1 - a) / ((1 - A) sqrt(a))``, and the network learns
    ``(x_t - sqrt(a) x0) / sqrt(1 - a)``, the noise that makes its clean estimate x0.

    Fields:
        level, end: noise levels at t and at T >= t.
    """

    level: Level
    end: Level

    @property
    def into_state(self) -> Tensor:
        """Coefficient of delta in the state, float64 ``[B]``."""
        return self.into_target * self.level.sigma

    @property
    def into_target(self) -> Tensor:
        """Coefficient of delta in the target, float64 ``[B]``."""
        kept = self.end.alpha**2 / self.end.sigma**2
        return kept * self.level.sigma / self.level.alpha

    def target(self, noise: Tensor, delta: Tensor) -> Tensor:
        """What the network learns to answer, ``[B, C, H, W]``."""
        return noise + self.level.column(self.into_target, noise) * delta

    def state(self, x0: Tensor, noise: Tensor, delta: Tensor) -> Tensor:
        """x_t, ``[B, C, H, W]``."""
        return self.level.noisy(x0, noise) + self.level.column(self.into_state, x0) * delta


@final
@dataclass(frozen=True, eq=False)
class AdbmLoss:
    """ADBM's loss. The adversarial image is sought with the same t and z that the network then learns from.

    T ~ U[t_end_min, t_end_max], t ~ U[t_min, T]. delta starts uniform in the ball and takes ``attack_steps``
    sign steps that raise the classifier's cross-entropy on the one-step clean estimate.

    Fields:
        classifier: as in `AddtLoss`.
        t_end_min, t_end_max: range of the bridge's end.
        t_min: earliest time.
        end: "batch" draws one T for the whole batch (as released), "image" one per image.
        attack_steps: sign steps.
        eps, step_size: radius and step in [0, 1] units.
        dropout: whether dropout acts in the loss that is differentiated by the weights. The released code leaves
            the network's modules in evaluation mode after the attack, so by default it does not.
        augment: applied before everything else.
        schedule: VP schedule, label 999 t.
    """

    classifier: nn.Module
    t_end_min: float = 0.1
    t_end_max: float = 0.2
    t_min: float = 1e-5
    end: str = "batch"
    attack_steps: int = 3
    eps: float = 8 / 255
    step_size: float = 8 / 255
    dropout: bool = False
    augment: Augment = Augment()  # noqa: RUF009 (a frozen value)
    schedule: VP = VP()  # noqa: RUF009 (a frozen value)

    def __post_init__(self) -> None:
        require_eval(self.classifier, "classifier")
        if not 0 < self.t_min < self.t_end_min <= self.t_end_max <= 1:
            expected = "0 < t_min < t_end_min <= t_end_max <= 1"
            raise ValueError(
                mistake("t_min, t_end_min, t_end_max", expected, (self.t_min, self.t_end_min, self.t_end_max))
            )
        one_of("end", self.end, ("batch", "image"))
        whole("attack_steps", self.attack_steps, 0)
        positive("eps", self.eps)
        positive("step_size", self.step_size)

    @property
    def levels(self) -> ContinuousTimes:
        """The noise levels and network conventions of this loss."""
        return ContinuousTimes(self.t_min, self.t_end_max, self.schedule)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        x0 = 2 * self.augment(batch.images, batch.random) - 1
        bridge = self.bridge(batch.random, len(x0))
        noise = batch.random.normal(Purpose.NOISE, (x0.shape[1], x0.shape[2], x0.shape[3]))
        with inner_network(model, dropout=False) as network:
            delta = self.perturbation(network, x0, batch.labels, bridge, noise, batch.random)
        x, target = bridge.state(x0, noise, delta), bridge.target(noise, delta)
        with nullcontext() if self.dropout else evaluation_mode(model):
            output = model(x, bridge.level.labels)
        return (output.float() - target).square().flatten(1).mean(1)

    def bridge(self, random: StepRandom, count: int) -> Bridge:
        """End time and times of a batch of ``count`` images."""
        drawn = (
            random.shared(Purpose.END_TIME).expand(count)
            if self.end == "batch"
            else random.uniform(Purpose.END_TIME)[:, 0]
        )
        end = self.t_end_min + (self.t_end_max - self.t_end_min) * drawn
        times = self.t_min + (end - self.t_min) * random.uniform(Purpose.TIME)[:, 0]
        return Bridge(self.levels.at(times), self.levels.at(end))

    def perturbation(
        self,
        network: Network,
        x0: Tensor,
        labels: Tensor,
        bridge: Bridge,
        noise: Tensor,
        random: StepRandom,
    ) -> Tensor:
        """delta in model space, ``[B, C, H, W]``: inside the ball, and x0 + delta in [-1, 1]."""
        eps, step = 2 * self.eps, 2 * self.step_size
        uniform = random.uniform(Purpose.START, x0[0].numel()).to(x0.dtype).view(x0.shape)
        delta = sign_step(x0, eps * (2 * uniform - 1), torch.zeros_like(x0), 0.0, eps)

        def clean_of(point: Tensor) -> Tensor:
            x = bridge.state(x0, noise, point)
            return self.levels.clean(x, network(x, bridge.level.labels), bridge.level)

        for _ in range(self.attack_steps):
            gradient = classification_gradient(self.classifier, labels, delta, clean_of)
            delta = sign_step(x0, delta, gradient, step, eps)
        return delta

    def to_dict(self) -> dict[str, Any]:
        names = ("t_end_min", "t_end_max", "t_min", "end", "attack_steps", "eps", "step_size", "dropout")
        return {
            "kind": "adbm",
            **{name: getattr(self, name) for name in names},
            "classifier": weights_digest(self.classifier),
            "augment": asdict(self.augment),
            "schedule": asdict(self.schedule),
        }
