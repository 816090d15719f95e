"""The CUDA half where there is no GPU: what it says, what it refuses, and which inputs it would take."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastpure.errors import KernelUnavailable
from fastpure.kernels import OPS, backend_report, extension, preload, registry, use_backend
from fastpure.kernels.checks import check_images, like_state
from tests.kernels.helpers import EXTENSION, needs_ext

HALF_BUILT = bool(EXTENSION.build.get("cuda"))
needs_cuda_half = pytest.mark.skipif(not HALF_BUILT, reason="the extension was built without its CUDA half")
EXT_OPS = [name for name, spec in OPS.items() if "ext" in spec.order["cuda"]]


def pretend(monkeypatch, capabilities, cuda=True, architectures="80 90"):
    """An extension with these devices."""
    build = {"cuda": {"architectures": architectures} if cuda else None}
    module = ModuleType("pretended")
    module.build_info = lambda: build
    module.device_capabilities = lambda: capabilities
    module.device_trouble = lambda: "CUDA driver version is insufficient"
    monkeypatch.setattr(extension, "load", lambda: extension.Extension(module, None, build))


@pytest.fixture(autouse=True)
def fresh_choices():
    registry._choose.cache_clear()
    yield
    registry._choose.cache_clear()


def test_no_cuda_half_is_a_reason(monkeypatch):
    pretend(monkeypatch, [90], cuda=False)
    assert "FASTPURE_CUDA=1" in backend_report()["extension"]["cuda"]
    for name in EXT_OPS:
        assert "without its CUDA half" in OPS[name].reason_against("ext", "cuda", torch.float32)
        assert OPS[name].reason_against("ext", "cpu", torch.float32) is None


def test_no_driver_is_a_reason(monkeypatch):
    pretend(monkeypatch, [])
    for name in EXT_OPS:
        assert registry.choose(OPS[name], "cuda", torch.float32) == "reference"
        with (
            use_backend("ext"),
            pytest.raises(KernelUnavailable, match="no CUDA device can be used: CUDA driver"),
        ):
            registry.choose(OPS[name], "cuda", torch.float32)
    assert "driver" in backend_report()["extension"]["cuda"]


def test_an_old_device_is_a_reason(monkeypatch):
    pretend(monkeypatch, [90, 75])
    reason = extension.reason_against_cuda()
    assert reason.startswith("cuda:1 has compute capability 7.5")
    assert "FASTPURE_CUDA_ARCHS=75" in reason


@pytest.mark.parametrize("architectures", ["80 90", "90a", "80"])
def test_with_a_device_the_extension_is_preferred(monkeypatch, architectures):
    pretend(monkeypatch, [90], architectures=architectures)
    assert backend_report()["extension"]["cuda"] == "available"
    for name in EXT_OPS:
        assert registry.choose(OPS[name], "cuda", torch.float32) == "ext"
        assert registry.choose(OPS[name], "cuda", torch.float64) == "ext"
        assert "float16 is not supported" in OPS[name].reason_against("ext", "cuda", torch.float16)
        assert "not mps" in OPS[name].reason_against("ext", "mps", torch.float32)


def test_implementations_go_by_the_device():
    went = []
    run = extension.by_device(1, lambda *args: went.append("host"), lambda *args: went.append("cuda"))
    for on_cuda in (False, True):
        run(None, SimpleNamespace(is_cuda=on_cuda))
    assert went == ["host", "cuda"]


@needs_ext
def test_codes_are_those_of_the_extension():
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in extension.INPUT_CODES}
    codes = {names[dtype]: code for dtype, code in extension.INPUT_CODES.items()}
    assert codes == EXTENSION.build["dtypes"]


@needs_cuda_half
def test_without_a_driver_device_calls_are_refused():
    module = EXTENSION.module
    if module.device_count() > 0:
        pytest.skip("there is a device")
    assert module.device_capabilities() == []
    for call in (lambda: module.cuda_preload(0), lambda: extension.module_for(0)):
        with pytest.raises(RuntimeError, match=r"preload on cuda:0: .*\(cudaError"):
            call()
    with pytest.raises(RuntimeError, match=r"noise on cuda:0: .*\(cudaError"):
        module.cuda_noise(0, 0, 0, 0, 0, 1, 0, 0, 1, 3, 4, 0, 0, 0, 0)
    preload("cuda:0")  # nothing to load, nothing to complain about


@needs_cuda_half
def test_arguments_no_kernel_takes_are_refused_before_any_launch():
    module = EXTENSION.module
    with pytest.raises(RuntimeError, match="unknown dtype"):
        module.cuda_noise(0, 0, 0, 0, 0, 1, 0, 0, 1, 3, 4, 0, extension.DTYPE_CODES["float16"], 0, 0)
    with pytest.raises(RuntimeError, match="more than"):
        module.cuda_noise(0, 0, 0, 0, 0, 1, 0, 0, 1 << 40, 3, 4, 0, 0, 0, 0)
    module.cuda_noise(0, 0, 0, 0, 0, 1, 0, 0, 0, 3, 4, 0, 0, 0, 0)  # an empty batch needs no device


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_inputs_stay_narrow_on_cuda_only(dtype):
    """Fake tensors: only the dtype and device are looked at."""
    with FakeTensorMode():
        for device, kept in (("cpu", torch.float32), ("cuda", dtype)):
            x = torch.empty(1, 3, 4, 4, device=device)
            narrow = x.to(dtype)
            assert like_state("noise_pred", narrow, x, torch.contiguous_format).dtype == kept
            assert like_state("register", narrow, x, torch.contiguous_format).dtype == torch.float32
            assert like_state("guidance", narrow, x.double(), torch.contiguous_format).dtype == torch.float64
            if kept is dtype:
                check_images(x, "x", {"noise_pred": narrow, "guidance": narrow})
            else:
                with pytest.raises(TypeError, match="`noise_pred`"):
                    check_images(x, "x", {"noise_pred": narrow})
            with pytest.raises(TypeError, match="`x_next`"):
                check_images(x, "x", {"x_next": narrow})
