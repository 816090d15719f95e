"""Test images of a data set by the options that name it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..data import Dataset


def test_images(data: str, path: Path | None, **options: Any) -> Dataset:
    """`fastpure.data.load_dataset` of the split "test"; says on stderr which pictures of a folder these are.

    Raises:
        ValueError, DataError: as there; an unknown name is one of ``--data``.
    """
    from ..data import DATASETS, load_dataset
    from ..errors import one_of

    dataset = load_dataset(one_of("--data", data, DATASETS), "test", path=path, **options)
    if dataset.named_by and dataset.note:
        typer.echo(f"{data}: {dataset.note}", err=True)
    return dataset
