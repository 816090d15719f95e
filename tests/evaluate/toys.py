"""A defence so small that a whole evaluation takes milliseconds, and hand-made runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import fastpure as fp
from fastpure.data import Dataset
from fastpure.evaluate.identity import identity
from fastpure.evaluate.protocol import Protocol, fresh
from fastpure.evaluate.record import ImageRecord, Judged
from fastpure.evaluate.store import RunStore, Seconds
from fastpure.nets.oracle import GaussianMixture

SHAPE = (1, 4, 4)
FRESH = fresh(3)


class Brightness(nn.Module):
    """Two classes: darker or brighter than grey. Sums element by element, so that batches cannot matter."""

    def forward(self, u: Tensor) -> Tensor:
        score = (u - 0.5).flatten(1).sum(1)
        return torch.stack([-score, score], 1)


def dataset(n: int = 12, seed: int = 0) -> Dataset:
    """Grey images around 0.5, labelled by their brightness, with ids that are not positions."""
    generator = torch.Generator().manual_seed(seed)
    x = (0.5 + 0.15 * torch.randn((n, *SHAPE), generator=generator)).clamp(0, 1)
    labels = (x.flatten(1).sum(1) > 8).long()
    return Dataset(x, labels, 100 + 3 * torch.arange(n), ("dark", "bright"), "toy", "test")


def defense(seed: int = 0) -> fp.Defense:
    """DiffPure in two steps with the exact score of two Gaussians, before `Brightness`."""
    means = torch.stack([torch.full((16,), -0.2), torch.full((16,), 0.2)])
    denoiser = fp.Denoiser.from_module(GaussianMixture(means, 0.3), image_shape=SHAPE)
    method = fp.methods.diffpure(t=0.02, dt=0.01)
    return fp.Defense(fp.Purifier(denoiser, method, seed=seed), Brightness().eval())


def attack(**settings: Any) -> fp.attacks.PGD:
    return fp.attacks.PGD(**{"eps": 0.05, "n_iter": 2, "eot_iter": 2, "batch_size": 7, **settings})


@dataclass(frozen=True, kw_only=True)
class Telling(fp.attacks.PGD):
    """PGD that says what it reached and spent, by numbers made up from the images' names; gives every third one up."""

    def propose(self, problem: Any, tick: Any) -> Any:
        proposal = super().propose(problem, tick)
        n_iter, names = len(proposal.losses), problem.ids.float()
        steps = torch.arange(1, n_iter + 1, dtype=torch.float32)[:, None]
        correct = 1 / (1 + steps * (1 + names % 5))
        correct[-1, problem.ids % 3 == 0] = torch.nan
        spent_at = torch.where(correct.isnan(), torch.nan, 2 * steps + 0 * names)
        spent = torch.where(problem.ids % 7 == 0, torch.nan, spent_at.nan_to_num(0).amax(0) + 0.5)
        return replace(proposal, correct=correct, spent_at=spent_at, spent=spent.double())


def telling(**settings: Any) -> Telling:
    return Telling(**{"eps": 0.05, "n_iter": 3, "eot_iter": 2, "batch_size": 7, **settings})


def evaluate(out: Path | None = None, protocol: Protocol = FRESH, n: int = 8, **settings: Any) -> fp.Report:
    """`attack` on `defense` over the first ``n`` images, in blocks of four, without a progress bar."""
    settings = {"batch_size": 4, "progress": False, **settings}
    how = settings.pop("attack", None) or attack()
    return fp.evaluate(defense(), dataset(n), how, protocol, out, **settings)


def run_file(
    path: Path | None,
    clean: Any,
    adversarial: Any = None,
    labels: Any = None,
    *,
    protocol: Protocol | None = None,
    attack: Any = None,
    trace: Any = None,
    zero: Any = None,
    distance: float = 0.05,
    seed: int = 0,
    logits: Any = None,
) -> RunStore:
    """A store that holds hand-made predictions [n, K], and logits of all inputs if given; close it to read the file."""
    clean = np.asarray(clean)
    data = dataset(len(clean))
    labels = np.zeros(len(clean), dtype=np.int64) if labels is None else np.asarray(labels)
    protocol = protocol or fresh(clean.shape[1])
    made = None if adversarial is None else (attack or globals()["attack"]())
    store = RunStore(path, identity(defense(seed), data, made, protocol))
    records = []
    for i in range(len(clean)):
        kept = None if logits is None else np.asarray(logits[i], np.float32)
        judged = {"clean": Judged(clean[i].astype(np.int64), np.zeros(clean.shape[1], np.float32), kept)}
        own: dict[str, Any] = {}
        if adversarial is not None:
            row = np.asarray(adversarial)[i].astype(np.int64)
            judged["adversarial"] = Judged(row, np.zeros(len(row), np.float32), kept)
            own = {"x_adv": data.images[i].numpy(), "distance": distance}
            own["trace"] = np.zeros(0, np.float32) if trace is None else np.asarray(trace[i], np.float32)
            own["zero_gradient"] = None if zero is None else bool(zero[i])
        x = data.images[i].numpy()
        records.append(ImageRecord(i, int(data.sample_ids[i]), int(labels[i]), x, judged=judged, **own))
    store.write(records, Seconds())
    return store
