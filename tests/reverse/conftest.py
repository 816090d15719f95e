"""The devices that tests of recorded steps run on."""

from __future__ import annotations

import pytest
import torch

from fastpure.reverse import recorder
from tests.reverse.tracing import TracingRecorder

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=GPU)])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> torch.device:
    """The CPU with a recorder that stands in, and a GPU where there is one."""
    if request.param == "cpu":
        monkeypatch.setitem(recorder.RECORDERS, "cpu", TracingRecorder)
    return torch.device(request.param)
