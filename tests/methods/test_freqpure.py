"""FreqPure: known Fourier coefficients, exactness, the clip that the released code loses, what is left out."""

from __future__ import annotations

import math

import pytest
import torch

import fastpure as fp
from fastpure.guidance import FrequencyCorrection, GuidanceStep
from fastpure.schedule import strided
from tests.methods.cases import error, inputs, ours, reference
from tests.methods.written_newer import freqpure
from tests.nets.helpers import golden_denoiser
from tests.reverse.toys import SHAPE, toy_denoiser

INDICES = [round(100 * (4 - k) / 4) - 1 for k in range(4)]
RADII, DELTA = (2.5, 3.2), 0.4


def case(noise="predicted", grad="exact"):
    method = fp.methods.freqpure(
        n_steps=4,
        amplitude_radius=RADII[0],
        phase_radius=RADII[1],
        delta=DELTA,
        noise=noise,
        eta=0.5,
        guidance_grad=grad,
        clip_output=False,
    )
    detach = {"no_guide_path": "guide", "detached": "detached"}.get(grad, "")
    implied = noise == "implied"
    return method, lambda eps, u, noise: freqpure(eps, u, noise, INDICES, RADII, DELTA, 0.5, implied, detach)


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("grad", ["exact", "no_guide_path", "detached"])
@pytest.mark.parametrize("noise", ["predicted", "implied"])
def test_method_is_its_formula_written_out(noise, grad, memory):
    method, run = case(noise, grad)
    u, v, arrays = inputs(method)
    out, expected = reference(run, u, v, arrays)
    x, g = ours(method, u, v, arrays, memory)
    assert error(x, out) < 1e-11
    assert error(g, expected) < 1e-9


def test_what_is_left_out_shows():
    u, v, noise = inputs(case()[0])
    exact = ours(case()[0], u, v, noise, "store")[1]
    for grad in ("no_guide_path", "detached"):
        assert error(ours(case(grad=grad)[0], u, v, noise, "store")[1], exact) > 0.05


def wave(cycles, size, turn, like=8):
    """cos(2 pi cycles j / 8 + turn) along the rows, in both channels."""
    j = torch.arange(like, dtype=torch.float64)
    line = size * torch.cos(2 * math.pi * cycles * j / like + turn)
    return line[None, None, :, None].expand(1, *SHAPE).contiguous()


STEP = GuidanceStep(0, 1.0, 0.5, lambda: torch.zeros(1))


@pytest.mark.parametrize(
    ("turn", "held"),
    # Within delta, beyond it either way, and the shorter way round past a half turn.
    [(0.1, 0.1), (1.0, 0.2), (-1.0, -0.2), (6.2, 6.2 - 2 * math.pi), (4.0, -0.2)],
)
def test_a_wave_keeps_its_frequency_takes_the_guides_size_and_is_held_to_its_phase(turn, held):
    """The released code copies the phases first: there all of these would come back as they were."""
    rule = FrequencyCorrection(1.0, amplitude_radius=2.0, phase_radius=2.0, delta=0.2)
    found = rule.corrected(wave(1, 0.5, 0.7 + turn), (wave(1, 0.3, 0.7),), STEP)
    assert torch.allclose(found, wave(1, 0.3, 0.7 + held), atol=1e-13)


def test_frequencies_outside_of_both_radii_are_left_alone():
    rule = FrequencyCorrection(1.0, amplitude_radius=1.0, phase_radius=2.0, delta=0.2)
    image, guide = wave(3, 0.5, 1.0) + wave(2, 0.4, 1.0), wave(3, 0.1, 0.0) + wave(2, 0.1, 0.0)
    found = rule.corrected(image, (guide,), STEP)
    assert torch.allclose(found, wave(3, 0.5, 1.0) + wave(2, 0.4, 0.2), atol=1e-13)


def test_constant_images_have_finite_derivatives():
    """Whose other coefficients are zero to the bit, so that they have no phase."""
    rule = FrequencyCorrection(1.0)
    image, guide = (torch.full((1, *SHAPE), c, dtype=torch.float64, requires_grad=True) for c in (0.5, -0.25))
    found = rule.corrected(image, (guide,), STEP)
    grads = torch.autograd.grad(found.square().sum(), (image, guide))
    assert all(bool(g.isfinite().all()) for g in grads)
    # The mean's sign is a phase of half a turn: held to 0.2 of the guide's.
    assert torch.allclose(found, torch.full_like(found, -0.25 * math.cos(0.2)), atol=1e-12)


def test_an_unreachable_correction_changes_nothing():
    """Radii of nothing but the mean, the guide's own, leave the sampler as it is."""
    rule = FrequencyCorrection(1.0, 0.0, 0.0, math.pi)
    image = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert torch.allclose(rule.corrected(image, (image + 0.0,), STEP), image, atol=1e-13)


@pytest.mark.parametrize("implied", [False, True])
def test_a_corrected_table_moves_the_predicted_image(implied):
    """Adding g to x0hat by hand and walking the plain row is the corrected row."""
    row = strided([99, 49], 0.7).rows[0]
    corrected = strided([99, 49], 0.7).corrected(implied).rows[0]
    x, e, g = 0.3, -0.8, 0.25
    x0 = (x - row.sigma * e) / row.alpha + g
    if implied:
        e_new = (x - row.alpha * x0) / row.sigma
        expected = row.a * x + row.b * e_new
    else:
        direction = row.a * row.sigma + row.b  # what is left of e once x is alpha x0 + sigma e
        expected = row.a * row.alpha * x0 + direction * e
    assert corrected.a * x + corrected.b * e + corrected.c * g == pytest.approx(expected, abs=1e-14)


def test_the_guide_has_noise_and_gradients_of_its_own():
    """It is another draw for every draw, and half precision keeps small gradients through it."""
    method = fp.methods.freqpure(n_steps=1, guide_t=0.2, amplitude_radius=9.0, phase_radius=9.0, delta=0.0)
    u = torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    # Everything is tied to the guide: what is purified is the guide.
    purifier = fp.Purifier(toy_denoiser(torch.float32), method.rebuilt(clip_output=False))
    assert not torch.allclose(purifier(u, draw=0), purifier(u, draw=1), atol=1e-3)


def test_half_precision_keeps_small_gradients_of_the_guide():
    denoiser = golden_denoiser("ddpmpp_ddpmblock_tiny")
    method = fp.methods.freqpure(n_steps=1, amplitude_radius=99.0, phase_radius=99.0, delta=0.0)
    purifier = fp.Purifier(denoiser, method.rebuilt(clip_output=False), precision="fp16")
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.rand(1, *denoiser.image_shape, generator=generator) for _ in range(2))

    def gradient(size):
        leaf = u.clone().requires_grad_(True)
        return torch.autograd.grad((purifier(leaf) * v * size).sum(), leaf)[0]

    whole, small = gradient(1.0), gradient(2.0**-33)
    assert float(whole.abs().max()) > 0
    assert torch.equal(small * 2.0**33, whole)


def test_weakened_and_unguided_relatives():
    method, _ = case()
    plain = fp.methods.ddim(t=0.1, n_steps=4, eta=0.5, clip_x0=False, clip_output=False)
    u, v, noise = inputs(method)
    for one, other in zip(
        ours(method.weakened(0.0), u, v, noise, "store"), ours(plain, u, v, noise, "store"), strict=True
    ):
        assert torch.equal(one, other)
    assert method.weakened(0.5).table().rows[1].c == pytest.approx(0.5 * method.table().rows[1].c)


def test_it_serves_a_second_backward_pass():
    purifier = fp.Purifier(toy_denoiser(), case()[0], precision="fp64")
    u = torch.rand(1, *SHAPE, dtype=torch.float64, requires_grad=True)
    out = purifier(u).sum()
    first = torch.autograd.grad(out, u, retain_graph=True)[0]
    assert torch.equal(first, torch.autograd.grad(out, u)[0])
    (g,) = torch.autograd.grad(purifier(u).sum(), u, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated again"):
        g.square().sum().backward()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"delta": -0.1}, "`delta` must be a finite number >= 0"),
        ({"amplitude_radius": -1.0}, "`amplitude_radius` must be"),
        ({"noise": "true"}, "`noise` must be one of"),
        ({"guide_t": 2.0}, "must be a diffusion time"),
    ],
)
def test_wrong_settings_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        fp.methods.freqpure(**settings)
