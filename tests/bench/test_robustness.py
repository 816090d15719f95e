"""The tables of robustness: rows are run once, shared between processes, and say what the runs say."""

from __future__ import annotations

from dataclasses import replace

import fastpure as fp
from bench import robustness_cifar10 as cifar10
from bench import robustness_digits as digits
from bench.robustness import Row, Study, alarms, comparisons, finished, held, lines, lowest, run_rows, worst
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
    tables = ((digits, digits.ROWS), (cifar10, (*cifar10.ROWS, *cifar10.L2_ROWS, *cifar10.SWEEPS)))
    for module, rows in tables:
        assert {row.defence for row in rows} <= set(module.DEFENCES)
        assert {row.attack for row in rows if row.source is None} <= set(module.ATTACKS)
        assert all(row.source in rows and row.source.attack in module.ATTACKS for row in rows if row.source)
        assert len({row.file for row in rows}) == len(set(rows))


def test_sweeps_have_images_of_their_own():
    reported, tuning = (set(cifar10.IDS[name]) for name in ("reported", "tuning"))
    assert not reported & tuning
    assert len(reported) >= cifar10.IMAGES
    assert len(tuning) >= cifar10.SWEEP_IMAGES
    assert {row.split for row in cifar10.SWEEPS} == {"tuning"}
    assert {row.split for row in (*cifar10.ROWS, *cifar10.L2_ROWS)} == {"test"}


def test_every_defence_meets_the_adaptive_attack_first():
    for rows, names in ((cifar10.ROWS, ("none", *cifar10.PURIFYING)), (digits.ROWS, digits.DEFENCES)):
        first = rows[: len(names)]
        assert [row.defence for row in first] == list(names)
        assert {row.attack for row in first} <= {"Adaptive Linf", digits.ADAPTIVE}
        assert {row.n for row in first} in ({128}, {100})


def test_the_table_has_an_attack_without_the_defences_own_gradient_on_every_defence():
    for name in cifar10.PURIFYING:
        tried = {row.attack for row in cifar10.ROWS if row.defence == name}
        assert cifar10.ADAPTIVE in tried, name
        assert ("Linf, found on DiffPure" in tried) == (name != "DiffPure"), name
    best = {row.attack for row in cifar10.ROWS if row.defence == cifar10.coup_name(cifar10.BEST)}
    assert {"PGD Linf", "PGD Linf, detached"} <= best


def test_whether_an_attack_was_beaten_is_said_beside_the_lowest_other_row(tmp_path):
    run_rows(STUDY, ROWS, tmp_path)
    found = finished(ROWS, tmp_path)
    (line,) = [line for line in held(found, "PGD", lambda row: True) if line.startswith("| purified")]
    own, other = found[ROWS[2]], found[ROWS[3]]
    robust = [str(fp.Report.of(run).robust).replace(" %", "") for run in (own, other)]
    difference = other.values("adversarial").mean() - own.values("adversarial").mean()
    assert line.startswith(f"| purified | {robust[0]} | {robust[1]} | PGD-4 | {100 * difference:+.1f} [")
    assert len(list(held(found, "PGD", lambda row: row.attack == "PGD"))) == 2


def test_a_table_says_what_attacks_spent(tmp_path):
    run_rows(STUDY, ROWS, tmp_path)
    found = finished(ROWS, tmp_path)
    header, _, *table = [line.split(" | ") for line in lines(found)]
    column = header.index("gradients per image")
    for row, line in zip(ROWS, table, strict=True):
        assert line[column] == f"{found[row].spent.mean():.0f}"
    assert int(table[3][column]) > 0


def test_the_cifar10_file_follows_what_was_found(tmp_path, monkeypatch):
    study = replace(
        STUDY,
        defences=dict.fromkeys(cifar10.DEFENCES, STUDY.defences["purified"]),
        attacks=dict.fromkeys(cifar10.ATTACKS, STUDY.attacks["PGD"]),
    )
    rows = [cifar10.ROWS[1], next(row for row in cifar10.ROWS if row.source)]
    small = [replace(row, n=8, source=row.source and replace(row.source, n=8)) for row in rows]
    for name, value in (("ROWS", (*small, cifar10.ROWS[0])), ("SWEEPS", ()), ("RESULTS", tmp_path)):
        monkeypatch.setattr(cifar10, name, value)
    run_rows(study, small, tmp_path)
    text = cifar10.write(tmp_path).read_text(encoding="utf-8")
    assert "1 rows are not finished yet" in text
    robust = fp.Report.of(finished(small, tmp_path)[small[0]]).robust
    assert "| DiffPure | Adaptive Linf | fresh(10 draws) | 8 | " in text
    assert str(robust).replace(" %", "") in text
    assert "## Sweeps" not in text
