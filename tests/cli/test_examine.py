"""`fastpure doctor --classifier` finds the input that a network wants; `convert --classifier` writes it down."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from fastpure import load_classifier
from fastpure.classifiers import WideResNet, WideResNetConfig, report_of
from fastpure.classifiers.inputs import best, presentations, try_inputs
from fastpure.cli.main import app
from tests.classifiers.helpers import WIDE, X, used


def run(*words: str):
    return CliRunner().invoke(app, list(words))


def pictures(n: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    """Colours of three classes that a network which compares two absolute values of the shown image tells apart."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % 3
    centres = torch.tensor([[0.2, 0.5, 0.8], [0.8, 0.5, 0.2], [0.5, 0.5, 0.5]])
    noise = 0.05 * torch.randn(n, 3, 8, 8, generator=generator)
    return (centres[labels][:, :, None, None] + noise).clamp(0, 1), labels


class Wants(nn.Module):
    """Right only if the mean of each channel is where the presentation puts it."""

    def __init__(self, presentation) -> None:
        super().__init__()
        means = torch.tensor([[0.2, 0.5, 0.8], [0.8, 0.5, 0.2], [0.5, 0.5, 0.5]])
        self.centres = presentation(means[:, :, None, None])[:, :, 0, 0]
        self.scale = float((self.centres[0] - self.centres[2]).abs().max())

    def forward(self, x):
        distance = (x.mean((2, 3))[:, None] - self.centres).div(self.scale).square().sum(2)
        # Far from every centre, which is what the wrong range means, class 0 whatever is shown.
        far = (distance.min(1).values > 0.15)[:, None] * torch.tensor([1e6, 0.0, 0.0])
        return far - distance


@pytest.mark.parametrize("wanted", presentations(3), ids=lambda one: one.name)
def test_the_input_that_a_network_wants_is_found(wanted):
    images, labels = pictures()
    tried = try_inputs(Wants(wanted).eval(), images, labels)
    _, found = best(tried, 3)
    assert found is not None
    assert tried[0].accuracy == 1.0
    full = [one.presentation.name for one in tried if one.accuracy == 1.0]
    assert wanted.name in full
    if (
        "cifar" not in wanted.name and "imagenet" not in wanted.name
    ):  # whose numbers differ by less than the noise
        assert full == [wanted.name]


def test_no_better_than_chance_is_said():
    images, labels = pictures()
    sentence, found = best(try_inputs(lambda x: torch.zeros(len(x), 3), images, labels), 3)
    assert found is None
    assert sentence.startswith("none fits: ")
    numberless = try_inputs(lambda x: torch.full((len(x), 3), float("nan")), images, labels)
    assert {one.right for one in numberless} == {0}


def test_networks_that_cannot_answer_are_named():
    images, labels = pictures(6)
    with pytest.raises(ValueError, match="at least 3 classes"):
        try_inputs(lambda x: torch.zeros(len(x), 2), images, labels)
    with pytest.raises(ValueError, match="returns logits"):
        try_inputs(lambda x: (x,), images, labels)
    with pytest.raises(ValueError, match="`data` must be of images that the network takes"):
        try_inputs(nn.Linear(3, 3).eval(), images, labels)


def test_doctor_on_a_bundled_classifier():
    result = run("doctor", "--classifier", "digits", "--data", "digits", "--n", "100")
    assert result.exit_code == 0, result.output
    assert "fits: [0, 1]" in result.output
    report = json.loads(
        run("doctor", "--classifier", "digits", "--data", "digits", "--n", "50", "--json").output
    )
    rows = report["inputs"]["rows"]
    assert rows[0]["input"] == "[0, 1]"
    assert rows[0]["accuracy"] > 0.9
    assert report["report"]["format"] == "native"
    assert "stands in the file" in run("doctor", "--classifier", "digits").output


def trained(tmp_path) -> tuple[str, str]:
    """A little wide ResNet fitted to the range 0..255, and its images as an archive."""
    torch.manual_seed(0)
    images, labels = pictures(60)
    images = nn.functional.interpolate(images, size=(8, 8))
    network = WideResNet(WideResNetConfig(depth=10, widen=1, classes=3, image_shape=(3, 8, 8))).train()
    optimizer = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(12):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(255 * images), labels).backward()
        optimizer.step()
    weights = network.eval().state_dict()
    torch.save({"state_dict": weights}, tmp_path / "net.pt")
    np.savez(tmp_path / "images.npz", x=images.numpy(), y=labels.numpy())
    return str(tmp_path / "net.pt"), str(tmp_path / "images.npz")


def test_doctor_says_what_a_published_file_wants(tmp_path):
    file, images = trained(tmp_path)
    result = run("doctor", "--classifier", file, "--data", "arrays", "--data-path", images)
    assert result.exit_code == 0, result.output
    assert "fits: [0, 255]" in result.output
    assert "normalise=((0.0, 0.0, 0.0), (0.003922, 0.003922, 0.003922))" in result.output


def test_convert_writes_the_normalisation_down(tmp_path):
    net = used(WideResNet(WIDE))
    torch.save(
        {"state_dict": net.state_dict(), "state_dict_ema": used(WideResNet(WIDE), 1).state_dict()},
        tmp_path / "a.pt",
    )
    target = tmp_path / "out.safetensors"
    words = (
        "convert",
        "--classifier",
        str(tmp_path / "a.pt"),
        str(target),
        "--weights",
        "raw",
        "--normalise",
    )
    result = run(*words, "127.5/255,0.5,0.5:0.25,0.25,0.25")
    assert result.exit_code == 0, result.output
    assert "raw (state_dict)" in result.output
    loaded = load_classifier(target)
    torch.testing.assert_close(loaded(X), net((X - 0.5) / 0.25))
    assert "source_weights: raw (state_dict)" in report_of(loaded).notes
    with pytest.raises(ValueError, match="`--normalise` must be a name, or numbers"):
        raise run(
            "convert", "--classifier", "x", str(tmp_path / "b.safetensors"), "--normalise", "a/b"
        ).exception
    missing = run("convert", "--classifier", str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"))
    assert "`normalise` must be given" in str(missing.exception)
    for option in ("--normalise", "--activation"):
        unused = run("convert", "digits", str(tmp_path / "b.safetensors"), option, "none")
        assert "has no effect without --classifier" in str(unused.exception)


def test_grey_images_have_their_own_list():
    assert {one.name for one in presentations(1)} == {"[0, 1]", "[0, 255]", "[-1, 1]", "mnist"}
