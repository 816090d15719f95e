"""`fastpure download`: the list, and fetching by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from fastpure import hub
from fastpure.cli.main import app
from tests.hub.test_hub import NAME, server

__all__ = ["server"]


def _run(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["download", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_alone_it_lists_and_asks_nobody(server) -> None:
    said = _run()
    assert all(name in said for name in hub.CARDS)
    assert "CC-BY-NC-SA-4.0" in said
    assert server.log == []


def test_by_name_it_says_the_licence_and_where_it_is(server, tmp_path: Path) -> None:
    said = _run(NAME)
    assert "licence MIT" in said
    assert str(hub.cache_folder() / NAME / "weights.safetensors") in said.replace("\n", "")
    (line,) = [line for line in _run().splitlines() if line.startswith(NAME)]
    assert " yes " in line
    assert str(tmp_path / "mine") in _run(NAME, "--dest", str(tmp_path / "mine"))


def test_an_unknown_name(server) -> None:
    with pytest.raises(ValueError, match="Did you mean"):
        _run("edm-cifar")
