"""`python -m bench.cpu`: what is measured is kept, what is there is not measured again, goals are told from misses."""

from __future__ import annotations

import pytest

from bench import cpu, cpu_report
from bench.cpu_cases import CHANNELS_LAST, COMPILED, NCHW, OURS, identity
from bench.rows import append, read

CASE = identity("digits", "gradient", "fp32", ["default"], 2, "abc")


def timing(name: str, *seconds: float) -> dict[str, object]:
    return {"name": name, "seconds": list(seconds), "cpu_seconds": [2 * one for one in seconds]}


def row(compiled: float, case: dict[str, object] = CASE) -> dict[str, object]:
    peers = {CHANNELS_LAST: 3.0, NCHW: 4.0, f"{COMPILED} default": compiled, f"{COMPILED} max-autotune": 9.0}
    timings = {OURS: timing(OURS, 1.0, 1.0)} | {name: timing(name, it, it) for name, it in peers.items()}
    products = [
        {"name": "matrix product", "flops": 1e11, "timing": timing("a", 1.0, 1.0)},
        {"name": "3x3 convolution", "flops": 4e11, "timing": timing("b", 2.0, 2.0)},
    ]
    measured = {name: values | {"peak_mb": 10.0} for name, values in timings.items()}
    more = {"threads": 1, "flops": 1e11, "cases": measured, "failed": {}, "products": products}
    return case | more | {"date": "2026-01-02"}


def test_a_measured_case_is_not_missing_and_another_one_is(tmp_path):
    rows = tmp_path / "rows.jsonl"
    assert cpu.missing([CASE], rows) == [CASE]
    append(rows, CASE | {"outcome": "failed with 1"})
    assert cpu.missing([CASE], rows) == [CASE]
    append(rows, row(2.0))
    assert cpu.missing([CASE], rows) == []
    for field, other in (
        ("commit", "abd"),
        ("repeats", 3),
        ("modes", []),
        ("torch", "1.0"),
        ("processor", "x"),
    ):
        assert cpu.missing([CASE | {field: other}], rows) != []


@pytest.mark.parametrize(
    ("compiled", "words"), [(2.0, "| 2.00 | 2.00 | 1.5 |"), (1.4, "| 1.40 | 1.40 | 1.5, missed |")]
)
def test_ratios_stand_beside_their_goals(compiled, words):
    text = cpu_report.report([CASE], [row(9.0), row(compiled)])
    (line,) = (line for line in text.splitlines() if line.startswith("| digits | fp32 |"))
    assert words in line
    assert "| 3.00 | 3.00 | 4.00 | 4.00 | 50 | 50 | - | 3x3 convolution |" in line
    assert "| 1 | fp32 | 100 (100 to 100) | 200 (200 to 200) | the 3x3 convolution |" in text
    assert "Not measured" not in text


def test_shares_stand_beside_their_goals():
    case = CASE | {"workload": "small", "precision": "fp32"}
    assert "| 50 | 50 | 60 %, missed |" in cpu_report.report([case], [row(2.0, case)])


def test_what_was_not_measured_is_listed_with_its_reason():
    other = CASE | {"precision": "bf16"}
    failed = row(2.0)
    failed["failed"] = {f"{COMPILED} max-autotune": "no compiler"}
    text = cpu_report.report([CASE, other], [failed, other | {"outcome": "failed with 1: why"}])
    assert "- digits, gradient, bf16: failed with 1: why" in text
    assert f"- digits, gradient, fp32, {COMPILED} max-autotune: no compiler" in text


def test_without_a_compiled_loop_its_columns_are_empty():
    measured = row(2.0)
    measured["cases"] = {name: one for name, one in measured["cases"].items() if COMPILED not in name}
    assert "| digits | fp32 | 1 | 2 | - | - | - | 3.00 |" in cpu_report.report([CASE], [measured])


def test_a_run_measures_writes_and_continues(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(cpu, "state_of_code", lambda: "abc")
    words = [str(tmp_path), "--workloads", "digits", "--kinds", "purification", "--precisions", "fp32"]
    words += ["--compile", "--repeats", "1"]
    assert cpu.main(words) == 0
    (measured,) = read(tmp_path / "rows.jsonl")
    assert list(measured["cases"]) == [OURS, CHANNELS_LAST, NCHW]
    assert measured["threads"] == 1
    assert "| digits | purification | fp32 | 1 | plain, NCHW |" in (tmp_path / "cpu.md").read_text()
    monkeypatch.setattr(cpu, "run", lambda case, out: pytest.fail("measured again"))
    assert cpu.main([*words, "--report", str(tmp_path / "other.md")]) == 0
    assert (tmp_path / "other.md").read_text() == (tmp_path / "cpu.md").read_text()


def test_a_case_that_fails_leaves_its_reason(tmp_path):
    case = CASE | {"modes": ["no mode"]}
    assert not cpu.run(case, tmp_path)
    (left,) = read(tmp_path / "rows.jsonl")
    assert "failed with 2" in left["outcome"]
    assert "no mode" in left["outcome"]


def test_repeats_are_at_least_one(tmp_path):
    with pytest.raises(ValueError, match="`--repeats` must be an integer >= 1"):
        cpu.main([str(tmp_path), "--repeats", "0"])
