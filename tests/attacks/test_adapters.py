"""Attacks under the calling conventions of other libraries; beside the packages in test_peer_libraries.py."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fastpure.attacks import APGDCE, PGD, as_art, as_autoattack, as_foolbox, as_torchattack
from tests.attacks.toys import Pixels, images, mixture_defense

X = images(7)
Y = Pixels()(X).argmax(1)
ATTACK = PGD(eps=0.1, n_iter=3, eot_iter=2, eval_draws=2)


@pytest.mark.parametrize("model", [Pixels(), mixture_defense(Pixels())], ids=["module", "defense"])
def test_the_images_are_those_of_the_attack(model):
    expected = ATTACK(model, X, Y).x_adv
    assert torch.equal(as_torchattack(ATTACK, model)(X, Y), expected)
    ids = torch.arange(7) + 50
    assert torch.equal(
        as_torchattack(ATTACK, model)(X, Y, sample_ids=ids), ATTACK(model, X, Y, sample_ids=ids).x_adv
    )
    for bs in (3, 250):
        assert torch.equal(as_autoattack(ATTACK, model).run_standard_evaluation(X, Y, bs=bs), expected)
    assert torch.equal(as_autoattack(ATTACK, model).run_standard_evaluation(X, Y, batch_size=2), expected)
    one_hot = np.eye(5)[Y.numpy()]
    for labels in (Y.numpy(), one_hot, one_hot.astype(np.float32)):
        found = as_art(ATTACK, model).generate(x=X.numpy(), y=labels)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.float32
        assert np.array_equal(found, expected.numpy())


def test_a_start_in_order_serves_batches():
    first = ATTACK(Pixels(), X, Y).x_adv
    run = APGDCE(eps=0.1, n_iter=2, start=first)
    assert torch.equal(
        as_autoattack(run, Pixels()).run_standard_evaluation(X, Y, bs=2), run(Pixels(), X, Y).x_adv
    )


def test_what_they_say(capsys):
    x_adv, labels = as_autoattack(ATTACK, Pixels()).run_standard_evaluation(X, Y, bs=4, return_labels=True)
    assert torch.equal(labels, Pixels()(x_adv).argmax(1))
    assert "robust" in capsys.readouterr().out
    guessed = as_art(ATTACK, Pixels()).generate(X.numpy())
    assert np.array_equal(guessed, ATTACK(Pixels(), X, Y).x_adv.numpy()), "labels are the model's predictions"
    assert as_art(ATTACK, Pixels()).generate(X[:0].numpy()).shape == (0, 1, 5, 5)
    assert as_autoattack(ATTACK, Pixels()).run_standard_evaluation(X[:0], Y[:0]).shape == (0, 1, 5, 5)


def test_mistakes_are_named():
    for make in (as_torchattack, as_autoattack, as_art, as_foolbox):
        with pytest.raises(TypeError, match="`attack` must be an attack of fastpure, got str"):
            make("pgd", Pixels())
        with pytest.raises(TypeError, match="`model` must be a torch module, got PGD"):
            make(ATTACK, ATTACK)
    with pytest.raises(ValueError, match="called with x and y, got mask"):
        as_art(ATTACK, Pixels()).generate(X.numpy(), Y.numpy(), mask=np.ones(3))
    with pytest.raises(ValueError, match=r"`x` must be in \[0, 1\]"):
        as_torchattack(ATTACK, Pixels())(255 * X, Y)
    with pytest.raises(ValueError, match="`bs` must be an integer >= 1"):
        as_autoattack(ATTACK, Pixels()).run_standard_evaluation(X, Y, bs=0)


def test_foolbox_call_judges_by_fresh_draws():
    model = mixture_defense(Pixels())
    call = as_foolbox(ATTACK, model)
    expected = ATTACK(model, X, Y)
    raw, clipped, success = call(None, X, Y)
    assert torch.equal(raw, expected.x_adv)
    assert torch.equal(clipped, expected.x_adv)
    assert torch.equal(success, expected.robust_correct.double().mean(1) <= 0.5)
    images, _, wins = call(None, X, Y, epsilons=[0.001, 0.1])
    assert wins.shape == (2, 7)
    small = replace(ATTACK, eps=0.001)(model, X, Y)
    assert torch.equal(wins[0], small.robust_correct.double().mean(1) <= 0.5)
    assert torch.equal(images[1], expected.x_adv)
    assert float((images[0] - X).abs().max()) <= 0.001 + 1e-6


def test_foolbox_mistakes_are_named():
    class Scaled:
        bounds = (0, 255)

    call = as_foolbox(ATTACK, Pixels())
    with pytest.raises(ValueError, match=r"`model` must be one with bounds \(0, 1\)"):
        call(Scaled(), X, Y)
    with pytest.raises(TypeError, match="`criterion` must be true classes"):
        call(None, X, object())
    with pytest.raises(ValueError, match="got early_stop"):
        call(None, X, Y, early_stop=0.1)


@pytest.mark.parametrize("kind", [np.array, torch.tensor])
def test_foolbox_radii_may_be_a_vector(kind):
    call = as_foolbox(ATTACK, Pixels())
    wanted = call(None, X, Y, epsilons=[0.0625, 0.125])
    found = call(None, X, Y, epsilons=kind([0.0625, 0.125]))
    assert torch.equal(found[2], wanted[2])
    assert all(map(torch.equal, found[0], wanted[0]))
    one = call(None, X, Y, epsilons=kind(0.125))
    assert torch.equal(one[0], wanted[0][1])
    with pytest.raises(ValueError, match="`epsilons` must be a number or a vector"):
        call(None, X, Y, epsilons=kind([[0.1]]))
