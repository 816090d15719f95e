"""Which wrong class a targeted attack drives each image towards."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, final

import torch
from torch import Tensor

from ..errors import mistake, named, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_uniform
from ..shown import Settings
from .base import Problem
from .gradient import Logits, mean_logits
from .naming import by_name, check_names, check_tensor, rows

RULES = ("most-likely", "least-likely", "random")
"""How a target is chosen among the other classes: by the mean logit of the original image, or by chance."""

_DRAW = 2**32 - 1
"""The draw whose noise chooses at random; random starts take the first ones."""


@final
@dataclass(frozen=True, eq=False)
class Targets(Settings):
    """A target class for each image, matched by sample id.

    Attributes:
        labels: int64 [N].
        sample_ids: names of the images, int64 [N], each once; None for the images of one call (or of one data set,
            in `evaluate`) in their order.

    Raises:
        TypeError, ValueError: labels or names are not as described.
    """

    labels: Tensor = field(repr=False)
    sample_ids: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_tensor("targeted", self.labels, torch.int64, 1)
        if self.sample_ids is not None:
            check_names(self.sample_ids, len(self.labels), "labels")

    def named(self, sample_ids: Tensor) -> Targets:
        """The same with names: its own, or these of images [B] in the same order. Raises ValueError: other numbers."""
        if self.sample_ids is not None:
            return self
        return Targets(self.labels, by_name(sample_ids, len(self.labels), "targeted"))


def checked(value: Any) -> str | int | Targets | None:
    """A rule, a class, labels, or None for an untargeted attack.

    Raises:
        TypeError, ValueError: something else.
    """
    if isinstance(value, Tensor):
        return Targets(value.detach())
    if value is None or isinstance(value, Targets) or (isinstance(value, str) and value in RULES):
        return value
    if isinstance(value, str):
        expected = f"one of {', '.join(map(repr, RULES))}, a class, or labels [N]"
        raise ValueError(mistake("targeted", expected, repr(value)))
    return whole("targeted", value)


def targets(
    targeted: str | int | Targets,
    problem: Problem,
    logits: Logits,
    draws: range,
    batch_size: int,
    seed: int,
) -> Tensor:
    """The target class of each image, int64 [B], never the true one.

    Images of the class that is asked for by number go to their most likely other class.

    Args:
        targeted: a rule, a class or labels.
        problem: the images.
        logits, draws, batch_size: what is asked for the likelihood of classes, and how; see ``mean_logits``.
        seed: of the random choice.

    Raises:
        ValueError: no such class, no label of a name, or a label that is the image's own class.
    """
    y, n_classes = problem.y, problem.n_classes
    if not len(y):
        return y.clone()
    if isinstance(targeted, Targets):
        return _given(targeted, problem)
    if targeted == "random":
        keys = NoiseKeys.make(seed, problem.ids, _DRAW, Domain.ATTACK, y.device)
        uniform = philox_uniform(keys, 0, Stream.ATTACK_START, (1, 1, 1)).flatten()
        other = (uniform * (n_classes - 1)).long().clamp(max=n_classes - 2)
        return other + (other >= y)
    fixed = None if isinstance(targeted, str) else whole("targeted", targeted, maximum=n_classes - 1)
    if fixed is not None and not bool((y == fixed).any()):
        return torch.full_like(y, fixed)
    outputs = mean_logits(logits, problem.x, problem.ids, draws, batch_size)
    if targeted == "least-likely":
        return outputs.scatter(1, y[:, None], torch.inf).argmin(1)
    likely = outputs.scatter(1, y[:, None], -torch.inf).argmax(1)
    return likely if fixed is None else torch.where(y == fixed, likely, fixed)


def others_by_logit(outputs: Tensor, y: Tensor) -> Tensor:
    """The wrong classes of each image by falling logit of ``outputs`` [B, classes], int64 [B, classes - 1]."""
    ranked = outputs.scatter(1, y[:, None], -torch.inf).sort(dim=1, descending=True, stable=True).indices
    return ranked[:, :-1]


def _given(targeted: Targets, problem: Problem) -> Tensor:
    known = targeted.named(problem.ids)
    assert known.sample_ids is not None
    at = rows(known.sample_ids, problem.ids, "Give a target for every image that is attacked")
    labels = known.labels[at].to(problem.y.device)
    outside = (labels < 0) | (labels >= problem.n_classes)
    for bad, expected in (
        (outside, f"classes in 0..{problem.n_classes - 1}"),
        (labels == problem.y, "other classes than the true ones"),
    ):
        if bool(bad.any()):
            raise ValueError(mistake("targeted", expected, f"others for {named(problem.ids, bad)}"))
    return labels
