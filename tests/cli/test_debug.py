"""At the command line: one sentence and no traceback, unless --debug or FASTPURE_DEBUG asks for it."""

from __future__ import annotations

import errno
import sys

import pytest

from fastpure.cli import main as cli
from fastpure.errors import CheckpointError, DiskFull
from tests.golden import FOLDER


def fail_with(monkeypatch, capsys, error: BaseException, *words: str) -> tuple[int, str]:
    def failing(_: list[str]) -> None:
        raise error

    monkeypatch.setattr(cli, "app", failing)
    monkeypatch.setattr(sys, "argv", ["fastpure", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(ended.value.code or 0), capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CheckpointError("net.pt: damaged"), 2, "fastpure: net.pt: damaged"),
        (ValueError("`t` must be in (0, 1], got 2"), 2, "`t` must be in (0, 1]"),
        (DiskFull("run.sqlite cannot be written"), 2, "run.sqlite"),
        (
            OSError(errno.ENOSPC, "No space left on device", "out/state.pt"),
            2,
            "out/state.pt: No space left on device",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "fastpure: No space left on device"),
        (MemoryError(), 1, "the memory is not enough"),
        (KeyError("config"), 1, "not foreseen, KeyError: 'config'. --debug shows where"),
        (RecursionError("maximum recursion depth exceeded"), 1, "not foreseen, RecursionError"),
        (ZeroDivisionError("division by zero"), 1, "not foreseen, ZeroDivisionError"),
        (OverflowError(), 1, "not foreseen, OverflowError. --debug"),
        (AssertionError(), 1, "not foreseen, AssertionError"),
        (RuntimeError("two\nlines"), 1, "RuntimeError: two lines."),
        (ValueError(), 1, "not foreseen, ValueError"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_one_sentence(monkeypatch, capsys, error, code, words):
    monkeypatch.delenv("FASTPURE_DEBUG", raising=False)
    found, text = fail_with(monkeypatch, capsys, error, "doctor")
    assert found == code
    assert words in text
    assert len(text.strip().splitlines()) == 1
    assert "Traceback" not in text


@pytest.mark.parametrize("words", [("--debug", "doctor"), ("doctor", "--debug"), ("doctor",)])
def test_the_traceback_where_it_is_asked_for(monkeypatch, capsys, words):
    monkeypatch.setenv("FASTPURE_DEBUG", "0" if "--debug" in words else "1")
    found, text = fail_with(monkeypatch, capsys, KeyError("config"), *words)
    assert found == 1
    assert "Traceback" in text
    assert "in failing" in text


def test_behind_two_dashes_it_is_a_name():
    assert cli._without_debug(["a", "--", "--debug"]) == (["a", "--", "--debug"], False)


def run(monkeypatch, capsys, *words: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the command line, in this process."""
    monkeypatch.setattr(sys, "argv", ["fastpure", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, printed.err


def test_before_and_behind_a_command(tmp_path, monkeypatch, capsys):
    """A configuration that is nested a hundred thousand times over."""
    monkeypatch.delenv("FASTPURE_DEBUG", raising=False)
    (tmp_path / "deep.json").write_text("[" * 100_000)
    words = (
        "doctor",
        "--denoiser",
        str(FOLDER / "adm_tiny.pt"),
        "--model-config",
        str(tmp_path / "deep.json"),
    )
    code, _, text = run(monkeypatch, capsys, *words)
    assert code == 2
    assert text.strip().endswith("nested too deeply")
    assert "Traceback" not in text
    for asked in (("--debug", *words), (*words, "--debug")):
        code, _, text = run(monkeypatch, capsys, *asked)
        assert code == 2
        assert "Traceback" in text
        assert text.strip().endswith("nested too deeply")
    assert "--debug" in run(monkeypatch, capsys, "--help")[1]


@pytest.mark.parametrize(
    "words",
    [
        ("doctor", "--denoiser", "no such file"),
        ("convert", "/", "/tmp/out.safetensors"),
        ("evaluate", "--method", "edm", "--set", "method.n_steps=0", "--n", "1"),
        ("evaluate", "--method", "edm", "--set", "method.churn=nan", "--n", "1"),
        ("attack", "--eps", "1/0", "--n", "1", "--out", "x.npz"),
        ("report", "/dev/null"),
        ("compare", "/dev/null", "/dev/null"),
    ],
)
def test_mistakes_of_every_kind(words, tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("FASTPURE_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    code, _, text = run(monkeypatch, capsys, *words)
    assert code in (1, 2)
    assert "Traceback" not in text
    assert text.strip()
    assert "not foreseen" not in text
