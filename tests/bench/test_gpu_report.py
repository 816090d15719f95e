"""The report of a GPU run, from rows that are made up here: no such machine measured them."""

from __future__ import annotations

import pytest
import torch

import fastpure as fp
from bench import gpu_figures, gpu_report
from bench.gpu_cases import Sizes
from bench.gpu_report import Measured, attack_hours, attack_queries, prediction, report
from bench.rows import append, read
from fastpure.nets import Denoiser


def made_up(
    figure: str, who: str, median: float, batch: int, precision: str = "bf16", **more: object
) -> dict:
    labels = {"who": who, "precision": precision, "batch": batch, "steps": 4, "ms": 4e3 * batch / median}
    return {"figure": figure, "median": median, "min": median, "max": median, **labels, **more}


ROWS = [
    {"stage": "environment", "environment": True, "gpu": "made up", "torch": "0.0", "commit": "abc"},
    made_up("gradient", "fastpure, store", 600.0, 1, reserved_gb=0.5),
    made_up("gradient", "checkpoint", 100.0, 1),
    made_up("gradient", "checkpoint, NCHW", 150.0, 1),
    made_up("gradient", "torch.compile default", 300.0, 1, reserved_gb=0.4),
    made_up("gradient", "torch.compile max-autotune", 400.0, 1, reserved_gb=1.0),
    made_up("gradient", "fastpure, store", 100.0, 64),
    made_up("gradient", "fastpure, store", 4000.0, 64, reserved_gb=9.0),
    made_up("gradient", "checkpoint", 1600.0, 64),
    made_up("gradient", "torch.compile default", 3900.0, 64, reserved_gb=10.0),
    made_up("gradient", "checkpoint", 50.0, 20, precision="tf32"),
    made_up("purification", "fastpure", 9000.0, 64),
    made_up("purification", "plain loop", 6000.0, 64),
    {"figure": "matrix product", "precision": "bf16", "median": 700.0},
    {"stage": "tests", "process": "cuda", "outcome": "failed with 1", "seconds": 9.0}
    | {"tests": 7, "failures": 1, "errors": 0, "skipped": 2, "failed": ["a::b"]},
    {"figure": "group norm", "site": "s", "error": 1e-3},
    {"figure": "gradient, late", "skipped": "10 s were over"},
    {"figure": "gradient, broken", "error": "RuntimeError: no"},
]


@pytest.fixture(scope="module")
def lines(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "rows.jsonl"
    for row in ROWS:
        append(path, row)
    return list(report(Measured(read(path))))


def test_ratios_take_the_peer_at_its_best_and_stand_beside_the_goals(lines):
    assert "| bf16 | 1 | 600 | 150 | 400 | max-autotune | 4.00 (5, missed) | 1.50 (1.2) |" in lines
    assert "| bf16 | 64 | 4000 | 1600 | 3900 | default | 2.50 (2.8, missed) | 1.03 (1.05, missed) |" in lines
    assert "| tf32 | 20 | - | 50 | - | - | - | - |" in lines
    assert "| bf16 | 64 | 9000 | 6000 | - | 1.50 | - |" in lines
    assert not any(line.startswith("| bf16 | 20 |") for line in lines)


def test_memory_is_compared_with_the_compiled_loop_that_counted(lines):
    (one,) = (line for line in lines if "memory of the gradient, bf16, B = 1:" in line)
    assert "0.50 GB, 50 % of the compiled loop's 1.00 (goal at most 60 %)" in one
    (many,) = (line for line in lines if "memory of the gradient, bf16, B = 64:" in line)
    assert "90 %" in many
    assert "missed" in many


def test_arithmetic_is_a_share_of_the_measured_product(lines):
    (line,) = (line for line in lines if "arithmetic" in line)
    # 74.1 GFLOP of convolutions and products per image and step, 4000 of them in a second, of 700 TFLOP/s.
    share = 74.1e9 * 4000 / 700e12
    assert f"{100 * share:.0f} % of" in line
    assert "B = 64" in line
    assert "missed" in line


def test_the_model_stands_beside_what_was_measured(lines):
    at = lines.index("| precision | B | predicted ms per step | measured | measured / predicted |")
    predicted = prediction("bf16", 64).graph_ms
    measured = 1e3 * 64 / 4000
    assert f"| bf16 | 64 | {predicted:.2f} | {measured:.2f} | {measured / predicted:.2f} |" in lines[at:]


def test_what_failed_is_listed(lines):
    assert "- cuda: failed with 1 in 9 s; 7 tests, 1 failed, 2 skipped" in lines
    assert "  - a::b" in lines
    assert "- gradient, broken: RuntimeError: no" in lines
    assert not any("group norm" in line for line in lines)  # its error is a number
    assert "- gpu made up, torch 0.0, commit abc" in lines


def test_a_quick_run_is_no_result():
    quick = [{**row, "quick": True} for row in ROWS]
    lines = list(report(Measured(quick)))
    assert lines[0].startswith("A quick run at digits size on the CPU")
    assert not any("goal" in line or "projected" in line or "missed" in line for line in lines)
    assert list(report(Measured([*quick, *ROWS]))) == list(report(Measured(ROWS)))
    assert next(report(Measured([ROWS[0]]))) == "Nothing was measured."


def test_a_file_that_is_not_there_is_named(capsys):
    with pytest.raises(SystemExit):
        gpu_report.main(["nowhere.jsonl"])
    assert "there is no nowhere.jsonl" in capsys.readouterr().err


def test_the_readme_has_no_list_of_processes(lines):
    short = list(report(Measured(ROWS), readme=True))
    assert short == lines[: len(short)]
    assert not any("cuda: failed" in line for line in short)


def test_hours_are_those_of_the_counted_queries(lines):
    gradients, judgements = attack_queries()
    # CE and DLR, 100 steps and the start, 20 draws each; decisions on the image and both candidates by 20 draws.
    assert gradients == 2 * 101 * 20
    assert judgements == 3 * 20 + 2 * 10
    assert attack_hours(1e3, 2e3, images=1) == pytest.approx(
        100 * (gradients / 1e3 + judgements / 2e3) / 3600
    )
    (line,) = (line for line in lines if "AutoAttack" in line)
    assert f"{attack_hours(4000.0, 9000.0):.1f} h" in line
    assert "without guidance" in line


def test_an_evaluation_asks_as_often_as_was_counted():
    """The whole attack, judged by its protocol, on a defence that counts its calls."""
    gradients, calls = 0, 0

    class Counting(torch.nn.Module):
        def forward(self, x, labels):
            nonlocal gradients, calls
            if torch.is_grad_enabled():
                gradients += len(x)
            else:
                calls += len(x)
            return 0.1 * x

    denoiser = Denoiser.from_module(Counting(), image_shape=(1, 4, 4))
    purifier = fp.Purifier(denoiser, fp.methods.diffpure(t=0.01, dt=0.01), memory="store")
    defense = fp.Defense(purifier, Sure().eval())
    attack = fp.attacks.AutoAttack(version="rand", n_iter=3, eot_iter=2, decision_draws=4, eval_draws=5)
    images = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    attack(defense, images, torch.zeros(2, dtype=torch.int64))
    assert gradients == 2 * (2 * (3 + 1) * 2)
    assert calls == 2 * (
        1 + 3 * 4 + 2 * 5
    )  # once more to see how many classes there are, which no count contains


class Sure(torch.nn.Module):
    def forward(self, x):
        return torch.stack([10 + x.flatten(1).mean(1), x.flatten(1).mean(1), -x.flatten(1).mean(1)], 1)


def test_rows_of_the_run_are_understood(tmp_path):
    """Figures as they are written, at digits size; what they say about a GPU is nothing."""
    rows, sizes = tmp_path / "rows.jsonl", Sizes.quick()
    figures = gpu_figures.headlines(sizes)
    assert gpu_figures.measure_all(figures, rows, "headlines", only="B = 3") == 0
    found = Measured(read(rows))
    assert found.batches() == [3]
    table = list(gpu_report.gradient_table(found))
    assert [line.split("|")[1].strip() for line in table[2:]] == ["fp32", "tf32", "bf16"]
    assert all(line.split("|")[7].strip() not in ("-", "- ") for line in table[2:])
    assert found.fastest("guided gradient") is not None
