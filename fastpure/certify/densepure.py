"""DensePure (Xiao et al., ICLR 2023): the majority of several reverse processes that begin at the noisy image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar, final

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import whole
from ..kernels import NoiseKeys
from ..nets import Denoiser
from ..reverse import Call, GeneratedNoise, Process
from ..reverse.loop import walk
from ..schedule import VP, Row, StepTable
from ..schedule.solvers import eta_coefficients
from .base import DenoisedBase, time_of


@final
class DensePureClassifier(DenoisedBase):
    """How often each class wins among ``runs`` reverse processes with different noise.

    A process goes from the time whose noise is ``sigma`` to the image in ``steps`` steps of equal length, each DDPM's
    posterior step with the predicted image clamped to [-1, 1]; the last one predicts the image, so that one step is
    `OneShotClassifier`'s. The steps and the numbers are ours. A tie goes to the lower class.

    Args:
        denoiser, classifier, sigma: as for ``DenoisedBase``.
        runs: processes for each noisy image.
        steps: network calls of each.
    """

    combine = "majority"
    options: ClassVar[tuple[str, ...]] = ("runs", "steps")

    def __init__(
        self, denoiser: Denoiser, classifier: nn.Module, sigma: float, runs: int = 10, steps: int = 5
    ) -> None:
        super().__init__(denoiser, classifier, sigma)
        denoiser.check_levels(mean=True)  # of which a posterior step is made
        self.n_versions, self.steps = whole("runs", runs, 1), whole("steps", steps, 1, 1000)
        self.denoiser_calls = self.n_versions * self.steps
        self._process: Process | None = None

    def versions(self, noisy: Tensor, keys: NoiseKeys) -> Iterator[Tensor]:
        """The end of one process after the other, clamped to [0, 1]."""
        if self._process is None:
            with torch.no_grad():
                self._process = Process.build(
                    self.denoiser, posterior_steps(self.t, self.steps), None, noisy.device, noisy.dtype
                )
        x = self.alpha * (2 * noisy - 1)
        for run in range(self.n_versions):
            own = self.version_keys(keys, run)
            with torch.no_grad():
                end = walk(Call(self._process, GeneratedNoise(own), own.sample_ids), x, ())
            yield ((end + 1) / 2).clamp(0.0, 1.0)

    def settings(self) -> dict[str, Any]:
        """Its name, the runs and their steps."""
        return {"method": "densepure", "runs": self.n_versions, "steps": self.steps}

    def _forget(self) -> None:
        super()._forget()
        self._process = None


def posterior_steps(t: float, steps: int) -> StepTable:
    """DDPM's posterior steps on the continuous schedule, from ``t`` to the image in ``steps`` equal steps of time."""
    schedule, rows = VP(), []
    times = np.linspace(t, 0.0, steps + 1).tolist()
    powers = [*(schedule.alpha_bar(time) for time in times[:-1]), 1.0]
    for k, time in enumerate(times[:-1]):
        a, b, d = eta_coefficients(powers[k], powers[k + 1], 1.0)
        alpha, sigma = schedule.alpha(time), schedule.sigma(time)
        level = {"t": time, "tau": 999.0 * time, "index": time_of(sigma / alpha)[1]}
        rows.append(Row(a=a, b=b, d=d, alpha=alpha, sigma=sigma, clip=True, **level))
    return StepTable(tuple(rows))
