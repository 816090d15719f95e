"""Reference numbers made with the published implementations, and how to compare with them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parent / "data" / "golden"


def arrays(name: str) -> dict[str, np.ndarray]:
    """Every array of ``name``.npz."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: file[key] for key in file.files}


def config(name: str) -> dict:
    """``name``.json."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def published(name: str) -> dict:
    """keys_``name``.json.gz: names and shapes of a full-size published network."""
    return json.loads(gzip.decompress((FOLDER / f"keys_{name}.json.gz").read_bytes()))


def tensors(name: str) -> dict[str, Tensor]:
    """Every array of ``name``.npz as a tensor."""
    return {key: torch.from_numpy(value) for key, value in arrays(name).items()}


def relative_error(ours: Tensor | np.ndarray, theirs: Tensor | np.ndarray) -> float:
    """max |a - b| / max |b|, in float64."""
    a, b = (np.asarray(v.detach() if isinstance(v, Tensor) else v, dtype=np.float64) for v in (ours, theirs))
    assert a.shape == b.shape
    return float(np.abs(a - b).max() / np.abs(b).max())


class CoupClassifier(nn.Module):
    """The smooth little classifier of the COUP trajectories (layers as in its json)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv1 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(192, 10)

    def forward(self, u: Tensor) -> Tensor:
        hidden = F.silu(self.conv1(torch.tanh(self.conv0(u))))
        return self.fc(F.avg_pool2d(hidden, 2).flatten(1))


def coup_classifier() -> CoupClassifier:
    """With its golden weights, in evaluation mode."""
    classifier = CoupClassifier()
    classifier.load_state_dict(load_file(FOLDER / "coup_classifier.safetensors"))
    return classifier.eval()
