"""Networks that are told the class of every image."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastpure as fp
from fastpure.checkpoints import load_denoiser, save_denoiser
from fastpure.checkpoints.edm import understood
from fastpure.checkpoints.edm_names import edm_names
from fastpure.nets import EDM
from tests.golden import relative_error

SMALL = {
    "ddpmpp": {"architecture": "ddpmpp", "image_size": 8, "nf": 8, "ch_mult": (1,), "n_blocks": 1},
    "adm": {"architecture": "adm", "image_size": 8, "model_channels": 8, "widths": (8,), "n_blocks": 1, "groups": 4},
}  # fmt: skip
STEP = tuple(np.array([value]) for value in (50.0, 50, 0.9, math.sqrt(0.19)))


def conditional(kind: str = "ddpmpp", **fields) -> fp.Denoiser:
    inner = {**SMALL["ddpmpp" if kind == "edm" else kind], "classes": 3, **fields}
    return fp.Denoiser.from_config(
        {"architecture": "edm", "network": inner} if kind == "edm" else inner, seed=1
    )


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def labels_of(denoiser: fp.Denoiser, n: int) -> Tensor:
    return {
        "index": torch.full((n,), 50),
        "continuous": torch.full((n,), 50.0),
        "sigma": torch.full((n,), 0.5),
    }[denoiser.time_input]


@pytest.mark.parametrize("kind", ["ddpmpp", "adm", "edm"])
def test_every_image_has_its_own_class(tmp_path, kind):
    denoiser = conditional(kind)
    assert (denoiser.n_classes, denoiser.null_class) == (3, False)
    x, classes = normal(3, 3, 8, 8), torch.tensor([2, 0, 2])
    together = denoiser(x, labels_of(denoiser, 3), classes)
    for i, label in enumerate(classes.tolist()):
        one = denoiser.for_class(label)
        assert one.n_classes == 0
        alone = one(x[i : i + 1], labels_of(denoiser, 1))
        assert relative_error(together[i : i + 1].detach(), alone) < 1e-5
    assert (
        relative_error(denoiser(x, labels_of(denoiser, 3), torch.tensor([1, 0, 2])), together.detach()) > 1e-3
    )
    again = load_denoiser(save_denoiser(denoiser, tmp_path / "one.safetensors"))
    assert again.describe() == denoiser.describe()
    assert again.n_classes == 3
    assert torch.equal(
        again(x, labels_of(denoiser, 3), classes), denoiser.frozen()(x, labels_of(denoiser, 3), classes)
    )
    fixed = load_denoiser(tmp_path / "one.safetensors", class_label=2)
    assert torch.equal(fixed(x, labels_of(denoiser, 3)), denoiser.for_class(2)(x, labels_of(denoiser, 3)))
    assert fixed.describe() == denoiser.for_class(2).describe()


@pytest.mark.parametrize("kind", ["ddpmpp", "adm", "edm"])
def test_one_class_purifies_with_what_is_computed_once_per_table(kind):
    denoiser = conditional(kind).for_class(1)
    method = fp.methods.diffpure(t=0.1, dt=0.05)
    if denoiser.time_input == "index":
        method = fp.methods.ddpm(t=0.002)
    purified = fp.Purifier(denoiser, method)(torch.rand(2, 3, 8, 8))
    other = fp.Purifier(conditional(kind).for_class(2), method)(torch.rand(2, 3, 8, 8))
    assert not torch.equal(purified, other)
    table = denoiser.conditioning(*STEP)
    x = normal(2, 3, 8, 8)
    if denoiser.time_input == "sigma":
        told, seen = torch.full((2,), math.sqrt(0.19) / 0.9), x / 0.9
    else:
        told, seen = labels_of(denoiser, 2), x
    assert relative_error(denoiser.noise_pred(x, table, 0), denoiser(seen, told)) < 1e-5


@pytest.mark.parametrize("kind", ["ddpmpp", "adm", "edm"])
def test_what_knows_no_classes_refuses_unless_trained_without_them(kind):
    denoiser = conditional(kind)
    remedy = r"needs no class.*denoiser\.for_class\(y\).*fp\.DiffusionClassifier"
    with pytest.raises(ValueError, match=remedy):
        fp.Purifier(denoiser, fp.methods.diffpure(t=0.1))
    with pytest.raises(ValueError, match=remedy):
        denoiser.conditioning(*STEP)
    with pytest.raises(ValueError, match=remedy):
        denoiser(normal(1, 3, 8, 8), labels_of(denoiser, 1))
    free = conditional(kind, null_class=True)
    x, labels = normal(2, 3, 8, 8), labels_of(free, 2)
    told = free(x, labels, torch.tensor([-1, 1]))
    assert relative_error(told[:1], free(x[:1], labels[:1])) < 1e-5
    assert relative_error(told[1:], free.for_class(1)(x[1:], labels[1:])) < 1e-5
    method = fp.methods.ddpm(t=0.002) if kind == "adm" else fp.methods.diffpure(t=0.1, dt=0.05)
    assert fp.Purifier(free, method)(torch.rand(1, 3, 8, 8)).isfinite().all()


def test_classes_are_checked():
    denoiser, x = conditional(), normal(2, 3, 8, 8)
    labels = labels_of(denoiser, 2)
    for classes, message in (
        (torch.tensor([0, 3]), r"`classes` must be in \[0, 2\], got 0 to 3"),
        (torch.tensor([0, -1]), r"`classes` must be in \[0, 2\], got -1 to 0"),
        (torch.tensor([0]), r"int64 of shape \[2\]"),
        (torch.tensor([0.0, 1.0]), r"int64 of shape \[2\]"),
    ):
        with pytest.raises(ValueError, match=message):
            denoiser(x, labels, classes)
    with pytest.raises(ValueError, match="`classes` must be None for a denoiser without classes"):
        denoiser.for_class(0)(x, labels, torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`class_label`"):
        denoiser.for_class(3)
    with pytest.raises(ValueError, match="class-conditional"):
        denoiser.for_class(0).for_class(0)
    with pytest.raises(ValueError, match="`null_class` must be False for a network without classes"):
        conditional(classes=None, null_class=True)


class Foreign(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([0.5, 1.0, 2.0]))

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        return self.scale[classes].view(-1, 1, 1, 1) * x


def test_somebody_elses_network():
    denoiser = fp.Denoiser.from_module(Foreign(), image_shape=(1, 2, 2), n_classes=3).eval()
    x = normal(2, 1, 2, 2)
    assert torch.equal(
        denoiser(x, torch.ones(2), torch.tensor([2, 0])), x * torch.tensor([2.0, 0.5]).view(2, 1, 1, 1)
    )
    one = denoiser.for_class(0)
    assert torch.equal(one(x, torch.ones(2)), 0.5 * x)
    assert fp.Purifier(one, fp.methods.diffpure(t=0.1, dt=0.05))(torch.rand(1, 1, 2, 2)).shape == (1, 1, 2, 2)
    assert torch.equal(denoiser.frozen()(x, torch.ones(2), torch.tensor([1, 1])), x)


def test_noise_and_clean_image_of_every_prediction():
    """All conventions of one and the same exact denoiser: x0 ~ N(m_y, 1)."""
    means = torch.tensor([0.5, -1.0], dtype=torch.float64)

    class Exact(nn.Module):
        def __init__(self, prediction: str, time_input: str) -> None:
            super().__init__()
            self.prediction, self.time_input = prediction, time_input

        def forward(self, x: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
            if self.time_input == "sigma":
                ratio = labels.view(-1, 1, 1, 1)
                alpha = torch.ones_like(ratio)
            else:
                t = labels.double().view(-1, 1, 1, 1) / 999
                alpha = torch.exp(-0.5 * (0.1 * t + 9.95 * t * t))
                ratio = (1 - alpha**2).sqrt() / alpha
            y, m = x / alpha, means[classes].view(-1, 1, 1, 1)
            clean = (y + ratio**2 * m) / (1 + ratio**2)
            noise = (y - clean) / ratio
            return {"eps": noise, "x0": clean, "v": alpha * noise - ratio * alpha * clean}[self.prediction]

    x, sigma, classes = normal(2, 1, 2, 2).double(), torch.tensor([0.3, 4.0]).double(), torch.tensor([1, 0])
    r, m = sigma.view(-1, 1, 1, 1), means[classes].view(-1, 1, 1, 1)
    expected = (x + r**2 * m) / (1 + r**2)
    for prediction, time_input in (
        ("eps", "sigma"),
        ("x0", "sigma"),
        ("eps", "continuous"),
        ("v", "continuous"),
    ):
        denoiser = fp.Denoiser.from_module(
            Exact(prediction, time_input).double(), prediction, time_input, (1, 2, 2), n_classes=2
        ).eval()
        # Labels are float32 where the network has no weights of its own: 999 t loses digits.
        assert relative_error(denoiser.clean_image(x, sigma, classes), expected) < 1e-5
        assert relative_error(denoiser.noise_at(x, sigma, classes), (x - expected) / r) < 1e-5


def test_dhariwal_adds_the_class_to_the_time_embedding(tmp_path):
    """EDM's DhariwalUNet, by hand: SiLU(map_layer1 SiLU(map_layer0 s) + map_label one_hot), then the affine maps."""
    settings = {"precond": "EDMPrecond", "model_type": "DhariwalUNet", "img_resolution": 8, "img_channels": 3,
                "label_dim": 5, "model_channels": 32, "channel_mult": [1], "num_blocks": 1,
                "attn_resolutions": [], "dropout": 0.0}  # fmt: skip
    with torch.device("meta"):
        network = EDM(understood(settings, "test")[0])
    shapes = {name: shape for entry in edm_names(network).values() for name, shape in entry.theirs.items()}
    weights = {name: 0.3 * normal(*shape, seed=i).double() for i, (name, shape) in enumerate(shapes.items())}
    torch.save({f"model.{name}": value for name, value in weights.items()}, tmp_path / "net.pt")
    for dropout, free in ((None, False), (0, False), (0.1, True)):
        said = settings if dropout is None else {**settings, "label_dropout": dropout}
        denoiser = load_denoiser(tmp_path / "net.pt", config=said)
        assert (denoiser.n_classes, denoiser.null_class) == (5, free)
    with pytest.raises(fp.errors.CheckpointError, match="label_dropout"):
        load_denoiser(tmp_path / "net.pt", config={**settings, "label_dropout": 2})
    labels, classes = torch.tensor([0.2, 0.7]).double(), torch.tensor([3, 1])
    frequencies = 10000.0 ** (-torch.arange(16, dtype=torch.float64) / 16)
    angles = labels[:, None] * frequencies
    h = torch.cat([angles.cos(), angles.sin()], 1)
    h = F.silu(h @ weights["map_layer0.weight"].T + weights["map_layer0.bias"])
    h = h @ weights["map_layer1.weight"].T + weights["map_layer1.bias"]
    h = F.silu(h + F.one_hot(classes, 5).double() @ weights["map_label.weight"].T)
    name = "enc.8x8_block0.affine"
    rows = denoiser.cast(torch.float64).network.network.embedding(labels, classes)
    scale, shift = (h @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]).chunk(2, 1)
    # The first block's rows are six times 32 numbers, of which the last two are 1 + scale and shift.
    assert relative_error(rows[:, 128:160], 1 + scale) < 1e-12
    assert relative_error(rows[:, 160:192], shift) < 1e-12
