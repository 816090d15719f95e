"""Attacks as users of other libraries call them: torchattacks, pyautoattack (AutoAttack), ART and foolbox.

    atk = fp.attacks.as_torchattack(fp.attacks.APGDCE(eps=8 / 255), model)
    x_adv = atk(images, labels)

Written from their documented calling conventions; none of the packages is needed. What comes back are the adversarial
images; whether they fool the model is to be judged on fresh draws, which `attack(model, x, y)` and `evaluate` do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import mistake, whole
from ..purify import Target
from .base import Attack, AttackResult


def as_torchattack(attack: Attack, model: nn.Module | Target) -> TorchAttack:
    """``attack`` on ``model`` with torchattacks' call ``atk(images, labels) -> adv_images``."""
    return TorchAttack(*_checked(attack, model))


def as_autoattack(attack: Attack, model: nn.Module | Target) -> StandardEvaluation:
    """``attack`` on ``model`` with AutoAttack's call ``adversary.run_standard_evaluation(x, y, bs=...) -> x_adv``."""
    return StandardEvaluation(*_checked(attack, model))


def as_art(attack: Attack, model: nn.Module | Target) -> ArtAttack:
    """``attack`` on ``model`` with ART's call ``attack.generate(x=..., y=...) -> x_adv``, all NumPy arrays."""
    return ArtAttack(*_checked(attack, model))


def as_foolbox(attack: Attack, model: nn.Module | Target) -> FoolboxAttack:
    """``attack`` on ``model`` with foolbox' call ``attack(fmodel, images, labels, epsilons=...)``.

    ``model`` is the module inside ``fmodel``, asked by name so that its noise has numbers.
    """
    return FoolboxAttack(*_checked(attack, model))


@final
@dataclass(frozen=True, eq=False)
class TorchAttack:
    """See `as_torchattack`."""

    attack: Attack
    model: nn.Module | Target

    def __call__(self, images: Tensor, labels: Tensor, sample_ids: Tensor | None = None) -> Tensor:
        """Adversarial images [B, C, H, W] float32 in [0, 1], on the device of ``images``.

        Args:
            images: [B, C, H, W] float32 in [0, 1].
            labels: int64 [B], true classes.
            sample_ids: int64 [B], names of the images for the noise; 0..B-1 if None. Give others in every call, and the
                noise of one batch is not that of the next.

        Raises:
            TypeError, ValueError: as for the attack itself.
        """
        return self.attack(self.model, images, labels, sample_ids=sample_ids).x_adv

    forward = __call__


@final
@dataclass(frozen=True, eq=False)
class StandardEvaluation:
    """See `as_autoattack`."""

    attack: Attack
    model: nn.Module | Target

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        *,
        batch_size: int | None = None,
    ) -> Any:
        """Adversarial images [N, C, H, W] on the device of ``x_orig``; prints clean and robust accuracy.

        Unlike there, an image that the model misclassifies comes back attacked as well.

        Args:
            x_orig: [N, C, H, W] float32 in [0, 1].
            y_orig: int64 [N], true classes.
            bs: images attacked together; pyautoattack calls it ``batch_size``.
            return_labels: also return the predicted classes int64 [N] of the adversarial images.

        Raises:
            TypeError, ValueError: as for the attack itself.
        """
        size = whole("bs", bs if batch_size is None else batch_size, 1)
        result = _in_batches(self.attack, self.model, x_orig, y_orig, size)
        print(result)
        x_adv = result.x_adv.to(x_orig.device)
        return (x_adv, _classes(self.model, x_adv, size)) if return_labels else x_adv


@final
@dataclass(frozen=True, eq=False)
class ArtAttack:
    """See `as_art`."""

    attack: Attack
    model: nn.Module | Target
    batch_size: int = 32

    def generate(self, x: np.ndarray, y: np.ndarray | None = None, **ignored: Any) -> np.ndarray:
        """Adversarial images float32 [N, C, H, W].

        Args:
            x: [N, C, H, W] in [0, 1].
            y: true classes [N], or one-hot [N, classes]; the model's own predictions if None, as in ART.

        Raises:
            TypeError, ValueError: as for the attack itself, or an argument it does not have, such as ``mask``.
        """
        if given := [name for name, value in ignored.items() if value is not None]:
            raise ValueError(mistake("generate", "called with x and y", ", ".join(given)))
        device = next((p.device for p in _module(self.model).parameters()), torch.device("cpu"))
        images = torch.as_tensor(np.asarray(x, dtype=np.float32)).to(device)
        if y is None:
            labels = _classes(self.model, images, self.batch_size)
        else:
            labels = torch.as_tensor(np.asarray(y))
            labels = (labels.argmax(1) if labels.ndim == 2 else labels).to(device, torch.int64)
        result = _in_batches(self.attack, self.model, images, labels, self.batch_size)
        return result.x_adv.cpu().numpy()


@final
@dataclass(frozen=True, eq=False)
class FoolboxAttack:
    """See `as_foolbox`."""

    attack: Attack
    model: nn.Module | Target
    batch_size: int = 32

    def __call__(
        self,
        model: Any,
        inputs: Tensor,
        criterion: Any,
        *,
        epsilons: float | Sequence[float | None] | np.ndarray | Tensor | None = None,
        **ignored: Any,
    ) -> tuple[Any, Any, Tensor]:
        """Adversarial images [N, C, H, W] twice (always clipped), and success bool [N]; lists for several radii.

        Success is not the answer of one draw: at least half of the attack's ``eval_draws`` fresh ones are wrong.

        Args:
            model: a foolbox model around this attack's one, with bounds (0, 1) and without preprocessing.
            inputs: [N, C, H, W] float32 in [0, 1].
            criterion: true classes int64 [N], or foolbox' ``Misclassification`` of them.
            epsilons: one radius, or several (also as a vector, such as ``np.linspace(0, 0.1, 5)``); the attack's own if
                None. Several add a first axis to success.

        Raises:
            TypeError, ValueError: as for the attack itself, another criterion, bounds or an argument it does not have.
        """
        if given := [name for name, value in ignored.items() if value is not None]:
            raise ValueError(
                mistake("attack", "called with model, inputs, criterion, epsilons", ", ".join(given))
            )
        bounds = tuple(getattr(model, "bounds", (0, 1)))
        if bounds != (0, 1):
            raise ValueError(mistake("model", "one with bounds (0, 1)", bounds))
        labels = getattr(criterion, "labels", criterion)
        labels = getattr(labels, "raw", labels)  # eagerpy's tensors hold torch's
        if not isinstance(labels, Tensor):
            expected = "true classes, or Misclassification of them"
            remedy = "For targets use Targets of fastpure's PGD or APGD"
            raise TypeError(mistake("criterion", expected, type(criterion).__name__, remedy))
        radii = _plain(epsilons)
        several = isinstance(radii, Sequence)
        found = [
            _in_batches(self._within(eps), self.model, inputs, labels, self.batch_size)
            for eps in (radii if isinstance(radii, Sequence) else [radii])
        ]
        images = [result.x_adv.to(inputs.device) for result in found]
        success = torch.stack([2 * result.robust_correct.double().mean(1) <= 1 for result in found])
        success = success.to(inputs.device)
        return (images, list(images), success) if several else (images[0], images[0], success[0])

    def _within(self, eps: float | None) -> Attack:
        if eps is None:
            return self.attack
        if "eps" not in {field.name for field in fields(self.attack)}:  # type: ignore[arg-type]
            raise ValueError(mistake("epsilons", f"None for {type(self.attack).__name__}", eps))
        return replace(self.attack, eps=eps)  # type: ignore[type-var]


def _plain(epsilons: Any) -> float | Sequence[float | None] | None:
    """Numbers of NumPy and torch as Python's own."""
    if not isinstance(epsilons, np.ndarray | np.generic | Tensor):
        return epsilons
    if epsilons.ndim > 1:
        raise ValueError(
            mistake("epsilons", "a number or a vector of numbers", f"shape {list(epsilons.shape)}")
        )
    return epsilons.tolist()


def _in_batches(
    attack: Attack, model: nn.Module | Target, x: Tensor, y: Tensor, batch_size: int
) -> AttackResult:
    ids = torch.arange(len(x))
    known = attack.named(ids)
    parts = [
        known(model, x[i : i + batch_size], y[i : i + batch_size], sample_ids=ids[i : i + batch_size])
        for i in range(0, max(len(x), 1), batch_size)
    ]
    return AttackResult.joined(parts)


@torch.no_grad()
def _classes(model: nn.Module | Target, x: Tensor, batch_size: int) -> Tensor:
    """Predicted classes int64 [N], by the next draws where the model draws noise."""
    module = _module(model)
    parts = [module(x[i : i + batch_size]).argmax(1) for i in range(0, len(x), batch_size)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def _module(model: nn.Module | Target) -> nn.Module:
    return model.module if isinstance(model, Target) else model


def _checked(attack: Any, model: Any) -> tuple[Attack, nn.Module | Target]:
    if not isinstance(attack, Attack):
        raise TypeError(mistake("attack", "an attack of fastpure", type(attack).__name__))
    if not isinstance(model, nn.Module | Target):
        raise TypeError(mistake("model", "a torch module", type(model).__name__))
    return attack, model
