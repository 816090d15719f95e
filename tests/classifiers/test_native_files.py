"""fastpure's own classifier files: every architecture, half precision, float64."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fastpure.classifiers import CifarResNet, CifarResNetConfig, WideResNet, load_classifier, save_classifier
from tests.classifiers.helpers import DEEPMIND, MEAN, STD, WIDE, X, used


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
