"""An attack's word is not taken: what it returns is projected, measured and judged; its verdict only where named."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.attacks.base import Proposal
from fastpure.errors import NonFiniteError
from fastpure.evaluate.protocol import legacy_autoattack
from tests.evaluate.toys import dataset, defense


@dataclass(frozen=True, kw_only=True)
class Claims(fp.attacks.PGD):
    """Returns whatever the class says, whatever the budget is."""

    what: ClassVar = staticmethod(lambda x: x)
    verdict: ClassVar = None

    def propose(self, problem, report):
        trace = problem.x.new_zeros((3, len(problem.x)))
        own = None if self.verdict is None else torch.tensor([self.verdict] * len(problem.x))[:, None]
        return Proposal(type(self).what(problem.x), trace, None, own)


def evaluate(kind, protocol=None, out=None, **settings):
    how = protocol or fp.protocols.fresh(2)
    return fp.evaluate(defense(), dataset(6), kind(eps=0.05, **settings), how, out, progress=False)


class Far(Claims):
    what = staticmethod(lambda x: x + 3.0)


class Broken(Claims):
    what = staticmethod(lambda x: x / 0)


class SaysRobust(Claims):
    verdict = True


class SaysBroken(Claims):
    verdict = False


@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_images_outside_the_budget_are_projected_and_measured_as_stored(tmp_path, norm):
    path = tmp_path / "r.sqlite"
    evaluate(Far, out=path, norm=norm)
    with fp.Run.open(path) as run:
        x, x_adv = (run.images(which).astype(np.float64) for which in ("clean", "adversarial"))
        difference = np.abs(x_adv - x).reshape(6, -1)
        own = {"Linf": difference.max(1), "L1": difference.sum(1), "L2": np.sqrt((difference**2).sum(1))}[
            norm
        ]
        assert np.allclose(run.distances, own, rtol=1e-12)
        assert (own <= 0.05).all()
        assert (own > 0.04).all()
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1


def test_nan_is_an_error_with_the_image_named(tmp_path):
    with pytest.raises(NonFiniteError, match="NaN or Inf for sample id 100, 103"):
        evaluate(Broken, out=tmp_path / "r.sqlite")
    with fp.Run.open(tmp_path / "r.sqlite") as run:
        assert not len(run.positions), "nothing of the block was kept"


def test_an_attacks_own_verdict_counts_only_under_the_protocol_that_says_so():
    for kind, expected in ((SaysRobust, 1.0), (SaysBroken, 0.0)):
        assert evaluate(kind, legacy_autoattack()).robust.estimate == expected
    fresh = {evaluate(kind).robust.estimate for kind in (SaysRobust, SaysBroken)}
    assert len(fresh) == 1
    own = evaluate(Claims, legacy_autoattack())
    assert own.robust.estimate <= own.clean.estimate


def test_white_box_attack_and_protocol_must_know_the_same_noise():
    attack = fp.attacks.DWPGD(eps=0.05, n_iter=2, draw=3)
    report = fp.evaluate(defense(), dataset(4), attack, fp.protocols.dw_box(draw=3), progress=False)
    assert report.robust is not None
    with pytest.raises(ValueError, match="`attack` must be one that knows the noise of the protocol"):
        fp.evaluate(defense(), dataset(4), attack, fp.protocols.dw_box(draw=4), progress=False)
    half = replace(attack, variant="xi")
    report = fp.evaluate(defense(), dataset(4), half, fp.protocols.dw_box(3, variant="xi"), progress=False)
    assert "forward noise only, 10 draws" in report.protocol
