"""Other people's files: recognised by their names, read whole or refused with the reason, never guessed."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fastpure.classifiers import (
    CifarResNet,
    CifarResNetConfig,
    WideResNet,
    WideResNetConfig,
    load_classifier,
    save_classifier,
)
from fastpure.classifiers.layouts import LAYOUTS
from fastpure.errors import CheckpointError

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
WIDE = WideResNetConfig(depth=10, widen=2)
DEEPMIND = replace(WIDE, activation="silu", same_padding=True, mean=MEAN, std=STD)
X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(5))


def used(net: nn.Module, seed: int = 0) -> nn.Module:
    """``net`` with weights and statistics of no special value, in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.copy_(0.5 + torch.rand(value.shape, generator=generator))
        elif value.is_floating_point():
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
    return net.eval()


def deepmind_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a `WideResNet` under DeepMind's names, written out independently of the loader."""
    renamed = {}
    for name, value in weights.items():
        head, *rest = name.split(".")
        if head.startswith("block"):
            index, part, leaf = rest[1:]
            part = {"bn1": "batchnorm_0", "bn2": "batchnorm_1", "conv1": "conv_0", "conv2": "conv_1"}.get(
                part, "shortcut"
            )
            renamed[f"layer.{int(head[5]) - 1}.block.{index}.{part}.{leaf}"] = value
        else:
            top = {"conv1": "init_conv", "bn1": "batchnorm", "fc": "logits"}[head]
            renamed[".".join([top, *rest])] = value
    return renamed


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "net"])
def test_wide_resnets_under_any_prefix_and_wrapper(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    net = used(WideResNet(WIDE))
    content = prefixed(net.state_dict(), prefix)
    file = tmp_path / "weights.pt"
    torch.save({wrapper: content, "epoch": 7} if wrapper else content, file)
    loaded = load_classifier(file)
    assert isinstance(loaded, WideResNet)
    assert loaded.config == WIDE
    assert torch.equal(loaded(X), net(X))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_safetensors_and_half_precision(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()
    }
    save_file(halves, tmp_path / "half.safetensors")
    loaded = load_classifier(tmp_path / "half.safetensors")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(X), net(X), rtol=0.05, atol=0.05)


def test_diffpure_s_seventy_layers_normalise_only_when_told(tmp_path: Path) -> None:
    deep = WideResNetConfig(depth=70, widen=1)
    net = used(WideResNet(deep))
    file = tmp_path / "weights.pt"
    torch.save(prefixed(net.state_dict(), "module."), file)
    with pytest.raises(ValueError, match=r"`normalise` must be given for a WRN-70.*wrn-70-16-dropout"):
        load_classifier(file)
    assert torch.equal(load_classifier(file, normalise="none")(X), net(X))
    inside = load_classifier(file, normalise="cifar10")
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(inside(X), net((X - mean) / std))
    with pytest.raises(CheckpointError, match=r"of another shape.*expected \[256"):
        load_classifier(file, architecture="wrn-70-16-dropout")


def test_deepmind_layout_is_translated(tmp_path: Path) -> None:
    net = used(WideResNet(DEEPMIND))
    file = tmp_path / "weights.pt"
    torch.save(deepmind_names(net.state_dict()), file)
    with pytest.raises(ValueError, match=r"`activation` must be given for DeepMind's layout"):
        load_classifier(file)
    loaded = load_classifier(file, activation="silu")
    assert loaded.config == DEEPMIND
    assert torch.equal(loaded(X), net(X))
    assert not torch.allclose(load_classifier(file, activation="relu")(X), net(X))


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact"])
def test_cifar_resnets(tmp_path: Path, block: str) -> None:
    config = CifarResNetConfig(
        block=block, blocks=(1, 2, 1, 1), width=8, classes=7, final_norm=block == "preact"
    )
    net = used(CifarResNet(config))
    file = tmp_path / "weights.pt"
    torch.save({"state_dict": prefixed(net.state_dict(), "module.")}, file)
    with pytest.raises(ValueError, match="`normalise` must be given for CIFAR ResNets"):
        load_classifier(file)
    if block == "preact":
        with pytest.raises(ValueError, match=r"`architecture` must be given.*preact-resnet-18"):
            load_classifier(file, normalise="none")
        return
    loaded = load_classifier(file, normalise="none")
    assert loaded.config == config
    assert torch.equal(loaded(X), net(X))
    with pytest.raises(ValueError, match="`activation` must be None"):
        load_classifier(file, normalise="none", activation="silu")


def test_preactivation_by_name_and_the_two_shortcuts_differ(tmp_path: Path) -> None:
    net = used(CifarResNet(CifarResNetConfig(block="preact")))
    file = tmp_path / "weights.pt"
    torch.save(net.state_dict(), file)
    plain = load_classifier(file, architecture="preact-resnet-18", normalise="none")
    other = load_classifier(file, architecture="preact-resnet-18-activated", normalise="none")
    assert torch.equal(plain(X), net(X))
    assert not torch.allclose(other(X), net(X))


@pytest.mark.parametrize("names", [("mean", "std"), ("mu", "sigma"), ("normalize.mean", "normalize.std")])
def test_normalisation_stored_in_the_file_is_used(tmp_path: Path, names: tuple[str, str]) -> None:
    net = used(WideResNet(replace(WIDE, mean=MEAN, std=STD)))
    shape = (1, 3, 1, 1)
    content = prefixed(net.state_dict(), "model.")
    content |= {names[0]: torch.tensor(MEAN).view(shape), names[1]: torch.tensor(STD).view(shape)}
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    torch.testing.assert_close(load_classifier(file)(X), net(X), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="`normalise` must be None, since"):
        load_classifier(file, normalise="imagenet")
    content[names[1]] = torch.zeros(shape)
    torch.save(content, file)
    with pytest.raises(CheckpointError, match="are no normalisation"):
        load_classifier(file)


def test_old_files_without_counters_and_with_unused_blocks(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    weights = {name: value for name, value in net.state_dict().items() if "num_batches" not in name}
    weights["sub_block1.layer.0.conv1.weight"] = torch.zeros(32, 16, 3, 3)
    file = tmp_path / "weights.pt"
    torch.save(weights, file)
    with pytest.warns(UserWarning, match="1 tensors of the unused sub_block1 were dropped"):
        loaded = load_classifier(file)
    assert torch.equal(loaded(X), net(X))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"fc.bias": None}, r"1 missing: fc\.bias"),
        ({"fc.extra": torch.zeros(2)}, r"1 unknown: fc\.extra"),
        ({"fc.bias": torch.zeros(3)}, r"1 of another shape: fc\.bias \(expected \[10\], found \[3\]\)"),
        ({"fc.bias": torch.full((10,), float("nan"))}, r"1 with NaN or Inf: fc\.bias"),
        ({"fc.bias": torch.zeros(10, dtype=torch.int64)}, r"1 not floating: fc\.bias \(torch\.int64\)"),
        ({"bn1.running_var": -torch.ones(128)}, r"1 negative, though variances: bn1\.running_var"),
        ({"fc.weight": torch.zeros(1, 128)}, "has the names of .* but not the sizes: `classes`"),
        ({"fc.weight": torch.tensor(0.0)}, "has the names of .* but not the sizes"),
        ({"conv1.weight": None}, r"not the sizes: 'conv1\.weight'"),
        ({"block2.layer.0.conv1.weight": torch.zeros(64, 32, 5, 5)}, r"expected \[64, 32, 3, 3\]"),
    ],
)
def test_files_that_do_not_fit_say_why(tmp_path: Path, change: dict[str, Tensor | None], reason: str) -> None:
    weights = {**used(WideResNet(WIDE)).state_dict(), **change}
    file = tmp_path / "weights.pt"
    torch.save({name: value for name, value in weights.items() if value is not None}, file)
    with pytest.raises(CheckpointError, match=reason):
        load_classifier(file)


class Hostile:
    """Would create a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.path,)


def test_hostile_and_damaged_files_are_refused(tmp_path: Path) -> None:
    trap, file = tmp_path / "executed", tmp_path / "weights.pt"
    torch.save({"state_dict": Hostile(trap)}, file)
    with pytest.raises(CheckpointError, match="which is never done"):
        load_classifier(file)
    file.write_bytes(pickle.dumps(Hostile(trap)))
    with pytest.raises(CheckpointError, match="which is never done"):
        load_classifier(file)
    assert not trap.exists()
    torch.save(nn.Linear(2, 2), file)
    with pytest.raises(CheckpointError, match="a pickled module"):
        load_classifier(file)
    torch.save(used(WideResNet(WIDE)).state_dict(), file)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(file)
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        load_classifier(file)
    with pytest.raises(CheckpointError, match="neither a file nor a bundled classifier"):
        load_classifier(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"a.weight": torch.zeros(2)}, r"of no known classifier layout.*Found: a\.weight"),
        (
            {"layer1.0.conv1.weight": torch.zeros(2), "fc.weight": torch.zeros(2)},
            r"torchvision's layout.*load_classifier\('torchvision:NAME'",
        ),
        ([torch.zeros(2)], "expected tensors by name, found list"),
        ({}, "expected tensors by name, found dict"),
        (
            {"best": {"a": torch.zeros(1)}, "epoch": 3},
            "expected tensors by name, or one of .*found best, epoch",
        ),
        ({"net": {"a": torch.zeros(1)}, "model": {"a": torch.zeros(1)}}, "found net, model"),
    ],
)
def test_foreign_contents_are_named(tmp_path: Path, content: object, reason: str) -> None:
    file = tmp_path / "weights.pt"
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=reason):
        load_classifier(file)


def test_options_of_no_use_and_unknown_names_are_refused(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    foreign, own = tmp_path / "weights.pt", tmp_path / "own.safetensors"
    torch.save(net.state_dict(), foreign)
    save_classifier(net, own)
    with pytest.raises(ValueError, match="`normalise` must be left out for a fastpure file"):
        load_classifier(own, normalise="cifar10")
    with pytest.raises(ValueError, match="`dataset` must be left out for a state dict"):
        load_classifier(foreign, dataset="cifar10")
    with pytest.raises(ValueError, match="`architecture` must be left out for a bundled classifier"):
        load_classifier("digits", architecture="wrn-28-10")
    with pytest.raises(ValueError, match="`weights` must be left out for a module"):
        load_classifier(net, weights=foreign)
    with pytest.raises(ValueError, match="`architecture` must be one of 'wrn-28-10'"):
        load_classifier(foreign, architecture="dm-wrn-28-10")
    with pytest.raises(ValueError, match="`normalise` must be one of 'none', 'cifar10'"):
        load_classifier(foreign, normalise="svhn")
    with pytest.raises(TypeError, match=r"`normalise` must be a name .* or a pair"):
        load_classifier(foreign, normalise=(0.5, 0.5))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="`activation` must be one of 'relu', 'silu'"):
        load_classifier(foreign, activation="gelu")


def test_a_module_can_be_given_its_normalisation() -> None:
    net = used(WideResNet(WIDE))
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(load_classifier(net, normalise=(MEAN, STD))(X), net((X - mean) / std))
    assert load_classifier(net, normalise="none") is net


def test_every_layout_has_named_configurations() -> None:
    assert set(LAYOUTS) == {"wide_resnet", "deepmind", "cifar_resnet"}
    assert all(layout.configs for layout in LAYOUTS.values())


@pytest.mark.parametrize(
    "net",
    [
        WideResNet(replace(DEEPMIND, dropout=0.25)),
        CifarResNet(CifarResNetConfig(block="bottleneck", blocks=(1, 1, 1, 1), width=4, mean=MEAN, std=STD)),
    ],
    ids=["wide", "bottleneck"],
)
def test_native_files_of_every_architecture(tmp_path: Path, net: nn.Module) -> None:
    net = used(net)
    loaded = load_classifier(save_classifier(net, tmp_path / "net.safetensors"))
    assert type(loaded) is type(net)
    assert loaded.config == net.config
    assert torch.equal(loaded(X), net(X))


def test_native_files_stored_in_half_precision_give_float32_networks(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    full = save_classifier(net, tmp_path / "full.safetensors")
    half = save_classifier(net, tmp_path / "half.safetensors", dtype=torch.float16)
    assert half.stat().st_size < 0.6 * full.stat().st_size
    loaded = load_classifier(half)
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    assert torch.equal(loaded.fc.bias, net.fc.bias), "vectors keep their precision"
    assert torch.equal(loaded.bn1.running_var, net.bn1.running_var)
    assert torch.equal(loaded.fc.weight, net.fc.weight.half().float())
    torch.testing.assert_close(loaded(X), net(X), rtol=0.05, atol=0.05)
    net.fc.weight.data[0, 0] = 1e6
    with pytest.raises(ValueError, match=r"finite in torch\.float16, got NaN or Inf in fc\.weight"):
        save_classifier(net, tmp_path / "over.safetensors", dtype=torch.float16)


def test_float64_files_stay_float64(tmp_path: Path) -> None:
    net = used(WideResNet(replace(WIDE, mean=MEAN, std=STD))).double()
    loaded = load_classifier(save_classifier(net, tmp_path / "net.safetensors"))
    assert loaded(X.double()).dtype == torch.float64
