"""`fastpure demo` on digits and on CIFAR-10: what it attacks, what it prints and draws, how it refuses."""

from __future__ import annotations

import io
import sys
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from typer.testing import CliRunner

from fastpure import Denoiser, zoo
from fastpure.attacks import PGD
from fastpure.checkpoints import save_denoiser
from fastpure.classifiers import save_classifier
from fastpure.classifiers.resnet import ResNet, ResNetConfig
from fastpure.cli import demo, demo_settings, figures
from fastpure.cli.demo import TENSORS, Parts
from fastpure.cli.demo_settings import SETTINGS, Setting, choose, place
from fastpure.cli.experiment import DEFAULTS
from fastpure.cli.main import app, main
from fastpure.data import load_dataset

TINY = ["--steps", "2", "--n-iter", "1", "--eot-iter", "1", "--draws", "1"]
ROWS = ("no defence", "DiffPure", "COUP without guidance", "COUP", "COUP, guidance detached")
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
GREEN, BLUE = (0, 255, 0), (0, 0, 255)


def run(*words: str):
    return CliRunner().invoke(app, ["demo", *words])


def refused(monkeypatch, capsys, *words: str) -> str:
    """The one line with which the command, as installed, refuses these words."""
    monkeypatch.setattr(sys, "argv", ["fastpure", "demo", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    return capsys.readouterr().err


@pytest.fixture
def chosen(monkeypatch) -> list:
    """Setting and data of every demo that would have started; its work is left out."""
    seen: list = []
    monkeypatch.setattr(demo, "build", lambda setting: {})
    monkeypatch.setattr(demo, "print_table", lambda setting, results: None)
    monkeypatch.setattr(figures, "demo", lambda *arguments: None)
    monkeypatch.setattr(
        demo, "attack_all", lambda setting, defenses, data, parts: seen.append((setting, data)) or {}
    )
    return seen


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    """Eight 32x32 images, green and blue in turn, as a JPEG pack."""
    image = pytest.importorskip("PIL.Image")
    files = []
    for i in range(8):
        buffer = io.BytesIO()
        image.new("RGB", (32, 32), (GREEN, BLUE)[i % 2]).save(buffer, "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    np.savez(
        tmp_path / "pack.npz",
        jpeg=np.concatenate(files),
        offsets=np.cumsum([0, *(len(file) for file in files)]),
        labels=np.arange(8, dtype=np.uint8),
        classes=np.array(CLASSES),
    )
    return tmp_path / "pack.npz"


@pytest.fixture
def networks(tmp_path: Path, monkeypatch) -> None:
    """Small random networks under the names of the bundled ones; the classifier sees automobiles everywhere."""
    sizes = {
        "image_size": 32,
        "nf": 8,
        "ch_mult": [1, 1],
        "n_blocks": 1,
        "attn_resolutions": [],
        "dropout": 0.0,
    }
    denoiser = save_denoiser(Denoiser.from_config(sizes, seed=0), tmp_path / "denoiser.safetensors")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = ResNetConfig((3, 32, 32), classes=10, widths=(8, 8), mean=(0.5,) * 3, std=(0.25,) * 3)
        classifier = ResNet(config).eval()
    with torch.no_grad():
        classifier.head.bias[CLASSES.index("automobile")] = 5.0
    saved = save_classifier(classifier, tmp_path / "classifier.safetensors")
    monkeypatch.setitem(zoo.DENOISERS, "cifar10-small", str(denoiser))
    monkeypatch.setitem(zoo.CLASSIFIERS, "cifar10-small", str(saved))


def test_digits_print_the_table_and_draw_the_picture(tmp_path):
    picture = tmp_path / "picture.png"
    result = run("--out", str(picture), "--n", "3", *TINY)
    assert result.exit_code == 0, result.output
    for name in ROWS:
        assert name in result.output
    assert "Linf 0.2; 3 digits" in result.output
    assert "networks compute in" not in result.output, "digits say what they always said"
    image = matplotlib.image.imread(picture)
    assert image.shape[0] > 500
    assert image[..., :3].std() > 0.05, "not a blank page"
    assert [path.name for path in tmp_path.iterdir()] == ["picture.png"], "no half-written files left"


@pytest.mark.usefixtures("networks")
def test_cifar10_prints_the_same_table_and_draws_in_colour(tmp_path, pack, monkeypatch):
    picture, panels, grid = tmp_path / "picture.png", [], figures._grid
    monkeypatch.setattr(demo_settings, "has_bfloat16", lambda: True)
    monkeypatch.setattr(figures, "_grid", lambda panel, *rest: panels.append(panel) or grid(panel, *rest))
    result = run("--data", "cifar10", "--data-path", str(pack), "--out", str(picture), "--n", "8", *TINY)
    assert result.exit_code == 0, result.output
    for name in ROWS:
        assert name in result.output
    assert "PGD-1, EOT 1, Linf 8/255; 8 cifar10 images, 1 fresh draws" in result.output
    assert "DiffPure diffuses to t = 0.1 and comes back in 2 steps" in result.output
    assert "networks compute in bf16, the classifier that decides in fp32" in result.output
    pixels = matplotlib.image.imread(picture)[..., :3]
    for colour in (GREEN, BLUE):
        close = (np.abs(pixels - np.array(colour) / 255) < 0.02).all(-1)
        assert close.sum() > 4 * 50 * 50, "four clean images of this colour"
    titles_are_legible(panels[0], "automobile")
    assert "perturbation 15.9 times magnified, grey is none" in panels[0].get_suptitle()


def titles_are_legible(panel, name: str) -> None:
    canvas = FigureCanvasAgg(panel.figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    top = panel.axes[: figures.N_SHOWN]
    assert {axis.get_title() for axis in top} == {name}
    boxes = [axis.title.get_window_extent(renderer) for axis in top]
    for left, right in pairwise(boxes):
        assert left.x1 < right.x0, "names above neighbouring images touch"


def test_without_options_it_is_digits_as_ever(chosen):
    assert run().exit_code == 0
    ((setting, data),) = chosen
    assert setting == Setting(
        images="digits",
        denoiser="digits",
        classifier="digits",
        n=40,
        t=0.15,
        steps=12,
        scale=2.0,
        norm="Linf",
        eps=0.2,
        n_iter=20,
        eot_iter=4,
        eval_draws=10,
        precision="fp32",
        seed=0,
    )
    assert data.checksum == load_dataset("digits", "test").subset(40, 0).checksum
    for name, value in DEFAULTS["digits"].items():
        assert getattr(setting, name) == value, "`fastpure evaluate` promises the demo's settings"


def test_cifar10_as_described(chosen, pack):
    words = ["--data", "cifar10", "--data-path", str(pack), "--n", "5", "--precision", "fp32"]
    assert run(*words).exit_code == 0
    ((setting, data),) = chosen
    names = ("t", "steps", "scale", "norm", "eps", "n_iter", "eot_iter", "eval_draws", "precision", "seed")
    wanted = (0.1, 4, 1.0, "Linf", 8 / 255, 20, 2, 5, "fp32", 0)
    assert tuple(getattr(setting, name) for name in names) == wanted
    assert (setting.denoiser, setting.classifier) == ("cifar10-small", "cifar10-small")
    assert SETTINGS["cifar10"].n == 32
    assert data.classes == CLASSES
    assert data.checksum == load_dataset("cifar10", "test", path=pack).subset(5, 0).checksum


def test_every_option_changes_its_own_setting(chosen):
    values = {"n": 7, "t": 0.25, "steps": 3, "scale": 0.5, "norm": "L2", "eps": 4 / 255, "n_iter": 6}
    values |= {"eot_iter": 9, "eval_draws": 8, "precision": "bf16", "seed": 11}
    written = {**values, "eps": "4/255"}
    words = [word for name, text in written.items() for word in (f"--{name.replace('_', '-')}", str(text))]
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert chosen[0][0] == choose("digits", **values)
    assert all(getattr(chosen[0][0], name) == value for name, value in values.items())


@pytest.mark.parametrize(("has", "precision"), [(True, "bf16"), (False, "fp32")])
def test_bfloat16_where_the_processor_has_it(monkeypatch, has, precision):
    monkeypatch.setattr(demo_settings, "has_bfloat16", lambda: has)
    assert choose("cifar10").with_precision_found().precision == precision
    assert choose("cifar10", precision="fp16").with_precision_found().precision == "fp16"
    assert choose("digits").with_precision_found().precision == "fp32"


def test_help_names_the_defaults_of_both():
    text = " ".join(run("--help").output.replace("│", " ").split())
    for words in ("0.15 for digits, 0.1 for cifar10", "0.2 for digits, 8/255 for cifar10"):
        assert f"(default: {words})" in text
    assert "How many test images to attack. (default: 40 for digits, 32 for cifar10)" in text


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["--n", "0"], ["`--n` must be in 1..500, the test images there are, got 0"]),
        (["--n", "501"], ["`--n` must be in 1..500"]),
        (
            ["--out", "/nowhere/demo.png", "--data", "cifar10"],
            ["must name a file in a folder that can be written, got /nowhere/demo.png"],
        ),
        (["--n", "3", *TINY, "--t", "1.5"], ["`t` must be a diffusion time in (0, 1], got 1.5"]),
        (["--n", "3", *TINY, "--eps", "-0.1"], ["`eps` must be a finite number above 0"]),
        (["--eps", "small"], ["`--eps` must be a number or a fraction such as 8/255, got 'small'"]),
        (["--steps", "0"], ["`--steps` must be at least 1, got 0"]),
        (["--norm", "L2"], ["`--eps` must be given with --norm L2"]),
        (["--n", "3", "--precision", "int8"], ["`precision` must be one of", "'int8'"]),
        (["--data", "svhn"], ["`--data` must be one of 'digits', 'cifar10', got 'svhn'"]),
        (["--data-path", "64"], ["must be the place of the images, got the number 64", "--n 64"]),
        (["--data", "cifar10", "--data-path", "64"], ["got the number 64", "--n 64"]),
        (["--data-path", "pack.npz"], ["must not be given for digits", "--data cifar10 --data-path pack.npz"]),
        (
            ["--data", "cifar10"],
            ["`--data-path` must be given", "cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html"],
        ),
        (["--data", "cifar10", "--data-path", "missing.tar.gz"], ["missing.tar.gz: no such file or folder"]),
        (["--data", "cifar10", "--data-path", "missing.npz"], ["missing.npz: no such file"]),
    ],
)  # fmt: skip
def test_mistakes_are_one_sentence(words, messages, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    said = refused(monkeypatch, capsys, *words)
    for message in messages:
        assert message in said
    assert said.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_more_images_than_a_pack_has(pack, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, "--data", "cifar10", "--data-path", str(pack))
    assert "`--n` must be in 1..8, the test images there are, got 32" in said


def test_a_folder_called_like_a_number_is_a_place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "64").mkdir()
    assert place("cifar10", Path("64")) == Path("64")
    with pytest.raises(ValueError, match="--n 64"):
        place("digits", "64")


def test_ctrl_c_ends_it_without_a_picture(tmp_path, monkeypatch):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "attack_all", interrupted)
    assert run("--n", "3", "--out", str(tmp_path / "x.png")).exit_code == 130
    assert not list(tmp_path.iterdir())


def results(monkeypatch) -> list[dict]:
    """What every demo prints its table of."""
    seen: list[dict] = []
    table = demo.print_table
    monkeypatch.setattr(
        demo, "print_table", lambda setting, found: seen.append(found) or table(setting, found)
    )
    return seen


@pytest.mark.parametrize("finished", [1, 4])
def test_interrupted_it_continues_with_the_next_defence(tmp_path, monkeypatch, finished):
    seen, pgd, attacked = results(monkeypatch), PGD.__call__, []
    words = ["--n", "3", *TINY, "--out", str(tmp_path / "x.png")]

    def counted(self, *arguments, **named):
        attacked.append(self)
        if len(attacked) == finished + 1:
            raise KeyboardInterrupt
        return pgd(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(PGD, "__call__", counted)
        assert run(*words).exit_code == 130
        assert [path.name for path in tmp_path.iterdir()] == [".x.png.parts"]
        assert run(*words).exit_code == 0
        assert len(attacked) == 1 + len(ROWS), "what was finished is not done again"
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]
    assert run("--n", "3", *TINY, "--out", str(tmp_path / "y.png")).exit_code == 0
    for name in ROWS:
        for part in TENSORS:
            assert torch.equal(getattr(seen[0][name], part), getattr(seen[1][name], part))
    assert (tmp_path / "x.png").read_bytes() == (tmp_path / "y.png").read_bytes()


def test_other_settings_or_a_damaged_part_are_computed_anew(tmp_path, monkeypatch):
    out = tmp_path / "x.png"
    monkeypatch.setattr(Parts, "done", lambda self: None)
    assert run("--n", "3", *TINY, "--out", str(out)).exit_code == 0
    folder = tmp_path / ".x.png.parts"
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(first) == len(ROWS)
    assert run("--n", "3", *TINY, "--out", str(out), "--seed", "1").exit_code == 0
    assert len(list(folder.iterdir())) == 2 * len(ROWS) - 1, "the bare classifier has no seed"
    for path in folder.iterdir():
        path.write_bytes(path.read_bytes()[:100])
    assert run("--n", "3", *TINY, "--out", str(out)).exit_code == 0
    assert all(
        len(path.read_bytes()) == len(first[path.name]) for path in folder.iterdir() if path.name in first
    )
