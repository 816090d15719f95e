"""Heterogeneous noise: masks with known answers, exactness of every derivative, what is left out, refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.guidance import Heterogeneous
from tests.methods.cases import error, inputs, ours, reference
from tests.methods.written_newer import attention, heterogeneous
from tests.reverse.toys import SHAPE, toy_denoiser

INDICES = [round(100 * (5 - k) / 5) - 1 for k in range(5)]


def classifier():
    torch.manual_seed(7)
    layers = (
        nn.Conv2d(2, 4, 3, padding=1),
        nn.Tanh(),
        nn.Conv2d(4, 5, 4, stride=2, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(80, 4),
    )
    return nn.Sequential(*layers).double().eval()


def case(mask="hard", grad="exact", repeats=2):
    network = classifier()
    method = fp.methods.heterogeneous(
        network, 0.1, 0.05, 5, repeats, "1, 3", 0.4, mask, 8.0, guidance_grad=grad, clip_output=False
    )

    def run(eps, u, noise):
        kept = attention(network, ("1", "3"), u, 0.4, 8.0 if mask == "soft" else None)
        return heterogeneous(eps, kept, u, noise, INDICES, 49, repeats, "" if grad == "exact" else grad)

    return method, run


@pytest.mark.parametrize("memory", ["store", "recompute"])
@pytest.mark.parametrize("grad", ["exact", "mask_constant", "no_guide_path", "detached"])
@pytest.mark.parametrize("mask", ["hard", "soft"])
def test_method_is_its_formula_written_out(mask, grad, memory):
    method, run = case(mask, grad)
    u, v, noise = inputs(method)
    out, expected = reference(run, u, v, noise)
    x, g = ours(method, u, v, noise, memory)
    assert error(x, out) < 1e-11
    assert error(g, expected) < 1e-9


def test_repeats_are_rows():
    once, thrice = (fp.methods.heterogeneous(classifier(), 0.1, 0.05, 5, n).table() for n in (1, 3))
    # Steps 99 -> 79 and 79 -> 59 end above index 49: they are mixed, and repeated.
    assert (once.n_network_calls, thrice.n_network_calls) == (5, 9)
    assert [row.c for row in once.rows] == [0, 0, 1, 0, 1, 0, 0, 0]


def test_what_is_left_out_shows():
    u, v, noise = inputs(case("soft")[0])
    exact = ours(case("soft")[0], u, v, noise, "store")[1]
    for grad in ("mask_constant", "no_guide_path", "detached"):
        assert error(ours(case("soft", grad)[0], u, v, noise, "store")[1], exact) > 0.02
    hard = [ours(case("hard", grad)[0], u, v, noise, "store")[1] for grad in ("exact", "mask_constant")]
    assert torch.equal(*hard)


class Bright(nn.Module):
    """Shows the image itself as its block, and its mirror image as another."""

    def __init__(self):
        super().__init__()
        self.layer1, self.layer2 = nn.Identity(), nn.Identity()
        self.eval()

    def forward(self, x):
        return self.layer1(x).flatten(1)[:, :3] + self.layer2(x.flip(3)).flatten(1)[:, :3]


def test_the_mask_is_the_union_of_where_blocks_look():
    u = torch.zeros(2, *SHAPE, dtype=torch.float64)
    u[0, :, 2, 1] = 1.0  # both channels: the brightest place
    u[0, 0, 5, 3] = 0.6  # 0.18 of its power
    u[1, 1, 7, 0] = 0.3  # normalised for each image
    _, kept = Heterogeneous(Bright(), threshold=0.5).context(2 * u - 1)
    found = {tuple(place) for place in kept.nonzero().tolist()}
    assert found == {(0, 0, 2, 1), (0, 0, 2, 6), (1, 0, 7, 0), (1, 0, 7, 7)}
    _, lower = Heterogeneous(Bright(), "layer1", threshold=0.15).context(2 * u - 1)
    assert {tuple(place) for place in lower.nonzero().tolist()} == {(0, 0, 2, 1), (0, 0, 5, 3), (1, 0, 7, 0)}


def test_an_image_without_contrast_attends_to_nothing():
    context = Heterogeneous(Bright(), threshold=0.5).context(torch.zeros(1, *SHAPE, dtype=torch.float64))
    assert not bool(context[1].any())


def test_inside_the_mask_nothing_is_put_back():
    """With a mask of the whole image, it is DDIM; the threshold 0 masks everything."""
    method = fp.methods.heterogeneous(classifier(), 0.1, 0.05, 5, 1, "1", 0.0, clip_output=False)
    plain = fp.methods.ddim(t=0.1, n_steps=5, clip_output=False)
    u = torch.rand(2, *SHAPE, dtype=torch.float64)
    one, other = (fp.Purifier(toy_denoiser(), m, precision="fp64")(u) for m in (method, plain))
    assert torch.allclose(one, other, atol=1e-12)


def test_nothing_is_left_on_the_classifier():
    network = Bright()
    Heterogeneous(network).context(torch.zeros(1, *SHAPE))
    assert not any(module._forward_hooks for module in network.modules())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"t_rest": 0.2}, "`t_rest` must be below t = 0.2"),
        ({"repeats": 0}, "`repeats` must be"),
        ({"threshold": 1.5}, r"`threshold` must be in \[0, 1\]"),
        ({"mask": "round"}, "`mask` must be one of"),
        ({"blocks": "9"}, "`blocks` must be one of"),
        ({}, "`blocks` must be names of the classifier's modules, got none"),
        ({"blocks": "5"}, r"modules called once that answer \[B, C, h, w\] \(5 does not\)"),
    ],
)
def test_mistakes_are_named(settings, text):
    with pytest.raises(ValueError, match=text):
        fp.Purifier(toy_denoiser(), fp.methods.heterogeneous(classifier(), **settings))
