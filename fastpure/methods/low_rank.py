"""LoRID (Zollicoffer et al., AAAI 2025): a low-rank image first, then several rounds of diffusing and coming back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from ..errors import mistake, whole
from ..reverse.step import differentiable_once
from ..schedule import DiscreteVP, ancestral, forward_diffusion
from .base import Method, discrete_index, method, spaced_indices
from .preparation import Preparation

APART = 1e-12
"""Squared singular values nearer to each other, or to zero, than this share of the largest cannot be told apart."""

Ranks = tuple[int, int, int]


@method(steps="n_steps")
def lorid(
    t: float = 0.05,
    rounds: int = 4,
    ranks: tuple[int, int, int] | None = None,
    variance: str = "small",
    clip_x0: bool = True,
    n_steps: int | None = None,
    clip_output: bool = True,
) -> Method:
    """LoRID (Zollicoffer et al., AAAI 2025): Tucker truncation, then ``rounds`` times to time ``t`` and back with DDPM.

    ``ranks`` are how many components of channels, rows and columns each image keeps (see ``TuckerTruncation``); None
    is all channels and half of the rows and of the columns, rounded up. A round takes 1000 t steps or ``n_steps`` of
    them; ``variance`` and ``clip_x0`` as in ``ddpm``. The order of the parts is the paper's abstract's; the sampler,
    the way of truncating and all constants are ours.
    """
    start = discrete_index(t)
    indices = spaced_indices(start, n_steps if n_steps is not None else start + 1, "trailing")
    once = forward_diffusion(DiscreteVP().alpha_bar(start)) + ancestral(indices, variance, clip_x0)
    table = once
    for _ in range(whole("rounds", rounds, minimum=1) - 1):
        table = table + once
    kept = None if ranks is None else (ranks[0], ranks[1], ranks[2])
    resolved = {"ranks": kept, "n_steps": len(indices)}
    return Method.of(table, None, clip_output, resolved=resolved, prepare=TuckerTruncation(kept))


@final
@dataclass(frozen=True)
class TuckerTruncation(Preparation):
    """Projects each image onto the leading singular vectors of its three unfoldings: the truncated higher-order SVD.

    De Lathauwer, De Moor and Vandewalle 2000: with P_n the projector onto the ``ranks[n]`` leading left singular
    vectors of the unfolding of x along channels, rows or columns, the result is x multiplied by P_n along each.
    Everything is computed in float64. The gradient is exact, the derivatives of the projectors included.

    It has a derivative where the last singular value that is kept is larger than the first that is dropped, and larger
    than zero. Elsewhere the projection itself jumps, or has a corner; there the gradient is that of the parts which can
    be told apart: two equal singular values (up to ``APART``) do not turn into each other, and an image of smaller rank
    keeps that rank.

    Attributes:
        ranks: of channels, rows and columns, each at least 1 and at most the image's; None for all channels and half of
            the rows and columns, rounded up.
    """

    ranks: Ranks | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """See ``Preparation.__call__``."""
        _, channels, height, width = x.shape
        truncated: Tensor = _Truncated.apply(x, self.ranks_of((channels, height, width)))
        return truncated

    def check_images(self, shape: tuple[int, int, int]) -> None:
        """Raise ValueError if images of this (C, H, W) have fewer components than are to be kept."""
        self.ranks_of(shape)

    def ranks_of(self, shape: tuple[int, int, int]) -> Ranks:
        """The ranks for images of this (C, H, W).

        Raises:
            ValueError: more components than the image has.
        """
        channels, height, width = shape
        if self.ranks is None:
            return channels, (height + 1) // 2, (width + 1) // 2
        if any(not 1 <= rank <= size for rank, size in zip(self.ranks, shape, strict=True)):
            expected = f"three whole numbers of at most {shape}, the denoiser's (C, H, W), and at least 1"
            raise ValueError(mistake("ranks", expected, self.ranks))
        return self.ranks


class _Truncated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        image, ctx.ranks = x.double(), ranks
        modes = [mode for mode in range(3) if ranks[mode] < x.shape[mode + 1]]  # the others keep everything
        spectra = [torch.linalg.eigh(_gram(image, mode)) for mode in modes]
        ctx.modes = modes
        ctx.save_for_backward(x, *(tensor for pair in spectra for tensor in pair))
        for mode, (values, vectors) in zip(modes, spectra, strict=True):
            image = _along(mode, _projector(vectors, _kept(values, ranks[mode])), image)
        return image.to(x.dtype)

    @staticmethod
    @differentiable_once
    def backward(ctx: Any, v: Tensor) -> tuple[Any, ...]:
        x, *tensors = ctx.saved_tensors
        spectra = list(zip(ctx.modes, tensors[0::2], tensors[1::2], strict=True))
        image, cotangent = x.double(), v.double()
        kept = {mode: _kept(values, ctx.ranks[mode]) for mode, values, _ in spectra}
        projectors = {mode: _projector(vectors, kept[mode]) for mode, _, vectors in spectra}
        v_x = cotangent
        for mode, projector in projectors.items():
            v_x = _along(mode, projector, v_x)
        for mode, values, vectors in spectra:
            others = image
            for other, projector in projectors.items():
                others = others if other == mode else _along(other, projector, others)
            # Of the projector, then of the unfolding's Gram matrix; both are symmetric.
            v_projector = _unfolded(cotangent, mode) @ _unfolded(others, mode).mT
            turned = vectors.mT @ (0.5 * (v_projector + v_projector.mT)) @ vectors
            v_gram = vectors @ (_exchange(values, kept[mode]) * turned) @ vectors.mT
            v_x = v_x + _along(mode, 2.0 * v_gram, image)
        return v_x.to(v.dtype), None


def _unfolded(x: Tensor, mode: int) -> Tensor:
    """[B, d, everything else] with d the size along channels (0), rows (1) or columns (2)."""
    return x.movedim(mode + 1, 1).flatten(2)


def _gram(x: Tensor, mode: int) -> Tensor:
    unfolded = _unfolded(x, mode)
    return unfolded @ unfolded.mT


def _along(mode: int, matrix: Tensor, x: Tensor) -> Tensor:
    """``x`` multiplied along one mode by ``matrix`` [B, d, d]."""
    moved = x.movedim(mode + 1, 1)
    return (matrix @ moved.flatten(2)).view(moved.shape).movedim(1, mode + 1)


def _kept(values: Tensor, rank: int) -> Tensor:
    """Which of the ascending ``values`` [B, d] are kept: the last ``rank``, without those that are zero."""
    place = torch.arange(values.shape[1], device=values.device)
    return (place >= values.shape[1] - rank) & (values > APART * values[:, -1:])


def _projector(vectors: Tensor, kept: Tensor) -> Tensor:
    return (vectors * kept[:, None]) @ vectors.mT


def _exchange(values: Tensor, kept: Tensor) -> Tensor:
    """1 / (kept value - dropped value) for every such pair [B, d, d], 0 elsewhere and where they are equal.

    How fast a change of the matrix turns one eigenvector into the other. Pairs on one side of the cut do not matter,
    so their being equal does no harm.
    """
    gap = values[:, :, None] - values[:, None, :]
    pair = kept[:, :, None] & ~kept[:, None, :] & (gap > APART * values[:, -1:, None])
    part = torch.where(pair, 1.0 / torch.where(pair, gap, torch.ones_like(gap)), torch.zeros_like(gap))
    return part + part.mT
