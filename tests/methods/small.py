"""Every method in a few steps on toy networks."""

from __future__ import annotations

import torch

import fastpure as fp
from fastpure.nets import EnergyConfig, EnergyNet
from tests.methods.cases import auxiliary
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser


def toy_energy(dtype=torch.float64):
    """Steep enough for its curvature to matter over a few steps."""
    network = EnergyNet(EnergyConfig(SHAPE, (5, 6))).initialise(3).to(dtype).eval()
    with torch.no_grad():
        network.last.weight.mul_(30)
    return network


SMALL = {
    "diffpure": lambda: fp.methods.diffpure(t=0.1, dt=0.02),
    "diffpure_ode": lambda: fp.methods.diffpure_ode(t=0.1, dt=0.02),
    "coup": lambda: fp.methods.coup(toy_classifier(), t=0.1, dt=0.02),
    "coup_unguided": lambda: fp.methods.coup_unguided(t=0.1, dt=0.02),
    "ddpm": lambda: fp.methods.ddpm(t=0.1, n_steps=4),
    "ddim": lambda: fp.methods.ddim(t=0.1, n_steps=4, eta=0.5),
    "dpm_solver": lambda: fp.methods.dpm_solver(t=0.1, n_steps=4, stochastic=True),
    "gdmp": lambda: fp.methods.gdmp(t=0.004, rounds=2),
    "agdm": lambda: fp.methods.agdm(auxiliary(), t=0.004, scale=100.0, features="noised"),
    "adbm": lambda: fp.methods.adbm(rounds=2),
    "addt": lambda: fp.methods.addt("ddpm", 50),
    "vp_sde": lambda: fp.methods.vp_sde(strength=0.003),
    "edm": lambda: fp.methods.edm(n_steps=4),
    "gradual": lambda: fp.methods.gradual(fp.methods.SURROGATE),
    "one_shot": lambda: fp.methods.one_shot(),
    "langevin": lambda: fp.methods.langevin(n_steps=4),
    "likelihood_max": lambda: fp.methods.likelihood_max(n_iter=2, classifier=toy_classifier()),
    "adp": lambda: fp.methods.adp(n_iter=2),
    "flow": lambda: fp.methods.flow(n_steps=3, solver="heun"),
    "flowpure": lambda: fp.methods.flowpure(start=0.4, n_steps=3),
    "consistency": lambda: fp.methods.consistency(n_steps=3),
    "lorid": lambda: fp.methods.lorid(t=0.004, rounds=2, n_steps=2),
    "mimic": lambda: fp.methods.mimic(n_steps=4, guidance_grad="smoothed"),
    "ebm_langevin": lambda: fp.methods.ebm_langevin(toy_energy(), n_steps=3, tau=0.2),
    "heterogeneous": lambda: fp.methods.heterogeneous(toy_classifier(), n_steps=4, blocks="conv"),
    "freqpure": lambda: fp.methods.freqpure(n_steps=4),
    "dps": lambda: fp.methods.dps(n_steps=4),
}


def images(n):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


CONVENTIONS = {
    "flow": {"prediction": "flow", "schedule": "flow"},
    "flowpure": {"prediction": "flow", "schedule": "flowpure", "data_at": 1},
    "consistency": {"prediction": "consistency", "time_input": "sigma"},
}
"""Of the denoisers that some methods ask for."""


def denoiser(method, dtype=torch.float64, around=None):
    """The toy network, or what ``around`` makes of it, with the conventions that the method asks for."""
    network = toy_denoiser(dtype).network
    told = CONVENTIONS.get(method.schedule, {"time_input": "continuous"})
    return fp.Denoiser.from_module(around(network) if around else network, image_shape=SHAPE, **told)


def purifier(method, **settings):
    return fp.Purifier(denoiser(method), method, precision="fp64", **settings)
