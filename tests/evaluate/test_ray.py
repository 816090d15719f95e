"""Runs on a Ray cluster: the same result, also when a worker dies in the middle."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.errors import EngineUnavailable
from fastpure.evaluate import ray_engine
from tests.evaluate import toys
from tests.evaluate.toys import attack, dataset, defense

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()
    torch.set_num_threads(threads)


def evaluate(out, **settings):
    data, how = dataset(12), fp.protocols.fresh(3)
    return fp.evaluate(defense(), data, attack(), how, out, batch_size=2, progress=False, **settings)


def test_equals_a_single_process(cluster, tmp_path):
    expected = evaluate(tmp_path / "one.sqlite")
    report = evaluate(tmp_path / "ray.sqlite", engine="ray", workers=2)
    assert report.digest == expected.digest
    with fp.Run.open(tmp_path / "ray.sqlite") as run:
        assert run.sessions()[0]["settings"]["engine"] == "ray"


def test_logits_and_what_the_attack_said_come_back_from_the_workers(cluster, tmp_path):
    protocol = fp.protocols.average(3, "softmax")
    paths = [tmp_path / "one.sqlite", tmp_path / "ray.sqlite"]
    for path, settings in zip(paths, ({}, {"engine": "ray", "workers": 2}), strict=True):
        toys.evaluate(path, protocol, batch_size=2, attack=toys.telling(), **settings)
    with fp.Run.open(paths[0]) as one, fp.Run.open(paths[1]) as other:
        assert one.content_digest() == other.content_digest()
        assert np.array_equal(one.logits("adversarial"), other.logits("adversarial"))
        assert np.array_equal(one.progress(), other.progress(), equal_nan=True)
        assert np.array_equal(one.spent, other.spent, equal_nan=True)


def test_a_killed_workers_block_is_done_again(cluster, tmp_path):
    marker = tmp_path / "killed"
    expected = evaluate(None).digest
    target = defense()
    target.classifier = Fatal(target.classifier, marker)
    data, how = dataset(12), fp.protocols.fresh(3)
    report = fp.evaluate(
        target,
        data,
        attack(),
        how,
        tmp_path / "r.sqlite",
        batch_size=2,
        progress=False,
        engine="ray",
        workers=2,
    )
    assert marker.exists(), "a worker died"
    assert int(marker.read_text()) != os.getpid()
    assert report.n_images == 12
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        plain = fp.Run.open(reference(tmp_path))
        assert [r.sha256() for r in run.records()] == [r.sha256() for r in plain.records()]
        assert plain.content_digest() == expected


def reference(folder: Path) -> Path:
    evaluate(folder / "reference.sqlite")
    return folder / "reference.sqlite"


class Fatal(torch.nn.Module):
    """A classifier whose fifth call in a Ray worker kills it, once in all; ``marker`` None kills every time."""

    def __init__(self, classifier: torch.nn.Module, marker: Path | None) -> None:
        super().__init__()
        self.classifier, self.marker, self.driver, self.calls = classifier, marker, os.getpid(), 0
        self.eval()

    def forward(self, u):
        self.calls += 1
        if os.getpid() != self.driver and self.calls > 4 and not (self.marker and self.marker.exists()):
            if self.marker:
                self.marker.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return self.classifier(u)


def test_a_block_that_kills_every_worker_ends_the_run_and_loses_nothing(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_engine, "MAX_LOSSES", 1)
    target = defense()
    target.classifier = Fatal(target.classifier, None)
    out = tmp_path / "r.sqlite"
    with pytest.raises(EngineUnavailable, match="lost its worker"):
        fp.evaluate(
            target, dataset(4), attack(), None, out, batch_size=2, progress=False, engine="ray", workers=1
        )
    with fp.Run.open(out) as run:
        assert not run.complete


def test_a_mistake_in_a_worker_keeps_its_name(cluster, tmp_path):
    broken = defense()
    broken.classifier = OneClass().eval()
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        fp.evaluate(broken, dataset(4), attack(), None, None, progress=False, engine="ray", workers=1)


class OneClass(torch.nn.Module):
    """Has no logit for the second class."""

    def forward(self, u):
        return u.flatten(1).sum(1, keepdim=True)
