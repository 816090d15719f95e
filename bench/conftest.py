"""What all benches share under pytest-benchmark."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Weights and images are the same in every run, in whatever order and selection the benches run."""
    torch.manual_seed(0)
