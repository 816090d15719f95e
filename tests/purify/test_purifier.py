"""What a purifier promises: reproducible noise, independence of batching, honest refusals."""

from __future__ import annotations

import json
import warnings
from functools import partial

import pytest
import torch

import fastpure as fp
from fastpure.checkpoints import save_denoiser
from fastpure.errors import NonFiniteError
from fastpure.kernels import Domain
from fastpure.nets import Denoiser
from fastpure.purify import ResizedPurifier, TiledPurifier
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser


@pytest.fixture
def classifier():
    return toy_classifier(torch.float32)


@pytest.fixture
def purifier(classifier):
    return fp.Purifier(toy_denoiser(torch.float32), fp.methods.coup(classifier, t=0.1, dt=0.02), seed=7)


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_rows_do_not_depend_on_the_batch(purifier):
    x, ids = images(6), torch.tensor([5, 17, 3, 99, 2**32 - 1, 0])
    whole = purifier(x, sample_ids=ids)
    for i in range(6):
        alone = purifier(x[i : i + 1], sample_ids=ids[i : i + 1])
        assert torch.allclose(alone, whole[i : i + 1], atol=2e-6)
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    assert torch.equal(purifier(x[order], sample_ids=ids[order]), whole[order]), "equal batch shape: bitwise"


def test_draws_seeds_domains_and_ids_are_different_noise(purifier, classifier):
    x = images(2)
    base = purifier(x)
    other = fp.Purifier(toy_denoiser(torch.float32), purifier.method, seed=8)
    variants = [
        purifier(x, draw=1),
        purifier(x, sample_ids=[4, 5]),
        purifier(x, domain=Domain.ATTACK),
        purifier(x, domain=Domain.EVALUATION),
        other(x),
    ]
    assert torch.equal(purifier(x), base)
    for variant in variants:
        assert float((variant - base).abs().mean()) > 1e-3


def test_one_draw_per_row(purifier):
    x = images(1).expand(3, *SHAPE)
    together = purifier(x, sample_ids=[4, 4, 4], draw=torch.tensor([0, 1, 2]))
    for j in range(3):
        assert torch.allclose(together[j : j + 1], purifier(x[:1], sample_ids=[4], draw=j), atol=2e-6)


def test_memory_layout_does_not_matter(purifier):
    x = images(2)
    assert torch.allclose(purifier(x.to(memory_format=torch.channels_last)), purifier(x), atol=2e-6)


def test_global_generator_is_neither_used_nor_moved(purifier):
    x = images(2)
    state = torch.random.get_rng_state()
    first = purifier(x)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(12345)
    assert torch.equal(purifier(x), first)


def test_clip_output_belongs_to_the_method(classifier):
    x = images(4)
    free = fp.Purifier(toy_denoiser(torch.float32), fp.methods.diffpure(t=0.3, dt=0.05))(x)
    held = fp.Purifier(toy_denoiser(torch.float32), fp.methods.diffpure(t=0.3, dt=0.05, clip_output=True))(x)
    assert float(free.min()) < 0 or float(free.max()) > 1
    assert torch.equal(held, free.clamp(0, 1))


def test_trajectory_begins_and_ends_where_it_should(purifier):
    x = images(2)
    states = purifier.trajectory(x, sample_ids=[8, 9], draw=3)
    assert states.shape == (len(purifier.method.table()) + 1, *x.shape)
    assert torch.allclose(states[0], x, atol=1e-6)
    assert torch.equal(states[-1].clamp(0, 1), purifier(x, sample_ids=[8, 9], draw=3))


def test_empty_batch_is_an_empty_result(purifier, classifier):
    empty = images(0)
    assert purifier(empty).shape == empty.shape
    assert fp.Defense(purifier, classifier)(empty).shape == (0, 4)
    assert purifier.trajectory(empty).shape[1] == 0


def test_evaluation_mode_is_kept(purifier, classifier):
    defense = fp.Defense(purifier, classifier)
    defense.train()
    assert not any(module.training for module in defense.modules())


def test_defense_counts_draws_and_can_be_fixed(purifier, classifier):
    defense, x = fp.Defense(purifier, classifier), images(2)
    first, second = defense(x), defense(x)
    assert torch.equal(first, defense(x, draw=0))
    assert torch.equal(second, defense(x, draw=1))
    assert not torch.equal(first, second)
    with defense.fixed(draw=5):
        assert torch.equal(defense(x), defense(x))
        assert torch.equal(defense(x), defense(x, draw=5))
    assert torch.equal(defense(x), defense(x, draw=2))


def test_printing_says_what_it_is(purifier):
    assert "coup(t=0.1, dt=0.02, scale=1.0, label='step'" in repr(purifier)
    assert str(fp.methods.diffpure()) == "diffpure(t=0.1, dt=0.001, clip_output=False): 100 network calls"
    assert hash(fp.methods.diffpure()) == hash(fp.methods.diffpure())
    assert fp.methods.diffpure() != fp.methods.diffpure(t=0.2)


class Broken(ToyNet):
    """Overflows for bright images late in the process."""

    def forward(self, x, label):
        out = super().forward(x, label)
        bright = (x.amax((1, 2, 3)) > 5.0) & (label < 999 * 0.05)
        return torch.where(bright[:, None, None, None], torch.full_like(out, float("inf")), out)


def test_non_finite_states_name_step_and_sample():
    torch.manual_seed(0)
    denoiser = Denoiser.from_module(Broken().eval(), image_shape=SHAPE)
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=0.02))
    noise = torch.zeros(5, 2, *SHAPE)
    noise[0, 1, 0, 0, 0] = 1000.0
    with pytest.raises(NonFiniteError, match=r"step 3 \(t = 0.04\) for sample id 42"):
        purifier(images(2), sample_ids=[41, 42], noise=fp.RecordedNoise(steps=noise))
    with pytest.raises(NonFiniteError, match="sample id 42"):
        purifier(images(2).requires_grad_(), sample_ids=[41, 42], noise=fp.RecordedNoise(steps=noise))


class Detached(ToyNet):
    def forward(self, x, label):
        return super().forward(x.detach(), label).detach()


def test_a_denoiser_without_gradient_is_refused_not_ignored():
    denoiser = Denoiser.from_module(Detached().eval(), image_shape=SHAPE)
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=0.05))
    purifier(images(1))
    with pytest.raises(ValueError, match="`denoiser` must be differentiable"):
        purifier(images(1).requires_grad_()).sum().backward()


ONE = torch.rand(1, *SHAPE)


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"x": ONE[0]}, ValueError, r"`x` must be of shape \[B, 2, 8, 8\], got \[2, 8, 8\].*x\[None\]"),
        ({"x": ONE[:, :1]}, ValueError, r"`x` must be of shape .* got \[1, 1, 8, 8\]"),
        ({"x": ONE[..., :4]}, ValueError, r"`x` must be of shape"),
        ({"x": ONE.double()}, TypeError, "`x` must be of dtype float32, got float64"),
        ({"x": (ONE * 255).byte()}, TypeError, "`x` must be of dtype float32, got uint8.*255"),
        ({"x": ONE.numpy()}, TypeError, "`x` must be a float32 tensor .* got ndarray"),
        ({"x": ONE * 2 - 1}, ValueError, r"`x` must be in \[0, 1\], got values in"),
        ({"x": ONE * 255}, ValueError, r"`x` must be in \[0, 1\]"),
        ({"x": ONE * float("nan")}, ValueError, "`x` must be finite"),
        ({"x": ONE / 0}, ValueError, "`x` must be finite"),
        ({"x": ONE, "sample_ids": [-1]}, ValueError, "`sample_ids`"),
        ({"x": ONE, "sample_ids": [0.5]}, TypeError, "`sample_ids`"),
        ({"x": ONE, "sample_ids": torch.tensor([0.5])}, TypeError, "`sample_ids`"),
        ({"x": ONE, "sample_ids": [2**32]}, ValueError, "`sample_ids`"),
        ({"x": ONE, "sample_ids": [1, 2]}, ValueError, "`sample_ids` must be one id per image, 1, got 2"),
        ({"x": ONE, "draw": -1}, ValueError, "`draw`"),
        ({"x": ONE, "draw": 0.5}, TypeError, "`draw`"),
        ({"x": ONE, "noise": fp.RecordedNoise()}, ValueError, "`noise.steps` must be an array of shape"),
        (
            {"x": ONE, "noise": fp.RecordedNoise(steps=torch.zeros(3, *ONE.shape))},
            ValueError,
            r"`noise.steps` must be of shape \[5, 1, 2, 8, 8\], got \[3, 1, 2, 8, 8\]",
        ),
    ],
)
def test_bad_arguments_are_named(purifier, arguments, error, words):
    with pytest.raises(error, match=words):
        purifier(**arguments)


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (
            lambda d, c: fp.Purifier(ToyNet(), fp.methods.diffpure()),
            TypeError,
            "`denoiser` must be a fastpure.De",
        ),
        (lambda d, c: fp.Purifier(d, "coup"), TypeError, "`method` must be a Method, got str.*fp.methods"),
        (lambda d, c: fp.Purifier(d, fp.methods.diffpure(), seed=-1), ValueError, "`seed`"),
        (lambda d, c: fp.Purifier(d, fp.methods.diffpure(), seed=0.5), TypeError, "`seed`"),
        (
            lambda d, c: fp.Purifier(d, fp.methods.diffpure(), precision="fp8"),
            ValueError,
            "`precision` must be",
        ),
        (lambda d, c: fp.Purifier(d, fp.methods.diffpure(), memory="lots"), ValueError, "`memory` must be"),
        (lambda d, c: fp.Purifier(d, fp.methods.diffpure(), memory=-1), ValueError, "`memory` must be"),
        (lambda d, c: fp.methods.make("coupe"), ValueError, "`method` must be one of 'diffpure'"),
        (lambda d, c: fp.methods.coup(c.train()), ValueError, "`classifier` must be in evaluation mode"),
        (lambda d, c: fp.methods.coup(lambda x: x), TypeError, "`classifier` must be an nn.Module"),
        (lambda d, c: fp.methods.coup(c, scale=-1.0), ValueError, "`scale` must be a finite number >= 0"),
        (lambda d, c: fp.methods.coup(c, label="true"), ValueError, "`label` must be one of 'step', 'input'"),
        (lambda d, c: fp.methods.coup(c, guidance_grad="none"), ValueError, "`guidance_grad` must be one of"),
        (lambda d, c: fp.methods.diffpure(t=0.0), ValueError, "`t` must be a finite number above 0"),
        (lambda d, c: fp.methods.diffpure(t=1.1), ValueError, r"`t` must be a diffusion time in \(0, 1\]"),
        (lambda d, c: fp.methods.diffpure(t=100), ValueError, "100 steps of 1000 are t = 0.1"),
        (lambda d, c: fp.methods.diffpure(t=0.0005), ValueError, "`t` must be at least one of 1000"),
        (lambda d, c: fp.methods.diffpure(dt=0), ValueError, "`dt` must be a finite number above 0"),
        (lambda d, c: fp.methods.ddim(n_steps=0), ValueError, r"`n_steps` must be an integer in \[1, 100\]"),
        (lambda d, c: fp.methods.ddim(n_steps=101), ValueError, "`n_steps`"),
        (lambda d, c: fp.methods.ddpm(variance="learned"), ValueError, "`variance` must be one of"),
        (lambda d, c: fp.Defense(d, c), TypeError, "`purifier` must be a fastpure.Purifier"),
        (
            lambda d, c: fp.Defense(fp.Purifier(d, fp.methods.diffpure()), c.train()),
            ValueError,
            "`classifier` must be in evaluation mode",
        ),
    ],
)
def test_bad_construction_is_named(build, error, words, classifier):
    with pytest.raises(error, match=words):
        build(toy_denoiser(torch.float32), classifier)


def test_classifier_put_into_training_mode_later_is_noticed(purifier, classifier):
    defense = fp.Defense(purifier, classifier)
    classifier.train()
    with pytest.raises(ValueError, match="evaluation mode"):
        purifier(images(1))
    with pytest.raises(ValueError, match="evaluation mode"):
        defense(images(1))


@pytest.mark.parametrize(
    ("notes", "t_max"),
    [
        ({}, None),
        ({"t_max": "0.3"}, 0.3),
        ({"loss": json.dumps({"kind": "denoiser", "t_min": 0.001, "t_max": 0.25})}, 0.25),
        ({"loss": json.dumps({"kind": "addt", "levels": {"kind": "vp", "t_max": 0.2}})}, 0.2),
        ({"loss": json.dumps({"kind": "adbm", "t_end_min": 0.1, "t_end_max": 0.2})}, 0.2),
        ({"loss": json.dumps({"kind": "addt", "levels": {"kind": "edm", "sigma_max": 1.234}})}, 0.3),
        ({"loss": json.dumps({"kind": "denoiser", "levels": {"kind": "edm", "sigma_max": None}})}, None),
        ({"loss": "a hinge", "t_max": "as far as it went"}, None),
        ({"loss": "[1]", "t_max": "-3"}, None),
        ({"loss": json.dumps({"kind": "denoiser", "levels": "many", "t_max": None})}, None),
    ],
    ids=str,
)
def test_a_denoiser_that_is_asked_beyond_its_training_is_not_asked_in_silence(tmp_path, notes, t_max):
    denoiser = fp.Denoiser.from_config("ddpmpp-digits")
    loaded = fp.load_denoiser(save_denoiser(denoiser, tmp_path / "d.safetensors", notes=notes))
    assert loaded.checkpoint.t_max == (None if t_max is None else pytest.approx(t_max, rel=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fp.Purifier(denoiser, fp.methods.diffpure(t=0.9, dt=0.3))
        for method in (
            fp.methods.diffpure(t=t_max or 0.9, dt=0.1),
            fp.methods.ddpm(t=t_max or 0.9, n_steps=4),
        ):
            # An attacker's or a planner's purifiers say nothing: theirs are not the user's.
            fp.Purifier(loaded, method).with_method(fp.methods.diffpure(t=0.9, dt=0.3))
    if t_max is not None:
        expected = f"up to t = {t_max:g} .*, and diffpure asks it at t = 0.4.*Use a smaller t"
        others = (partial(TiledPurifier, height=10, width=12), partial(ResizedPurifier, size=16))
        for make in (fp.Purifier, *others):
            with pytest.warns(UserWarning, match=expected) as caught:
                make(loaded, fp.methods.diffpure(t=0.4, dt=0.1))
            assert caught[0].filename == __file__, "the caller's line"


def test_all_that_asks_the_denoiser_counts_as_asked(tmp_path):
    denoiser = fp.Denoiser.from_config("ddpmpp-digits")
    loaded = fp.load_denoiser(save_denoiser(denoiser, tmp_path / "d.safetensors", notes={"t_max": "0.3"}))
    for method in (
        fp.methods.likelihood_max(sigma=(0.4, 1.8)),  # its rows stand at 1.1; t = 0.3 is 1.23
        fp.methods.freqpure(t=0.1, n_steps=4, guide_t=0.5),
        fp.methods.mimic(n_steps=4),
        fp.methods.edm(n_steps=4, sigma_max=2.0),
    ):
        with pytest.warns(UserWarning, match=f"{method.name} asks it at t ="):
            fp.Purifier(loaded, method)
