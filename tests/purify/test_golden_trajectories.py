"""Whole purifications and their gradients against the published implementations, through the public API.

The recorded runs live in [-1, 1] and take L = sum(x_out * c); the public API speaks [0, 1], hence the factors 2.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastpure as fp
from tests.golden import FOLDER, arrays, coup_classifier, relative_error

F64, F32_OUT, F32_GRAD = 1e-9, 5e-6, 5e-5


@pytest.fixture(scope="module")
def denoiser():
    path = FOLDER / "ddpmpp_tiny.safetensors"
    return fp.load_denoiser(path, format="score_sde", config=FOLDER / "ddpmpp_tiny.json")


def run(denoiser, method, precision, x_in, cotangent, noise, memory="auto"):
    dtype = torch.float64 if precision == "fp64" else torch.float32
    u = ((torch.from_numpy(x_in).to(dtype) + 1) / 2).requires_grad_(True)
    purifier = fp.Purifier(denoiser, method, precision=precision, memory=memory)
    recorded = fp.RecordedNoise(**{k: torch.from_numpy(v.astype(np.float64)) for k, v in noise.items()})
    x_out = 2 * purifier(u, noise=recorded) - 1
    (grad,) = torch.autograd.grad((x_out * torch.from_numpy(cotangent).to(dtype)).sum(), u)
    return x_out, grad / 2


def compare(denoiser, method, x_in, cotangent, noise, out, grad):
    x_out, g = run(denoiser, method, "fp64", x_in, cotangent, noise)
    assert relative_error(x_out, out) < F64
    assert relative_error(g, grad) < F64
    x_out, g = run(denoiser, method, "fp32", x_in, cotangent, noise, memory="recompute")
    assert relative_error(x_out, out) < F32_OUT
    assert relative_error(g, grad) < F32_GRAD


@pytest.mark.parametrize(("case", "t"), [("t10", 0.01), ("t100", 0.1)])
def test_diffpure(denoiser, case, t):
    g = {
        k.removeprefix(f"{case}_"): v for k, v in arrays("diffpure_trajectory").items() if k.startswith(case)
    }
    method = fp.methods.diffpure(t=t, dt=1e-3)
    assert method.table().column("tau")[1:] == pytest.approx(g["labels_f64"], rel=1e-12)
    noise = {"forward": g["e"], "steps": g["z"]}
    compare(denoiser, method, g["x_in"], g["c"], noise, g["x_out_f64"], g["grad_x_in_f64"])


def test_diffpure_integer_labels():
    g = arrays("diffpure_trajectory")
    for t, key in ((0.01, "adm_t10_labels_int_f64grid"), (0.1, "adm_labels_t100_f64")):
        index = fp.methods.diffpure(t=t).table().column("index")[1:]
        assert list(index) == list(g[key]), "the exact grid repeats no label and skips none"


@pytest.mark.parametrize(
    ("prefix", "case", "t", "dt", "scale", "label"),
    [
        ("", "t10", 0.01, 1e-3, 1.0, "step"),
        ("", "t10", 0.01, 1e-3, 1.0, "input"),
        ("", "t100", 0.1, 5e-3, 1.0, "step"),
        ("", "t100", 0.1, 5e-3, 1.0, "input"),
        ("strong_", "t10", 0.01, 1e-3, 50.0, "step"),
    ],
)
def test_coup(denoiser, prefix, case, t, dt, scale, label):
    g = arrays("coup_trajectory")
    name = f"{prefix}{case}_{'current' if label == 'step' else 'input'}"
    method = fp.methods.coup(coup_classifier(), t, dt, scale, label, clip_output=False)
    noise = {"steps": g[f"{case}_z"]}
    out, grad = g[f"{name}_x_out_f64"], g[f"{name}_grad_x_in_f64"]
    compare(denoiser, method, g["x_in"], g["c"], noise, out, grad)


@pytest.mark.parametrize("case", ["t10", "t100"])
def test_coup_detached_is_the_published_gradient_and_another_one(denoiser, case):
    g = arrays("coup_trajectory")
    t, dt = {"t10": (0.01, 1e-3), "t100": (0.1, 5e-3)}[case]
    method = fp.methods.coup(coup_classifier(), t, dt, guidance_grad="detached", clip_output=False)
    _, grad = run(denoiser, method, "fp64", g["x_in"], g["c"], {"steps": g[f"{case}_z"]})
    assert relative_error(grad, g[f"{case}_current_grad_x_in_guidance_detached_f64"]) < F64
    assert relative_error(grad, g[f"{case}_current_grad_x_in_f64"]) > 1e-6, "the Hessian term must show"


def test_coup_without_guidance(denoiser):
    g = arrays("coup_trajectory")
    method = fp.methods.coup_unguided(t=0.1, dt=5e-3, clip_output=False)
    x_out, _ = run(denoiser, method, "fp64", g["x_in"], g["c"], {"steps": g["t100_z"]})
    assert relative_error(x_out, g["t100_x_out_unguided_f64"]) < F64


@pytest.mark.parametrize("variance", ["small", "large"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm(denoiser, variance, clip):
    g = arrays("ddpm_trajectory")
    name = f"{variance}_{'clip' if clip else 'noclip'}"
    method = fp.methods.ddpm(t=0.1, variance=variance, clip_x0=clip, clip_output=False)
    assert list(method.table().column("index")[1:]) == list(g["timesteps"])
    noise = {"forward": g["e"], "steps": g["z"]}
    out, grad = g[f"{name}_x_out_f64"], g[f"{name}_grad_x_in_f64"]
    compare(denoiser, method, g["x_in"], g["c"], noise, out, grad)


@pytest.mark.parametrize(("case", "spacing"), [("stride10", "trailing"), ("even10", "linspace")])
@pytest.mark.parametrize("clip", [False, True])
def test_ddim(denoiser, case, spacing, clip):
    g = arrays("ddim_trajectory")
    name = f"{case}_{'clip' if clip else 'noclip'}"
    method = fp.methods.ddim(t=0.1, n_steps=10, clip_x0=clip, spacing=spacing, clip_output=False)
    assert list(method.table().column("index")[1:]) == list(g[f"{case}_timesteps"])
    out, grad = g[f"{name}_x_out_f64"], g[f"{name}_grad_x_in_f64"]
    compare(denoiser, method, g["x_in"], g["c"], {"forward": g["e"]}, out, grad)
