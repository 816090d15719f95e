"""A ``Defense`` goes unmodified into pyautoattack, torchattacks, foolbox and ART.

Run by ``.ci/peer_libraries`` in an environment that has all four; elsewhere what is missing is skipped.
"""

from __future__ import annotations

import importlib
import os
import types

import numpy as np
import pytest
import torch

import fastpure as fp
from tests.attacks.toys import Pixels, images, mixture_defense

EPS = 0.2


def peer(name: str) -> types.ModuleType:
    """The package; where all are said to be installed, a missing one is a failure."""
    if os.environ.get("FASTPURE_PEERS") == "1":
        return importlib.import_module(name)
    return pytest.importorskip(name)


@pytest.fixture
def problem():
    defense, x = mixture_defense(Pixels(), fp.methods.diffpure(t=0.05, dt=0.025)), images(6)
    # A classifier whose weights want gradients, as users have them: nothing may be left in .grad.
    weight = defense.classifier.weight
    del defense.classifier.weight
    defense.classifier.weight = torch.nn.Parameter(weight)
    return defense, x, defense.predict(x, draw=10**6)


def check(problem, x_adv: torch.Tensor, slack: float = 1e-6) -> None:
    """Inside the budget, moved, more often wrong than before, and the defence as it was."""
    defense, x, y = problem
    x_adv = x_adv.detach()
    assert x_adv.shape == x.shape
    assert float((x_adv - x).abs().max()) <= EPS + slack
    assert float((x_adv - x).abs().max()) > EPS / 2
    assert 0 <= float(x_adv.min()) <= float(x_adv.max()) <= 1
    ids, draws = torch.arange(len(x)), range(2 * 10**6, 2 * 10**6 + 20)

    def accuracy(u):
        return sum(float((defense.predict(u, ids, draw) == y).float().mean()) for draw in draws) / len(draws)

    assert accuracy(x_adv) < accuracy(x) - 0.2
    assert not any(module.training for module in defense.modules())
    assert all(weight.grad is None for weight in defense.parameters())
    first = defense(x)
    assert not torch.equal(first, defense(x)), "draws still advance"


def test_pyautoattack(problem):
    package = peer("pyautoattack")
    defense, x, y = problem
    attack = package.AutoAttack(defense, norm="Linf", eps=EPS, version="rand", device="cpu", seed=0)
    attack.apgd.n_iter, attack.apgd.eot_iter = 10, 4
    x_adv = attack.run_standard_evaluation(x, y, batch_size=4)
    check(problem, x_adv[0] if isinstance(x_adv, tuple) else x_adv)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("PGD", {"eps": EPS, "alpha": EPS / 4, "steps": 8}),
        ("EOTPGD", {"eps": EPS, "alpha": EPS / 4, "steps": 8, "eot_iter": 3}),
        ("APGD", {"eps": EPS, "steps": 10, "eot_iter": 2}),
    ],
)
def test_torchattacks(problem, name, settings):
    package = peer("torchattacks")
    defense, x, y = problem
    x_adv = getattr(package, name)(defense, **settings)(x, y).detach()
    if name == "APGD":  # it returns the image itself where its own single draw was right throughout
        moved = (x_adv != x).flatten(1).any(1)
        assert int(moved.sum()) > 0
        check((defense, x[moved], y[moved]), x_adv[moved])
    else:
        check(problem, x_adv)


def test_foolbox(problem):
    package = peer("foolbox")
    defense, x, y = problem
    model = package.PyTorchModel(defense, bounds=(0, 1), device="cpu")
    attack = package.attacks.LinfPGD(rel_stepsize=0.25, steps=8)
    _, x_adv, success = attack(model, x, y, epsilons=EPS)
    assert success.shape == y.shape
    check(problem, x_adv)


def arts_pgd(defense, x):
    """ART's own attack on the defence, as its users make one."""
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    model = PyTorchClassifier(
        defense,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=5,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )
    return ProjectedGradientDescent(model, eps=EPS, eps_step=EPS / 4, max_iter=8, verbose=False)


def test_art(problem):
    peer("art")
    defense, x, y = problem
    attack = arts_pgd(defense, x)
    found = attack.generate(x.numpy(), torch.nn.functional.one_hot(y, 5).numpy())
    check(problem, torch.from_numpy(found))


def ours() -> fp.attacks.Attack:
    return fp.attacks.APGDCE(eps=EPS, n_iter=8, eot_iter=2, eval_draws=2)


def test_torchattacks_users_call_ours_alike(problem):
    package = peer("torchattacks")
    defense, x, y = problem
    theirs = package.EOTPGD(defense, eps=EPS, alpha=EPS / 4, steps=8, eot_iter=2)
    for attack in (theirs, fp.attacks.as_torchattack(ours(), defense)):
        x_adv = attack(x, y)
        assert (x_adv.shape, x_adv.dtype, x_adv.device) == (x.shape, x.dtype, x.device)
        assert not x_adv.requires_grad
        check(problem, x_adv)


def test_pyautoattack_users_call_ours_alike(problem):
    package = peer("pyautoattack")
    defense, x, y = problem
    theirs = package.AutoAttack(defense, norm="Linf", eps=EPS, version="rand", device="cpu", seed=0)
    theirs.apgd.n_iter, theirs.apgd.eot_iter = 10, 4
    for attack in (theirs, fp.attacks.as_autoattack(ours(), defense)):
        found = attack.run_standard_evaluation(x, y, batch_size=4)
        check(problem, found[0] if isinstance(found, tuple) else found)


def test_art_users_call_ours_alike(problem):
    peer("art")
    defense, x, y = problem
    theirs = arts_pgd(defense, x)
    one_hot = torch.nn.functional.one_hot(y, 5).numpy()
    for attack in (theirs, fp.attacks.as_art(ours(), defense)):
        for labels in (one_hot, y.numpy(), None):
            found = attack.generate(x=x.numpy(), y=labels)
            assert (found.shape, found.dtype) == (tuple(x.shape), x.numpy().dtype)
        check(problem, torch.from_numpy(attack.generate(x.numpy(), one_hot)))


def test_foolbox_users_call_ours_alike(problem):
    package = peer("foolbox")
    defense, x, y = problem
    model = package.PyTorchModel(defense, bounds=(0, 1), device="cpu")
    theirs = package.attacks.LinfPGD(rel_stepsize=0.25, steps=8)
    for criterion in (y, package.criteria.Misclassification(y)):
        for attack in (theirs, fp.attacks.as_foolbox(ours(), defense)):
            raw, clipped, success = attack(model, x, criterion, epsilons=[EPS])
            assert (len(raw), len(clipped)) == (1, 1)
            assert (success.shape, success.dtype) == ((1, len(y)), torch.bool)
            check(problem, clipped[0])
    targets = package.criteria.TargetedMisclassification((y + 1) % 5)
    with pytest.raises(TypeError, match="criterion"):
        fp.attacks.as_foolbox(ours(), defense)(model, x, targets)


def arts_classifier(defense, x, purifier):
    from art.estimators.classification import PyTorchClassifier

    return PyTorchClassifier(
        defense.classifier,
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=5,
        clip_values=(0.0, 1.0),
        device_type="cpu",
        preprocessing_defences=purifier,
    )


def test_a_purifier_is_arts_preprocessor(problem):
    peer("art")
    from art.attacks.evasion import ProjectedGradientDescent
    from art.defences.preprocessor.preprocessor import PreprocessorPyTorch

    from fastpure.purify import as_art_preprocessor

    defense, x, y = problem
    held = as_art_preprocessor(defense.purifier, draw=3)
    assert isinstance(held, PreprocessorPyTorch)
    model = arts_classifier(defense, x, held)
    zeros = torch.zeros(len(x), dtype=torch.int64)
    expected = defense(x, zeros, 3)
    assert torch.allclose(torch.from_numpy(model.predict(x.numpy())), expected, atol=1e-6)
    alone = [model.predict(one[None].numpy())[0] for one in x]
    assert torch.allclose(torch.tensor(np.stack(alone)), expected, atol=1e-5)
    # Through the purification of this very draw, not around it.
    leaf = x.clone().requires_grad_()
    torch.nn.functional.cross_entropy(defense(leaf, zeros, 3), y).backward()
    gradient = torch.from_numpy(model.loss_gradient(x.numpy(), torch.nn.functional.one_hot(y, 5).numpy()))
    assert torch.allclose(gradient / gradient.abs().max(), leaf.grad / leaf.grad.abs().max(), atol=1e-5)

    fresh = arts_classifier(defense, x, as_art_preprocessor(defense.purifier))
    assert (fresh.predict(x.numpy()) != fresh.predict(x.numpy())).any(), "draws advance"
    attack = ProjectedGradientDescent(fresh, eps=EPS, eps_step=EPS / 4, max_iter=8, verbose=False)
    found = torch.from_numpy(attack.generate(x.numpy(), torch.nn.functional.one_hot(y, 5).numpy()))
    assert all(weight.grad is None for weight in defense.purifier.parameters())
    defense.classifier.weight.grad = None  # here it is ART's network, which it differentiates as always
    check(problem, found)


def test_standard_autoattack_takes_the_model_for_robustbench(problem):
    """What ``robustbench.benchmark`` does with a model, whose weights and data it would download."""
    package = peer("pyautoattack")
    from fastpure.purify import as_robustbench

    defense, x, y = problem
    model = as_robustbench(defense).to("cpu")
    attack = package.AutoAttack(
        model, norm="Linf", eps=EPS, version="custom", attacks=["apgd-ce"], device="cpu"
    )
    attack.apgd.n_iter = 10
    x_adv = attack.run_standard_evaluation(x, y, batch_size=4)
    x_adv = x_adv[0] if isinstance(x_adv, tuple) else x_adv
    right = model(x).argmax(1) == y
    broken = model(x_adv).argmax(1) != y
    assert broken.sum() > (~right).sum()
    order = torch.randperm(len(x))
    assert torch.equal(model(x_adv[order]).argmax(1), model(x_adv).argmax(1)[order]), (
        "in any order of a batch"
    )
