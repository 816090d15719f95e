"""Several processes: they compute what one computes, and only the first writes."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from fastpure.errors import MissingExtra
from fastpure.train import ClassifierLoss, Group, Trainer
from tests.train.helpers import SmallDenoiser, few_digits, fresh, quick

STEPS = 6


class _Half:
    """One of two processes; the other one's tensors are handed in."""

    def __init__(self, rank: int, box: list[list[torch.Tensor]]) -> None:
        self.rank, self.size, self.box = rank, 2, box
        self.main = rank == 0

    def sum_in_place(self, tensors: list[torch.Tensor]) -> None:
        self.box.append([tensor.clone() for tensor in tensors])

    def mean_in_place(self, tensors: list[torch.Tensor]) -> None:
        pass


def test_the_parts_of_two_processes_add_up_to_the_batch() -> None:
    """Gradient and loss of each half, summed, are those of one process; no row is computed twice."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    whole = Trainer(model, ClassifierLoss(), few_digits(), quick(clip=None, batch_size=15))
    box: list[list[torch.Tensor]] = []
    for rank in (0, 1):
        half = Trainer(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            ClassifierLoss(),
            few_digits(),
            quick(batch_size=15),
            group=_Half(rank, box),  # type: ignore[arg-type]
        )
        half.model.load_state_dict(model.state_dict())
        half._backward()
    loss = whole._backward()
    summed = [a + b for a, b in zip(*box, strict=True)]
    torch.testing.assert_close(summed[-1], loss)
    for ours, weight in zip(summed, model.parameters(), strict=False):
        torch.testing.assert_close(ours, weight.grad)


def test_more_processes_than_images_are_refused() -> None:
    group = Group(rank=0, size=20)
    with pytest.raises(ValueError, match="`batch_size` must be at least 20"):
        Trainer(fresh(SmallDenoiser), ClassifierLoss(), few_digits(), quick(), group=group)


def test_alone_means_no_other_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = Group.current()
    assert (group.rank, group.size, group.main, group.device) == (0, 1, True, None)
    assert group.any(True)
    assert group.from_main(lambda: 7) == 7


def _curve(out: Path) -> list[tuple[float, float]]:
    with (out / "metrics.csv").open() as file:
        return [(float(row["loss"]), float(row["held_out"] or 0)) for row in csv.DictReader(file)]


def _train(out: Path, processes: int, *more: str) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("accelerate")
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["accelerate.commands.launch", "--cpu", "--num_processes", str(processes)]
        launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
        launch += ["--main_process_port", "0", "-m"]
    words = [*launch, "fastpure", "train", *more, "--data", "digits", "--out", str(out), "--batch-size", "16"]
    return subprocess.run(
        [*words, "--steps", str(STEPS)],
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.slow
def test_two_processes_give_the_loss_curve_of_one(tmp_path: Path) -> None:
    """With as many parts as processes, dropout and all; another configuration is refused by both."""
    states = []
    for name, processes, more in (("one", 1, ["--accumulate", "2"]), ("two", 2, [])):
        result = _train(tmp_path / name, processes, "adbm", *more)
        assert result.returncode == 0, result.stderr
        assert result.stdout.count("weights:") == 1
        states.append(torch.load(tmp_path / name / "state.pt", weights_only=True))
    one, two = _curve(tmp_path / "one"), _curve(tmp_path / "two")
    assert two == [pytest.approx(row, rel=1e-4) for row in one]
    for name, value in states[0]["ema"].items():
        torch.testing.assert_close(states[1]["ema"][name], value, rtol=1e-3, atol=1e-5)
    refused = _train(tmp_path / "two", 2, "adbm", "--lr", "0.5")
    assert refused.returncode != 0
    assert "train.lr" in refused.stderr


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtra, match=r"pip install 'fastpure\[distributed\]'"):
        Group.current()
