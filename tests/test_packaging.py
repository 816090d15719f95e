"""The files around the package: they parse, agree with each other, and travel in the source archive."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path

import pytest
import yaml

import fastpure

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="the source tree is not here")


def test_the_package_says_that_it_is_typed():
    assert (files(fastpure) / "py.typed").is_file()
    assert '"fastpure" = ["py.typed"]' in (ROOT / "pyproject.toml").read_text()


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == fastpure.__version__
    assert cited["license"] == "Apache-2.0"
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()


def test_the_changelog_knows_this_version():
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert fastpure.__version__ in headings
    assert len(set(headings)) == len(headings)


@pytest.mark.parametrize("path", sorted((ROOT / ".github").rglob("*.yml")), ids=lambda path: path.name)
def test_workflows_and_templates_parse(path):
    content = yaml.safe_load(path.read_text())
    assert content["name"]
    if path.parent.name == "workflows":
        for job in content["jobs"].values():
            assert job["steps"]
            # What a step calls of ours is there.
            for run in (step.get("run", "") for step in job["steps"]):
                for folder in re.findall(r"\btests/\w+", run):
                    assert (ROOT / folder).is_dir(), folder


def test_the_source_archive_is_told_of_every_file_at_the_top():
    manifest = (ROOT / "MANIFEST.in").read_text()
    for name in (
        "CHANGELOG.md",
        "CITATION.cff",
        "CONTRIBUTING.md",
        "SECURITY.md",
        "constraints.txt",
        "Makefile",
    ):
        assert (ROOT / name).is_file()
        assert name in manifest
