"""What an experiment costs in network calls, counted without its networks."""

from __future__ import annotations

from functools import cache

import torch

from ..attacks import Attack
from ..data import Dataset
from ..evaluate import Protocol
from ..evaluate.plan import count_queries
from ..evaluate.work import judged_by
from .experiment import Experiment
from .parts import Job
from .settings import Full, Setting

CLASSES, SIDE = 10, 8
"""Classes of all data sets here; how often an attack asks does not depend on the size of the images."""

TEST_SET = 10_000
"""Images, where a paper takes all of CIFAR's."""


FULL_CALLS: dict[str, int] = {
    "coup-table1": 2_651_928_064,
    "coup-table2": 1_990_244_864,
    "coup-table3": 219_267_072,
    "coup-table4": 43_200,
    "coup-figure1": 207_872_600,
    "coup-figure2a": 208_908_800,
    "coup-figure2b": 1_247_232_000,
    "coup-figure3b": 0,
    "coup-figure4a": 1_091_328_000,
    "coup-figure4b": 1_039_360_000,
    "coup-figure5": 209_920_000,
    "coup-figure6": 208_896_000,
    "coup-robust-guides": 415_848_448,
    "coup-e1": 2_049_024,
    "agdm-main": 2_845_127_680,
    "addt-main": 216_760_320,
    "addt-dw-box": 228_651_008,
    "addt-landscape": 48_637_000,
    "adbm-main": 862_310_400,
    "advrad-certified": 22_012_272,
}
"""Network calls of every experiment in the paper's setting, as `full_calls` counts them; a test recounts."""


def job_calls(job: Job, setting: Setting, images: int) -> int:
    """Network calls of one run, at most; a gradient counts twice."""
    row = job.row
    purifies = not row.defence.bare
    draws = row.protocol.draws if purifies else 1
    judged = 2 * draws + (row.protocol.transfer_draws if row.protocol.noise == "known" and purifies else 0)
    gradients, judgements = 0.0, 0.0
    if row.source is None:
        gradients, judgements = _queries(setting.attack(job.attack, row.defence), row.protocol, purifies)
    return round(images * setting.steps(row.defence) * (2 * gradients + judgements + judged))


def drawing_calls(experiment: Experiment, setting: Setting, images: int) -> int:
    """Network calls of its figures, at most."""
    return sum(drawing.calls(setting, images) for drawing in experiment.drawings)


def calls(experiment: Experiment, setting: Setting) -> int:
    """Network calls of the whole experiment, at most."""
    images = setting.count(experiment.images) or TEST_SET
    runs = sum(job_calls(job, setting, images) for job in experiment.jobs)
    return runs + drawing_calls(experiment, setting, images)


def full_calls(experiment: Experiment) -> int:
    """`calls` in the paper's setting."""
    return calls(experiment, Full())


@cache
def _queries(attack: Attack, protocol: Protocol, purifies: bool) -> tuple[float, float]:
    names = tuple(str(i) for i in range(CLASSES))
    one = torch.zeros(1, dtype=torch.int64)
    data = Dataset(torch.zeros((1, 3, SIDE, SIDE)), one, one.clone(), names, "stand-in", "none")
    known = judged_by(attack, protocol, data.sample_ids)
    return count_queries(data, known, protocol, random=purifies, purifies=purifies)
