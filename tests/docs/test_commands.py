"""Every command of README and site exists, with the options that it is given; marked ones run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys

import numpy as np
import pytest
import typer
from PIL import Image

from fastpure.cli.main import app
from tests.docs.pages import PAGES, ROOT, Block, blocks

COMMANDS = [block for page in PAGES for block in blocks(page) if block.language in ("", "bash", "sh")]
RUN = [block for block in COMMANDS if block.mark == "run"]
UsageError = typer.BadParameter.__mro__[1]  # typer has its own copy of click in newer versions
SETTING = re.compile(r"^[A-Z_]+=\S*$")


def lines(block: Block) -> list[list[str]]:
    """The commands of a block as words; comments, settings of the environment and continued lines are understood."""
    joined = block.text.replace("\\\n", " ")
    found = []
    for line in re.sub(r"\$\([^)]*\)", "SHELL", joined).splitlines():
        words = shlex.split(line, comments=True)
        while words and SETTING.match(words[0]):
            words.pop(0)
        if words:
            found.append(words)
    return found


def parse(words: list[str]) -> None:
    """Have the command line read these words, without doing anything. ``...`` stands for what the reader has."""
    command, name = typer.main.get_command(app), "fastpure"
    words = [word for word in words if word != "..."]
    while hasattr(command, "get_command"):
        context = command.make_context(name, [], resilient_parsing=True)
        if not words:
            return
        found = command.get_command(context, words[0])
        assert found is not None, f"there is no command {words[0]!r}"
        command, name, words = found, words[0], words[1:]
    command.make_context(name, words)


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))


def extras() -> set[str]:
    text = (ROOT / "pyproject.toml").read_text()
    part = text.split("[project.optional-dependencies]")[1].split("\n[")[0]
    return set(re.findall(r"^(\w+) = \[", part, re.M))


def check(words: list[str]) -> None:
    """The command is there; whoever writes another kind of command says here how to check it."""
    first, rest = words[0], words[1:]
    if first == "fastpure":
        parse(rest)
    elif first == "make":
        targets = [word for word in rest if "=" not in word]
        assert targets
        assert set(targets) <= make_targets(), targets
    elif first in ("python", "accelerate"):
        if first == "accelerate":
            assert rest[:3] == ["launch", "-m", "fastpure"]
            return parse(rest[3:])
        assert rest[0] == "-m"
        if rest[1] == "fastpure":
            return parse(rest[2:])
        assert rest[1].split(".")[0] in ("bench", "tests", "pip")
        assert rest[1] == "pip" or importlib.util.find_spec(rest[1]), rest[1]
    elif first == "pip":
        assert rest[0] == "install"
        for asked in re.findall(r"fastpure\[([\w,]+)\]|^\.\[([\w,]+)\]", " ".join(rest)):
            assert set("".join(asked).split(",")) <= extras(), asked
    elif first == "pytest":
        for word in rest:
            assert word.startswith("-") or (ROOT / word).exists(), word
    elif first == "sbatch":
        assert any((ROOT / word).is_file() for word in rest)
    elif first == "bash":
        assert (ROOT / rest[0]).is_file(), rest[0]
    else:
        raise AssertionError(f"a command of a kind that no test knows: {words}")


@pytest.mark.parametrize("block", COMMANDS, ids=lambda block: block.name)
def test_commands_exist_with_their_options(block):
    found = lines(block)
    assert found, "an empty block"
    for words in found:
        try:
            check(words)
        except UsageError as error:
            raise AssertionError(f"{' '.join(words)}: {error.format_message()}") from error


@pytest.mark.parametrize(
    "words",
    [
        ["fastpure", "evaluate", "--no-such-option", "3"],
        ["fastpure", "no-such-command"],
        ["make", "no-such-target"],
        ["python", "-m", "bench.no_such_bench"],
        ["pip", "install", "fastpure[nosuch]"],
        ["curl", "x"],
    ],
    ids=lambda words: words[0] + words[1],
)
def test_the_check_finds_what_does_not_exist(words):
    with pytest.raises((AssertionError, UsageError)):
        check(words)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a folder of photos."""
    generator = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for name, size in (("a.png", (40, 36)), ("b.jpg", (32, 48))):
        smooth = Image.fromarray(generator.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize(size)
        smooth.save(tmp_path / "photos" / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("block", RUN, ids=lambda block: block.name)
def test_commands_run(block, place):
    """As a reader would give them, through a shell: globs and quotes are the shell's."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assert line.startswith("fastpure "), "what runs here is a command of ours"
        ours = f"{shlex.quote(sys.executable)} -m {line}"
        done = subprocess.run(["bash", "-c", ours], capture_output=True, text=True, check=False, cwd=place)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"


def test_something_runs():
    assert {block.page.name for block in RUN} >= {"README.md", "start.md", "photos.md"}
