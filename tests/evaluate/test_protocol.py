"""Every rule against a table worked out by hand; names that stay."""

from __future__ import annotations

import numpy as np
import pytest

from fastpure.evaluate.protocol import (
    PROTOCOLS,
    Protocol,
    any_of_n,
    dw_box,
    fresh,
    legacy_autoattack,
    majority,
    make,
)

Y = np.array([0, 0, 1, 2, 1])
PREDICTED = np.array(
    [
        [0, 0, 0, 0],  # always right
        [0, 0, 0, 1],  # three of four
        [1, 1, 0, 0],  # tied
        [2, 0, 1, 2],  # half, but more often than any other class
        [0, 2, 0, 2],  # never
    ]
)


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        (fresh(4), [1, 0.75, 0.5, 0.5, 0]),
        (any_of_n(4), [1, 0, 0, 0, 0]),
        (majority(4), [1, 1, 0, 1, 0]),
    ],
)
def test_rules_on_a_table(protocol, expected):
    assert protocol.robust_values(PREDICTED, PREDICTED, Y).tolist() == expected
    assert protocol.clean_values(PREDICTED, Y).tolist() == expected
    assert protocol.robust_values(np.zeros_like(PREDICTED), PREDICTED, Y).tolist() == expected


def test_one_shot_judges_the_original_on_one_draw_and_the_attack_on_another():
    clean = np.array([[0, 1], [1, 0], [0, 0], [0, 0]])
    adversarial = np.array([[1, 0], [0, 0], [0, 1], [1, 0]])
    y = np.zeros(4, dtype=np.int64)
    protocol = legacy_autoattack()
    assert protocol.clean_values(clean, y).tolist() == [1, 0, 1, 1]
    assert protocol.robust_values(clean, adversarial, y).tolist() == [1, 0, 0, 1]


def test_one_draw_where_nothing_is_random():
    one = PREDICTED[:, :1]
    right = (one[:, 0] == Y).astype(float).tolist()
    for protocol in (fresh(9), any_of_n(9), majority(9), dw_box(), legacy_autoattack()):
        assert protocol.robust_values(one, one, Y).tolist() == right


def test_any_of_n_never_exceeds_majority_and_mean():
    random = np.random.default_rng(0)
    predicted, y = random.integers(0, 3, (200, 7)), random.integers(0, 3, 200)
    strict = any_of_n(7).robust_values(predicted, predicted, y)
    assert (strict <= majority(7).robust_values(predicted, predicted, y)).all()
    assert (strict <= fresh(7).robust_values(predicted, predicted, y)).all()
    assert 0 < majority(7).robust_values(predicted, predicted, y).mean() < 1


def test_hashes_are_stable_and_tell_protocols_apart():
    # Literal values: results on disk are named by them, so a change here breaks every stored result.
    assert fresh(10).hash == "153b990c6a37"
    hashes = {make(name).hash for name in PROTOCOLS} | {fresh(11).hash, dw_box(1).hash}
    assert len(hashes) == len(PROTOCOLS) + 2
    for name in PROTOCOLS:
        assert Protocol.from_dict(make(name).to_dict()) == make(name)


def test_text_says_how_often():
    assert str(fresh(20)) == "fresh(20 draws)"
    assert str(dw_box(3, 0)) == "dw_box(draw=3)"
    assert str(make("dw_box", 5)) == "dw_box(draw=0, transfer_draws=5)"


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: fresh(0), "`draws` must be an integer in"),
        (lambda: make("best"), "`protocol` must be one of 'fresh', 'any_of_n'"),
        (lambda: make("legacy_autoattack", 3), "`draws` must be left out"),
        (lambda: Protocol("x", "median", 3), "`rule` must be one of"),
        (lambda: Protocol("x", "mean", 3, noise="known"), "`draws` must be 1 where all noise is known"),
        (lambda: dw_box(-1), "`fixed_draw`"),
    ],
)
def test_mistakes_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()
