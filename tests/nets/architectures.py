"""A small network of every kind of block, for tests that must hold for all of them."""

from __future__ import annotations

from typing import Any

import torch

from fastpure import Denoiser

_SONG: dict[str, Any] = {
    "architecture": "ddpmpp",
    "image_size": 8,
    "channels": 3,
    "nf": 16,
    "ch_mult": (1, 2),
    "n_blocks": 1,
    "attn_resolutions": (4,),
    "dropout": 0.0,
}
_ADM: dict[str, Any] = {
    "architecture": "adm",
    "image_size": 8,
    "model_channels": 16,
    "widths": (16, 32),
    "n_blocks": 1,
    "attn_resolutions": (4,),
    "groups": 4,
}
_EDM: dict[str, Any] = {"architecture": "edm"}

CONFIGS: dict[str, dict[str, Any]] = {
    "ddpmpp": _SONG,
    "ddpm blocks": {**_SONG, "block": "ddpm"},
    "filtered": {**_SONG, "fir": True},
    "filtered, residual input": {**_SONG, "fir": True, "residual_input": True},
    "doubled between levels": {**_SONG, "ch_mult": (1, 2, 1), "attn_resolutions": (2,)},
    "adm": _ADM,
    "adm, added embedding": {**_ADM, "scale_shift": False},
    "adm, convolutions between levels": {**_ADM, "resample": "conv"},
    "adm, padded convolutions": {**_ADM, "resample": "padded_conv"},
    "adm, plain resampling": {**_ADM, "resample": "plain"},
    "adm, heads": {**_ADM, "head_channels": 8},
    "adm, heads in the old order": {**_ADM, "head_channels": 8, "legacy_attention": True},
    "adm, learned variance": {**_ADM, "learned_sigma": True, "narrow_groups": True, "eps": 1e-6},
    "edm on ddpmpp": {**_EDM, "network": {**_SONG, "embedding": "fourier"}},
    "edm on filtered": {**_EDM, "network": {**_SONG, "fir": True, "residual_input": True}},
    "edm on adm": {**_EDM, "network": _ADM},
}


def denoiser(name: str, seed: int = 0) -> Denoiser:
    """The network with every weight random (norms and biases too), frozen."""
    made = Denoiser.from_config(CONFIGS[name], seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for weight in made.network.parameters():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return made.frozen()
