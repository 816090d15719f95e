"""``Defense``: purifier and classifier as one module that any attack library can call."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.base import call_constant, call_frozen, require_eval
from ..classifiers.features import probe_classes
from ..classifiers.normalised import Normalised, warn_if_twice
from ..errors import finite, mistake
from ..kernels import Domain, NoiseKeys
from ..methods import Method
from ..nets import Denoiser
from ..reverse import Execution, SplitNoise
from ..shown import Card, described
from ..signatures import suggests_names
from ..threads import layer_work
from .inputs import asking, sealed
from .numbered import Numbered, as_pairs, calls_inside, outermost
from .purifier import Purifier


def _check_classes(purifier: Purifier, classifier: nn.Module) -> None:
    guidance = purifier.method.guidance
    own = guidance.n_classes(purifier.denoiser.image_shape) if guidance is not None else None
    if own is not None and own != (theirs := probe_classes(classifier, purifier.image_shape, "classifier")):
        expected = f"a network for the classifier's {theirs} classes"
        raise ValueError(mistake("auxiliary", expected, f"{own} classes"))


def _normalised(purifier: Purifier, classifier: nn.Module, mean: Any, std: Any) -> nn.Module:
    if mean is None or std is None:
        raise ValueError(mistake("mean and std", "given both or neither", f"mean={mean}, std={std}"))
    guidance = purifier.method.guidance
    if guidance is not None and any(guide is classifier for guide in guidance.networks()):
        remedy = (
            "Normalise it once for both: network = fp.Normalised(network, mean, std), then the method and the defence "
            "with this one"
        )
        found = "the network that guides the method, which would see images that are not normalised"
        raise ValueError(mistake("classifier", "another network where mean and std are given", found, remedy))
    return Normalised(classifier, mean, std)


class Defense(Numbered):
    """classifier(purifier(x)) with the randomness under control.

    ``defense(x)`` takes the next draw of a counter, so that repeated calls see fresh noise as a deployed defence
    would; ``with defense.fixed(draw=0):`` freezes it (the Deterministic White-box setting of ADDT). Weights are
    constants: gradients reach the images only, and no ``.grad`` of a parameter is touched.

    Args:
        purifier: images in [0, 1] to images in [0, 1].
        classifier: images in [0, 1] to logits, in evaluation mode.
        mean, std: for a classifier of normalised images, a number per channel each: it gets (x - mean) / std.
            Everything outside, attacks and budgets too, keeps to [0, 1].

    Warns:
        UserWarning: images seem to be normalised twice.

    Raises:
        TypeError: the arguments are no purifier and no module.
        ValueError: the classifier is in training mode, knows other classes than the method's guide, or guides the
            method without the normalisation given here.
    """

    @suggests_names
    def __init__(
        self, purifier: Purifier, classifier: nn.Module, *, mean: Any = None, std: Any = None
    ) -> None:
        super().__init__()
        if not isinstance(purifier, Purifier):
            remedy = "Write fp.Defense(purifier, classifier)" if isinstance(classifier, Purifier) else ""
            if isinstance(purifier, Denoiser):
                remedy = "Give it a method first: fp.Purifier(denoiser, method)"
            raise TypeError(mistake("purifier", "a fastpure.Purifier", type(purifier).__name__, remedy))
        if not isinstance(classifier, nn.Module):
            expected = "an nn.Module mapping [0, 1] images to logits"
            raise TypeError(mistake("classifier", expected, type(classifier).__name__))
        require_eval(classifier, "classifier")
        if mean is None and std is None:
            warn_if_twice(classifier, "classifier")
        else:
            classifier = _normalised(purifier, classifier, mean, std)
        _check_classes(purifier, classifier)
        self.purifier = purifier
        self.classifier = classifier

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
        sample_ids, draw, domain = self._realisation(x, sample_ids, draw, domain)
        purified = self.purify(x, sample_ids, draw, domain=domain)
        return self.classify(purified, sample_ids, draw, domain=domain)

    def _shown(self) -> Card:
        purifier = self.purifier._shown()
        held = [] if self.held is None else [("noise", f"held: draw {self.held.draw}, {self.held.part}")]
        return Card(
            f"Defense: {self.network_calls} network calls per image",
            (*purifier.rows, ("classifier", described(self.classifier)), *held),
            purifier.more,
            purifier.grids,
        )

    @property
    def network_calls(self) -> int:
        """Of the purifier, and of a classifier that has a diffusion model too."""
        return self.purifier.network_calls + calls_inside(self.classifier)

    @property
    def methods(self) -> tuple[Method, ...]:
        """The one."""
        return self.purifier.methods

    @property
    def execution(self) -> Execution:
        """See ``Purifier.execution``."""
        return self.purifier.execution

    @property
    def noisy_parts(self) -> tuple[str, frozenset[str]]:
        """Those of the method's rows."""
        rows = self.purifier.method.table().rows
        noisy = {"forward" if row.forward else "reverse" for row in rows if row.d != 0.0}
        return self.purifier.method.name, frozenset(noisy)

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

    def classify(
        self,
        purified: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Logits [B, classes] of images that have been purified; the weights are constants.

        The other arguments are for classifiers that draw noise, such as ``DiffusionClassifier``; without a draw they
        take the held one, or go on counting.
        """
        dtype = next((p.dtype for p in self.classifier.parameters()), purified.dtype)
        work = layer_work([self.classifier], math.prod(purified.shape[2:])) * len(purified)
        if draw is None and self.fixed_draw is not None:
            draw, domain = self.fixed_draw, Domain.DEFENSE
        with self.purifier.environment(work):
            if not outermost(self.classifier):
                logits = call_frozen(self.classifier, purified.to(dtype))
            elif draw is None:
                logits = call_constant(self.classifier, purified.to(dtype))
            else:
                with asking(*as_pairs(purified, sample_ids, draw), domain):
                    logits = call_constant(self.classifier, purified.to(dtype))
        return logits.to(purified.dtype)

    def with_purifier(self, purifier: Purifier) -> Defense:
        """Another purifier in front of the same classifier, holding the same noise still as this one does now."""
        other = Defense(purifier, self.classifier)
        other._held = self.held
        return other

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
