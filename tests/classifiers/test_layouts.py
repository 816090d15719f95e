"""Other people's files: recognised by their names, read whole, never guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fastpure.classifiers import (
    BIASED_WIDE_RESNETS,
    BiasedWideResNet,
    BiasedWideResNetConfig,
    CifarResNet,
    CifarResNetConfig,
    Normalised,
    WideResNet,
    WideResNetConfig,
    load_classifier,
    report_of,
    save_classifier,
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


@pytest.mark.parametrize("prefix", ["", "module.", "model.", "module.model.", "module.0."])
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
    loaded = load_classifier(file, activation="silu", normalise="cifar10")
    assert loaded.config == DEEPMIND
    assert "as given" in report_of(loaded).normalisation
    assert torch.equal(loaded(X), net(X))
    relu = load_classifier(file, activation="relu", normalise="cifar10")
    assert not torch.allclose(relu(X), net(X))


def test_ten_classes_in_deepmind_s_layout_may_be_svhn_s(tmp_path: Path) -> None:
    """The same code trains both under one layout, with other constants that stand in no file."""
    file = tmp_path / "weights.pt"
    torch.save(deepmind_names(used(WideResNet(DEEPMIND)).state_dict()), file)
    with pytest.raises(ValueError, match=r"`normalise` must be given for DeepMind's layout .*SVHN \(\(0\.5"):
        load_classifier(file, activation="silu")
    halves = ((0.5,) * 3, (0.5,) * 3)
    assert load_classifier(file, activation="silu", normalise=halves).config.mean == halves[0]


def test_deepmind_s_network_for_mnist_pads_its_images(tmp_path: Path) -> None:
    grey = replace(DEEPMIND, image_shape=(1, 28, 28), mean=(0.5,), std=(0.5,))
    file = tmp_path / "weights.pt"
    torch.save(deepmind_names(used(WideResNet(grey)).state_dict()), file)
    with pytest.raises(CheckpointError, match="1 channels, which are padded first; expected 3"):
        load_classifier(file, activation="silu", normalise=((0.5,), (0.5,)))


def hill(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits of the wide ResNet with biases that Hill et al. 2021 published, operation by operation."""

    def convolved(v: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = weights[f"{name}.weight"]
        return F.conv2d(v, kernel, weights[f"{name}.bias"], stride, kernel.shape[-1] // 2)

    def activated(v: Tensor, name: str) -> Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{part}"].view(1, -1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((v - mean) / (var + 1e-5).sqrt() * scale + shift).clamp(min=0)

    h = convolved(x, "conv1")
    for stage in (1, 2, 3):
        index = 0
        while (block := f"layer{stage}.{index}") + ".conv1.weight" in weights:
            stride = 2 if stage > 1 and index == 0 else 1
            inner = convolved(activated(h, f"{block}.bn1"), f"{block}.conv1")
            inner = convolved(activated(inner, f"{block}.bn2"), f"{block}.conv2", stride)
            short = f"{block}.shortcut.0"
            h = inner + (convolved(h, short, stride) if f"{short}.weight" in weights else h)
            index += 1
    return activated(h, "bn1").mean((2, 3)) @ weights["linear.weight"].t() + weights["linear.bias"]


def hill_weights(widen: int, blocks: int, classes: int) -> dict[str, Tensor]:
    """Its names and shapes, from its code; the values mean nothing."""
    generator = torch.Generator().manual_seed(3)
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (16, 3, 3, 3), "conv1.bias": (16,)}

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)

    before = 16
    for stage in (1, 2, 3):
        after = 16 * 2 ** (stage - 1) * widen
        for index in range(blocks):
            block = f"layer{stage}.{index}"
            norm(f"{block}.bn1", before)
            shapes |= {f"{block}.conv1.weight": (after, before, 3, 3), f"{block}.conv1.bias": (after,)}
            norm(f"{block}.bn2", after)
            shapes |= {f"{block}.conv2.weight": (after, after, 3, 3), f"{block}.conv2.bias": (after,)}
            if before != after or (stage > 1 and index == 0):
                short = f"{block}.shortcut.0"
                shapes |= {f"{short}.weight": (after, before, 1, 1), f"{short}.bias": (after,)}
            before = after
    norm("bn1", before)
    shapes |= {"linear.weight": (classes, before), "linear.bias": (classes,)}
    return {
        name: 0.2 * torch.randn(shape, generator=generator)
        if not name.endswith("running_var")
        else 0.5 + torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


@pytest.mark.parametrize(("widen", "blocks", "classes"), [(2, 2, 10), (1, 1, 7), (3, 3, 100)])
def test_wide_resnets_with_biases_are_those_of_hill_et_al(
    tmp_path: Path, widen: int, blocks: int, classes: int
) -> None:
    weights = hill_weights(widen, blocks, classes)
    file = tmp_path / "clf.pth"
    torch.save(weights, file)
    with pytest.raises(ValueError, match=r"`normalise` must be given for wide ResNets with biases.*Hill"):
        load_classifier(file)
    halves = ((0.5,) * 3, (0.5,) * 3)
    loaded = load_classifier(file, normalise=halves)
    assert isinstance(loaded, BiasedWideResNet)
    assert loaded.config.depth == 6 * blocks + 4
    assert "Hill et al. 2021" in str(report_of(loaded).notes)
    torch.testing.assert_close(loaded(X), hill(weights, 2 * X - 1), rtol=1e-4, atol=1e-4)
    other = load_classifier(file, normalise="none")
    torch.testing.assert_close(other(X), hill(weights, X), rtol=1e-4, atol=1e-4)
    own = save_classifier(loaded, tmp_path / "own.safetensors")
    assert torch.equal(load_classifier(own)(X), loaded(X))
    with pytest.raises(ValueError, match="`activation` must be None"):
        load_classifier(file, normalise="none", activation="silu")


def test_wide_resnets_with_biases_by_name(tmp_path: Path) -> None:
    weights = hill_weights(2, 2, 10)
    torch.save(weights, tmp_path / "clf.pth")
    # A name settles its sizes, not what is done to its images, which differs between those who publish it.
    with pytest.raises(ValueError, match="`normalise` must be given for wide ResNets with biases"):
        load_classifier("wrn-28-10-biased", weights=tmp_path / "clf.pth")
    with pytest.raises(CheckpointError, match=r"layer1\.0\.conv1\.weight \(expected \[160, 16, 3, 3\]"):
        load_classifier("wrn-28-10-biased", weights=tmp_path / "clf.pth", normalise="none")
    with torch.device("meta"):
        whole = BiasedWideResNet(BIASED_WIDE_RESNETS["wrn-28-10-biased"])
    assert sum(weight.numel() for weight in whole.parameters()) == 36_489_290
    del weights["layer3.1.conv2.bias"]
    torch.save(weights, tmp_path / "clf.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: layer3\.1\.conv2\.bias"):
        load_classifier(tmp_path / "clf.pth", normalise="none")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"depth": 29}, "`depth` must be 6 n"),
        ({"widen": 0}, "`widen`"),
        ({"image_shape": (3, 30, 32)}, "divisible by 4"),
        ({"mean": MEAN}, "both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 numbers each"),
    ],
)
def test_impossible_wide_resnets_with_biases(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        BiasedWideResNetConfig(**change)  # type: ignore[arg-type]


def test_networks_of_three_stages_are_not_taken_for_four(tmp_path: Path) -> None:
    """Many others call their last layer ``linear``: ResNet-20 for CIFAR-10, say."""
    net = used(CifarResNet(CifarResNetConfig(blocks=(1, 1, 1, 1), width=8)))
    three = {name: value for name, value in net.state_dict().items() if not name.startswith("layer4")}
    torch.save(three, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"not the sizes: \(1, 1, 1, 0\) blocks in layer1 to layer4"):
        load_classifier(tmp_path / "weights.pt", normalise="none")


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
    # RobustBench's L2 networks of Rice 2020 and Kireev 2021 end in one more normalisation, which their names show.
    ending = used(CifarResNet(CifarResNetConfig(block="preact", shortcut="activated", final_norm=True)))
    torch.save(ending.state_dict(), file)
    loaded = load_classifier(file, architecture="preact-resnet-18-activated", normalise="none")
    assert torch.equal(loaded(X), ending(X))


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


def test_two_normalisations_in_a_file_are_refused(tmp_path: Path) -> None:
    net = used(WideResNet(WIDE))
    column = torch.full((1, 3, 1, 1), 0.5)
    content = prefixed(net.state_dict(), "model.")
    content |= {"mean": column, "std": column, "model.mu": 0.4 * column, "model.sigma": 0.3 * column}
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match="expected one normalisation, found 2 around one another"):
        load_classifier(tmp_path / "weights.pt")


def test_a_normalisation_of_bytes_is_refused(tmp_path: Path) -> None:
    """The mean of images in [0, 1] cannot be 123: every image would look alike to the network."""
    net = used(WideResNet(WIDE))
    content = {**net.state_dict(), "mean": torch.tensor([125.3, 123.0, 113.9]), "std": torch.full((3,), 63.0)}
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"mean, std must be those of images in \[0, 1\].*of 0\.\.255"):
        load_classifier(tmp_path / "weights.pt")
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"`mean` must be that of images in \[0, 1\].*divided by 255"):
        load_classifier(tmp_path / "weights.pt", normalise=((125.3, 123.0, 113.9), (63.0, 62.1, 66.7)))
    with pytest.raises(ValueError, match="`mean` must be that of images"):
        Normalised(net, [125.3, 123.0, 113.9], [63.0, 62.1, 66.7])
    assert Normalised(net, [0.0] * 3, [1 / 255] * 3)(X).shape == (2, 10)


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
    assert set(LAYOUTS) == {"wide_resnet", "deepmind", "biased_wide_resnet", "cifar_resnet"}
    assert all(layout.configs for layout in LAYOUTS.values())
