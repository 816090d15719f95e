"""A paper's number by a paper's rule: several versions of AutoAttack, each judged on one draw, the smallest told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import fastpure as fp
from fastpure.attacks import AutoAttack
from fastpure.evaluate import Run, evaluate_published, protocol_of, smaller_of, versions_of
from fastpure.intervals import wilson
from tests.evaluate.toys import attack, run_file

LEGACY = fp.protocols.legacy_autoattack()
SMALL = {"n_iter": 2, "eot_iter": 1, "n_queries": 4, "n_target_classes": 1}


def version(name: str, **settings) -> AutoAttack:
    return AutoAttack(version=name, eps=0.05, decision="legacy", **settings)


def run_of(n_right: int, attacked=None, n: int = 40, protocol=LEGACY, seed: int = 0, path=None) -> Run:
    """A run in which the first ``n_right`` of ``n`` images stay right, and all originals are."""
    clean = np.zeros((n, 2), int)
    wrong = np.repeat((np.arange(n) >= n_right).astype(int)[:, None], 2, 1)
    store = run_file(path, clean, wrong, protocol=protocol, attack=attacked or version("rand"), seed=seed)
    run = store.read()
    if path is not None:
        store.close()
    return run


def test_the_smaller_of_two_versions_and_an_interval_that_holds_for_both():
    runs = [run_of(31), run_of(28, version("standard"))]
    told = smaller_of(runs)
    assert told.taken == 1
    assert told.attacks == ("AutoAttack rand", "AutoAttack standard")
    assert [accuracy.estimate for accuracy in told.accuracies] == [31 / 40, 28 / 40]
    # Both intervals hold together with 95 %, each by itself with 97.5 %: the smaller of the bounds hold the smaller.
    both = [wilson(right, 40, 0.975) for right in (31, 28)]
    assert told.robust.estimate == 28 / 40
    assert told.robust.low == min(interval.low for interval in both)
    assert told.robust.high == min(interval.high for interval in both)
    assert (told.robust.n, told.robust.confidence) == (40, 0.95)
    assert told.robust.low < wilson(28, 40).low, "two looks, a wider interval"
    assert told.clean == wilson(40, 40)
    assert "the smaller of AutoAttack rand 77.5 % and AutoAttack standard 70.0 %" in str(told)
    assert str(told.robust) in str(told)
    turned = smaller_of(runs[::-1])
    assert (turned.taken, turned.robust) == (0, told.robust)


def test_the_smaller_of_one_is_that_one():
    told = smaller_of([run_of(31)])
    assert (told.taken, told.robust) == (0, wilson(31, 40))
    assert "smaller" not in str(told)


def test_the_interval_holds_the_smaller_of_two_true_accuracies():
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        runs = random.random((2, 60, 1)) < np.array([0.7, 0.72])[:, None, None]
        both = [wilson(float(right.sum()), 60, 0.975) for right in runs]
        held += min(i.low for i in both) <= 0.7 <= min(i.high for i in both)
    assert held / 400 > 0.94


def test_unlike_runs_have_no_smaller_one():
    with pytest.raises(ValueError, match="`runs` must be at least one"):
        smaller_of([])
    with pytest.raises(ValueError, match="alike in defense"):
        smaller_of([run_of(3), run_of(3, seed=1)])
    with pytest.raises(ValueError, match="alike in protocol"):
        smaller_of([run_of(3), run_of(3, protocol=fp.protocols.fresh(2))])
    with pytest.raises(ValueError, match=r"of one budget, got eps: 0\.05 -> 0\.1"):
        smaller_of([run_of(3), run_of(3, replace(version("standard"), eps=0.1))])


def test_versions_are_found_among_other_runs():
    rand, standard = run_of(31), run_of(28, version("standard"))
    other = run_of(20, version("standard"), seed=1)
    fresh = run_of(25, version("standard"), protocol=fp.protocols.fresh(2))
    longer = run_of(22, version("standard", n_iter=50))
    pgd = run_of(10, attack())
    assert versions_of([pgd, standard, other, fresh, longer, rand]) == [(1, 5)]
    assert versions_of([pgd, standard, other, fresh]) == []
    assert versions_of([run_of(3, replace(version("rand"), decision="fresh")), standard]) == []


def tiny():
    """COUP as published, on bundled networks and a few steps."""
    denoiser, classifier = fp.load_denoiser("cifar10-small"), fp.load_classifier("cifar10-small")
    preset = fp.presets["coup-cifar10-linf"]
    x = torch.rand((3, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    data = fp.data.Dataset(x, torch.tensor([3, 3, 5]), torch.arange(3), tuple("abcdefghij"), "toy", "test")
    return preset, preset.defense(denoiser, classifier, changes={"dt": 0.05}), data


@pytest.mark.filterwarnings("ignore:the gradient is exactly zero")
def test_a_preset_is_evaluated_by_its_own_rule(tmp_path):
    pytest.importorskip("pyautoattack")
    pytest.importorskip("torchsde")
    preset, defense, data = tiny()
    told = evaluate_published(preset, defense, data, tmp_path, changes=SMALL, progress=False)
    assert sorted(path.name for path in tmp_path.glob("*.sqlite")) == [
        "autoattack-rand.sqlite",
        "autoattack-standard.sqlite",
    ]
    estimates = []
    for label in ("rand", "standard"):
        with Run.open(tmp_path / f"autoattack-{label}.sqlite") as run:
            assert run.protocol == LEGACY == protocol_of(preset)
            attacked = run.identity["attack"]["settings"]
            assert (attacked["version"], attacked["gradient"], attacked["n_iter"]) == (label, "adjoint", 2)
            assert attacked["decision"] == "legacy"
            assert np.isfinite(run.verdicts).all(), "AutoAttack's own check decides"
            assert np.array_equal(run.values("adversarial"), run.verdicts)
            estimates.append(run.verdicts.mean())
    assert told.smaller is not None
    assert told.smaller.robust.estimate == min(estimates)
    assert [report.robust.estimate for report in told.reports] == estimates
    assert told.published == preset.numbers[0]
    for text in ("the smaller of AutoAttack rand", "73.05", "COUP Table 1", "legacy_autoattack()"):
        assert text in str(told)
    again = evaluate_published(preset, defense, data, tmp_path, changes=SMALL, progress=False)
    assert [report.digest for report in again.reports] == [report.digest for report in told.reports]


def test_parts_have_no_smaller_one_and_presets_without_rule_none_at_all(tmp_path):
    pytest.importorskip("torchsde")
    preset, defense, data = tiny()
    alone = replace(preset, attack_specs=preset.attack_specs[:1])
    part = evaluate_published(
        alone, defense, data, tmp_path, changes=SMALL, progress=False, batch_size=1, shard=(3, 3)
    )
    assert part.smaller is None
    assert "fastpure merge" in str(part)
    assert [path.name for path in tmp_path.glob("*.sqlite")] == ["autoattack-rand-3of3.sqlite"]
    with pytest.raises(ValueError, match="`preset` must be one that names the rule it was published with"):
        evaluate_published(replace(preset, rule=None), defense, data, tmp_path)
    with pytest.raises(ValueError, match="`preset` must be one that names the rule it was published with"):
        protocol_of(replace(preset, rule=None))
    with pytest.raises(ValueError, match=r"attack autoattack does not take these settings: .*power"):
        evaluate_published(preset, defense, data, tmp_path / "x", changes={"power": 1})
    assert not (tmp_path / "x").exists()
