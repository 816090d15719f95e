"""``DiffusionClassifier``: Bayes' rule where everything is known, exact gradients, and the one door."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.data import Dataset
from fastpure.kernels import Domain, NoiseKeys, Stream, philox_normal, philox_uniform
from fastpure.purify import door, look_through
from tests.golden import relative_error
from tests.purify.gaussians import SHAPE, Gaussians, denoiser, images


def differences(values: Tensor) -> Tensor:
    return values - values.mean(1, keepdim=True)


@pytest.mark.parametrize("sigma", [None, 0.1])
@pytest.mark.parametrize("spread", ["even", "random"])
def test_logits_are_log_densities_and_decisions_are_bayes(sigma, spread):
    """Of noisy images where they carry noise; the classes differ in mean and in variance."""
    exact, network = denoiser(), Gaussians()
    x = images(25)
    if sigma is not None:
        x = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    expected = differences(network.log_density(2 * x - 1, 0.0 if sigma is None else 2 * sigma))
    errors = {}
    for n_levels in (125, 2000):
        classifier = fp.DiffusionClassifier(
            exact, n_levels, (5e-3, 1e2), sigma=sigma, spread=spread, batch_size=8192
        )
        with torch.no_grad():
            logits = classifier(x, draw=0)
        errors[n_levels] = (logits - expected).square().mean().sqrt().item()
    clear = expected.sort(1).values.diff(dim=1)[:, -1] > 4 * errors[2000]
    assert clear.float().mean() > 0.5
    assert torch.equal(logits.argmax(1)[clear], expected.argmax(1)[clear])
    assert errors[2000] < 0.1 * expected.std().item()
    assert errors[2000] < 0.45 * errors[125], "the error falls like one over the root of the number of levels"


@pytest.mark.parametrize(
    ("weight", "spread"), [("likelihood", "even"), ("edm", "even"), ("likelihood", "random")]
)
def test_formula(weight, spread):
    """The sum, written once more: errors of the clean image at every level, noise by its key."""
    network, x, ids = Gaussians(), images(2), torch.tensor([7, 3])
    low, high, n = 0.1, 5.0, 4
    classifier = fp.DiffusionClassifier(
        denoiser(), n, (low, high), weight, spread, temperature=2.0, seed=5, batch_size=4
    )
    found = classifier(x, ids, 9, domain=Domain.ATTACK).detach()
    keys = NoiseKeys.make(5, ids, 9, Domain.ATTACK)
    total = torch.zeros(2, 3, dtype=torch.float64)
    for k in range(n):
        u = torch.full((2,), 0.5, dtype=torch.float64)
        if spread == "random":
            u = philox_uniform(keys, n + k, Stream.CLASSIFIER, (1, 1, 1), dtype=torch.float64).flatten()
        s = torch.exp(math.log(low) + (math.log(high) - math.log(low)) * (k + u) / n)
        noise = philox_normal(keys, k, Stream.CLASSIFIER, SHAPE, dtype=torch.float64)
        z = 2 * x - 1 + s.view(-1, 1, 1, 1) * noise
        for y in range(3):
            clean = z - s.view(-1, 1, 1, 1) * network(z, s, torch.tensor([y, y]))
            error = (clean - (2 * x - 1)).square().flatten(1).sum(1)
            if weight == "edm":
                pdf = torch.exp(-0.5 * ((s.log() + 1.2) / 1.2) ** 2) / (1.2 * math.sqrt(2 * math.pi))
                error = error * pdf * (s**2 + 0.25) / (0.5 * s) ** 2
            else:
                error = error / s**2
            total[:, y] -= math.log(high / low) / n * error.detach()
    assert relative_error(found, differences(total) / 2.0) < 1e-10


class Velocity(nn.Module):
    """What `Gaussians` knows as the velocity of the straight path, told 1000 times the time."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = Gaussians()

    def forward(self, x: Tensor, label: Tensor, classes: Tensor) -> Tensor:
        s = (label / 1000).to(x.dtype)[:, None, None, None]
        ratio = s / (1 - s)
        noise = self.inside(x / (1 - s), ratio.flatten(), classes)
        return noise - (x / (1 - s) - ratio * noise)


def conditional(prediction: str, time_input: str = "continuous", schedule: str = "linear"):
    return fp.Denoiser.from_module(
        Velocity().eval(), prediction, time_input, SHAPE, schedule=schedule, n_classes=3
    )


def test_a_flow_network_gives_the_logits_of_the_noise_that_it_knows():
    settings = {"n_levels": 6, "levels": (0.05, 5.0)}
    x, told = images(3), conditional("flow", schedule="flow")
    with torch.no_grad():
        expected = fp.DiffusionClassifier(denoiser(), **settings)(x, draw=0)
        found = fp.DiffusionClassifier(told, **settings)(x, draw=0)
    assert relative_error(found, expected) < 1e-9


def test_an_image_has_the_same_logits_in_any_batch_and_any_chunks():
    classifier, x = fp.DiffusionClassifier(denoiser(), 6), images(5)
    ids = torch.tensor([4, 0, 9, 2, 7])
    draws = torch.tensor([0, 1, 0, 5, 1])
    with torch.no_grad():
        together = classifier(x, ids, draws)
        for i in range(5):
            alone = classifier(x[i : i + 1], ids[i : i + 1], int(draws[i]))
            assert relative_error(alone, together[i : i + 1]) < 1e-12
        for batch_size in (1, 2, 3, 7, 10_000):
            parts = fp.DiffusionClassifier(denoiser(), 6, batch_size=batch_size)
            assert relative_error(parts(x, ids, draws), together) < 1e-12
        changed = [
            classifier(x, ids, draws + 1),
            classifier(x, ids + 1, draws),
            classifier(x, ids, draws, domain=Domain.EVALUATION),
            fp.DiffusionClassifier(denoiser(), 6, seed=1)(x, ids, draws),
        ]
    assert all(relative_error(other, together) > 1e-3 for other in changed)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 1000])
def test_no_call_is_larger_than_asked_for_and_none_is_made_twice(batch_size):
    sizes, x = [], images(3)
    classifier = fp.DiffusionClassifier(denoiser(), 4, batch_size=batch_size)
    classifier.denoiser.network.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    with torch.no_grad():
        classifier(x, draw=0)
    assert max(sizes) <= batch_size
    assert sum(sizes) == 3 * classifier.network_calls == 3 * 4 * 3


def test_plain_calls_count_draws_and_fixed_holds_one():
    classifier, x = fp.DiffusionClassifier(denoiser(), 4), images(2)
    with torch.no_grad():
        first, second = classifier(x), classifier(x)
        assert torch.equal(first, classifier(x, draw=0))
        assert torch.equal(second, classifier(x, draw=1))
        with classifier.fixed(draw=3):
            assert torch.equal(classifier(x), classifier(x))
            assert torch.equal(classifier(x), classifier(x, draw=3))
    with pytest.raises(ValueError, match="`part` must be one of 'all'"), classifier.fixed(part="forward"):
        pass


def by_differences(function, x: Tensor, h: float = 1e-5) -> Tensor:
    found = torch.empty_like(x)
    for i in range(x.numel()):
        step = torch.zeros(x.numel(), dtype=x.dtype)
        step[i] = h
        step = step.view_as(x)
        with torch.no_grad():
            found.view(-1)[i] = (function(x + step) - function(x - step)) / (2 * h)
    return found


@pytest.mark.parametrize("batch_size", [512, 2])
def test_gradient_with_and_without_recomputation(batch_size):
    classifier, x = fp.DiffusionClassifier(denoiser(), 5, batch_size=batch_size), images(3)
    v = torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(point: Tensor) -> Tensor:
        return (classifier(point, draw=1) * v).sum()

    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    assert relative_error(found, by_differences(loss, x)) < 1e-8


def defended(**settings) -> fp.Defense:
    """RDC: likelihood maximisation without classes, then the classes' likelihoods, all in float64."""
    method = fp.methods.likelihood_max(n_iter=2, lr=0.05)
    purifier = fp.Purifier(denoiser(), method, precision="fp64", **settings)
    return fp.Defense(purifier, fp.DiffusionClassifier(denoiser(null_class=False), 4, batch_size=7))


@pytest.mark.parametrize("memory", ["store", "recompute"])
def test_gradient_through_likelihood_maximisation_and_classifier(memory):
    defense, x = defended(memory=memory), 0.3 + 0.4 * images(2)
    v = torch.randn(2, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def loss(point: Tensor) -> Tensor:
        return (defense(point, [4, 8], 2) * v).sum()

    leaf = x.clone().requires_grad_(True)
    (found,) = torch.autograd.grad(loss(leaf), leaf)
    assert relative_error(found, by_differences(loss, x)) < 1e-6


def test_defence_passes_its_noise_on():
    defense, x = defended(), images(3)
    ids, classifier = torch.tensor([5, 1, 2]), defense.classifier
    with torch.no_grad():
        purified = defense.purify(x, ids, 4, domain=Domain.ATTACK)
        expected = classifier(purified, ids, 4, domain=Domain.ATTACK)
        assert torch.equal(defense(x, ids, 4, domain=Domain.ATTACK), expected)
        assert torch.equal(defense.classify(purified, ids, 4, domain=Domain.ATTACK), expected)
        assert not torch.equal(defense(x), defense(x))
        with defense.fixed(draw=2):
            assert torch.equal(defense(x), defense(x))
            assert torch.equal(defense(x), classifier(defense.purify(x, draw=2), draw=2))


def data(n: int = 4) -> Dataset:
    x = images(n, torch.float32)
    return Dataset(x, torch.arange(n) % 3, torch.arange(n), ("a", "b", "c"), "toy", "toy")


def small(null_class: bool = False) -> fp.Denoiser:
    return denoiser(dtype=torch.float32, null_class=null_class)


class Wrapper(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside = inside

    def forward(self, x: Tensor) -> Tensor:
        return self.inside(x) + 1.0


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_door_knows_it(wrapped):
    classifier = fp.DiffusionClassifier(small(), 4)
    module = Wrapper(classifier).eval() if wrapped else classifier
    x, ids = images(3, torch.float32), torch.tensor([6, 1, 3])
    target = door(module, x, ids, 3)
    assert (target.own_noise, target.is_random, target.n_classes, target.network_calls) == ("", True, 3, 12)
    draws = torch.tensor([2, 0, 1])
    with torch.no_grad():
        expected = classifier(x, ids, draws, domain=Domain.ATTACK) + float(wrapped)
        assert torch.equal(target.logits(x, ids, draws, Domain.ATTACK), expected)
        with target.fixed(3):
            assert not target.is_random
            held = classifier(x, ids, 3) + float(wrapped)
            assert torch.equal(target.logits(x, ids, draws, Domain.ATTACK), held)
    described = target.describe()["classifier"]
    assert described["network_calls"] == 12
    other = (
        Wrapper(fp.DiffusionClassifier(small(), 4, seed=1))
        if wrapped
        else fp.DiffusionClassifier(small(), 4, seed=1)
    )
    assert look_through(other.eval()).describe()["classifier"]["sha256"] != described["sha256"]


def test_the_door_counts_purifier_and_classifier():
    purifier = fp.Purifier(small(True), fp.methods.likelihood_max(n_iter=3))
    defense = fp.Defense(purifier, fp.DiffusionClassifier(small(), 4))
    target = door(defense, images(2, torch.float32), torch.arange(2), 3)
    assert (target.own_noise, target.is_random, target.network_calls, target.classifier_calls) == (
        "",
        True,
        18,
        12,
    )
    assert target.describe()["classifier"]["network_calls"] == 12
    around = door(Wrapper(defense).eval(), images(2, torch.float32), torch.arange(2), 3)
    assert (around.own_noise, around.network_calls) == ("", 18)
    plain = fp.Defense(purifier, nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval())
    described = door(plain, images(2, torch.float32), torch.arange(2), 3).describe()["classifier"]
    assert set(described) == {"class", "parameters", "sha256"}, "what run files of other classifiers hold"


@pytest.mark.parametrize("gradient", ["exact", "bpda", "blind"])
def test_attacks_average_over_the_classifiers_noise(gradient):
    purifier = fp.Purifier(small(True), fp.methods.likelihood_max(n_iter=1))
    defense = fp.Defense(purifier, fp.DiffusionClassifier(small(), 2))
    attack = fp.attacks.PGD(norm="Linf", eps=0.2, n_iter=2, eot_iter=3, gradient=gradient)
    x, y = images(2, torch.float32), torch.tensor([0, 1])
    found = [attack(defense, x, y, sample_ids=[3, 5]) for _ in range(2)]
    assert torch.equal(found[0].x_adv, found[1].x_adv), "its noise is numbered"
    assert (found[0].x_adv - x).abs().max() <= 0.2 + 1e-6
    assert not torch.equal(found[0].x_adv, x)


def test_evaluate_plan_and_resume(tmp_path):
    purifier = fp.Purifier(small(True), fp.methods.likelihood_max(n_iter=1))
    defense = fp.Defense(purifier, fp.DiffusionClassifier(small(), 2))
    settings = {
        "attack": fp.attacks.PGD(norm="Linf", eps=0.1, n_iter=2, eot_iter=2),
        "protocol": fp.protocols.fresh(draws=2),
    }
    cost = fp.plan(defense, data(), **settings)
    assert cost.calls == 2 + 2 * 3
    report = fp.evaluate(defense, data(), out=tmp_path / "run.sqlite", **settings)
    again = fp.evaluate(defense, data(), out=tmp_path / "again.sqlite", **settings)
    assert report.n_images == 4
    contents = [str(one).split("(content ")[1].split(")")[0] for one in (report, again)]
    assert contents[0] == contents[1], "its noise is numbered"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: fp.DiffusionClassifier(nn.Identity()), "`denoiser` must be a fastpure.Denoiser"),
        (lambda: fp.DiffusionClassifier(denoiser().for_class(0)), "one that is told classes"),
        (lambda: fp.DiffusionClassifier(denoiser(dtype=torch.float16)), "float32 or float64"),
        (lambda: fp.DiffusionClassifier(conditional("flow", schedule="flowpure")), "the flowpure one"),
        (lambda: fp.DiffusionClassifier(conditional("eps", "index", schedule="cosine")), "the cosine one"),
        (lambda: fp.DiffusionClassifier(conditional("consistency", "sigma")), "got a consistency function"),
        (lambda: fp.DiffusionClassifier(denoiser(), levels=(2.0, 1.0)), "low < high"),
        (lambda: fp.DiffusionClassifier(denoiser(), levels=1.0), "two noise levels"),
        (lambda: fp.DiffusionClassifier(denoiser(), 0), "`n_levels`"),
        (
            lambda: fp.DiffusionClassifier(conditional("eps", "index"), levels=(1.0, 1e5)),
            "the network's schedule ends",
        ),
        (lambda: fp.DiffusionClassifier(denoiser(), weight="vdm"), "`weight`"),
        (lambda: fp.DiffusionClassifier(denoiser(), sigma=0.0), "`sigma`"),
        (lambda: fp.DiffusionClassifier(denoiser())(images(1).float()), "float64"),
        (lambda: fp.DiffusionClassifier(denoiser())(images(1) + 1), r"in \[0, 1\]"),
        (lambda: fp.DiffusionClassifier(denoiser())(images(1)[:, :, 1:]), "`x` must be of shape"),
        (lambda: fp.DiffusionClassifier(denoiser())(images(2), [1]), "one id per image"),
    ],
)
def test_mistakes(make, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make()


def test_empty_batch():
    assert fp.DiffusionClassifier(denoiser(), 2)(images(0)).shape == (0, 3)
