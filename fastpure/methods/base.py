"""What a purification method is: data. And the index arithmetic that methods share."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ..errors import mistake, one_of, whole
from ..guidance import Guidance
from ..nets import Denoiser
from ..reverse import Procedure
from ..schedule import StepTable
from ..schedule.solvers import check_time


@dataclass(frozen=True)
class Method:
    """How to purify. ``settings`` are the arguments it was made with, for printing and for stored results.

    ``clip_output`` clamps the purified image to [0, 1]; published COUP does, published DiffPure does not.
    ``procedure`` walks the table where its rows alone do not say how. ``schedule`` is the noise schedule a denoiser
    that is told times or steps must have been trained with. ``note`` says what to call results, where that matters.
    """

    name: str
    settings: tuple[tuple[str, object], ...]
    steps: StepTable = field(repr=False)
    guidance: Guidance | None = field(default=None, repr=False)
    clip_output: bool = False
    procedure: Procedure | None = field(default=None, repr=False)
    schedule: str = field(default="linear", repr=False)
    note: str = field(default="", repr=False)

    def table(self) -> StepTable:
        """The step table, one row per step, the diffusion of the input (if any) being row 0."""
        return self.steps

    def check_denoiser(self, denoiser: Denoiser) -> None:
        """Raise ValueError if ``denoiser`` has another schedule or image shape than this method needs."""
        if self.guidance is not None:
            self.guidance.check_images(denoiser.image_shape)
        if denoiser.time_input != "sigma" and denoiser.schedule != self.schedule:
            expected = f"trained on the {self.schedule} schedule for {self.name}"
            found = f"one trained on the {denoiser.schedule} schedule"
            raise ValueError(mistake("denoiser", expected, found))

    def __str__(self) -> str:
        text = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        note = f" ({self.note})" if self.note else ""
        return f"{self.name}({text}): {self.steps.n_network_calls} network calls{note}"


def discrete_index(t: float, n: int = 1000) -> int:
    """Zero-based index of the step that ends at time ``t``: 99 for t = 0.1 of 1000 steps."""
    steps = int(np.floor(check_time(t) * n + 1e-6))
    if steps < 1:
        raise ValueError(mistake("t", f"at least one of {n} discrete steps, {1 / n}", t))
    return steps - 1


def start_index(t: float, n: int = 1000) -> int:
    """Index of the diffusion in methods that diffuse one step further than they come back from: 100 for t = 0.1."""
    index = discrete_index(t, n) + 1
    if index >= n:
        raise ValueError(mistake("t", f"at most {(n - 1) / n}", t))
    return index


def spaced_indices(start: int, n_steps: int, spacing: str) -> list[int]:
    """``n_steps`` of the indices start..0, descending.

    "trailing" ends each block of equal length and so begins at ``start``; "linspace" includes both ends.
    """
    one_of("spacing", spacing, ("trailing", "linspace"))
    whole("n_steps", n_steps, minimum=1, maximum=start + 1)
    if spacing == "linspace":
        return [round(i) for i in np.linspace(start, 0, n_steps)]
    return [round((start + 1) * (n_steps - k) / n_steps) - 1 for k in range(n_steps)]


def number(argument: str, value: float) -> float:
    """Return ``value`` as float if it is a finite number >= 0; otherwise raise TypeError or ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(mistake(argument, "a number >= 0", f"{type(value).__name__} {value!r}"))
    if not 0 <= value < float("inf"):
        raise ValueError(mistake(argument, "a finite number >= 0", value))
    return float(value)
