"""What the answer of a network means: the one place where predictions become noise or clean images.

A state is x = alpha x0 + sigma noise. ``prediction`` says what a network was trained to answer; everybody who asks one
goes through ``noise_of`` or ``clean_of``, so that no answer is read as another one.

Flow networks answer the velocity dx/dt of a straight path and have two conventions more (``FlowPath``). Let s be the
distance from the clean image, 0 there and 1 at the other end of the path:

* schedule "flow", the path of rectified flow (Liu et al., "Flow Straight and Fast", 2022; Lipman et al., "Flow
  Matching for Generative Modeling", 2022): x = (1 - s) x0 + s noise, so that dx/ds = noise - x0. A state at
  other levels is divided by alpha + sigma, which puts it on this path at s = sigma / (alpha + sigma): such a network
  serves every table.
* schedule "flowpure", the path of FlowPure (Collaert et al., 2025) from an attacked image to the clean one: x = x0 +
  s (attacked - x0), so that dx/ds = attacked - x0 takes the place of the noise. It knows no noise levels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from ..errors import mistake, one_of, positive, whole

PREDICTIONS = ("eps", "x0", "v", "flow", "consistency")
TIME_INPUTS = ("continuous", "index", "sigma")
FLOWS = ("flow", "flowpure")
SCHEDULES = ("linear", "cosine", *FLOWS)
TIME_SCALE = 1000.0
"""Label of a flow network at time 1 unless told otherwise; diffusers' schedulers have the same default."""

Level = float | Tensor


@final
@dataclass(frozen=True)
class FlowPath:
    """How a flow network counts time, and what its velocity means.

    Attributes:
        schedule: one of ``FLOWS``.
        data_at: the time of the clean image. 0: time is s and the network answers dx/ds, as in diffusers. 1: time is
            1 - s and it answers dx/d(1 - s), as in FlowPure and in Lipman et al.
        time_scale: the network is told ``time_scale`` times its time.
    """

    schedule: str
    data_at: int = 0
    time_scale: float = TIME_SCALE

    def __post_init__(self) -> None:
        one_of("schedule", self.schedule, FLOWS)
        whole("data_at", self.data_at, 0, 1)
        object.__setattr__(self, "time_scale", positive("time_scale", self.time_scale))

    def width(self, alpha: Any, sigma: Any) -> Any:
        """What a state of these levels (numbers, arrays or tensors) is divided by to be on the path."""
        return alpha + sigma if self.schedule == "flow" else alpha

    def label(self, alpha: Any, sigma: Any) -> Any:
        """What the network is told at these levels (numbers, arrays or tensors)."""
        width = self.width(alpha, sigma)
        from_data = sigma / width
        if self.data_at == 0:
            return self.time_scale * from_data
        return self.time_scale * (alpha / width if self.schedule == "flow" else 1.0 - from_data)

    def target(self, x0: Tensor, end: Tensor) -> Tensor:
        """What the network learns to answer on the path from the clean images to ``end``, both [B, C, H, W]."""
        return end - x0 if self.data_at == 0 else x0 - end

    def noise(self, x: Tensor, output: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The noise in a state; for "flowpure" the difference attacked - x0 that the path adds ``sigma`` times."""
        velocity = output if self.data_at == 0 else -output
        if self.schedule == "flowpure":
            return velocity
        width = self.width(alpha, sigma)
        return x / width + (alpha / width) * velocity

    def clean(self, x: Tensor, output: Tensor, alpha: Level, sigma: Level) -> Tensor:
        """The clean image at the end of the straight line through the state."""
        velocity = output if self.data_at == 0 else -output
        width = self.width(alpha, sigma)
        return x / width - (sigma / width) * velocity


def noise_of(
    prediction: str, x: Tensor, output: Tensor, alpha: Level, sigma: Level, path: FlowPath | None = None
) -> Tensor:
    """The noise [B, C, H, W] that ``output`` amounts to for the state ``x`` = alpha x0 + sigma noise.

    Args:
        prediction: one of ``PREDICTIONS``.
        alpha, sigma: > 0; numbers, or tensors that broadcast with x.
        path: of a flow network, otherwise None.
    """
    if path is not None:
        return path.noise(x, output, alpha, sigma)
    if prediction in ("x0", "consistency"):
        return (x - alpha * output) / sigma
    if prediction == "v":
        power = alpha * alpha + sigma * sigma
        return (sigma / power) * x + (alpha / power) * output
    return output


def clean_of(
    prediction: str, x: Tensor, output: Tensor, alpha: Level, sigma: Level, path: FlowPath | None = None
) -> Tensor:
    """The clean image [B, C, H, W] that ``output`` amounts to; arguments as for ``noise_of``.

    For "v" the levels must be those of a variance-preserving state, alpha^2 + sigma^2 = 1.
    """
    if path is not None:
        return path.clean(x, output, alpha, sigma)
    if prediction in ("x0", "consistency"):
        return output
    if prediction == "v":
        return alpha * x - sigma * output
    return (x - sigma * output) / alpha


def conventions(
    prediction: str, time_input: str, schedule: str, data_at: int | None, time_scale: float | None
) -> FlowPath | None:
    """The path of a flow network, None for another one, if these conventions of a denoiser belong together.

    Raises:
        ValueError: an unknown convention, or one that another one excludes; the message names it.
    """
    one_of("prediction", prediction, PREDICTIONS)
    one_of("time_input", time_input, TIME_INPUTS)
    one_of("schedule", schedule, SCHEDULES)
    if (prediction, time_input) == ("v", "sigma"):
        raise ValueError(mistake("prediction", "'eps' or 'x0' where time_input is 'sigma'", "'v'"))
    if prediction == "consistency" and time_input != "sigma":
        raise ValueError(mistake("time_input", "'sigma' for a consistency function", repr(time_input)))
    if (prediction == "flow") != (schedule in FLOWS):
        expected = "'flow' or 'flowpure' where prediction is 'flow', and nowhere else"
        raise ValueError(mistake("schedule", expected, f"{schedule!r} with prediction {prediction!r}"))
    if prediction != "flow":
        for name, value in (("data_at", data_at), ("time_scale", time_scale)):
            if value is not None:
                raise ValueError(mistake(name, "None where prediction is not 'flow'", value))
        return None
    if time_input != "continuous":
        raise ValueError(mistake("time_input", "'continuous' for a flow network", repr(time_input)))
    return FlowPath(
        schedule, 0 if data_at is None else data_at, TIME_SCALE if time_scale is None else time_scale
    )
