"""APGD with EOT here against pyautoattack's on the same defence, and an evaluation over draws against a loop.

    python -m bench.bench_apgd [images] [eot] [repeats]
    pytest bench/bench_apgd.py               one image and EOT 4 under pytest-benchmark

COUP on the digits, 15 steps; both attacks take the same number of iterations and draws. pyautoattack walks the
draws one after the other, here images and draws share the network calls. The cases take turns in one process;
what counts are the ratios.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch

import fastpure as fp
from bench.measured import measure
from fastpure.attacks.base import Problem
from fastpure.attacks.gradient import score
from fastpure.baselines.timing import interleave, ratio, table
from fastpure.data import load_dataset
from fastpure.purify import door

EPS, N_ITER, DRAWS = 0.3, 2, 20
OURS, THEIRS = "fastpure", "pyautoattack, serial EOT"
BATCHED, LOOP = "20 draws, batched", "20 draws, a loop"


def problem(n: int) -> tuple[fp.Defense, torch.Tensor, torch.Tensor]:
    denoiser, classifier = fp.load_denoiser("digits"), fp.load_classifier("digits")
    method = fp.methods.coup(classifier, t=0.15, dt=0.01)
    defense = fp.Defense(fp.Purifier(denoiser, method), classifier)
    data = load_dataset("digits", "test").subset(n)
    return defense, data.images, data.labels


def attacks(n: int, eot: int) -> dict[str, Callable[[], object]]:
    from pyautoattack.autopgd_base import APGDAttack

    defense, x, y = problem(n)
    ours = fp.attacks.APGDCE(eps=EPS, n_iter=N_ITER, eot_iter=eot)
    theirs = APGDAttack(defense, eps=EPS, n_iter=N_ITER, eot_iter=eot, device="cpu")
    theirs.init_hyperparam(x)
    task = Problem(door(defense, x, torch.arange(n)), x, y, torch.arange(n))
    return {
        OURS: lambda: ours.propose(task, lambda i, loss: None),
        THEIRS: lambda: theirs.attack_single_run(x, y),
    }


def evaluations(n: int) -> dict[str, Callable[[], object]]:
    defense, x, y = problem(n)
    ids = torch.arange(n)

    def loop() -> None:
        with torch.no_grad():
            for draw in range(DRAWS):
                defense(x, ids, draw).argmax(1).eq(y)

    return {BATCHED: lambda: score(door(defense, x, ids), x, y, ids, DRAWS, 256), LOOP: loop}


@pytest.mark.parametrize("name", [OURS, THEIRS])
def test_attack(benchmark, name):
    pytest.importorskip("pyautoattack")
    measure(benchmark, f"APGD, one image, EOT 4, {N_ITER} iterations", attacks(1, 4)[name])


@pytest.mark.parametrize("name", [BATCHED, LOOP])
def test_evaluation(benchmark, name):
    measure(benchmark, f"evaluation, one image, {DRAWS} draws", evaluations(1)[name])


def main(n: int = 2, eot: int = 20, repeats: int = 3) -> None:
    timings = interleave(attacks(n, eot), repeats)
    print(table(timings, OURS, f"APGD, {n} images, EOT {eot}, {N_ITER} iterations"))
    print(f"\n{THEIRS} / {OURS}  {ratio(timings, THEIRS, OURS):.2f}   (goal: at least 3)\n")
    timings = interleave(evaluations(n), repeats)
    print(table(timings, BATCHED, f"evaluation, {n} images, {DRAWS} draws"))
    print(f"\n{LOOP} / {BATCHED}  {ratio(timings, LOOP, BATCHED):.2f}   (goal: at least 2)")


if __name__ == "__main__":
    main(*(int(word) for word in sys.argv[1:]))
