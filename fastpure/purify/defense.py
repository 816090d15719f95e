"""``Defense``: purifier and classifier as one module that any attack library can call."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..classifiers.features import probe_classes
from ..errors import finite, mistake, one_of, whole
from ..kernels import Domain, NoiseKeys
from ..reverse import SplitNoise
from ..threads import layer_work
from .inputs import Held, current_question, held_noise, holding, sealed
from .purifier import Purifier

_COUNTING = threading.Lock()

PARTS = ("all", "forward", "reverse")
"""What ``Defense.fixed`` can hold still: all noise, that of the diffusion only, that of the reverse steps only."""


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
        self._held: Held | None = None

    @sealed
    def forward(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Logits [B, classes] of images ``x`` [B, C, H, W] float32 in [0, 1]; arguments as for ``Purifier``.

        ``draw=None`` takes the frozen draw inside ``fixed``; where a module around this defence is being attacked
        or evaluated, the draw and ids asked for; and the next draw of a counter otherwise.
        """
        require_eval(self.classifier, "classifier")
        purified = self.purify(x, sample_ids, draw, domain=domain)
        return self.classify(purified)

    def purify(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """The purified images the classifier sees, [B, C, H, W]; arguments as for calling the defence."""
        sample_ids, draw, domain = self._realisation(x, sample_ids, draw, domain)
        noise = self._split_noise(x, sample_ids, draw, domain)
        return self.purifier(x, sample_ids, draw, noise=noise, domain=domain)

    def trajectory(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Every state of the purification as ``Purifier.trajectory`` gives it; arguments as for calling."""
        sample_ids, draw, domain = self._realisation(x, sample_ids, draw, domain)
        noise = self._split_noise(x, sample_ids, draw, domain)
        return self.purifier.trajectory(x, sample_ids, draw, noise=noise, domain=domain)

    def classify(self, purified: Tensor) -> Tensor:
        """Logits [B, classes] of images that have been purified; the weights are constants."""
        dtype = next((p.dtype for p in self.classifier.parameters()), purified.dtype)
        work = layer_work([self.classifier], math.prod(purified.shape[2:])) * len(purified)
        with self.purifier.environment(work):
            return call_frozen(self.classifier, purified.to(dtype)).to(purified.dtype)

    @contextmanager
    def fixed(self, draw: int = 0, part: str = "all") -> Iterator[Defense]:
        """Use one draw for every call of this thread inside the block: the same noise for attacker and evaluation.

        ``part`` "forward" holds only the noise that diffuses the input, "reverse" only that of the reverse
        steps; the other part stays random, and ``draw`` of a call numbers it.

        Raises:
            ValueError: the method has no such part to hold, so that nothing would be fixed.
        """
        held = Held(whole("draw", draw, maximum=2**32 - 1), one_of("part", part, PARTS))
        rows = self.purifier.method.table().rows
        noisy = {"forward" if row.forward else "reverse" for row in rows if row.d != 0.0}
        if part != "all" and part not in noisy:
            choices = ", ".join(repr(name) for name in PARTS if name == "all" or name in noisy)
            expected = f"one of {choices} for {self.purifier.method.name}, which has no other noise"
            raise ValueError(mistake("part", expected, repr(part)))
        with holding(self, held):
            yield self

    @property
    def held(self) -> Held | None:
        """The noise that ``fixed`` holds in this thread, if any."""
        return held_noise(self) or self._held

    @property
    def fixed_draw(self) -> int | None:
        """The frozen draw where ``fixed`` holds all noise, else None. Attacks and evaluations honour it."""
        return self.held.draw if self.held is not None and self.held.part == "all" else None

    def with_purifier(self, purifier: Purifier) -> Defense:
        """Another purifier in front of the same classifier, holding the same noise still as this one does now."""
        other = Defense(purifier, self.classifier)
        other._held = self.held
        return other

    def train(self, mode: bool = True) -> Defense:
        """Keep evaluation mode: attack libraries toggle it, and a defence under attack is never trained."""
        return self

    @torch.no_grad()
    def predict(
        self, x: Tensor, sample_ids: Tensor | list[int] | None = None, draw: int | Tensor | None = None
    ) -> Tensor:
        """Predicted classes int64 [B].

        Raises:
            NonFiniteError: the classifier answers NaN or Inf. Calling the defence returns what it answers.
        """
        ids = torch.as_tensor(range(len(x)) if sample_ids is None else sample_ids, device=x.device)
        logits = finite(self(x, sample_ids, draw), ids, f"the classifier {type(self.classifier).__name__}")
        return logits.argmax(1)

    def _realisation(
        self, x: Tensor, sample_ids: Tensor | list[int] | None, draw: int | Tensor | None, domain: Domain
    ) -> tuple[Tensor | list[int] | None, int | Tensor, Domain]:
        """Ids, draw and domain of a call: those given, the held draw, those asked for around it, or the next draw."""
        if draw is not None:
            return sample_ids, draw, domain
        question = current_question()
        if question is not None:
            ids, draw, domain = question.take(self, len(x))
            sample_ids = ids if sample_ids is None else sample_ids
        if self.fixed_draw is not None:
            return sample_ids, self.fixed_draw, Domain.DEFENSE if question is not None else domain
        if draw is not None:
            return sample_ids, draw, domain
        with _COUNTING:
            self._next_draw += 1
            return sample_ids, self._next_draw - 1, domain

    def _split_noise(
        self, x: Tensor, sample_ids: Tensor | list[int] | None, draw: int | Tensor, domain: Domain
    ) -> SplitNoise | None:
        held = self.held
        if held is None or held.part == "all":
            return None
        ids = range(len(x)) if sample_ids is None else sample_ids
        seed = self.purifier.seed
        free = NoiseKeys.make(seed=seed, sample_ids=ids, draw=draw, domain=domain, device=x.device)
        still = NoiseKeys.make(
            seed=seed, sample_ids=ids, draw=held.draw, domain=Domain.DEFENSE, device=x.device
        )
        return SplitNoise(still, free) if held.part == "forward" else SplitNoise(free, still)
