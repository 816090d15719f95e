"""The words that error messages share."""

from __future__ import annotations

import torch

from fastpure.errors import named


def test_samples_are_named_and_the_many_counted():
    ids = torch.arange(100, 120)
    assert named(ids, ids > 117) == "sample id 118, 119"
    assert named(ids, ids >= 100) == "sample id 100, 101, 102, 103, 104, 105, 106, 107 and 12 more"
