"""What `fastpure demo` attacks on each data set, how, and where the images come from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import mistake, one_of
from ..norms import norm_called

ARCHIVE = "cifar-10-python.tar.gz"
CIFAR10_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class Setting:
    """What the demo attacks and how.

    Attributes:
        images: what the images are called in the table.
        denoiser, classifier: names of bundled networks.
        n: how many test images.
        t, steps, scale: of the purifiers.
        solver: of the reverse SDE; "exponential" needs few steps, "euler" is the published one.
        norm, eps, n_iter, eot_iter, eval_draws: of the attack.
        precision: of the purifiers' networks; "auto" is bf16 where the processor has it, else fp32.
        seed: of the defences' noise.
    """

    images: str
    denoiser: str
    classifier: str
    n: int
    t: float
    steps: int
    scale: float
    eps: float
    n_iter: int
    eot_iter: int
    eval_draws: int
    precision: str
    norm: str = "Linf"
    seed: int = 0
    solver: str = "euler"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"`--steps` must be at least 1, got {self.steps}")

    def with_precision_found(self) -> Setting:
        """The same with "auto" replaced by what suits this processor."""
        if self.precision != "auto":
            return self
        return replace(self, precision="bf16" if has_bfloat16() else "fp32")


SETTINGS: dict[str, Setting] = {
    "digits": Setting(
        images="digits",
        denoiser="digits",
        classifier="digits",
        n=40,
        t=0.15,
        steps=12,
        scale=2.0,
        eps=0.2,
        n_iter=20,
        eot_iter=4,
        eval_draws=10,
        precision="fp32",
    ),
    "cifar10": Setting(
        images="cifar10 images",
        denoiser="cifar10-small",
        classifier="cifar10-small",
        n=32,
        t=0.1,
        steps=4,
        scale=1.0,
        eps=8 / 255,
        n_iter=20,
        eot_iter=2,
        eval_draws=5,
        precision="auto",
        solver="exponential",
    ),
}


def choose(data: str, **given: Any) -> Setting:
    """The data set's setting with everything changed that is given, that is, not None.

    Raises:
        ValueError: no demo of that data set; ``norm`` without ``eps``; a value out of range.
    """
    setting = SETTINGS[one_of("--data", data, SETTINGS)]
    changes = {name: value for name, value in given.items() if value is not None}
    if "norm" in changes:
        changes["norm"] = norm_called("--norm", changes["norm"], ("Linf", "L2", "L1"))
    if changes.get("norm", setting.norm) != setting.norm and "eps" not in changes:
        raise ValueError(f"`--eps` must be given with --norm {changes['norm']}: the default is one for Linf")
    return replace(setting, **changes)


def place(data: str, images: Path | None) -> Path | None:
    """Where the images of data set ``data`` are, as ``--data-path`` says; None for digits.

    Raises:
        ValueError: a number, which is what ``--n`` takes; no place where one is needed, or one where none is.
    """
    brings_images = data == "digits"
    if images is not None and _is_number(str(images)) and (brings_images or not Path(images).exists()):
        remedy = f"Their number is given as --n {images}"
        raise ValueError(mistake("--data-path", "the place of the images", f"the number {images}", remedy))
    if brings_images and images is not None:
        raise ValueError(
            f"`--data-path` must not be given for digits, which need no file, got {images}. "
            f"For CIFAR-10: fastpure demo --data cifar10 --data-path {images}"
        )
    if not brings_images and images is None:
        raise ValueError(
            f"`--data-path` must be given for {data}: the place of {ARCHIVE} (from {CIFAR10_PAGE}), of its extracted "
            f"folder, or of a JPEG pack (.npz). Example: fastpure demo --data {data} --data-path {ARCHIVE}"
        )
    return images


def default(text: str, name: str) -> str:
    """``text`` for ``--help``, followed by the default of ``name`` for each data set."""
    values = {data: _words(getattr(setting, name)) for data, setting in SETTINGS.items()}
    if len(set(values.values())) == 1:
        return f"{text} (default: {next(iter(values.values()))})"
    return f"{text} (default: {', '.join(f'{value} for {data}' for data, value in values.items())})"


def has_bfloat16() -> bool:
    """Whether this processor multiplies in bfloat16 itself. Where it is emulated, float32 is faster."""
    import torch

    asked = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return asked is not None and bool(asked())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _words(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else f"{255 * value:g}/255"
    return str(value)
