"""``--classifier diffusion:FILE``: a class-conditional diffusion model judged and attacked from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastpure as fp
from fastpure.checkpoints import save_denoiser
from fastpure.cli.experiment import build
from fastpure.cli.main import app
from fastpure.cli.options import request
from fastpure.cli.sweep import changed, grid

CONFIG = {"architecture": "ddpmpp", "image_size": 8, "channels": 1, "nf": 8, "ch_mult": (1,), "n_blocks": 1,
          "attn_resolutions": (), "classes": 10, "null_class": True}  # fmt: skip


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(save_denoiser(fp.Denoiser.from_config(CONFIG), tmp_path / "conditional.safetensors"))


def made(file: str, *settings: str, method: str = "none") -> fp.Defense | fp.DiffusionClassifier:
    return build(
        request(data="digits", n=4, denoiser=file, classifier=f"diffusion:{file}", method=method, seed=3,
                attack="none", settings=list(settings))
    ).defense  # fmt: skip


def test_settings_reach_it(file):
    one = made(file, "classifier.n_levels=3", "classifier.levels=[0.1,2]", "classifier.weight=edm")
    assert isinstance(one, fp.DiffusionClassifier)
    assert (one.n_levels, one.low, one.high, one.weight, one.seed) == (3, 0.1, 2.0, "edm", 3)
    noised = made(file, "classifier.sigma=0.25", "classifier.n_noised=2")
    assert isinstance(noised, fp.NoisedDiffusionClassifier)
    assert (noised.sigma, noised.n_noised) == (0.25, 2)
    defended = made(file, method="likelihood_max")
    assert defended.classifier.n_classes == 10


@pytest.mark.parametrize(
    ("settings", "method", "message"),
    [
        (["classifier.k=3"], "none", r"`--set classifier\.k`: a diffusion classifier has no such setting"),
        ([], "coup", "`--method` must be one without a guiding classifier"),
    ],
)
def test_mistakes(file, settings, method, message):
    with pytest.raises(ValueError, match=message):
        made(file, *settings, method=method)
    plain = request(data="digits", n=4, method="none", attack="none", settings=["classifier.n_levels=3"])
    with pytest.raises(ValueError, match=r"`--set classifier\.n_levels` has no effect"):
        build(plain)


def test_certify_command(file, tmp_path):
    path = tmp_path / "c.csv"
    words = ["certify", "--method", "nrdc", "--classifier", f"diffusion:{file}", "--n", "2", "--draws0", "2",
             "--draws", "4", "--n-levels", "2", "--out", str(path), "--radii", "0,0.1"]  # fmt: skip
    output = CliRunner().invoke(app, words, catch_exceptions=False).output
    assert "12 noisy images (240 through the diffusion model)" in output
    assert "abstained on 2 of 2 images" in output, "four draws bound nothing"
    lines = path.read_text().splitlines()
    assert lines[1] == "sample_id,label,predicted,radius,p_lower,p_upper,seconds"
    assert len(lines) == 4
    settings = json.loads(lines[0].removeprefix("# fastpure certify posteriors "))
    assert (settings["method"], settings["n0"], settings["sigma"]) == ("nrdc", 2, 0.25)
    CliRunner().invoke(app, words, catch_exceptions=False)
    assert path.read_text().splitlines() == lines, "nothing is certified twice"
    for change, message in (
        (["--weight", "edm"], "belongs to another certification"),
        (["--copies", "3"], "`--copies` must be left out: nrdc takes n_levels, weight"),
        (["--classifier", "digits"], "`--classifier` must be diffusion:FILE with --method nrdc"),
        (["--denoiser", "digits"], "`--denoiser` must be left out with --method nrdc, got 'digits'"),
        (["--method", "oneshot"], "`--n-levels` must be left out"),
        (["--method", "nrcd"], "'diffsmooth', 'nrdc'"),
    ):
        refused = CliRunner().invoke(app, [*words, *change])
        assert message in str(refused.exception)
    words = ["certify", "--classifier", f"diffusion:{file}"]
    refused = CliRunner().invoke(app, words)
    assert "`--method` must be nrdc for --classifier diffusion:FILE, got oneshot" in str(refused.exception)


def test_a_sweep_over_its_settings(file):
    wanted = request(data="digits", n=2, denoiser=file, classifier=f"diffusion:{file}", method="none", attack="none",
                     settings=["classifier.weight=edm"])  # fmt: skip
    points = grid(["classifier.n_levels=2,5"])
    found = [build(changed(wanted, point)).defense for point in points]
    assert [(one.n_levels, one.weight) for one in found] == [(2, "edm"), (5, "edm")]
    with pytest.raises(ValueError, match=r"classifier\.NAME, got 'denoiser\.x=1'"):
        grid(["denoiser.x=1"])


def test_evaluate_command(file, tmp_path):
    words = ["evaluate", "--data", "digits", "--n", "2", "--denoiser", file, "--classifier", f"diffusion:{file}",
             "--method", "likelihood_max", "--set", "method.n_iter=1", "--set", "classifier.n_levels=2",
             "--attack", "pgd", "--n-iter", "1", "--eot-iter", "1", "--draws", "1",
             "--out", str(tmp_path / "run.sqlite")]  # fmt: skip
    result = CliRunner().invoke(app, words, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with fp.Run.open(tmp_path / "run.sqlite") as run:
        described = run.identity["defense"]["classifier"]
    assert described["network_calls"] == 20
    page = CliRunner().invoke(
        app, ["report", str(tmp_path / "run.sqlite"), "--out", str(tmp_path / "page.html")]
    )
    assert page.exit_code == 0, page.output
