"""`fastpure bench`: everybody computes the same thing, so that the times compare."""

from __future__ import annotations

import json

import pytest
import torch
from typer.testing import CliRunner

import fastpure as fp
from fastpure.baselines import Comparison, compare, interleave, ratio
from fastpure.baselines.timing import peak_megabytes
from fastpure.cli.main import app

SMALL = {"network": "ddpmpp-digits", "batch": 2, "steps": 3, "repeats": 1}


@pytest.fixture(scope="module")
def guided():
    return compare(Comparison(**SMALL, classifier=fp.load_classifier("digits")))["exact gradient"]


def test_all_discrete_gradients_are_the_same_gradient(guided):
    rows = {row.name: row for row in guided}
    for name, row in rows.items():
        if "torchsde" not in name:
            assert row.error is not None
            assert row.error < 1e-5, name
    assert next(iter(rows)) == "fastpure, store, fp32"
    assert rows["fastpure, store, fp32"].ratio == 1.0


def test_the_continuous_adjoint_is_not_the_gradient(guided):
    pytest.importorskip("torchsde")
    rows = {row.name: row for row in guided}
    frozen, shipped = (rows[f"torchsde adjoint{kind}, fp32"] for kind in (", frozen weights", " as DiffPure"))
    assert frozen.error == pytest.approx(shipped.error, rel=1e-3)
    assert 1e-3 < frozen.error < 1.0  # same noise, same weights: another gradient, not another problem


def test_purifications_have_no_gradient_error():
    tables = compare(Comparison(**SMALL))
    assert [row.name for row in tables["purification"]] == ["fastpure, fp32", "plain loop, fp32"]
    assert all(row.error is None for row in tables["purification"])


def test_a_case_is_timed_once_per_turn_after_the_warm_up():
    calls: list[str] = []
    timings = interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, repeats=2)
    assert calls == ["a", "b"] * 3
    assert [len(timing.seconds) for timing in timings] == [2, 2]
    assert ratio(timings, "a", "a") == 1.0


def test_peak_memory_sees_what_a_call_needs():
    peak = peak_megabytes(lambda: torch.ones(50_000_000).sum(), torch.device("cpu"))
    if peak is None:
        pytest.skip("this system does not tell the peak memory of a process")
    assert 190 < peak < 300


def test_the_command_prints_and_writes_the_same_figures(tmp_path):
    arguments = ["bench", "--network", "ddpmpp-digits", "--batch", "2", "--steps", "2", "--repeats", "1"]
    done = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b.json")])
    assert done.exit_code == 0, done.output
    assert "fastpure, recompute, fp32" in done.output
    written = json.loads((tmp_path / "b.json").read_text())
    assert set(written["figures"]) == {"purification", "exact gradient"}
    again = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "b.json")])
    assert isinstance(again.exception, ValueError)
    assert "exists" in str(again.exception)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"network": "resnet"}, "`network` must be one of"),
        ({"precisions": ("fp64",)}, "`precisions` must be one of"),
        ({"precisions": ()}, "`precisions` must be at least one"),
        ({"batch": 0}, "`batch` must be an integer >= 1"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        Comparison(**fields)
