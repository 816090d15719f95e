"""Certify a data set image by image into a file that an interrupted run continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
from torch import Tensor

from ..data import Dataset
from ..errors import mistake, whole
from ..progress import Progress
from ..purify import NoisedDiffusionClassifier
from ..shown import Settings
from ..signatures import suggests_names
from .bounds import check_alpha, check_sigma
from .posterior import PosteriorSmoothing
from .records import POSTERIORS, RECORDS, PosteriorRecord, Record, RowFile, append_row
from .smoothing import NOISE, Smoothing


@final
@dataclass(frozen=True)
class CertifyConfig(Settings):
    """``sigma`` of the noise in [0, 1] units, ``n0`` and ``n`` draws, error probability ``alpha``, ``seed``."""

    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        check_sigma(self.sigma)
        whole("n0", self.n0, 1)
        whole("n", self.n, 1)
        whole("seed", self.seed, 0, 2**64 - 1)
        check_alpha(self.alpha)


@suggests_names
def certify_dataset(
    model: torch.nn.Module,
    dataset: Dataset,
    config: CertifyConfig,
    out: str | Path,
    *,
    networks: Mapping[str, str] | None = None,
    batch_size: int = 512,
    device: str | torch.device = "cpu",
    report: Callable[[Record, bool], None] | None = None,
    progress: bool = False,
) -> list[Record]:
    """Certify every image of ``dataset``, in order, and return all records.

    Args:
        model: as for `Smoothing`.
        out: CSV file; rows that an earlier call with the same configuration wrote are kept.
        networks: what names the model's networks, with its settings part of what a continued run must match.
        batch_size: most noisy images in one call; no part of the result.
        report: called with each record, and whether it is new.
        progress: show a bar.

    Raises:
        ResumeError: ``out`` holds another certification; it is not touched then.
    """
    smoothing = Smoothing(model.to(device), config.sigma, config.seed, batch_size)
    identity: dict[str, Any] = {
        **asdict(config),
        **NOISE,
        "data": dataset.checksum,
        **(networks or {}),
        **smoothing.model.settings(),
    }

    def one(row: int, seen: Callable[[int], None]) -> Record:
        started, image, ids, label = _image(dataset, row, device)
        found = smoothing.certify(image, ids, config.n0, config.n, config.alpha, seen=seen)
        name, predicted, votes = int(ids[0]), int(found.predicted[0]), int(found.votes[0])
        radius, p_lower = float(found.radius[0]), float(found.p_lower[0])
        return Record(name, label, predicted, radius, p_lower, votes, _since(started))

    return _each(dataset, RECORDS, Path(out), identity, one, report, progress, config.n0 + config.n)


def certify_posteriors(
    classifier: NoisedDiffusionClassifier,
    dataset: Dataset,
    config: CertifyConfig,
    out: str | Path,
    *,
    networks: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    device: str | torch.device = "cpu",
    report: Callable[[PosteriorRecord, bool], None] | None = None,
    progress: bool = False,
) -> list[PosteriorRecord]:
    """Certify every image of ``dataset`` by the mean posterior of ``classifier`` (NRDC); see `PosteriorSmoothing`.

    Other arguments and errors as for `certify_dataset`.

    Args:
        config: its sigma and seed must be the classifier's.
        batch_size: most noisy images at a time; no part of the result.

    Raises:
        ValueError: the classifier has another sigma or seed.
    """
    smoothing = PosteriorSmoothing(classifier.to(device), batch_size)
    for name, own in (("sigma", classifier.sigma), ("seed", classifier.model.seed)):
        if own != getattr(config, name):
            raise ValueError(mistake(name, f"the classifier's own, {own}", getattr(config, name)))
    identity: dict[str, Any] = {
        **asdict(config),
        **NOISE,
        "data": dataset.checksum,
        **(networks or {}),
        "method": "nrdc",
        "model": classifier.model.extra_repr(),
    }

    def one(row: int, seen: Callable[[int], None]) -> PosteriorRecord:
        started, image, ids, label = _image(dataset, row, device)
        found = smoothing.certify(image, ids, config.n0, config.n, config.alpha)
        radius, p_lower, p_upper = (float(v[0]) for v in (found.radius, found.p_lower, found.p_upper))
        name, predicted = int(ids[0]), int(found.predicted[0])
        return PosteriorRecord(name, label, predicted, radius, p_lower, p_upper, _since(started))

    return _each(dataset, POSTERIORS, Path(out), identity, one, report, progress, config.n0 + config.n)


R = TypeVar("R", Record, PosteriorRecord)


def _each(
    dataset: Dataset,
    file: RowFile[R],
    path: Path,
    identity: Mapping[str, Any],
    certify: Callable[[int, Callable[[int], None]], R],
    report: Callable[[R, bool], None] | None,
    progress: bool,
    noisy: int,
) -> list[R]:
    """Records of all images, in order: those in the file, and ``certify(row, seen)`` for the rest.

    ``seen`` may be told of so many more of an image's ``noisy`` ones.
    """
    done = {record.sample_id: record for record in file.open(path, identity)}
    records, earlier = [], len(set(dataset.sample_ids.tolist()) & done.keys())
    with Progress(
        len(dataset), "images", done=earlier, doing="certifying", fractions=True, shown=progress
    ) as bar:
        finished = earlier
        for row in range(len(dataset)):
            known = done.get(int(dataset.sample_ids[row]))
            record = known if known is not None else certify(row, lambda n: bar.step(n / noisy))
            if known is None:
                append_row(path, asdict(record).values())
                finished += 1
                bar.to(finished)
            if report is not None:
                report(record, known is None)
            records.append(record)
    return records


def _image(dataset: Dataset, row: int, device: str | torch.device) -> tuple[float, Tensor, Tensor, int]:
    """The time, one image [1, C, H, W] where the model is, its id [1] and its label."""
    where = torch.tensor([row])
    image = dataset.batch(where).to(device)
    return time.monotonic(), image, dataset.sample_ids[where], int(dataset.labels[row])


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
