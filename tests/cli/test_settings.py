"""Settings of commands: files that fill and keep them, one way to write numbers, old spellings, refusals."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.main import get_command
from typer.testing import CliRunner

from fastpure.cli.main import app
from fastpure.cli.settings import register
from fastpure.cli.values import assigned, assignments, literal, number

SEEN: list[dict] = []


def toy(
    inputs: Annotated[list[Path], typer.Argument(help="Files.")],
    out: Annotated[Path, typer.Option(help="Where to.")],
    eps: Annotated[float | None, typer.Option(help="Needs pip install 'fastpure[attacks]'.")] = None,
    sigma: Annotated[float, typer.Option()] = 0.25,
    n: Annotated[int | None, typer.Option()] = None,
    norm: Annotated[str, typer.Option()] = "Linf",
    settings: Annotated[list[str] | None, typer.Option("--set")] = None,
    over: Annotated[list[str] | None, typer.Option()] = None,
    as_json: Annotated[bool, typer.Option("--json")] = False,
    progress: Annotated[bool, typer.Option()] = True,
) -> None:
    """A command. Its extra is [attacks]."""
    SEEN.append(dict(locals()))


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    SEEN.clear()
    return tmp_path


def made(former=None):
    made = typer.Typer()
    register(made, "toy", toy, former, bare="method")
    register(made, "other", toy)
    return made


def call(*words, former=None):
    result = CliRunner().invoke(made(former), ["toy", *map(str, words)])
    if isinstance(result.exception, ValueError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return SEEN[-1], result


NEEDED = ["a.png", "b.png", "--out", "here"]


def test_every_number_may_be_a_fraction(here):
    seen, _ = call(*NEEDED, "--eps", "8/255", "--sigma", "1/4")
    assert (seen["eps"], seen["sigma"]) == (8 / 255, 0.25)
    assert seen["inputs"] == [Path("a.png"), Path("b.png")]
    assert seen["out"] == Path("here")
    assert seen["n"] is None
    assert seen["settings"] is None
    assert seen["progress"] is True
    assert call(*NEEDED)[0]["sigma"] == 0.25
    for wrong in ("eight", "1/0", "nan", ""):
        with pytest.raises(ValueError, match=r"`--eps` must be a number or a fraction such as 8/255, got"):
            call(*NEEDED, "--eps", wrong)


@pytest.mark.parametrize("suffix", [".toml", ".yaml", ".yml"])
def test_what_is_kept_is_taken_again(here, suffix):
    words = [
        *NEEDED,
        "--eps",
        "8/255",
        "--n",
        7,
        "--norm",
        "inf",
        "--json",
        "--no-progress",
        "--over",
        "t=1,2",
    ]
    words += ["--set", "attack.loss=ce", "--set", "method.label='true'", "--set", "attack.start=8/255"]
    words += ["--set", "protocol.of=[1, 2]", "--set", "attack.flag=true"]
    first, _ = call(*words, "--save-config", f"s{suffix}")
    again, _ = call("--config", f"s{suffix}")
    assert {**again, "settings": None} == {**first, "settings": None}
    assert assigned(again["settings"]) == assigned(first["settings"])
    assert assigned(again["settings"])["method"]["label"] == "true"
    call("--config", f"s{suffix}", "--save-config", f"t{suffix}")
    assert Path(f"t{suffix}").read_bytes() == Path(f"s{suffix}").read_bytes()
    call("--config", f"s{suffix}", "--save-config", f"t{suffix}")
    with pytest.raises(ValueError, match="which holds other settings"):
        call("--config", f"s{suffix}", "--n", 8, "--save-config", f"t{suffix}")
    assert Path(f"t{suffix}").read_bytes() == Path(f"s{suffix}").read_bytes()


@pytest.mark.parametrize("suffix", [".toml", ".yaml"])
@pytest.mark.parametrize(
    "text",
    ["method.x=none", "x=2", "method.x=[None, 1]", "attack.x=(1, 2)", "method.x='8/255'", "method.x='1e-3'"],
)
def test_every_setting_can_be_kept(here, suffix, text):
    first, _ = call(*NEEDED, "--set", text, "--set", "attack.y=1e-05", "--save-config", f"s{suffix}")
    again, _ = call("--config", f"s{suffix}")
    read = [assigned(seen["settings"], "method") for seen in (first, again)]
    assert read[0] == read[1]
    assert repr(read[0]) == repr(read[1]), "of the same kind"


def test_a_power_of_ten_in_a_yaml_file_is_a_number(here):
    Path("s.yaml").write_text("set: {attack: {step_size: 1e-3, n: -2E+3, loss: '1e-3', key: 1e-3b}}\n")
    seen, _ = call(*NEEDED, "--config", "s.yaml")
    found = assigned(seen["settings"])["attack"]
    assert found == {"step_size": 1e-3, "n": -2000.0, "loss": "1e-3", "key": "1e-3b"}


def test_explicit_options_win_over_the_file(here):
    Path("s.toml").write_text(
        'inputs = ["c.png"]\nout = "there"\neps = "8/255"\nn = 5\nprogress = false\njson = true\n'
        'over = ["t=1"]\n[set.attack]\nloss = "ce"\nstart = "1/4"\n[set.method]\nlabel = "input"\n'
    )
    seen, _ = call("--config", "s.toml")
    assert seen["inputs"] == [Path("c.png")]
    assert seen["out"] == Path("there")
    assert (seen["eps"], seen["n"], seen["progress"], seen["as_json"]) == (8 / 255, 5, False, True)
    assert assigned(seen["settings"])["attack"] == {"loss": "ce", "start": 0.25}
    seen, _ = call("d.png", "--n", 6, "--progress", "--eps", 0.5, "--set", "attack.loss=dlr", "--over", "t=2",
                   "--config", "s.toml")  # fmt: skip
    assert seen["inputs"] == [Path("d.png")]
    assert seen["out"] == Path("there")
    assert (seen["eps"], seen["n"], seen["progress"]) == (0.5, 6, True)
    assert seen["over"] == ["t=2"], "a list is replaced"
    extra = assigned(seen["settings"])
    assert extra["attack"] == {"loss": "dlr", "start": 0.25}, "settings by name are added up"
    assert extra["method"] == {"label": "input"}
    seen, _ = call("d.png", "--sigma", "0.25", "--config", "s.toml", "--n", 5)
    assert seen["n"] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nn = 3", "s.toml: `nn` is no setting of `fastpure toy`. Did you mean n"),
        ("epsilon = 3", "Did you mean eps (epsilon in "),
        ("quite_else = 3", "There are eps, inputs, json, n, norm, out, over, progress, set, sigma"),
        ("n = 'five'", "s.toml: `n` must be a whole number, got 'five'"),
        ("n = 2.5", "s.toml: `n` must be a whole number, got 2.5"),
        ("eps = 'eight'", "s.toml: `eps` must be a number or a fraction such as 8/255, got 'eight'"),
        ("progress = 'perhaps'", "`progress` must be true or false, got 'perhaps'"),
        ("set = 3", "`set` must be"),
        ("[set]\nattack = 3", "`set` must be"),
        ("over = 3", "`over` must be a list"),
        ("command = 'other'", "`command` must be 'toy', got 'other'"),
        ("n = ", "s.toml cannot be read: "),
    ],
)
def test_mistakes_in_files_are_named(here, text, message):
    Path("s.toml").write_text(text)
    with pytest.raises(ValueError, match=r".") as caught:
        call(*NEEDED, "--config", "s.toml")
    assert message in str(caught.value)
    assert not SEEN


def test_files_of_other_kinds(here):
    Path("s.yaml").write_text("- a\n- b\n")
    with pytest.raises(ValueError, match=r"s\.yaml. must be names with values"):
        call(*NEEDED, "--config", "s.yaml")
    Path("s.yaml").write_text("")
    assert call(*NEEDED, "--config", "s.yaml")[0]["n"] is None
    Path("s.json").write_text("{}")
    with pytest.raises(ValueError, match=r"ends in \.toml"):
        call(*NEEDED, "--config", "s.json")
    with pytest.raises(ValueError, match=r"ends in \.toml"):
        call(*NEEDED, "--save-config", "s.json")
    Path("n.yaml").write_text("eps: 1e-3\nn: 4\nnorm: .inf\n")
    seen, _ = call(*NEEDED, "--config", "n.yaml")
    assert (seen["eps"], seen["n"], seen["norm"]) == (1e-3, 4, "inf")


def test_what_is_required_may_stand_in_the_file_and_must_stand_somewhere(here):
    Path("s.toml").write_text("n = 3\n")
    result = CliRunner().invoke(made(), ["toy", "a.png", "--config", "s.toml"])
    assert result.exit_code == 2
    assert "--out" in result.output


FORMER = {"--images": "--n", "--n": "--eps", "--radius": "--eps"}


def test_old_spellings_work_with_a_word(here):
    seen, result = call(*NEEDED, "--radius", "1/2", former=FORMER)
    assert seen["eps"] == 0.5
    assert result.stderr.splitlines() == ["fastpure: --radius is now called --eps"]
    seen, result = call(*NEEDED, "--radius=1/2", former=FORMER)
    assert seen["eps"] == 0.5
    assert "--radius is now" in result.stderr
    seen, result = call(*NEEDED, "--n", "3", former=FORMER)
    assert (seen["n"], result.stderr) == (3, "fastpure: --n is images; eps are --eps\n"), "the new meaning"
    seen, result = call(*NEEDED, "--n", "3", "--eps", "0.1", former=FORMER)
    assert (seen["n"], seen["eps"], result.stderr) == (3, 0.1, "")
    seen, result = call(*NEEDED, "--images", "3", "--n", "0.1", former=FORMER)
    assert (seen["n"], seen["eps"]) == (3, 0.1), "the old meaning of both"
    assert len(result.stderr.splitlines()) == 2
    beside = {**FORMER, "--old": "--sigma"}
    seen, _ = call(*NEEDED, "--old", "0.5", "--n=0.1", former=beside)
    assert (seen["n"], seen["eps"], seen["sigma"]) == (None, 0.1, 0.5), "a line of that time"
    seen, _ = call(*NEEDED, "--old", "0.5", "--n", "3", "--eps", "0.1", former=beside)
    assert (seen["n"], seen["eps"]) == (3, 0.1)
    Path("s.toml").write_text("radius = 0.5\n")
    seen, result = call(*NEEDED, "--config", "s.toml", former=FORMER)
    assert seen["eps"] == 0.5
    assert "radius is now called eps" in result.stderr
    seen, result = call("--out", "x", "--", "--radius", former=FORMER)
    assert seen["inputs"] == [Path("--radius")]


def test_a_json_file_is_no_settings_file_of_convert(here):
    for file, option in (("net.json", "--model-config"), ("net.toml", "--config")):
        result = CliRunner().invoke(app, ["convert", "a.pt", "b.safetensors", "--config", file])
        assert (f"--config is now called {option}" in result.stderr) == (option != "--config")


def test_unknown_options_are_told_what_was_meant(here):
    for word, meant in (("--epsilon", "--eps (epsilon in"), ("--sigm", "--sigma"), ("--outt", "--out")):
        result = CliRunner().invoke(made(), ["toy", *NEEDED, word, "3"])
        assert result.exit_code == 2
        assert f"Did you mean {meant}" in " ".join(result.output.replace("│", " ").split())


def test_help_shows_names_of_extras(here):
    text = " ".join(CliRunner().invoke(made(), ["toy", "--help"]).output.replace("│", " ").split())
    assert "pip install 'fastpure[attacks]'" in text
    assert "Its extra is [attacks]." in text
    assert "--config" in text
    assert "--save-config" in text


def test_models_are_frozen_and_know_their_fields():
    command = get_command(app).commands["evaluate"].callback.about
    settings = command.settings({"n": 3})
    assert (settings.n, settings.protocol) == (3, "fresh")
    with pytest.raises(ValueError, match="frozen"):
        settings.n = 4
    with pytest.raises(ValueError, match=r"[Ee]xtra"):
        command.model()(nothing=3)


def test_every_command_has_settings_files():
    group = get_command(app)
    names = {name for name in group.commands if name != "train"}
    commands = [group.commands[name] for name in names] + list(group.commands["train"].commands.values())
    assert len(commands) > 15
    for command in commands:
        assert {"config_file", "save_config"} <= {param.name for param in command.params}, command.name
        new = {option for param in command.params for option in param.opts}
        assert set(command.callback.about.former.values()) <= new, command.name
        keys = command.callback.about.keys
        assert len(keys) == len(command.callback.about.hints), f"{command.name}: two options have one key"
        command.callback.about.model()


def test_an_experiment_from_a_file_is_the_same_experiment(here, monkeypatch):
    from fastpure.cli import evaluate

    asked = []
    monkeypatch.setattr(evaluate, "build", lambda wanted: asked.append(wanted) or 1 / 0)
    Path("e.toml").write_text(
        'n = 2\nmethod = "ddpm"\nt = "1/20"\nsteps = 2\neps = "8/255"\ndraws = 2\nstart = "r.sqlite"\n'
        '[set.attack]\nn_iter = 1\ntargeted = "least-likely"\n'
    )
    words = ["--n", "2", "--method", "ddpm", "--t", "0.05", "--steps", "2", "--eps", "8/255", "--draws", "2"]
    words += ["--start", "r.sqlite", "--set", "attack.n_iter=1", "--set", "attack.targeted=least-likely"]
    for given in (words, ["--config", "e.toml"]):
        assert isinstance(CliRunner().invoke(app, ["evaluate", *given]).exception, ZeroDivisionError)
    assert asked[0] == asked[1]
    assert asked[0].given["eps"] == 8 / 255
    assert asked[0].given["start"] == Path("r.sqlite")


@pytest.mark.parametrize("value", ["text", "true", "8/255", "None", 3, 0.1, True, None, [1, "a"], "it's", ""])
def test_assignments_are_read_as_they_were(value):
    read = assigned(assignments({"attack": {"x": value}}))["attack"]["x"]
    assert read == (8 / 255 if value == "8/255" else value)


def test_numbers():
    assert [number(text) for text in ("1/10", " 0.5 ", "1e-3", "8/255")] == [0.1, 0.5, 1e-3, 8 / 255]
    assert literal("[1, 2]") == [1, 2]
    with pytest.raises(ValueError, match="fraction"):
        number("inf")
    assert (number("125.3/255"), literal("125.3/1e2")) == (125.3 / 255, 1.253)
    for wrong in ("1/0", "1/", "/2", "1/2/3"):
        assert literal(wrong) == wrong
        with pytest.raises(ValueError, match="fraction"):
            number(wrong)


def test_help_loads_neither_torch_nor_readers_of_files():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom fastpure.cli.main import app\n"
        "assert CliRunner().invoke(app, ['evaluate', '--help']).exit_code == 0\n"
        "assert not {'torch', 'tomlkit', 'yaml', 'matplotlib', 'scipy'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
