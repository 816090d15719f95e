"""What a user of the package gets back prints in a few lines and shows itself in a notebook, numbers and all."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure import certify, diagnostics
from fastpure.anomaly import AnomalyAttack
from fastpure.attacks.base import Problem
from fastpure.classifiers import report_of
from fastpure.data import Dataset, load_dataset
from fastpure.kernels import NoiseKeys
from fastpure.purify import ResizedPurifier, look_through
from fastpure.shown import LINES, WIDTH, Card, Grid, Shown, brief, in_full, spread

IDS = torch.arange(12)


class Told(nn.Module):
    """The smallest network that is told classes."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(10))

    def forward(self, x: Tensor, labels: Tensor, classes: Tensor) -> Tensor:
        return x * self.scale[classes][:, None, None, None]


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """One of everything, of twelve digits: an array printed in full would take more lines than a value may."""
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    data = load_dataset("digits", "test").subset(12, 0)
    purifier = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.02, dt=0.01))
    defense = fp.Defense(purifier, classifier)
    x, y = data.images, data.labels
    pgd = fp.attacks.PGD(n_iter=2, eot_iter=1, eps=0.2, eval_draws=2)
    conditional = fp.Denoiser.from_module(Told().eval(), "eps", "sigma", (1, 8, 8), n_classes=10).eval()
    diffusion = fp.DiffusionClassifier(conditional, n_levels=2, sigma=0.1)
    oneshot = certify.OneShotClassifier(denoiser, classifier, 0.25)
    detector = fp.AnomalyDetector(denoiser).fit(x, sigma=0.25)
    purified = purifier(x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(importlib.import_module("fastpure.evaluate.plan"), "BUDGET_SECONDS", 0.01)
        planned = fp.plan(defense, data, pgd)
    return {
        "denoiser": denoiser,
        "data": data,
        "purifier": purifier,
        "tiled": purifier.tiled(16, 16),
        "resized": ResizedPurifier(denoiser, purifier.method, 12),
        "defense": defense,
        "target": look_through(defense),
        "method": purifier.method,
        "table": purifier.method.table(),
        "checkpoint": denoiser.checkpoint,
        "classifier report": report_of(classifier),
        "diffusion": diffusion,
        "noised": fp.NoisedDiffusionClassifier(diffusion),
        "attack": pgd,
        "started": fp.attacks.PGD(eps=0.2, start=x),
        "transfer": fp.attacks.Transfer(found=x, sample_ids=data.sample_ids, eps=0.2),
        "result": pgd(defense, x, y, sample_ids=data.sample_ids),
        "problem": Problem(look_through(defense), x, y, IDS),
        "protocol": fp.protocols.fresh(2),
        "plan": planned,
        "presets": fp.presets,
        "preset": fp.presets["coup-cifar10-linf"],
        "oneshot": oneshot,
        "certificates": certify.Smoothing(oneshot, 0.25).certify(x, n0=4, n=8),
        "detector": detector,
        "scores": detector.certify(x, n0=4, n=8),
        "anomalies": AnomalyAttack(n_iter=1, eot_iter=1, eval_draws=1)(detector, x, y > 4),
        "agreement": diagnostics.gradient_agreement(defense, x, y, draws=2),
        "bound": diagnostics.distance_bound(purifier, x),
        "quality": diagnostics.image_quality(x, purified),
        "compression": diagnostics.compression(purifier, x, (x + 0.1).clamp(0, 1)),
        "keys": NoiseKeys.make(0, IDS, 0),
        "recorded": fp.RecordedNoise(steps=torch.zeros(3, 12, 1, 8, 8)),
    }


def html_of(shown: Shown) -> str:
    """What a notebook shows, with its tags; it must be well-formed and want nothing from outside."""
    text = shown._repr_html_()
    tree = ElementTree.fromstring(text)
    for element in tree.iter():
        assert not {"src", "href", "class", "id"} & set(element.keys())
        assert element.tag not in ("script", "style", "link", "img")
        # Colours are the notebook's own, dark or light.
        style = element.get("style", "")
        assert "#" not in style
        assert "rgb" not in style
        assert "background" not in style or "background:transparent" in style
    return text


def words_of(shown: Shown) -> str:
    return " ".join(ElementTree.fromstring(html_of(shown)).itertext())


def test_all_of_it_is_short(parts):
    for name, value in parts.items():
        assert isinstance(value, Shown), name
        lines = repr(value).splitlines()
        assert len(lines) <= LINES, (name, lines)
        assert "tensor(" not in repr(value), name
        assert "array(" not in repr(value), name
        assert len(repr(value)) < LINES * WIDTH, name
        assert "tensor(" not in html_of(value), name


def test_no_class_with_tensors_was_forgotten():
    found = 0
    for cls in public_classes():
        fields = dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ()
        arrays = [f.name for f in fields if f.repr and holds_arrays(str(f.type))]
        if not arrays:
            continue
        found += 1
        assert issubclass(cls, Shown), f"{cls.__name__} holds {arrays} and prints them in full"
        # Attacks keep the tensors that they were given in a `Start` or `Targets`, which are short.
        printed_by_dataclass = cls.__dataclass_params__.repr  # type: ignore[attr-defined]
        assert not printed_by_dataclass or issubclass(cls, fp.attacks.Attack), (
            f"{cls.__name__} needs repr=False"
        )
    assert found > 20


def test_modules_that_the_package_hands_out_are_short():
    modules = [getattr(fp, name) for name in fp.__all__ if inspect.isclass(getattr(fp, name))]
    modules = [cls for cls in modules if issubclass(cls, nn.Module)]
    assert len(modules) > 4
    assert all(issubclass(cls, Shown) for cls in modules)


def public_classes() -> set[type]:
    names = [m.name for m in pkgutil.walk_packages(fp.__path__, "fastpure.") if m.ispkg]
    faces = [importlib.import_module(name) for name in names]
    found = [getattr(face, name) for face in faces for name in getattr(face, "__all__", ())]
    return {cls for cls in found if inspect.isclass(cls) and cls.__module__.startswith("fastpure.")}


def holds_arrays(annotation: str) -> bool:
    return "Callable" not in annotation and ("Tensor" in annotation or "ndarray" in annotation)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("result", lambda v: [str(v.clean_accuracy), str(v.robust_accuracy), f"{float(v.distance[3]):.4g}"]),
        ("data", lambda v: ["12 images of 1x8x8", "sample ids"]),
        ("table", lambda v: [f"{v.rows[0].sigma:.6g}", f"{v.rows[1].d:.6g}", "2 of the network, guided"]),
        ("method", lambda v: ["0.02", "scale", f"{v.steps.rows[0].b:.6g}"]),
        (
            "defense",
            lambda v: ["2 network calls per image", f"{v.purifier.method.steps.rows[0].b:.6g}", "ResNet"],
        ),
        ("tiled", lambda v: ["16x16", str(v.n_tiles)]),
        ("plan", lambda v: [f"{v.network_calls:,}", "2 gradients"]),
        ("certificates", lambda v: [f"{float(v.radius.max()):.4g}", f"{float(v.p_lower[9]):.4g}"]),
        ("scores", lambda v: [f"{float(v.scores[0].double().mean()):.4g}", "8 that estimate"]),
        ("agreement", lambda v: [f"{float(v.cosine[0]):.4g}", f"{float(v.snr.max()):.4g}"]),
        ("bound", lambda v: [f"{float(v.bound[0]):.4g}", f"{float(v.moved.mean()):.4g}"]),
        ("quality", lambda v: [f"{float(v.psnr.mean()):.4g}", f"{float(v.ssim[9]):.4g}"]),
        ("preset", lambda v: ["90.04", "73.05", v.title]),
        ("presets", list),
    ],
)
def test_the_notebook_shows_the_numbers(parts, name, numbers):
    words = words_of(parts[name])
    for number in numbers(parts[name]):
        assert number in words, number


def test_long_things_end_somewhere(parts):
    words = words_of(parts["result"])
    assert "the first 10 of 12" in words
    table = fp.methods.diffpure(t=0.1, dt=0.001).table()
    assert len(ElementTree.fromstring(html_of(table)).findall(".//tr")) < 20
    assert "StepTable of 101 rows" in repr(table)


def test_reports_and_runs(parts, tmp_path):
    path = tmp_path / "a<b>&.sqlite"
    data = parts["data"].select([0, 1])
    report = fp.evaluate(parts["defense"], data, parts["attack"], fp.protocols.fresh(2), path, progress=False)
    with fp.Run.open(path) as run:
        for value in (report, run):
            assert len(repr(value).splitlines()) <= LINES
            words = words_of(value)
            assert str(report.robust) in words
            assert str(report.clean) in words
            assert "a<b>&.sqlite" in words
            assert "a<b>" not in html_of(value)
    # A closed run says so, where one would look.
    assert "cannot be read" in repr(run)
    assert "cannot be read" in words_of(run)
    other = fp.evaluate(
        parts["defense"], data, None, fp.protocols.fresh(2), tmp_path / "clean.sqlite", progress=False
    )
    assert "attack" in words_of(other)
    with fp.Run.open(path) as a, fp.Run.open(path) as b:
        compared = fp.compare(a, b)
    assert repr(compared).startswith("Comparison of 2 images: b - a = +0.0 points")
    assert "a<b>" not in html_of(compared)


def test_names_are_escaped():
    data = Dataset(
        torch.zeros(2, 1, 2, 2), torch.zeros(2).long(), IDS[:2], ('<b>cat</b> & "dog"',), "a<i>", "x\0y"
    )
    assert '<b>cat</b> & "dog"' in words_of(data)
    assert "<b>cat" not in html_of(data)
    assert "a<i>/x" in words_of(data)


def test_checksums_of_networks_do_not_hold_what_people_see(parts):
    with in_full():
        whole = repr(parts["defense"])
    assert len(whole.splitlines()) > 100
    assert "(blocks): Sequential" in whole
    assert len(repr(parts["defense"]).splitlines()) < 10
    # Inside somebody's module a part is short, and the structure in full all the same.
    around = nn.Sequential(parts["denoiser"])
    assert len(repr(around).splitlines()) < 8
    with in_full():
        assert "(all_modules): ModuleList" in repr(around)


def test_card_keeps_to_its_size():
    card = Card(
        "t" * 300,
        tuple((f"row {i}", "word " * 200) for i in range(30)),
        grids=(Grid("g", ("", "n"), (("a", "1"),)),),
    )
    lines = card.text().splitlines()
    assert len(lines) == LINES
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1].endswith("more lines; print() shows all")
    assert "word " * 100 in " ".join(ElementTree.fromstring(card.html()).itertext())


def test_words_of_numbers():
    nan = float("nan")
    assert spread(torch.tensor([])) == "not known"
    assert spread(torch.tensor([nan, nan])) == "not known"
    assert spread(torch.tensor([2.0, 2.0])) == "2"
    assert spread(torch.tensor([1.0, 3.0, nan])) == "mean 2, 1 to 3, known for 2 of 3"
    assert spread(torch.tensor([1.0, float("inf")])) == "mean inf, 1 to inf"
    assert brief(torch.zeros(2, 3)) == "float32 [2, 3]"
    assert brief(list(range(1000))) == "[0, 1, 2, 3, 4, 5, 6, 7, ...]"


def test_no_other_module_writes_html():
    root = Path(fp.__file__).parent
    writers = [p for p in root.rglob("*.py") if "_repr_html_" in p.read_text() and p.name != "shown.py"]
    assert not writers
