"""What reduced precision does to images and gradients, and who decides."""

from __future__ import annotations

import contextlib
import copy

import pytest
import torch

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.purify.precision import PRECISIONS
from tests.nets.helpers import plain_autograd
from tests.reverse.toys import unrolled


@pytest.fixture(scope="module")
def models():
    return fp.load_denoiser("digits"), fp.load_classifier("digits")


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 6


def gradient(models, purify, dtype=torch.float32):
    """Purified images and the gradient of the true classes' logits, float64, of eight digits under one draw."""
    data = load_dataset("digits", "test").subset(8, data_seed=0)
    noise = torch.randn(
        STEPS, *data.images.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    leaf = data.images.to(dtype).requires_grad_(True)
    x_hat = purify(leaf, noise.to(dtype))
    logits = copy.deepcopy(models[1]).to(dtype)(x_hat)
    (grad,) = torch.autograd.grad(logits.gather(1, data.labels[:, None]).sum(), leaf)
    return x_hat.detach().double(), grad.double()


def in_precision(network, dtype):
    """The network computing in ``dtype``; what goes in and comes out keeps its own."""
    cast = copy.deepcopy(network).to(dtype)
    return lambda x, *label: cast(x.to(dtype), *label).to(x.dtype)


@pytest.mark.parametrize("precision", DTYPES)
def test_reduced_precision_is_as_close_to_float64_as_plain_torch(models, precision):
    """A pixel's median error is at most three times that of the formula with torch's operations, both so computed.

    On the same processor, whose instructions decide how large both are. Measured: 0.6 to 1.4 times. Medians,
    because a digit near a decision boundary of the guidance can go the other way.
    """
    denoiser, classifier = models
    method = fp.methods.coup(classifier, t=0.15, dt=0.025, scale=2.0)
    assert len(method.table()) == STEPS

    def ours(precision):
        purifier = fp.Purifier(denoiser, method, precision=precision)
        return lambda u, steps: purifier(u, noise=fp.RecordedNoise(steps=steps))

    exact = gradient(models, ours("fp64"), torch.float64)
    plain = [in_precision(network, DTYPES[precision]) for network in (denoiser.network, classifier)]
    with plain_autograd():
        torchs = gradient(models, lambda u, steps: unrolled(method, *plain, u, None, steps))
    for found, reference, true in zip(gradient(models, ours(precision)), torchs, exact, strict=True):
        error, allowed = (float((value - true).abs().median()) for value in (found, reference))
        assert error <= 3 * allowed
        assert allowed < 0.3 * float(true.abs().median()), "otherwise the comparison says nothing"
        assert precision == "fp32" or error > 1e-6, "it does compute in the reduced precision"


def test_gradient_precision_concerns_gradients_only(models):
    denoiser, classifier = models
    method = fp.methods.coup(classifier, t=0.15, dt=0.05)
    x = load_dataset("digits", "test").subset(4, data_seed=0).images
    deployed = fp.Purifier(denoiser, method)
    split = fp.Purifier(denoiser, method, gradient_precision="bf16")
    bf16 = fp.Purifier(denoiser, method, precision="bf16")
    assert torch.equal(split(x), deployed(x)), "decisions are the deployed defence's"
    leaf = x.clone().requires_grad_(True)
    assert torch.equal(split(leaf), bf16(leaf)), "gradients are the copy's"
    assert "gradient_precision='bf16'" in repr(split)
    with torch.no_grad():
        assert torch.equal(split(leaf), deployed(leaf))


def test_small_gradients_survive_float16(models):
    """A confident classifier's gradients lie below float16's smallest number; the pullback is linear, so scale."""
    denoiser, classifier = models
    data = load_dataset("digits", "test").subset(4, data_seed=0)
    purifier = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.15, dt=0.05), precision="fp16")

    def pulled(v):
        leaf = data.images.clone().requires_grad_(True)
        return torch.autograd.grad((purifier(leaf, data.sample_ids) * v).sum(), leaf)[0]

    v = torch.randn(data.images.shape, generator=torch.Generator().manual_seed(0))
    ordinary, tiny = pulled(v), pulled(v * 2.0**-30) * 2.0**30
    assert torch.equal(tiny, ordinary)


def test_state_is_float32_whatever_the_networks_compute_in(models):
    denoiser, _ = models
    x = load_dataset("digits", "test").subset(2, data_seed=0).images
    for precision in ("tf32", "bf16", "fp16"):
        purifier = fp.Purifier(denoiser, fp.methods.diffpure(t=0.1, dt=0.05), precision=precision)
        assert purifier(x).dtype == torch.float32
        assert purifier.trajectory(x).dtype == torch.float32
        assert next(purifier.denoiser.parameters()).dtype == {"tf32": torch.float32}.get(
            precision, getattr(torch, {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32"))
        )
    assert next(denoiser.parameters()).dtype == torch.float32, "the caller's denoiser is left alone"


def test_float64_is_for_both_or_neither(models):
    denoiser, _ = models
    with pytest.raises(ValueError, match="`gradient_precision` must be 'fp64' for both or for neither"):
        fp.Purifier(denoiser, fp.methods.diffpure(), gradient_precision="fp64")


_OLDER_CHOICES = {
    "none": lambda: None,
    "matmul precision": lambda: torch.set_float32_matmul_precision("high"),
    "matmul flag": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "no convolutions": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}
_NEWER_CHOICES = {
    "none": None,
    "everything": torch.backends,
    "products": torch.backends.cuda.matmul,
    "convolutions": getattr(torch.backends.cudnn, "conv", None),
    "cudnn": torch.backends.cudnn,
}


def _forget_float32_settings():
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True
    for backend in ("generic", "cuda", "mkldnn"):
        for operation in ("all", "matmul", "conv", "rnn"):
            with contextlib.suppress(RuntimeError, ValueError):
                torch._C._set_fp32_precision_setter(backend, operation, "none")
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


def _float32_settings():
    """Both ways to read them; torch's libraries read both at every product, and raise where they disagree."""
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cudnn.allow_tf32,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return [*found, torch.backends.cuda.matmul.fp32_precision, torch.backends.cudnn.conv.fp32_precision]


@pytest.mark.skipif(
    not hasattr(torch._C, "_set_fp32_precision_setter"), reason="torch has the older settings only"
)
@pytest.mark.parametrize("value", ["ieee", "tf32"])
@pytest.mark.parametrize("newer", _NEWER_CHOICES)
@pytest.mark.parametrize("older", _OLDER_CHOICES)
@pytest.mark.parametrize("precision", ["fp32", "tf32"])
def test_both_ways_to_choose_tf32_agree_inside_whatever_was_chosen_before(precision, older, newer, value):
    wanted = precision == "tf32"
    word = "tf32" if wanted else "ieee"
    for first in (0, 1):
        _forget_float32_settings()
        try:
            for turn in (first, 1 - first):
                if turn == 0:
                    _OLDER_CHOICES[older]()
                elif _NEWER_CHOICES[newer] is not None:
                    _NEWER_CHOICES[newer].fp32_precision = value
        except RuntimeError:  # torch refuses this order
            continue
        before = _float32_settings()
        with PRECISIONS[precision].environment(torch.device("cuda")):
            inside = _float32_settings()
        after = _float32_settings()
        _forget_float32_settings()
        assert inside == ["high" if wanted else "highest", wanted, wanted, word, word]
        for one, other in zip(before, after, strict=True):
            assert one in (other, "mixed")


def test_float16_keeps_the_images_of_a_batch_apart_where_the_guidance_reads_features(models):
    """The cotangent of what AGDM reads from the input is [B, F], and each image has a power of two of its own."""
    denoiser, classifier = models
    data = load_dataset("digits", "test").subset(4, data_seed=0)
    method = fp.methods.agdm(classifier, t=0.01, clip_output=False)
    weights = torch.tensor([1e-3, 1.0, 30.0, 1.0])

    def pulled(precision, rows):
        purifier = fp.Purifier(denoiser, method, precision=precision)
        leaf = data.images[rows].clone().requires_grad_(True)
        out = purifier(leaf, data.sample_ids[rows]).square().flatten(1).sum(1)
        return torch.autograd.grad((out * weights[rows]).sum(), leaf)[0]

    exact, half = pulled("fp32", slice(None)), pulled("fp16", slice(None))
    error = (half - exact).flatten(1).norm(dim=1) / exact.flatten(1).norm(dim=1)
    assert error.max() < 1e-2, error
