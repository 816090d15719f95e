"""`fastpure certify --method nrdc`: a class-conditional diffusion model certified by its mean posterior under noise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from .experiment import DIFFUSION

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..certify import CertifyConfig, PosteriorRecord
    from ..data import Dataset

NRDC = "nrdc"
"""In place of the name of a base classifier: nothing is denoised, the diffusion model itself classifies."""

DRAWS = (32, 1024)
"""Noise draws that choose and that estimate, where none are given: each is an answer for every class and level."""

OPTIONS = ("n_levels", "weight")
"""Settings of the diffusion classifier that the command has."""


def check_classifier(method: str, classifier: str | None) -> None:
    """Raise ValueError where the method and the kind of classifier do not belong together."""
    from ..errors import mistake

    diffusion = classifier is not None and str(classifier).startswith(DIFFUSION)
    if method == NRDC and not diffusion:
        remedy = "FILE is a class-conditional diffusion model, which classifies by itself"
        got = "none" if classifier is None else repr(classifier)
        raise ValueError(mistake("--classifier", f"{DIFFUSION}FILE with --method {NRDC}", got, remedy))
    if method != NRDC and diffusion:
        remedy = "The others denoise an image for a classifier of clean ones"
        raise ValueError(mistake("--method", f"{NRDC} for --classifier {DIFFUSION}FILE", method, remedy))


def certify_nrdc(
    classifier: str,
    dataset: Dataset,
    config: CertifyConfig,
    path: Path,
    *,
    batch_size: int,
    device: str,
    report: Callable[[PosteriorRecord, bool], None],
    **options: Any,
) -> list[PosteriorRecord]:
    """Certify every image of ``dataset`` into ``path``; what it costs is said first.

    Args:
        classifier: "diffusion:FILE".
        options: of ``OPTIONS``.
    """
    from ..certify import certify_posteriors
    from ..checkpoints import load_denoiser
    from ..purify import DiffusionClassifier, NoisedDiffusionClassifier
    from ..train.losses import weights_digest

    denoiser = load_denoiser(classifier.removeprefix(DIFFUSION))
    settings: dict[str, Any] = {
        "sigma": config.sigma,
        "seed": config.seed,
        "batch_size": batch_size,
        **options,
    }
    model = DiffusionClassifier(denoiser, **settings)
    noisy = len(dataset) * (config.n0 + config.n)
    typer.echo(
        f"{dataset.describe()}\n{NRDC}, sigma {config.sigma:g}, {config.n0} + {config.n} draws, alpha "
        f"{config.alpha:g}: {noisy:,} noisy images ({noisy * model.network_calls:,} through the diffusion model) into "
        f"{path}; Ctrl-C stops, the same command continues"
    )
    networks = {"denoiser": weights_digest(denoiser.network), "conventions": denoiser.describe()}
    return certify_posteriors(
        NoisedDiffusionClassifier(model),
        dataset,
        config,
        path,
        networks=networks,
        device=device,
        report=report,
    )
