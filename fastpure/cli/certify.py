"""`fastpure certify`: accuracy that no attack within a radius can lower, by denoised smoothing."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .options import checked_device

if TYPE_CHECKING:
    from ..certify import Record


def certify(
    data: Annotated[str, typer.Option(help="Data set: digits or cifar10 (needs --data-path).")] = "digits",
    data_path: Annotated[Path | None, typer.Option(help="File or folder with the images.")] = None,
    denoiser: Annotated[str, typer.Option(help="Denoiser: a bundled name or a file.")] = "digits",
    classifier: Annotated[str, typer.Option(help="Classifier: a bundled name or a file.")] = "digits",
    method: Annotated[
        str,
        typer.Option(help="What is smoothed: oneshot, densepure (majority of reverse runs) or diffsmooth."),
    ] = "oneshot",
    runs: Annotated[int | None, typer.Option(help="densepure: reverse runs per noisy image.")] = None,
    steps: Annotated[int | None, typer.Option(help="densepure: network calls of a run.")] = None,
    copies: Annotated[int | None, typer.Option(help="diffsmooth: copies of the denoised image.")] = None,
    local_sigma: Annotated[float | None, typer.Option(help="diffsmooth: deviation of their noise.")] = None,
    combine: Annotated[
        str | None, typer.Option(help="diffsmooth: what is added up: softmax, majority or logits.")
    ] = None,
    sigma: Annotated[float, typer.Option(help="Deviation of the noise, pixels in [0, 1].")] = 0.25,
    n0: Annotated[int, typer.Option(help="Noise draws that choose the class.")] = 100,
    n: Annotated[int, typer.Option(help="Noise draws that estimate its probability.")] = 100_000,
    alpha: Annotated[float, typer.Option(help="Probability that a certificate is wrong, per image.")] = 0.001,
    images: Annotated[int, typer.Option(help="How many test images, chosen by --data-seed.")] = 100,
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
    abstentions and count as wrong. Given again, the same command continues an interrupted run.

    Example: fastpure certify --data digits --sigma 0.25 --n 1000
    """
    from .. import certify as certification
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier
    from ..data import load_dataset
    from ..train.losses import weights_digest

    wanted = parse_radii(radii)
    config = certification.CertifyConfig(sigma, n0, n, alpha, seed)
    dataset = load_dataset(data, "test", path=data_path)
    dataset = dataset.subset(min(images, len(dataset)), data_seed)
    given = {"runs": runs, "steps": steps, "copies": copies, "local_sigma": local_sigma, "combine": combine}
    kind, options = _base(method, {name: value for name, value in given.items() if value is not None})
    networks = (load_denoiser(denoiser), load_classifier(classifier))
    model = kind(*networks, sigma, **options)
    where = checked_device(device or "cpu")
    known = "certify" if method == "oneshot" else f"certify-{method}"
    path = out or Path("runs") / f"{data}-{known}-{sigma:g}.csv"
    noisy = len(dataset) * (n0 + n)
    typer.echo(
        f"{dataset.describe()}\n{method}, sigma {sigma:g}, {n0} + {n} draws, alpha {alpha:g}: "
        f"{noisy:,} noisy images ({noisy * model.denoiser_calls:,} through the denoiser, "
        f"{noisy * model.n_versions:,} through the classifier) into {path}; "
        "Ctrl-C stops, the same command continues"
    )
    with _Bar(len(dataset)) as bar:
        records = certification.certify_dataset(
            model,
            dataset,
            config,
            path,
            networks={
                "denoiser": weights_digest(networks[0].network),
                **_conventions(networks[0]),
                "classifier": weights_digest(networks[1]),
            },
            batch_size=batch_size,
            device=where,
            report=bar.report,
        )
    print_table(records, wanted)
    typer.echo(f"wrote {path}")


def _conventions(denoiser: Any) -> dict[str, Any]:
    """What a denoiser is beside its weights, where that is not what every older file's was."""
    told = denoiser.describe()
    usual = {"prediction": "eps", "schedule": "linear", "time_input": "continuous"}
    return {} if all(told[name] == value for name, value in usual.items()) else {"conventions": told}


def _base(method: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The base classifier's class and its own options, if they are its own."""
    from ..certify import BASES
    from ..errors import mistake, one_of

    kind = BASES[one_of("--method", method, BASES)]
    for name in options:
        if name not in kind.options:
            expected = f"left out: {method} takes {', '.join(kind.options) or 'no settings'}"
            raise ValueError(mistake("--" + name.replace("_", "-"), expected, options[name]))
    return kind, options


def parse_radii(text: str) -> list[float]:
    """The numbers of a comma-separated list.

    Raises:
        ValueError: something in it is not a number >= 0.
    """
    from ..errors import mistake

    try:
        radii = [float(word) for word in text.split(",")]
    except ValueError as error:
        raise ValueError(mistake("radii", "numbers separated by commas", repr(text))) from error
    if not all(0 <= radius < float("inf") for radius in radii):
        raise ValueError(mistake("radii", "finite numbers >= 0", repr(text)))
    return radii


def print_table(records: list[Record], radii: list[float]) -> None:
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
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit="image")

    def report(self, record: Record, new: bool) -> None:
        if not new:
            self._bar.initial += 1
        self._bar.update()

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
