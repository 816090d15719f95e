"""`evaluate`, `attack`, `sweep`, `merge`, `compare` as a user meets them: small, on digits."""

from __future__ import annotations

import json
import signal
import sys

import numpy as np
import pytest
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.experiment import method_settings
from fastpure.cli.main import app
from fastpure.cli.options import request
from fastpure.cli.sweep import grid
from fastpure.cli.values import literal
from fastpure.data import load_dataset
from fastpure.evaluate.work import Worker
from fastpure.purify.description import plain

TINY = ["--n", "3", "--steps", "2", "--n-iter", "2", "--eot-iter", "1"]
JUDGE = ["--draws", "2", "--no-progress"]


def run(*words: str):
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_evaluate_prints_a_report_and_continues_in_a_file_named_after_the_experiment(here):
    first = run("evaluate", *TINY, *JUDGE)
    for word in (
        "coup(",
        "PGD(",
        "fresh(2 draws)",
        "clean ",
        "robust ",
        "95 % Wilson",
        "digits/test, 3 images",
    ):
        assert word in first
    (path,) = (here / "runs").iterdir()
    assert path.name.startswith("digits-coup-pgd-fresh-")
    again = run("evaluate", *TINY, *JUDGE)
    assert [line for line in again.splitlines() if "robust" in line] == [
        line for line in first.splitlines() if "robust" in line
    ]
    run("evaluate", *TINY, *JUDGE, "--eps", "0.1")
    assert len(list((here / "runs").iterdir())) == 2
    with fp.Run.open(path) as opened:
        assert opened.complete
        assert len(opened.sessions()) == 2
        settings = opened.identity["attack"]["settings"]
        assert (settings["eps"], settings["n_iter"], settings["eot_iter"]) == (0.2, 2, 1)
        assert opened.identity["defense"]["method"]["settings"]["dt"] == 0.075


def test_settings_reach_method_and_attack(here):
    words = ["--method", "ddpm", "--t", "0.05", "--steps", "3", "--attack", "apgd-ce", "--eps", "8/255"]
    run("evaluate", "--n", "2", *words, "--set", "attack.n_iter=2", "--set", "attack.gradient=bpda",
        "--set", "method.variance=large", "--out", "r.sqlite", *JUDGE)  # fmt: skip
    with fp.Run.open("r.sqlite") as opened:
        method = opened.identity["defense"]["method"]["settings"]
        attack = opened.identity["attack"]
        assert (method["t"], method["n_steps"], method["variance"]) == (0.05, 3, "large")
        assert (attack["name"], attack["settings"]["gradient"]) == ("APGDCE", "bpda")
        assert attack["settings"]["eps"] == 8 / 255


def test_dry_run_prints_the_cost_and_writes_nothing(here):
    output = run("evaluate", *TINY, "--dry-run")
    for word in ("network calls", "time", "memory", "disk"):
        assert word in output
    assert not list(here.iterdir())


def test_shards_and_merge_and_compare(here):
    words = [
        "evaluate",
        "--method",
        "none",
        "--n",
        "6",
        "--n-iter",
        "3",
        "--batch-size",
        "2",
        "--no-progress",
    ]
    run(*words, "--out", "whole.sqlite")
    for i in (1, 2):
        run(*words, "--shard", f"{i}/2", "--out", f"{i}.sqlite")
    merged = run("merge", "merged.sqlite", "1.sqlite", "2.sqlite")
    assert "6 images" in merged
    with fp.Run.open("whole.sqlite") as whole, fp.Run.open("merged.sqlite") as parts:
        assert whole.content_digest() == parts.content_digest()
    run(*words, "--n-iter", "9", "--out", "more.sqlite")
    output = run("compare", "whole.sqlite", "more.sqlite")
    assert "exact McNemar p = " in output
    assert "more n_iter: robust accuracy goes from" in output


def test_attack_writes_an_archive_whose_numbers_hold(here):
    output = run(
        "attack", "--method", "none", "--n", "8", "--n-iter", "5", "--batch-size", "3", "--out", "a.npz"
    )
    assert "wrote a.npz" in output
    saved = np.load("a.npz")
    data = load_dataset("digits", "test").subset(8)
    assert np.array_equal(saved["x"], data.images.numpy())
    assert np.array_equal(saved["sample_ids"], data.sample_ids.numpy())
    difference = np.abs(saved["x_adv"].astype(np.float64) - saved["x"])
    assert np.allclose(saved["distance"], difference.max((1, 2, 3)))
    assert difference.max() <= 0.2
    import torch

    predicted = fp.load_classifier("digits")(torch.from_numpy(saved["x_adv"])).argmax(1).numpy()
    assert np.array_equal(saved["robust_correct"][:, 0], predicted == saved["labels"])
    assert saved["losses"].shape == (5, 8)
    assert json.loads(str(saved["about"]))["defense"]["kind"] == "module"
    assert [path.name for path in here.iterdir()] == ["a.npz"]


def test_sweep_runs_every_combination_once(here):
    words = ["sweep", "--over", "t=0.05,0.1", "--over", "scale=0,2", *TINY, *JUDGE, "--out", "s"]
    output = run(*words)
    names = sorted(path.name for path in (here / "s").iterdir())
    assert names == [
        "t=0.05-scale=0.sqlite",
        "t=0.05-scale=2.sqlite",
        "t=0.1-scale=0.sqlite",
        "t=0.1-scale=2.sqlite",
    ]
    assert output.count("%") >= 8
    for path in (here / "s").iterdir():
        with fp.Run.open(path) as opened:
            settings = opened.identity["defense"]["method"]["settings"]
            assert path.name == f"t={settings['t']:g}-scale={settings['scale']:g}.sqlite"
            assert settings["dt"] == settings["t"] / 2
    assert run(*words) == output


def test_a_sweep_over_iterations_says_whether_they_still_help(here):
    words = ["sweep", "--over", "n-iter=1,8", "--method", "none", "--n", "30", "--no-progress", "--out", "s"]
    assert "more n_iter: robust accuracy goes from" in run(*words)


def test_every_command_shows_the_alarms_of_weak_attacks(here):
    printed = run("evaluate", *TINY, *JUDGE, "--out", "a.sqlite")
    run("evaluate", *TINY, *JUDGE, "--out", "b.sqlite", "--eps", "0.1")
    expected = {
        "iterations": "2 iterations are too few to tell",
        "draws per gradient": "1 draw per gradient or answer of a random defence",
        "evaluation draws": "2 evaluation draws decide about a random defence",
        "images": "3 images leave",
    }
    attacked = run("attack", *TINY, "--set", "attack.eval_draws=2")
    compared = run("compare", "a.sqlite", "b.sqlite")
    swept = run("sweep", *TINY, *JUDGE, "--over", "eps=0.1,0.2", "--out", "sweep")
    for name, text in expected.items():
        assert f"WARNING   {name}: {text}" in printed
        assert f"WARNING  {name}: {text}" in attacked
        assert f"WARNING   a.sqlite: {name}: {text}" in compared
        assert f"WARNING   b.sqlite: {name}: {text}" in compared
        assert f"WARNING   all points: {name}: {text}" in swept


def test_averages_are_a_protocol_with_settings(here):
    out = run(
        "evaluate",
        *TINY,
        *JUDGE,
        "--protocol",
        "average",
        "--set",
        "protocol.of=softmax",
        "--out",
        "r.sqlite",
    )
    assert "average(softmax of 2 draws)" in out
    with fp.Run.open("r.sqlite") as opened:
        assert opened.protocol == fp.protocols.average(2, "softmax")
        assert opened.logits("adversarial").shape == (3, 2, 10)
    planned = run("evaluate", *TINY, *JUDGE, "--protocol", "average", "--dry-run")
    assert "disk" in planned


def test_protocol_settings(here):
    run("evaluate", *TINY, "--method", "diffpure", "--no-progress", "--protocol", "dw_box", "--out", "r.sqlite",
        "--set", "protocol.variant=xi", "--set", "protocol.draw=3", "--draws", "2")  # fmt: skip
    with fp.Run.open("r.sqlite") as opened:
        assert (opened.protocol.part, opened.protocol.fixed_draw, opened.protocol.transfer_draws) == (
            "forward",
            3,
            2,
        )
        assert opened.predicted("clean").shape == (3, 10)
        assert opened.predicted("transfer").shape == (3, 2)


def test_grid():
    assert grid(["t=0.1,1/4", "attack.loss=ce,margin"]) == [
        {"t": 0.1, "attack.loss": "ce"},
        {"t": 0.1, "attack.loss": "margin"},
        {"t": 0.25, "attack.loss": "ce"},
        {"t": 0.25, "attack.loss": "margin"},
    ]
    for text in ("t", "colour=red", "t=", "method.=3"):
        with pytest.raises(ValueError, match="`--over` must be"):
            grid([text])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("8/255", 8 / 255),
        ("3", 3),
        ("0.5", 0.5),
        ("true", True),
        ("None", None),
        ("bpda", "bpda"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_values_are_read_as_written(text, value):
    assert literal(text) == value


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "--attack", "fgsm"], "`attack` must be one of 'pgd'"),
        (["evaluate", "--method", "magic"], "`method` must be one of 'diffpure'"),
        (["evaluate", "--eps", "eight"], "`--eps` must be a number or a fraction such as 8/255, got 'eight'"),
        (["evaluate", "--norm", "L2"], "`--eps` must be given with --norm L2"),
        (["evaluate", "--method", "none", "--t", "0.1"], "`--t` has no effect"),
        (["evaluate", "--set", "attack.strength=3"], "`--set attack.strength`: pgd has no such setting"),
        (["evaluate", "--set", "method.magic=3"], "`--set method.magic`: coup has no such setting"),
        (
            ["evaluate", "--preset", "adbm-cifar10-linf", "--set", "method.classifier=net.pt"],
            "`--set method.classifier` has no effect: adbm-cifar10-linf is not guided",
        ),
        (["evaluate", "--set", "protocol.magic=3"], "`settings of fresh` must be one of 'draws'"),
        (["evaluate", "--set", "eps=3"], "`--set` must be method.NAME=VALUE"),
        (
            ["evaluate", "--protocol", "average", "--set", "protocol.of=votes"],
            "`of` must be one of 'logits', 'softmax'",
        ),
        (["evaluate", "--protocol", "best"], "`protocol` must be one of 'fresh'"),
        (["evaluate", "--shard", "3/2"], "`shard` must be an integer in [1, 2], got 3"),
        (["evaluate", "--data", "cifar10", "--data-path", "none.npz"], "none.npz"),
        (["evaluate", "--device", "tpu"], "`device` must be cpu"),
        (["evaluate", "--n", "2", "--out", "/proc/x.sqlite", "--method", "none"], "cannot be written"),
        (["attack", "--out", "/nowhere/a.npz"], "must name a file in a folder that can be written"),
        (["attack", "--attack", "none"], "`--attack` must name an attack"),
        (["compare", "a.sqlite"], "`runs` must be two or more files"),
        (["compare", "a.sqlite", "b.sqlite"], "a.sqlite: no such run file"),
        (["merge", "out.sqlite", "a.sqlite"], "a.sqlite: no such run file"),
    ],
)
def test_refusals_are_one_sentence(here, words, message, monkeypatch, capsys):
    from fastpure.cli import main

    monkeypatch.setattr(sys, "argv", ["fastpure", *words])
    with pytest.raises(SystemExit) as stop:
        main.main()
    assert stop.value.code == 2
    text = capsys.readouterr().err.splitlines()[-1]
    assert text.startswith("fastpure: ")
    assert message in text
    assert not list(here.iterdir())


def test_an_interrupt_says_how_to_go_on(here, monkeypatch, ctrl_c):
    block, count = Worker.block, []

    def interrupted(self, positions, tick):
        count.append(1)
        if len(count) == 2:
            signal.raise_signal(signal.SIGINT)
        return block(self, positions, tick)

    words = [
        "evaluate",
        "--n",
        "4",
        "--method",
        "none",
        "--batch-size",
        "2",
        "--out",
        "r.sqlite",
        "--no-progress",
    ]
    with monkeypatch.context() as patch:
        patch.setattr(Worker, "block", interrupted)
        result = CliRunner().invoke(app, words)
    assert result.exit_code == 130
    said = "stopped with 2 of 4 images finished, all of them in r.sqlite; the same command continues"
    assert said in result.output
    assert "4 images" in run(*words)


def test_a_presets_step_length_follows_its_own_time():
    published = {"t": 0.075, "dt": 1e-3}
    wanted = request(preset="coup-cifar10-l2", steps=3)
    assert method_settings("coup", wanted, published) == {"dt": pytest.approx(0.025)}
    assert method_settings("coup", request(preset="coup-cifar10-l2"), published) == {}
    assert method_settings("gdmp", request()) == {}, "what suits other methods on digits is not for this one"


def test_an_unknown_preset_is_told_close_ones(here):
    result = CliRunner().invoke(app, ["evaluate", "--preset", "coup-cifar10"])
    assert isinstance(result.exception, ValueError)
    assert "coup-cifar10-linf" in str(result.exception)


def test_images_found_on_one_defence_are_judged_on_another(here):
    common = ["--n", "3", "--batch-size", "2", *JUDGE]
    run("evaluate", "--method", "none", "--n-iter", "3", *common, "--out", "bare.sqlite")
    judge = ["evaluate", "--method", "diffpure", "--steps", "2", "--attack", "bare.sqlite", *common]
    output = run(*judge, "--out", "moved.sqlite")
    assert "Transfer(" in output
    with fp.Run.open("bare.sqlite") as bare, fp.Run.open("moved.sqlite") as moved:
        assert (bare.images("adversarial") == moved.images("adversarial")).all()
    assert "at most 0 gradients" in run(*judge, "--dry-run")
    with pytest.raises(ValueError, match="`--eps` has no effect"):
        run(*judge, "--eps", "0.1")
    with pytest.raises(FileNotFoundError, match=r"nothing\.sqlite"):
        run("evaluate", "--attack", "nothing.sqlite", *common)


def test_an_attack_starts_where_a_run_has_ended(here):
    common = ["--n", "3", "--method", "none", "--eps", "0.2", "--no-progress", "--protocol", "fresh"]
    run("evaluate", *common, "--n-iter", "3", "--out", "a.sqlite")
    words = ["evaluate", *common, "--attack", "apgd-ce", "--n-iter", "2", "--start", "a.sqlite"]
    run(*words, "--out", "b.sqlite", "--set", "attack.targeted=least-likely")
    with fp.Run.open("a.sqlite") as first, fp.Run.open("b.sqlite") as second:
        settings = second.identity["attack"]["settings"]
        assert settings["start"] == plain(fp.attacks.Start.of(first))
        assert settings["targeted"] == "least-likely"
    assert "time" in run(*words, "--dry-run")
    with pytest.raises(ValueError, match=r"inside the ball Linf 0.1 .* sample id"):
        run(*words[:-6], "--eps", "0.1", *words[-6:], "--out", "c.sqlite")
    with pytest.raises(FileNotFoundError, match=r"nothing\.sqlite"):
        run(*words[:-1], "nothing.sqlite")
    with pytest.raises(ValueError, match="`--start` has no effect"):
        run("evaluate", *common, "--attack", "none", "--start", "a.sqlite")


def test_an_attack_with_a_budget_is_planned_and_run(here):
    words = ["--n", "3", "--steps", "2", "--attack", "adaptive", "--set", "attack.budget=40", *JUDGE]
    assert "at most 40 gradients" in run("evaluate", *words, "--dry-run")
    first = run("evaluate", *words)
    assert "Adaptive(" in first
    run("evaluate", *words, "--batch-size", "2")
    paths = sorted((here / "runs").iterdir())
    assert len(paths) == 2, "images that share a budget with others are another run"
    for path in paths:
        with fp.Run.open(path) as opened:
            assert opened.identity["attack"]["settings"]["budget"] == 40.0
            assert opened.spent.mean() <= 40
    hammer = ["--attack", "diffhammer", "--n-iter", "2", "--eot-iter", "2"]
    plain_words = [
        word for word in words if word not in ("adaptive", "--attack", "--set", "attack.budget=40")
    ]
    assert "gradients" in run("evaluate", *plain_words, *hammer, "--dry-run")
    assert "DiffHammer(" in run("evaluate", *plain_words, *hammer)
