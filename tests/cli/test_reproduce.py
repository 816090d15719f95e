"""`fastpure reproduce` as a user meets it."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from fastpure.cli.main import app
from fastpure.reproduce import EXPERIMENTS, ROLES, SMALL


def run(*words: str) -> str:
    result = CliRunner().invoke(app, ["reproduce", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def refused(*words: str) -> str:
    with pytest.raises((ValueError, OSError)) as found:
        CliRunner().invoke(app, ["reproduce", *map(str, words)], catch_exceptions=False)
    return str(found.value)


def test_without_a_name_all_are_listed():
    lines = run().splitlines()
    for name, one in EXPERIMENTS.items():
        (line,) = (line for line in lines if line.split()[:1] == [name])
        assert one.title in line
        assert "network call" in line
    for role in ROLES:
        assert any(line.split()[:1] == [role] for line in lines)


def test_dry_run_says_what_it_costs_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    output = run("coup-figure1", "--small", "--n", "2", "--dry-run")
    assert SMALL in output
    assert "network calls" in output
    assert not list(tmp_path.iterdir())


def test_a_figure_by_its_name(tmp_path):
    output = run("coup-figure1", "--small", "--n", "1", "--out", tmp_path / "f", "--no-progress")
    assert SMALL in output
    assert (tmp_path / "f" / "coup-figure1-paths.png").stat().st_size > 1000
    assert "table.json" in output


def test_mistakes_are_told(tmp_path):
    assert "Did you mean coup-table1" in refused("coup-tabel1", "--small")
    assert "`fastpure reproduce` lists them" in refused("zzzzzz")
    assert "leave out --denoiser" in refused("coup-table1", "--small", "--denoiser", "x.pth")
    assert "--denoiser no.pth: no such file" in refused("coup-table1", "--denoiser", "no.pth")
    assert "--denoiser FILE" in refused("coup-table1")
    assert "ROLE=FILE" in refused("coup-table1", "--network", "wide")
    assert "--network" in refused("coup-table1", "--network", "nobody=x.pth")
    assert "`n`" in refused("coup-table1", "--small", "--n", "0")
