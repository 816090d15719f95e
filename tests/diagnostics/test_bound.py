"""The distance bounds: the identity they rest on, the counterexample to the printed one, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.data import load_dataset
from fastpure.diagnostics import Constants, distance_bound
from fastpure.diagnostics.bound import _Coefficients
from fastpure.methods import METHODS
from fastpure.purify import ResizedPurifier
from fastpure.schedule import VP
from tests.methods.small import SMALL
from tests.methods.small import purifier as small_purifier
from tests.reverse.toys import SHAPE, toy_classifier, toy_denoiser


def images(n: int = 3, seed: int = 0) -> Tensor:
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def purifier(method) -> fp.Purifier:
    return fp.Purifier(toy_denoiser(), method, seed=3, precision="fp64")


CASES = {
    "coup": lambda: fp.methods.coup(toy_classifier(), t=0.2, dt=0.05, scale=2.0),
    "exponential": lambda: fp.methods.coup(toy_classifier(), t=0.2, dt=0.05, solver="exponential"),
    "diffpure": lambda: fp.methods.diffpure(t=0.2, dt=0.05),
    "clipping": lambda: fp.methods.ddpm(t=0.3, n_steps=6),
    "register": lambda: fp.methods.dpm_solver(t=0.2, n_steps=4),
    "rounds": lambda: fp.methods.gdmp(t=0.1, rounds=2, chain=40, guide_scale=10.0),
    "langevin": lambda: fp.methods.langevin(n_steps=4),
}


@pytest.mark.parametrize("name", CASES)
def test_the_parts_add_up_to_the_end_state_and_bound_the_distance(name):
    """`moved` is that of the purifier itself; the sum of the rows is, to float64 rounding, where it ended."""
    method = CASES[name]()
    own, x, ids = purifier(method), images(), [4, 9, 1]
    rows = method.table().rows
    assert any(row.writes_register for row in rows) == (name == "register")
    coefficients, seen = _Coefficients.of(method.table()), []
    end = own.watch(x, seen.append, ids, 5)
    clean = [(s.state - rows[s.k].sigma * s.noise_pred) / rows[s.k].alpha for s in seen if rows[s.k].clip]
    assert any(bool((part.abs() > 1 - 1e-12).any()) for part in clean) == (name in ("clipping", "rounds"))
    total = coefficients.initial * (2 * x - 1)
    for one in seen:
        for value, by in (
            (one.noise_pred, coefficients.score),
            (one.guidance, coefficients.guidance),
            (one.noise, coefficients.noise),
        ):
            total = total if value is None else total + by[one.k] * value
    assert torch.allclose(total, end, rtol=0, atol=1e-12)
    way = own.trajectory(x, ids, 5)
    assert torch.allclose((end + 1) / 2, way[-1], rtol=0, atol=1e-13)
    found = distance_bound(own, x, ids, 5)
    moved = 2 * (way[-1] - way[0]).flatten(1).norm(dim=1)
    assert torch.allclose(found.moved, moved, rtol=1e-12)
    assert bool((found.moved <= found.bound * (1 + 1e-12)).all())
    parts = found.image + found.noise + found.score + found.guidance
    assert torch.equal(found.bound, parts)
    assert bool((2 * (own(x, ids, 5) - x).flatten(1).norm(dim=1) <= found.moved * (1 + 1e-12)).all()) or (
        not method.clip_output
    )


def test_without_register_the_coefficients_are_products_of_a():
    table = fp.methods.diffpure(t=0.1, dt=0.02).table()
    known, rows = _Coefficients.of(table), table.rows
    for k, row in enumerate(rows):
        later = math.prod(one.a for one in rows[k + 1 :])
        assert known.score[k] == pytest.approx(later * row.b, rel=1e-14)
        assert known.noise[k] == pytest.approx(later * row.d, rel=1e-14)
    assert known.initial == pytest.approx(math.prod(row.a for row in rows), rel=1e-14)


class Along(nn.Module):
    """The noise prediction of a constant score of length 1.5 along the first pixel: -sigma(t) times it."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        sigma = torch.tensor([VP().sigma(float(t)) for t in label / 999.0], dtype=x.dtype)
        score = torch.zeros_like(x)
        score[:, 0, 0, 0] = 1.5
        return -sigma[:, None, None, None] * score


@pytest.mark.parametrize(
    ("t", "dt", "moved", "printed", "corrected"),
    [(0.1, 1e-4, 0.2253, 0.2205, 0.2251), (0.3, 1e-3, 2.360, 1.977, 2.354), (0.6, 1e-3, 20.70, 10.64, 20.71)],
)
def test_the_counterexample_to_the_printed_bound(t, dt, moved, printed, corrected):
    """A unit image and a score of length 1.5 along it, no noise: the linear part acts on what the score adds."""
    denoiser = fp.Denoiser.from_module(Along(), image_shape=(1, 2, 2))
    own = fp.Purifier(denoiser, fp.methods.coup_unguided(t=t, dt=dt), precision="fp64")
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x[0, 0, 0, 0] = 1.0  # (1, 0, 0, 0) in [-1, 1] coordinates
    steps = torch.zeros(len(own.method.table()), 1, 1, 2, 2, dtype=torch.float64)
    constants = Constants(c_x=1.0, c_s=3.0)
    for given in (None, constants):
        found = distance_bound(own, x, noise=fp.RecordedNoise(steps=steps), constants=given)
        assert float(found.moved) == pytest.approx(moved, rel=5e-4)
        assert float(found.printed) == pytest.approx(printed, rel=5e-4)
        assert float(found.corrected) == pytest.approx(corrected, rel=5e-4)
        assert float(found.moved) > float(found.printed) * 1.02, "what the printed form excludes"
        assert float(found.moved) == pytest.approx(float(found.bound), rel=1e-9), "all parts point one way"
        assert float(found.noise) == float(found.guidance) == 0.0
    gamma = 0.5 * (0.1 * t + 9.95 * t * t)
    assert float(found.corrected) == pytest.approx(4 * math.expm1(gamma), rel=1e-12)
    assert float(found.printed) == pytest.approx(math.expm1(gamma) + 3 * gamma, rel=1e-12)


def test_euler_converges_to_the_corrected_form():
    """What Euler's steps add to it halves with the step: the exact solution attains the bound."""
    denoiser = fp.Denoiser.from_module(Along(), image_shape=(1, 2, 2))
    x = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64)
    x[0, 0, 0, 0] = 1.0
    over = []
    for dt in (2e-3, 1e-3, 5e-4):
        own = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.1, dt=dt), precision="fp64")
        steps = torch.zeros(len(own.method.table()), 1, 1, 2, 2, dtype=torch.float64)
        found = distance_bound(own, x, noise=fp.RecordedNoise(steps=steps))
        over.append(float(found.moved - found.corrected))
    assert 1.8e-3 < over[1] < 2.2e-3
    assert over[0] / over[1] == pytest.approx(2, abs=0.15)
    assert over[1] / over[2] == pytest.approx(2, abs=0.15)


def test_guidance_enters_the_proposition_with_its_scale():
    classifier, x = toy_classifier(), images()
    one, three = (
        distance_bound(purifier(fp.methods.coup(classifier, t=0.05, dt=0.05, scale=scale)), x)
        for scale in (1.0, 3.0)
    )
    # One step: the same states, so the same constants, and three times the guidance.
    assert torch.allclose(one.c_p, three.c_p, rtol=1e-12)
    assert torch.allclose(three.guidance, 3 * one.guidance, rtol=1e-12)
    gamma = 0.5 * (0.1 * 0.05 + 9.95 * 0.05**2)
    assert torch.allclose(three.printed - one.printed, 2 * gamma * one.c_p, rtol=1e-9)
    assert torch.allclose(three.corrected - one.corrected, 2 * math.expm1(gamma) * one.c_p, rtol=1e-9)
    unguided = distance_bound(purifier(fp.methods.coup_unguided(t=0.05, dt=0.05)), x)
    assert float(unguided.c_p.abs().max()) == float(unguided.guidance.abs().max()) == 0.0


def test_the_digits():
    """COUP at t 0.15, scale 2: the table's bound is several times closer than the one with constants."""
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    data = load_dataset("digits", "test").subset(50, 0)
    own = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.15, dt=0.015, scale=2.0))
    found = distance_bound(own, data.images, data.sample_ids)
    assert bool((found.moved <= found.bound).all())
    assert 1.8 < float(found.moved.mean()) < 2.2
    assert 11 < float(found.bound.mean()) < 13
    assert 4.0 < float(found.noise.mean()) < 4.6
    assert 30 < float(found.corrected.mean()) < 50
    assert bool((found.printed < found.corrected).all())
    text = str(found)
    for line in ("moved", "bound", "corrected", "printed"):
        assert line in text


def test_nothing_of_proposition_2_for_methods_it_does_not_speak_of():
    found = distance_bound(purifier(fp.methods.diffpure(t=0.1, dt=0.05)), images())
    assert found.printed is found.corrected is found.c_x is found.c_s is found.c_p is None
    assert "corrected" not in str(found)


def test_nothing_is_recorded_and_no_gradient_is_left():
    x = images().requires_grad_(True)
    found = distance_bound(purifier(CASES["coup"]()), x)
    assert not found.bound.requires_grad
    with torch.inference_mode():
        again = distance_bound(purifier(CASES["coup"]()), images())
    assert torch.equal(again.bound, found.bound)


def test_a_purifier_of_another_size_is_measured_at_its_models():
    own = fp.Purifier(toy_denoiser(torch.float32), CASES["diffpure"]())
    resized = ResizedPurifier(toy_denoiser(torch.float32), CASES["diffpure"](), 8)
    x = images().float()
    assert torch.allclose(distance_bound(own, x).bound, distance_bound(resized, x).bound)
    larger = ResizedPurifier(toy_denoiser(torch.float32), CASES["diffpure"](), 16)
    found = distance_bound(larger, torch.rand(2, 2, 16, 16))
    assert bool((found.moved <= found.bound).all())


def test_what_the_rows_do_not_say_is_noticed(monkeypatch):
    from fastpure.reverse import watching as module

    advance = module.advance

    def elsewhere(*args):
        x, register = advance(*args)
        return x + 0.1, register

    monkeypatch.setattr(module, "advance", elsewhere)
    with pytest.raises(RuntimeError, match="the rows of diffpure do not add up to the purified image"):
        distance_bound(purifier(CASES["diffpure"]()), images())


def test_refusals():
    own, x = purifier(CASES["coup"]()), images()
    defense = fp.Defense(own, toy_classifier())
    with pytest.raises(
        TypeError, match=r"`purifier` must be a fastpure.Purifier, got Defense. Pass defense.p"
    ):
        distance_bound(defense, x)
    with pytest.raises(TypeError, match=r"`purifier` must be a fastpure\.Purifier, got str"):
        distance_bound("coup", x)
    with pytest.raises(TypeError, match=r"`x` must be a float32 tensor \[B, C, H, W\], got ndarray"):
        distance_bound(own, x.numpy())
    with pytest.raises(ValueError, match="`x` must be at least one image"):
        distance_bound(own, x[:0])
    with pytest.raises(ValueError, match=r"Add the batch dimension with x\[None\]"):
        distance_bound(own, x[0])
    with pytest.raises(ValueError, match=r"`x` must be in \[0, 1\]"):
        distance_bound(own, 2 * x)
    with pytest.raises(ValueError, match="`x` must be finite"):
        distance_bound(own, x * torch.nan)
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B, 2, 8, 8\]"):
        distance_bound(own, x[:, :, :4])
    with pytest.raises(ValueError, match="`sample_ids` must be one id per image, 3"):
        distance_bound(own, x, [1, 2])
    adp = fp.Purifier(toy_denoiser(torch.float32), fp.methods.adp())
    with pytest.raises(ValueError, match="`method` must be one whose rows alone say what happens, got adp"):
        distance_bound(adp, x.float())
    with pytest.raises(
        ValueError, match="`constants` must be None for diffpure: proposition 2 is about coup"
    ):
        distance_bound(purifier(CASES["diffpure"]()), x, constants=Constants(9.0, 9.0))
    with pytest.raises(TypeError, match="`constants` must be"):
        distance_bound(own, x, constants=(1.0, 2.0))
    with pytest.raises(
        ValueError, match=r"`constants.c_s` must be at least [\d.]+, which was met on the way"
    ):
        distance_bound(own, x, constants=Constants(c_x=100.0, c_s=1e-3, c_p=100.0))
    for value, error in ((-1.0, ValueError), (math.inf, ValueError), ("1", TypeError), (True, TypeError)):
        with pytest.raises(error, match="`c_s` must be"):
            Constants(c_x=1.0, c_s=value)


TABLES = ("diffpure_ode", "ddim", "dpm_solver", "edm", "adbm", "addt", "gradual", "one_shot", "langevin")
PROCEDURES = ("vp_sde", "likelihood_max", "adp")


@pytest.mark.parametrize("name", TABLES + PROCEDURES)
def test_other_methods_are_bounded_or_refused(name):
    """In float32, as deployed: rounding must not look like something that the rows do not say."""
    method = METHODS[name]()
    method = method.coarser(steps=3) if method.step_setting else method
    own = fp.Purifier(fp.load_denoiser("digits"), method)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    if name in PROCEDURES:
        with pytest.raises(ValueError, match=f"`method` must be one whose rows alone .* got {name}"):
            distance_bound(own, x)
        return
    found = distance_bound(own, x)
    assert bool((found.moved <= found.bound * (1 + 1e-5)).all())
    assert bool((found.moved > 0).all())


@pytest.mark.parametrize("name", SMALL)
def test_every_method_is_bounded_or_refused_with_a_sentence(name):
    """Whatever stands between a network's answer and its row must be in what `Purifier.watch` shows."""
    own, x = small_purifier(SMALL[name]()), images()
    if own.method.procedure is not None or own.method.prepare is not None:
        with pytest.raises(ValueError, match=f"`method` must be one whose (rows alone|table) .* got {name}"):
            distance_bound(own, x)
        return
    way = own.trajectory(x)
    found = distance_bound(own, x)
    moved = 2 * (way[-1] - way[0]).flatten(1).norm(dim=1)
    assert torch.allclose(found.moved, moved, rtol=1e-10)
    assert bool((found.moved <= found.bound * (1 + 1e-12)).all())
    assert bool((found.moved > 0).all())


def test_guided_tables_are_bounded():
    """Hundreds of rows in float32 and bfloat16 add up; guidance that reads the input counts."""
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    for method, precision in (
        (fp.methods.gdmp(rounds=2), "fp32"),
        (fp.methods.coup(classifier, t=0.1, dt=1e-3, scale=2.0), "bf16"),
    ):
        found = distance_bound(fp.Purifier(denoiser, method, precision=precision), x)
        assert bool((found.moved <= found.bound * (1 + 1e-5)).all())
        assert bool((found.guidance > 0).all())
