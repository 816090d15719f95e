"""`fastpure evaluate --protocol published`: from the words on the command line to the smaller of two numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.main import app
from fastpure.evaluate import smaller_of
from fastpure.report import Options, report

PACK = Path(__file__).parent.parent / "data" / "cifar10_64.npz"
PRESET = ["--preset", "coup-cifar10-linf"]
NETWORKS = ["--denoiser", "cifar10-small", "--classifier", "cifar10-small", "--data-path", str(PACK)]
TINY = ["--n", "2", "--steps", "2", "--n-iter", "2", "--eot-iter", "1", "--set", "attack.n_queries=4"]
QUICK = [*TINY, "--set", "attack.n_target_classes=1", "--no-progress"]

pytestmark = [
    pytest.mark.filterwarnings("ignore:the gradient is exactly zero"),
    pytest.mark.filterwarnings("ignore:.* of the 10000 test images"),
]


def run(*words: str) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_preset_by_its_own_rule_and_the_smaller_number_everywhere(here):
    pytest.importorskip("pyautoattack")
    pytest.importorskip("torchsde")
    words = ["evaluate", *PRESET, *NETWORKS, *QUICK, "--protocol", "published"]
    said = run(*words)
    (folder,) = (here / "runs").iterdir()
    assert folder.name.startswith("coup-cifar10-linf-published-")
    files = sorted(folder.glob("*.sqlite"))
    assert [path.stem for path in files] == ["autoattack-rand", "autoattack-standard"]
    runs = [fp.Run.open(path) for path in files]
    try:
        told = smaller_of(runs)
        for opened in runs:
            assert opened.protocol == fp.protocols.legacy_autoattack()
            settings = opened.identity["attack"]["settings"]
            assert (settings["decision"], settings["gradient"]) == ("legacy", "adjoint")
            assert opened.identity["defense"]["method"]["settings"]["dt"] == 0.05
    finally:
        for opened in runs:
            opened.close()
    assert f"number    {told}" in said
    assert "the smaller of AutoAttack rand" in said
    assert "published clean 90.04  robust 73.05" in said
    assert f"number    {told}" in run(*words), "the same command continues, in the same folder"
    assert len(list((here / "runs").iterdir())) == 1
    assert str(told) in run("compare", *files)
    bare = Options(images=0, traced=0)
    page = " ".join(report(files, options=bare).split())
    assert "Runs 1 and 2 are one published number, the smaller of them" in page
    assert f"{100 * told.robust.low:.1f}, {100 * told.robust.high:.1f}" in page
    assert "one published number" not in report(files[:1], options=bare)


@pytest.mark.slow
def test_a_dry_run_tells_the_cost_of_every_attack(here):
    pytest.importorskip("pyautoattack")
    pytest.importorskip("torchsde")
    said = run("evaluate", *PRESET, *NETWORKS, *QUICK, "--protocol", "published", "--dry-run")
    for label in ("autoattack-rand", "autoattack-standard"):
        assert f"coup-cifar10-linf-{label}" in said
    assert said.count("network calls") >= 2
    assert not list(here.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "`--protocol published` needs --preset"),
        ([*PRESET, "--attack", "pgd"], "`--attack` must be left out with --protocol published"),
        (["--preset", "gdmp-cifar10-linf"], "`preset` must be one that names the rule it was published with"),
        ([*PRESET, "--start", "x.sqlite"], "attack autoattack does not take these settings"),
        ([*PRESET, *NETWORKS, "--n", "1", "--draws", "3"], "`draws` must be left out for legacy_autoattack"),
        ([*PRESET, *NETWORKS, "--n", "1", "--set", "protocol.of=x"], "`settings of legacy_autoattack`"),
    ],
)
def test_what_does_not_belong_together_is_refused(here, words, message):
    result = CliRunner().invoke(app, ["evaluate", "--protocol", "published", *words])
    assert isinstance(result.exception, ValueError), result.output
    assert message in str(result.exception)
    assert not list(here.iterdir())
