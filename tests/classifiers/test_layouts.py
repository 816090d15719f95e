"""Other people's files: recognised by their names, read whole, never guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fastpure.classifiers import (
    CifarResNet,
    CifarResNetConfig,
    WideResNet,
    WideResNetConfig,
    load_classifier,
    report_of,
)
from fastpure.classifiers.layouts import LAYOUTS
from fastpure.errors import CheckpointError
from tests.classifiers.helpers import DEEPMIND, MEAN, STD, WIDE, X, prefixed, used


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


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model."])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "net"])
def test_wide_resnets_under_any_prefix_and_wrapper(tmp_path: Path, prefix: str, wrapper: str | None) -> None:
    net = used(WideResNet(WIDE))
    content = prefixed(net.state_dict(), prefix)
    file = tmp_path / "weights.pt"
    torch.save({wrapper: content, "epoch": 7} if wrapper else content, file)
    with pytest.raises(ValueError, match="`normalise` must be given for wide ResNets"):
        load_classifier(file)
    loaded = load_classifier(file, normalise="none")
    assert isinstance(loaded, WideResNet)
    assert loaded.config == WIDE
    assert report_of(loaded).normalisation == "images in [0, 1] as they are (as given)"
    assert torch.equal(loaded(X), net(X))
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())


def test_safetensors_and_half_precision(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    halves = {
        name: value.half() if value.is_floating_point() else value for name, value in net.state_dict().items()
    }
    save_file(halves, tmp_path / "half.safetensors")
    loaded = load_classifier(tmp_path / "half.safetensors", normalise="none")
    assert {weight.dtype for weight in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded(X), net(X), rtol=0.05, atol=0.05)


def test_diffpure_s_seventy_layers_normalise_only_when_told(tmp_path: Path) -> None:
    deep = WideResNetConfig(depth=70, widen=1)
    net = used(WideResNet(deep))
    file = tmp_path / "weights.pt"
    torch.save(prefixed(net.state_dict(), "module."), file)
    with pytest.raises(ValueError, match=r"`normalise` must be given for wide ResNets.*wrn-70-16-dropout"):
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
    assert "assumed: that of this family" in report_of(loaded).normalisation
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
        loaded = load_classifier(file, normalise="none")
    assert torch.equal(loaded(X), net(X))


def test_a_module_can_be_given_its_normalisation() -> None:
    net = used(WideResNet(WIDE))
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    assert torch.equal(load_classifier(net, normalise=(MEAN, STD))(X), net((X - mean) / std))
    assert load_classifier(net, normalise="none") is net


def test_every_layout_has_named_configurations() -> None:
    assert set(LAYOUTS) == {"wide_resnet", "deepmind", "cifar_resnet"}
    assert all(layout.configs for layout in LAYOUTS.values())
