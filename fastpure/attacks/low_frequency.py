"""A low-frequency attack after DiffBreak (Kassis et al., NeurIPS 2025): the image is blurred adversarially.

Written from the paper's description: a cascade of filters whose weights are learned per pixel and damped across
edges, and an additive change underneath them, optimised with Adam under a limit on LPIPS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import MissingExtra, mistake, positive, whole
from .base import Problem, Proposal, Tick
from .budget import Admissible
from .gradient import Average, query
from .gradient_attack import RenderedAttack
from .pgd import is_flat


@dataclass(frozen=True, kw_only=True)
class LowFrequency(RenderedAttack):
    """Adam on filter weights and on a change below them; ``bound`` limits LPIPS.

    Attributes:
        bound: largest LPIPS.
        kernels: odd sizes of the filters, first applied first.
        color_sigma: in [0, 1] units; a filter takes little from pixels whose colour differs by more.
        filter_rate, change_rate: Adam's learning rates.
        penalty: weight of the excess of LPIPS over the bound, squared.
        metric: another distance than LPIPS-VGG; (images, originals) to [B].
    """

    kernels: tuple[int, ...] = (5, 7, 5, 3)
    color_sigma: float = 0.05
    filter_rate: float = 0.05
    change_rate: float = 0.008
    penalty: float = 1e8
    metric: Metric | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "kernels", tuple(self.kernels))
        for size in self.kernels:
            if whole("kernels", size, minimum=1) % 2 == 0:
                raise ValueError(mistake("kernels", "odd sizes", repr(self.kernels)))
        for name in ("color_sigma", "filter_rate", "change_rate", "penalty"):
            positive(name, getattr(self, name))

    @property
    def budget(self) -> PerceptualBudget:
        """Images within the perceptual bound."""
        return PerceptualBudget(self.bound, self.metric or self._lpips)

    @property
    def measure(self) -> str:
        """What is bounded."""
        return "LPIPS" if self.metric is None else "the given perceptual distance"

    def propose(self, problem: Problem, tick: Tick) -> Proposal:
        """For each image the iterate with the fewest correct draws among those within the bound."""
        x, losses = problem.x, problem.x.new_zeros((self.n_iter, len(problem.x)))
        if not len(x):
            return Proposal(x, losses)
        metric, goal = self.metric or self._lpips, self.goal(problem)
        weights = [x.new_zeros((len(x), size * size, *x.shape[2:])) for size in self.kernels]
        for size, weight in zip(self.kernels, weights, strict=True):
            weight[:, size * size // 2] = 6.0  # almost only the pixel itself to begin with
        change = torch.zeros_like(x)
        parameters = [tensor.requires_grad_(True) for tensor in (*weights, change)]
        groups = [
            {"params": parameters[:-1], "lr": self.filter_rate},
            {"params": [change], "lr": self.change_rate},
        ]
        optimizer = torch.optim.Adam(groups)
        found, fewest, flat = x.clone(), torch.full_like(losses[0], 2.0), None
        agreement = Average(x)
        for i in range(self.n_iter):
            with torch.enable_grad():
                image = self.render(x, weights, change)
                answer = query(
                    goal, image.detach(), problem.y, problem.ids, self.draws(problem, i), self.batch_size
                )
                distance = metric(image, x)
                excess = (distance - self.bound).clamp_min(0.0)
                value = self.penalty * excess.square().sum() - (image * answer.gradient).sum()
            flat = is_flat(answer) if flat is None else flat
            better = (distance.detach() <= self.bound) & (answer.correct < fewest)
            found[better], fewest[better] = image.detach()[better], answer.correct[better]
            gradients = torch.autograd.grad(value, parameters)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            optimizer.step()
            losses[i] = answer.loss
            agreement.add(answer.agreement)
            tick(i, float(answer.loss.mean()))
        never = (fewest > 1.0).view(-1, 1, 1, 1)  # no iterate kept the bound: the last one is cut back to it
        return Proposal(torch.where(never, image.detach(), found), losses, flat, agreement=agreement.mean)

    def render(self, x: Tensor, weights: list[Tensor], change: Tensor) -> Tensor:
        """The filtered image of ``x`` + ``change``; edges are those of ``x``."""
        image = x + change
        for size, weight in zip(self.kernels, weights, strict=True):
            image = filtered(image, x, weight, size, self.color_sigma)
        return image.clamp(0.0, 1.0)

    def _lpips(self, images: Tensor, originals: Tensor) -> Tensor:
        return lpips_vgg(str(images.device))(images, originals)


def filtered(image: Tensor, guide: Tensor, weight: Tensor, size: int, color_sigma: float) -> Tensor:
    """Each pixel of ``image`` [B, C, H, W] replaced by a weighted mean of its ``size`` x ``size`` neighbours.

    The weights are the softmax of ``weight`` [B, size^2, H, W] minus the squared colour distance in ``guide`` over
    2 ``color_sigma``^2 (a joint bilateral filter with learned spatial weights).
    """
    batch, channels, height, width = image.shape

    def neighbours(u: Tensor) -> Tensor:
        padded = F.pad(u, (size // 2,) * 4, mode="replicate")
        return F.unfold(padded, size).view(batch, channels, size * size, height, width)

    apart = (neighbours(guide) - guide[:, :, None]).square().mean(1) / (2 * color_sigma**2)
    share = torch.softmax(weight - apart, 1)
    return (neighbours(image) * share[:, None]).sum(2)


Metric = Callable[[Tensor, Tensor], Tensor]
"""(images, originals), both [B, C, H, W] in [0, 1], to distances [B]; differentiable, 0 for equal images."""

HALVINGS = 20


@dataclass(frozen=True)
class PerceptualBudget(Admissible):
    """All images in [0, 1] at a perceptual distance of at most ``bound``."""

    bound: float
    metric: Metric

    def project(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The admissible point furthest along the line from the original, found by halving."""
        candidate = candidate.clamp(0.0, 1.0)
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        good, at = self.admits(self.distance(candidate, x)), x.clone()
        at[good] = candidate[good]
        for _ in range(HALVINGS if not bool(good.all()) else 0):
            middle = (low + high) / 2
            point = (x + middle.view(-1, 1, 1, 1) * (candidate - x)).clamp(0.0, 1.0)
            inside = self.admits(self.distance(point, x)) & ~good
            at[inside] = point[inside]
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        return at

    @torch.no_grad()
    def distance(self, candidate: Tensor, x: Tensor) -> Tensor:
        """The perceptual distance of each image, float64 [B]."""
        return self.metric(candidate, x).double() if len(x) else x.new_zeros(0).double()

    def admits(self, distance: Tensor) -> Tensor:
        """At most ``bound``."""
        return distance <= self.bound


@cache
def lpips_vgg(device: str) -> Metric:
    """LPIPS with VGG features (Zhang et al., CVPR 2018) through the package lpips; its weights are downloaded by it.

    Raises:
        MissingExtra: lpips, or the torchvision it needs, is not installed.
    """
    try:
        import lpips
    except ImportError as error:
        raise MissingExtra(f"lpips ({error})", "perceptual", "the LPIPS distance") from error
    network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

    def metric(images: Tensor, originals: Tensor) -> Tensor:
        three = [u if u.shape[1] == 3 else u.expand(-1, 3, -1, -1) for u in (images, originals)]
        return network(*three, normalize=True).flatten()

    return metric
