"""Whatever the caller has chosen for float32 products, through whichever of torch's interfaces: inside a purifier's
environment they agree on the purifier's choice, and after it all are as he left them."""

from __future__ import annotations

import itertools

import pytest
import torch

from fastpure.purify.precision import Precision

CPU = torch.device("cpu")
BACKENDS = torch.backends

pytestmark = pytest.mark.skipif(
    not hasattr(BACKENDS.cuda.matmul, "fp32_precision"), reason="this torch has one interface"
)


def attribute(holder, name):
    return lambda value: setattr(holder, name, value)


CHOICES = (
    (torch.set_float32_matmul_precision, ("high", "medium")),
    (attribute(BACKENDS.cuda.matmul, "allow_tf32"), (True, False)),
    (attribute(BACKENDS.cudnn, "allow_tf32"), (True, False)),
    (attribute(BACKENDS, "fp32_precision"), ("tf32", "ieee")),
    (attribute(BACKENDS.cuda.matmul, "fp32_precision"), ("tf32", "ieee", "none")),
    (attribute(BACKENDS.cudnn.conv, "fp32_precision"), ("tf32", "ieee")),
    (attribute(BACKENDS.cudnn, "fp32_precision"), ("tf32", "ieee", "none")),
)
NEWER = [("generic", "all")]
NEWER += [(backend, name) for backend in ("cuda", "mkldnn") for name in ("all", "matmul", "conv", "rnn")]


def start():
    """One state to begin from; setters of one interface do not take back what those of the other did."""
    for key in NEWER:
        torch._C._set_fp32_precision_setter(*key, "none")
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True


@pytest.fixture(autouse=True)
def _left_as_found():
    yield
    start()


def choices():
    """Every combination: the choices made, in this order and in the other."""
    named = [[(write, value) for value in values] for write, values in CHOICES]
    for some in itertools.product(*([None, *each] for each in named)):
        made = [choice for choice in some if choice is not None]
        yield made
        yield made[::-1]


def attempt(read):
    try:
        return read()
    except RuntimeError:
        return "mixed"


def everything():
    """All that torch says about float32 products, cuBLAS and cuDNN asking as their dispatch does."""
    older = (
        torch.get_float32_matmul_precision,
        lambda: BACKENDS.cuda.matmul.allow_tf32,
        torch._C._get_cublas_allow_tf32,
        lambda: BACKENDS.cudnn.allow_tf32,
    )
    newer = [torch._C._get_fp32_precision_getter(*key) for key in NEWER]
    return [attempt(read) for read in older], newer


def afterwards():
    """What shows after further choices: what is set and what inherited, and what older settings say where hidden."""
    found = []
    for key, value in (
        (("generic", "all"), "tf32"),
        (("generic", "all"), "none"),
        (("cuda", "all"), "ieee"),
        (("cuda", "matmul"), "tf32"),
        (("mkldnn", "matmul"), "tf32"),
        (("cuda", "conv"), "tf32"),
        (("cuda", "rnn"), "tf32"),
    ):
        torch._C._set_fp32_precision_setter(*key, value)
        found.append(everything())
    return found


@pytest.mark.parametrize("tf32", [True, False])
def test_the_interfaces_agree_inside_and_are_put_back(tf32):
    expected = ["high" if tf32 else "highest", tf32, tf32, tf32]
    one, mixed = Precision(torch.float32, tf32=tf32), 0
    for made in choices():
        states = []
        for purified in (False, True):
            start()
            for write, value in made:
                write(value)
            before = everything()
            if purified:
                with one.environment(CPU):
                    older, newer = everything()
                assert older == expected, made
                wanted = {"cuda": "tf32" if tf32 else "ieee", "mkldnn": "ieee"}
                for (backend, name), value in zip(NEWER, newer, strict=True):
                    assert name == "all" or value == wanted[backend], made
                assert everything() == before, made
            states.append(afterwards())
        assert states[0] == states[1], made
        mixed += "mixed" in before[0]
    assert mixed > 1000, "most combinations contradict themselves"


def test_the_other_precision_in_between_is_put_back_too():
    BACKENDS.cuda.matmul.fp32_precision = "tf32"
    before = everything()
    with Precision(torch.float32, tf32=True).environment(CPU):
        with Precision(torch.float32).environment(CPU):
            assert BACKENDS.cuda.matmul.allow_tf32 is False
        assert BACKENDS.cuda.matmul.allow_tf32 is True
    assert everything() == before


def test_cudnn_sums_in_one_order_inside():
    assert not BACKENDS.cudnn.deterministic
    with Precision(torch.float32).environment(CPU):
        assert BACKENDS.cudnn.deterministic
    assert not BACKENDS.cudnn.deterministic
