"""Certify a data set image by image into a file that an interrupted run continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch

from ..data import Dataset
from ..errors import positive, whole
from .bounds import check_alpha
from .records import RECORDS, Record, append_row
from .smoothing import NOISE, Smoothing


@final
@dataclass(frozen=True)
class CertifyConfig:
    """``sigma`` of the noise in [0, 1] units, ``n0`` and ``n`` draws, error probability ``alpha``, ``seed``."""

    sigma: float = 0.25
    n0: int = 100
    n: int = 100_000
    alpha: float = 0.001
    seed: int = 0

    def __post_init__(self) -> None:
        positive("sigma", self.sigma)
        whole("n0", self.n0, 1)
        whole("n", self.n, 1)
        whole("seed", self.seed, 0, 2**64 - 1)
        check_alpha(self.alpha)


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
) -> list[Record]:
    """Certify every image of ``dataset``, in order, and return all records.

    Args:
        model: as for `Smoothing`.
        out: CSV file; rows that an earlier call with the same configuration wrote are kept.
        networks: what names the model's networks, with its settings part of what a continued run must match.
        batch_size: most noisy images in one call; no part of the result.
        report: called with each record, and whether it is new.

    Raises:
        ResumeError: ``out`` holds another certification; it is not touched then.
    """
    path = Path(out)
    smoothing = Smoothing(model.to(device), config.sigma, config.seed, batch_size)
    identity: dict[str, Any] = {
        **asdict(config),
        **NOISE,
        "data": dataset.checksum,
        **(networks or {}),
        **smoothing.model.settings(),
    }
    done = {record.sample_id: record for record in RECORDS.open(path, identity)}
    records = []
    for row in range(len(dataset)):
        sample_id = int(dataset.sample_ids[row])
        known = done.get(sample_id)
        record = known if known is not None else _certify(smoothing, dataset, row, config, device)
        if known is None:
            append_row(path, asdict(record).values())
        if report is not None:
            report(record, known is None)
        records.append(record)
    return records


def _certify(
    smoothing: Smoothing, dataset: Dataset, row: int, config: CertifyConfig, device: str | torch.device
) -> Record:
    started = time.monotonic()
    where = torch.tensor([row])
    image, ids = dataset.batch(where).to(device), dataset.sample_ids[where]
    found = smoothing.certify(image, ids, config.n0, config.n, config.alpha)
    return Record(
        int(ids[0]),
        int(dataset.labels[row]),
        int(found.predicted[0]),
        float(found.radius[0]),
        float(found.p_lower[0]),
        int(found.votes[0]),
        round(time.monotonic() - started, 3),
    )
