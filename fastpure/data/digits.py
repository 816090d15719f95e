"""scikit-learn's handwritten digits: 1,797 real 8x8 images that ship with the dependency."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch

from ..errors import DataError, one_of
from .base import Dataset

TEST_COUNT = 500
SPLIT_SEED = 0


@cache
def digits(split: str = "train") -> Dataset:
    """The handwritten digits (UCI optical recognition set, test part), 8x8x1, ten classes.

    Args:
        split: ``"train"`` (1,297 images) or ``"test"`` (500). The split is stratified and fixed;
            ``sample_ids`` are the positions in scikit-learn's order.

    Raises:
        ValueError: another split.
        DataError: scikit-learn is missing, or its file is not the one this split was made for.
    """
    one_of("split", split, ("train", "test"))
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("the digits need scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    values, labels = np.asarray(bunch.images), np.asarray(bunch.target, dtype=np.int64)
    if values.shape != (1797, 8, 8) or values.min() < 0 or values.max() > 16:
        raise DataError(f"scikit-learn's digits should be 1797 images of 8x8 in 0..16, got {values.shape}")
    train, test = stratified_split(labels, TEST_COUNT, SPLIT_SEED)
    rows = train if split == "train" else test
    return Dataset(
        pixels=torch.from_numpy(values[rows].astype(np.uint8)[:, None]),
        labels=torch.from_numpy(labels[rows]),
        sample_ids=torch.from_numpy(rows),
        classes=tuple(str(digit) for digit in range(10)),
        name="digits",
        split=split,
        levels=16,
    )


def stratified_split(labels: np.ndarray, test_count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the training and of the test part, each ascending, int64.

    Every class gives its share of ``test_count`` (largest remainders first, so that the total is
    exact). Only ``RandomState`` is used, whose streams numpy keeps for good.
    """
    classes, counts = np.unique(labels, return_counts=True)
    shares = counts * test_count / len(labels)
    taken = np.floor(shares).astype(int)
    order = np.argsort(-(shares - taken), kind="stable")
    taken[order[: test_count - taken.sum()]] += 1
    random = np.random.RandomState(seed)
    test = np.concatenate(
        [
            random.permutation(np.flatnonzero(labels == label))[:take]
            for label, take in zip(classes, taken, strict=True)
        ]
    )
    test = np.sort(test).astype(np.int64)
    train = np.setdiff1d(np.arange(len(labels), dtype=np.int64), test)
    return train, test
