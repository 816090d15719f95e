"""What every method in ``METHODS`` promises, and the errors of those that take networks."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.classifiers import CONFIGS, FeatureHead, ResNet
from fastpure.errors import NonFiniteError
from fastpure.nets import Denoiser
from tests.purify.test_exact_gradients import auxiliary
from tests.reverse.toys import SHAPE, ToyNet, toy_classifier, toy_denoiser

SMALL = {
    "diffpure": lambda: fp.methods.diffpure(t=0.1, dt=0.02),
    "diffpure_ode": lambda: fp.methods.diffpure_ode(t=0.1, dt=0.02),
    "coup": lambda: fp.methods.coup(toy_classifier(), t=0.1, dt=0.02),
    "coup_unguided": lambda: fp.methods.coup_unguided(t=0.1, dt=0.02),
    "ddpm": lambda: fp.methods.ddpm(t=0.1, n_steps=4),
    "ddim": lambda: fp.methods.ddim(t=0.1, n_steps=4, eta=0.5),
    "dpm_solver": lambda: fp.methods.dpm_solver(t=0.1, n_steps=4, stochastic=True),
    "gdmp": lambda: fp.methods.gdmp(t=0.004, rounds=2),
    "agdm": lambda: fp.methods.agdm(auxiliary(), t=0.004, scale=100.0, features="noised"),
    "adbm": lambda: fp.methods.adbm(rounds=2),
    "addt": lambda: fp.methods.addt("ddpm", 50),
    "vp_sde": lambda: fp.methods.vp_sde(strength=0.003),
    "edm": lambda: fp.methods.edm(n_steps=4),
    "gradual": lambda: fp.methods.gradual(fp.methods.SURROGATE),
    "one_shot": lambda: fp.methods.one_shot(),
    "langevin": lambda: fp.methods.langevin(n_steps=4),
    "likelihood_max": lambda: fp.methods.likelihood_max(n_iter=2, classifier=toy_classifier()),
    "adp": lambda: fp.methods.adp(n_iter=2),
}


def images(n):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def purifier(method, **settings):
    return fp.Purifier(toy_denoiser(), method, precision="fp64", **settings)


def test_every_method_is_tried_here():
    assert set(SMALL) == set(fp.methods.METHODS)
    assert set(SMALL) <= set(fp.methods.__all__)


@pytest.mark.parametrize("name", SMALL)
def test_an_image_does_not_feel_its_batch(name):
    ours = purifier(SMALL[name](), seed=5)
    u, ids = images(4).requires_grad_(True), torch.tensor([7, 0, 12, 3])
    whole = ours(u, sample_ids=ids)
    (grad,) = torch.autograd.grad(whole.square().sum(), u)
    order = torch.tensor([2, 3, 1])
    part = u[order].detach().requires_grad_(True)
    some = ours(part, sample_ids=ids[order])
    (grad_some,) = torch.autograd.grad(some.square().sum(), part)
    assert torch.allclose(some, whole[order], atol=1e-12)
    assert torch.allclose(grad_some, grad[order], atol=1e-10 * float(grad.abs().max()))


@pytest.mark.parametrize("name", SMALL)
def test_draws_are_repeatable_and_different(name):
    ours, u = purifier(SMALL[name]()), images(2)
    assert torch.equal(ours(u, draw=1), ours(u, draw=1))
    assert not torch.equal(ours(u, draw=1), ours(u, draw=2))


@pytest.mark.parametrize("name", SMALL)
def test_inference_mode_gives_the_same_and_spoils_nothing(name):
    u = images(2)
    expected = purifier(SMALL[name]())(u)
    ours = purifier(SMALL[name]())
    with torch.inference_mode():
        assert torch.equal(ours(u + 0.0), expected)
        assert torch.equal(ours.trajectory(u + 0.0)[0], ours.trajectory(u)[0])
    leaf = u.clone().requires_grad_(True)
    (grad,) = torch.autograd.grad(ours(leaf).square().sum(), leaf)
    assert bool(grad.isfinite().all())


@pytest.mark.parametrize("name", SMALL)
def test_printing_names_the_method_and_its_cost(name):
    method = SMALL[name]()
    text = str(method)
    assert text.startswith(f"{name}(")
    assert f"{method.table().n_network_calls} network calls" in text
    assert ("AGDM-style" in text) == (name == "agdm")
    assert hash(method) == hash(method)


@pytest.mark.parametrize(
    "name", ["gdmp", "adbm", "addt", "edm", "one_shot", "likelihood_max", "adp", "langevin"]
)
def test_clip_output_belongs_to_the_method(name):
    make = fp.methods.METHODS[name]
    small = {"t": 0.004} if name == "gdmp" else {"n_steps": 4} if name in ("edm", "langevin") else {}
    small = {"sampler": "ddpm", "n_steps": 50} if name == "addt" else small
    free, held = (purifier(make(**small, clip_output=clip))(images(4)) for clip in (False, True))
    assert torch.equal(held, free.clamp(0, 1))


@pytest.mark.parametrize(
    ("method", "calls"),
    [
        (lambda: fp.methods.adbm(), 5),
        (lambda: fp.methods.adbm(rounds=3), 15),
        (lambda: fp.methods.addt("ddpm"), 101),
        (lambda: fp.methods.addt("ddpm", 100), 11),
        (lambda: fp.methods.addt("ddim", 50), 6),
        (lambda: fp.methods.addt("vp"), 202),
        (lambda: fp.methods.addt("edm"), 99),
        (lambda: fp.methods.gradual(), 470),
        (lambda: fp.methods.gradual(fp.methods.SURROGATE), 7),
        (lambda: fp.methods.one_shot(), 1),
        (lambda: fp.methods.gdmp(), 144),
        (lambda: fp.methods.agdm(auxiliary()), 70),
        (lambda: fp.methods.agdm(auxiliary(), sampler="sde"), 70),
        (lambda: fp.methods.likelihood_max(), 5),
        (lambda: fp.methods.adp(), 20),
    ],
)
def test_network_calls(method, calls):
    assert method().table().n_network_calls == calls


def test_indices_as_published():
    def indices(method):
        return [row.index for row in method.table().rows if not row.forward]

    assert indices(fp.methods.adbm()) == [99, 79, 59, 39, 19]
    assert indices(fp.methods.addt("ddpm"))[:2] == [100, 99]
    assert indices(fp.methods.addt("ddim", 100)) == list(range(100, -1, -10))
    assert indices(fp.methods.gradual(fp.methods.SURROGATE)) == [29, 49, 124, 99, 74, 49, 24]
    assert indices(fp.methods.gradual(((200, 5),))) == [199, 159, 119, 79, 39]
    vp = fp.methods.addt("vp").table()
    assert vp.rows[1].t == 0.101
    assert vp.rows[-1].t == 0.001
    assert vp.rows[-1].d == 0.0, "the mean of the last step is returned"
    assert vp.rows[-3].d > 0.0


def test_adbm_schedules():
    released, training = (fp.methods.adbm(schedule=s).table() for s in ("released", "training"))
    assert released.rows[0].a == pytest.approx(0.9506279553, rel=1e-9)
    assert released.rows[0].d == pytest.approx(0.3103328707, rel=1e-9)
    assert [row.tau for row in released.rows[1:]] == [99.0, 79.0, 59.0, 39.0, 19.0]
    assert released.rows[1].b == pytest.approx(-0.0651572027, rel=2e-8)
    assert training.rows[0].a ** 2 == pytest.approx(0.896282, abs=5e-7)
    assert training.rows[0].a == pytest.approx(training.rows[1].alpha, rel=1e-12), "no mismatch here"
    assert [row.tau for row in training.rows[1:]] == pytest.approx([99.9, 79.92, 59.94, 39.96, 19.98])


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "edm"])
def test_coup_is_added_to_the_score(sampler):
    plain, guided = (
        fp.methods.addt(sampler, 10, classifier=network, scale=2.0) for network in (None, toy_classifier())
    )
    assert "with COUP's guidance" in str(guided)
    for before, after in zip(plain.table().rows, guided.table().rows, strict=True):
        assert (after.a, after.b, after.d) == (before.a, before.b, before.d)
        assert after.c == pytest.approx(-2.0 * before.sigma * before.b)
        assert after.u == pytest.approx(-2.0 * before.sigma * before.r)


def test_agdm_coefficients():
    network = auxiliary()
    ddpm = fp.methods.agdm(network, scale=3.0).table()
    assert ddpm.rows[0].a ** 2 == pytest.approx(fp.methods.ddpm(t=0.07).table().rows[0].a ** 2)
    assert [ddpm.rows[1].index, ddpm.rows[-1].index] == [69, 0]
    beta = 1e-4 + 69 * (2e-2 - 1e-4) / 999
    assert ddpm.rows[1].c == pytest.approx(3.0 * beta, rel=1e-12)
    sde = fp.methods.agdm(network, scale=3.0, sampler="sde").table()
    assert sde.rows[1].c == pytest.approx(3.0 * (0.1 + 19.9 * 0.07) * 1e-3, rel=1e-12)


def test_smoothing_takes_the_first_sufficient_step():
    for schedule, n in (("linear", 1000), ("cosine", 4000)):
        for sigma in (0.25, 0.5, 1.0):
            method = fp.methods.one_shot(sigma, schedule)
            forward, shot = method.table().rows
            assert forward.d / forward.a >= 2 * sigma
            assert forward.d / forward.a < 2 * sigma * (1 + 20 / n)
            assert (shot.alpha, shot.sigma) == pytest.approx((forward.a, forward.d))
            assert shot.a == pytest.approx(1 / forward.a)
            assert shot.clip
            assert method.schedule == schedule


def test_a_denoiser_of_another_schedule_is_refused():
    toy = ToyNet().eval()
    cosine = Denoiser.from_module(toy, time_input="index", image_shape=SHAPE, schedule="cosine")
    linear = Denoiser.from_module(toy, time_input="index", image_shape=SHAPE)
    with pytest.raises(ValueError, match=r"trained on the linear schedule for adbm.*cosine"):
        fp.Purifier(cosine, fp.methods.adbm())
    with pytest.raises(ValueError, match=r"trained on the cosine schedule for one_shot.*linear"):
        fp.Purifier(linear, fp.methods.one_shot(schedule="cosine"))
    fp.Purifier(cosine, fp.methods.one_shot(schedule="cosine"))(images(1).float())
    told_sigma = Denoiser.from_module(toy, "x0", "sigma", SHAPE)
    for method in (fp.methods.one_shot(schedule="cosine"), fp.methods.adbm()):
        fp.Purifier(told_sigma, method)(images(1).float())
    with pytest.raises(ValueError, match="`schedule` must be one of 'linear', 'cosine'"):
        Denoiser.from_module(toy, image_shape=SHAPE, schedule="quadratic")


class Small(nn.Module):
    def __init__(self, classes=4, size=128):
        super().__init__()
        self.body, self.fc = nn.Flatten(), nn.Linear(size, classes)

    def forward(self, x):
        return self.fc(self.body(x))


def aux(classes=4, size=128):
    return FeatureHead(Small(classes, size).double().eval(), "fc")


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda: fp.methods.agdm(Small().eval()),
            ValueError,
            r"`auxiliary` must be .*features_and_logits.*FeatureHead.*'fc'",
        ),
        (lambda: fp.methods.agdm(lambda x: x), TypeError, "`auxiliary` must be a torch.nn.Module"),
        (lambda: fp.methods.agdm(aux().train()), ValueError, "`auxiliary` must be in evaluation mode"),
        (lambda: fp.methods.agdm(aux(), eta=-1.0), ValueError, "`eta` must be a finite number >= 0"),
        (lambda: fp.methods.agdm(aux(), scale="1"), TypeError, "`scale` must be a number >= 0"),
        (lambda: fp.methods.agdm(aux(), label="true"), ValueError, "`label` must be one of 'input', 'step'"),
        (
            lambda: fp.methods.agdm(aux(), features="x0"),
            ValueError,
            "`features` must be one of 'clean', 'noised'",
        ),
        (lambda: fp.methods.agdm(aux(), sampler="ode"), ValueError, "`sampler` must be one of 'ddpm', 'sde'"),
        (
            lambda: purifier(fp.methods.agdm(aux(size=64))),
            ValueError,
            r"`auxiliary` must be .* images \[2, 8, 8\]",
        ),
        (
            lambda: fp.Defense(purifier(fp.methods.agdm(aux(classes=7))), toy_classifier()),
            ValueError,
            "`auxiliary` must be a network for the classifier's 4 classes, got 7",
        ),
        (lambda: FeatureHead(Small(), "head"), ValueError, "`head` must be one of 'body', 'fc'"),
        (lambda: FeatureHead("net", "fc"), TypeError, "`network` must be a torch.nn.Module"),
        (
            lambda: fp.methods.adbm(schedule="vp"),
            ValueError,
            "`schedule` must be one of 'released', 'training'",
        ),
        (
            lambda: fp.methods.addt("vp", classifier=toy_classifier()),
            ValueError,
            "`sampler` must be 'ddpm', 'ddim' or 'edm' with a classifier, got 'vp'",
        ),
        (lambda: fp.methods.adbm(n_steps=0), ValueError, "`n_steps`"),
        (
            lambda: fp.methods.addt("euler"),
            ValueError,
            "`sampler` must be one of 'ddpm', 'ddim', 'vp', 'edm'",
        ),
        (lambda: fp.methods.addt(strength=0.0), ValueError, "`strength`"),
        (lambda: fp.methods.edm(sigma_min=0.5), ValueError, "`sigma_min` must be below sigma_max"),
        (lambda: fp.methods.edm(sigma_max=1000.0), ValueError, "`sigma_max` must be at most 152"),
        (lambda: fp.methods.edm(churn=-1), ValueError, "`churn` must be a finite number >= 0"),
        (lambda: fp.methods.gradual(()), ValueError, "`stages` must be at least one stage"),
        (lambda: fp.methods.gradual(((30, 31),)), ValueError, r"`stages` must be an integer in \[1, 30\]"),
        (lambda: fp.methods.one_shot(sigma=1e4), ValueError, "`sigma` must be at most"),
        (lambda: fp.methods.one_shot(schedule="vp"), ValueError, "`schedule` must be one of"),
        (lambda: fp.methods.likelihood_max(sigma=(0.6, 0.4)), ValueError, r"`sigma` must be \(low, high\)"),
        (lambda: fp.methods.likelihood_max(n_iter=0), ValueError, "`n_iter` must be an integer >= 1"),
        (lambda: fp.methods.likelihood_max(sigma=0.5), ValueError, "`sigma` must be two noise levels"),
        (lambda: fp.methods.adp(bounds=(1.0, 0.1)), ValueError, "`bounds` must be"),
        (lambda: fp.methods.adp(noise=0.0), ValueError, "`noise` must be a finite number above 0"),
        (lambda: fp.methods.langevin(variance=0.0), ValueError, "`variance` must be a finite number above 0"),
    ],
)
def test_mistakes_name_the_argument(call, error, words):
    with pytest.raises(error, match=words):
        call()


def test_feature_head_gives_what_the_layer_gets():
    network = ResNet(CONFIGS["resnet-digits"]).eval()
    u = torch.rand(3, 1, 8, 8)
    features, logits = FeatureHead(network, "head").features_and_logits(u)
    own, own_logits = network.features_and_logits(u)
    assert torch.equal(features, own)
    assert torch.equal(logits, own_logits)
    assert torch.equal(logits, network(u))
    assert features.shape == (3, 32)
    assert not network.head._forward_pre_hooks, "nothing is left behind"


def test_a_resnet_guides_by_itself_and_gets_no_gradient():
    denoiser = Denoiser.from_module(_Grey().eval(), image_shape=(1, 8, 8))
    network = ResNet(CONFIGS["resnet-digits"]).eval()
    defense = fp.Defense(fp.Purifier(denoiser, fp.methods.agdm(network, t=0.005, scale=1e3)), network)
    u = torch.rand(2, 1, 8, 8).requires_grad_(True)
    defense(u, draw=0).sum().backward()
    assert float(u.grad.abs().max()) > 0
    assert all(weight.grad is None for weight in network.parameters())


class _Grey(nn.Module):
    def forward(self, x, label):
        return 0.3 * x


@pytest.mark.parametrize("name", ["vp_sde", "likelihood_max"])
def test_procedures_name_step_and_sample_of_what_is_not_finite(name):
    class Broken(ToyNet):
        def forward(self, x, label):
            bad = (x.flatten(1).amax(1) > 40)[:, None, None, None]
            return torch.where(bad, torch.inf, super().forward(x, label))

    method = SMALL[name]()
    broken = fp.Purifier(Denoiser.from_module(Broken().eval(), image_shape=SHAPE), method)
    n = len(method.table())
    noise = {
        "forward": torch.zeros(2, *SHAPE) if method.table().n_forward_rows else None,
        "steps": torch.zeros(n - method.table().n_forward_rows, 2, *SHAPE) + 0.1,
        "guidance": torch.zeros(n - method.table().n_forward_rows, 2, *SHAPE),
    }
    noise["steps"][1, 1, 0, 0, 0] = 1e5
    with pytest.raises(NonFiniteError, match=r"step \d+ for sample id 42"):
        broken(images(2).float(), sample_ids=[41, 42], noise=fp.RecordedNoise(**noise))


@pytest.mark.parametrize("name", ["vp_sde", "likelihood_max", "adp"])
def test_procedures_refuse_a_denoiser_without_gradient(name):
    class Detached(ToyNet):
        def forward(self, x, label):
            return super().forward(x.detach(), label).detach()

    cut = fp.Purifier(Denoiser.from_module(Detached().eval(), image_shape=SHAPE), SMALL[name]())
    with pytest.raises(ValueError, match="`denoiser` must be differentiable"):
        cut(images(1).float().requires_grad_())
    if name != "likelihood_max":  # which needs the gradient to purify at all
        assert cut(images(1).float()).shape == (1, *SHAPE)


@pytest.mark.parametrize("name", ["gdmp", "agdm", "adbm", "vp_sde", "likelihood_max", "adp", "langevin"])
def test_attacks_take_every_method(name):
    """PGD with EOT through the public API: inside its budget, and the loss goes up."""
    ours = fp.Purifier(toy_denoiser(torch.float32), SMALL[name](), seed=1)
    classifier = toy_classifier(torch.float32)
    defense = fp.Defense(ours, classifier)
    u = 0.25 + 0.5 * images(4).float()
    y = classifier(u).argmax(1)
    result = fp.attacks.PGD(norm="Linf", eps=0.1, n_iter=4, eot_iter=2)(defense, u, y)
    assert float((result.x_adv - u).abs().max()) <= 0.1 + 1e-6
    assert float(result.losses[-1].mean()) > float(result.losses[0].mean())


def test_every_method_is_documented_with_its_source():
    text = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row.split("|")[1])}
    assert named == set(fp.methods.METHODS)
    for make in fp.methods.METHODS.values():
        assert len(make.__doc__.split()) > 10
