"""The ADM network against the reference implementations' numbers, names and sizes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastpure import Denoiser, load_denoiser
from fastpure.nets import ADM, ADMConfig
from fastpure.nets.adm import CONFIGS
from fastpure.reverse.memory import count_saved_bytes
from tests.golden import FOLDER, config, published, relative_error, tensors
from tests.nets.helpers import normal, output_and_vjp, plain_autograd

TINY = {"image_size": 8, "model_channels": 8, "widths": (8, 16), "n_blocks": 1, "groups": 4}
VARIANTS = {
    "blocks": {"attn_resolutions": (8, 4), "head_channels": 4},
    "legacy": {"attn_resolutions": (4,), "heads": 4, "legacy_attention": True},
    "convolutions": {"resample": "conv", "scale_shift": False, "sinusoid": "sin_cos"},
    "padded": {"resample": "padded_conv", "learned_sigma": True, "attn_resolutions": (4,)},
    "plain": {"resample": "plain", "narrow_groups": True, "groups": 32, "classes": 3, "class_label": 1},
}


def golden() -> Denoiser:
    return load_denoiser(FOLDER / "adm_tiny.pt", config=config("adm_tiny"))


def random_adm(name: str = "blocks", seed: int = 0, dtype: torch.dtype = torch.float64, **fields) -> ADM:
    """Every weight random (norms and biases too), frozen."""
    network = ADM(ADMConfig(**{**TINY, **VARIANTS[name], **fields}))
    network.initialise(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network.to(dtype).requires_grad_(False).eval()


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerances"),
    [(torch.float32, "", (5e-6, 2e-5)), (torch.float64, "_f64", (1e-12, 1e-12))],
)
def test_golden_output_and_vjp(dtype, suffix, tolerances, trainable):
    io = tensors("adm_tiny_io")
    denoiser = golden().cast(dtype)
    denoiser.network.requires_grad_(trainable)
    # The denoiser drops the learned variance; the network itself returns it.
    output, vjp = output_and_vjp(denoiser, io["x"].to(dtype), io["t"], io["v"].to(dtype))
    assert relative_error(output, io[f"out{suffix}"][:, :3]) < tolerances[0]
    assert relative_error(vjp, io[f"vjp{suffix}"]) < tolerances[1]
    whole = denoiser.network(io["x"].to(dtype), io["t"])
    assert relative_error(whole, io[f"out{suffix}"]) < tolerances[0]


@pytest.mark.parametrize(
    ("dtype", "suffix", "tolerances"),
    [(torch.float32, "", (5e-6, 2e-5)), (torch.float64, "_f64", (1e-12, 1e-12))],
)
def test_golden_class_conditional(tmp_path, dtype, suffix, tolerances):
    io = tensors("adm_cond_tiny_io")
    both = {
        **torch.load(FOLDER / "adm_tiny.pt", weights_only=True),
        **torch.load(FOLDER / "adm_cond_tiny.pt", weights_only=True),
    }
    torch.save(both, tmp_path / "cond.pt")
    denoiser = load_denoiser(tmp_path / "cond.pt", config=config("adm_cond_tiny"))
    told = denoiser.cast(dtype)(io["x"].to(dtype), io["t"], io["y"])
    assert relative_error(told, io[f"out{suffix}"][:, :3]) < tolerances[0]
    network = denoiser.network
    assert list(network.state_dict()) == config("adm_cond_tiny")["state_dict_key_order"]
    network = network.to(dtype)
    x, v = (io[name].to(dtype).clone().requires_grad_() for name in "xv")
    output = network(x, io["t"], io["y"])
    vjp = torch.autograd.grad(output[:, :3], x, v)[0]
    assert relative_error(output, io[f"out{suffix}"]) < tolerances[0]
    assert relative_error(vjp, io[f"vjp{suffix}"]) < tolerances[1]
    for i, label in enumerate(io["y"].tolist()):
        one = load_denoiser(tmp_path / "cond.pt", config=config("adm_cond_tiny"), class_label=label)
        alone = one.cast(dtype)(io["x"][i : i + 1].to(dtype), io["t"][i : i + 1])
        assert relative_error(alone, io[f"out{suffix}"][i : i + 1, :3]) < tolerances[0]
        assert torch.equal(
            alone, denoiser.for_class(label).cast(dtype)(io["x"][i : i + 1].to(dtype), io["t"][i : i + 1])
        )


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("adm-imagenet256", "guided_diffusion_imagenet256_uncond"),
        ("iddpm-cifar10", "improved_diffusion_cifar10_uncond_50M"),
    ],
)
def test_official_networks_have_the_published_parameters(name, keys):
    expected = published(keys)
    with torch.device("meta"):
        network = ADM(CONFIGS[name])
    ours = [[key, list(value.shape)] for key, value in network.state_dict().items()]
    assert ours == [entry[:2] for entry in expected["entries"]]
    assert sum(value.numel() for value in network.parameters()) == expected["param_count"]


@pytest.mark.parametrize("name", VARIANTS)
def test_fast_path_equals_plain_autograd(name):
    network = random_adm(name)
    x, labels = normal(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    v = normal(2, network.out["2"].weight.shape[0], 8, 8, seed=1)
    embeddings = network.embedding(labels)
    for embedding in (embeddings, embeddings[:1]):  # one per image, and one for all
        fast = output_and_vjp(network.body, x, embedding, v)
        with plain_autograd():
            plain = output_and_vjp(network.body, x, embedding, v)
        for ours, theirs in zip(fast, plain, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    alone = torch.cat([network.body(x[i : i + 1], embeddings[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(network(x, labels), alone, rtol=0, atol=1e-11)


def test_keeps_little_for_the_backward_pass():
    network = random_adm("blocks", dtype=torch.float32, image_size=32, widths=(32, 32), attn_resolutions=())
    x, embedding = torch.randn(1, 3, 32, 32), network.embedding(torch.tensor([5.0]))

    def kept() -> int:
        with count_saved_bytes(*network.parameters()) as counter:
            network.body(x.clone().requires_grad_(True), embedding)
        return counter.total

    fast = kept()
    with plain_autograd():
        assert fast < 0.5 * kept()


def test_attention_orders_differ_by_a_permutation():
    """[heads, (q, k, v), D] and [(q, k, v), heads, D]: the same network once the rows of ``qkv`` are permuted."""
    old, new = random_adm("legacy"), random_adm("legacy", legacy_attention=False)
    state = new.state_dict()
    for key, value in state.items():
        if ".qkv." in key:
            heads = value.unflatten(0, (4, 3, -1)).transpose(0, 1)
            state[key] = heads.reshape(value.shape)
    x, labels = normal(2, 3, 8, 8), torch.tensor([3.0, 700.0])
    assert not torch.allclose(old(x, labels), new(x, labels), atol=1e-3)
    new.load_state_dict(state)
    torch.testing.assert_close(old(x, labels), new(x, labels), rtol=0, atol=1e-12)


def test_the_class_is_part_of_the_configuration():
    network = random_adm("plain")
    x, labels = normal(1, 3, 8, 8), torch.tensor([3.0])

    def output(label: int | None) -> Tensor:
        other = ADM(replace(network.config, class_label=label)).double()
        other.load_state_dict(network.state_dict())
        return other.eval()(x, labels)

    outputs = [output(label) for label in (None, 0, 1, 2)]
    assert torch.equal(outputs[2], network(x, labels))
    assert torch.equal(outputs[3], network(x, labels, torch.tensor([2])))
    assert len({value.sum().item() for value in outputs}) == 4
    with pytest.raises(ValueError, match="`classes` must be None"):
        random_adm("blocks").embedding(labels, torch.tensor([1]))


def test_from_config_knows_the_conventions():
    fields = {"architecture": "adm", **TINY, **VARIANTS["padded"]}
    denoiser = Denoiser.from_config(fields, seed=3)
    assert (denoiser.time_input, denoiser.learned_sigma, denoiser.image_shape) == ("index", True, (3, 8, 8))
    again = Denoiser.from_config(denoiser.describe()["config"], seed=3)
    x, labels = normal(1, 3, 8, 8, dtype=torch.float32), torch.tensor([3])
    assert torch.equal(denoiser(x, labels), again(x, labels))
    assert 0.1 < denoiser(x, labels).std().item() < 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"widths": (10, 16)}, r"widths.*4 groups.*C = 10"),
        ({"widths": ()}, "widths"),
        ({"image_size": 9}, "image_size"),
        ({"head_channels": 3, "attn_resolutions": (4,)}, "head_channels.*16"),
        ({"heads": 3, "attn_resolutions": (4,)}, "heads"),
        ({"resample": "fir"}, "resample"),
        ({"sinusoid": "fourier"}, "sinusoid"),
        ({"model_channels": 7}, "model_channels"),
        ({"class_label": 1}, "class_label"),
        ({"classes": 3, "class_label": 3}, "class_label"),
        ({"eps": 0.0}, "eps"),
        ({"dropout": 1.0}, "dropout"),
        ({"learned_sigma": "yes"}, "learned_sigma"),
    ],
)
def test_impossible_configurations_are_named(fields, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ADMConfig(**{**TINY, **fields})


@pytest.mark.parametrize("n_labels", [1, 2])
def test_hooks_on_a_scaled_and_shifted_norm_see_and_change_its_own_output(n_labels):
    """Its scale and shift are folded into it where nobody looks."""
    network = random_adm("blocks")
    assert network.config.scale_shift
    x, labels = normal(2, 3, 8, 8), torch.tensor([3.0, 700.0])[:n_labels]
    wanted = network(x, labels)
    norm = next(block for block in network.input_blocks[1] if hasattr(block, "scale_shift")).out_layers["0"]
    seen: list[Tensor] = []
    handle = norm.register_forward_hook(lambda module, given, output: seen.append((given[0], output)))
    torch.testing.assert_close(network(x, labels), wanted, rtol=0, atol=1e-12)
    ((given, output),) = seen
    exact = torch.nn.functional.group_norm(given, norm.groups, norm.weight, norm.bias, norm.eps)
    torch.testing.assert_close(output, exact, rtol=0, atol=1e-12)
    handle.remove()
    handle = norm.register_forward_hook(lambda module, given, output: output * 0)
    assert not torch.allclose(network(x, labels), wanted)
    handle.remove()
    assert torch.equal(network(x, labels), wanted)
