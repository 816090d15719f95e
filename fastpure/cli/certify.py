"""`fastpure certify`: accuracy that no attack within a radius can lower, by denoised smoothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..progress import Progress
from . import certify_posterior as nrdc
from . import options as o
from .certify_posterior import Report, Start, Task
from .experiment import network_of
from .images import test_images
from .names import DATASETS, among
from .values import number

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..certify import PosteriorRecord, Record


def certify(
    data: Annotated[
        str,
        typer.Option(help="Data set: digits or cifar10 (needs --data-path).", autocompletion=among(DATASETS)),
    ] = "digits",
    data_path: Annotated[Path | None, typer.Option(help="File or folder with the images.")] = None,
    denoiser: o.DenoiserFile = None,
    classifier: o.ClassifierName = None,
    method: Annotated[
        str,
        typer.Option(
            help="What is smoothed: oneshot, densepure (majority of reverse runs) or diffsmooth; nrdc is a diffusion "
            "model that classifies, --classifier diffusion:FILE."
        ),
    ] = "oneshot",
    runs: Annotated[int | None, typer.Option(help="densepure: reverse runs per noisy image.")] = None,
    steps: Annotated[int | None, typer.Option(help="densepure: network calls of a run.")] = None,
    copies: Annotated[int | None, typer.Option(help="diffsmooth: copies of the denoised image.")] = None,
    local_sigma: Annotated[float | None, typer.Option(help="diffsmooth: deviation of their noise.")] = None,
    combine: Annotated[
        str | None, typer.Option(help="diffsmooth: what is added up: softmax, majority or logits.")
    ] = None,
    n_levels: nrdc.Levels = None,
    weight: nrdc.Weight = None,
    sigma: Annotated[float, typer.Option(help="Deviation of the noise, pixels in [0, 1].")] = 0.25,
    draws0: nrdc.Choosing = None,
    draws: nrdc.Estimating = None,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong, per image.")] = 0.001,
    n: Annotated[
        int | None, typer.Option(help="How many test images, chosen by --data-seed. (default: 100)")
    ] = None,
    data_seed: Annotated[int, typer.Option(help="Seed of the choice of images.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    radii: Annotated[
        str, typer.Option(help="L2 radii of the table, pixels in [0, 1], separated by commas.")
    ] = "0,0.25,0.5,0.75,1",
    batch_size: Annotated[int, typer.Option(help="Most noisy images in one network call.")] = 512,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="CSV file, a row per image. (default: runs/DATA-certify-SIGMA.csv, with METHOD if not oneshot)"
        ),
    ] = None,
) -> None:
    """Certify test images: no change of an image within its L2 radius can change the smoothed class.

    A denoiser and the classifier see each image under many draws of Gaussian noise; a Clopper-Pearson bound turns
    the votes into a radius (Cohen et al. 2019, Carlini et al. 2022). Images whose votes do not decide are
    abstentions and count as wrong. With --method nrdc a class-conditional diffusion model is certified by its mean
    posterior, with a radius of its own. Given again, the same command continues an interrupted run.

    Examples:

      fastpure certify --data digits --sigma 0.25 --draws 1000

      fastpure certify --method nrdc --n-levels 8 \\
          --classifier diffusion:conditional.safetensors
    """
    from ..certify import CertifyConfig

    wanted = parse_radii(radii)
    counts = nrdc.draws(method, draws0, draws)
    config = CertifyConfig(sigma, *counts, alpha, seed)
    dataset = test_images(data, data_path)
    dataset = dataset.subset(_counted(n, len(dataset)), data_seed)
    given = {"runs": runs, "steps": steps, "copies": copies, "local_sigma": local_sigma, "combine": combine,
             "n_levels": n_levels, "weight": weight}  # fmt: skip
    options = _options(method, {name: value for name, value in given.items() if value is not None})
    nrdc.check_networks(method, classifier, denoiser)
    known = "certify" if method == "oneshot" else f"certify-{method}"
    path = out or Path("runs") / f"{data}-{known}-{sigma:g}.csv"
    task = Task(dataset, config, path, batch_size, o.checked_device(device or "cpu"))
    if method == nrdc.NRDC:
        start = nrdc.prepared(task, str(classifier), options)
    else:
        start = _prepared(task, method, _networks(data, denoiser, classifier), options)
    with _Bar(len(dataset)) as bar:
        records = start(bar.report)
    print_table(records, wanted)
    typer.echo(f"wrote {path}")


def _prepared(task: Task, method: str, networks: tuple[Any, Any], options: dict[str, Any]) -> Start:
    """Denoised smoothing: says what it costs; the result certifies."""
    from ..certify import BASES, certify_dataset
    from ..train.losses import weights_digest

    model = BASES[method](*networks, task.config.sigma, **options)
    names = {
        "denoiser": weights_digest(networks[0].network),
        **_conventions(networks[0]),
        "classifier": weights_digest(networks[1]),
    }
    task.tell(
        method,
        f"{task.noisy * model.denoiser_calls:,} through the denoiser, "
        f"{task.noisy * model.n_versions:,} through the classifier",
    )

    def start(report: Report) -> Sequence[Record]:
        return certify_dataset(
            model,
            task.dataset,
            task.config,
            task.path,
            networks=names,
            batch_size=task.batch_size,
            device=task.device,
            report=report,
        )

    return start


def _networks(data: str, denoiser: str | None, classifier: str | None) -> tuple[Any, Any]:
    """Those that were given, else those bundled for the data set."""
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier

    return (
        load_denoiser(network_of(data, "denoiser", denoiser)),
        load_classifier(network_of(data, "classifier", classifier)),
    )


def _counted(n: int | None, there: int) -> int:
    """``n`` images, if there are so many. What was once ``--n`` are the noise draws."""
    from ..errors import whole

    if n is None:
        return min(100, there)
    try:
        return whole("--n", n, 1, there)
    except ValueError as error:
        raise ValueError(f"{error}. It is the number of images; noise draws are --draws") from None


def _conventions(denoiser: Any) -> dict[str, Any]:
    """What a denoiser is beside its weights, where that is not what every older file's was."""
    told = denoiser.describe()
    usual = {"prediction": "eps", "schedule": "linear", "time_input": "continuous"}
    return {} if all(told[name] == value for name, value in usual.items()) else {"conventions": told}


def _options(method: str, options: dict[str, Any]) -> dict[str, Any]:
    """The method's own options, if they are its own."""
    from ..certify import BASES
    from ..errors import mistake, one_of

    one_of("--method", method, (*BASES, nrdc.NRDC))
    takes = nrdc.OPTIONS if method == nrdc.NRDC else BASES[method].options
    for name in options:
        if name not in takes:
            expected = f"left out: {method} takes {', '.join(takes) or 'no settings'}"
            raise ValueError(mistake("--" + name.replace("_", "-"), expected, options[name]))
    return options


def parse_radii(text: str) -> list[float]:
    """The numbers of a comma-separated list.

    Raises:
        ValueError: something in it is not a number >= 0.
    """
    from ..errors import mistake

    try:
        radii = [number(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(mistake("radii", "numbers separated by commas", repr(text))) from error
    if not all(0 <= radius < float("inf") for radius in radii):
        raise ValueError(mistake("radii", "finite numbers >= 0", repr(text)))
    return radii


def print_table(records: Sequence[Record | PosteriorRecord], radii: list[float]) -> None:
    """Certified accuracy at each radius with its 95 % interval, and how many images were abstentions."""
    from ..certify import rate_at
    from ..intervals import wilson

    abstained = sum(record.predicted < 0 for record in records)
    typer.echo(f"{'L2 radius':>10}  certified accuracy (95 % Wilson interval)")
    for radius in radii:
        right = rate_at([record.correct for record in records], [r.radius for r in records], radius)
        typer.echo(f"{radius:>10g}  {wilson(right, len(records))}")
    typer.echo(f"abstained on {abstained} of {len(records)} images")


class _Bar:
    """Progress with time left; images of an earlier session do not count towards the speed."""

    def __init__(self, total: int) -> None:
        self._bar = Progress(total, "images", doing="certifying")

    def report(self, record: Record | PosteriorRecord, new: bool) -> None:
        if new:
            self._bar.step()
        else:
            self._bar.earlier()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
