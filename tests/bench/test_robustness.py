"""The tables of robustness: rows are run once, shared between processes, and say what the runs say."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

import fastpure as fp
from bench import robustness_cifar10 as cifar10
from bench import robustness_digits as digits
from bench.robustness import Row, Study, alarms, comparisons, finished, lines, lowest, run_rows, worst
from fastpure.files import FileLock
from tests.evaluate.toys import attack, dataset, defense

FRESH = fp.protocols.fresh(2)
ROWS = tuple(Row(name, kind, FRESH, 8) for name in ("bare", "purified") for kind in ("PGD", "PGD-4"))
STUDY = Study(
    {"bare": lambda: defense().classifier, "purified": defense},
    {"PGD": lambda: attack(eps=0.1), "PGD-4": lambda: attack(eps=0.1, n_iter=4)},
    lambda row: dataset(row.n),
    batch_size=4,
)


def test_a_table_says_what_its_runs_say(tmp_path):
    run_rows(STUDY, ROWS, tmp_path)
    found = finished(ROWS, tmp_path)
    assert tuple(found) == ROWS
    table = list(lines(found))
    assert len(table) == 2 + len(ROWS)
    for row, line in zip(ROWS, table[2:], strict=True):
        report = fp.Report.of(found[row])
        assert f"| {row.defence} | {row.attack} |" in line
        assert str(report.robust).replace(" %", "") in line
    (found_most,) = [line for line in lowest(found, ["purified"], lambda row: True) if "purified" in line]
    reports = [fp.Report.of(run).robust for row, run in found.items() if row.defence == "purified"]
    assert f"**{min(reports, key=lambda robust: robust.estimate)}".replace(" %", "") in found_most
    pairs = list(comparisons(found, [("bare", "purified")], lambda row: True))
    assert len(pairs) == 2 + 2 + 1
    least = [worst(found, name, lambda row: True).mean() for name in ("bare", "purified")]
    assert f"| {100 * (least[1] - least[0]):+.1f} [" in pairs[-1]
    assert all("purified" in line or "bare" in line for line in alarms(found))


def test_rows_of_another_process_are_left_to_it_and_finished_ones_not_run_again(tmp_path, capsys):
    held = FileLock(tmp_path / ROWS[0].file)
    run_rows(STUDY, ROWS[:2], tmp_path)
    held.release()
    assert "is being run by another process" in capsys.readouterr().out
    assert tuple(finished(ROWS, tmp_path)) == (ROWS[1],)
    before = finished(ROWS, tmp_path)[ROWS[1]].content_digest()
    run_rows(STUDY, ROWS[:2], tmp_path)
    assert finished(ROWS, tmp_path)[ROWS[1]].content_digest() == before


def test_images_found_elsewhere_wait_for_their_run_and_are_judged_as_they_are(tmp_path, capsys):
    moved = replace(ROWS[0], defence="purified", attack="found on bare", source=ROWS[0])
    run_rows(STUDY, [moved], tmp_path)
    assert "waits for" in capsys.readouterr().out
    assert not finished([moved], tmp_path)
    run_rows(STUDY, [ROWS[0], moved], tmp_path)
    found = finished([ROWS[0], moved], tmp_path)
    assert (found[moved].images("adversarial") == found[ROWS[0]].images("adversarial")).all()
    assert any("0k" in line for line in lines({moved: found[moved]}))


def test_the_worst_of_all_is_chosen_image_by_image_on_other_draws(tmp_path):
    run_rows(STUDY, ROWS[2:], tmp_path)
    found = finished(ROWS[2:], tmp_path)
    correct = [run.correct("adversarial") for run in found.values()]
    expected = 0.0
    for i in range(8):
        for judging, choosing in ((0, 1), (1, 0)):
            row = min((0, 1), key=lambda row, i=i, choosing=choosing: correct[row][i, choosing])
            expected += correct[row][i, judging] / 2 / 8
    (line,) = [
        line for line in lowest(found, ["purified"], lambda row: True) if line.startswith("| purified")
    ]
    assert line.split("|")[-2].strip().startswith(f"{100 * expected:.1f} [")


def test_every_row_names_what_exists_and_has_a_file_of_its_own():
    tables = (
        (digits, digits.ROWS),
        *(
            (cifar10, (*cifar10.table_rows(cifar10.coup_name(scale)), *cifar10.TUNING, *cifar10.SWEEPS))
            for scale in cifar10.SCALES
        ),
    )
    for module, rows in tables:
        assert {row.defence for row in rows} <= set(module.DEFENCES)
        assert {row.attack for row in rows if row.source is None} <= set(module.ATTACKS)
        assert all(row.source in rows and row.source.attack in module.ATTACKS for row in rows if row.source)
        assert len({row.file for row in rows}) == len(set(rows))


def test_nothing_is_tuned_on_the_images_reported_on():
    reported, tuning = (set(cifar10.IDS[name]) for name in ("reported", "tuning"))
    assert not reported & tuning
    assert len(reported) >= cifar10.IMAGES
    assert len(tuning) >= cifar10.TUNING_IMAGES
    assert {row.split for row in (*cifar10.TUNING, *cifar10.SWEEPS)} == {"tuning"}


def test_the_table_has_every_attack_on_every_defence():
    rows = cifar10.table_rows(cifar10.coup_name(16))
    attacks = {"PGD Linf", "PGD L2", "APGD-CE Linf", "PGD Linf, BPDA", "DW-box Linf", cifar10.CORRUPTED}
    purifying = {row.defence for row in rows} - {"none", "DDIM"}
    assert len(purifying) == 8
    for name in purifying:
        tried = {row.attack for row in rows if row.defence == name}
        assert attacks <= tried, name
        assert any(row.source for row in rows if row.defence == name), name
        assert ("PGD Linf, detached" in tried) == (name in ("COUP scale 1", "COUP scale 16", "AGDM-style")), (
            name
        )
    assert min(row.n for row in rows) >= 128


def test_the_scale_is_chosen_by_the_worst_attack_on_it(tmp_path, monkeypatch):
    def found(rows, folder):
        return {row: Finished(0.1 if row.source and row.defence != "COUP scale 4" else 0.3) for row in rows}

    monkeypatch.setattr(cifar10, "finished", found)
    assert cifar10.Choice.of(tmp_path).best == "COUP scale 4"
    monkeypatch.setattr(cifar10, "finished", lambda rows, folder: {})
    assert cifar10.Choice.of(tmp_path) is None


@dataclass
class Finished:
    robust: float

    def values(self, which):
        return np.full(4, self.robust)
