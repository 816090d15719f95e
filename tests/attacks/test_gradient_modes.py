"""Each gradient mode differentiates what its name says; decisions are the deployed defence's throughout."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks import MODES, PGD, GradientMode
from fastpure.attacks.gradient import objective, query
from fastpure.attacks.losses import cross_entropy
from fastpure.kernels import Domain
from fastpure.methods import Method
from fastpure.purify import look_through
from fastpure.schedule import StepTable
from tests.attacks.toys import Pixels, images, mixture_defense, scaling_defense
from tests.methods.small import SMALL, denoiser
from tests.reverse import toys


def gradient(defense: nn.Module, mode: GradientMode, x, y, draws: int = 2) -> torch.Tensor:
    goal = objective(mode.logits(look_through(defense)), cross_entropy)
    return query(goal, x, y, torch.arange(len(x)), range(draws), 64).gradient


def plain_gradient(logits, x, y, draws: int = 2) -> torch.Tensor:
    """Mean gradient of the cross entropy by one plain autograd call per draw."""
    total = torch.zeros_like(x)
    for draw in range(draws):
        leaf = x.clone().requires_grad_(True)
        total += torch.autograd.grad(cross_entropy(logits(leaf, draw), y).sum(), leaf)[0]
    return total / draws


@pytest.fixture
def coup():
    classifier = toys.toy_classifier(torch.float32)
    method = fp.methods.coup(classifier, t=0.1, dt=0.01, scale=20.0)
    defense = fp.Defense(fp.Purifier(toys.toy_denoiser(torch.float32), method), classifier)
    x = torch.rand(3, *toys.SHAPE, generator=torch.Generator().manual_seed(0))
    return defense, x, torch.tensor([0, 1, 2])


def with_method(defense: fp.Defense, method) -> fp.Defense:
    return fp.Defense(fp.Purifier(toys.toy_denoiser(torch.float32), method), defense.classifier)


def test_each_mode_is_the_gradient_of_its_own_function(coup):
    defense, x, y = coup
    classifier, ids, attack = defense.classifier, torch.arange(3), {"domain": Domain.ATTACK}
    cut = with_method(
        defense, fp.methods.coup(classifier, t=0.1, dt=0.01, scale=20.0, guidance_grad="detached")
    )
    coarse = with_method(defense, fp.methods.coup(classifier, t=0.1, dt=0.05, scale=20.0))

    def bpda(u, draw):
        purified = defense.purifier(u.detach(), ids, draw, **attack)
        return classifier(u + (purified - u).detach())

    expected = {
        GradientMode("exact"): lambda u, draw: defense(u, ids, draw, **attack),
        GradientMode("detached"): lambda u, draw: cut(u, ids, draw, **attack),
        GradientMode("surrogate", dt=0.05): lambda u, draw: coarse(u, ids, draw, **attack),
        GradientMode("surrogate", steps=2): lambda u, draw: coarse(u, ids, draw, **attack),
        GradientMode("surrogate"): lambda u, draw: coarse(u, ids, draw, **attack),
        GradientMode("blind"): lambda u, draw: classifier(u),
        GradientMode("bpda"): bpda,
    }
    found = {mode: gradient(defense, mode, x, y) for mode in expected}
    for mode, logits in expected.items():
        assert torch.allclose(found[mode], plain_gradient(logits, x, y), atol=2e-6), mode
    for name in ("detached", "blind", "bpda", "surrogate"):
        difference = (found[GradientMode(name)] - found[GradientMode("exact")]).norm()
        assert float(difference / found[GradientMode("exact")].norm()) > 0.01, f"{name} must not be exact"


def test_the_value_under_bpda_is_the_deployed_one_bitwise(coup):
    defense, x, _ = coup
    ids, draws = torch.arange(3), torch.tensor([4, 4, 4])
    logits = GradientMode("bpda").logits(look_through(defense))(x, ids, draws)
    assert torch.equal(logits, defense(x, ids, 4, domain=Domain.ATTACK))


@pytest.mark.parametrize("name", ["diffpure", "coup", "coup_unguided"])
def test_the_continuous_adjoint_runs_the_same_forward_and_approaches_the_exact_gradient(coup, name):
    defense, x, y = coup
    make = {
        "diffpure": fp.methods.diffpure,
        "coup_unguided": fp.methods.coup_unguided,
        "coup": lambda **s: fp.methods.coup(defense.classifier, **s),
    }[name]
    cosines = []
    for dt in (0.02, 0.002):
        variant = with_method(defense, make(t=0.1, dt=dt))
        logits = GradientMode("adjoint").logits(look_through(variant))(
            x, torch.arange(3), torch.tensor([1, 1, 1])
        )
        assert torch.allclose(logits, variant(x, torch.arange(3), 1, domain=Domain.ATTACK), atol=1e-5)
        pair = [gradient(variant, GradientMode(mode), x, y, 1).flatten(1) for mode in ("exact", "adjoint")]
        cosines.append(float(torch.cosine_similarity(*pair).mean()))
    assert cosines[0] < 0.9 < 0.99 < cosines[1], "wrong at few steps, right in the limit of many"


class Halves(nn.Module):
    """Two classes by the mean brightness of the image."""

    def forward(self, u):
        score = 8.0 * (u - 0.5).flatten(1).mean(1)
        return torch.stack([score, -score], 1)


def test_exact_gradients_break_a_defense_that_bpda_cannot():
    # The purifier turns the image into its negative: the identity is the worst possible guess of its Jacobian.
    classifier = Halves().eval()
    row = fp.methods.coup_unguided(t=0.01, dt=0.01).table().rows[0]
    defense = scaling_defense(classifier, factor=-(1.0 + row.a) / row.b, t=0.01)
    x = 0.5 + 0.2 * (images(8) - 0.5) - 0.12
    y = defense.predict(x, draw=0)
    settings = {"eps": 0.25, "n_iter": 10, "eot_iter": 4, "eval_draws": 6}
    found = {
        mode: PGD(gradient=mode, **settings)(defense, x, y).robust_accuracy for mode in ("exact", "bpda")
    }
    assert found["exact"].estimate < 0.05
    assert found["bpda"].estimate > 0.9


def test_fixed_noise_reaches_every_mode():
    defense, x = mixture_defense(Pixels()), images(2)
    y = torch.tensor([0, 1])
    for name in ("bpda", "surrogate"):
        with defense.fixed(draw=3):
            first = gradient(defense, GradientMode(name), x, y, draws=1)
            goal = objective(GradientMode(name).logits(look_through(defense)), cross_entropy)
            later = query(goal, x, y, torch.arange(2), range(7, 8), 64).gradient
        assert torch.equal(first, later), "every draw is the frozen one"
        assert not torch.equal(first, gradient(defense, GradientMode(name), x, y, draws=1))


@pytest.mark.parametrize(
    ("precision", "gradient_precision"), [("fp32", None), ("bf16", "fp32"), ("fp32", "bf16")]
)
def test_a_surrogate_keeps_the_networks_seed_and_precisions(precision, gradient_precision):
    denoiser, x = (
        fp.load_denoiser("digits"),
        torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)),
    )
    settings = {"seed": 9, "precision": precision, "gradient_precision": gradient_precision}
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.04, dt=0.01), **settings)
    coarse = fp.methods.coup_unguided(t=0.04, dt=0.04)
    direct, other = fp.Purifier(denoiser, coarse, **settings), purifier.with_method(coarse)
    assert torch.equal(other(x), direct(x))
    grads = [
        torch.autograd.grad(p(leaf := x.clone().requires_grad_()).sum(), leaf)[0] for p in (other, direct)
    ]
    assert torch.equal(*grads)


def test_every_mode_is_named_and_mistakes_are_clear():
    assert set(MODES) == {"exact", "bpda", "blind", "surrogate", "adjoint", "detached", "unguided"}
    with pytest.raises(ValueError, match="`gradient` must be one of 'exact', 'bpda'"):
        PGD(gradient="exakt")
    with pytest.raises(ValueError, match="`surrogate_steps` must be None with gradient='exact'"):
        PGD(surrogate_steps=3)
    with pytest.raises(ValueError, match="`surrogate_dt` must be the only one"):
        PGD(gradient="surrogate", surrogate_steps=3, surrogate_dt=0.1)
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure.Defense for gradient='bpda'"):
        GradientMode("bpda").logits(look_through(Pixels()))
    unguided = mixture_defense(Pixels())
    with pytest.raises(ValueError, match="it has no guidance to detach"):
        GradientMode("detached").logits(look_through(unguided))
    with pytest.raises(ValueError, match="the adjoint exists for diffpure, coup"):
        GradientMode("adjoint").logits(look_through(mixture_defense(Pixels(), fp.methods.ddim(n_steps=2))))
    with pytest.raises(
        ValueError, match="`gradient` must be 'surrogate' with surrogate_steps for method ddim"
    ):
        GradientMode("surrogate", dt=0.1).logits(
            look_through(mixture_defense(Pixels(), fp.methods.ddim(n_steps=2)))
        )
    assert replace(PGD(), gradient="bpda").mode() == GradientMode("bpda")


@pytest.mark.parametrize("name", SMALL)
def test_every_method_can_be_attacked_in_every_mode_it_has(name):
    method = SMALL[name]()
    double = fp.Purifier(denoiser(method), method, precision="fp64")
    defense = fp.Defense(double, toys.toy_classifier())
    x = torch.rand(2, *toys.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = torch.tensor([0, 1])
    exact = gradient(defense, GradientMode("exact"), x, y, 1)
    ids = torch.arange(2)
    plain = plain_gradient(lambda u, draw: defense(u, ids, draw, domain=Domain.ATTACK), x, y, 1)
    assert torch.allclose(exact, plain, rtol=1e-9, atol=1e-12)
    assert torch.isfinite(gradient(defense, GradientMode("bpda"), x, y, 1)).all()
    if method.guidance is not None:
        cut = gradient(defense, GradientMode("detached"), x, y, 1)
        assert not torch.equal(cut, exact)
        without = gradient(defense, GradientMode("unguided"), x, y, 1)
        assert torch.isfinite(without).all()
        assert not torch.equal(without, exact)
    if {"dt", "n_steps", "n_iter"} & {setting for setting, _ in method.settings}:
        assert GradientMode("surrogate").logits(look_through(defense))(x, ids, ids).shape == (2, 4)
        calls = [each.steps.n_network_calls for each in (method.coarser(), method)]
        assert calls[0] < calls[1] or calls[1] == 1
    else:
        with pytest.raises(ValueError, match=f"another mode for method {name}"):
            GradientMode("surrogate").logits(look_through(defense))


def leave_out_guidance(name: str):
    """(a guided method, the same made without guidance), by functions that know nothing of each other."""
    classifier, table = toys.toy_classifier(), SMALL[name]().steps
    return {
        "coup": lambda: (
            fp.methods.coup(classifier, t=0.1, dt=0.02, scale=2.0),
            fp.methods.coup_unguided(t=0.1, dt=0.02),
        ),
        "gdmp": lambda: (SMALL["gdmp"](), Method("by hand", (), bare(table))),
        "agdm": lambda: (
            SMALL["agdm"](),
            Method("by hand", (), bare(table), schedule=SMALL["agdm"]().schedule),
        ),
        "langevin": lambda: (SMALL["langevin"](), Method("by hand", (), bare(table))),
        "likelihood_max": lambda: (
            fp.methods.likelihood_max(n_iter=2, classifier=classifier),
            fp.methods.likelihood_max(n_iter=2),
        ),
    }[name]()


def bare(table: StepTable) -> StepTable:
    return StepTable(tuple(replace(row, c=0.0, u=0.0) for row in table.rows))


@pytest.mark.parametrize("name", ["coup", "gdmp", "agdm", "langevin", "likelihood_max"])
def test_unguided_is_the_gradient_of_the_method_made_without_guidance(name):
    guided, without = leave_out_guidance(name)
    assert guided.guidance is not None
    assert without.guidance is None
    made = [
        fp.Defense(fp.Purifier(toys.toy_denoiser(), method, precision="fp64"), toys.toy_classifier())
        for method in (guided, without)
    ]
    x = torch.rand(2, *toys.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y, mode = torch.tensor([0, 1]), GradientMode("unguided")
    found, expected = gradient(made[0], mode, x, y), gradient(made[1], GradientMode("exact"), x, y)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-13)
    exact = gradient(made[0], GradientMode("exact"), x, y)
    assert float((found - exact).norm() / exact.norm()) > 1e-5
    assert mode.cost(look_through(made[0])) == 1.0
    assert guided.guidance is not None, "the deployed method is what it was"


@pytest.mark.parametrize("name", [name for name in SMALL if SMALL[name]().guidance is not None])
def test_half_the_guidance_is_half_its_coefficients(name):
    method = SMALL[name]()
    half, full, none = (method.weakened(share) for share in (0.5, 1.0, 0.0))
    if method.procedure is not None:
        whole = dict(method.settings)["confidence"]
        assert [dict(part.settings)["confidence"] for part in (half, full)] == [0.5 * whole, whole]
        assert none.guidance is None
        return
    for ours, theirs in zip(half.steps.rows, method.steps.rows, strict=True):
        assert (ours.c, ours.u) == (0.5 * theirs.c, 0.5 * theirs.u)
        assert replace(ours, c=theirs.c, u=theirs.u) == theirs
    assert full.steps == method.steps
    assert half.guidance is full.guidance is method.guidance
    assert none.guidance is None
    assert not any(row.calls_guidance for row in none.steps.rows)
    # An energy is all that is called there: nothing is left of it.
    left = any(row.calls_network for row in method.steps.rows)
    assert none.steps.n_network_calls == (method.steps.n_network_calls if left else 0)
    assert none.clip_output == method.clip_output
    with pytest.raises(ValueError, match="made by hand"):
        half.rebuilt()


def test_half_the_guidance_moves_the_image_half_as_far():
    # Of one step without noise from one point: with guidance, with half and with none.
    method = fp.methods.coup(toys.toy_classifier(), t=0.02, dt=0.02, scale=5.0)
    row = replace(method.steps.rows[0], d=0.0)
    method = replace(method, steps=StepTable((row,)), clip_output=False)
    x = torch.rand(3, *toys.SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    moved = [
        fp.Purifier(toys.toy_denoiser(), each, precision="fp64")(x)
        for each in (method.weakened(1.0), method.weakened(0.5), method.weakened(0.0))
    ]
    whole, half = moved[0] - moved[2], moved[1] - moved[2]
    assert float(whole.norm()) > 1e-6
    assert torch.allclose(half, 0.5 * whole, rtol=1e-6, atol=1e-12)


def test_what_cannot_be_weakened_says_so():
    with pytest.raises(ValueError, match="`method` must be one with guidance, got diffpure"):
        fp.methods.diffpure(t=0.1, dt=0.02).weakened(0.5)
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="`share` must be"):
            SMALL["coup"]().weakened(share)
    with pytest.raises(TypeError, match="`share` must be"):
        SMALL["coup"]().weakened("half")
    with pytest.raises(ValueError, match="it has no guidance to leave out"):
        GradientMode("unguided").logits(look_through(mixture_defense(Pixels())))
    with pytest.raises(TypeError, match=r"`defense` must be a fastpure.Defense for gradient='unguided'"):
        GradientMode("unguided").logits(look_through(Pixels()))
    walked = SMALL["likelihood_max"]()
    by_hand = replace(walked, factory=None)
    with pytest.raises(ValueError, match="one whose guidance can be weighed, got likelihood_max"):
        by_hand.weakened(0.5)
