"""Bars on terminals, lines in logs, nothing where nobody asked; and looking at the clock costs next to nothing."""

from __future__ import annotations

import importlib
import io
import subprocess
import sys
from typing import ClassVar

import pytest

import fastpure as fp
from fastpure import certify, diagnostics, progress
from fastpure.data import load_dataset
from fastpure.progress import Progress
from fastpure.train import score_classifier, score_denoiser


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Stands in for ``time.monotonic``: goes on when it is told to."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(progress.time, "monotonic", found)
    return found


def test_a_log_gets_a_line_now_and_then(clock):
    stream = io.StringIO()
    with Progress(10, "images", done=2, doing="attacking", stream=stream, pause=15.0) as bar:
        bar.step()
        assert stream.getvalue() == ""
        clock.now += 20.0
        bar.to(4, note="robust 50 %")
        bar.step()
        clock.now += 3700.0
        bar.to(5, "judging")
    first, second = stream.getvalue().splitlines()
    # Two of eight in 20 seconds: what an earlier session did counts for nothing.
    assert first == "4/10 images  robust 50 %  0:01:00 left  attacking"
    assert second == "5/10 images  robust 50 %  1:43:20 left  judging"


def test_nobody_knows_how_long(clock):
    stream = io.StringIO()
    bar = Progress(None, "iterations", stream=stream, pause=0.0)
    bar.step()
    assert stream.getvalue() == "1 iterations\n"
    assert Progress(5, "images", fractions=True, stream=stream).line() == "0.0/5 images  time left unknown"


def test_a_terminal_gets_a_bar(clock):
    stream = Terminal()
    with Progress(8, "images", done=2, doing="attacking", fractions=True, stream=stream) as bar:
        clock.now += 1.0
        bar.to(4.5, note="robust 50 %")
        bar.say("memory ran out")
    text = stream.getvalue()
    assert "memory ran out\n" in text
    last = text.rsplit("\r", 1)[-1]
    assert "attacking" in last
    assert "4.5/8 images [" in last
    assert ", robust 50 %]" in last


def test_drawing_waits_for_the_clock(clock, monkeypatch):
    drawn = []
    monkeypatch.setattr(Progress, "_draw", lambda self, now: drawn.append(self.done))
    bar = Progress(1000, "iterations", stream=io.StringIO(), pause=1.0)
    for _ in range(500):
        bar.step()
    assert drawn == []
    clock.now += 1.0
    bar.step()
    assert drawn == [501]


def test_what_is_not_shown_looks_at_no_clock_and_imports_nothing(monkeypatch):
    monkeypatch.setattr(progress.time, "monotonic", lambda: pytest.fail("looked at the clock"))
    with Progress(3, "images", shown=False) as bar:
        bar.step()
        bar.say("nothing")
        bar.doing("nothing")
    assert bar.done == 1


def test_tqdm_is_imported_with_the_first_bar():
    code = (
        "import sys, fastpure as fp, fastpure.evaluate, fastpure.train, fastpure.report, fastpure.certify\n"
        "from fastpure.progress import Progress\n"
        "Progress(3, 'images', shown=False).step()\n"
        "print('tqdm.auto' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert done.stderr == ""


def test_words_in_place_of_the_bar(clock):
    said: list[str] = []
    stream = io.StringIO()
    assert Progress(3, "steps", stream=stream).telling(said.append) == said.append
    Progress(3, "steps", stream=stream).telling(None)("nobody hears this")
    assert stream.getvalue() == ""
    bar = Progress(3, "steps", stream=Terminal())
    tell = bar.telling(said.append)
    tell("reading")
    assert bar.done == 0  # what is told first is being done, and not done
    tell("drawing")
    assert bar.done == 1
    assert said == []


def test_a_notebook_is_known_by_its_kernel(monkeypatch):
    class Shell:
        config: ClassVar[dict[str, object]] = {"IPKernelApp": {}}

    class IPython:
        get_ipython = staticmethod(Shell)

    monkeypatch.setitem(sys.modules, "IPython", IPython)
    assert progress.in_notebook()
    monkeypatch.setattr(Shell, "config", {})
    assert not progress.in_notebook()
    monkeypatch.setattr(IPython, "get_ipython", staticmethod(lambda: None))
    assert not progress.in_notebook()


@pytest.fixture(scope="module")
def parts():
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    data = load_dataset("digits", "test").subset(3, 0)
    purifier = fp.Purifier(denoiser, fp.methods.coup_unguided(t=0.02, dt=0.01))
    return denoiser, classifier, data, purifier


def test_everything_that_takes_long_shows_it_when_asked(parts, monkeypatch, capsys):
    denoiser, classifier, data, purifier = parts
    defense, x, y = fp.Defense(purifier, classifier), data.images, data.labels
    made: list[Progress] = []
    before = Progress.__init__

    def watched(self, *args, **kwargs):
        before(self, *args, **kwargs)
        if kwargs.get("shown", True):
            made.append(self)

    monkeypatch.setattr(Progress, "__init__", watched)
    pgd = fp.attacks.PGD(n_iter=3, eot_iter=1, eps=0.2, eval_draws=2)
    smoothing = certify.Smoothing(certify.OneShotClassifier(denoiser, classifier, 0.25), 0.25)
    monkeypatch.setattr(importlib.import_module("fastpure.evaluate.plan"), "BUDGET_SECONDS", 0.0)
    for name, call, totals in (
        ("attack", lambda p: pgd(defense, x, y, progress=p), [3, 12]),
        ("plan", lambda p: fp.plan(defense, data, pgd, progress=p), [7]),
        ("certify", lambda p: smoothing.certify(x, n0=2, n=5, progress=p), [21]),
        ("gradients", lambda p: diagnostics.gradient_agreement(defense, x, y, draws=2, progress=p), [6]),
        ("compression", lambda p: diagnostics.compression(purifier, x, 1 - x, draws=2, progress=p), [6]),
        ("bound", lambda p: diagnostics.distance_bound(purifier, x, progress=p), [2]),
        ("classifier", lambda p: score_classifier(classifier, data, progress=p), [3]),
        ("denoiser", lambda p: score_denoiser(denoiser, data, (0.1, 0.2), draws=2, progress=p), [12]),
    ):
        call(False)
        assert not made, name
        call(True)
        assert [bar.done for bar in made] == pytest.approx(totals), name
        assert [bar._total for bar in made] == totals, name
        made.clear()
    # Short things in a pipe say nothing.
    assert capsys.readouterr() == ("", "")


def test_a_certification_goes_on_where_it_was(parts, tmp_path, monkeypatch):
    denoiser, classifier, data, _ = parts
    bars: list[Progress] = []
    monkeypatch.setattr(Progress, "close", lambda self: bars.append(self))
    config = certify.CertifyConfig(n0=2, n=5)
    model = certify.OneShotClassifier(denoiser, classifier, 0.25)
    for images in (data.select([0]), data):
        path = tmp_path / f"{len(images)}.csv"
        certify.certify_dataset(model, images, config, path, progress=True)
    certify.certify_dataset(model, data, config, tmp_path / "3.csv", progress=True)
    whole = [bar for bar in bars if bar._unit == "images"]
    assert [bar.done for bar in whole] == pytest.approx([1, 3, 3])
    assert [bar._first for bar in whole] == [0, 0, 3]


def test_the_callers_report_is_called_too(parts):
    _, classifier, data, _ = parts
    seen: list[int] = []
    fp.attacks.PGD(n_iter=3, eot_iter=1, eps=0.1)(
        classifier, data.images, data.labels, report=lambda i, loss: seen.append(i), progress=True
    )
    assert seen == [0, 1, 2]
