"""Files that do not fit, hostile and damaged ones, and options of no use are refused with the reason."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastpure.classifiers import WideResNet, load_classifier, save_classifier
from fastpure.errors import CheckpointError
from tests.classifiers.helpers import WIDE, used


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
        load_classifier(file, normalise="none")


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
        ([torch.zeros(2)], "expected tensors by name, .*found a list"),
        ({}, "expected tensors by name, .*found nothing"),
        ({"best": {"a": torch.zeros(1)}, "epoch": 3}, "of no known classifier layout"),
        ({"best": 4, "epoch": 3}, "expected tensors by name, or entries .*found 2 entries: best, epoch"),
        ({"net": {"a": torch.zeros(1)}, "model": {"a": torch.zeros(1)}}, "found 2: net, model"),
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
        load_classifier(foreign, normalise="none", activation="gelu")
