"""`AnomalyDetector`: one denoising step purifies an image and shows what is unusual in it.

After AdvRAD (Cao et al. 2024), of which only formulas in a summary were available: choices that they leave open are
arguments here, and results should be called AdvRAD-style. Its certified half is ``smoothing`` and `certify`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..certify.base import time_of
from ..errors import finite, mistake, positive, whole
from ..kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from ..nets import Denoiser
from ..purify.description import plain, weights_sha256
from ..purify.purifier import check_range
from ..schedule import VP, DiscreteVP
from ..shown import Card, ShownModule, described, size
from .smoothing import ScoreCertificates, ScoreSmoothing

NOISE, TIME = 0, 1  # steps of the noise keys


@final
class AnomalyDetector(ShownModule, nn.Module):
    """Scores images by how badly a denoiser trained on normal ones reconstructs them. Larger is more anomalous.

    x_t = alpha x + sigma n at a random time; the one-step estimate of the clean image is compared with x at
    several resolutions, the squared errors are averaged and smoothed; the score is the largest absolute
    deviation of this error map from its mean over normal images (`fit`).

    Args:
        denoiser: trained on normal images; its weights are constants here.
        t_min, t_max: range of the random diffusion time. (The summary says only that it is random.)
        scales: images are compared after averaging over blocks of these sizes; those larger than the image are
            left out.
        window: side of the mean filter of the error map, odd.
        seed: of the noise, which is a pure function of (seed, sample id, draw).

    Raises:
        TypeError, ValueError: an argument is not as described; the message names it.
    """

    mean_error: Tensor
    noisy_mean_error: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        t_min: float = 0.05,
        t_max: float = 0.2,
        scales: Sequence[int] = (1, 2, 4, 8),
        window: int = 3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(denoiser, Denoiser):
            remedy = "Wrap a network with fp.Denoiser.from_module(...)"
            raise TypeError(mistake("denoiser", "a fastpure.Denoiser", type(denoiser).__name__, remedy))
        denoiser.check_levels()
        denoiser.check_needs_no_class()
        if not 0 < t_min <= t_max <= 1:
            raise ValueError(mistake("t_min, t_max", "0 < t_min <= t_max <= 1", (t_min, t_max)))
        self.denoiser = denoiser.frozen()
        self.t_min, self.t_max = float(t_min), float(t_max)
        smallest = min(denoiser.image_shape[1:])
        self.scales = tuple(size for size in (whole("scales", s, 1) for s in scales) if size <= smallest)
        if not self.scales:
            raise ValueError(
                mistake("scales", f"with at least one block of at most {smallest}", list(scales))
            )
        if whole("window", window, 1) % 2 == 0:
            raise ValueError(mistake("window", "odd", window))
        self.window = window
        self.seed = whole("seed", seed, 0, 2**64 - 1)
        self.register_buffer("mean_error", torch.full(denoiser.image_shape[1:], torch.nan))
        # Fitted anew, not saved: the noise level that it belongs to is no tensor.
        unknown = torch.full(denoiser.image_shape[1:], torch.nan)
        self.register_buffer("noisy_mean_error", unknown, persistent=False)
        self.sigma: float | None = None
        self.training = False

    def _shown(self) -> Card:
        fitted = "no" if bool(self.mean_error.isnan().any()) else "yes"
        noisy = "" if self.sigma is None else f", for certificates with sigma {self.sigma:g} too"
        return Card(
            f"AnomalyDetector of images {size(self.denoiser.image_shape)}",
            (
                ("denoiser", described(self.denoiser)),
                ("times", f"{self.t_min:g} to {self.t_max:g}"),
                ("blocks of", f"{', '.join(map(str, self.scales))} pixels, window {self.window}"),
                ("fitted", f"{fitted}{noisy}"),
                ("seed", str(self.seed)),
            ),
        )

    @torch.no_grad()
    def fit(
        self,
        normal: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draws: int = 4,
        batch_size: int = 256,
        *,
        sigma: float | None = None,
    ) -> AnomalyDetector:
        """Learn the mean error map of normal images [N, C, H, W] in [0, 1]; returns the detector itself.

        Args:
            sample_ids: names of the images for the noise; 0..N-1 if omitted.
            draws: noise realisations per image (of the training domain; scores see others).
            sigma: of the noise that `certify` will add, in [0, 1] units; its mean error map is learned too.
        """
        whole("draws", draws, 1)
        if sigma is not None:
            time_of(2 * positive("sigma", sigma))
        ids = self._ids(normal, sample_ids)
        if not len(normal):
            raise ValueError(mistake("normal", "at least one image", "none"))
        total = torch.zeros_like(self.mean_error, dtype=torch.float64)
        for draw in range(draws):
            for rows in torch.arange(len(normal), device=normal.device).split(batch_size):
                error = self.error_map(normal[rows], ids[rows], draw, domain=Domain.TRAINING)
                total += error.double().sum((0, 1))
        self.mean_error.copy_(total / (draws * len(normal)))
        self.sigma = None if sigma is None else float(sigma)
        if self.sigma is not None:
            total = torch.zeros_like(total)
            for draw in range(draws):
                for rows in torch.arange(len(normal), device=normal.device).split(batch_size):
                    keys = NoiseKeys.make(self.seed, ids[rows], draw, Domain.TRAINING, normal.device)
                    noise = philox_normal(keys, NOISE, Stream.REVERSE, self.denoiser.image_shape)
                    total += self.noisy_error_map(normal[rows] + self.sigma * noise).double().sum((0, 1))
            self.noisy_mean_error.copy_(total / (draws * len(normal)))
        return self

    def score(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor = 0,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Anomaly score [B] of images x [B, C, H, W], float32 in [0, 1]; differentiable with respect to x.

        Args:
            sample_ids, draw, domain: name the noise, as for a `Purifier`.

        Raises:
            RuntimeError: `fit` has not been called.
        """
        if bool(self.mean_error.isnan().any()):
            raise RuntimeError("the detector knows no normal images yet: call fit(normal) first")
        error = self.error_map(x, sample_ids, draw, domain=domain)
        return (error - self.mean_error).abs().flatten(1).amax(1)

    forward = score

    def noisy_score(self, noisy: Tensor) -> Tensor:
        """Score [B] of images [B, C, H, W] that carry the noise of `fit`'s ``sigma``, in [0, 1] units, unclamped.

        A function of the noisy image alone: its noise is the diffusion, at the level where sigma_t / alpha_t is 2 sigma
        (Carlini et al. 2022), and the one-step estimate is compared with it.

        Raises:
            RuntimeError: `fit` was not told a ``sigma``.
        """
        return (self.noisy_error_map(noisy) - self.noisy_mean_error).abs().flatten(1).amax(1)

    def noisy_error_map(self, noisy: Tensor) -> Tensor:
        """Smoothed multi-scale squared error of the one-step estimate from noisy images, [B, 1, H, W]."""
        ratio = 2 * self._sigma()
        alpha = noisy.new_full((len(noisy),), (1 + ratio * ratio) ** -0.5, dtype=torch.float64)
        labels = self.denoiser.labels(torch.full_like(alpha, ratio))
        image = 2 * noisy - 1
        state = alpha.to(noisy.dtype).view(-1, 1, 1, 1) * image
        ids = torch.arange(len(noisy), device=noisy.device)
        return self._compared(image, self._estimate(state, alpha, alpha * ratio, labels, ids))

    def certify(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        n0: int = 100,
        n: int = 1000,
        alpha: float = 0.001,
        batch_size: int = 512,
        *,
        out: str | Path | None = None,
        report: Callable[[int, bool], None] | None = None,
    ) -> ScoreCertificates:
        """What no change of an image within an L2 radius can alter, for images x [B, C, H, W] float32 in [0, 1].

        The score under Gaussian noise of `fit`'s ``sigma`` is smoothed: `ScoreCertificates` has the decision at any
        threshold with its radius, bounds of the smoothed score at any radius, and the certified AUC.

        Args:
            sample_ids: names of the images for the noise; 0..B-1 if omitted.
            n0, n: draws that choose decisions, and that estimate.
            alpha: error probability of each statement.
            batch_size: most noisy images in one call; no part of the result.
            out: file of the scores, which an interrupted call continues.
            report: called with each image's id, and whether it is new.

        Raises:
            RuntimeError: `fit` was not told a ``sigma``.
            TypeError, ValueError: an argument is not as described; the message names it.
            ResumeError: ``out`` holds the scores of other images or of another detector; it is not touched then.
        """
        smoothing = ScoreSmoothing(self.noisy_score, self._sigma(), self.seed, batch_size)
        ids = self._ids(x, sample_ids)
        identity = {
            "detector": weights_sha256(self),
            "denoiser": self.denoiser.describe(),
            "scales": list(self.scales),
            "window": self.window,
            "images": plain(x)["sha256"],
            "ids": plain(ids)["sha256"],
        }
        return smoothing.certify(x, ids, n0, n, alpha, out=out, identity=identity, report=report)

    def error_map(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor = 0,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """Smoothed multi-scale squared error of the reconstruction, [B, 1, H, W], in units of [-1, 1] images."""
        return self._compared(2 * x - 1, 2 * self.reconstruct(x, sample_ids, draw, domain=domain) - 1)

    def _compared(self, image: Tensor, rebuilt: Tensor) -> Tensor:
        size = image.shape[2:]
        error = torch.zeros_like(image[:, :1])
        for scale in self.scales:
            difference = F.avg_pool2d(rebuilt - image, scale).square().mean(1, keepdim=True)
            error = error + F.interpolate(difference, size=size, mode="bilinear", align_corners=False)
        pad = self.window // 2
        return F.avg_pool2d(error / len(self.scales), self.window, 1, pad, count_include_pad=False)

    def reconstruct(
        self,
        x: Tensor,
        sample_ids: Tensor | list[int] | None = None,
        draw: int | Tensor = 0,
        *,
        domain: Domain = Domain.DEFENSE,
    ) -> Tensor:
        """One-step estimate of the clean images, [B, C, H, W] in [0, 1] units, not clamped."""
        ids = self._ids(x, sample_ids)
        keys = NoiseKeys.make(self.seed, ids, draw, domain, x.device)
        uniform = philox_uniform(keys, TIME, Stream.FORWARD, (1, 1, 1), dtype=torch.float64).flatten()
        alpha, sigma, labels = self._levels(uniform)
        a, s = (level.to(x.dtype).view(-1, 1, 1, 1) for level in (alpha, sigma))
        state = a * (2 * x - 1) + s * philox_normal(keys, NOISE, Stream.FORWARD, self.denoiser.image_shape)
        return (self._estimate(state, alpha, sigma, labels, ids) + 1) / 2

    def _estimate(self, state: Tensor, alpha: Tensor, sigma: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        """The clean image in [-1, 1] expected at ``state``, whose levels and labels are [B]."""
        a, s = (level.to(state.dtype).view(-1, 1, 1, 1) for level in (alpha, sigma))
        seen = self.denoiser.seen(state, a, s)
        output = finite(
            self.denoiser(seen, labels), ids, f"the denoiser {type(self.denoiser.network).__name__}"
        )
        return self.denoiser.clean_of(state, output, a, s)

    def train(self, mode: bool = True) -> AnomalyDetector:
        """Keep evaluation mode: dropout would make the scores something else."""
        return self

    def _sigma(self) -> float:
        if self.sigma is None:
            raise RuntimeError(
                "the detector knows no noise to certify under: call fit(normal, sigma=...) first"
            )
        return self.sigma

    def _levels(self, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """alpha, sigma (float64 [B]) and labels for times at these places (0..1) of the range."""
        times = self.t_min + (self.t_max - self.t_min) * uniform
        if self.denoiser.time_input == "index":
            schedule = DiscreteVP()
            index = (times * schedule.n).ceil().long().clamp(1, schedule.n) - 1
            bars = torch.from_numpy(schedule.alpha_bars).to(uniform.device)[index]
            return bars.sqrt(), (1 - bars).sqrt(), index
        vp = VP()
        integral = times * (vp.beta_min + 0.5 * (vp.beta_max - vp.beta_min) * times)
        alpha, sigma = torch.exp(-0.5 * integral), torch.sqrt(-torch.expm1(-integral))
        label = sigma / alpha if self.denoiser.time_input == "sigma" else 999 * times
        if self.denoiser.path is not None:
            label = self.denoiser.path.label(alpha, sigma)
        return alpha, sigma, label.float()

    def _ids(self, x: Tensor, sample_ids: Tensor | list[int] | None) -> Tensor:
        shape = self.denoiser.image_shape
        if not isinstance(x, Tensor) or not x.is_floating_point() or tuple(x.shape[1:]) != shape:
            got = f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(mistake("x", f"a float32 tensor [B, {', '.join(map(str, shape))}]", got))
        if len(x):
            check_range(x)
        ids = torch.as_tensor(range(len(x)) if sample_ids is None else sample_ids, device=x.device)
        if tuple(ids.shape) != (len(x),):
            raise ValueError(mistake("sample_ids", f"one id per image, {len(x)}", list(ids.shape)))
        return ids
