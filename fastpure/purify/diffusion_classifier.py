"""``DiffusionClassifier``: a class-conditional diffusion model as a classifier, by Bayes' rule.

Chen et al. 2023, "Robust Classification via a Single Diffusion Model" (RDC): the class under which the model denoises
the image best. Chen et al. 2024, "Your Diffusion Model is Certifiably Robust Classifier" (noised diffusion
classifiers, NRDC): the same for an image that carries Gaussian noise, over which `fastpure.certify` averages.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..errors import mistake, one_of, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from ..kernels.keys import STEP_MAX
from ..nets import Denoiser
from ..schedule import VP
from .inputs import check_range, check_seed, sealed
from .numbered import Numbered, as_pairs

WEIGHTS = ("likelihood", "edm")
"""What the error at a noise level counts; see ``DiffusionClassifier``."""

SPREADS = ("even", "random")
"""Where in its share of the noise levels each one lies: in the middle, or drawn anew for every image and draw."""

_EDM_MEAN, _EDM_STD, _EDM_DATA = -1.2, 1.2, 0.5


@final
class DiffusionClassifier(Numbered):
    """Logits of images in [0, 1] from a class-conditional denoiser (Chen et al. 2023).

    In [-1, 1] units, with z_k = x + r_k n_k, n_k standard normal, s_k^2 = r_k^2 + (2 sigma)^2 and L = ln(high / low),

        logit_y = -(L / K) sum_k w(s_k) |n_k - (r_k / s_k) eps(z_k; s_k, y)|^2,

    where eps is the predicted noise and r_1..r_K divide [low, high] evenly in the logarithm. For a clean image s_k is
    r_k, and a term is |D(z_k; s_k, y) - x|^2 / s_k^2. All classes see the same noise (the paper's variance reduction).
    With w = 1 ("likelihood") and an exact denoiser the difference of two logits tends to the logarithm of the ratio of
    the classes' densities at x as K grows, low -> 0 and high -> infinity (the integral of the mean square error over
    half the signal-to-noise ratio is minus the log-density, up to a constant). For images that carry noise of
    deviation ``sigma`` in [0, 1] units the densities are those of noisy images. Logits are centred: their mean is 0.

    ``network_calls`` per image: ``n_levels`` times the number of classes.

    Args:
        denoiser: class-conditional, float32 or float64; a frozen copy is kept. Any prediction and time input.
        n_levels: K.
        levels: (low, high), noise in [-1, 1] units.
        weight: "likelihood", or "edm": Karras et al.'s (2022) density and weight of a level, with which EDM's networks
            are trained: w = (1 + s^2 / 0.25) N(ln s; -1.2, 1.2^2).
        spread: of the levels, one of ``SPREADS``.
        sigma: deviation in [0, 1] units of noise that the images carry; None for clean ones.
        temperature: divides the logits.
        seed: of the noise, which is a pure function of (seed, sample id, draw, level).
        batch_size: most images in one call of the network; decides memory and no result. Where a gradient is
            recorded and one call is not enough, what the calls kept is computed again in the backward pass.

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        n_levels: int = 32,
        levels: tuple[float, float] = (0.02, 20.0),
        weight: str = "likelihood",
        spread: str = "even",
        sigma: float | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_size: int = 512,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            raise TypeError(mistake("denoiser", "a fastpure.Denoiser", type(denoiser).__name__))
        if not denoiser.n_classes:
            remedy = "Load a class-conditional one without class_label"
            raise ValueError(
                mistake("denoiser", "one that is told classes", "one without or of one class", remedy)
            )
        denoiser.check_levels(mean=True)
        if denoiser.dtype not in (torch.float32, torch.float64, None):
            raise ValueError(mistake("denoiser", "float32 or float64", denoiser.dtype))
        if not isinstance(levels, tuple | list) or len(levels) != 2:
            raise ValueError(mistake("levels", "two noise levels (low, high)", repr(levels)))
        self.low, self.high = (positive("levels", value) for value in levels)
        if not self.low < self.high:
            raise ValueError(mistake("levels", "(low, high) with low < high", repr(levels)))
        self.n_levels = whole("n_levels", n_levels, 1, STEP_MAX // 2)
        self.weight = one_of("weight", weight, WEIGHTS)
        self.spread = one_of("spread", spread, SPREADS)
        self.sigma = None if sigma is None else positive("sigma", sigma)
        self._check_levels(denoiser)
        self.temperature = positive("temperature", temperature)
        self.seed = check_seed(seed)
        self.batch_size = whole("batch_size", batch_size, 1)
        self.denoiser = denoiser.frozen()

    def _check_levels(self, denoiser: Denoiser) -> None:
        """Raise ValueError where a level lies beyond the end of the schedule that the network is told times of."""
        if denoiser.time_input == "sigma" or denoiser.path is not None:
            return
        most, carried = VP().sigma(1.0) / VP().alpha(1.0), 0.0 if self.sigma is None else 2.0 * self.sigma
        if math.hypot(self.high, carried) > most:
            expected = f"at most {most:.4g} with the noise on the image, where the network's schedule ends"
            raise ValueError(mistake("levels", expected, (self.low, self.high)))

    @property
    def n_classes(self) -> int:
        """How many logits there are."""
        return self.denoiser.n_classes

    @property
    def network_calls(self) -> int:
        """See the class."""
        return self.n_levels * self.n_classes

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
        """Logits [B, classes] of images ``x`` [B, C, H, W]; the other arguments as for calling a ``Defense``.

        float32 in [0, 1] (unclamped with ``sigma``), float64 for a float64 denoiser.
        """
        self._check_images(x)
        sample_ids, draw, domain = self._realisation(x, sample_ids, draw, domain)
        ids, draws = as_pairs(x, sample_ids, draw)
        keys = NoiseKeys.make(self.seed, ids, draws, domain, x.device)
        if len(keys.sample_ids) != len(x):
            raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", len(keys.sample_ids)))
        if len(x) == 0:
            return x.new_zeros((0, self.n_classes))
        state = 2.0 * x - 1.0
        calls = list(self._calls(len(x)))
        recompute = len(calls) > 1 and torch.is_grad_enabled() and x.requires_grad
        columns: dict[tuple[int, int], list[Tensor]] = {}
        for pairs, classes in calls:
            if recompute:  # only the noise, made anew from its keys, and x are kept
                errors = checkpoint(
                    self._errors, state, keys, pairs, classes, use_reentrant=False, preserve_rng_state=False
                )
            else:
                errors = self._errors(state, keys, pairs, classes)
            columns.setdefault((classes.start, classes.stop), []).append(errors)
        errors = torch.cat([torch.cat(parts) for parts in columns.values()], 1)
        # Pairs are ordered by level, so the sum has the same order for an image in any batch.
        logits = -math.log(self.high / self.low) * errors.view(self.n_levels, len(x), -1).mean(0)
        return ((logits - logits.mean(1, keepdim=True)) / self.temperature).to(x.dtype)

    def _calls(self, n: int) -> Iterator[tuple[range, range]]:
        """(pairs, classes) of every call of the network; pair p is image p % n at level p // n."""
        wide = min(self.n_classes, self.batch_size)
        long = max(self.batch_size // wide, 1)
        for first in range(0, self.n_classes, wide):
            for start in range(0, n * self.n_levels, long):
                stop = min(start + long, n * self.n_levels)
                yield range(start, stop), range(first, min(first + wide, self.n_classes))

    def _errors(self, x: Tensor, keys: NoiseKeys, pairs: range, classes: range) -> Tensor:
        """w |n - (r / s) eps|^2, float64 [pairs, classes]."""
        n, shape, parts = len(x), tuple(x.shape[1:]), []
        for k in range(pairs.start // n, (pairs.stop - 1) // n + 1):
            span = slice(max(pairs.start - k * n, 0), min(pairs.stop - k * n, n))
            noise = philox_normal(keys[span], k, Stream.CLASSIFIER, shape, dtype=x.dtype)
            parts.append((x[span], noise, self._radius(k, keys[span])))
        images, noise, radius = (torch.cat(part) for part in zip(*parts, strict=True))
        carried = 0.0 if self.sigma is None else 2.0 * self.sigma
        level = (radius.square() + carried * carried).sqrt()
        weights = self._weights(level)
        width = len(classes)
        told = torch.arange(classes.start, classes.stop, device=x.device).repeat(len(images))
        radius, shrunk = (value.to(x.dtype).view(-1, 1, 1, 1) for value in (radius, radius / level))
        noised = (images + radius * noise).repeat_interleave(width, 0)
        predicted = self.denoiser.noise_at(noised, level.repeat_interleave(width), told)
        error = noise[:, None] - shrunk[:, None] * predicted.unflatten(0, (len(images), width))
        return weights[:, None] * error.flatten(2).square().sum(2, dtype=torch.float64)

    def _radius(self, k: int, keys: NoiseKeys) -> Tensor:
        """The noise that is added at level ``k``, float64 [B]."""
        if self.spread == "random":
            # Behind the steps of the noise itself: two numbers never share a counter.
            place = self.n_levels + k
            u = philox_uniform(keys, place, Stream.CLASSIFIER, (1, 1, 1), dtype=torch.float64).flatten()
        else:
            u = torch.full((len(keys),), 0.5, dtype=torch.float64, device=keys.device)
        return self.low * (self.high / self.low) ** ((k + u) / self.n_levels)

    def _weights(self, level: Tensor) -> Tensor:
        """w, float64 [N]."""
        if self.weight == "likelihood":
            return torch.ones_like(level)
        density = torch.exp(-0.5 * ((level.log() - _EDM_MEAN) / _EDM_STD).square())
        return density / (_EDM_STD * math.sqrt(2 * math.pi)) * (1 + (level / _EDM_DATA).square())

    def _check_images(self, x: Tensor) -> None:
        expected = f"a {self.denoiser.dtype or torch.float32} tensor [B, C, H, W]".replace("torch.", "")
        if not isinstance(x, Tensor) or x.dtype != (self.denoiser.dtype or x.dtype):
            raise TypeError(mistake("x", expected, f"{getattr(x, 'dtype', type(x).__name__)}"))
        if x.dim() != 4 or tuple(x.shape[1:]) != self.denoiser.image_shape:
            raise ValueError(mistake("x", f"of shape [B, *{list(self.denoiser.image_shape)}]", list(x.shape)))
        if len(x) and self.sigma is None:
            check_range(x)

    def extra_repr(self) -> str:
        """All settings that decide the logits, for printing and for what identifies it."""
        return (
            f"n_levels={self.n_levels}, levels=({self.low}, {self.high}), weight={self.weight!r}, "
            f"spread={self.spread!r}, sigma={self.sigma}, temperature={self.temperature}, seed={self.seed}"
        )
