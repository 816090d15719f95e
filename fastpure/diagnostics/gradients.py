"""Whether gradients of different draws point the same way: how many draws an attack on a random defence needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from ..attacks.gradient import Objective, objective, require_gradient
from ..attacks.gradient_modes import GradientMode, has_noise
from ..attacks.losses import LOSSES
from ..errors import finite, mistake, one_of, whole
from ..progress import Progress
from ..purify import Target, look_through
from ..shown import Card, Shown, per_image, spread
from .checks import check_ids, check_images, check_labels


@final
@dataclass(frozen=True, eq=False, repr=False)
class GradientAgreement(Shown):
    """How far the loss gradients of single draws agree, per image.

    Attributes:
        cosine: float64 [B], mean cosine between the gradients of two different draws; 1 where nothing is random. NaN
            where fewer than two draws have a gradient that is not zero.
        snr: float64 [B], signal-to-noise of one draw: squared length of the mean gradient over the variance between
            draws, summed over pixels. Both without bias, so that it is below 0 where noise hides the signal. Infinite
            where nothing is random.
        draws: how many were taken; 1 where nothing is random.
        loss: that was differentiated.
        gradient: what was differentiated, a name of ``fastpure.attacks.MODES``.
    """

    cosine: Tensor
    snr: Tensor
    draws: int
    loss: str
    gradient: str

    def draws_for(self, cosine: float = 0.7) -> Tensor:
        """Draws whose mean gradient has about this cosine with the true one, float64 [B]; infinite where snr <= 0.

        The mean over n draws has a cosine of about sqrt(n snr / (1 + n snr)).
        """
        if isinstance(cosine, bool) or not isinstance(cosine, int | float) or not 0 < cosine < 1:
            raise ValueError(mistake("cosine", "between 0 and 1", repr(cosine)))
        return _draws_for(self.snr, cosine)

    def _shown(self) -> Card:
        columns = {"cosine": self.cosine, "snr": self.snr}
        return Card(
            f"GradientAgreement of {len(self.cosine)} images, {self.draws} draws",
            (
                ("cosine", spread(self.cosine)),
                ("signal to noise", spread(self.snr)),
                ("for cosine 0.7", f"draws: {spread(self.draws_for())}"),
                ("gradient", f"{self.gradient}, of the loss {self.loss}"),
            ),
            grids=(per_image("images", tuple(columns), tuple(columns.values())),),
        )

    def __str__(self) -> str:
        n = len(self.cosine)
        if self.draws == 1:
            return f"gradients of {n} images: nothing is random, all draws agree"
        middle = self.snr.nanmedian()
        return (
            f"gradients of {n} images, {self.draws} draws: pairwise cosine {float(self.cosine.nanmean()):.3g} (mean), "
            f"signal-to-noise per draw {float(middle):.3g} (median), with which a cosine of 0.7 needs "
            f"{float(_draws_for(middle, 0.7)):.0f} draws"
        )


def gradient_agreement(
    target: nn.Module | Target,
    x: Tensor,
    y: Tensor,
    sample_ids: Tensor | list[int] | None = None,
    *,
    draws: int = 16,
    loss: str = "ce",
    gradient: str = "exact",
    batch_size: int = 64,
    progress: bool = False,
) -> GradientAgreement:
    """How far the gradients of the attacker's draws agree. Needs memory for one batch, whatever ``draws``.

    Args:
        target: a ``Defense``, a module around one, or any module from [0, 1] images to logits.
        x: images [B, C, H, W] float32 in [0, 1], at least one.
        y: int64 [B], true classes.
        sample_ids: names of the images for the noise; 0..B-1 if omitted.
        draws: realisations of the noise, at least 2; a target in which nothing is random is asked once.
        loss: "ce", "margin" or "dlr".
        gradient: what is differentiated, "exact" or another name of ``fastpure.attacks.MODES``.
        batch_size: most (image, draw) pairs in one pass.
        progress: show a bar.

    Raises:
        TypeError, ValueError: no such target, images or labels; the message names the argument.
        NonFiniteError: a gradient that is NaN or Inf.
    """
    known = look_through(target)
    check_images(x)
    if x.dtype != torch.float32:
        raise TypeError(mistake("x", "of dtype float32", str(x.dtype).removeprefix("torch.")))
    labels, ids = check_labels(y, x), check_ids(sample_ids, x)
    whole("draws", draws, 2, 2**32)
    whole("batch_size", batch_size, 1)
    function, mode = LOSSES[one_of("loss", loss, LOSSES)], GradientMode(gradient)
    with torch.inference_mode(False), torch.enable_grad(), known.environment():
        # Copies that no inference mode made, so that they can be differentiated.
        x, labels, ids = x.detach().clamp(0.0, 1.0), labels.clone(), ids.clone()
        known = known.probed(x, ids, int(labels.max()) + 1)
        n = draws if has_noise(known, gradient) else 1
        goal = objective(mode.logits(known), function)
        with Progress(len(x) * n, "gradients", doing="comparing", shown=progress) as bar:
            parts = [
                _agreement(goal, x[rows], labels[rows], ids[rows], n, max(batch_size // len(rows), 1), bar)
                for rows in torch.arange(len(x), device=x.device).split(batch_size)
            ]
    cosine, snr = (torch.cat(column) for column in zip(*parts, strict=True))
    return GradientAgreement(cosine, snr, n, loss, gradient)


def _agreement(
    goal: Objective, x: Tensor, y: Tensor, ids: Tensor, n: int, together: int, bar: Progress
) -> tuple[Tensor, Tensor]:
    """(cosine [B], snr [B]) of ``n`` draws, ``together`` at a time; only sums over the draws are kept."""
    # In float64, because the square of a saturated classifier's gradient is zero in float32.
    total = torch.zeros((len(x), x[0].numel()), dtype=torch.float64, device=x.device)
    directions, squares = torch.zeros_like(total), torch.zeros_like(total[:, 0])
    pointing = torch.zeros_like(squares)
    for draw in torch.arange(n, device=x.device).split(together):
        repeat = len(draw)
        point = x.repeat(repeat, 1, 1, 1).requires_grad_(True)
        names = ids.repeat(repeat)
        value, _ = goal(point, y.repeat(repeat), names, draw.repeat_interleave(len(x)))
        require_gradient(value)
        (found,) = torch.autograd.grad(value.sum(), point)
        found = finite(found, names, "the gradient of the loss").double().view(repeat, *total.shape)
        lengths = found.norm(dim=2, keepdim=True)
        total += found.sum(0)
        squares += found.square().sum((0, 2))
        directions += torch.where(lengths > 0, found / lengths, 0.0).sum(0)
        pointing += (lengths[:, :, 0] > 0).sum(0)
        bar.step(repeat * len(x))
    if n == 1:
        one = torch.where(pointing > 0, 1.0, torch.nan).double()
        return one, torch.where(pointing > 0, torch.inf, torch.nan).double()
    # Sums over pairs of different draws: the square of the sum without the squares of its terms.
    many = torch.where(pointing > 1, pointing * (pointing - 1), torch.nan)
    cosine = (directions.square().sum(1) - pointing) / many
    length = total.square().sum(1)
    signal, variance = (length - squares) / (n * (n - 1)), (squares - length / n) / (n - 1)
    return cosine, signal / variance


def _draws_for(snr: Tensor, cosine: float) -> Tensor:
    wanted = (cosine**2 / (1 - cosine**2) / snr).ceil().clamp_min(1.0)
    return torch.where(snr > 0, wanted, torch.where(snr.isnan(), torch.nan, torch.inf))
