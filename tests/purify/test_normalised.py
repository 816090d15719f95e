"""Normalisation stands inside, once: mean and std of a Defense, fp.Normalised, nn.Sequential, and what warns."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.classifiers.normalised import normalisations_in
from tests.attacks.toys import SHAPE, Pixels, images, mixture_defense

MEAN, STD = (0.4,), (0.25,)
X = images(3)


class Normalize(nn.Module):
    """As torchvision's: constants that are no tensors."""

    def __init__(self, mean=MEAN, std=STD) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, x):
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (self.mean, self.std))
        return (x - mean) / std


def network():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        size = SHAPE[0] * SHAPE[1] * SHAPE[2]
        return nn.Sequential(nn.Flatten(), nn.Linear(size, 3)).eval()


def purifier():
    return mixture_defense(Pixels()).purifier


@pytest.mark.parametrize(
    ("mean", "std"),
    [(MEAN, STD), (0.4, 0.25), (torch.tensor([0.4]), torch.tensor([0.25]).view(1, 1, 1, 1)), ([0.4], [0.25])],
    ids=["tuple", "number", "tensor", "list"],
)
def test_the_classifier_sees_normalised_images(mean, std):
    defense = fp.Defense(purifier(), network(), mean=mean, std=std)
    purified = defense.purify(X, draw=0)
    expected = network()((purified - 0.4) / 0.25)
    torch.testing.assert_close(defense(X, draw=0), expected, rtol=1e-6, atol=1e-6)


def test_all_ways_to_normalise_answer_the_same_and_gradients_pass():
    ways = [
        fp.Defense(purifier(), network(), mean=MEAN, std=STD),
        fp.Defense(purifier(), fp.Normalised(network(), MEAN, STD)),
        fp.Defense(purifier(), nn.Sequential(Normalize(), network()).eval()),
        fp.Defense(purifier(), fp.load_classifier(network(), normalise=(MEAN, STD))),
    ]
    answers = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for defense in ways:
            x = X.clone().requires_grad_()
            logits = defense(x, draw=0)
            (gradient,) = torch.autograd.grad(logits[:, 0].sum(), x)
            answers.append(torch.cat([logits.detach().flatten(), gradient.flatten()]))
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], rtol=1e-5, atol=1e-6)


def test_normalisation_is_part_of_a_runs_identity():
    from fastpure.evaluate.identity import describe_defense

    one, same, other = (
        describe_defense(fp.Defense(purifier(), network(), mean=m, std=STD)) for m in (MEAN, MEAN, (0.5,))
    )
    assert one == same != other
    assert one["classifier"] != describe_defense(fp.Defense(purifier(), network()))["classifier"]


def test_another_purifier_keeps_the_normalisation_once():
    defense = fp.Defense(purifier(), network(), mean=MEAN, std=STD)
    other = defense.with_purifier(purifier())
    assert other(X, draw=0).equal(defense(X, draw=0))


class Wrapped(nn.Module):
    """As RobustBench's wrappers."""

    def __init__(self, normalize, model) -> None:
        super().__init__()
        self.normalize, self.model = normalize, model

    def forward(self, x):
        return self.model(self.normalize(x))


class Ensemble(nn.Module):
    def __init__(self, *parts) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x):
        return sum(part(x) for part in self.parts)


TWICE = {
    "sequential": lambda: fp.Defense(
        purifier(), nn.Sequential(Normalize(), network()).eval(), mean=MEAN, std=STD
    ),
    "robustbench": lambda: fp.Defense(purifier(), Wrapped(Normalize(), network()).eval(), mean=MEAN, std=STD),
    "two layers": lambda: fp.Defense(purifier(), nn.Sequential(Normalize(), Normalize(), network()).eval()),
    "own network": lambda: fp.Normalised(fp.load_classifier("digits"), MEAN, STD),
    "sequence with own": lambda: fp.purify.look_through(
        nn.Sequential(Normalize(), fp.load_classifier("digits")).eval()
    ),
    "load_classifier": lambda: fp.load_classifier(fp.Normalised(network(), MEAN, STD), normalise=(MEAN, STD)),
}


@pytest.mark.parametrize("made", TWICE.values(), ids=TWICE.keys())
def test_twice_is_said(made):
    with pytest.warns(UserWarning, match="normalise images 2 times.*leave out all but one"):
        made()


ONCE = {
    "none": (network, 0),
    "own": (lambda: fp.load_classifier("digits"), 1),
    "ensemble": (lambda: Ensemble(*(nn.Sequential(Normalize(), network()) for _ in range(3))), 1),
    "identity": (lambda: fp.Normalised(fp.load_classifier("digits"), 0.0, 1.0), 1),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(1), network()), 0),
}


@pytest.mark.parametrize(("made", "count"), ONCE.values(), ids=ONCE.keys())
def test_once_is_not(made, count):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(normalisations_in(made())) == count


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"mean": MEAN}, ValueError, "both or neither"),
        ({"mean": MEAN, "std": (0.0,)}, ValueError, "std"),
        ({"mean": (0.1, 0.2), "std": STD}, ValueError, "one number per channel each"),
        ({"mean": "imagenet", "std": STD}, TypeError, "`mean` must be a number per channel"),
        ({"mean": (float("nan"),), "std": STD}, ValueError, "finite"),
    ],
)
def test_mistakes(options, kind, words):
    with pytest.raises(kind, match=words):
        fp.Defense(purifier(), network(), **options)


def test_a_guide_that_would_see_images_as_they_are_is_refused():
    from tests.evaluate.toys import Brightness

    denoiser = purifier().denoiser
    guide = Brightness().eval()
    guided = fp.Purifier(denoiser, fp.methods.coup(guide, t=0.02, dt=0.01))
    with pytest.raises(ValueError, match=r"fp\.Normalised"):
        fp.Defense(guided, guide, mean=MEAN, std=STD)
    both = fp.Normalised(guide, MEAN, STD)
    fp.Defense(fp.Purifier(denoiser, fp.methods.coup(both, t=0.02, dt=0.01)), both)
