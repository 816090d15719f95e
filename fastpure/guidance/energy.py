"""Descent of an energy, all the drift there is in purification by an energy-based model (Hill et al. 2021)."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..classifiers.base import call_frozen, require_eval
from ..errors import mistake, one_of
from ..schedule import StepTable
from .base import GuidanceStep, Objective


@dataclass(frozen=True)
class EnergyDescent(Objective):
    """g(x) = -gradient of U(x), U = ``energy``(x) [B] of images in [-1, 1]; nothing is read from the input.

    ``grad`` "exact" includes the Hessian of U, "detached" takes g to be a constant.
    """

    energy: nn.Module
    grad: str = "exact"
    reads_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.energy, nn.Module):
            expected = "an nn.Module from images in [-1, 1] to energies [B]"
            raise TypeError(mistake("energy", expected, type(self.energy).__name__))
        one_of("guidance_grad", self.grad, ("exact", "detached"))
        self.check()

    def context(self, x0: Tensor) -> tuple[Tensor, ...]:
        """()."""
        return ()

    def objective(self, x: Tensor, context: tuple[Tensor, ...], step: GuidanceStep) -> Tensor:
        """-U, summed."""
        return -self._energies(x).sum()

    def passes(self, table: StepTable) -> int:
        """The energy's way back in every row."""
        return table.n_network_calls

    def networks(self) -> tuple[nn.Module, ...]:
        """The energy."""
        return (self.energy,)

    def cast(self, dtype: torch.dtype) -> EnergyDescent:
        """A copy whose network computes in ``dtype``; self where it does already."""
        if all(p.dtype == dtype for p in self.energy.parameters()):
            return self
        return replace(self, energy=copy.deepcopy(self.energy).to(dtype))

    def check(self) -> None:
        """Raise ValueError if the network is in training mode."""
        require_eval(self.energy, "energy")

    def check_images(self, image_shape: tuple[int, int, int]) -> None:
        """Raise ValueError unless the energy takes images of this shape and answers one number per image."""
        like = next(iter(self.energy.parameters()), torch.empty(0))
        grey = torch.zeros((2, *image_shape), dtype=like.dtype, device=like.device)
        expected = f"a network from images {list(image_shape)} to energies [B]"
        try:
            with torch.no_grad():
                found = call_frozen(self.energy, grey)
        except (RuntimeError, ValueError, TypeError) as error:
            raise ValueError(
                mistake("energy", expected, f"an error: {str(error).splitlines()[0]}")
            ) from error
        if not isinstance(found, Tensor) or found.numel() != 2 or len(found) != 2:
            shape = f"shape {list(found.shape)} for 2 images" if isinstance(found, Tensor) else type(found)
            raise ValueError(mistake("energy", expected, shape))

    def _energies(self, x: Tensor) -> Tensor:
        dtype = next((p.dtype for p in self.energy.parameters()), x.dtype)
        return call_frozen(self.energy, x.to(dtype)).to(x.dtype)
