"""`fastpure doctor`: what is available here, what runs, and why not."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .convert import (
    Activation,
    Architecture,
    CheckpointFormat,
    ClassLabel,
    ConfigFile,
    Normalise,
    WhichWeights,
)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
    denoiser: Annotated[
        Path | None,
        typer.Option(
            help="Load this denoiser (a file, or a folder of diffusers) and say what it is instead."
        ),
    ] = None,
    format: CheckpointFormat = None,
    config: ConfigFile = None,
    class_label: ClassLabel = None,
    weights: WhichWeights = None,
    classifier: Annotated[
        str | None,
        typer.Option(
            help="Say what this classifier is instead: a bundled name or a file. With --data: which input it wants."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Data set whose labelled test images are shown to the classifier.")
    ] = None,
    data_path: Annotated[Path | None, typer.Option(help="File or folder with the images.")] = None,
    n: Annotated[int | None, typer.Option(help="How many of them. (default: 500)")] = None,
    normalise: Normalise = None,
    architecture: Architecture = None,
    activation: Activation = None,
) -> None:
    """Say what is available on this machine, which back end runs each operation, and why not another.

    With --denoiser: format, architecture, which weights are taken, what is left out, SHA-256. No code in the
    file is run. With --classifier and --data: the usual ranges and normalisations tried on labelled images, in a table,
    and the argument to give.
    """
    if classifier is not None:
        from . import examine
        from .options import normalisation

        if denoiser is not None:
            raise ValueError("`--denoiser` must be left out with --classifier")
        options = {
            "normalise": normalisation(normalise),
            "architecture": architecture,
            "activation": activation,
        }
        examine.classifier(classifier, data, data_path, n, weights, options, as_json)
        return
    if denoiser is not None:
        from ..checkpoints import load_denoiser

        loaded = load_denoiser(denoiser, format, config, class_label=class_label, weights=weights).checkpoint
        print(json.dumps(loaded.describe(), indent=2) if as_json else loaded)
        return
    report = collect()
    if as_json:
        print(json.dumps(report, indent=2))
        return
    for name, value in report["environment"].items():
        print(f"{name:<12} {value}")
    extension = report["kernels"]["extension"]
    print(
        f"{'extension':<12} {'available' if extension['available'] else 'NOT AVAILABLE: ' + extension['reason']}"
    )
    for name, value in extension["build"].items():
        print(f"  {name:<10} {value}")
    print(f"  {'on CUDA':<10} {extension['cuda']}")
    print("\nback ends")
    for op, devices in report["kernels"]["ops"].items():
        for device, dtypes in devices.items():
            for dtype, entry in dtypes.items():
                print(f"  {op:<16} {device:<5} {dtype:<8} {entry.get('chosen') or entry.get('error')}")
                for backend, reason in (entry.get("unavailable") or {}).items():
                    print(f"    not {backend}: {reason}")
    print("\nhow steps are carried out (backend='auto', tried on the digits models)")
    for device, execution in report["execution"].items():
        print(f"  {device:<16} {execution['backend']}: {execution['reason']}")
    for model, state in report["bundled"].items():
        print(f"\n{model}: {state}" if model == next(iter(report["bundled"])) else f"{model}: {state}")


def collect() -> dict[str, Any]:
    """Environment, kernels and bundled models as plain values that JSON can hold."""
    from ..kernels import backend_report

    return {
        "environment": environment(),
        "kernels": backend_report(),
        "execution": _executions(),
        "bundled": _bundled(),
    }


def environment() -> dict[str, Any]:
    """Versions and hardware, as plain values."""
    import numpy
    import torch

    import fastpure

    from .. import heap, neighbours, openmp, threads

    cuda = torch.cuda.is_available()
    return {
        "fastpure": fastpure.__version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "threads": threads.available(),
        "because": ", ".join(f"{name} = {number}" for name, number in threads.limits().items()),
        "waiting": f"{openmp.policy()}; {neighbours.effect()}",
        "freed memory": heap.policy(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if cuda else "none: " + _why_no_gpu(),
    }


def _why_no_gpu() -> str:
    import torch

    if torch.version.cuda is None:
        return "this build of torch is for the CPU"
    return "torch finds no CUDA device (driver missing, or none visible)"


def _executions() -> dict[str, dict[str, str]]:
    """What ``backend="auto"`` comes to on every device, found out by purifying an image there."""
    import dataclasses
    import warnings

    import torch

    from .. import methods
    from ..checkpoints import load_denoiser
    from ..purify import Purifier

    found = {}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        try:
            denoiser = load_denoiser("digits").to(device)
            purifier = Purifier(denoiser, methods.coup_unguided(t=0.1, dt=0.05))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # its reason is in the report
                purifier(torch.full((1, *denoiser.image_shape), 0.5, device=device))
            found[device] = dataclasses.asdict(purifier.execution)
        except (OSError, ValueError, RuntimeError) as error:
            found[device] = {"backend": "none", "reason": f"purification failed: {error}"}
    return found


def _bundled() -> dict[str, str]:
    from ..checkpoints import load_denoiser
    from ..classifiers import load_classifier
    from ..zoo import CLASSIFIERS, DENOISERS

    states = {}
    for kind, load, names in (
        ("denoiser", load_denoiser, DENOISERS),
        ("classifier", load_classifier, CLASSIFIERS),
    ):
        for name in names:
            try:
                model = load(name)
                states[f"{kind} {name}"] = f"{sum(p.numel() for p in model.parameters()):,} parameters"
            except (ValueError, OSError) as error:
                states[f"{kind} {name}"] = f"CANNOT BE LOADED: {error}"
    return states
