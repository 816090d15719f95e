"""FreqPure's correction of the predicted image in the frequency domain (ICML 2025)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import mistake, one_of, positive
from ..schedule import StepTable
from .base import GRADS, GuidanceStep, Opening
from .prediction import Correction


@dataclass(frozen=True)
class FrequencyCorrection(Correction):
    """g = P(x0hat) - x0hat: low frequencies of the predicted image are tied to those of a guide.

    Per channel, by the discrete Fourier transform with the zero frequency in the middle: at distances up to
    ``amplitude_radius`` from it the amplitude is the guide's, up to ``phase_radius`` the phase is held within ``delta``
    radians of the guide's, the shorter way round. Where a coefficient is real, as the mean of the image is, and differs
    in sign from the guide's, the turn by ``delta`` leaves its real part only: cos(delta) of the amplitude. The guide is
    one denoised draw of the purifier's input, at noise ``ratio`` (sigma / alpha).
    """

    ratio: float
    amplitude_radius: float = 3.0
    phase_radius: float = 2.0
    delta: float = 0.2
    clip_x0: bool = False
    grad: str = "exact"

    def __post_init__(self) -> None:
        positive("ratio", self.ratio)
        for name in ("amplitude_radius", "phase_radius", "delta"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(mistake(name, "a finite number >= 0", repr(value)))
        one_of("guidance_grad", self.grad, GRADS)

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """Needs the denoiser: see ``read``."""
        raise ValueError(mistake("opening", "given: the guide is a denoised draw of the input", "none"))

    def read(self, x0: Tensor, opening: Opening) -> tuple[Tensor, ...]:
        """(the guide [B, C, H, W],), differentiable in ``x0`` through the denoiser."""
        if self.grad != "exact":
            x0 = x0.detach()
        return (opening.clean_image(x0 + self.ratio * opening.noise(), self.ratio),)

    def passes(self, table: StepTable) -> int:
        """The guide's."""
        return 1

    def asked_level(self) -> float:
        """That of the guide."""
        return self.ratio

    def corrected(self, clean: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """See ``Correction.corrected``."""
        height, width = clean.shape[-2:]
        found, wanted = torch.fft.rfft2(clean), torch.fft.rfft2(context[0])
        radius = _radii(height, width, clean)
        size = torch.where(radius <= self.amplitude_radius, wanted.abs(), found.abs())
        # Phases as unit numbers, 0 where there is none: nothing to turn there, and no derivative that is NaN.
        turn = torch.angle(found * wanted.conj()).clamp(-self.delta, self.delta)
        held = torch.sgn(wanted) * torch.polar(torch.ones_like(turn), turn)
        unit = torch.where(radius <= self.phase_radius, held, torch.sgn(found))
        untouched = radius > max(self.amplitude_radius, self.phase_radius)
        return torch.fft.irfft2(torch.where(untouched, found, size * unit), s=(height, width))


def _radii(height: int, width: int, like: Tensor) -> Tensor:
    """Distance of each coefficient of ``rfft2`` from the zero frequency, in whole cycles per image; [H, W // 2 + 1]."""
    options = {"dtype": like.dtype, "device": like.device}
    rows = torch.fft.fftfreq(height, 1.0 / height, **options)
    columns = torch.fft.rfftfreq(width, 1.0 / width, **options)
    return (rows.square()[:, None] + columns.square()).sqrt()
