"""GDMP and AGDM with the variance that the network learned: the formula written out, exact gradient included."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastpure as fp
from fastpure.guidance import StructuralSimilarity
from fastpure.nets import Denoiser
from fastpure.purify.description import plain as as_plain
from tests.methods import written_out as plain
from tests.methods.cases import auxiliary, error, inputs
from tests.nets.architectures import denoiser as random_denoiser
from tests.reverse.toys import SHAPE, ToyNet, toy_denoiser


class TwoAnswers(nn.Module):
    """Noise, and a variance that depends on the image and leaves [-1, 1] here and there."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.spread = ToyNet(), nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, x: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return torch.cat([self.noise(x, label), F.silu(3 * self.spread(x)) - 0.5], 1)


def two_answers(dtype: torch.dtype = torch.float64) -> Denoiser:
    torch.manual_seed(0)
    network = TwoAnswers().to(dtype).eval()
    return Denoiser.from_module(network, image_shape=SHAPE, learned_sigma=True)


INDICES = [102, 77, 51, 26, 0]
SETTINGS = {"t": 0.1, "chain": 40, "begin": "level", "variance": "learned", "reference_batch": 1}


def gdmp_case(metric: str, rounds: int, strength: float = 10.0):
    settings = {**SETTINGS, "metric": metric, "guide_scale": strength, "ptb": 4.0, "guide": "clean"}
    method = fp.methods.gdmp(rounds=rounds, clip_output=False, **settings)
    m = 4 * 2 / 255 / 3 / strength
    scales = [math.sqrt((1 - plain.ABAR[i]) / plain.ABAR[i]) / m for i in INDICES]

    def towards(x, x_in):
        if metric == "mse":
            return 2 * (x_in - x) / x[0].numel()
        return plain.slope_of(StructuralSimilarity().ssim(x, x_in).sum(), x)

    return method, scales, towards, rounds


def agdm_case():
    network = auxiliary()
    method = fp.methods.agdm(network, t=0.125, chain=40, scale=200.0, variance="learned", clip_output=False)

    def towards(x, x_in):
        wanted, found = network((x_in + 1) / 2), network((x + 1) / 2)
        logp = found.log_softmax(1)[torch.arange(len(x)), wanted.argmax(1)].sum()
        return plain.slope_of(logp - ((wanted - found) ** 2).mean(1).sum(), x)

    return method, [200.0] * 5, towards, 1


CASES = {
    "gdmp": lambda: gdmp_case("mse", 2),
    "gdmp_ssim": lambda: gdmp_case("ssim", 1),
    "agdm": agdm_case,
}


def by_formula(name, u, v, noise):
    _, scales, towards, rounds = CASES[name]()
    network = two_answers().network

    def answer(x, i):
        return network(x, x.new_full((len(x),), float(i))).split(2, 1)

    leaf = u.clone().requires_grad_(True)
    out = plain.learned(answer, leaf, noise, INDICES, rounds, scales, towards)
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


def by_purifier(method, u, v, noise, **settings):
    leaf = u.clone().requires_grad_(True)
    purifier = fp.Purifier(two_answers(), method, **{"precision": "fp64", **settings})
    out = purifier(leaf, noise=fp.RecordedNoise(**noise))
    return out.detach(), torch.autograd.grad((out * v).sum(), leaf)[0]


@pytest.mark.parametrize("name", CASES)
def test_method_is_its_formula_written_out(name):
    method = CASES[name]()[0]
    assert [row.index for row in method.table().rows if not row.forward][:5] == INDICES
    u, v, noise = inputs(method)
    out, grad = by_formula(name, u, v, noise)
    for memory in ("store", "recompute", "auto"):
        x, g = by_purifier(method, u, v, noise, memory=memory)
        assert error(x, out) < 1e-11
        assert error(g, grad) < 1e-9
    x, g = by_purifier(method, u.float(), v.float(), noise, precision="fp32", memory="recompute")
    assert error(x.double(), out) < 2e-5
    assert error(g.double(), grad) < 1e-3


def test_the_variance_and_its_derivative_show():
    """Neither the largest variance nor one that an attacker takes for a constant would pass the test above."""
    method = CASES["gdmp"]()[0]
    u, v, noise = inputs(method)
    out, grad = by_purifier(method, u, v, noise)
    assert error(by_purifier(method.rebuilt(variance="large"), u, v, noise)[0], out) > 1e-2

    class Cut(TwoAnswers):
        def forward(self, x, label):
            e, variance = super().forward(x, label).split(2, 1)
            return torch.cat([e, variance.detach()], 1)

    cut = two_answers()
    cut.network.__class__ = Cut
    leaf = u.clone().requires_grad_(True)
    same = fp.Purifier(cut, method, precision="fp64")(leaf, noise=fp.RecordedNoise(**noise))
    assert torch.equal(same.detach(), out)
    assert error(torch.autograd.grad((same * v).sum(), leaf)[0], grad) > 1e-2


def test_finite_differences_on_the_real_architecture():
    """A guided-diffusion network with random weights, in one backward pass with its frozen operations."""
    denoiser = random_denoiser("adm, learned variance").to(torch.float64)
    generator = torch.Generator().manual_seed(0)
    u, v, direction = (
        torch.rand(2, *denoiser.image_shape, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    method = fp.methods.gdmp(
        rounds=1, metric="ssim", guide="clean", guide_scale=1.0, clip_output=False, **SETTINGS
    )
    purifier = fp.Purifier(denoiser, method, precision="fp64")
    leaf = (0.3 + 0.4 * u).requires_grad_(True)
    slope = float((torch.autograd.grad((purifier(leaf) * v).sum(), leaf)[0] * direction).sum())
    step = 1e-6
    ahead, behind = (float((purifier(leaf.detach() + s * direction) * v).sum()) for s in (step, -step))
    assert (ahead - behind) / (2 * step) == pytest.approx(slope, rel=1e-5)


def test_one_call_gives_noise_and_share():
    denoiser, calls = two_answers(), []
    denoiser.network.register_forward_hook(lambda *_: calls.append(1))
    table = fp.methods.gdmp(rounds=1, **SETTINGS).table()
    conditioning = denoiser.conditioning(*(table.column(name) for name in ("tau", "index", "alpha", "sigma")))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    noise, share = denoiser.noise_and_variance(x, conditioning, 2)
    assert len(calls) == 1
    assert torch.equal(noise, denoiser.noise_pred(x, conditioning, 2))
    second = denoiser.network(x, x.new_full((2,), 77.0))[:, 2:]
    assert torch.allclose(share, (second + 1) / 2, atol=1e-14)
    with pytest.raises(ValueError, match="`k` must be a step"):
        denoiser.noise_and_variance(x, conditioning, 0)


@pytest.mark.parametrize("name", ["gdmp", "agdm"])
def test_a_denoiser_without_learned_variance_is_refused_before_anything_is_purified(name):
    with pytest.raises(
        ValueError,
        match=r"`denoiser` must be a network that learned a variance \(learned_sigma=True\) for "
        r"variance='learned', got ToyNet, which did not. Use variance='large' or 'small'",
    ):
        fp.Purifier(toy_denoiser(), CASES[name]()[0])


@pytest.mark.parametrize(
    "conventions",
    [
        {"prediction": "flow", "schedule": "flow"},
        {"prediction": "flow", "schedule": "flowpure", "data_at": 1},
        {"prediction": "consistency", "time_input": "sigma"},
    ],
)
def test_a_variance_of_no_diffusion_is_refused(conventions):
    """What lies beside a velocity or a consistency function is no share between the variances of a chain's step."""
    denoiser = Denoiser.from_module(
        two_answers().network, image_shape=SHAPE, learned_sigma=True, **conventions
    )
    with pytest.raises(
        ValueError, match=r"`denoiser` must be a network of a diffusion, .* got one that predicts '"
    ):
        fp.Purifier(denoiser, CASES["gdmp"]()[0])


def test_the_guidance_can_be_weighed_and_left_out():
    """The relatives that attacks walk through instead: the table weighs the guidance, as where rows are the method."""
    method = CASES["gdmp"]()[0]
    u, v, noise = inputs(method)
    bare, half = method.weakened(0.0), method.weakened(0.5)
    assert bare.guidance is None
    assert not bare.table().uses_guidance
    images = {
        name: by_purifier(m, u, v, noise)[0] for name, m in (("bare", bare), ("half", half), ("all", method))
    }
    assert error(images["half"], images["all"]) > 1e-3
    assert error(images["bare"], images["half"]) > 1e-3
    unguided = fp.methods.gdmp(
        rounds=2, clip_output=False, **{**SETTINGS, "guide_scale": 1e-9, "guide": "clean"}
    )
    assert error(images["bare"], by_purifier(unguided, u, v, noise)[0]) < 1e-6


def test_the_table_holds_what_depends_on_no_image():
    learned, large = (fp.methods.gdmp(rounds=1, **{**SETTINGS, "variance": v}) for v in ("learned", "large"))
    assert learned.steps.digest != large.steps.digest
    assert as_plain(learned)["procedure"] == {"name": "LearnedVariance", "settings": {}}
    assert (learned.table().matrix[1:-1] == large.table().matrix[1:-1]).all()
