"""The leaderboard's JSON of a run: its numbers, and what it must not hide."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import fastpure as fp
from fastpure.report import robustbench_entry, write_robustbench
from tests.evaluate import toys

# Eight images; the second and third are right on two and one of three draws.
CLEAN = [[0, 0, 0]] * 7 + [[1, 1, 1]]
FOUND = [[0, 0, 0], [0, 0, 1], [0, 1, 1], [1, 1, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0], [1, 1, 1]]
STANDARD = fp.attacks.AutoAttack(eps=8 / 255)


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A function that writes a run of a data set called cifar10."""
    plain = toys.dataset

    def write(clean=CLEAN, found=FOUND, name="cifar10", **settings):
        monkeypatch.setattr(toys, "dataset", lambda n: replace(plain(n), name=name))
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.sqlite"
        toys.run_file(path, clean, found, **settings).close()
        return path

    return write


def test_the_numbers_are_the_runs(made):
    path = made(attack=STANDARD)
    entry = robustbench_entry(path, {"name": "A paper", "venue": "ICLR 2030", "reported": "70.0"})
    with fp.Run.open(path) as run:
        report = fp.Report.of(run)
        assert robustbench_entry(run)["autoattack_acc"] == entry["autoattack_acc"]
    assert (entry["clean_acc"], entry["autoattack_acc"]) == ("87.50", "62.50")
    assert float(entry["autoattack_acc"]) == 100 * report.robust.estimate
    assert (entry["dataset"], entry["eps"], entry["number_forward_passes"]) == ("cifar10", "8/255", 2)
    assert (entry["name"], entry["venue"], entry["reported"]) == ("A paper", "ICLR 2030", "70.0")
    assert entry["link"] is entry["authors"] is entry["additional_data"] is None, "nobody said"
    assert entry["architecture"] == "Brightness"
    assert "external" not in entry
    for words in (
        "fresh(3 draws)",
        "8 images",
        str(report.robust),
        "counts 10000 images",
        report.digest[:12],
    ):
        assert words in entry["footnote"]


def test_a_random_defence_is_not_passed_off_as_one_that_counts(made):
    entry = robustbench_entry(made(attack=STANDARD))
    assert entry["unreliable"] is True
    assert "draws noise, which RobustBench's rules exclude" in entry["footnote"]
    held = robustbench_entry(
        made(
            [row[:1] for row in CLEAN],
            [row[:1] for row in FOUND],
            attack=STANDARD,
            protocol=fp.protocols.dw_box(),
        )
    )
    assert held["unreliable"] is True
    assert "held and known to the attacker" in held["footnote"]


def test_another_attack_is_not_called_autoattack(made):
    for attack in (fp.attacks.PGD(eps=8 / 255), fp.attacks.AutoAttack(eps=8 / 255, version="rand")):
        entry = robustbench_entry(made(attack=attack))
        assert "autoattack_acc" not in entry
        assert entry["external"] == "62.50"
        assert type(attack).__name__ in entry["footnote"]


def test_warnings_of_the_run_are_told(made):
    path = made(attack=fp.attacks.PGD(eps=8 / 255), zero=[1] * 8)
    with fp.Run.open(path) as run:
        warnings = fp.Report.of(run).warnings
    assert warnings
    assert all(warning.explanation in robustbench_entry(path)["footnote"] for warning in warnings)


def test_written_once_and_whole(made, tmp_path):
    path, out = made(attack=STANDARD), tmp_path / "model_info" / "cifar10" / "Linf" / "Me2030Paper.json"
    assert write_robustbench(path, out) == out
    assert json.loads(out.read_text()) == robustbench_entry(path)
    with pytest.raises(FileExistsError, match="--force"):
        write_robustbench(path, out)
    write_robustbench(path, out, {"link": "https://example.org"}, force=True)
    assert json.loads(out.read_text())["link"] == "https://example.org"


def test_runs_that_have_no_place_there(made, tmp_path):
    for settings, message in (
        ({"name": "digits", "attack": STANDARD}, "the run's data set` must be one of 'cifar10'"),
        ({"attack": fp.attacks.PGD(norm="L1", eps=1.0)}, "within Linf or L2, got PGD, L1"),
        ({"found": None}, "within Linf or L2, got none"),
    ):
        with pytest.raises(ValueError, match=message):
            robustbench_entry(made(**settings))
    with pytest.raises(ValueError, match="`about` must be one of"):
        robustbench_entry(made(attack=STANDARD), {"accuracy": 99})
    toys.evaluate(tmp_path / "part.sqlite", shard=(1, 2))  # of a data set called cifar10 here
    with pytest.raises(ValueError, match="`run` must be finished, got 4 of 8 images"):
        robustbench_entry(tmp_path / "part.sqlite")
