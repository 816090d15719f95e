"""`fastpure diagnose` as a user meets it."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.main import app
from fastpure.data import load_dataset
from tests.evaluate import toys


@pytest.fixture(scope="module")
def data():
    return load_dataset("digits", "test").subset(4)


@pytest.fixture(scope="module")
def file(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("runs") / "coup.sqlite"
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    defense = fp.Defense(
        fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.1, dt=0.05, scale=2.0)), classifier
    )
    attack = fp.attacks.PGD(eps=0.1, n_iter=2, eot_iter=1)
    fp.evaluate(defense, data, attack, fp.protocols.fresh(2), out=path, progress=False)
    return path


def run(*words: str):
    return CliRunner().invoke(app, ["diagnose", *words], catch_exceptions=False)


def test_everything_is_said(file):
    done = run(str(file), "--n", "3", "--draws", "3")
    assert done.exit_code == 0, done.output
    for words in (
        "defence   coup(",
        "the first 3 of 4",
        "adversarial, purified",
        "compression",
        "LPIPS sees grey or colour images of at least 16 x 16 pixels",
        "clean images",
        "adversarial images",
        "proposition 2 of COUP with e^gamma - 1",
        "gradients of 3 images, 3 draws: pairwise cosine",
    ):
        assert words in done.output


def test_as_json_it_is_what_the_functions_say(file, data):
    found = json.loads(run(str(file), "--draws", "4", "--gradient", "detached", "--json").output)
    assert found["images"] == 4
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    own = fp.Purifier(denoiser, fp.methods.coup(classifier, t=0.1, dt=0.05, scale=2.0))
    bound = fp.diagnostics.distance_bound(own, data.images, data.sample_ids)
    for name in ("moved", "bound", "corrected", "printed"):
        assert found["distance"]["clean"][name] == pytest.approx(float(getattr(bound, name).mean()), rel=1e-5)
    assert found["distance"]["adversarial"]["moved"] < found["distance"]["adversarial"]["bound"]
    agreement = fp.diagnostics.gradient_agreement(
        fp.Defense(own, classifier), data.images, data.labels, data.sample_ids, draws=4, gradient="detached"
    )
    assert found["gradients"]["cosine"] == pytest.approx(float(agreement.cosine.mean()), rel=1e-4)
    assert found["gradients"]["draws"] == 4
    assert [row["name"] for row in found["images_purified"]][1] == "adversarial"
    given = ["--denoiser", "digits", "--classifier", "digits"]
    again = json.loads(run(str(file), "--draws", "4", "--gradient", "detached", "--json", *given).output)
    assert again == found


def test_a_bare_classifier_and_a_method_with_a_procedure(tmp_path, data):
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    bare = tmp_path / "bare.sqlite"
    fp.evaluate(classifier, data, None, fp.protocols.fresh(2), out=bare, progress=False)
    found = json.loads(run(str(bare), "--json").output)
    assert found["gradients"] == {"draws": 1, "gradient": "exact", "cosine": 1.0, "snr_median": None}
    assert "distance" not in found
    assert "nothing is random" in run(str(bare)).output
    adp = tmp_path / "adp.sqlite"
    defense = fp.Defense(fp.Purifier(denoiser, fp.methods.adp()), classifier)
    fp.evaluate(defense, data.subset(1), None, fp.protocols.fresh(2), out=adp, progress=False)
    done = run(str(adp), "--draws", "2")
    assert "no bound of the distance: adp walks its table by a rule of its own" in done.output
    assert "clean, purified" in done.output


def test_refusals(file, tmp_path):
    def refused(*words: str) -> str:
        done = CliRunner().invoke(app, ["diagnose", *words])
        assert done.exit_code != 0
        return f"{done.output} {done.exception}"

    assert "none.sqlite: no such run file" in refused(str(tmp_path / "none.sqlite"))
    assert "`--n` must be an integer >= 1" in refused(str(file), "--n", "0")
    assert "`--draws` must be an integer >= 2" in refused(str(file), "--draws", "1")
    assert "`gradient` must be one of" in refused(str(file), "--gradient", "none")
    assert "`--classifier` must be given" in refused(str(file), "--denoiser", "digits")
    other = tmp_path / "other.sqlite"
    toys.evaluate(other)
    assert "its networks are not the bundled ones" in refused(str(other))
