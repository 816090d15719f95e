"""Published configurations: constants as specified, resolved by name, printed whole, and runnable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks import ATTACKS, PGD
from fastpure.data import Dataset
from fastpure.methods import METHODS
from fastpure.presets import TAGS, AttackSpec, DataSpec, MethodSpec, Preset, Presets, Published, parts
from fastpure.purify import ResizedPurifier

NAMES = sorted(fp.presets)


class Guide(nn.Module):
    """A classifier of images of any size, with features."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.mean((2, 3)))

    def features_and_logits(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pooled = x.mean((2, 3))
        return pooled, self.head(pooled)


@pytest.mark.parametrize(
    ("name", "first", "last", "calls"),
    [
        # (t, h) -> (a, b) of methods.md section 9, and the number of network calls
        ("coup-cifar10-linf", (1.001045, -0.0064896244), (1.0000593505, -0.0113205805), 100),
        ("diffpure-cifar10-linf", (1.001045, -0.0064896244), (1.0000593505, -0.0113205805), 100),
        ("diffpure-cifar10-l2", None, (1.0000593505, -0.0113205805), 75),
        ("diffpure-imagenet-linf", None, (1.0000593505, -0.0113205805), 150),
    ],
)
def test_methods_are_the_published_ones(name, first, last, calls) -> None:
    table = fp.presets[name].method(Guide().eval()).table()
    rows = [row for row in table.rows if not row.forward]
    assert len(rows) == calls
    assert (rows[-1].a, rows[-1].b) == pytest.approx(last, rel=1e-8)
    if first is not None:
        assert (rows[0].a, rows[0].b) == pytest.approx(first, rel=1e-8)
    assert any(row.forward for row in table.rows) == name.startswith("diffpure"), "COUP does not diffuse"


def test_coup_is_guided_and_clamped_and_diffpure_is_not() -> None:
    coup = fp.presets["coup-cifar10-linf"].method(Guide().eval())
    assert coup.guidance is not None
    assert coup.clip_output
    diffpure = fp.presets["diffpure-cifar10-linf"].method()
    assert diffpure.guidance is None
    assert not diffpure.clip_output
    half = fp.presets["coup-cifar10-linf"].method(Guide().eval(), scale=0.5)
    assert dict(half.settings)["scale"] == 0.5


@pytest.mark.parametrize(
    ("name", "protocol", "clean", "robust"),
    [
        ("coup-cifar10-linf", "AutoAttack", 90.04, 73.05),
        ("coup-cifar10-l2", "AutoAttack", 92.58, 83.13),
        ("diffpure-cifar10-linf", "AutoAttack", 89.02, 70.64),
        ("diffpure-cifar10-l2", "AutoAttack", 91.03, 78.58),
        ("diffpure-imagenet-linf", "AutoAttack", 67.79, 40.93),
        ("gdmp-cifar10-linf", "BPDA", 93.50, 76.22),
    ],
)
def test_headline_numbers(name, protocol, clean, robust) -> None:
    number = fp.presets[name].numbers[0]
    assert number.protocol.startswith(protocol)
    assert (number.clean, number.robust) == (clean, robust)


@pytest.mark.parametrize("name", NAMES)
def test_printing_shows_everything(name: str) -> None:
    preset = fp.presets[name]
    text = str(preset)
    assert text.startswith(f"{name}: ")
    for part in ("method", "denoiser", "classifier", "data", "adaptive"):
        assert f"\n  {part}" in text
    for number in preset.numbers:
        assert number.tag in TAGS
        assert number.source in text
    assert "linf" in name or "l2" in name or "lm" in name
    norm = "L2" if "-l2" in name else "Linf"
    assert {dict(spec.settings)["norm"] for spec in preset.attack_specs} == {norm}
    assert hash(preset) == hash(preset), "values"


@pytest.mark.parametrize("name", NAMES)
def test_what_this_version_has_can_be_built_and_the_rest_is_named(name: str) -> None:
    preset = fp.presets[name]
    if preset.recipe.name in METHODS:
        assert preset.method(Guide().eval()).name == preset.recipe.name
    else:
        with pytest.raises(ValueError, match=f"`method` must be among .* got {preset.recipe.name}"):
            preset.method(Guide().eval())
    for spec in preset.attack_specs:
        if spec.name in ATTACKS and spec.role == "adaptive":
            attack = spec.build(batch_size=8)
            assert attack.batch_size == 8
            assert str(attack.budget) or attack.budget.eps == dict(spec.settings)["eps"]
        elif spec.name not in ATTACKS:
            with pytest.raises(ValueError, match=f"`attack` must be among .* got {spec.name}"):
                spec.build()


def test_adaptive_attacks_are_exact_pgd() -> None:
    (attack,) = fp.presets["coup-cifar10-linf"].attacks("adaptive")
    assert isinstance(attack, PGD)
    assert (attack.norm, attack.eps, attack.n_iter, attack.eot_iter) == ("Linf", 8 / 255, 200, 20)
    assert attack.step_size == 0.007
    with pytest.raises(ValueError, match="`role` must be one of 'published', 'adaptive'"):
        fp.presets["coup-cifar10-linf"].attacks("strong")


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"`preset` must be one of .*got 'coup-cifar'. Close: coup-cifar10"):
        fp.presets["coup-cifar"]
    with pytest.raises(KeyError):
        fp.presets["coup-cifar"]
    assert "coup-cifar" not in fp.presets
    with pytest.raises(TypeError, match="`classifier` must be given: coup is guided by it"):
        fp.presets["coup-cifar10-linf"].method()
    with pytest.raises(ValueError, match=r"`settings of coup` must be one of .* got 'strength'"):
        fp.presets["coup-cifar10-linf"].method(Guide().eval(), strength=2.0)
    with pytest.raises(ValueError, match=r"`method` must be among those of this fastpure, .* got alchemy"):
        MethodSpec("alchemy").build(None)
    with pytest.raises(ValueError, match=r"attack pgd does not take these settings: .*power"):
        AttackSpec("pgd", (("power", 3),)).build()
    with pytest.raises(ValueError, match="`tag` must be one of"):
        Published("x", 1.0, 1.0, "y", "Z")
    with pytest.raises(ValueError, match="`robust` must be a percentage"):
        Published("x", 1.0, 730.5, "y")
    with pytest.raises(ValueError, match="two presets have the same name"):
        Presets((fp.presets[NAMES[0]], fp.presets[NAMES[0]]))


def test_images_are_the_literature_s_also_from_a_part(tmp_path: Path, monkeypatch) -> None:
    def part(count: int, step: int) -> Dataset:
        ids = torch.arange(0, count, step)
        zeros = torch.zeros(len(ids), dtype=torch.int64)
        return Dataset(torch.zeros(len(ids), 1, 1, 1), zeros, ids, ("a",), "cifar10", "test")

    def loader(dataset: Dataset):
        def load(name, split, path=None, n=None, data_seed=0):
            assert (name, split) == ("cifar10", "test")
            return dataset if n is None else dataset.subset(n, data_seed)

        return load

    wanted = np.random.RandomState(0).choice(10_000, 512, replace=False).tolist()
    monkeypatch.setattr(parts, "load_dataset", loader(part(10_000, 1)))
    assert fp.presets["coup-cifar10-linf"].load_dataset("x").sample_ids.tolist() == wanted
    assert fp.presets["addt-cifar10-linf"].load_dataset("x").sample_ids.tolist() == list(range(1024))
    assert len(fp.presets["gdmp-cifar10-linf"].load_dataset("x")) == 10_000
    seeded = np.random.RandomState(3).choice(10_000, 512, replace=False).tolist()
    assert fp.presets["coup-cifar10-linf"].load_dataset("x", 3).sample_ids.tolist() == seeded
    monkeypatch.setattr(parts, "load_dataset", loader(part(10_000, 4)))
    with pytest.warns(UserWarning, match="2500 of the 10000 test images: .* of the 512"):
        some = fp.presets["coup-cifar10-linf"].load_dataset("x")
    assert some.sample_ids.tolist() == [i for i in wanted if i % 4 == 0]


def test_data_spec_refuses_unknown_choices() -> None:
    with pytest.raises(ValueError, match="`choice` must be one of 'random', 'first'"):
        DataSpec("cifar10", choice="last")


def tiny(name: str, size: int) -> tuple[fp.Denoiser, nn.Module, Preset]:
    fields = {
        "image_size": size,
        "nf": 8,
        "ch_mult": (1, 1),
        "n_blocks": 1,
        "attn_resolutions": (),
        "channels": 3,
    }
    torch.manual_seed(0)
    return fp.Denoiser.from_config(fields, seed=0), Guide().eval(), fp.presets[name]


def test_defense_of_a_preset_purifies() -> None:
    denoiser, classifier, preset = tiny("coup-cifar10-linf", 8)
    defense = preset.defense(denoiser, classifier, changes={"t": 0.004}, seed=7)
    assert defense.purifier.seed == 7
    x = torch.rand(2, 3, 8, 8)
    logits = defense(x, draw=0)
    assert logits.shape == (2, 10)
    by_hand = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.004, dt=1e-3), seed=7)
    assert torch.equal(defense.purifier(x), by_hand(x))


def test_imagenet_defense_resizes_inside_and_guides_at_the_classifier_s_size() -> None:
    denoiser, classifier, preset = tiny("diffpure-imagenet-linf", 256)
    defense = preset.defense(denoiser, classifier, changes={"t": 0.001})
    assert isinstance(defense.purifier, ResizedPurifier)
    assert defense.purifier.image_shape == (3, 224, 224)
    assert defense(torch.rand(1, 3, 224, 224), draw=0).shape == (1, 10)
    guide = preset.target.guide(classifier, 256)
    assert guide is not classifier
    assert preset.target.guide(classifier, 224) is classifier


def test_networks_are_loaded_as_the_paper_uses_them(tmp_path: Path) -> None:
    from fastpure.checkpoints import save_denoiser
    from fastpure.classifiers import save_classifier

    denoiser, _, preset = tiny("gradual-cifar10-linf", 8)
    path = save_denoiser(denoiser, tmp_path / "net.safetensors")
    assert preset.load_denoiser(path).time_input == "index"
    assert fp.presets["diffpure-cifar10-linf"].load_denoiser(path).time_input == "continuous"
    ours = fp.load_classifier("digits")
    own = save_classifier(ours, tmp_path / "own.safetensors")
    x = torch.rand(1, 1, 8, 8)
    assert torch.equal(preset.load_classifier(own)(x), ours(x)), "a fastpure file settles everything itself"
    (tmp_path / "other.pt").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="damaged"):
        preset.load_classifier(tmp_path / "other.pt")


def test_files_are_loaded_with_what_they_cannot_say_themselves(tmp_path: Path, monkeypatch) -> None:
    calls = []
    monkeypatch.setattr(parts, "load_classifier", lambda source, **options: calls.append((source, options)))
    file = tmp_path / "weights.pt"
    file.write_bytes(b"a state dict")
    for name in ("diffpure-cifar10-linf-wrn70", "diffpure-imagenet-linf"):
        for path in (file, "robustbench:Standard", "pretrained"):
            fp.presets[name].load_classifier(path)
    assert calls == [
        (file, {"architecture": "wrn-70-16-dropout"}),
        ("robustbench:Standard", {}),
        ("pretrained", {}),
        ("torchvision:resnet50", {"weights": file}),
        ("robustbench:Standard", {}),
        ("torchvision:resnet50", {"weights": "pretrained"}),
    ]
