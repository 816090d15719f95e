"""A whole DiffPure run on the guided-diffusion network, integer labels and learned variance included."""

from __future__ import annotations

import fastpure as fp
from tests.golden import FOLDER, arrays
from tests.purify.test_golden_trajectories import compare


def test_diffpure_on_guided_diffusion():
    g = {
        k.removeprefix("adm_t10_"): v
        for k, v in arrays("diffpure_trajectory").items()
        if k.startswith("adm_t10_")
    }
    denoiser = fp.load_denoiser(FOLDER / "adm_tiny.pt", config=FOLDER / "adm_tiny.json")
    noise = {"forward": g["e"], "steps": g["z"]}
    method = fp.methods.diffpure(t=0.01, dt=1e-3)
    compare(denoiser, method, g["x_in"], g["c"], noise, g["x_out_f64"], g["grad_x_in_f64"])
