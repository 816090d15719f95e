"""Does it compute the right thing at all? Asked before anything is measured or tested on a GPU.

    python -m bench.gpu_smoke --write        make bench/data/smoke.npz anew, in float64 on the CPU

The file holds a few images of the bundled digits networks, the noise, and the gradient of a guided purification in
float64. It depends on the bundled weights only; tests/bench/test_gpu_figures.py makes it again and compares.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import fastpure as fp
from bench.gpu_cases import STEPS, Sizes
from fastpure.baselines.comparison import Cases, Networks
from fastpure.reverse import RecordedNoise
from fastpure.reverse.graphs import FIRST_KEEPING

FILE = Path(__file__).parent / "data" / "smoke.npz"
TOLERANCES = {"fp64": 1e-10, "fp32": 1e-4, "bf16": 5e-2}
"""Largest relative error of a gradient; a wrong one is off by more than any of these."""
ROUNDING = 2e-2
"""What bfloat16 leaves between two orders of summation, should a library choose another one when it is recorded."""

Figures = Iterator[tuple[str, Callable[[], dict[str, Any]]]]


def kept() -> dict[str, Tensor]:
    with np.load(FILE) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def inputs() -> dict[str, Tensor]:
    """Images of the digits, cotangents and noise."""
    data = fp.data.digits("test")
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(4, 1, 8, 8, generator=generator)
    noise = torch.randn(STEPS, 4, 1, 8, 8, generator=generator)
    return {"x": data.images[:4].float(), "v": v, "noise": noise}


def gradient(given: dict[str, Tensor], precision: str, device: str = "cpu", backend: str = "auto") -> Tensor:
    """Gradient of sum(purifier(x) v) through guided COUP on the bundled digits networks."""
    dtype = torch.float64 if precision == "fp64" else torch.float32
    classifier = fp.load_classifier("digits").to(device)
    method = fp.methods.coup(classifier, t=STEPS * 0.01, dt=0.01, clip_output=False)
    purifier = fp.Purifier(
        fp.load_denoiser("digits").to(device), method, precision=precision, backend=backend
    )
    noise = RecordedNoise(steps=given["noise"].to(device, dtype))
    leaf = given["x"].to(device, dtype, copy=True).requires_grad_(True)
    with torch.enable_grad():
        out = purifier(leaf, noise=noise)
        return torch.autograd.grad((out * given["v"].to(device, dtype)).sum(), leaf)[0]


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double().cpu() - wanted.double().cpu()).norm() / wanted.double().norm())


def figures(sizes: Sizes) -> Figures:
    """The smallest case first: what fails there explains the rest."""
    for precision in ("fp32", "bf16"):
        yield f"digits gradient against float64, {precision}", partial(against_kept, sizes, precision)
    for network in dict.fromkeys(("ddpmpp-digits", sizes.network)):
        yield f"{network}, recorded against launched, bf16", partial(_against_launched, sizes, network)
    yield f"{sizes.network}, ours against the plain loop, fp32", partial(_against_plain, sizes)


def _checked(name: str, found: float, most: float, **more: Any) -> dict[str, Any]:
    # Written so that NaN fails.
    if not found <= most:
        raise AssertionError(f"{name}: relative error {found:.3g}, at most {most:.3g} is right; {more}")
    return {"figure": name, "error_relative": found, "at_most": most, **more}


def against_kept(sizes: Sizes, precision: str) -> dict[str, Any]:
    """The gradient on the device, as a user gets it, against the value in the repository."""
    given = kept()
    found = error(gradient(given, precision, sizes.device), given["gradient"])
    return _checked("digits gradient against float64", found, TOLERANCES[precision], precision=precision)


def _against_launched(sizes: Sizes, network: str) -> dict[str, Any]:
    """Purification and gradient; whether they are the same bits is written down, that they agree is demanded."""
    cases = Cases(Networks(network, torch.device(sizes.device)), sizes.smoke_batch, STEPS)
    recorded, launched = (cases.purifier("bf16", "store", backend) for backend in (sizes.recorded, "eager"))
    images, gradients = cases.purification(launched), cases.gradient(launched)
    for _ in range(FIRST_KEEPING):
        found = cases.purification(recorded), cases.gradient(recorded)
    same = {
        "images_equal": bool(torch.equal(found[0], images)),
        "gradients_equal": bool(torch.equal(found[1], gradients)),
    }
    worst = max(error(found[0], images), error(found[1], gradients))
    return _checked(
        "recorded against launched", worst, ROUNDING, network=network, batch=sizes.smoke_batch, **same
    )


def _against_plain(sizes: Sizes) -> dict[str, Any]:
    """The network at full size against its port to ordinary modules, under the same noise."""
    cases = Cases(Networks(sizes.network, torch.device(sizes.device)), 2, STEPS)
    ours = cases.gradient(cases.purifier("fp32"), cases.noise)
    found = error(ours, cases.peer_gradient(cases.loop("fp32")))
    return _checked("ours against the plain loop", found, 1e-3, network=sizes.network, precision="fp32")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true")
    if not parser.parse_args().write:
        parser.error("nothing to do without --write")
    given = inputs()
    arrays = {**given, "gradient": gradient(given, "fp64")}
    FILE.parent.mkdir(exist_ok=True)
    np.savez_compressed(FILE, **{name: value.numpy() for name, value in arrays.items()})


if __name__ == "__main__":
    main()
