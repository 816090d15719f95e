"""`fastpure list`, completion of names, the version; the copies that completion reads are those of the registries."""

from __future__ import annotations

import json

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import fastpure as fp
from fastpure.attacks import ATTACKS
from fastpure.attacks.budget import NORMS
from fastpure.cli import listing, names
from fastpure.cli.main import app
from fastpure.data import DATASETS
from fastpure.evaluate import CONTROLS
from fastpure.evaluate.protocol import PROTOCOLS
from fastpure.methods import METHODS
from fastpure.purify.precision import PRECISIONS
from fastpure.zoo import CLASSIFIERS, DENOISERS, ENERGIES


@pytest.mark.parametrize(
    ("copied", "registry"),
    [
        ("METHODS", METHODS),
        ("ATTACKS", ATTACKS),
        ("CONTROLS", CONTROLS),
        ("DENOISERS", DENOISERS),
        ("CLASSIFIERS", CLASSIFIERS),
        ("DATASETS", DATASETS),
        ("PROTOCOLS", PROTOCOLS),
        ("PRESETS", fp.presets),
        ("NORMS", NORMS),
    ],
)
def test_completion_knows_all_names(copied, registry):
    assert list(getattr(names, copied)) == list(registry)


def test_completion_knows_the_precisions():
    assert set(names.PRECISIONS) == set(PRECISIONS) - {"fp64"}


def run(*words):
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.parametrize(
    ("what", "registry"),
    [
        ("methods", METHODS),
        ("attacks", [*ATTACKS, *CONTROLS]),
        ("models", [*DENOISERS, *CLASSIFIERS, *ENERGIES]),
        ("presets", fp.presets),
        ("datasets", DATASETS),
    ],
)
def test_lists_have_a_line_on_everything(what, registry):
    rows = json.loads(run("list", what, "--json"))
    assert [row["name"] for row in rows] == list(registry)
    assert all(len(row["what"]) > 20 for row in rows)
    assert not any("`" in row["what"] for row in rows)
    text = run("list", what)
    assert all(name in text for name in registry)


def test_a_wrong_list_is_told():
    result = CliRunner().invoke(app, ["list", "attack"])
    assert "Did you mean attacks" in str(result.exception)
    assert set(listing.KINDS) == {"methods", "attacks", "models", "presets", "datasets"}


def test_version():
    assert run("--version") == f"fastpure {fp.__version__}\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fastpure evaluate --attack apgd-", {"apgd-ce", "apgd-dlr", "apgd-t"}),
        ("fastpure sweep --method coup", {"coup", "coup_unguided"}),
        ("fastpure purify a.png --preset adbm", {"adbm-cifar10-linf"}),
        ("fastpure certify --denoiser digits", {"digits", "digits-addt", "digits-adbm"}),
        ("fastpure list pre", {"presets"}),
        ("fastpure demo --data cifar", {"cifar10"}),
        ("fastpure train trades --data dig", {"digits"}),
        ("fastpure rep", {"report", "reproduce"}),
        ("fastpure evaluate --save-c", {"--save-config"}),
    ],
)
def test_shells_complete(words, expected):
    *_, last = words.split()
    env = {
        "_FASTPURE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    result = CliRunner().invoke(app, [], prog_name="fastpure", env=env)
    found = set(result.output.split())
    assert expected <= found
    assert all(word.startswith(last) for word in found)


def test_completion_can_be_installed():
    options = {option for param in get_command(app).params for option in param.opts}
    assert {"--install-completion", "--show-completion", "--version"} <= options
