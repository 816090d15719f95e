"""One thread for the kernel tests (those about threads ask for more), and every back end in turn."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastpure.kernels import use_backend
from tests.kernels.helpers import BACKENDS


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small torch operations on more threads than free cores take a hundred times longer."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of the back end that is in use."""
    with use_backend(request.param):
        yield request.param
