"""``Defense``: purifier and classifier as one module that any attack library can call."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..classifiers.features import probe_classes
from ..errors import mistake, whole
from ..kernels import Domain
from .purifier import Purifier


def _check_classes(purifier: Purifier, classifier: nn.Module) -> None:
    guidance = purifier.method.guidance
    own = guidance.n_classes(purifier.denoiser.image_shape) if guidance is not None else None
    if own is not None and own != (theirs := probe_classes(classifier, purifier.image_shape, "classifier")):
        expected = f"a network for the classifier's {theirs} classes"
        raise ValueError(mistake("auxiliary", expected, f"{own} classes"))


class Defense(nn.Module):
    """classifier(purifier(x)) with the randomness under control.

    ``defense(x)`` takes the next draw of a counter, so that repeated calls see fresh noise as a deployed defence
    would; ``with defense.fixed(draw=0):`` freezes it (the Deterministic White-box setting of ADDT). Weights are
    constants: gradients reach the images only, and no ``.grad`` of a parameter is touched.
    """

    def __init__(self, purifier: Purifier, classifier: nn.Module) -> None:
        super().__init__()
        self.training = False
        if not isinstance(purifier, Purifier):
            raise TypeError(mistake("purifier", "a fastpure.Purifier", type(purifier).__name__))
        if not isinstance(classifier, nn.Module):
            expected = "an nn.Module mapping [0, 1] images to logits"
            raise TypeError(mistake("classifier", expected, type(classifier).__name__))
        require_eval(classifier, "classifier")
        _check_classes(purifier, classifier)
        self.purifier = purifier
        self.classifier = classifier
        self._next_draw = 0
        self._fixed: int | None = None

    def forward(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Logits [B, classes] of images ``x`` [B, C, H, W] float32 in [0, 1]; arguments as for ``Purifier``.

        ``draw=None`` takes the frozen draw inside ``fixed`` and the next one of the counter otherwise.
        """
        require_eval(self.classifier, "classifier")
        purified = self.purifier(x, sample_ids, self._draw(draw), domain=domain)
        dtype = next((p.dtype for p in self.classifier.parameters()), purified.dtype)
        return call_frozen(self.classifier, purified.to(dtype)).to(purified.dtype)

    @contextmanager
    def fixed(self, draw: int = 0) -> Iterator[Defense]:
        """Use one draw for every call inside the block: the same noise for attacker and evaluation."""
        before, self._fixed = self._fixed, whole("draw", draw, maximum=2**32 - 1)
        try:
            yield self
        finally:
            self._fixed = before

    @property
    def fixed_draw(self) -> int | None:
        """The frozen draw inside ``fixed``, else None. Attacks and evaluations honour it."""
        return self._fixed

    def train(self, mode: bool = True) -> Defense:
        """Keep evaluation mode: attack libraries toggle it, and a defence under attack is never trained."""
        return self

    @torch.no_grad()
    def predict(
        self, x: Tensor, sample_ids: Tensor | list[int] | None = None, draw: int | Tensor | None = None
    ) -> Tensor:
        """Predicted classes int64 [B]."""
        return self(x, sample_ids, draw).argmax(1)

    def _draw(self, draw: int | Tensor | None) -> int | Tensor:
        if draw is not None:
            return draw
        if self._fixed is not None:
            return self._fixed
        self._next_draw += 1
        return self._next_draw - 1
