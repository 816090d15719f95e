"""Purifiers and defences as users of ART and RobustBench call them.

    PyTorchClassifier(classifier, ..., preprocessing_defences=as_art_preprocessor(purifier))
    robustbench.benchmark(as_robustbench(defense), dataset="cifar10", threat_model="Linf", eps=8 / 255)

Written from their documented calling conventions. RobustBench itself is not needed, ART only for the first.
"""

from __future__ import annotations

import warnings
from typing import Any, final

from torch import Tensor, nn

from ..errors import MissingExtra, mistake, whole
from .defense import Defense
from .numbered import same_noise
from .purifier import Purifier


def as_art_preprocessor(purifier: Purifier, *, draw: int | None = None) -> Any:
    """``purifier`` as an ``art.defences.preprocessor.PreprocessorPyTorch``, applied at prediction only.

    Gradients are exact: ART differentiates through the very purification it computed.

    Args:
        purifier: of [0, 1] images [B, C, H, W]; give the estimator ``clip_values=(0, 1)``.
        draw: the realisation of the noise, the same for every image in any batch; None takes the next one for each
            call, so that ART's attacks and predictions see fresh noise as a deployed defence has it.

    Raises:
        MissingExtra: ART is not installed.
        TypeError, ValueError: not a purifier; a draw that is no draw.
    """
    if not isinstance(purifier, Purifier):
        raise TypeError(mistake("purifier", "a fastpure.Purifier", type(purifier).__name__))
    fixed = None if draw is None else whole("draw", draw, maximum=2**32 - 1)
    try:
        from .art_preprocessor import PurifierPreprocessor
    except ImportError as error:
        raise MissingExtra("adversarial-robustness-toolbox", "art", "as_art_preprocessor") from error
    return PurifierPreprocessor(purifier, fixed)


def as_robustbench(defense: Defense, *, draw: int | None = 0) -> RobustBenchModel:
    """``defense`` as a model that ``robustbench.benchmark`` takes: [0, 1] images to logits.

    RobustBench counts only models that answer deterministically, and its standard AutoAttack believes what it saw
    once. So the noise is held: a model of its own, whose noise the attacker knows. Its number is not that of the random
    defence; measure that with ``fp.evaluate`` and fresh draws.

    Args:
        draw: the realisation of the noise that is held, the same for every image in any batch; None keeps the defence
            random, with a warning.

    Raises:
        TypeError, ValueError: not a defence; a draw that is no draw.
    """
    if not isinstance(defense, Defense):
        raise TypeError(mistake("defense", "a fastpure.Defense", type(defense).__name__))
    return RobustBenchModel(defense, None if draw is None else whole("draw", draw, maximum=2**32 - 1))


@final
class RobustBenchModel(nn.Module):
    """See `as_robustbench`."""

    def __init__(self, defense: Defense, draw: int | None) -> None:
        super().__init__()
        self.defense, self.draw = defense, draw
        self.eval()
        if draw is None:
            warnings.warn(
                "RobustBench counts deterministic models only: against a random one its standard AutoAttack keeps "
                "images that were misclassified by luck and drops steps that were right. Hold a draw, or use "
                "fp.evaluate",
                RuntimeWarning,
                stacklevel=3,
            )

    def forward(self, x: Tensor) -> Tensor:
        """Logits [B, classes] of ``x`` [B, C, H, W] in [0, 1], differentiable."""
        return self.defense(x) if self.draw is None else self.defense(x, *same_noise(x, self.draw))
