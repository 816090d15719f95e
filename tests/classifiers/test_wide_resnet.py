"""Wide ResNets: the published names and shapes, normalisation where it belongs, the pre-activation order."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from fastpure.classifiers import WIDE_RESNETS, WideResNet, WideResNetConfig
from tests.golden import config as golden

TINY = WideResNetConfig(depth=10, widen=1, image_shape=(3, 8, 8))
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def tiny(config: WideResNetConfig = TINY, seed: int = 0) -> WideResNet:
    torch.manual_seed(seed)
    net = WideResNet(config).train()
    net(torch.rand(64, *config.image_shape))  # running statistics that are not the initial ones
    return net.eval()


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("wrn-28-10", "keys_robustbench_cifar10_standard_wrn28_10"),
        ("wrn-70-16-dropout", "keys_diffpure_cifar10_wrn70_16_dropout"),
    ],
)
def test_names_and_shapes_are_the_published_ones(name: str, file: str) -> None:
    with torch.device("meta"):
        net = WideResNet(WIDE_RESNETS[name])
    reference = golden(file)
    ours = [
        [key, list(value.shape), str(value.dtype).split(".")[1]] for key, value in net.state_dict().items()
    ]
    assert ours == reference["entries"]
    assert sum(weight.numel() for weight in net.parameters()) == reference["param_count"]


def test_only_the_networks_said_to_normalise_do() -> None:
    assert WIDE_RESNETS["wrn-28-10"].mean is None
    assert WIDE_RESNETS["wrn-70-16"].mean is None
    assert (WIDE_RESNETS["wrn-70-16-dropout"].mean, WIDE_RESNETS["wrn-70-16-dropout"].std) == (MEAN, STD)


def test_normalisation_is_inside_and_not_in_the_weights() -> None:
    raw = tiny()
    inside = WideResNet(replace(TINY, mean=MEAN, std=STD)).eval()
    inside.load_state_dict(raw.state_dict())
    x = torch.rand(4, 3, 8, 8)
    mean, std = torch.tensor(MEAN).view(1, 3, 1, 1), torch.tensor(STD).view(1, 3, 1, 1)
    torch.testing.assert_close(inside(x), raw((x - mean) / std))


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_forward_is_the_paper_s(activation: str) -> None:
    """Against a loop written from the paper: pre-activation, shortcut from the activated input, ends pooled."""
    config = replace(TINY, depth=16, widen=2, activation=activation)
    net = tiny(config)
    weights = net.state_dict()
    act = {"relu": torch.relu, "silu": lambda v: v * torch.sigmoid(v)}[activation]

    def norm(v: torch.Tensor, name: str) -> torch.Tensor:
        mean, var = weights[f"{name}.running_mean"], weights[f"{name}.running_var"]
        scale = weights[f"{name}.weight"] / (var + 1e-5).sqrt()
        return (v - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + weights[f"{name}.bias"].view(
            1, -1, 1, 1
        )

    x = torch.rand(3, 3, 8, 8)
    h = F.conv2d(x, weights["conv1.weight"], padding=1)
    for stage in (1, 2, 3):
        for index in range(config.blocks):
            block, stride = f"block{stage}.layer.{index}", 2 if stage > 1 and index == 0 else 1
            a = act(norm(h, f"{block}.bn1"))
            out = F.conv2d(a, weights[f"{block}.conv1.weight"], stride=stride, padding=1)
            out = F.conv2d(act(norm(out, f"{block}.bn2")), weights[f"{block}.conv2.weight"], padding=1)
            short = f"{block}.convShortcut.weight"
            h = out + (F.conv2d(a, weights[short], stride=stride) if short in weights else h)
    logits = F.linear(act(norm(h, "bn1")).mean((2, 3)), weights["fc.weight"], weights["fc.bias"])
    torch.testing.assert_close(net(x), logits, rtol=1e-4, atol=1e-5)


def test_dropout_is_silent_in_evaluation_mode() -> None:
    net = tiny(replace(TINY, dropout=0.5))
    x = torch.rand(2, 3, 8, 8)
    assert torch.equal(net(x), net(x))
    net.train()
    assert not torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"depth": 29}, "`depth` must be 6 n"),
        ({"depth": 4}, r"`depth` must be an integer in \[10,"),
        ({"widen": 0}, "`widen`"),
        ({"classes": 1}, "`classes`"),
        ({"image_shape": (3, 30, 32)}, "divisible by 4"),
        ({"image_shape": (3, 32)}, "`image_shape` must be"),
        ({"dropout": 1.0}, "`dropout`"),
        ({"activation": "tanh"}, "`activation` must be one of 'relu', 'silu'"),
        ({"mean": MEAN}, "both or neither"),
        ({"mean": (0.5,), "std": (0.5,)}, "3 numbers each"),
        ({"mean": MEAN, "std": (0.2, 0.0, 0.2)}, "`std`"),
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        WideResNetConfig(**change)  # type: ignore[arg-type]
