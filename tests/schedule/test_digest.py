"""The digest of a table is a promise to run files that exist: these are the values of version 0.1.0.

The coefficients are written out, so that they are the same numbers on every processor.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import pytest

from fastpure.schedule import Row, StepTable

FORWARD = Row(a=0.9506, d=0.3103, forward=True)
CALL = Row(a=1.001, b=-0.0065, d=0.0457, alpha=0.9467, sigma=0.3221, t=0.1, tau=99.9, index=99)
WRITES = replace(CALL, q=0.5, r=-0.25, u=0.125, c=2, clip=True)
READS = Row(a=1, b=-0.0, p=1e-300, s=1e22, alpha=1 / 3)

TABLES = {
    "forward": StepTable((FORWARD,)),
    "reverse": StepTable((FORWARD, CALL, replace(CALL, tau=49.95, index=49))),
    "two steps": StepTable((WRITES, READS)),
}
PINS = {
    "forward": "371a37e354fc9058cc812d4f92db9d36526925a393d3e0f11ac45aaa861eb61d",
    "reverse": "9ac49d6bbd71d7b6e935956fd02d6fc810ba9bbf9eeaf1ce630e8e1649566343",
    "two steps": "a9da6cfc5b28d177727900e1cc3dfd473d1dc4116bb4d1f0a972e9fcd5932a48",
}


@pytest.mark.parametrize("name", TABLES)
def test_digests_are_those_of_existing_run_files(name):
    assert TABLES[name].digest == PINS[name]


@dataclass(frozen=True)
class Wider(Row):
    """A row of a later version, with one more column."""

    momentum: float = 0.0


def test_a_later_column_counts_only_where_it_is_used():
    now = StepTable((FORWARD, CALL))
    unused = StepTable((Wider(**vars(FORWARD)), Wider(**vars(CALL))))
    used = StepTable((Wider(**vars(FORWARD)), Wider(**vars(CALL), momentum=0.5)))
    other = StepTable((Wider(**vars(FORWARD)), Wider(**vars(CALL), momentum=0.25)))
    assert unused.digest == now.digest
    assert len({now.digest, used.digest, other.digest}) == 3


@pytest.mark.parametrize("column", [field.name for field in fields(Row)])
def test_every_column_counts(column):
    other = not getattr(CALL, column) if column in ("clip", "forward") else 7
    assert StepTable((WRITES, replace(CALL, **{column: other}))).digest != StepTable((WRITES, CALL)).digest
