"""Every figure of the GPU run, at digits size on the CPU: what only a typo would break must not wait for a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench import gpu, gpu_figures, gpu_smoke
from bench.gpu_cases import PEERS, Loops, Sizes
from bench.rows import read
from fastpure.baselines import plain_network
from fastpure.kernels import triton_support

QUICK = Sizes.quick()


def rows_of(group, tmp_path):
    failed = gpu_figures.measure_all(gpu_figures.GROUPS[group](QUICK), tmp_path / "rows.jsonl", group)
    rows = read(tmp_path / "rows.jsonl")
    assert failed == 0, [row["error"] for row in rows if "error" in row]
    return rows


def test_headlines(tmp_path):
    rows = rows_of("headlines", tmp_path)
    found = {(row["figure"], row.get("who"), row.get("precision"), row.get("batch")) for row in rows}
    assert len(found) == len(rows)
    for batch in QUICK.batches:
        for precision in ("bf16", "tf32", "fp32"):
            assert ("gradient", "fastpure, store", precision, batch) in found
            assert ("gradient", "checkpoint", precision, batch) in found
    assert {who for _, who, _, _ in found if who and not who.startswith("fastpure")} == {
        name for name in PEERS if "compile" not in name
    }
    assert [row["who"] for row in rows[:3]] == ["fastpure, store", "checkpoint", "fastpure"]
    assert rows.pop()["error_relative"] < 1e-11
    for row in rows:
        assert 0 < row["min"] <= row["median"] <= row["max"]
        if "ms" in row:
            # Of an even number of repeats the median rate is not exactly the rate of the median time.
            assert row["min"] <= 1e3 * row["batch"] * 4 / row["ms"] * (1 + 1e-9)
            assert row["max"] >= 1e3 * row["batch"] * 4 / row["ms"] * (1 - 1e-9)


def test_compiled_peers(tmp_path, monkeypatch):
    asked = []

    def compile_nothing(network, **settings):
        asked.append(settings["mode"])
        return network

    monkeypatch.setattr(torch, "compile", compile_nothing)
    rows = rows_of("compiled", tmp_path)
    assert asked == [row["who"].removeprefix("torch.compile ") for row in rows]
    assert {row["batch"] for row in rows} == set(QUICK.batches)
    # The check that a peer computes the right thing would see a wrong one.
    gradients = [row for row in rows if row["figure"] == "gradient"]
    assert all(row["difference"] < 0.02 for row in gradients)


def test_a_peer_that_computes_something_else_is_seen():
    loops = Loops(QUICK)
    run, describe = loops.case("gradient", "torch.compile default", "fp32", 1, False)
    run.args[0].network = plain_network.Cast(loops.networks.plain(), torch.float32, True).requires_grad_(
        False
    )
    for weight in run.args[0].network.parameters():
        weight.mul_(1.05)
    assert describe()["difference"] > 0.01


@pytest.mark.parametrize("group", ["kernels", "norms"])
def test_kernels_and_norms(group, tmp_path):
    rows = rows_of(group, tmp_path)
    assert len(rows) >= 4
    if group == "kernels":
        assert all(row["share_of_copy"] > 0 for row in rows[1:])
    else:
        assert all(row["error"] < 1e-5 for row in rows)


def test_sweep(tmp_path):
    if triton_support.load().module is None:
        pytest.skip(triton_support.load().reason or "")
    rules = {name: dict(kept) for name, kept in triton_support.RULES.items()}
    rows = rows_of("sweep", tmp_path)
    assert rules == triton_support.RULES
    decided = [row for row in rows if row["now"] is not None]
    assert {row["rule"] for row in decided} == {"forward_fused", "backward_fused"}  # tiny: whole groups fit
    for row in decided:
        assert 1 <= len(row["best"]) <= 3
        assert row["best"][0]["microseconds"] <= row["now"] + 0.01


def test_environment(tmp_path):
    group = gpu_figures.environment(QUICK, "abc")
    assert gpu_figures.measure_all(group, tmp_path / "rows.jsonl", "environment") == 0
    described, bits = read(tmp_path / "rows.jsonl")
    assert described["commit"] == "abc"
    assert described["torch"] == torch.__version__
    assert bits["equal"] is True


def test_smoke(tmp_path):
    rows = rows_of("smoke", tmp_path)
    assert {row["figure"] for row in rows} == {
        "digits gradient against float64",
        "recorded against launched",
        "ours against the plain loop",
    }


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_smoke_sees_a_wrong_gradient(tmp_path, monkeypatch, wrong):
    right = gpu_smoke.gradient
    monkeypatch.setattr(gpu_smoke, "gradient", lambda *arguments: wrong * right(*arguments))
    failed = gpu_figures.measure_all(
        gpu_smoke.figures(QUICK), tmp_path / "rows.jsonl", "smoke", only="float64, fp32"
    )
    assert failed == 1
    (row,) = read(tmp_path / "rows.jsonl")
    assert row["error"].startswith("AssertionError: digits gradient against float64: relative error")


def test_the_kept_gradient_is_that_of_the_bundled_weights():
    given, inputs = gpu_smoke.kept(), gpu_smoke.inputs()
    assert torch.equal(given["x"], inputs["x"])
    again = gpu_smoke.gradient(given, "fp64")
    assert given["gradient"].dtype == torch.float64
    assert gpu_smoke.error(again, given["gradient"]) < 1e-11


def test_a_figure_that_fails_loses_only_itself_and_late_ones_are_named(tmp_path, capsys):
    def broken():
        raise ValueError("the figure's own words")

    figures = [("a", lambda: {"figure": "a"}), ("broken", broken), ("b", lambda: {"figure": "b"})]
    rows = tmp_path / "rows.jsonl"
    assert gpu_figures.measure_all(iter(figures), rows, "s") == 1
    assert [row.get("error", row["figure"]) for row in read(rows)] == [
        "a",
        "ValueError: the figure's own words",
        "b",
    ]
    assert "Traceback" in capsys.readouterr().err
    assert gpu_figures.measure_all(iter(figures), rows, "s", limit=-1, only="b") == 0
    assert [row["skipped"] for row in read(rows)[3:]] == ["-1 s were over"] * 2


def test_stages_call_groups_that_exist():
    known = {"environment", *gpu_figures.GROUPS}
    for stage in gpu.stages("python", None):
        for words in stage.commands.values():
            if "bench.gpu_figures" in words:
                assert words[words.index("bench.gpu_figures") + 1] in known


def test_from_stage_to_rows(tmp_path):
    """One real stage through the orchestrator; without --quick it says that there is no GPU."""
    words = next(stage for stage in gpu.stages(sys.executable, None) if stage.name == "kernels").commands[
        "kernels"
    ]
    stages = [gpu.Stage("kernels", 60, {"kernels": (*words, "--quick")})]
    assert gpu.run(stages, tmp_path, 60) == 0
    rows = read(tmp_path / gpu.ROWS)
    assert {row["stage"] for row in rows} == {"kernels"}
    assert rows[-1]["outcome"] == "ok"
    if not torch.cuda.is_available():
        plain = [word.format(rows=tmp_path / "r", seconds=1, out=tmp_path) for word in words]
        done = subprocess.run(plain, cwd=gpu.ROOT, capture_output=True, text=True)
        assert done.returncode == 1
        assert "no CUDA device" in done.stderr
