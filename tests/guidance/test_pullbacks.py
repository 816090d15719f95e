"""Every guidance: the two ways to its gradient agree, and its pullback is the transpose of its derivative."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastpure.guidance import (
    GUIDANCE,
    Attraction,
    AuxiliaryLatent,
    ClassifierConfidence,
    CleanDistance,
    EnergyDescent,
    FrequencyCorrection,
    GuidanceStep,
    Heterogeneous,
    Opening,
    SquaredError,
    StructuralSimilarity,
)
from tests.methods.cases import auxiliary
from tests.methods.small import toy_energy
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser

CASES = {
    "confidence": lambda: ClassifierConfidence(toy_classifier()),
    "squared_error": lambda: SquaredError(reference_batch=3),
    "squared_error_clean": lambda: SquaredError(reference_batch=3, guide="clean"),
    "ssim": lambda: StructuralSimilarity(reference_batch=3, window=5),
    "auxiliary": lambda: AuxiliaryLatent(auxiliary(), eta=2.0),
    "auxiliary_noised": lambda: AuxiliaryLatent(auxiliary(), eta=2.0, features="noised"),
    "auxiliary_logits": lambda: AuxiliaryLatent(auxiliary(), eta=2.0, latent="logits"),
    "auxiliary_kl_noised": lambda: AuxiliaryLatent(
        auxiliary(), eta=2.0, features="noised", latent="logits", distance="kl"
    ),
    "auxiliary_kl": lambda: AuxiliaryLatent(auxiliary(), eta=2.0, latent="logits", distance="kl"),
    "attraction": lambda: Attraction(variance=0.1),
    "energy": lambda: EnergyDescent(toy_energy()),
    "heterogeneous": lambda: Heterogeneous(toy_classifier(), "conv", mask="soft"),
    "frequency": lambda: FrequencyCorrection(0.4),
    "frequency_clipped": lambda: FrequencyCorrection(0.4, 1.5, 4.0, 0.3, clip_x0=True),
    "clean_distance": lambda: CleanDistance("l2", pooled=4),
}


def draw(seed):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(2, *SHAPE, generator=generator, dtype=torch.float64)


def noise_pred(x):
    return toy_denoiser().network(x, x.new_full((len(x),), 30.0))


OPENING = Opening(lambda x, ratio: x - ratio * noise_pred(x), lambda: draw(8))
STEP = GuidanceStep(3, 0.9, 0.4, lambda: draw(9), noise_pred)


def test_every_guidance_is_tried_here():
    assert set(GUIDANCE) <= set(CASES)
    assert {type(make()) for make in CASES.values()} == set(GUIDANCE.values())


@pytest.mark.parametrize("name", CASES)
def test_pullback_is_the_transpose_of_the_derivative(name):
    guidance, x, x0, v = CASES[name](), draw(0), draw(1), draw(2)
    context = guidance.read(x0, OPENING)
    g, pull = guidance.linearize(x, context, STEP)
    assert torch.allclose(g, guidance.gradient(x, context, STEP), atol=1e-14)
    v_x, v_context = pull(v)
    h = 1e-5

    def slope(ahead, behind):
        return float(((ahead - behind) * v).sum() / (2 * h))

    towards = draw(4)
    ahead, behind = (guidance.gradient(x + s * towards, context, STEP) for s in (h, -h))
    assert slope(ahead, behind) == pytest.approx(float((v_x * towards).sum()), rel=1e-6, abs=1e-9)
    for i, part in enumerate(context):
        if not part.is_floating_point():
            assert v_context[i] is None
            continue
        towards = torch.randn(part.shape, generator=torch.Generator().manual_seed(5), dtype=part.dtype)
        moved = [(*context[:i], part + s * towards, *context[i + 1 :]) for s in (h, -h)]
        ahead, behind = (guidance.gradient(x, other, STEP) for other in moved)
        expected = float((v_context[i] * towards).sum())
        assert slope(ahead, behind) == pytest.approx(expected, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("confidence", "energy")])
def test_what_an_attacker_leaves_out(name):
    guidance, x, x0, v = CASES[name](), draw(0), draw(1), draw(2)
    context = guidance.read(x0, OPENING)
    exact = guidance.linearize(x, context, STEP)[1](v)
    partial = replace(guidance, grad="no_guide_path").linearize(x, context, STEP)[1](v)
    assert torch.allclose(partial[0], exact[0], atol=1e-14)
    assert all(part is None for part in partial[1])
    v_x, v_context = replace(guidance, grad="detached").linearize(x, context, STEP)[1](v)
    assert v_x is None
    assert all(part is None for part in v_context)


@pytest.mark.parametrize("distance", ["mse", "kl"])
def test_the_auxiliary_s_logits_are_class_and_latent_at_once(distance):
    """log p_y - eta D(c(x0), c(x)), with one pass of a network that offers nothing but logits."""
    network = auxiliary().network
    guidance = AuxiliaryLatent(network, eta=2.0, latent="logits", distance=distance)
    x, x0 = draw(0).requires_grad_(True), draw(1)
    here, there = network((x + 1) / 2), network((x0 + 1) / 2)
    logp, p = here.log_softmax(1), there.softmax(1)
    apart = ((here - there) ** 2).mean(1) if distance == "mse" else (p * (p.log() - logp)).sum(1)
    total = (logp[torch.arange(2), there.argmax(1)] - 2.0 * apart).sum()
    (expected,) = torch.autograd.grad(total, x)
    found = guidance.gradient(x.detach(), guidance.context(x0), STEP)
    assert torch.allclose(found, expected, atol=1e-13)


@pytest.mark.parametrize("name", ["confidence", "auxiliary", "energy"])
def test_cast_leaves_the_original_alone(name):
    guidance = CASES[name]()
    assert guidance.cast(torch.float64) is guidance
    half = guidance.cast(torch.float32)
    assert next(half.networks()[0].parameters()).dtype == torch.float32
    assert next(guidance.networks()[0].parameters()).dtype == torch.float64
    x = draw(0).float()
    g = half.gradient(x, half.context(draw(1).float()), STEP)
    assert g.dtype == torch.float32
    assert torch.allclose(g.double(), guidance.gradient(draw(0), guidance.context(draw(1)), STEP), atol=1e-4)
