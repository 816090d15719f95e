"""What the caller does with torch around a purifier reaches neither its images nor its gradients."""

from __future__ import annotations

import contextlib
import threading
import warnings

import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.data import Dataset
from fastpure.nets import Denoiser
from tests.attacks.toys import Pixels, images, mixture_defense
from tests.reverse.toys import SHAPE, toy_classifier

TINY = {"architecture": "ddpmpp", "image_size": 8, "channels": 2, "nf": 32, "ch_mult": [1, 2], "n_blocks": 1}


def defense(classifier=None):
    denoiser = Denoiser.from_config({**TINY, "attn_resolutions": [4]}, seed=3)
    classifier = classifier or toy_classifier(torch.float32)
    method = fp.methods.coup(classifier, t=0.1, dt=0.04, scale=3.0)
    return fp.Defense(fp.Purifier(denoiser, method), classifier)


def batch():
    return torch.rand(2, *SHAPE, generator=torch.Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def untouched():
    """Torch's own setters do not take back what its newer ones did."""
    from fastpure.purify.precision import _read, _restore

    before = _read()
    yield
    _restore(before)


def found(one):
    """Image, logits and gradient of the purification of one draw, for a cotangent that is exact in every precision."""
    leaf = batch().requires_grad_(True)
    image = one.purify(leaf, draw=3)
    (gradient,) = torch.autograd.grad(image, leaf, torch.full_like(leaf, 0.5))
    with torch.no_grad():
        return image.detach(), one(batch(), draw=3), gradient


ATTACK = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=2, eval_draws=2)


@contextlib.contextmanager
def restoring(read, write, value):
    before = read()
    write(value)
    try:
        yield
    finally:
        write(before)


def backend(path, value):
    holder, name = path.rsplit(".", 1)
    target = eval(holder)
    return restoring(lambda: getattr(target, name), lambda new: setattr(target, name, new), value)


def matmul(value):
    return restoring(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, value)


def settings():
    chosen = {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "matmul medium": lambda: matmul("medium"),
        "matmul high": lambda: matmul("high"),
        "deterministic": lambda: restoring(
            torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms, True
        ),
        "no oneDNN TF32, older": lambda: backend("torch.backends.cudnn.allow_tf32", False),
    }
    if hasattr(torch.backends, "fp32_precision"):
        chosen["all TF32, newer"] = lambda: backend("torch.backends.fp32_precision", "tf32")
        chosen["products bf16, newer"] = lambda: backend(
            "torch.backends.mkldnn.matmul.fp32_precision", "bf16"
        )
        chosen["convolutions bf16, newer"] = lambda: backend(
            "torch.backends.mkldnn.conv.fp32_precision", "bf16"
        )
    return chosen


@pytest.mark.parametrize("name", settings())
def test_settings_that_change_bits_stay_outside(name):
    one, expected = defense(), found(defense())
    y = torch.tensor([0, 1])
    attacked = [ATTACK(each, batch(), y).x_adv for each in (one, one.classifier)]
    with settings()[name](), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.equal(a, b) for a, b in zip(found(one), expected, strict=True))
        for each, x_adv in zip((one, one.classifier), attacked, strict=True):
            assert torch.equal(ATTACK(each, batch(), y).x_adv, x_adv), "nor do they reach an attack"
    assert all(torch.equal(a, b) for a, b in zip(found(one), expected, strict=True))


@pytest.mark.parametrize("name", settings())
def test_settings_of_the_caller_come_back(name):
    from fastpure.purify.precision import _read

    with settings()[name]():
        before, autocast = _read(), torch.is_autocast_enabled("cpu")
        found(defense())
        with contextlib.suppress(TypeError):
            defense()(batch(), draw="x")
        assert _read() == before
        assert torch.is_autocast_enabled("cpu") == autocast


def test_a_backward_pass_elsewhere_is_the_same():
    """Backward begins after the caller has changed his settings."""
    one, leaf = defense(), batch().requires_grad_(True)
    expected = found(one)[2]
    end = one.purify(leaf, draw=3)
    with torch.autocast("cpu", torch.bfloat16), matmul("medium"):
        end.backward(torch.full_like(leaf, 0.5))
    assert torch.equal(leaf.grad, expected)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attacks_and_evaluations_differentiate_whatever_is_recorded(mode):
    attack, y = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=2, eval_draws=2), torch.tensor([0, 1, 2])
    expected = attack(mixture_defense(Pixels()), images(3), y)
    data = Dataset(images(3), y, torch.arange(3), tuple("abcde"), "toy", "test")
    report = fp.evaluate(mixture_defense(Pixels()), data, attack, fp.protocols.fresh(2), progress=False)
    with mode():
        x, y = images(3), torch.tensor([0, 1, 2])
        result = attack(mixture_defense(Pixels()), x, y)
        data = Dataset(x, y, torch.arange(3), tuple("abcde"), "toy", "test")
        again = fp.evaluate(mixture_defense(Pixels()), data, attack, fp.protocols.fresh(2), progress=False)
    assert torch.equal(result.x_adv, expected.x_adv)
    assert (again.robust, again.clean) == (report.robust, report.clean)


def test_networks_made_under_inference_mode_can_be_differentiated():
    expected = found(defense())
    with torch.inference_mode():
        one = defense()
        loaded = fp.load_classifier("digits"), fp.load_denoiser("digits")
        one.purify(batch(), draw=1)
    assert all(torch.equal(a, b) for a, b in zip(found(one), expected, strict=True))
    assert not any(p.is_inference() for network in loaded for p in network.parameters())


@pytest.mark.slow
def test_a_compiled_defence_runs_and_equals_the_eager_one():
    one = defense()
    expected = found(one)[1]
    compiled = torch.compile(one, backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(compiled(batch(), draw=3), expected)
        leaf = batch().requires_grad_(True)
        (gradient,) = torch.autograd.grad(compiled(leaf, draw=3).sum(), leaf)
        around = torch.compile(nn.Sequential(one, nn.Softmax(1)), backend="eager")
        assert around(batch()).shape == (2, 4)
    (plain,) = torch.autograd.grad(one(leaf, draw=3).sum(), leaf)
    assert torch.equal(gradient, plain)


def test_threads_share_a_defence():
    classifier = toy_classifier(torch.float32)
    weights = dict(classifier.named_parameters())
    one = defense(classifier)
    expected = found(one)
    wrong, drawn = [], []

    def work():
        for _ in range(4):
            mine = found(one)
            wrong.extend(not torch.equal(a, b) for a, b in zip(mine, expected, strict=True))
            drawn.append(one._next_draw)
            one(batch())

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 48
    assert not any(wrong)
    assert one._next_draw == 16, "every call had a draw of its own"
    assert all(own is weights[name] for name, own in classifier.named_parameters()), "his Parameters are his"
    assert all(weight.requires_grad for weight in classifier.parameters())


@pytest.mark.parametrize("where", ["", "all_modules.3", "all_modules.3.Conv_0", "all_modules.3.GroupNorm_0"])
def test_hooks_on_a_built_in_network_fire(where):
    one = defense()
    expected, seen = one(batch(), draw=3), []
    module = one.purifier.denoiser.network.get_submodule(where)
    handle = module.register_forward_hook(lambda module, inputs, output: seen.append(tuple(output.shape)))
    torch.testing.assert_close(one(batch(), draw=3), expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == one.purifier.method.steps.n_network_calls
    handle.remove()
    assert torch.equal(one(batch(), draw=3), expected)
