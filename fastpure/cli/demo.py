"""`fastpure demo`: attack four defences of small images with all that an attacker has, and show it."""

from __future__ import annotations

import hashlib
import os
import shutil
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import typer

from ..files import real, replacing
from .demo_settings import SETTINGS, Setting, choose, default, place
from .names import among

if TYPE_CHECKING:
    from torch import nn

    from ..attacks import AttackResult
    from ..data import Dataset


DETACHED = "COUP, guidance detached"

Out = Annotated[Path, typer.Option(help="Where to write the picture.")]
Data = Annotated[
    str,
    typer.Option(
        help="Data set: digits needs no file, cifar10 needs --data-path.", autocompletion=among(SETTINGS)
    ),
]
DataPath = Annotated[
    Path | None,
    typer.Option(
        help="Where the images of cifar10 are: the official archive (cifar-10-python.tar.gz or the binary one), the "
        "folder it was extracted to, the folder that holds one of these, or a JPEG pack (.npz).",
    ),
]
N = Annotated[int | None, typer.Option(help=default("How many test images to attack.", "n"))]
T = Annotated[float | None, typer.Option(help=default("Diffusion time from which images are purified.", "t"))]
Steps = Annotated[int | None, typer.Option(help=default("Steps of the reverse process.", "steps"))]
Scale = Annotated[float | None, typer.Option(help=default("Guidance scale of COUP.", "scale"))]
Norm = Annotated[
    str | None, typer.Option(help=default("Norm of the attack's budget: Linf, L2 or L1.", "norm"))
]
Eps = Annotated[
    float | None,
    typer.Option(
        help=default("Budget of the attack, pixels in [0, 1]; fractions such as 8/255 are fine.", "eps")
    ),
]
NIter = Annotated[int | None, typer.Option(help=default("PGD iterations.", "n_iter"))]
EotIter = Annotated[int | None, typer.Option(help=default("Noise draws averaged per iteration.", "eot_iter"))]
Draws = Annotated[int | None, typer.Option(help=default("Fresh noise draws that decide.", "eval_draws"))]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        help=default(
            "The purifiers' networks compute in fp32, tf32, bf16 or fp16; auto is bf16 where the processor multiplies "
            "in it, else fp32.",
            "precision",
        ),
    ),
]
Seed = Annotated[int | None, typer.Option(help=default("Seed of the defences' noise.", "seed"))]


def demo(
    out: Out = Path("demo.png"),
    data: Data = "digits",
    data_path: DataPath = None,
    n: N = None,
    t: T = None,
    steps: Steps = None,
    scale: Scale = None,
    norm: Norm = None,
    eps: Eps = None,
    n_iter: NIter = None,
    eot_iter: EotIter = None,
    draws: Draws = None,
    precision: PrecisionName = None,
    seed: Seed = None,
) -> None:
    """Attack a classifier of small images, bare and behind three purifiers, with exact gradients; print and draw it.

    Handwritten digits need no download and take less than 100 s on two free CPU cores; CIFAR-10 needs its official
    archive and takes some minutes. The attack is PGD with expectation over transformation: it differentiates
    exactly through the whole purification, guidance included. Accuracies are measured on noise the attack has not
    seen, with 95 % Wilson intervals.

    Interrupted, the same command continues with the next defence.

    Example: fastpure demo --data cifar10 --data-path cifar-10-python.tar.gz
    """
    from ..data import load_dataset
    from . import figures

    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise OSError(f"`--out` must name a file in a folder that can be written, got {out}")
    setting = choose(
        data,
        n=n,
        t=t,
        steps=steps,
        scale=scale,
        norm=norm,
        eps=eps,
        n_iter=n_iter,
        eot_iter=eot_iter,
        eval_draws=draws,
        precision=precision,
        seed=seed,
    ).with_precision_found()
    dataset = load_dataset(data, "test", path=place(data, data_path))
    if not 1 <= setting.n <= len(dataset):
        raise ValueError(f"`--n` must be in 1..{len(dataset)}, the test images there are, got {setting.n}")
    dataset = dataset.subset(setting.n, data_seed=0)
    defenses = build(setting)
    parts = Parts(out)
    results = attack_all(setting, defenses, dataset, parts)
    print_table(setting, results)
    figures.demo(out, dataset, defenses, {name: result.x_adv for name, result in results.items()})
    parts.done()
    print(f"\nwrote {out}")


def build(setting: Setting) -> dict[str, nn.Module]:
    """The bare classifier and the three defences, by name."""
    import fastpure as fp

    denoiser, classifier = fp.load_denoiser(setting.denoiser), fp.load_classifier(setting.classifier)
    t, dt = setting.t, setting.t / setting.steps
    methods = {
        "DiffPure": fp.methods.diffpure(t, dt, solver=setting.solver),
        "COUP without guidance": fp.methods.coup_unguided(t, dt, solver=setting.solver),
        "COUP": fp.methods.coup(classifier, t, dt, scale=setting.scale, solver=setting.solver),
    }
    defenses: dict[str, nn.Module] = {"no defence": classifier}
    for name, method in methods.items():
        purifier = fp.Purifier(denoiser, method, seed=setting.seed, precision=setting.precision)
        defenses[name] = fp.Defense(purifier, classifier)
    return defenses


def attack_all(
    setting: Setting, defenses: dict[str, nn.Module], data: Dataset, parts: Parts
) -> dict[str, AttackResult]:
    """Attack each defence on the same images, COUP once more as its authors did; with a progress bar.

    What is among ``parts`` is taken from there.
    """
    import fastpure as fp
    from fastpure.progress import Progress

    attack = fp.attacks.PGD(
        norm=setting.norm,
        eps=setting.eps,
        n_iter=setting.n_iter,
        eot_iter=setting.eot_iter,
        eval_draws=setting.eval_draws,
        batch_size=512,
    )
    todo = {name: (defense, attack) for name, defense in defenses.items()}
    todo[DETACHED] = (defenses["COUP"], replace(attack, gradient="detached"))
    results = {}
    with Progress(len(todo) * setting.n_iter, "iterations") as bar:
        for name, (defense, chosen) in todo.items():
            bar.step(0, f"attacking {name}")

            def report(iteration: int, loss: float) -> None:
                bar.step()

            key = identity(defense, data, chosen)
            found = parts.read(key)
            if found is None:
                found = chosen(defense, data.images, data.labels, sample_ids=data.sample_ids, report=report)
                parts.write(key, found)
            else:
                bar.step(setting.n_iter)
            results[name] = found
    return results


def print_table(setting: Setting, results: dict[str, AttackResult]) -> None:
    """Clean and robust accuracy with intervals, and what the attack cost per image."""
    from rich.console import Console
    from rich.table import Table

    from ..report.data import value_text

    table = Table(
        title=f"PGD-{setting.n_iter}, EOT {setting.eot_iter}, {setting.norm} {value_text('eps', setting.eps)}; "
        f"{setting.n} {setting.images}, {setting.eval_draws} fresh draws, 95 % Wilson intervals",
        title_justify="left",
    )
    for column in ("defence", "clean %", "robust %", "attack s/image"):
        table.add_column(column, justify="left" if column == "defence" else "right")
    for name, result in results.items():
        rates = (result.clean_accuracy, result.robust_accuracy)
        cells = [str(rate).replace(" %", "") for rate in rates]
        table.add_row(name, *cells, f"{result.seconds / setting.n:.3f}")
    Console(width=110).print(table)
    print(
        f"DiffPure diffuses to t = {setting.t:g} and comes back in {setting.steps} steps; COUP does not diffuse, "
        f"and is guided\nby the classifier's confidence with scale {setting.scale:g}. Gradients are exact, except "
        "in the last row, where the derivative of the\nguidance itself is left out, as in COUP's published attack. "
        "A defence is as robust as its lowest row."
    )
    if setting.precision != "fp32" or setting.images != "digits":
        also = "too" if setting.precision == "fp32" else "in fp32"
        print(f"The purifiers' networks compute in {setting.precision}, the classifier that decides {also}.")


if TYPE_CHECKING:
    from torch import nn

    from ..attacks import AttackResult
    from ..data import Dataset

TENSORS = ("x_adv", "clean_correct", "robust_correct", "distance", "losses", "zero_gradients")
"""What is kept of a result beside its time and the attack's name; how it was executed is not shown."""


def identity(defense: nn.Module, data: Dataset, attack: Any) -> str:
    """SHA-256 of all that a result depends on: settings, weights, images, versions and the code itself."""
    import torch

    from ..evaluate.identity import canonical, code_sha256, describe_defense
    from ..purify.description import plain

    parts = {
        "defense": describe_defense(defense),
        "attack": plain(attack),
        "data": data.checksum,
        "ids": data.sample_ids.tolist(),
        "torch": str(torch.__version__),
        "code": code_sha256(),
    }
    return hashlib.sha256(canonical(parts).encode()).hexdigest()


@final
class Parts:
    """A hidden folder beside the picture ``out`` with one file per finished result, named after its `identity`."""

    def __init__(self, out: Path) -> None:
        place = real(out)
        self.folder = place.with_name(f".{place.name}.parts")

    def read(self, key: str) -> AttackResult | None:
        """The result of that identity; None if it is not there or cannot be read, and must be computed."""
        import pickle

        import torch

        from ..attacks import AttackResult

        try:
            found = torch.load(self._file(key), map_location="cpu", weights_only=True)
            return AttackResult(**found)
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, ValueError, pickle.UnpicklingError):
            return None

    def write(self, key: str, result: AttackResult) -> None:
        """Keep a result."""
        import torch

        kept = (*TENSORS, "seconds", "attack")
        values = {field.name: getattr(result, field.name) for field in fields(result) if field.name in kept}
        with replacing(self._file(key)) as file:
            torch.save(values, file)

    def done(self) -> None:
        """The picture is drawn: forget them."""
        with suppress(OSError):
            shutil.rmtree(self.folder)

    def _file(self, key: str) -> Path:
        return self.folder / f"{key[:32]}.pt"
