"""torchvision, timm and RobustBench by name. Nothing is downloaded: weights are random files put in place."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastpure.classifiers import (
    CIFAR_RESNETS,
    WIDE_RESNETS,
    CifarResNet,
    Normalised,
    WideResNet,
    load_classifier,
    report_of,
)
from fastpure.errors import CheckpointError
from tests.classifiers.helpers import used

SCHEMAS = torch.library.Library("torchvision", "FRAGMENT")  # operators live as long as their library object


@pytest.fixture(scope="module")
def torchvision():
    """torchvision; its operators get empty schemas where its build does not match torch (CPU-only machines)."""
    try:
        import torchvision
    except ImportError:
        pytest.skip("torchvision is not installed")
    except RuntimeError:
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        for operator in ("nms", "qnms"):
            SCHEMAS.define(f"{operator}{schema}")
        for name in [key for key in sys.modules if key.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        import torchvision
    return torchvision


@pytest.fixture(scope="module")
def robustbench(torchvision):
    if importlib.util.find_spec("robustbench") is None:
        pytest.skip("robustbench is not installed")
    pytest.importorskip("timm")
    pytest.importorskip("pkg_resources")


def put(weights: dict, folder: Path, dataset: str, threat_model: str, name: str) -> Path:
    """Where RobustBench looks before it downloads."""
    file = folder / dataset / threat_model / f"{name}.pt"
    file.parent.mkdir(parents=True)
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, file)
    return file


def test_robustbench_by_name_and_our_network_agree(robustbench, tmp_path: Path) -> None:
    """'Standard' through RobustBench and the same file through our loader: one network, no normalisation."""
    before = {key for key in sys.modules if key.split(".")[0] == "autoattack"}
    net = used(WideResNet(WIDE_RESNETS["wrn-28-10"]))
    file = put(net.state_dict(), tmp_path, "cifar10", "Linf", "Standard")
    theirs = load_classifier(
        "robustbench:Standard", dataset="cifar10", threat_model="Linf", model_dir=tmp_path
    )
    assert {key for key in sys.modules if key.split(".")[0] == "autoattack"} == before, "the alias is gone"
    assert not theirs.training
    assert not any(weight.requires_grad for weight in theirs.parameters())
    x = torch.rand(1, 3, 32, 32)
    expected = theirs(x)
    torch.testing.assert_close(
        load_classifier(file, normalise="none")(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
    )


def test_our_layouts_compute_what_robustbench_s_networks_do(robustbench, tmp_path: Path) -> None:
    from fastpure.classifiers.robustbench import import_robustbench

    import_robustbench()
    from robustbench.model_zoo.architectures import dm_wide_resnet, resnet, wide_resnet

    x = torch.rand(2, 3, 32, 32)
    cases = [
        (wide_resnet.WideResNet(depth=16, widen_factor=2), {"normalise": "none"}),
        (wide_resnet.WideResNet(depth=16, widen_factor=2, sub_block1=True), {"normalise": "none"}),
        (
            dm_wide_resnet.DMWideResNet(depth=16, width=2, activation_fn=nn.SiLU),
            {"activation": "silu", "normalise": "cifar10"},
        ),
        (
            dm_wide_resnet.DMWideResNet(depth=16, width=2, activation_fn=nn.ReLU),
            {"activation": "relu", "normalise": "cifar10"},
        ),
        (resnet.ResNet(resnet.BasicBlock, [1, 2, 1, 1]), {"normalise": "none"}),
        (resnet.ResNet(resnet.Bottleneck, [1, 1, 2, 1]), {"normalise": "none"}),
        (resnet.PreActResNet18(), {"normalise": "none", "architecture": "preact-resnet-18"}),
    ]
    for net, options in cases:
        net = used(net)
        torch.save(net.state_dict(), tmp_path / "weights.pt")
        loaded = load_classifier(tmp_path / "weights.pt", **options)
        expected = net(x)
        error = (loaded(x) - expected).abs().max() / expected.abs().max()
        assert error < 1e-5, (type(net).__name__, options)


def test_robustbench_refuses_in_words(robustbench, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=r"a RobustBench model for cifar10 Linf .*Did you mean .*Standard"):
        load_classifier("robustbench:Standart")
    with pytest.raises(ValueError, match="`dataset` must be one of 'cifar10'"):
        load_classifier("robustbench:Standard", dataset="mnist")
    with pytest.raises(ValueError, match="`threat_model` must be one of 'Linf'"):
        load_classifier("robustbench:Standard", threat_model="L1")
    with pytest.raises(ValueError, match="`normalise` must be left out for robustbench"):
        load_classifier("robustbench:Standard", normalise="cifar10")
    file = put({"fc.bias": torch.zeros(3)}, tmp_path, "cifar10", "Linf", "Standard")
    with pytest.raises(CheckpointError, match=r"Standard\.pt is damaged or does not fit"):
        load_classifier("robustbench:Standard", model_dir=tmp_path)
    file.unlink()
    import robustbench.utils

    def offline(*arguments: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(robustbench.utils, "download_gdrive_new", offline)
    with pytest.raises(CheckpointError, match="is not there and was not downloaded: no network"):
        load_classifier("robustbench:Standard", model_dir=tmp_path)


def test_missing_packages_are_named(monkeypatch) -> None:
    from fastpure.classifiers import robustbench

    real = importlib.util.find_spec
    for absent, message in (
        ("robustbench", r"robustbench is not installed: pip install 'fastpure\[robustbench\]'"),
        ("pkg_resources", r"needs pkg_resources: pip install 'setuptools<81'"),
    ):
        present = {"robustbench", "pkg_resources"} - {absent}
        monkeypatch.setattr(
            importlib.util,
            "find_spec",
            lambda name, absent=absent, present=present: (
                None if name == absent else object() if name in present else real(name)
            ),
        )
        monkeypatch.delitem(sys.modules, "robustbench", raising=False)
        with pytest.raises(CheckpointError, match=message):
            robustbench.import_robustbench()


def test_an_import_that_fails_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    """A robustbench that needs `autoattack`, finds the alias, then breaks: no half-imported module stays."""
    from fastpure.classifiers import robustbench

    for package, content in (
        ("robustbench", "import autoattack, autoattack.state\nraise RuntimeError('broken inside')"),
        ("pyautoattack", "from . import state"),
        ("pkg_resources", ""),
    ):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text(content)
    (tmp_path / "pyautoattack" / "state.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    gone = ("robustbench", "pyautoattack", "autoattack", "pkg_resources")
    for key in [key for key in sys.modules if key.split(".")[0] in gone]:
        monkeypatch.delitem(sys.modules, key)
    with pytest.raises(CheckpointError, match="robustbench cannot be imported: broken inside"):
        robustbench.import_robustbench()
    assert "robustbench" not in sys.modules
    assert "autoattack" not in sys.modules
    assert "autoattack.state" not in sys.modules
    for key in [key for key in sys.modules if key.split(".")[0] in ("pyautoattack", "pkg_resources")]:
        del sys.modules[key]  # by monkeypatch it would come back for the tests that follow


def test_torchvision_by_name_with_local_weights(torchvision, tmp_path: Path) -> None:
    net = used(torchvision.models.get_model("resnet18", weights=None))
    file = tmp_path / "resnet18.pt"
    torch.save(net.state_dict(), file)
    loaded = load_classifier("torchvision:resnet18", weights=file)
    assert isinstance(loaded, Normalised)
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    expected = net((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    assert torch.equal(load_classifier("torchvision:resnet18", weights=file, normalise="none")(x), net(x))
    with pytest.raises(ValueError, match=r"`weights` must be the file of the weights, or 'pretrained'"):
        load_classifier("torchvision:resnet18")
    with pytest.raises(ValueError, match=r"a network of torchvision .*Did you mean .*resnet18"):
        load_classifier("torchvision:resnet17", weights=file)
    torch.save({**net.state_dict(), "fc.bias": torch.zeros(3)}, file)
    with pytest.raises(
        CheckpointError, match=r"1 of another shape: fc\.bias \(expected \[1000\], found \[3\]\)"
    ):
        load_classifier("torchvision:resnet18", weights=file)
    with pytest.raises(CheckpointError, match="torchvision's layout"):
        load_classifier(file)


def test_timm_by_name_with_local_weights(torchvision, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    net = used(timm.create_model("resnet18", pretrained=False))
    file = tmp_path / "resnet18.pt"
    torch.save(net.state_dict(), file)
    loaded = load_classifier("timm:resnet18", weights=file)
    x = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
    expected = net((x - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1))
    torch.testing.assert_close(loaded(x), expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    with pytest.raises(ValueError, match="a network of timm"):
        load_classifier("timm:resnet17x", weights=file)


HALVES = ((0.5,) * 3, (0.5,) * 3)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.mark.parametrize(
    ("name", "pair"), [("efficientnet_v2_s", IMAGENET), ("efficientnet_v2_l", HALVES), ("vgg16", IMAGENET)]
)
def test_torchvision_says_what_its_weights_see(torchvision, name: str, pair) -> None:
    """Not all see ImageNet's mean and deviation; vgg16 has a set without classifier that sees bytes."""
    from fastpure.classifiers.external import EXTERNAL, Asked

    with torch.device("meta"):
        built = EXTERNAL["torchvision"](Asked(name))
    assert (built.normalisation, built.unsaid) == (pair, "")


@pytest.mark.parametrize("name", ["inception_v3", "googlenet"])
def test_networks_that_transform_their_input_where_torchvision_downloads_them(
    torchvision, tmp_path: Path, name: str
) -> None:
    """With its own weights torchvision makes [-1, 1] of ImageNet's normalisation; built without them it does not."""
    file = tmp_path / "weights.pt"
    net = torchvision.models.get_model(name, weights=None, init_weights=False, transform_input=True)
    torch.save(used(net).state_dict(), file)
    source = f"torchvision:{name}"
    with pytest.raises(ValueError, match=r"`normalise` must be given for a file of torchvision:.*\[-1, 1\]"):
        load_classifier(source, weights=file)
    x = torch.rand(1, 3, 96, 96)
    mean, std = (torch.tensor(part).view(1, 3, 1, 1) for part in IMAGENET)
    expected = net((x - mean) / std)  # what a download of the same weights answers
    found = load_classifier(source, weights=file, normalise=HALVES)(x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_torchvision_s_own_weights_by_name(torchvision, monkeypatch) -> None:
    seen = []
    build = torchvision.models.get_model
    monkeypatch.setattr(
        torchvision.models, "get_model", lambda name, weights: seen.append(weights) or build(name)
    )
    for weights, name in (
        ("pretrained", "IMAGENET1K_V2"),
        (("pretrained", "IMAGENET1K_V1"), "IMAGENET1K_V1"),
    ):
        loaded = load_classifier("torchvision:resnet50", weights=weights)
        assert seen[-1].name == name
        assert report_of(loaded).weights == f"as downloaded ({name})"
    with pytest.raises(ValueError, match=r"'pretrained' with one of IMAGENET1K_V1, IMAGENET1K_V2"):
        load_classifier("torchvision:resnet50", weights=("pretrained", "ema"))


def test_another_number_of_classes_is_named(torchvision, tmp_path: Path) -> None:
    net = torchvision.models.get_model("resnet18", weights=None, num_classes=7)
    torch.save(used(net).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(CheckpointError, match=r"fc\.weight.*For 7 classes give num_classes"):
        load_classifier("torchvision:resnet18", weights=tmp_path / "seven.pt")


def test_weights_of_timm_that_see_different_things_are_named(torchvision, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = tmp_path / "weights.pt"
    torch.save(used(timm.create_model("tf_efficientnet_b0")).state_dict(), file)
    with pytest.raises(ValueError, match=r"`normalise` must be given for .*\(0\.5, 0\.5, 0\.5\) of ap_in1k"):
        load_classifier("timm:tf_efficientnet_b0", weights=file)
    for name, pair in (("ap_in1k", HALVES), ("aa_in1k", IMAGENET)):
        loaded = load_classifier(f"timm:tf_efficientnet_b0.{name}", weights=file)
        assert [tuple(part.flatten().tolist()) for part in (loaded.mean, loaded.std)] == [
            pytest.approx(part) for part in pair
        ]
    with pytest.raises(ValueError, match=r"'pretrained' alone for timm.*timm:NAME\.TAG"):
        load_classifier("timm:resnet18", weights=("pretrained", "a1_in1k"))


def test_a_normalisation_in_a_file_is_not_overruled(torchvision, tmp_path: Path) -> None:
    net = used(torchvision.models.get_model("resnet18", weights=None))
    pair = {"mean": torch.full((3,), 0.5), "std": torch.full((3,), 0.5)}
    torch.save({**net.state_dict(), **pair}, tmp_path / "weights.pt")
    assert load_classifier("torchvision:resnet18", weights=tmp_path / "weights.pt").mean.max() == 0.5
    with pytest.raises(ValueError, match="`normalise` must be None, since"):
        load_classifier("torchvision:resnet18", weights=tmp_path / "weights.pt", normalise="imagenet")


def test_an_absent_library_is_named(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(CheckpointError, match=r"timm is not installed .*pip install timm"):
        load_classifier("timm:resnet18", weights=tmp_path / "x.pt")


def test_named_resnets_have_the_known_sizes() -> None:
    sizes = {"resnet-18": 11_173_962, "resnet-34": 21_282_122, "resnet-50": 23_520_842}
    for name, count in sizes.items():
        with torch.device("meta"):
            net = CifarResNet(CIFAR_RESNETS[name])
        assert sum(weight.numel() for weight in net.parameters()) == count
