"""What holds for every attack by name: its budget, its independence of batch and global generator, its errors."""

from __future__ import annotations

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastpure as fp
from fastpure.attacks import ATTACKS, from_settings
from fastpure.attacks.base import Proposal
from fastpure.errors import MissingExtra, NonFiniteError
from fastpure.purify.target import ASKED
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense, scaling_defense


def mean_square(images: torch.Tensor, originals: torch.Tensor) -> torch.Tensor:
    """Stands in for LPIPS."""
    return (images - originals).square().flatten(1).mean(1)


SMALL: dict[str, dict[str, object]] = {
    "pgd": {"n_iter": 3, "eot_iter": 2},
    "apgd-ce": {"n_iter": 5, "eot_iter": 2, "n_restarts": 2},
    "apgd-dlr": {"n_iter": 5, "eot_iter": 2},
    "apgd-t": {"n_iter": 4, "eot_iter": 2, "n_target_classes": 2},
    "fab": {"n_iter": 3, "n_target_classes": 2},
    "square": {"n_queries": 15},
    "spsa": {"n_iter": 3, "n_directions": 4, "eot_iter": 2},
    "rays": {"n_queries": 60, "eot_iter": 3},
    "autoattack": {"version": "custom", "attacks": ("apgd-ce", "apgd-t"), "n_iter": 4, "n_target_classes": 1},
    "adaptive": {"budget": 40.0},
    "diffattack": {"n_iter": 2, "eot_iter": 2},
    "diffhammer": {"n_iter": 3, "eot_iter": 3, "n_restarts": 2},
    "dw-pgd": {"n_iter": 2},
    "stadv": {"n_iter": 3, "eot_iter": 2},
    "diffpure-stadv": {"n_iter": 3, "eot_iter": 2},
    "low-frequency": {"n_iter": 3, "eot_iter": 2, "metric": mean_square, "bound": 1e-3},
}
RENDERED = {"stadv", "diffpure-stadv", "low-frequency"}
"""Attacks without an lp budget and without a seed."""
LP = sorted(set(SMALL) - RENDERED)

FOREIGN = {"fab", "square"}
NEED_DEFENSE = {"diffattack", "diffhammer", "dw-pgd"}
SHARING = {"adaptive"}
"""Attacks whose images share a budget: an image depends on the others of its call, and on nothing else."""
NORMS = {"spsa": ["Linf", "L2"], "rays": ["Linf"], "diffhammer": ["Linf", "L2"]}
"""Of the attacks that do not have all three."""


def attack(name: str, **overrides: object) -> fp.attacks.Attack:
    return from_settings(name, **(SMALL[name] | {"eval_draws": 3} | overrides))


def defense_for(name: str) -> torch.nn.Module:
    return mixture_defense(Pixels()) if name in NEED_DEFENSE else Pixels()


def test_every_attack_is_tried_here():
    assert set(SMALL) == set(ATTACKS)
    assert {name for name, kind in ATTACKS.items() if kind.shares} == SHARING
    for name, kind in ATTACKS.items():
        assert getattr(fp.attacks, kind.__name__) is kind, name


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
@pytest.mark.parametrize("name", LP)
@settings(max_examples=12, deadline=None, derandomize=True)
@given(data=st.data())
def test_the_budget_holds_for_adversarially_chosen_inputs(name, data):
    # Corners of the box, radii from invisible to larger than the box, labels right and wrong.
    pixel = st.sampled_from([0.0, 1.0, 0.5, 1e-8, 1 - 1e-7])
    x = torch.tensor(data.draw(st.lists(pixel, min_size=50, max_size=50))).view(2, *SHAPE)
    y = torch.tensor(data.draw(st.lists(st.integers(0, 4), min_size=2, max_size=2)))
    norm = data.draw(st.sampled_from(NORMS.get(name, ["Linf", "L2", "L1"])))
    eps = data.draw(
        st.sampled_from([1e-9, 1e-4, 8 / 255, 0.3, 1.0, *((1.7, 40.0) if norm != "Linf" else ())])
    )
    result = attack(name, norm=norm, eps=eps)(defense_for(name), x, y)
    offset = (result.x_adv.double() - x.double()).flatten(1)
    order = {"Linf": torch.inf, "L2": 2, "L1": 1}[norm]
    measured = torch.linalg.vector_norm(offset, order, dim=1)
    assert result.x_adv.dtype == torch.float32
    assert float(measured.max()) <= eps
    assert torch.allclose(measured, result.distance)
    assert 0 <= float(result.x_adv.min()) <= float(result.x_adv.max()) <= 1


@pytest.mark.parametrize(
    ("name", "random"),
    [
        (name, random)
        for name in sorted(set(ATTACKS) - SHARING)
        for random in (False, True)
        if random or name not in NEED_DEFENSE
    ],
)
def test_an_image_is_attacked_alike_alone_and_in_any_batch(name, random):
    defense = mixture_defense(Pixels()) if random else Pixels()
    x, ids = images(5), torch.tensor([3, 8, 1, 900, 4])
    y = Pixels()(x).argmax(1)
    budget = {} if name in RENDERED else {"eps": 0.4 if name in FOREIGN else 0.15}
    run = attack(name, **budget, batch_size=7)
    whole = run(defense, x, y, sample_ids=ids)
    assert float(whole.distance.max()) > 0
    order = torch.tensor([4, 0, 3, 1, 2])
    shuffled = run(defense, x[order], y[order], sample_ids=ids[order])
    assert torch.equal(shuffled.x_adv, whole.x_adv[order])
    for i in (0, 3):
        alone = attack(name, **budget)(defense, x[i : i + 1], y[i : i + 1], sample_ids=ids[i : i + 1])
        assert torch.equal(alone.x_adv[0], whole.x_adv[i])
        assert torch.equal(alone.robust_correct[0], whole.robust_correct[i])


@pytest.mark.parametrize("name", sorted(SHARING))
@pytest.mark.parametrize("random", [False, True])
def test_where_images_share_a_budget_neither_their_order_nor_the_rows_of_a_call_matter(name, random):
    defense = mixture_defense(Pixels()) if random else Pixels()
    x, ids = images(5), torch.tensor([3, 8, 1, 900, 4])
    y = Pixels()(x).argmax(1)
    whole = attack(name, eps=0.1, batch_size=7)(defense, x, y, sample_ids=ids)
    assert float(whole.distance.max()) > 0
    for order, batch_size in (([0, 1, 2, 3, 4], 7), ([4, 0, 3, 1, 2], 7), ([2, 4, 1, 0, 3], 1)):
        torch.manual_seed(batch_size)
        again = attack(name, eps=0.1, batch_size=batch_size)(
            defense, x[order], y[order], sample_ids=ids[order]
        )
        assert torch.equal(again.x_adv, whole.x_adv[order])
        assert torch.equal(again.robust_correct, whole.robust_correct[order])
        assert torch.equal(again.spent, whole.spent[order])
        assert again.stopped == whole.stopped


@pytest.mark.parametrize("name", ATTACKS)
def test_the_global_generator_is_neither_used_nor_moved(name):
    defense, x, y = mixture_defense(Pixels()), images(2), torch.tensor([0, 1])
    run = attack(name)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = run(defense, x, y)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(run(defense, x, y).x_adv, first.x_adv)


@pytest.mark.parametrize("name", sorted(set(LP) - {"fab", "rays"}))  # rays: after its first round only
def test_the_seed_matters_where_there_is_chance(name):
    defense, x, y = mixture_defense(Pixels()), images(2), Pixels()(images(2)).argmax(1)
    overrides = {"random_start": True} if name == "dw-pgd" else {}
    overrides |= {"norm": "L2"} if name == "adaptive" else {}  # in a cube all its starts end in one corner
    overrides["eps"] = 0.4 if name in FOREIGN else 0.1
    a, b = (attack(name, seed=seed, **overrides)(defense, x, y).x_adv for seed in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("name", ATTACKS)
def test_empty_batches(name):
    result = attack(name)(mixture_defense(Pixels()), torch.empty(0, *SHAPE), torch.empty(0).long())
    assert result.x_adv.shape == (0, *SHAPE)
    assert result.robust_accuracy.n == 0


def test_a_proposal_outside_is_brought_back_and_nonsense_is_refused(monkeypatch):
    x, y = images(3), torch.tensor([0, 1, 2])
    run = fp.attacks.PGD(eps=0.1, n_iter=1, eot_iter=1)
    far = Proposal(x + 5.0, torch.zeros(1, 3))
    monkeypatch.setattr(fp.attacks.PGD, "propose", lambda self, problem, report: far)
    assert float(run(Pixels(), x, y).distance.max()) <= 0.1
    broken = Proposal(torch.where(torch.arange(3).view(3, 1, 1, 1) == 1, torch.nan, x), torch.zeros(1, 3))
    monkeypatch.setattr(fp.attacks.PGD, "propose", lambda self, problem, report: broken)
    with pytest.raises(NonFiniteError, match="NaN or Inf for sample id 7"):
        run(Pixels(), x, y, sample_ids=[6, 7, 8])


def test_zero_gradients_are_reported():
    class Saturated(Pixels):
        def forward(self, u):
            return 1e6 * super().forward(u)

    x = images(4)
    y = Saturated()(x).argmax(1)
    with pytest.warns(RuntimeWarning, match="exactly zero for 4 of 4 images.*'margin'"):
        result = fp.attacks.PGD(eps=0.3, n_iter=2, random_start=False)(Saturated(), x, y)
    assert result.zero_gradients.tolist() == [True] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = fp.attacks.APGDDLR(eps=0.3, n_iter=10)(Saturated(), x, y)
    assert not found.zero_gradients.any()
    assert found.robust_accuracy.estimate < result.robust_accuracy.estimate


def test_too_few_classes_for_a_loss():
    x, y = images(2), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"`loss` must be a loss for 2 classes .dlr needs 3., got 'dlr'"):
        fp.attacks.APGDDLR(n_iter=2)(Pixels(2), x, y)
    with pytest.raises(ValueError, match=r"`loss` must be a loss for 3 classes .dlr-targeted needs 4."):
        fp.attacks.APGDT(n_iter=2)(Pixels(3), x, y)
    assert fp.attacks.APGDCE(n_iter=2, eps=0.5)(Pixels(2), x, y).x_adv.shape == x.shape


def test_settings_by_name():
    made = from_settings("apgd-t", norm="L2", eps=0.5, n_target_classes=3)
    assert made == fp.attacks.APGDT(norm="L2", eps=0.5, n_target_classes=3)
    with pytest.raises(ValueError, match="`attack` must be one of 'pgd', 'apgd-ce'"):
        from_settings("apgd")
    with pytest.raises(ValueError, match=r"`settings of pgd` must be among norm, eps, .*, got 'steps'"):
        from_settings("pgd", steps=3)
    with pytest.raises(ValueError, match="`attacks` must be a list of attacks with version='custom'"):
        from_settings("autoattack", attacks=("square",))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyautoattack.square", None)
    with pytest.raises(
        MissingExtra, match=r"Square needs the package pyautoattack: pip install 'fastpure\[att"
    ):
        fp.attacks.Square(n_queries=2)(Pixels(), images(1), torch.tensor([0]))


def test_a_deterministic_defense_is_asked_once_per_image_and_draw():
    calls = []

    class Counting(Pixels):
        def forward(self, u):
            calls.append(len(u))
            return super().forward(u)

    fp.attacks.PGD(n_iter=3, eot_iter=20, eval_draws=9)(Counting(), images(2), torch.tensor([0, 1]))
    assert calls == [1] * ASKED + [2, 2, 2, 2, 2], "the door, three iterations, two scores"
    assert scaling_defense(Pixels(), 0.0).fixed_draw is None
