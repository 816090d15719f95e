"""Published configurations: constants as specified, resolved by name, printed whole, and runnable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fastpure as fp
from fastpure.attacks import ATTACKS, PGD, DiffPureStAdv
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
    assert ("\n  rule" in text) == (preset.rule is not None)
    for number in preset.numbers:
        assert number.tag in TAGS
        assert number.source in text
        assert number.note in text
    for spec in preset.attack_specs:
        assert spec.note in text
    assert "linf" in name or "l2" in name or "lm" in name or "stadv" in name
    norm = None if "stadv" in name else "L2" if "-l2" in name else "Linf"
    assert {dict(spec.settings).get("norm") for spec in preset.attack_specs} == {norm}
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


@pytest.mark.parametrize(
    ("name", "robust", "clean", "tag", "said"),
    [
        # What is published of the methods that have a preset, beside the headline numbers above.
        ("coup-cifar10-linf", 83.20, 90.04, "P", "BPDA"),
        ("coup-cifar10-linf", 41.72, 90.33, "S", "full gradient"),
        ("coup-cifar10-linf", 41.62, 92.07, "S", "SVHN"),
        ("coup-cifar10-linf", 0.00, 96.09, "P", "no purification"),
        ("coup-cifar10-linf", 93.00, None, "P", "salt and pepper"),
        ("coup-cifar10-linf", 92.60, None, "P", "without guidance"),
        ("coup-cifar10-linf", 87.80, None, "P", "no purification"),
        ("coup-cifar10-l2", 57.25, 90.33, "S", "L2 1.0"),
        ("coup-cifar10-l2", 63.97, 92.07, "S", "SVHN"),
        ("coup-cifar10-linf-at", 77.15, None, "P", "APGD-CE"),
        ("coup-cifar10-linf-at", 70.90, 92.44, "P", "alone"),
        ("coup-cifar100-lm", 40.55, None, "P", "APGD-CE"),
        ("coup-cifar100-lm", 15.22, 65.71, "S", "not stated"),
        ("coup-cifar100-lm", 34.28, 65.71, "S", "L2 1.0"),
        ("coup-cifar100-lm-unguided", 38.67, None, "P", "APGD-CE"),
        ("diffpure-cifar10-linf", 81.40, 89.02, "S", "BPDA"),
        ("diffpure-cifar10-linf", 46.88, 89.02, "P", "DiffAttack"),
        ("diffpure-cifar10-linf", 71.88, None, "P", "4/255"),
        ("diffpure-cifar10-linf", 48.28, 90.07, "S", "surrogate"),
        ("diffpure-cifar10-linf", 62.11, 89.26, "P", "Liu"),
        ("diffpure-cifar10-linf", 48.05, 89.46, "P", "DiffGrad"),
        ("diffpure-cifar10-linf", 56.25, 89.26, "P", "Fixed"),
        ("diffpure-cifar10-linf", 30.86, 89.26, "P", "Fixed"),
        ("diffpure-cifar10-linf", 2.73, None, "P", "low-frequency"),
        ("diffpure-cifar10-linf", 51.75, None, "P", "AWP"),
        ("diffpure-cifar10-linf", 34.37, None, "P", "TRADES"),
        ("diffpure-cifar10-linf", 51.25, 90.07, "S", "PGD-200"),
        ("diffpure-cifar10-linf-wrn70", 75.00, None, "P", "4/255"),
        ("diffpure-cifar10-linf-wrn70", 57.03, 90.43, "S", "PGD-200"),
        ("diffpure-cifar10-linf-wrn70", 42.20, 92.50, "S", "PGD-200"),
        ("diffpure-cifar10-linf-wrn70", 39.70, 93.90, "S", "SVHN"),
        ("diffpure-cifar10-linf-wrn70", 47.72, None, "P", "128"),
        ("diffpure-cifar10-linf-wrn70", 3.13, None, "P", "low-frequency"),
        ("diffpure-cifar10-linf-wrn70", 31.05, 76.56, "P", "PGD+EOT, any"),
        ("diffpure-cifar10-linf-wrn70", 57.60, 90.98, "P", "DiffAttack"),
        ("diffpure-cifar10-linf-wrn70", 36.72, 76.56, "P", "BPDA, any"),
        ("diffpure-cifar10-linf-wrn70", 22.66, 76.56, "P", "DiffHammer, any"),
        ("diffpure-cifar10-l2-wrn70", 80.60, 92.68, "S", "AutoAttack"),
        ("diffpure-cifar10-l2-wrn70", 60.80, 92.50, "S", "L2 1.0"),
        ("diffpure-cifar10-l2-wrn70", 74.49, None, "P", "DiffHammer"),
        ("diffpure-imagenet-linf-wrn50", 12.11, 74.22, "P", "any draw"),
        ("diffpure-imagenet-linf-wrn50", 29.69, 77.02, "P", "majority"),
        ("diffpure-imagenet-linf-deit", 43.18, 73.63, "S", "AutoAttack"),
        ("gdmp-cifar10-linf", 7.03, 91.80, "P", "any of 10"),
        ("gdmp-cifar10-linf", 16.80, 92.19, "P", "majority of 10"),
        ("gdmp-cifar10-linf", 32.81, None, "P", "128"),
        ("gdmp-cifar10-linf", 0.39, None, "P", "low-frequency"),
        ("gdmp-cifar10-linf", 49.41, 93.26, "P", "PGD+EOT"),
        ("gdmp-cifar10-linf", 27.54, 83.79, "P", "DiffHammer, any"),
        ("gdmp-cifar10-linf", 53.12, None, "P", "L2 0.5"),
        ("agdm-cifar10-linf", 64.06, 90.42, "S", "PGD+EOT"),
        ("agdm-cifar10-linf", 78.12, None, "V", "AutoAttack"),
        ("agdm-cifar10-l2", 85.55, 90.42, "S", "PGD+EOT"),
        ("adbm-cifar10-linf", 47.70, 91.90, "S", "PGD-200"),
        ("adbm-cifar10-linf", 47.90, 93.50, "S", "SVHN"),
        ("adbm-cifar10-linf", 70.51, 91.93, "S", "BPDA"),
        ("adbm-cifar10-l2", 65.70, 93.50, "S", "SVHN"),
        ("addt-cifar10-linf", 18.85, 66.02, "S", "CIFAR-100"),
        ("addt-cifar10-linf", 36.57, 66.02, "S", "L2"),
        ("addt-vpsde-cifar10-linf", 55.76, 89.94, "S", "claim"),
        ("lm-cifar10-linf", 75.00, 87.89, "S", "L2 0.5"),
        ("lm-cifar10-linf", 9.38, 74.61, "P", "PGD+EOT, any"),
        ("lm-cifar10-linf", 32.56, 87.77, "P", "AutoAttack"),
        ("lm-cifar10-linf", 41.02, None, "P", "L2 0.5"),
        ("adp-cifar10-linf", 70.01, 86.14, "S", "BPDA"),
        ("adp-cifar10-linf", 74.26, 85.66, "S", "L2"),
    ],
)
def test_published_numbers_carry_their_evidence(name, robust, clean, tag, said) -> None:
    found = [n for n in fp.presets[name].numbers if (n.robust, n.clean, n.tag) == (robust, clean, tag)]
    assert any(said in f"{number.protocol} ({number.note})" for number in found), fp.presets[name]


def test_what_is_not_known_of_coup_is_said_and_not_guessed() -> None:
    cross = [name for name in NAMES if name.endswith("-cross") or name == "coup-cifar10-l2-at"]
    assert len(cross) == 3
    for name in cross:
        preset = fp.presets[name]
        assert preset.recipe.tag == "R"
        assert not preset.numbers
        assert preset.rule is None
        assert "no number is quoted" in str(preset)
    guided, alone = (fp.presets[f"coup-cifar100-lm{end}"] for end in ("", "-unguided"))
    assert guided.method(Guide().eval()).guidance is not None
    assert alone.method().guidance is None
    assert guided.attack_specs == alone.attack_specs
    for part in (guided.weights, guided.target, guided.attack_specs[0]):
        assert "not recoverable" in str(part)
    assert "ema_cifar10" not in str(guided), "a model of CIFAR-10 is no model of CIFAR-100"
    bare = fp.presets["coup-cifar10-linf-wrn70-unguided"].method().table().rows
    pushed = fp.presets["coup-cifar10-linf-wrn70"].method(Guide().eval()).table().rows
    assert [(row.a, row.b, row.d) for row in bare] == [(row.a, row.b, row.d) for row in pushed]
    assert all(row.c == 0 for row in bare)


def test_the_rule_of_a_paper_names_its_attacks() -> None:
    preset = fp.presets["coup-cifar10-linf"]
    assert str(preset.rule) == "legacy_autoattack()"
    assert "rule        legacy_autoattack(), the smaller of autoattack-rand and autoattack-standard" in str(
        preset
    )
    found = preset.deciding(n_iter=3)
    assert list(found) == ["autoattack-rand", "autoattack-standard"], "BPDA is another table"
    for attack, version in zip(found.values(), ("rand", "standard"), strict=True):
        assert (attack.version, attack.decision, attack.gradient, attack.n_iter) == (
            version,
            "legacy",
            "adjoint",
            3,
        )
        assert (attack.norm, attack.eps) == ("Linf", 8 / 255)
    (alone,) = fp.presets["coup-cifar10-linf-at"].deciding().values()
    assert (alone.names, alone.decision, alone.eot_iter) == (("apgd-ce",), "legacy", 20)
    assert list(fp.presets["coup-cifar10-linf-at"].deciding()) == ["autoattack-apgd-ce"]
    for name in NAMES:
        if fp.presets[name].rule is not None:
            assert fp.presets[name].deciding(), name
    with pytest.raises(ValueError, match="`preset` must be one that names the rule it was published with"):
        fp.presets["gdmp-cifar10-linf"].deciding()


def test_diffpures_stadv_is_its_preset_s_attack() -> None:
    preset = fp.presets["diffpure-cifar10-stadv"]
    assert len([row for row in preset.method().table().rows if not row.forward]) == 125
    for role, gradient in (("published", "adjoint"), ("adaptive", "exact")):
        (attack,) = preset.attacks(role)
        assert isinstance(attack, DiffPureStAdv)
        assert attack == DiffPureStAdv(bound=0.05, n_iter=100, step_size=0.01, gradient=gradient)


def test_adaptive_attacks_are_exact_pgd() -> None:
    (attack,) = fp.presets["coup-cifar10-linf"].attacks("adaptive")
    assert isinstance(attack, PGD)
    assert (attack.norm, attack.eps, attack.n_iter, attack.eot_iter) == ("Linf", 8 / 255, 200, 20)
    assert attack.step_size == 0.007
    with pytest.raises(ValueError, match="`role` must be one of 'published', 'adaptive'"):
        fp.presets["coup-cifar10-linf"].attacks("strong")


def test_mistakes_are_named() -> None:
    with pytest.raises(
        ValueError, match=r"`preset` must be one of .*got 'coup-cifar'. Did you mean coup-cifar10"
    ):
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
    for name in ("diffpure-cifar10-linf-wrn70", "coup-cifar10-linf-at", "diffpure-imagenet-linf"):
        for path in (file, "robustbench:Standard", "pretrained"):
            fp.presets[name].load_classifier(path)
    assert calls == [
        (file, {"architecture": "wrn-70-16-dropout"}),
        ("robustbench:Standard", {}),
        ("pretrained", {}),
        (file, {"activation": "silu", "normalise": "cifar10"}),
        ("robustbench:Standard", {}),
        ("pretrained", {}),
        ("torchvision:resnet50", {"weights": file}),
        ("robustbench:Standard", {}),
        ("torchvision:resnet50", {"weights": ("pretrained", "IMAGENET1K_V1")}),
    ]
