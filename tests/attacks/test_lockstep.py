"""Loops in lockstep: answers are given together, randomness is each loop's own, failures leave nothing running."""

from __future__ import annotations

import threading

import pytest
import torch

import fastpure as fp
from fastpure.attacks.pyautoattack import together
from fastpure.purify.target import ASKED
from tests.attacks.toys import Pixels, images, mixture_defense


def walk(steps: int):
    """A loop that adds a random number and an answer at each of its steps."""

    def job(ask):
        total = torch.zeros(1, 1)
        for _ in range(steps):
            total = total + torch.rand(1, 1)
            total = total + ask(total)
        return total

    return job


def halve(numbers, points):
    return [point / 2 for point in points]


def test_each_loop_gets_the_result_it_gets_alone():
    jobs, seeds = [walk(n) for n in (3, 0, 5, 1)], [4, 5, 6, 7]
    found = together(jobs, seeds, halve)
    for job, seed, result in zip(jobs, seeds, found, strict=True):
        assert torch.equal(together([job], [seed], halve)[0], result)
    torch.manual_seed(6)
    total = torch.zeros(1, 1)
    for _ in range(5):
        total = total + torch.rand(1, 1)
        total = total + total / 2
    assert torch.equal(found[2], total), "as a plain loop with this seed"


def test_questions_are_answered_together():
    rounds = []

    def answer(numbers, points):
        rounds.append(list(numbers))
        return halve(numbers, points)

    together([walk(n) for n in (3, 1, 2)], [0, 0, 0], answer)
    assert rounds == [[0, 1, 2], [0, 2], [0]]


def test_a_failure_stops_all_and_the_generator_is_restored():
    def bad(ask):
        ask(torch.zeros(1, 1))
        raise KeyError("mine")

    before, threads = torch.get_rng_state(), threading.active_count()
    with pytest.raises(KeyError, match="mine"):
        together([walk(4), bad, walk(4)], [0, 1, 2], halve)

    def refuse(numbers, points):
        raise RuntimeError("no answer")

    with pytest.raises(RuntimeError, match="no answer"):
        together([walk(4), walk(2)], [0, 1], refuse)
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), before)


def test_square_shares_its_network_calls():
    sizes = []

    class Counting(Pixels):
        def forward(self, u):
            sizes.append(len(u))
            return super().forward(u)

    x = images(6)
    fp.attacks.Square(eps=1e-5, n_queries=10)(Counting(), x, Pixels()(x).argmax(1))
    assert sizes[ASKED : ASKED + 11] == [6] * 11, "one call per round for all images"
    sizes.clear()
    defense = mixture_defense(Counting())
    fp.attacks.Square(eps=0.02, n_queries=2, eot_iter=3, batch_size=9)(defense, x, Pixels()(x).argmax(1))
    assert max(sizes) == 9
    assert sizes.count(9) >= 1, "three draws of three images at a time"
