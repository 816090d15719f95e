"""`fastpure certify --method nrdc`: a class-conditional diffusion model certified by its mean posterior under noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from .experiment import DIFFUSION

if TYPE_CHECKING:
    from ..certify import CertifyConfig
    from ..data import Dataset

NRDC = "nrdc"
"""In place of the name of a base classifier: nothing is denoised, the diffusion model itself classifies."""

OPTIONS = ("n_levels", "weight")
"""Settings of the diffusion classifier that the command has."""

Levels = Annotated[int | None, typer.Option(help="nrdc: noise levels per answer. (default: 32)")]
Weight = Annotated[
    str | None, typer.Option(help="nrdc: weight of a level: likelihood or edm. (default: likelihood)")
]
Choosing = Annotated[
    int | None, typer.Option(help="Noise draws that choose the class. (default: 100; nrdc: 32)")
]
Estimating = Annotated[
    int | None,
    typer.Option(help="Noise draws that estimate its probability. (default: 100,000; nrdc: 1024)"),
]

Report = Callable[[Any, bool], None]
"""Called with the record of each image, and whether it is new."""

Start = Callable[[Report], Any]
"""Certifies, and returns all records."""


@final
@dataclass(frozen=True, eq=False)
class Task:
    """What is certified, under which noise, into which file, and where."""

    dataset: Dataset
    config: CertifyConfig
    path: Path
    batch_size: int
    device: str

    @property
    def noisy(self) -> int:
        """Noisy images in all."""
        return len(self.dataset) * (self.config.n0 + self.config.n)

    def tell(self, method: str, costs: str) -> None:
        """Print what is about to be done."""
        config = self.config
        typer.echo(
            f"{self.dataset.describe()}\n{method}, sigma {config.sigma:g}, {config.n0} + {config.n} draws, alpha "
            f"{config.alpha:g}: {self.noisy:,} noisy images ({costs}) into {self.path}; Ctrl-C stops, the same command "
            "continues"
        )


def draws(method: str, choosing: int | None, estimating: int | None) -> tuple[int, int]:
    """Noise draws that choose and that estimate; of NRDC each is an answer for every class and level."""
    usual = (32, 1024) if method == NRDC else (100, 100_000)
    return usual[0] if choosing is None else choosing, usual[1] if estimating is None else estimating


def check_networks(method: str, classifier: str | None, denoiser: str | None) -> None:
    """Raise ValueError where the method and the networks that were given do not belong together."""
    from ..errors import mistake

    diffusion = classifier is not None and str(classifier).startswith(DIFFUSION)
    if method == NRDC and not diffusion:
        remedy = "FILE is a class-conditional diffusion model, which classifies by itself"
        got = "none" if classifier is None else repr(classifier)
        raise ValueError(mistake("--classifier", f"{DIFFUSION}FILE with --method {NRDC}", got, remedy))
    if method == NRDC and denoiser is not None:
        remedy = f"{NRDC} denoises nothing: the model that is certified is --classifier"
        raise ValueError(mistake("--denoiser", f"left out with --method {NRDC}", repr(denoiser), remedy))
    if method != NRDC and diffusion:
        remedy = "The others denoise an image for a classifier of clean ones"
        raise ValueError(mistake("--method", f"{NRDC} for --classifier {DIFFUSION}FILE", method, remedy))


def prepared(task: Task, classifier: str, options: dict[str, Any]) -> Start:
    """Says what it costs; the result certifies.

    Args:
        classifier: "diffusion:FILE".
        options: of ``OPTIONS``.
    """
    from ..certify import certify_posteriors
    from ..checkpoints import load_denoiser
    from ..purify import DiffusionClassifier, NoisedDiffusionClassifier
    from ..train.losses import weights_digest

    denoiser = load_denoiser(classifier.removeprefix(DIFFUSION))
    own: dict[str, Any] = {
        "sigma": task.config.sigma,
        "seed": task.config.seed,
        "batch_size": task.batch_size,
    }
    model = DiffusionClassifier(denoiser, **own, **options)
    names = {"denoiser": weights_digest(denoiser.network), "conventions": denoiser.describe()}
    task.tell(NRDC, f"{task.noisy * model.network_calls:,} through the diffusion model")

    def start(report: Report) -> Any:
        noised = NoisedDiffusionClassifier(model)
        return certify_posteriors(
            noised, task.dataset, task.config, task.path, networks=names, device=task.device, report=report
        )

    return start
