"""Every method beside its formula written out, with inputs for both and what compares them."""

from __future__ import annotations

import torch
from torch import nn

import fastpure as fp
from fastpure.classifiers import FeatureHead, ResNet, ResNetConfig
from tests.methods import written_out as plain
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser

ADP = {"rate": 0.05, "probe": 1e-3, "bounds": (1e-5, 0.1), "stop": 0.0105}


def auxiliary() -> nn.Module:
    torch.manual_seed(4)
    layers = (
        nn.Conv2d(2, 5, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(320, 7),
        nn.Tanh(),
        nn.Linear(7, 4),
    )
    return FeatureHead(nn.Sequential(*layers).double().eval(), head="5")


def frozen_resnet() -> nn.Module:
    torch.manual_seed(6)
    config = ResNetConfig(image_shape=SHAPE, classes=4, widths=(8, 9), mean=(0.5, 0.4), std=(0.3, 0.2))
    return ResNet(config).double().eval().requires_grad_(False)


def agdm_case(sampler, label="input", features="clean", network=None, latent="penultimate", distance="mse"):
    network = network or auxiliary()
    settings = {"scale": 5e4, "eta": 3.0, "sampler": sampler, "label": label, "features": features}
    settings |= {"latent": latent, "distance": distance}
    method = fp.methods.agdm(network, t=0.006, clip_output=False, **settings)
    return method, lambda eps, u, noise: plain.agdm(
        eps, network, u, noise, range(5, -1, -1), *settings.values()
    )


def respaced_agdm_case():
    """5 of the 40 steps 0, 26, 51, 77, ..., 999; the logits are the default."""
    network, settings = auxiliary(), {"scale": 300.0, "eta": 3.0}
    method = fp.methods.agdm(network, t=0.125, chain=40, clip_output=False, **settings)
    indices = [102, 77, 51, 26, 0]
    return method, lambda eps, u, noise: plain.agdm(
        eps, network, u, noise, indices, *settings.values(), "ddpm", "input", "clean", "logits"
    )


def exponential_case(classifier, scale, diffused=False):
    times = (0.1, 0.07, 0.04, 0.01, 1e-5)
    settings = {"t": 0.1, "dt": 0.03, "clip_output": False, "solver": "exponential"}
    forward = plain.ABAR[99] if diffused else None
    if diffused:
        method = fp.methods.diffpure(**settings)
    elif classifier is None:
        method = fp.methods.coup_unguided(**settings)
    else:
        method = fp.methods.coup(classifier, scale=scale, **settings)
    return method, lambda eps, u, noise: plain.coup_exponential(
        eps, classifier, u, noise, times, scale, forward
    )


def edm_case(**changes):
    settings = {
        "sigma_max": 0.5,
        "sigma_min": 0.002,
        "n_steps": 4,
        "churn": 2.0,
        "s_noise": 1.007,
        "heun": True,
    }
    settings |= changes
    method = fp.methods.edm(**settings, clip_output=False)
    return method, lambda eps, u, noise: plain.edm(eps, u, noise, *settings.values())


def likelihood_case(classifier=None):
    method = fp.methods.likelihood_max(3, 0.1, (0.4, 0.6), classifier, 0.02, clip_output=False)
    return method, lambda eps, u, noise: plain.likelihood_max(eps, u, noise, 0.1, 0.4, 0.6, classifier, 0.02)


CASES = {
    "agdm_ddpm": lambda: agdm_case("ddpm"),
    "agdm_sde": lambda: agdm_case("sde"),
    "agdm_exponential": lambda: agdm_case("exponential"),
    "coup_exponential": lambda: exponential_case(toy_classifier(), 5.0),
    "coup_unguided_exponential": lambda: exponential_case(None, 0.0),
    "diffpure_exponential": lambda: exponential_case(None, 0.0, diffused=True),
    "agdm_step_label": lambda: agdm_case("ddpm", label="step"),
    "agdm_noised_features": lambda: agdm_case("sde", features="noised"),
    "agdm_logits": lambda: agdm_case("ddpm", latent="logits"),
    "agdm_logits_noised": lambda: agdm_case("sde", features="noised", latent="logits"),
    "agdm_divergence": lambda: agdm_case("ddpm", latent="logits", distance="kl"),
    "agdm_respaced": respaced_agdm_case,
    "agdm_resnet": lambda: agdm_case("ddpm", network=frozen_resnet()),
    "adbm": lambda: (
        fp.methods.adbm(clip_output=False),
        lambda eps, u, noise: plain.adbm(eps, u, noise, 99, 5),
    ),
    "adbm_ddpm": lambda: (
        fp.methods.adbm(sampler="ddpm", clip_output=False),
        lambda eps, u, noise: plain.adbm_ddpm(eps, u, noise, [99, 79, 59, 39, 19]),
    ),
    "adbm_dpm_solver": lambda: (
        fp.methods.adbm(sampler="dpm_solver", clip_output=False),
        lambda eps, u, noise: plain.adbm_dpm_solver(eps, u, noise, [99, 79, 59, 39, 19]),
    ),
    "adbm_coup": lambda: (
        fp.methods.adbm(clip_output=False, classifier=toy_classifier(), scale=5.0),
        lambda eps, u, noise: plain.adbm(eps, u, noise, 99, 5, toy_classifier(), 5.0),
    ),
    "addt_ddpm": lambda: (
        fp.methods.addt("ddpm", 50, clip_output=False),
        lambda eps, u, noise: plain.addt(eps, u, noise, [100, 80, 60, 40, 20, 0], "ddpm"),
    ),
    "addt_ddim": lambda: (
        fp.methods.addt("ddim", 50, clip_output=False),
        lambda eps, u, noise: plain.addt(eps, u, noise, [100, 80, 60, 40, 20, 0], "ddim"),
    ),
    "addt_vp": lambda: (
        fp.methods.addt("vp", strength=0.005),
        lambda eps, u, noise: plain.vp_sde(
            eps, u, noise, [0.006, 0.005, 0.004, 0.003, 0.002, 0.001], 1e-3, 0.16
        ),
    ),
    "addt_vp_predictor": lambda: (
        fp.methods.addt("vp", strength=0.005, corrector=False),
        lambda eps, u, noise: plain.vp_predictor(
            eps, u, noise, [0.006, 0.005, 0.004, 0.003, 0.002, 0.001], 1e-3
        ),
    ),
    "edm": edm_case,
    "edm_euler_ode": lambda: edm_case(churn=0.0, heun=False),
    "edm_full_churn": lambda: edm_case(churn=40.0),
    "gradual": lambda: (
        fp.methods.gradual(((5, 5), (20, 2))),
        lambda eps, u, noise: plain.gradual(eps, u, noise, ((5, 5), (20, 2))),
    ),
    "langevin": lambda: (
        fp.methods.langevin(n_steps=5),
        lambda eps, u, noise: plain.langevin(eps, u, noise, 5),
    ),
    "likelihood_max": likelihood_case,
    "likelihood_max_coup": lambda: likelihood_case(toy_classifier()),
    "adp": lambda: (
        fp.methods.adp(level=0.2, n_iter=4, stop=ADP["stop"], clip_output=False),
        lambda eps, u, noise: plain.adp(eps, u, noise, 0.25, 0.2, 4, ADP)[0],
    ),
    "adp_after": lambda: (
        fp.methods.adp(level=0.2, n_iter=4, stop=ADP["stop"], clip_output=False, rest="after"),
        lambda eps, u, noise: plain.adp(eps, u, noise, 0.25, 0.2, 4, ADP, "after")[0],
    ),
    "lorid": lambda: (
        fp.methods.lorid(t=0.004, rounds=2, ranks=(1, 3, 5), clip_output=False),
        lambda eps, u, noise: plain.lorid(eps, u, noise, 3, 2, (1, 3, 5)),
    ),
}
PROCEDURES = ["addt_vp", "likelihood_max", "likelihood_max_coup", "adp"]


def networks():
    denoiser = toy_denoiser()
    return denoiser, lambda x, label: denoiser.network(x, x.new_full((len(x),), float(label)))


def inputs(method, batch=3):
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, *SHAPE, generator=generator, dtype=torch.float64)

    u = torch.rand(batch, *SHAPE, generator=generator, dtype=torch.float64)
    n_forward = method.table().n_forward_rows
    n = len(method.table()) - n_forward
    forward = draw(batch) if n_forward == 1 else draw(n_forward, batch)
    return (
        u,
        draw(batch),
        {"forward": forward if n_forward else None, "steps": draw(n, batch), "guidance": draw(n, batch)},
    )


def error(a, b):
    return float((a - b).abs().max() / b.abs().max())


def ours(method, u, v, noise, memory, precision="fp64"):
    purifier = fp.Purifier(networks()[0], method, precision=precision, memory=memory)
    leaf = u.clone().requires_grad_(True)
    out = purifier(leaf, noise=fp.RecordedNoise(**noise))
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


def reference(run, u, v, noise):
    leaf = u.clone().requires_grad_(True)
    out = run(networks()[1], leaf, noise)
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]
