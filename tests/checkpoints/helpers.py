"""What the checkpoint tests share."""

from __future__ import annotations

import torch

from fastpure import Denoiser
from tests.golden import FOLDER

SCORE_SDE, SCORE_SDE_CONFIG = (FOLDER / f"score_sde_checkpoint_tiny.{end}" for end in ("pth", "json"))


def state(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    return denoiser.network.state_dict()
