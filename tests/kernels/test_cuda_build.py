"""The CUDA half where there is no GPU: what it says, what it refuses, and which inputs it would take."""

from __future__ import annotations

from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastpure.errors import KernelUnavailable
from fastpure.kernels import OPS, NoiseKeys, backend_report, extension, preload, registry, use_backend
from fastpure.kernels.checks import check_images, like_state
from fastpure.kernels.row import launch as row_launch
from tests.kernels.helpers import EXTENSION, needs_ext

HALF_BUILT = bool(EXTENSION.build.get("cuda"))
needs_cuda_half = pytest.mark.skipif(not HALF_BUILT, reason="the extension was built without its CUDA half")
NOWHERE = (0, 0, 0, 0, 1, 0, 0)
"""The schema's arguments of noise without any memory: refused, or nothing to do, before it would be touched."""

CUDA_OPS = [name for name, spec in OPS.items() if "cuda" in spec.order["cuda"]]


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
    registry.forget()
    yield
    registry.forget()


def test_no_cuda_half_is_a_reason(monkeypatch):
    pretend(monkeypatch, [90], cuda=False)
    assert "FASTPURE_CUDA=1" in backend_report()["extension"]["cuda"]
    for name in CUDA_OPS:
        assert "without its CUDA half" in OPS[name].reason_against("cuda", "cuda", torch.float32)
        assert OPS[name].reason_against("host", "cpu", torch.float32) is None


def test_no_driver_is_a_reason(monkeypatch):
    pretend(monkeypatch, [])
    for name in CUDA_OPS:
        assert registry.choose(OPS[name], "cuda", torch.float32) == "reference"
        with (
            use_backend("cuda"),
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
    for name in CUDA_OPS:
        assert registry.choose(OPS[name], "cuda", torch.float32) == "cuda"
        assert registry.choose(OPS[name], "cuda", torch.float64) == "cuda"
        assert "float16 is not supported" in OPS[name].reason_against("cuda", "cuda", torch.float16)
        assert "not mps" in OPS[name].reason_against("cuda", "mps", torch.float32)
        assert "not cuda" in OPS[name].reason_against("host", "cuda", torch.float32)


@pytest.fixture
def crossings(monkeypatch):
    """What would have crossed into the extension: (entry, device, stream, arguments, rest)."""
    seen = []

    class Recorder(ModuleType):
        def __getattr__(self, name):
            return lambda *crossing: seen.append((name, *crossing))

    module = Recorder("recorder")
    monkeypatch.setattr(extension, "load", lambda: extension.Extension(module, None, {"cuda": None}))
    return seen


NOISE_SHAPE = (2, 3, 5, 7)


def noise_arguments(out):
    keys = NoiseKeys.make(1, [4, 5])
    return (keys.seed, keys.sample_ids, keys.draws, torch.tensor([3]), 1, 2, out)


def test_a_call_in_host_memory_says_so_and_passes_the_schema_as_it_is(crossings):
    arguments = noise_arguments(torch.empty(NOISE_SHAPE).contiguous(memory_format=torch.channels_last))
    torch.ops.fastpure.philox_uniform(*arguments)
    ((name, device, stream, passed, rest),) = crossings
    assert (name, device, stream) == ("noise", extension.HOST, torch.get_num_threads())
    assert type(passed) is OPS["philox_uniform"].arguments
    assert all(
        a is b if isinstance(b, torch.Tensor) else a == b for a, b in zip(passed, arguments, strict=True)
    )
    assert rest == (extension.NOISE_CODES["uniform"], 2, 3, 35, 1, 0)


def test_a_call_on_a_device_says_which_and_on_what_stream(crossings, monkeypatch):
    """Fake tensors: there is no memory behind them, and nothing here looks for any."""
    monkeypatch.setattr(torch.cuda, "current_stream", lambda index: SimpleNamespace(cuda_stream=1000 + index))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    extension.module_for.cache_clear()
    with FakeTensorMode():
        state = torch.empty(NOISE_SHAPE, device="cuda:1")
        row = dict.fromkeys(OPS["affine_row"].arguments._fields) | {"stream": 1, "domain": 0}
        row |= {"x": state, "table": torch.empty(4, 16, device="cuda:1")}
        row |= {"noise_pred": state.bfloat16(), "guidance": state.half()}
        row_launch.affine_row(OPS["affine_row"].arguments(**row))
    extension.module_for.cache_clear()
    preloaded, (name, device, stream, passed, rest) = crossings
    assert preloaded == ("cuda_preload", 1)
    assert (name, device, stream) == ("affine_row", 1, 1001)
    assert passed.noise_pred.dtype == torch.bfloat16
    assert rest == (4, 2, 3, 35, 0, 0, 2, 3)


@needs_ext
@pytest.mark.parametrize("entry", ["noise", "affine_row", "affine_row_vjp", "group_norm", "group_norm_vjp"])
def test_an_argument_block_of_another_length_is_refused(entry):
    with pytest.raises(TypeError, match=f"{entry}: .* must be the [0-9]+ fields .* got 1 and 0"):
        getattr(EXTENSION.module, entry)(extension.HOST, 1, (0,), ())


@needs_ext
def test_what_is_no_field_is_refused():
    arguments = noise_arguments("a word")
    with pytest.raises(AttributeError, match="data_ptr"):
        EXTENSION.module.noise(extension.HOST, 1, arguments, (0, 2, 3, 35, 0, 0))


@needs_ext
@pytest.mark.skipif(HALF_BUILT, reason="the CUDA half is there")
def test_without_the_cuda_half_device_calls_say_so():
    for entry, fields in (("noise", 13), ("affine_row_vjp", 14), ("group_norm", 21)):
        with pytest.raises(RuntimeError, match=f"{entry} on cuda:0: no kernel for CUDA devices"):
            getattr(EXTENSION.module, entry)(0, 0, (0,) * fields, ())


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
        module.noise(0, 0, NOWHERE, (0, 1, 3, 4, 0, 0))
    preload("cuda:0")  # nothing to load, nothing to complain about


@needs_cuda_half
def test_arguments_no_kernel_takes_are_refused_before_any_launch():
    module = EXTENSION.module
    with pytest.raises(RuntimeError, match="unknown dtype"):
        module.noise(0, 0, NOWHERE, (0, 1, 3, 4, 0, extension.DTYPE_CODES[torch.float16]))
    with pytest.raises(RuntimeError, match="more than"):
        module.noise(0, 0, NOWHERE, (0, 1 << 40, 3, 4, 0, 0))
    module.noise(0, 0, NOWHERE, (0, 0, 3, 4, 0, 0))  # an empty batch needs no device


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
