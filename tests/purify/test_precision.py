"""What reduced precision does to images and gradients, and who decides."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from fastpure.data import load_dataset


@pytest.fixture(scope="module")
def models():
    return fp.load_denoiser("digits"), fp.load_classifier("digits")


def gradient(models, **choice):
    """Purified images and the gradient of the true classes' logits, float64, of eight digits under one draw."""
    denoiser, classifier = models
    method = fp.methods.coup(classifier, t=0.15, dt=0.025, scale=2.0)
    data = load_dataset("digits", "test").subset(8, data_seed=0)
    purifier = fp.Purifier(denoiser, method, **choice)
    leaf = data.images.clone().requires_grad_(True)
    x_hat = purifier(leaf, data.sample_ids)
    logits = classifier(x_hat)
    (grad,) = torch.autograd.grad(logits.gather(1, data.labels[:, None]).sum(), leaf)
    return x_hat.detach().double(), grad.double()


# Means, because a digit near a decision boundary of the guidance can go the other way in bf16.
@pytest.mark.parametrize(
    ("precision", "image_error", "one_minus_cosine"),
    [("fp32", 1e-6, 1e-9), ("bf16", 0.01, 0.05), ("fp16", 1e-3, 2e-3)],
)
def test_reduced_precision_stays_close_to_float64(models, precision, image_error, one_minus_cosine):
    exact_image, exact_grad = gradient(models, precision="fp64")
    image, grad = gradient(models, precision=precision)
    assert float((image - exact_image).abs().mean()) < image_error
    cosine = torch.nn.functional.cosine_similarity(grad.flatten(1), exact_grad.flatten(1))
    assert float((1 - cosine).mean()) < one_minus_cosine
    if precision != "fp32":
        assert float((image - exact_image).abs().mean()) > 1e-6, "it does compute in the reduced precision"


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
