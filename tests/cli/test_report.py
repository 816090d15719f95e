"""`fastpure report` as a user meets it."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

import fastpure as fp
import fastpure.files
from fastpure.cli import main
from fastpure.data import load_dataset


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    data = load_dataset("digits", "test").subset(3)
    paths = []
    for seed in (0, 1):
        method = fp.methods.coup(classifier, t=0.1, dt=0.05)
        defense = fp.Defense(fp.Purifier(denoiser, method, seed=seed), classifier)
        paths.append(folder / f"coup-{seed}.sqlite")
        attack = fp.attacks.PGD(n_iter=2, eot_iter=1)
        fp.evaluate(defense, data, attack, fp.protocols.fresh(2), out=paths[-1], progress=False)
    return [str(path) for path in paths]


def test_report_writes_page_and_tables(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["report", *files, "--csv", "tables", "--title", "Digits", "--shown", "2", "--traced", "2"]
    done = CliRunner().invoke(main.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    html = (tmp_path / "report.html").read_text()
    assert "<h1>Digits</h1>" in html
    assert "adversarial, purified" in html, "the bundled networks are those of the runs"
    assert html.count("<img") == 2 * 2 * 5
    names = ["comparisons.csv", "draws.csv", "images.csv", "quality.csv", "runs.csv"]
    assert sorted(path.name for path in (tmp_path / "tables").iterdir()) == names
    measured = (tmp_path / "tables" / "quality.csv").read_text().splitlines()
    assert len(measured) == 1 + 3 * len(files), "what the page shows of purified images"
    again = CliRunner().invoke(main.app, [*words, "--force"], catch_exceptions=False)
    assert again.exit_code == 0
    assert (tmp_path / "report.html").read_text() == html
    given = ["--denoiser", "digits", "--classifier", "digits", "--force"]
    CliRunner().invoke(main.app, [*words, *given], catch_exceptions=False)
    assert (tmp_path / "report.html").read_text() == html


def test_killed_between_two_files_it_continues_and_spares_others(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["report", files[0], "--csv", "tables", "--figures", "figures", "--shown", "1", "--traced", "0"]
    written, replace_file = [0], fastpure.files.replace_file

    def dying(path, content):
        written[0] += not str(path).endswith(".unfinished")
        if written[0] == 5:
            raise KeyboardInterrupt
        return replace_file(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(fastpure.files, "replace_file", dying)
        assert CliRunner().invoke(main.app, words).exit_code == 130
    assert (tmp_path / "report.html").exists()
    assert not (tmp_path / "tables" / "runs.csv").exists() or not (tmp_path / "tables" / "draws.csv").exists()
    page = (tmp_path / "report.html").read_bytes()
    (tmp_path / "report.html").write_text("notes of somebody")
    refused = CliRunner().invoke(main.app, words)
    assert isinstance(refused.exception, FileExistsError)
    assert (tmp_path / "report.html").read_text() == "notes of somebody"
    (tmp_path / "report.html").write_bytes(page)
    assert CliRunner().invoke(main.app, words, catch_exceptions=False).exit_code == 0
    assert not list(tmp_path.rglob(".*"))
    assert isinstance(CliRunner().invoke(main.app, words).exception, FileExistsError), (
        "finished, it is as ever"
    )


def test_figures_are_written_beside_the_page(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["report", *files, "--figures", "docs/figures", "--shown", "1", "--traced", "1"]
    done = CliRunner().invoke(main.app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    names = ["attack-accuracy.svg", "attack-loss-ce.svg"]
    names += ["confidence-most-probable-class.svg", "confidence-true-class.svg", "classified-right.svg"]
    names += ["images-coup-0.png", "images-coup-1.png"]
    said = [line for line in done.stdout.splitlines() if line.startswith("wrote ")]
    assert said == [*(f"wrote docs/figures/{name}" for name in names), "wrote report.html"]
    assert sorted(path.name for path in (tmp_path / "docs" / "figures").iterdir()) == sorted(names)
    (tmp_path / "report.html").unlink()
    again = CliRunner().invoke(main.app, [*words, "--csv", "tables"])
    assert isinstance(again.exception, FileExistsError)
    assert "attack-accuracy.svg exists; use --force" in str(again.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["docs"], "nothing is written if one name is taken"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["none.sqlite"], "none.sqlite: no such run file"),
        (["{0}", "{0}"], "`runs` must be different runs"),
        (["{0}", "--out", "there.html"], "there.html exists; use --force"),
        (["{0}", "--out", "."], ". is a folder"),
        (["{0}", "--csv", "."], "runs.csv exists; use --force"),
        (["{0}", "--csv", "there.html"], "there.html is a file where a folder should be"),
        (["{0}", "--figures", "there.html"], "there.html is a file where a folder should be"),
        (["{0}", "--figures", "there.html/new", "--force"], "there.html is a file where a folder should be"),
        (["{0}", "--parquet", "new"], "pip install 'fastpure[parquet]'"),
        (["{0}", "--shown", "-1"], "`--shown` must be an integer >= 0"),
        (["{0}", "--denoiser", "digits"], "`--classifier` must be given with --denoiser"),
        (["{0}", "--classifier", "none.pt"], "none.pt"),
        (["{0}", "--device", "tpu"], "`device` must be cpu"),
    ],
)
def test_refusals_are_one_sentence_and_write_nothing(files, words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    before = {"there.html": "mine", "runs.csv": "mine"}
    for name, text in before.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(sys, "argv", ["fastpure", "report", *(word.format(*files) for word in words)])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("fastpure: ")
    assert message in text
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before
