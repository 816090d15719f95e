"""Images and labels that attacks are given beforehand, matched with the attacked images by sample id."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..errors import mistake, named


def check_tensor(argument: str, value: Any, dtype: torch.dtype, dims: int) -> None:
    """Raise TypeError for anything but a tensor, ValueError for one of another type or number of dimensions."""
    if not isinstance(value, Tensor):
        raise TypeError(mistake(argument, f"a {dtype} tensor", type(value).__name__))
    if value.dtype != dtype or value.ndim != dims:
        raise ValueError(mistake(argument, f"{dtype} with {dims} dimensions", f"{value.dtype}, {value.ndim}"))


def check_names(sample_ids: Any, n: int, what: str) -> None:
    """Raise TypeError or ValueError unless ``sample_ids`` names each of ``n`` things once, int64 [n]."""
    check_tensor("sample_ids", sample_ids, torch.int64, 1)
    if len(sample_ids) != n:
        raise ValueError(mistake("sample_ids", f"one for each of {n} {what}", len(sample_ids)))
    if len(sample_ids.unique()) != n:
        raise ValueError(mistake("sample_ids", "different names", "some of them twice"))


def check_values(argument: str, images: Tensor, sample_ids: Tensor) -> None:
    """Raise ValueError, naming the images, unless all are finite and in [0, 1]."""
    for expected, good in (
        ("finite", images.isfinite()),
        ("images in [0, 1]", (images >= 0) & (images <= 1)),
    ):
        bad = ~good.flatten(1).all(1)
        if bool(bad.any()):
            raise ValueError(mistake(argument, expected, f"others for {named(sample_ids, bad)}"))


def rows(sample_ids: Tensor, wanted: Tensor, remedy: str) -> list[int]:
    """Where each of the ``wanted`` names [B] stands among ``sample_ids`` [N].

    Raises:
        ValueError: some are not there; the message names them.
    """
    place = {name: row for row, name in enumerate(sample_ids.tolist())}
    missing = [name for name in wanted.tolist() if name not in place]
    if missing:
        raise ValueError(mistake("sample_ids", f"among the {len(place)} found", missing[:8], remedy))
    return [place[name] for name in wanted.tolist()]


def by_name(sample_ids: Tensor, n: int, argument: str) -> Tensor:
    """Names for ``n`` things given without, in the order of the images ``sample_ids`` [B].

    Raises:
        ValueError: they are not as many as the images, so that nobody knows which belongs to which.
    """
    if len(sample_ids) != n:
        remedy = "Give sample_ids with them, such as fp.attacks.Start(found, sample_ids)"
        raise ValueError(mistake(argument, f"one for each of {len(sample_ids)} images", n, remedy))
    return sample_ids.detach().to("cpu", torch.int64, copy=True)
