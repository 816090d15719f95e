"""Classifiers: constants stay constants, training mode is refused, files say what is wrong with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fastpure.classifiers import (
    CONFIGS,
    ResNet,
    ResNetConfig,
    call_frozen,
    load_classifier,
    require_eval,
    save_classifier,
)
from fastpure.data import load_dataset
from fastpure.errors import CheckpointError


def _resnet(name: str = "resnet-digits", seed: int = 0) -> ResNet:
    torch.manual_seed(seed)
    net = ResNet(CONFIGS[name]).train()
    net(torch.rand(64, *CONFIGS[name].image_shape))  # running statistics that are not the initial ones
    return net.eval()


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_resnet_maps_unit_images_to_logits(name: str) -> None:
    config = CONFIGS[name]
    logits = _resnet(name)(torch.rand(3, *config.image_shape))
    assert logits.shape == (3, config.classes)
    assert logits.isfinite().all()


def test_normalisation_is_inside() -> None:
    plain = _resnet()
    shape, widths = (1, 8, 8), (16, 32)
    shifted = ResNet(ResNetConfig(shape, 10, widths, mean=(0.25,), std=(0.125,))).eval()
    shifted.load_state_dict(plain.state_dict())
    x = torch.rand(4, 1, 8, 8)
    # (y - 0.25) / 0.125 == (x - 0.5) / 0.5
    torch.testing.assert_close(shifted(0.25 + 0.25 * (x - 0.5)), plain(x))


def test_resnet_is_piecewise_linear() -> None:
    """The closed-form Hessian of the guidance needs it: along a short segment logits are exactly affine."""
    net, x, direction = _resnet().double(), torch.rand(5, 1, 8, 8).double(), torch.randn(5, 1, 8, 8).double()
    step = 1e-7 * direction
    bend = net(x + step) - 2 * net(x) + net(x - step)
    assert bend.abs().max() < 1e-12


def test_call_frozen_gradient_is_the_ordinary_one_and_touches_no_weight() -> None:
    net = _resnet()
    x = torch.rand(4, 1, 8, 8, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).logsumexp(1).sum(), x)
    call_frozen(net, x).logsumexp(1).sum().backward()
    torch.testing.assert_close(x.grad, expected, rtol=1e-5, atol=1e-7)
    assert all(weight.grad is None and weight.requires_grad for weight in net.parameters())
    # a plain call would have filled .grad: the helper is what prevents it
    net(x.detach().requires_grad_()).logsumexp(1).sum().backward()
    assert all(weight.grad is not None for weight in net.parameters())


def test_call_frozen_is_differentiable_twice() -> None:
    net = _resnet().double()
    x = torch.rand(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    products = []
    for call in (lambda: net(x), lambda: call_frozen(net, x)):
        (gradient,) = torch.autograd.grad(call().log_softmax(1).amax(1).sum(), x, create_graph=True)
        products.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(products[0], products[1])
    assert products[0].abs().max() > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_call_frozen_handles_shared_weights_and_frozen_modules() -> None:
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(3, 4, requires_grad=True)
    torch.testing.assert_close(call_frozen(tied, x), tied(x))
    call_frozen(tied, x).sum().backward()
    assert layer.weight.grad is None
    frozen = torch.jit.script(nn.Linear(4, 2).requires_grad_(False))
    assert call_frozen(frozen, x).shape == (3, 2)
    with pytest.raises(TypeError, match="requires_grad_"):
        call_frozen(torch.jit.script(nn.Linear(4, 2)), x)


def test_require_eval_finds_the_module_in_training_mode() -> None:
    net = _resnet()
    assert require_eval(net, "classifier") is net
    net.blocks[1].norm2.train()
    with pytest.raises(
        ValueError, match=r"`classifier` must be in evaluation mode.*blocks\.1\.norm2 \(BatchNorm2d\)"
    ):
        require_eval(net, "classifier")
    with pytest.raises(ValueError, match="the module itself"):
        require_eval(nn.Dropout(), "classifier")
    with pytest.raises(TypeError, match=r"`classifier` must be a torch\.nn\.Module, got function"):
        require_eval(lambda x: x, "classifier")  # type: ignore[arg-type]


def test_save_and_load(tmp_path: Path) -> None:
    net, x = _resnet(seed=3), torch.rand(2, 1, 8, 8)
    path = save_classifier(net, tmp_path / "deep" / "net.safetensors", notes={"made": "by a test"})
    loaded = load_classifier(path)
    torch.testing.assert_close(loaded(x), net(x), rtol=0, atol=0)
    assert not loaded.training
    assert not any(weight.requires_grad for weight in loaded.parameters())
    assert [file.name for file in path.parent.iterdir()] == ["net.safetensors"]


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_classifier(_resnet(), tmp_path / "net.safetensors")
    before = path.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_classifier(_resnet(seed=1), path)
    assert path.read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_load_classifier_takes_modules_as_they_are() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    assert load_classifier(net) is net
    with pytest.raises(ValueError, match="`source` must be in evaluation mode"):
        load_classifier(nn.Sequential(nn.Dropout()))
    with pytest.raises(TypeError, match=r"`source` must be a name, a path or a torch\.nn\.Module, got int"):
        load_classifier(3)  # type: ignore[arg-type]


def test_wrong_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"neither a file nor a bundled classifier \(bundled: digits"):
        load_classifier("digit")
    path = save_classifier(_resnet(), tmp_path / "net.safetensors")
    half = tmp_path / "half.safetensors"
    half.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_classifier(half)
    weights = load_file(path)
    foreign = tmp_path / "foreign.safetensors"
    save_file(weights, foreign)
    with pytest.raises(CheckpointError, match="of no known classifier layout"):
        load_classifier(foreign)


@pytest.mark.parametrize("change", ["missing", "shape", "config", "version", "nan"])
def test_weights_that_do_not_fit_are_refused(tmp_path: Path, change: str) -> None:
    from safetensors import safe_open

    path = save_classifier(_resnet(), tmp_path / "net.safetensors")
    weights = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    if change == "missing":
        del weights["head.bias"]
    elif change == "shape":
        weights["head.bias"] = weights["head.bias"][:9].clone()
    elif change == "config":
        metadata["config"] = metadata["config"].replace('"classes"', '"klasses"')
    elif change == "version":
        metadata["version"] = "2"
    else:
        weights["head.bias"][3] = float("nan")
    save_file(weights, path, metadata)
    with pytest.raises(CheckpointError, match=r"do not fit|version 2|NaN or Inf in head\.bias"):
        load_classifier(path)


@pytest.mark.parametrize(
    "change",
    [
        {"classes": 1},
        {"widths": ()},
        {"widths": (8, 8, 8, 8, 8)},
        {"mean": (0.5, 0.5)},
        {"std": (0.0,)},
        {"blocks": 0},
    ],
)
def test_impossible_configurations_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="`"):
        ResNetConfig(**{"image_shape": (1, 8, 8), "classes": 10, "widths": (16,), **change})  # type: ignore[arg-type]


def test_bundled_digits_classifier_reaches_its_accuracy() -> None:
    test = load_dataset("digits", "test")
    with torch.no_grad():
        accuracy = (load_classifier("digits")(test.images).argmax(1) == test.labels).float().mean().item()
    assert accuracy >= 0.97
