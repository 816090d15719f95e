"""``NoisedDiffusionClassifier``: a diffusion classifier's posterior, averaged over Gaussian noise on the image."""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from ..errors import mistake, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal
from ..kernels.keys import STEP_MAX
from .diffusion_classifier import DiffusionClassifier
from .inputs import check_range, sealed
from .numbered import Numbered, as_pairs

_MOST = 128


@final
class NoisedDiffusionClassifier(Numbered):
    """log of the mean of softmax(model(x + sigma n_j)) over ``n_noised`` noises n_j: NRDC (Chen et al. 2024).

    The mean over infinitely many noises is a classifier that can be certified, which `fastpure.certify` does
    (``PosteriorSmoothing``); with few of them this is its cheap estimate, random in a draw's number.

    Args:
        model: with a ``sigma``, whose logits are for images that carry that noise. Its noise belongs to the same draws.
        n_noised: noisy images per answer.

    Raises:
        TypeError, ValueError: another model, or one for clean images.
    """

    def __init__(self, model: DiffusionClassifier, n_noised: int = 8) -> None:
        super().__init__()
        if not isinstance(model, DiffusionClassifier):
            raise TypeError(mistake("model", "a fastpure.DiffusionClassifier", type(model).__name__))
        if model.sigma is None:
            remedy = "Give it sigma, the deviation of the noise in [0, 1] units"
            raise ValueError(
                mistake("model", "one for noisy images", "DiffusionClassifier(sigma=None)", remedy)
            )
        self.model = model
        self.n_noised = whole("n_noised", n_noised, 1, _MOST)

    @property
    def sigma(self) -> float:
        """Deviation of the noise in [0, 1] units."""
        assert self.model.sigma is not None
        return self.model.sigma

    @property
    def n_classes(self) -> int:
        """How many logits there are."""
        return self.model.n_classes

    @property
    def network_calls(self) -> int:
        """``n_noised`` times those of the model."""
        return self.n_noised * self.model.network_calls

    @property
    def noisy_parts(self) -> tuple[str, frozenset[str]]:
        """Its noise is of one kind."""
        return type(self).__name__, frozenset()

    @sealed
    def forward(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor | None = None,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Log-posteriors [B, classes] of images ``x`` [B, C, H, W] in [0, 1]; arguments as for a ``Defense``."""
        if len(x):
            check_range(x)
        sample_ids, draw, domain = self._realisation(x, sample_ids, draw, domain)
        ids, draws = as_pairs(x, sample_ids, draw)
        n = self.n_noised
        # Draw d has the noises d n .. d n + n - 1.
        each = (draws[:, None] * n + torch.arange(n, device=x.device)) % (1 << 32)
        many, names = x.repeat_interleave(n, 0), ids.repeat_interleave(n)
        found = self.log_posteriors(many, names, each.flatten(), domain)
        return found.unflatten(0, (len(x), n)).logsumexp(1) - math.log(n)

    def log_posteriors(self, x: Tensor, ids: Tensor, draws: Tensor, domain: Domain) -> Tensor:
        """Log-probabilities [N, classes] for the one noise of each (id, draw), int64 [N]; x [N, C, H, W] in [0, 1]."""
        keys = NoiseKeys.make(self.model.seed, ids, draws, domain, x.device)
        # A step that the model's levels never reach, in a stream that no purifier has.
        noise = philox_normal(keys, STEP_MAX, Stream.CLASSIFIER, tuple(x.shape[1:]), dtype=x.dtype)
        return self.model(x + self.sigma * noise, ids, draws, domain=domain).log_softmax(1)

    def extra_repr(self) -> str:
        """The number of noises, for printing and for what identifies it."""
        return f"n_noised={self.n_noised}"
