"""Narrow networks as programs of the extension: against float64, when they run, and what they must not depend on."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import weakref
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fastpure import Denoiser
from fastpure.kernels import network as programs
from fastpure.kernels import use_backend
from fastpure.nets import CONFIGS, DDPMppConfig, narrow, runs_in_one_call
from fastpure.nets.ddpmpp import layout
from fastpure.reverse.memory import watch_saved
from tests.golden import relative_error
from tests.kernels.helpers import EXTENSION, needs_ext
from tests.nets.helpers import normal, output_and_vjp, plain_autograd, random_network

pytestmark = needs_ext

SHAPES = {
    "digits": {"channels": 1, "nf": 16, "attn_resolutions": (4,)},
    "two attentions": {"image_size": 16, "nf": 32, "attn_resolutions": (8,), "n_blocks": 2},
    "three levels": {"image_size": 16, "channels": 3, "nf": 32, "ch_mult": (1, 2, 1), "attn_resolutions": ()},
    "one level of ddpm blocks": {"block": "ddpm", "nf": 16, "ch_mult": (1,)},
}
DTYPES = [
    torch.float32,
    pytest.param(
        torch.bfloat16,
        marks=pytest.mark.skipif(not programs.runs(torch.bfloat16, 32), reason="no products of bfloat16"),
    ),
]
LABELS = torch.tensor([30.0, 400.0, 999.0])


def made(name: str, dtype: torch.dtype = torch.float32, **fields):
    return random_network(dtype=dtype, **{**SHAPES[name], **fields})


def image(network, batch: int = 3, seed: int = 0) -> torch.Tensor:
    config = network.config
    x = normal(batch, config.channels, config.image_size, config.image_size, seed=seed)
    return x.to(next(network.parameters()).dtype)


def spied():
    """Counts programs that run."""
    return mock.patch.object(programs.Program, "forward", autospec=True, side_effect=programs.Program.forward)


def runs(network, x: torch.Tensor, labels: torch.Tensor = LABELS) -> bool:
    """Whether a program does."""
    with spied() as program:
        network(x, labels)
    return program.called


# ------------------------------------------------------------------------------------------------ results
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SHAPES)
def test_output_and_gradient_are_those_of_float64(name, dtype, monkeypatch):
    # Beside AMX wider networks of bfloat16 are left to oneDNN; what a program computes is the same there.
    monkeypatch.setattr(programs, "_has_amx", lambda: False)
    network = made(name, dtype)
    exact_network = made(name).to(dtype).double()
    x, v = image(network), image(network, seed=1)
    tolerance = 2e-5 if dtype == torch.float32 else 0.06
    for labels in (LABELS, LABELS[:1]):
        assert runs(network, x, labels)
        # Rows are rounded to the network's dtype on either way.
        rows = network.embedding(labels).double()
        with mock.patch.object(exact_network, "embedding", return_value=rows):
            exact = output_and_vjp(exact_network, x.double(), labels, v.double())
        found = output_and_vjp(network, x, labels, v)
        assert found[0].is_contiguous(memory_format=torch.channels_last)
        for one, other in zip(found, exact, strict=True):
            assert one.dtype == dtype
            assert relative_error(one.double(), other) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_nothing_else(dtype):
    network = made("two attentions", dtype)
    x, v = image(network, 5), image(network, 5, seed=1)
    labels = torch.arange(5.0) * 100
    rows = network.embedding(labels)

    def both(chosen: slice, leaf_grad: bool = True):
        leaf = x[chosen].clone().requires_grad_(leaf_grad)
        y = network.body(leaf, rows[chosen])
        return y.detach(), torch.autograd.grad(y, leaf, v[chosen])[0] if leaf_grad else None

    whole = both(slice(None))
    for chosen in (slice(0, 1), slice(1, 4), slice(4, 5)):
        for one, other in zip(both(chosen), whole, strict=True):
            assert torch.equal(one, other[chosen])
    assert torch.equal(both(slice(None), False)[0], whole[0])
    with torch.no_grad():
        assert torch.equal(network.body(x, rows), whole[0])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3, 8):
            torch.set_num_threads(threads)
            assert all(torch.equal(a, b) for a, b in zip(both(slice(None)), whole, strict=True))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["digits", "one level of ddpm blocks"])
def test_second_derivatives_are_those_of_the_plain_network(name):
    network = made(name)
    x, v, w = (image(network, seed=seed) for seed in range(3))

    def hessian_product() -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(network(leaf, LABELS), leaf, v, create_graph=True)
        return torch.autograd.grad(gradient, leaf, w)[0]

    with plain_autograd():
        exact = hessian_product()
    with spied() as program:
        found = hessian_product()
    assert program.called
    assert relative_error(found, exact) < 1e-5


@pytest.mark.parametrize("batch", [0, 1])
def test_batches_of_none_and_one(batch):
    network = made("digits")
    x = image(network, batch).requires_grad_()
    for rows in (network.embedding(LABELS[:batch]), network.embedding(LABELS[:1])):
        y = network.body(x, rows)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert y.shape == gradient.shape == x.shape


def test_cotangents_may_lie_anyhow():
    network = made("digits", channels=3)
    x, rows = image(network).requires_grad_(), network.embedding(LABELS)
    y = network.body(x, rows)
    dense = image(network, seed=1)
    strided = dense.repeat_interleave(2, 3)[..., ::2]
    once = torch.tensor(2.0).expand(y.shape)
    for v, plain in (
        (strided, dense),
        (dense.contiguous(), dense),
        (once, once.clone()),
        (dense.mT, dense.mT.clone()),
    ):
        gradients = [torch.autograd.grad(y, x, each, retain_graph=True)[0] for each in (v, plain)]
        assert torch.equal(*gradients)


@pytest.mark.parametrize("config", [{"channels": 1}, {"channels": 1, "image_size": 4, "ch_mult": (1,)}])
def test_images_of_one_channel_lie_in_both_orders_at_once(config):
    network = made("digits", **config)
    x = image(network)
    rows = network.embedding(LABELS)
    wanted = network.body(x, rows)
    assert torch.equal(network.body(x.contiguous(memory_format=torch.channels_last), rows), wanted)
    # One channel of several: dense in neither order.
    assert torch.equal(network.body(torch.cat([x, x + 1], 1)[:, :1], rows), wanted)
    assert torch.equal(
        network.body(x[:1].expand(3, -1, -1, -1), rows[:1]), network.body(x[:1].repeat(3, 1, 1, 1), rows[:1])
    )


def test_default_dtype_and_device_are_no_concern():
    network = made("digits")
    x, rows = image(network).requires_grad_(), network.embedding(LABELS)
    v = image(network, seed=1)
    wanted = torch.autograd.grad(network.body(x, rows), x, v)[0]
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            for _ in range(2):
                assert torch.equal(torch.autograd.grad(network.body(x, rows), x, v)[0], wanted)
                network.programs = copy.deepcopy(network.programs)  # which is made anew
    finally:
        torch.set_default_dtype(torch.float32)


def test_no_more_is_kept_than_by_the_fused_blocks():
    network = made("two attentions")
    sizes = []
    for run in (network.body, network._fused):
        x = image(network).contiguous(memory_format=torch.channels_last).requires_grad_()
        rows = network.embedding(LABELS)
        seen = {}
        with watch_saved(lambda t, seen=seen: seen.setdefault(t.untyped_storage().data_ptr(), t)):
            y = run(x, rows)
        # Not counted: weights, and what the caller has anyway, for second derivatives.
        others = {w.untyped_storage().data_ptr() for w in (*network.parameters(), rows, x)}
        sizes.append(sum(t.untyped_storage().nbytes() for p, t in seen.items() if p not in others))
        del y
    assert 0 < sizes[0] <= sizes[1]


# ------------------------------------------------------------------------------------------- when they run
def test_programs_run():
    network = made("digits")
    assert runs(network, image(network))
    with torch.no_grad():
        assert runs(network, image(network))
    with torch.inference_mode():
        assert runs(network, image(network))


def test_programs_leave_to_others_what_is_not_theirs():
    network, x = made("digits"), image(made("digits"))
    assert not runs(copy.deepcopy(network).train(), x)
    assert not runs(copy.deepcopy(network).requires_grad_(True), x)
    assert not runs(copy.deepcopy(network).double(), x.double())
    with use_backend("reference"):
        assert not runs(network, x)
    handle = network.all_modules[3].Conv_0.register_forward_hook(lambda *_: None)
    assert not runs(network, x)
    handle.remove()
    with forward_ad.dual_level():
        assert not runs(network, forward_ad.make_dual(x, x))
    with spied() as program:
        torch.func.jvp(lambda z: network(z, LABELS), (x,), (x,))
    assert not program.called
    assert runs(network, x)


def test_programs_hide_nothing_from_those_who_record_operations():
    network, x = made("digits"), image(made("digits"))
    rows = network.embedding(LABELS)
    wanted = network.body(x, rows)
    with spied() as program, torch.no_grad():
        traced = torch.jit.trace(lambda x, rows: network.body(x, rows), (x, rows), check_trace=False)
        graph = make_fx(lambda x, rows: network.body(x, rows))(x, rows)
        compiled = torch.compile(network.body, backend="eager", fullgraph=True)(x, rows)
    assert not program.called
    assert relative_error(compiled, wanted) < 1e-5
    other = image(network, seed=5)
    for recorded in (traced, graph):
        assert relative_error(recorded(other, rows), network.body(other, rows)) < 1e-5


def test_weights_of_other_dtypes_take_another_way():
    """Networks in bfloat16 whose normalisations stay in float32 are common; a program would misread their weights."""
    network = made("digits", torch.bfloat16)
    for module in network.modules():
        if type(module).__name__ == "Norm":
            module.float()
    x = image(made("digits", torch.bfloat16))
    assert not runs(network, x)
    exact = network(x, LABELS)
    assert (
        relative_error(exact.double(), made("digits").to(torch.bfloat16).double()(x.double(), LABELS)) < 0.05
    )


def test_weights_elsewhere_are_not_read():
    network = made("digits")
    network.all_modules[3].Conv_0.to("meta")
    with spied() as program, pytest.raises((RuntimeError, NotImplementedError)):
        network(image(made("digits")), LABELS)
    assert not program.called


def test_weights_that_are_not_dense_count_as_their_values():
    network = made("digits")
    wanted = network(image(network), LABELS)
    norm = network.all_modules[3].GroupNorm_0
    spread = norm.weight.repeat_interleave(3)
    norm.weight = torch.nn.Parameter(spread[::3], requires_grad=False)
    assert runs(network, image(network))
    assert torch.equal(network(image(network), LABELS), wanted)


# ---------------------------------------------------------------------------------------- changing weights
def changed_in_place(network):
    with torch.no_grad():
        network.all_modules[3].Conv_0.weight.mul_(1.5)


def changed_norm(network):
    with torch.no_grad():
        network.all_modules[3].GroupNorm_1.bias.add_(1)


def changed_behind_the_counter(network):
    network.all_modules[6].NIN_1.b.data += 1
    network.all_modules[6].NIN_2.W.data *= 2


def replaced(network):
    block = network.all_modules[3]
    block.Conv_1.weight = torch.nn.Parameter(block.Conv_1.weight + 1, requires_grad=False)


def moved_in_memory(network):
    norm = network.all_modules[3].GroupNorm_0
    norm.weight = torch.nn.Parameter(norm.weight.repeat_interleave(2)[::2] * 2, requires_grad=False)


def new_module_changed_later(network):
    block = copy.deepcopy(network.all_modules[3])
    network.all_modules[3] = block
    network(image(network), LABELS)
    with torch.no_grad():
        block.Conv_1.weight.mul_(3)


def loaded(network):
    network.load_state_dict(made("digits", seed=9).state_dict())


def rounded_and_back(network):
    network.to(torch.bfloat16).to(torch.float32)


CHANGES = [
    changed_in_place,
    changed_norm,
    changed_behind_the_counter,
    replaced,
    moved_in_memory,
    new_module_changed_later,
    loaded,
    rounded_and_back,
]


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_seen(change):
    network = made("digits")
    x = image(network)
    before = network(x, LABELS)
    change(network)
    after = network(x, LABELS)
    assert not torch.equal(after, before)
    with plain_autograd():
        assert relative_error(after, network(x, LABELS)) < 1e-5


def test_new_weights_at_an_old_address_are_seen():
    """Freed memory is handed out again; weights there, as often changed as those before, are others all the same."""
    network = made("digits")
    x = image(network)
    conv = network.all_modules[3].Conv_0
    for scale in (1.0, 2.0, 3.0):
        values = conv.weight.detach().clone() * scale
        conv.weight = None
        conv.weight = torch.nn.Parameter(values, requires_grad=False)
        del values
        with plain_autograd():
            exact = network(x, LABELS)
        assert relative_error(network(x, LABELS), exact) < 1e-5


def test_copies_have_programs_of_their_own():
    network = made("digits")
    x = image(network)
    wanted = network(x, LABELS)
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert runs(twin, x)
        assert torch.equal(twin(x, LABELS), wanted)
        changed_in_place(twin)
        assert not torch.equal(twin(x, LABELS), wanted)
    assert torch.equal(network(x, LABELS), wanted)


def test_a_gradient_belongs_to_the_weights_of_its_output():
    network = made("digits")
    x, v = image(network).requires_grad_(), image(network, seed=1)
    rows = network.embedding(LABELS)
    y = network.body(x, rows)
    (wanted,) = torch.autograd.grad(y, x, v, retain_graph=True)
    changed_norm(network)
    network.body(x, rows)
    assert torch.equal(torch.autograd.grad(y, x, v)[0], wanted)


def test_a_second_derivative_of_changed_weights_is_refused():
    network = made("digits")
    x = image(network).requires_grad_()
    y = network.body(x, network.embedding(LABELS))
    changed_in_place(network)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(y.sum(), x, create_graph=True)


@pytest.mark.parametrize("wrapped", ["edm", "classes"])
def test_wrapped_and_conditional_networks_are_programs_too(wrapped):
    fields = {"architecture": "ddpmpp", "image_size": 8, **SHAPES["digits"], "ch_mult": (1, 2), "n_blocks": 1}
    if wrapped == "edm":
        config = {"architecture": "edm", "network": {**fields, "embedding": "fourier"}}
    else:
        config = {**fields, "classes": 3, "class_label": 1}
    denoiser = Denoiser.from_config(config, seed=1).frozen()
    assert runs_in_one_call(denoiser.network, torch.float32)
    assert not runs_in_one_call(denoiser.network, torch.float64)
    x = normal(3, *denoiser.image_shape).float()
    labels = torch.tensor([0.5]) if wrapped == "edm" else LABELS
    with spied() as program:
        found = denoiser.network(x, labels)
    assert program.called
    with plain_autograd():
        exact = denoiser.network(x, labels)
    assert relative_error(found, exact) < 1e-5


def test_networks_do_not_keep_themselves():
    network = made("digits")
    network(image(network), LABELS)
    gone = weakref.ref(network)
    gc.disable()
    try:
        del network
        assert gone() is None
    finally:
        gc.enable()


def test_fingerprints_tell_what_lies_where():
    x = torch.arange(41.0)  # the last ones are no whole stride
    taken = programs.Fingerprint([x, x[3:]])
    seen = [taken.take()]
    x[[0, 16]] = x[[16, 0]]
    seen.append(taken.take())
    x[40] += 1
    seen.append(taken.take())
    assert len(set(seen)) == 3
    x.copy_(torch.arange(41.0))
    assert taken.take() == seen[0]


def test_a_step_is_written_as_it_is_read():
    assert programs.STEP.size == EXTENSION.build["network_step"]


# ------------------------------------------------------------------------------------------ wrong arguments
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 1, 8), (3, 64)])
def test_what_is_no_batch_of_images_is_refused(shape):
    network = made("digits")
    with pytest.raises(ValueError, match=r"`x` must be of shape \[B"):
        network.body(torch.zeros(shape), network.embedding(LABELS))


@pytest.mark.parametrize("size", [(16, 16), (4, 8)])
def test_images_of_another_size_take_another_way(size):
    """As they do on a machine without the extension, and in float64."""
    network = made("digits")
    x = normal(3, 1, *size).float()
    assert not runs(network, x)
    with plain_autograd():
        exact = network(x, LABELS)
    assert relative_error(network(x, LABELS), exact) < 1e-5


def test_another_number_of_channels_never_reaches_a_program():
    network = made("digits")
    with spied() as program, pytest.raises((RuntimeError, ValueError)):
        network.body(torch.zeros(3, 2, 8, 8), network.embedding(LABELS))
    assert not program.called


@pytest.mark.parametrize("cut", [slice(2), slice(0)])
def test_rows_must_be_one_or_one_per_image(cut):
    network = made("digits")
    rows = network.embedding(LABELS)
    with pytest.raises(ValueError, match=r"`embedding` must be of shape \[1 or 3, "):
        network.body(image(network), rows[cut])
    with pytest.raises(ValueError, match="`embedding`"):
        network.body(image(network), rows[:, :-1])


# ------------------------------------------------------------------------------------------ hard conditions
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_so_and_with_its_image(value):
    network = made("digits")
    x, rows = image(network), network.embedding(LABELS)
    wanted = network.body(x, rows)
    x[1, 0, 3, 3] = value
    leaf = x.clone().requires_grad_()
    y = network.body(leaf, rows)
    (gradient,) = torch.autograd.grad(y, leaf, image(network, seed=1))
    assert not y[1].isfinite().any()
    assert not gradient[1].isfinite().any()
    assert torch.equal(y[::2], wanted[::2])
    assert gradient[::2].isfinite().all()


@pytest.mark.parametrize("scale", [0.0, 1e-42, 1e-30, 1e4, 1e12])
def test_constant_tiny_and_huge_images(scale):
    network = made("digits")
    x, rows = image(network) * scale, network.embedding(LABELS)
    exact = made("digits").double().body(x.double(), rows.double())
    assert relative_error(network.body(x, rows), exact) < 5e-5


def test_threads_may_share_a_network():
    network = made("two attentions")
    batches = [image(network, 2, seed) for seed in range(8)]
    rows = network.embedding(LABELS[:1])
    v = image(network, 2, 99)

    def gradient(x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_()
        return torch.autograd.grad(network.body(leaf, rows), leaf, v)[0]

    wanted = [gradient(x) for x in batches]
    for _ in range(3):
        network.programs = copy.deepcopy(
            network.programs
        )  # made anew: the first use, too, may be everybody's at once
        found: dict[int, torch.Tensor] = {}
        start = threading.Barrier(len(batches))

        def work(number: int, found=found, start=start) -> None:
            start.wait()
            found[number] = gradient(batches[number])

        workers = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert all(torch.equal(found[number], wanted[number]) for number in range(len(batches)))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_forked_children_compute_the_same():
    network = made("digits")
    x, rows = image(network), network.embedding(LABELS)
    wanted = network.body(x, rows)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(network.body(x, rows), wanted) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# ---------------------------------------------------------------------------- which networks, and their memory
def test_which_configurations_are_programs():
    assert {name for name, config in CONFIGS.items() if narrow.suits(layout(config), config)} == {
        "ddpmpp-cifar10-small",
        "ddpmpp-digits",
    }


@pytest.mark.parametrize(
    ("fields", "suits"),
    [
        ({}, True),
        ({"channels": 5}, True),
        ({"nf": 128, "ch_mult": (1,)}, True),
        ({"nf": 32, "ch_mult": (1, 8)}, False),  # too wide
        ({"nf": 24}, False),  # no whole vectors
        ({"fir": True}, False),
        ({"fir": True, "residual_input": True}, False),
        ({"block": "ddpm"}, False),  # convolutions between levels
        ({"block": "ddpm", "ch_mult": (1,)}, True),
        ({"image_size": 4}, False),  # attention of 4 pixels
        ({"image_size": 12}, False),  # and of 36
        ({"image_size": 9, "ch_mult": (1,)}, False),
        ({"image_size": 64, "ch_mult": (1,)}, False),  # and of 4096
    ],
)
def test_which_shapes_are_programs(fields, suits):
    config = DDPMppConfig(**{"image_size": 8, "nf": 16, "ch_mult": (1, 2), "n_blocks": 1, **fields})
    assert narrow.suits(layout(config), config) is suits


spans = st.lists(
    st.builds(
        lambda size, first, length: narrow._Span(size, first, first + length),
        st.integers(0, 40),
        st.integers(0, 12),
        st.integers(0, 12),
    ),
    max_size=24,
)


@given(spans)
def test_memory_in_use_is_shared_by_nobody(made_of):
    for reuse in (True, False):
        offsets, size = narrow._place(made_of, reuse)
        ends = [offset + span.size for offset, span in zip(offsets, made_of, strict=True)]
        assert size == max(ends, default=0)
        for one in range(len(made_of)):
            for other in range(one):
                a, b = made_of[one], made_of[other]
                together = not reuse or (a.first <= b.last and b.first <= a.last)
                if together and a.size and b.size:
                    assert ends[one] <= offsets[other] or ends[other] <= offsets[one]
    assert narrow._place(made_of, True)[1] <= narrow._place(made_of, False)[1] == sum(s.size for s in made_of)


def unpacked(packed: torch.Tensor, outputs: int, inputs: int, size: int) -> torch.Tensor:
    """[blocks, k k, units, block, unit] -> [O, I, k, k]."""
    whole = packed.permute(0, 3, 2, 4, 1).reshape(packed.shape[0] * packed.shape[3], -1, size, size)
    assert not whole[outputs:].any()
    assert not whole[:, inputs:].any()
    return whole[:outputs, :inputs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("outputs", "inputs"), [(1, 3), (32, 1), (48, 16), (64, 7), (16, 16)])
@pytest.mark.parametrize("size", [1, 3])
def test_packed_weights_are_those_of_the_convolution_and_its_transpose(outputs, inputs, size, dtype):
    weight = normal(outputs, inputs, size, size).to(dtype)
    assert torch.equal(unpacked(programs.pack(weight), outputs, inputs, size), weight)
    back = unpacked(programs.pack_back(weight), inputs, outputs, size).double()
    v = normal(1, outputs, 5, 4, seed=1)
    wanted = F.conv_transpose2d(v, weight.double(), padding=size // 2)
    torch.testing.assert_close(F.conv2d(v, back, padding=size // 2), wanted, rtol=0, atol=1e-12)
