"""What is smoothed: a classifier of noisy images, which may be random itself."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..classifiers import call_frozen, require_eval
from ..errors import finite, mistake
from ..kernels import Domain, NoiseKeys
from ..nets import Conditioning, Denoiser
from ..purify import Defense
from ..schedule import VP, DiscreteVP
from ..shown import Card, ShownModule, brief, described
from .bounds import check_sigma

COMBINE: dict[str, Callable[[Tensor], Tensor]] = {
    "logits": lambda logits: logits,
    "softmax": lambda logits: logits.softmax(1),
    "majority": lambda logits: F.one_hot(logits.argmax(1), logits.shape[1]).to(logits.dtype),
}
"""What the logits of one clean version [B, classes] add to the scores of its noisy image."""


class SmoothedBase(ShownModule, nn.Module, ABC):
    """A base classifier for `Smoothing`: scores of noisy images, in evaluation mode.

    It may draw noise of its own. The vote of a noisy image is then random given that image, and the certificate of
    Cohen et al. 2019 holds all the same: it speaks of the probability of a class, whatever that is made of, if the
    draws are independent. They are: keys name the noisy image, and streams keep its own noise from what is drawn here.

    Attributes:
        sigma: deviation of the noise that it expects, in [0, 1] units; None if it does not know.
        n_versions: how many numbers of draws of its own one noisy image uses up.
    """

    sigma: float | None = None
    n_versions: int = 1

    @abstractmethod
    def forward(self, noisy: Tensor, keys: NoiseKeys | None = None) -> Tensor:
        """Scores [B, classes], the largest of which is the vote, of images [B, C, H, W] in [0, 1] units, unclamped.

        ``keys`` name them: whatever is random is a function of these keys with another stream than ``FORWARD``.
        """

    def _shown(self) -> Card:
        settings = {name: value for name, value in self.settings().items() if name != "base"}
        sigma = [] if self.sigma is None else [("sigma", f"{self.sigma:g}")]
        parts = [(name, described(part)) for name, part in self.named_children()]
        told = [(name, brief(value)) for name, value in settings.items()]
        return Card(f"{type(self).__name__}, to be smoothed", (*parts, *sigma, *told))

    def settings(self) -> dict[str, Any]:
        """What tells it from others with the same networks; part of what a continued file must match."""
        return {}

    def label(self) -> str:
        """What to call it in messages."""
        return type(self).__name__


@final
class Undenoised(SmoothedBase):
    """A plain module from noisy images to logits as a base classifier, without noise of its own."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = require_eval(module, "model")
        own = getattr(module, "sigma", None)
        self.sigma = own if isinstance(own, float) else None
        self.training = False

    def forward(self, noisy: Tensor, keys: NoiseKeys | None = None) -> Tensor:
        """The module's logits."""
        logits: Tensor = call_frozen(self.module, noisy)
        return logits

    def label(self) -> str:
        """The module's class."""
        return type(self.module).__name__


class DenoisedBase(SmoothedBase):
    """Denoises, classifies and combines: clean versions of a noisy image go to a classifier trained on clean ones.

    The noisy image u + sigma n is scaled to the diffusion state alpha (2 (u + sigma n) - 1), whose noise level is
    sigma_t / alpha = 2 sigma (Carlini et al. 2022). A subclass says which clean versions it makes of that.

    Args:
        denoiser: any convention. One with integer time is told the first index at least as noisy as the image.
        classifier: images in [0, 1] to logits, evaluation mode.
        sigma: deviation of the noise in [0, 1] units.

    Attributes:
        combine: of ``COMBINE``, how the logits of the versions become scores.
        options: the arguments that it takes besides these three.
        denoiser_calls: for one noisy image.

    Raises:
        TypeError, ValueError: networks of the wrong kind, or a ``sigma`` beyond the schedule's last level.
    """

    combine: str = "logits"
    options: ClassVar[tuple[str, ...]] = ()
    denoiser_calls: int = 1
    sigma: float

    def __init__(self, denoiser: Denoiser, classifier: nn.Module, sigma: float) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise TypeError(mistake("denoiser", "a fastpure.Denoiser", type(denoiser).__name__))
        denoiser.check_levels()
        denoiser.check_needs_no_class()
        self.sigma = check_sigma(sigma)
        self.denoiser = denoiser.frozen()
        self.classifier = require_eval(classifier, "classifier")
        ratio = 2 * self.sigma
        self.t, self.index = time_of(ratio)
        self.alpha = 1 / math.sqrt(1 + ratio * ratio)
        self._conditioning: Conditioning | None = None
        self.eval()

    @abstractmethod
    def versions(self, noisy: Tensor, keys: NoiseKeys) -> Iterator[Tensor]:
        """``n_versions`` images [B, C, H, W] in [0, 1] units for the classifier, one after the other."""

    def clean(self, noisy: Tensor) -> Tensor:
        """One step's estimate of the clean images [B, C, H, W] in [0, 1] from noisy ones in [0, 1] units."""
        if self._conditioning is None:
            columns = (999 * self.t, self.index, self.alpha, 2 * self.sigma * self.alpha)
            with torch.no_grad():
                self._conditioning = self.denoiser.conditioning(*(np.array([value]) for value in columns))
        x = self.alpha * (2 * noisy - 1)
        predicted = self.denoiser.noise_pred(x, self._conditioning, 0)
        x0 = x / self.alpha - 2 * self.sigma * predicted
        return ((x0 + 1) / 2).clamp(0.0, 1.0)

    def forward(self, noisy: Tensor, keys: NoiseKeys | None = None) -> Tensor:
        """Scores [B, classes]; without ``keys`` the images have seed 0, ids 0..B-1 and draw 0.

        Raises:
            NonFiniteError: the classifier answers NaN or Inf.
        """
        if keys is None:
            keys = NoiseKeys.make(0, range(len(noisy)), 0, Domain.CERTIFICATE, noisy.device)
        total: Tensor | None = None
        for image in self.versions(noisy, keys):
            logits = call_frozen(self.classifier, image)
            # Before votes are counted: NaN has a largest entry too.
            finite(logits, keys.sample_ids, f"the classifier {type(self.classifier).__name__}")
            part = COMBINE[self.combine](logits)
            total = part if total is None else total + part
        assert total is not None
        return total

    def version_keys(self, keys: NoiseKeys, version: int) -> NoiseKeys:
        """Keys of one version's own noise: draws of a number that no other version of any draw has."""
        return NoiseKeys(keys.seed, keys.sample_ids, keys.draws * self.n_versions + version, keys.domain)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        # The weights may have moved: what was computed from them is made again where they are.
        self._forget()
        return super()._apply(fn, recurse)

    def _forget(self) -> None:
        self._conditioning = None


def as_base(model: nn.Module) -> SmoothedBase:
    """``model`` in evaluation mode as a base classifier.

    Raises:
        TypeError, ValueError: it is no module, a ``Defense``, or in training mode.
    """
    if isinstance(model, SmoothedBase):
        require_eval(model, "model")
        return model
    if isinstance(model, Defense):
        got = "a Defense, which refuses noisy images, because they leave [0, 1]"
        remedy = "Use fastpure.certify.OneShotClassifier(denoiser, classifier, sigma)"
        raise TypeError(mistake("model", "a SmoothedBase or a classifier of noisy images", got, remedy))
    return Undenoised(model)


def time_of(ratio: float) -> tuple[float, int]:
    """Continuous time and first discrete index whose noise-to-signal ratio is (at least) ``ratio``."""
    t = VP().time_of(-math.log(ratio))
    bars = DiscreteVP().alpha_bars
    enough = np.flatnonzero(np.sqrt((1 - bars) / bars) >= ratio)
    if t > 1 or not len(enough):
        most = VP().sigma(1.0) / VP().alpha(1.0) / 2
        raise ValueError(mistake("sigma", f"at most {most:.3g}, the schedule's last level", ratio / 2))
    return t, int(enough[0])
