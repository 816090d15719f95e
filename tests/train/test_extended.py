"""A finished run goes on when it is given more steps; fewer steps and other settings are refused in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from fastpure.errors import ResumeError
from fastpure.train import CLASSIFIER_RECIPES, fit, train_classifier
from fastpure.train.config import learning_rate
from tests.train.helpers import SmallClassifier, few_digits, fresh, quick
from tests.train.test_loop import LOSS, _Killed, _rows, _same, _state


def run(out: Path, steps: int, **change: Any):
    config = quick(steps=steps, **change)
    given = {"out": out, "network": {"name": "small"}, "save_every": 7, "progress": False}
    return fit(fresh(SmallClassifier), LOSS, few_digits(), config, **given)


def test_with_a_constant_rate_it_is_the_run_that_had_the_steps_from_the_beginning(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", 40, schedule="constant")
    run(tmp_path / "parts", 20, schedule="constant")
    run(tmp_path / "parts", 30, schedule="constant")
    longer = run(tmp_path / "parts", 40, schedule="constant")
    assert _same(whole.model.state_dict(), longer.model.state_dict())
    assert (longer.resumed_at, longer.step, longer.extended) == (30, 40, (20, 30))
    assert whole.extended == ()
    assert [row[0] for row in _rows(tmp_path / "parts")] == [row[0] for row in _rows(tmp_path / "whole")]


def test_a_cosine_goes_on_along_the_longer_one(tmp_path: Path) -> None:
    run(tmp_path, 20)
    run(tmp_path, 40)
    rates = [float(row[2]) for row in _rows(tmp_path)[1:]]
    assert rates[3] == pytest.approx(learning_rate(quick(steps=20), 19), rel=1e-5)
    assert rates[4] == pytest.approx(learning_rate(quick(steps=40), 24), rel=1e-5)
    assert rates[4] > rates[3]
    assert rates[-1] < rates[4]


def test_a_killed_extension_continues_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpure.train import loop

    for name in ("whole", "killed"):
        run(tmp_path / name, 20)
    whole = run(tmp_path / "whole", 40)
    count = 0
    step = loop._Session.one_step

    def dying(self: Any, *args: Any) -> None:
        nonlocal count
        count += 1
        if count == 13:
            raise _Killed
        step(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(loop._Session, "one_step", dying)
        with pytest.raises(_Killed):
            run(tmp_path / "killed", 40)
    again = run(tmp_path / "killed", 40)
    assert again.resumed_at == 28
    assert again.extended == (20,)
    assert _same(whole.model.state_dict(), again.model.state_dict())
    assert _same(_state(tmp_path / "whole"), _state(tmp_path / "killed"))


def test_fewer_steps_are_refused_and_nothing_changes(tmp_path: Path) -> None:
    run(tmp_path, 20)
    before = (tmp_path / "state.pt").read_bytes()
    with pytest.raises(
        ResumeError, match=r"a run of 20 steps.*can only be added.*got 10.*--steps 20 or more"
    ):
        run(tmp_path, 10)
    assert (tmp_path / "state.pt").read_bytes() == before


@pytest.mark.parametrize("change", [{"lr": 2e-2}, {"batch_size": 8}, {"seed": 1}])
def test_more_steps_with_another_setting_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    run(tmp_path, 20)
    with pytest.raises(ResumeError, match=f"train.{next(iter(change))}: saved"):
        run(tmp_path, 40, **change)


def test_an_unfinished_run_is_finished_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastpure.train import loop

    def dying(self: Any, *args: Any) -> None:
        raise _Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop._Session, "one_step", dying)
        with pytest.raises(_Killed):
            run(tmp_path, 20)
    with pytest.raises(ResumeError, match=r"of which 0 are done.*--steps 20 first"):
        run(tmp_path, 40)
    assert run(tmp_path, 20).finished


def test_the_file_says_that_it_was_extended(tmp_path: Path) -> None:
    from safetensors import safe_open

    recipe = CLASSIFIER_RECIPES["digits"]
    for steps in (2, 4):
        short = replace(recipe, train=replace(recipe.train, steps=steps, batch_size=8, warmup=1))
        done = train_classifier(short, few_digits(40), few_digits(20), tmp_path, progress=False)
    assert json.loads((tmp_path / "result.json").read_text())["extended_after_steps"] == [2]
    with safe_open(done.weights, framework="pt") as file:
        assert json.loads(file.metadata()["extended_after_steps"]) == [2]
        assert torch.isfinite(file.get_tensor("head.weight")).all()
