"""GDMP against the recorded runs, and its parts: batch independence, the guide path, SSIM."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.guidance import GuidanceStep, StructuralSimilarity
from fastpure.schedule import DiscreteVP
from tests.golden import FOLDER, arrays, relative_error
from tests.purify.test_golden_trajectories import F64, compare, run
from tests.reverse.toys import SHAPE, toy_denoiser

CASES = {
    "batchmean": {"t": 0.036, "rounds": 1, "reference_batch": 2},
    "samplemean_small": {"t": 0.010, "rounds": 1, "reference_batch": 1, "variance": "small"},
    "batchmean_2iter": {"t": 0.006, "rounds": 2, "reference_batch": 2},
}

WITHOUT_GUIDE_PATH = {
    "batchmean": 0.997437514,
    "samplemean_small": 0.294063926,
    "batchmean_2iter": 0.133762312,
}
"""How wrong the gradient is without the guide path: max |difference| / max |exact|, measured on the recorded runs."""


@pytest.fixture(scope="module")
def golden():
    return arrays("gdmp_trajectory")


@pytest.fixture(scope="module")
def denoiser():
    path = FOLDER / "ddpmpp_tiny.safetensors"
    return fp.load_denoiser(path, format="score_sde", config=FOLDER / "ddpmpp_tiny.json")


def recorded(golden, case):
    noise = {"forward": golden[f"{case}_e"]}
    for name, key in (("steps", "z"), ("guidance", "n")):
        array = golden[f"{case}_{key}"]
        noise[name] = array.reshape(-1, *array.shape[2:])
    return noise


@pytest.mark.parametrize("case", CASES)
def test_recorded_runs(denoiser, golden, case):
    method = fp.methods.gdmp(**CASES[case], clip_output=False)
    table = method.table()
    reverse = ~table.column("forward")
    rounds = CASES[case]["rounds"]
    assert list(table.column("index")[reverse]) == list(golden[f"{case}_timesteps"]) * rounds
    pulls = golden[f"{case}_scale"] * golden[f"{case}_variance"]
    assert table.column("c")[reverse] == pytest.approx(np.tile(pulls, rounds), rel=1e-9)
    out, grad = golden[f"{case}_x_out_f64"], golden[f"{case}_grad_x_in_f64"]
    compare(denoiser, method, golden["x_in"], golden["c"], recorded(golden, case), out, grad)


@pytest.mark.parametrize("case", CASES)
def test_the_guide_path_is_a_large_part_of_the_gradient(denoiser, golden, case):
    """Without it the result is the recorded gradient with a detached reference, and far from the exact one."""
    method = fp.methods.gdmp(**CASES[case], guidance_grad="no_guide_path", clip_output=False)
    _, grad = run(denoiser, method, "fp64", golden["x_in"], golden["c"], recorded(golden, case))
    assert relative_error(grad, golden[f"{case}_grad_x_in_reference_detached_f64"]) < F64
    missing = relative_error(grad, golden[f"{case}_grad_x_in_f64"])
    assert missing == pytest.approx(WITHOUT_GUIDE_PATH[case], rel=1e-6)


def test_published_strength():
    """Methods section 9: S_35 = 366 090.3; the pull at i = 35 is 0.19 for one image, a hundredth with the default."""
    row = fp.methods.gdmp(rounds=1).table().rows[1]
    variance = 1e-4 + 35 * (2e-2 - 1e-4) / 999
    assert row.index == 35
    assert row.c / variance == pytest.approx(366_090.3, rel=1e-6)
    assert row.c * 2 / 3072 == pytest.approx(0.19000, rel=1e-4)
    method = fp.methods.gdmp()
    assert row.c * method.guidance.weight(3072) == pytest.approx(0.0019000, rel=1e-4)
    assert method.table().n_network_calls == 144
    assert [row.forward for row in method.table().rows].index(True, 1) == 37
    assert math.isclose(method.table().rows[0].a ** 2, 0.983172, abs_tol=5e-7)


def test_a_short_chain_can_begin_at_the_level_it_diffused_to():
    """On 40 of 1000 steps "one below" the diffused index is 26 below, and the noise between the two would stay."""
    below, level = (
        fp.methods.gdmp(t=0.1, rounds=1, chain=40, begin=begin).table() for begin in ("below", "level")
    )
    assert [row.index for row in below.rows[1:]] == [77, 51, 26, 0]
    assert [row.index for row in level.rows[1:]] == [102, 77, 51, 26, 0]
    for table in (below, level):
        assert table.rows[0].a ** 2 == pytest.approx(
            float(np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))[102])
        )


def images(n):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


@pytest.mark.parametrize("metric", ["mse", "ssim"])
@pytest.mark.parametrize("guide", ["noised", "clean"])
def test_an_image_does_not_feel_its_batch(metric, guide):
    method = fp.methods.gdmp(t=0.01, rounds=2, metric=metric, guide=guide, reference_batch=1)
    purifier = fp.Purifier(toy_denoiser(), method, precision="fp64", seed=3)
    u = images(4).requires_grad_(True)
    whole = purifier(u, sample_ids=[3, 1, 4, 2])
    (grad,) = torch.autograd.grad(whole.square().sum(), u)
    alone = purifier(u[2:3], sample_ids=[4])
    (grad_alone,) = torch.autograd.grad(alone.square().sum(), u)
    assert torch.allclose(whole[2:3], alone, atol=1e-12)
    assert torch.allclose(grad[2], grad_alone[2], atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "c1", "c2"), [({}, 0.01**2, 0.03**2), ({"data_range": 2.0}, 0.02**2, 0.06**2)]
)
def test_ssim_is_one_for_equal_images_and_its_formula_elsewhere(settings, c1, c2):
    """The published constants are those of a data range of 1, though images in [-1, 1] have 2."""
    ssim = StructuralSimilarity(**settings)
    x, y = (2 * images(6) - 1).split(3)
    assert torch.allclose(ssim.ssim(x, x), torch.ones(3, dtype=torch.float64), atol=1e-12)
    # Written out at one pixel: weights of the window, zero outside the image.
    taps = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2
    total = np.zeros(3)
    padded = [np.pad(v.numpy(), ((0, 0), (0, 0), (5, 5), (5, 5))) for v in (x, y)]
    for i in range(8):
        for j in range(8):
            a, b = (p[:, :, i : i + 11, j : j + 11] for p in padded)
            ma, mb = (window * a).sum((2, 3)), (window * b).sum((2, 3))
            va, vb = (window * a * a).sum((2, 3)) - ma**2, (window * b * b).sum((2, 3)) - mb**2
            vab = (window * a * b).sum((2, 3)) - ma * mb
            index = (2 * ma * mb + c1) * (2 * vab + c2) / ((ma**2 + mb**2 + c1) * (va + vb + c2))
            total += index.mean(1) / 64
    assert ssim.ssim(x, y).numpy() == pytest.approx(total, rel=1e-12)


def test_ssim_pulls_towards_the_input():
    guidance = StructuralSimilarity(reference_batch=1, guide="clean")
    x, x0 = (2 * images(2) - 1).split(1)
    step = GuidanceStep(0, 1.0, 0.0, lambda: None)
    ahead = x + 1e-3 * guidance.gradient(x, (x0,), step)
    assert float(guidance.ssim(ahead, x0)) > float(guidance.ssim(x, x0))


def test_guidance_noise_comes_from_its_own_stream():
    u = images(1)
    arguments = {"t": 0.01, "rounds": 1, "reference_batch": 1}
    noised, clean = (
        fp.Purifier(toy_denoiser(), fp.methods.gdmp(**arguments, guide=guide), precision="fp64")
        for guide in ("noised", "clean")
    )
    assert torch.equal(noised(u), noised(u))
    assert not torch.equal(noised(u), clean(u))
    assert not torch.equal(noised(u), noised(u, draw=1))
    n = len(noised.method.table()) - 1
    zeros = torch.zeros(n, *u.shape)
    with pytest.raises(ValueError, match=r"`noise.guidance` must be given"):
        noised(u, noise=fp.RecordedNoise(forward=zeros[0], steps=zeros))


IMAGENET = {"chain": 250, "metric": "ssim", "guide_scale": 1000.0, "ptb": 4.0, "guide": "clean"}


@pytest.mark.parametrize("variance", ["learned", "large"])
def test_imagenet_diffuses_to_and_begins_at_index_44_of_250(variance):
    """Which is 177 of 1000; one step further, at 45 (181), it does not even diffuse."""
    method = fp.methods.gdmp(t=0.176, rounds=1, begin="level", variance=variance, **IMAGENET)
    table = method.table()
    assert table.n_network_calls == 45
    indices = [row.index for row in table.rows[1:]]
    assert indices == [round(i * 999 / 249) for i in range(44, -1, -1)]
    assert indices[0] == 177
    power = DiscreteVP().alpha_bar
    assert table.rows[0].a ** 2 == pytest.approx(power(177), rel=1e-12)
    beta = 1 - power(indices[0]) / power(indices[1])
    m = 4 * 2 / 255 / 3 / 1000
    pull = beta * math.sqrt((1 - power(indices[0])) / power(indices[0])) / m
    assert table.rows[1].c == pytest.approx(pull, rel=1e-12)
    assert table.rows[1].d == pytest.approx(math.sqrt(beta), rel=1e-12)
    least = (1 - power(indices[1])) / (1 - power(indices[0]))
    ranges = {row.log_range for row in table.rows[1:]}
    if variance == "large":
        assert ranges == {0.0}
    else:
        assert table.rows[1].log_range == pytest.approx(math.log(least), rel=1e-12)
        assert len(ranges) == 45
        # The last step has no posterior variance, and takes that of the step before it.
        posterior = (1 - power(4) / power(0)) * (1 - power(0)) / (1 - power(4))
        assert table.rows[-1].log_range == pytest.approx(math.log(posterior / (1 - power(0))), rel=1e-12)


def test_the_preset_is_the_imagenet_setting():
    preset = fp.presets["gdmp-imagenet-linf"].method()
    made = fp.methods.gdmp(t=0.176, rounds=1, begin="level", variance="learned", **IMAGENET)
    assert preset == made
    assert (made.guidance.data_range, made.guidance.guide) == (1.0, "clean")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"metric": "constant"}, "`metric` must be one of 'mse', 'ssim'"),
        ({"guide": "none"}, "`guide` must be one of 'noised', 'clean'"),
        ({"guidance_grad": "half"}, "`guidance_grad` must be one of 'exact', 'no_guide_path', 'detached'"),
        ({"rounds": 0}, "`rounds` must be an integer >= 1"),
        ({"reference_batch": 0}, "`reference_batch` must be an integer >= 1"),
        ({"guide_scale": -1.0}, "`guide_scale` must be a finite number above 0"),
        ({"t": 1.0}, "`t` must be at most 0.999"),
        ({"chain": 1001}, r"`chain` must be an integer in \[2, 1000\]"),
        ({"variance": "huge"}, "`variance` must be one of 'small', 'large', 'learned'"),
        ({"data_range": 0.0, "metric": "ssim"}, "`data_range` must be a finite number above 0"),
        ({"begin": "above"}, "`begin` must be one of 'below', 'level'"),
    ],
)
def test_mistakes_name_the_argument(arguments, words):
    with pytest.raises(ValueError, match=words):
        fp.methods.gdmp(**arguments)
