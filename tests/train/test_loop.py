"""The loop: learns, averages as stated, and continues bit for bit what was killed."""

from __future__ import annotations

import errno
import io
import math
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastpure.errors import DiskFull, NonFiniteError, ResumeError, RunLocked
from fastpure.files import Watched
from fastpure.train import Augment, ClassifierLoss, DenoiserLoss, Fit, TrainConfig, Trainer, fit
from fastpure.train.config import differences, ema_decay, learning_rate
from fastpure.train.state import HEADER, Metrics
from tests.train.helpers import SmallClassifier, SmallDenoiser, few_digits, fresh, quick

LOSS = ClassifierLoss(Augment(shift=1))


def _fit(out: Path, config: TrainConfig | None = None, **change: Any) -> Fit:
    given = {"out": out, "network": {"name": "small"}, "save_every": 7, "progress": False, **change}
    return fit(fresh(SmallClassifier), LOSS, few_digits(), config or quick(), **given)


def _rows(out: Path) -> list[list[str]]:
    """metrics.csv without the seconds."""
    lines = (out / "metrics.csv").read_text().splitlines()
    return [[cell for i, cell in enumerate(line.split(",")) if i != 3] for line in lines]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return a == b


def _state(out: Path) -> dict[str, Any]:
    state = torch.load(out / "state.pt", weights_only=True)
    return {key: value for key, value in state.items() if key not in ("seconds", "metrics_length", "sha256")}


class _Killed(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_killed_run_continues_bit_for_bit(tmp_path: Path, optimizer: str) -> None:
    config = quick(optimizer=optimizer, weight_decay=1e-3)
    score = lambda model: sum(p.abs().sum().item() for p in model.parameters())  # noqa: E731
    _fit(tmp_path / "whole", config, held_out=score)

    def die(model: nn.Module) -> float:
        raise _Killed

    with pytest.raises(_Killed):
        _fit(
            tmp_path / "cut", config, held_out=die
        )  # at step 10, before its row; the checkpoint is of step 7
    assert _state(tmp_path / "cut")["step"] == 7
    assert len(_rows(tmp_path / "cut")) == 2
    done = _fit(tmp_path / "cut", config, held_out=score)
    assert (done.resumed_at, done.step, done.finished) == (7, 24, True)
    assert _same(_state(tmp_path / "cut"), _state(tmp_path / "whole"))
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


@pytest.mark.parametrize("left", ["nothing", "header", "half a header"])
def test_killed_before_its_first_checkpoint_it_begins(tmp_path: Path, left: str) -> None:
    """Older versions began with the metrics, and left them alone when they were killed there."""
    _fit(tmp_path / "whole")
    cut = tmp_path / "cut"
    cut.mkdir()
    if left != "nothing":
        (cut / "metrics.csv").write_text(HEADER if left == "header" else HEADER[:7])
    assert _fit(cut).resumed_at == 0
    assert _same(_state(cut), _state(tmp_path / "whole"))
    assert _rows(cut) == _rows(tmp_path / "whole")


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path: Path) -> None:
    """PyTorch reads such files without a word; the run would go on with other weights."""
    config, choose = quick(steps=4, log_every=2, score_every=2), random.Random(0)
    _fit(tmp_path / "run", config)
    state = tmp_path / "run" / "state.pt"
    content, expected = state.read_bytes(), _state(tmp_path / "run")
    found = 0
    for _ in range(100):
        changed = bytearray(content)
        changed[choose.randrange(len(content))] ^= 1 << choose.randrange(8)
        state.write_bytes(changed)
        try:
            assert _fit(tmp_path / "run", config).finished
            assert _same(_state(tmp_path / "run"), expected)
        except ResumeError:
            found += 1
    assert found > 30
    loaded = torch.load(io.BytesIO(content), weights_only=True)
    del loaded["sha256"]
    torch.save(loaded, state)
    assert _fit(tmp_path / "run", config).finished, "a checkpoint of version 0.1.0"


def test_killed_between_checkpoint_and_metrics_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Metrics) -> None:
        raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Metrics, "start", die)
        with pytest.raises(_Killed):
            _fit(tmp_path / "cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["state.pt"]
    _fit(tmp_path / "cut")
    _fit(tmp_path / "whole")
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


def test_two_processes_do_not_train_into_one_folder(tmp_path: Path) -> None:
    def again(model: nn.Module) -> float:
        with pytest.raises(RunLocked, match=f"process {os.getpid()} on"):
            _fit(tmp_path / "out")
        return 0.0

    assert _fit(tmp_path / "out", held_out=again).finished
    assert not list((tmp_path / "out").glob("*.lock"))


def test_a_full_disk_is_one_sentence_and_the_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fit(tmp_path / "whole")
    write, left = Watched.write, [20]

    def full(self: Watched, data: Any) -> int:
        left[0] -= 1
        if left[0] < 0:
            self.error = OSError(errno.ENOSPC, "No space left on device")
            raise self.error
        return write(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(Watched, "write", full)
        with pytest.raises(DiskFull, match="no space left to write"):
            _fit(tmp_path / "cut", save_every=1)
    assert not list((tmp_path / "cut").glob(".*"))
    assert _state(tmp_path / "cut")["step"] < 24
    _fit(tmp_path / "cut")
    assert _same(_state(tmp_path / "cut"), _state(tmp_path / "whole"))
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupt_saves_and_the_next_call_continues(tmp_path: Path, number: int) -> None:
    _fit(tmp_path / "whole", held_out=lambda model: 0.0)

    def interrupt(model: nn.Module) -> float:
        os.kill(os.getpid(), number)
        return 0.0

    before = signal.getsignal(number)
    stopped = _fit(tmp_path / "cut", held_out=interrupt)
    assert (stopped.step, stopped.finished) == (10, False)
    assert signal.getsignal(number) is before
    done = _fit(tmp_path / "cut", held_out=lambda model: 0.0)
    assert done.resumed_at == 10
    assert _same(_state(tmp_path / "cut"), _state(tmp_path / "whole"))
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


def test_metrics_written_after_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    _fit(tmp_path / "whole")
    _fit(tmp_path / "cut")
    state = torch.load(tmp_path / "cut" / "state.pt", weights_only=True)
    with (tmp_path / "cut" / "metrics.csv").open("a") as file:
        file.write("25,9,9,9,\n")
    assert state["step"] == 24
    _fit(tmp_path / "cut")
    assert _rows(tmp_path / "cut") == _rows(tmp_path / "whole")


def test_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first = _fit(tmp_path)
    before = (tmp_path / "state.pt").stat().st_mtime_ns
    again = _fit(tmp_path)
    assert (again.resumed_at, again.step, again.finished) == (24, 24, True)
    assert (tmp_path / "state.pt").stat().st_mtime_ns == before
    assert again.seconds == first.seconds
    assert _same(again.model.state_dict(), first.model.state_dict())
    assert not again.model.training
    assert not any(weight.requires_grad for weight in again.model.parameters())


def test_other_configuration_is_refused_and_nothing_overwritten(tmp_path: Path) -> None:
    _fit(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ResumeError, match=r"train\.lr: saved 0\.01, now 0\.02") as caught:
        _fit(tmp_path, quick(lr=0.02, seed=1))
    assert "train.seed: saved 0, now 1" in str(caught.value)
    assert "batch_size" not in str(caught.value)
    with pytest.raises(ResumeError, match=r"network\.name: saved small, now large"):
        _fit(tmp_path, network={"name": "large"})
    with pytest.raises(ResumeError, match=r"data\.checksum"):
        fit(fresh(SmallClassifier), LOSS, few_digits(90), quick(), out=tmp_path, network={"name": "small"})
    with pytest.raises(ResumeError, match=r"loss\.augment\.shift: saved 1, now 0"):
        fit(
            fresh(SmallClassifier),
            ClassifierLoss(),
            few_digits(),
            quick(),
            out=tmp_path,
            network={"name": "small"},
        )
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_damaged_or_foreign_folders_are_refused(tmp_path: Path) -> None:
    _fit(tmp_path / "run")
    state = tmp_path / "run" / "state.pt"
    state.write_bytes(state.read_bytes()[:500])
    with pytest.raises(ResumeError, match=r"state\.pt is damaged"):
        _fit(tmp_path / "run")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "denoiser.safetensors").write_text("precious")
    with pytest.raises(ResumeError, match=r"holds denoiser\.safetensors but no state\.pt"):
        _fit(tmp_path / "foreign", products=("denoiser.safetensors",))
    assert [path.name for path in (tmp_path / "foreign").iterdir()] == ["denoiser.safetensors"]
    (tmp_path / "file").write_text("")
    with pytest.raises(ResumeError, match="must be a folder"):
        _fit(tmp_path / "file")


def test_diverged_run_keeps_its_last_good_checkpoint(tmp_path: Path) -> None:
    model = fresh(SmallClassifier)

    def poison(average: nn.Module) -> float:
        with torch.no_grad():
            next(model.parameters()).fill_(math.nan)
        return 0.0

    with pytest.raises(NonFiniteError, match="the training loss became nan before step 15"):
        fit(
            model,
            LOSS,
            few_digits(),
            quick(),
            out=tmp_path,
            network={},
            held_out=poison,
            save_every=1,
            progress=False,
        )
    assert all(value.isfinite().all() for value in _state(tmp_path)["ema"].values())


def test_training_decreases_the_losses(tmp_path: Path) -> None:
    for loss, kind in ((LOSS, SmallClassifier), (DenoiserLoss(t_max=0.3), SmallDenoiser)):
        config = quick(steps=100, log_every=20, score_every=20, ema=0.95)
        out = tmp_path / kind.__name__
        fit(fresh(kind), loss, few_digits(), config, out=out, network={}, progress=False)
        curve = [float(row[1]) for row in _rows(out)[1:]]
        assert curve[-1] < 0.8 * curve[0]


def test_average_follows_its_formula() -> None:
    trainer = Trainer(fresh(SmallClassifier), LOSS, few_digits(), quick(ema=0.3))
    weight = trainer.model.layers[0].weight
    running = trainer.model.layers[1].running_mean
    expected = [weight.detach().clone(), running.clone()]
    for k in range(6):
        trainer.advance()
        keep = min(0.3, (1 + k) / (10 + k))
        expected = [
            keep * mean + (1 - keep) * now.detach()
            for mean, now in zip(expected, [weight, running], strict=True)
        ]
    torch.testing.assert_close(trainer.average.layers[0].weight, expected[0])
    torch.testing.assert_close(trainer.average.layers[1].running_mean, expected[1])
    assert int(trainer.average.layers[1].num_batches_tracked) == 6


def test_average_decay_warms_up() -> None:
    config = quick(ema=0.999)
    assert [ema_decay(config, k) for k in (0, 1, 90)] == [0.1, 2 / 11, 0.91]
    assert ema_decay(config, 10**6) == 0.999
    assert ema_decay(quick(ema=0.0), 50) == 0.0


def test_learning_rate_rises_then_falls_along_a_cosine() -> None:
    config = quick(steps=24, warmup=4, lr=0.01)
    rates = [learning_rate(config, step) for step in range(24)]
    assert rates[:5] == pytest.approx([0.0025, 0.005, 0.0075, 0.01, 0.01])
    assert rates[14] == pytest.approx(0.005)
    assert 0 < rates[-1] < 1e-4
    assert learning_rate(quick(schedule="constant"), 23) == 0.01


def test_gradient_is_clipped() -> None:
    trainers = [
        Trainer(fresh(SmallClassifier), LOSS, few_digits(), quick(clip=clip, optimizer="sgd", warmup=0))
        for clip in (None, 1e-3)
    ]
    for trainer in trainers:
        trainer.advance()
    norms = [math.sqrt(sum(w.grad.square().sum().item() for w in t.model.parameters())) for t in trainers]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(1e-3, rel=1e-3)


def test_caller_random_state_is_left_alone() -> None:
    trainer = Trainer(fresh(SmallClassifier), LOSS, few_digits(), quick())
    torch.manual_seed(123)
    expected = torch.rand(3)
    torch.manual_seed(123)
    trainer.advance()
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("lr", -1.0),
        ("ema", 1.0),
        ("optimizer", "lion"),
        ("schedule", "step"),
        ("accumulate", 17),
        ("score_every", 7),
        ("weight_decay", math.nan),
        ("clip", 0.0),
        ("seed", -1),
    ],
)
def test_configuration_names_the_wrong_field(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"`{field}` must be"):
        replace(quick(), **{field: value})  # type: ignore[arg-type]


def test_differences_are_found_at_any_depth() -> None:
    saved, now = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "e": 5}}
    assert differences(saved, now) == [
        "b.c: saved 2, now 4",
        "b.d: saved 3, now nothing",
        "b.e: saved nothing, now 5",
    ]
