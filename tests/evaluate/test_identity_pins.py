"""The identity of a run is a promise to files that exist: these are the bytes that were written with version 0.1.0.

A change here disowns every run file there is. A new setting keeps old files valid by staying out of the identity while
it has the value that they imply.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastpure as fp
from fastpure.attacks import ATTACKS, from_settings
from fastpure.data import load_dataset
from fastpure.evaluate.controls import CONTROLS
from fastpure.evaluate.identity import canonical, identity

PINS = Path(__file__).parents[1] / "data" / "identities.json"


def mean_square(images: Tensor, originals: Tensor) -> Tensor:
    """Stands in for LPIPS."""
    return (images - originals).square().flatten(1).mean(1)


def defenses() -> dict[str, Callable[[], torch.nn.Module]]:
    """One defence per method, and one for every setting that came later or leaves a trace of its own."""
    classifier, methods = fp.load_classifier("digits"), fp.methods
    denoiser, auxiliary = fp.load_denoiser("digits"), fp.load_classifier("digits-aux")

    def with_(
        method: Any, kind: dict[str, Any] | None = None, **settings: Any
    ) -> Callable[[], torch.nn.Module]:
        """``kind``: the conventions of the bundled network's weights, where the method wants others."""
        shape = denoiser.image_shape
        network = (
            denoiser
            if kind is None
            else fp.Denoiser.from_module(denoiser.network, image_shape=shape, **kind).eval()
        )
        return lambda: fp.Defense(fp.Purifier(network, method, **settings), classifier)

    made = {
        "diffpure": with_(methods.diffpure(t=0.15, dt=0.03)),
        "diffpure exponential": with_(methods.diffpure(t=0.15, dt=0.03, solver="exponential"), seed=7),
        "diffpure_ode": with_(methods.diffpure_ode(t=0.15, dt=0.03)),
        "coup": with_(methods.coup(classifier, t=0.15, dt=0.03, scale=2.0)),
        "coup exponential": with_(
            methods.coup(classifier, t=0.15, dt=0.03, solver="exponential", guidance_grad="detached")
        ),
        "coup_unguided": with_(methods.coup_unguided(t=0.15, dt=0.03), precision="bf16"),
        "ddpm": with_(methods.ddpm(t=0.05)),
        "ddim": with_(methods.ddim(n_steps=4), gradient_precision="bf16"),
        "dpm_solver": with_(methods.dpm_solver(n_steps=4, stochastic=True)),
        "gdmp": with_(methods.gdmp(t=0.01, rounds=2)),
        "gdmp level": with_(methods.gdmp(t=0.01, rounds=2, begin="level", metric="ssim", data_range=2.0)),
        "gdmp published ssim": with_(methods.gdmp(t=0.01, rounds=2, begin="level", metric="ssim")),
        "agdm": with_(methods.agdm(auxiliary, t=0.02, latent="penultimate")),
        "agdm logits": with_(methods.agdm(auxiliary, t=0.02)),
        "agdm divergence": with_(methods.agdm(auxiliary, t=0.02, distance="kl", chain=250)),
        "adbm": with_(methods.adbm()),
        "adbm small": with_(methods.adbm(sampler="ddpm", variance="small")),
        "adbm large": with_(methods.adbm(sampler="ddpm")),
        "adbm solver": with_(methods.adbm(sampler="dpm_solver")),
        "adbm guided": with_(methods.adbm(classifier=classifier, scale=0.5)),
        "addt": with_(methods.addt(n_steps=50)),
        "addt guided": with_(methods.addt("ddim", n_steps=50, classifier=classifier)),
        "addt vp": with_(methods.addt("vp", n_steps=50)),
        "addt vp predictor": with_(methods.addt("vp", n_steps=50, corrector=False)),
        "addt edm": with_(methods.addt("edm", n_steps=6)),
        "vp_sde": with_(methods.vp_sde(n_steps=40)),
        "edm": with_(methods.edm(n_steps=5)),
        "gradual": with_(methods.gradual(stages=methods.SURROGATE)),
        "one_shot": with_(methods.one_shot()),
        "langevin": with_(methods.langevin(t=0.05)),
        "likelihood_max": with_(methods.likelihood_max(n_iter=2)),
        "likelihood_max guided": with_(methods.likelihood_max(n_iter=2, classifier=classifier)),
        "adp": with_(methods.adp(n_iter=3, rest="after")),
        "adp before": with_(methods.adp(n_iter=3)),
        "lorid": with_(methods.lorid(t=0.01, rounds=2, ranks=(1, 4, 4))),
        "flow": with_(
            methods.flow(n_steps=3, solver="heun"), kind={"prediction": "flow", "schedule": "flow"}
        ),
        "flowpure": with_(
            methods.flowpure(n_steps=3), kind={"prediction": "flow", "schedule": "flowpure", "data_at": 1}
        ),
        "consistency": with_(
            methods.consistency(n_steps=2), kind={"prediction": "consistency", "time_input": "sigma"}
        ),
        "mimic": with_(methods.mimic(n_steps=4)),
        "dps": with_(methods.dps(n_steps=4)),
        "freqpure": with_(methods.freqpure(n_steps=4)),
        "ebm_langevin": with_(methods.ebm_langevin(fp.load_energy("digits"), n_steps=4)),
        "heterogeneous": with_(methods.heterogeneous(classifier, n_steps=4)),
        "module": lambda: classifier,
    }
    return made


def attacks() -> dict[str, Callable[[], Any]]:
    """One attack per class with its default settings, in every gradient mode, and every control."""
    needs = {"low-frequency": {"metric": mean_square, "bound": 1e-3}}
    made: dict[str, Callable[[], Any]] = {
        name: lambda name=name: from_settings(name, **needs.get(name, {}))
        for name in ATTACKS  # type: ignore[misc]
    }
    for gradient in ("bpda", "blind", "surrogate", "adjoint", "detached", "unguided"):
        made[f"pgd {gradient}"] = lambda gradient=gradient: fp.attacks.PGD(gradient=gradient)  # type: ignore[misc]
    made |= {f"control {name}": kind for name, kind in CONTROLS.items()}
    return made


def written(name: str) -> str:
    """The canonical identity of a case, whole for defences, the attack's part for attacks."""
    kind, _, case = name.partition("/")
    data, classifier = load_dataset("digits", "test").subset(4, 0), fp.load_classifier("digits")
    protocol = fp.protocols.fresh(3)
    if kind == "defense":
        return canonical(identity(defenses()[case](), data, None, protocol))
    text = canonical(identity(classifier, data, attacks()[case](), protocol)["attack"])
    return text.replace(repr(mean_square), "<metric>")


def cases() -> list[str]:
    return [f"defense/{name}" for name in defenses()] + [f"attack/{name}" for name in attacks()]


def test_every_method_and_attack_is_pinned():
    pinned = json.loads(PINS.read_text())
    assert set(pinned) >= set(cases())
    assert {name.partition("/")[2].split()[0] for name in pinned} >= {*fp.methods.METHODS, *ATTACKS}


@pytest.mark.parametrize("name", cases())
def test_identities_are_those_of_existing_run_files(name):
    assert written(name) == json.loads(PINS.read_text())[name]
