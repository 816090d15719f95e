"""The registry: every entry can be built, says what it needs, and its numbers are the presets'."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fastpure.attacks import ATTACKS, AutoAttack
from fastpure.evaluate import CONTROLS
from fastpure.presets import PRESETS
from fastpure.purify.entry import look_through
from fastpure.reproduce import EXPERIMENTS, MISSING, ROLES, SMALL, Full, Small, full_calls
from fastpure.reproduce.count import FULL_CALLS, calls
from fastpure.reproduce.parts import Assault, Row, quoted
from fastpure.zoo import CLASSIFIERS, DENOISERS

EVERY = list(EXPERIMENTS.values())
ids = [one.name for one in EVERY]
SLOW = {"coup-table1", "coup-table2", "agdm-main"}


def test_all_that_was_promised_is_there():
    wanted = {f"coup-table{i}" for i in (1, 2, 3, 4)} | {
        f"coup-figure{i}" for i in ("1", "2a", "2b", "3b", "4a", "4b", "5", "6")
    }
    wanted |= {
        "coup-robust-guides",
        "coup-e1",
        "agdm-main",
        "addt-main",
        "addt-dw-box",
        "addt-landscape",
        "adbm-main",
        "advrad-certified",
    }
    assert wanted <= set(EXPERIMENTS)
    assert set(FULL_CALLS) == set(EXPERIMENTS)


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_every_part_of_both_sizes_can_be_made(one):
    full, small = Full(), Small()
    for job in one.jobs:
        for setting in (full, small):
            attack = setting.attack(job.attack, job.row.defence)
            assert not job.row.defence.bare or getattr(attack, "gradient", None) in ("exact", None)
        assert re.fullmatch(r"[\w.-]+\.sqlite", job.file(True))
    assert (
        len({job.file(True) for job in one.jobs})
        == len(one.jobs)
        == len({job.file(False) for job in one.jobs})
    )
    for defence in one.defences:
        assert small.missing(defence) == ()
        assert set(full.missing(defence)) == set(defence.roles)
        assert full.steps(defence) >= small.steps(defence) >= 1


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_a_small_run_is_small(one):
    assert calls(one, Small()) < 110_000


def test_small_defences_are_what_they_are_called():
    small = Small()
    for one in EVERY:
        for defence in one.defences:
            made = small.defence(defence)
            assert defence.bare == (not hasattr(made, "purifier"))


@pytest.mark.parametrize("one", EVERY, ids=ids)
def test_the_papers_gradients_exist_for_the_papers_methods(one):
    """Not the paper's networks, but its methods and attacks: what does not fit would be found out after hours."""
    setting = Full(files={name: role.bundled for name, role in ROLES.items() if role.bundled})
    for job in one.jobs:
        target = look_through(setting.defence(job.row.defence))
        attack = setting.attack(job.attack, job.row.defence)
        members = attack.members(10) if isinstance(attack, AutoAttack) else [attack]
        for member in members:
            if hasattr(member, "mode"):
                member.mode().logits(target)
        part = job.row.protocol.part
        if target.purifies and job.row.protocol.noise == "known":
            with target.fixed(0, part):
                pass


def test_roles_name_networks_that_exist():
    for name, role in ROLES.items():
        # A network of normal images only is trained by the small run itself.
        bundled = DENOISERS if role.kind == "denoiser" else CLASSIFIERS
        assert role.bundled in (bundled if name != "normal" else ("",))
        assert role.what


def test_published_purifications_have_the_published_number_of_steps():
    table = EXPERIMENTS["coup-table1"]
    assert [Full().steps(row.defence) for row in table.rows[:3]] == [1, 100, 100]
    assert [Full().steps(row.defence) for row in EXPERIMENTS["coup-table2"].rows[:3]] == [1, 75, 75]
    assert Full().steps(EXPERIMENTS["adbm-main"].rows[1].defence) == 5


def test_numbers_are_those_of_the_presets_or_of_the_paper():
    found = {
        (row.defence.label, n.clean, n.robust)
        for row in EXPERIMENTS["coup-table1"].rows
        for n in row.published
    }
    assert {("COUP", 90.04, 73.05), ("DiffPure", 89.02, 70.64), ("no purification", 96.09, 0.0)} <= found
    assert ("COUP", 90.33, 41.72) in found
    robust = [row.published[0].robust for row in EXPERIMENTS["coup-e1"].rows]
    assert robust == [87.80, 92.60, 93.00]
    bpda = {row.defence.label: row.published[0].robust for row in EXPERIMENTS["coup-table3"].rows}
    assert bpda == {"DiffPure": 81.40, "GDMP": 76.22, "ADP": 70.01, "COUP": 83.20}


def test_what_is_not_known_is_said():
    for name in ("coup-figure2b", "coup-figure4a", "agdm-main", "addt-main", "adbm-main"):
        assert any(MISSING in note for note in EXPERIMENTS[name].notes)


def test_quoted_takes_the_exact_protocol_first():
    assert quoted("adbm-cifar10-linf", "PGD-200 EOT-20").robust == 47.70
    assert quoted("coup-cifar10-linf", "COUP Table 1").robust == 73.05
    with pytest.raises(ValueError, match="COUP Table 9"):
        quoted("coup-cifar10-linf", "COUP Table 9")


def test_attacks_are_attacks():
    assert {job.attack.name for one in EVERY for job in one.jobs} <= {*ATTACKS, *CONTROLS}
    with pytest.raises(ValueError, match="must be one of"):
        Assault("none", "nothing")
    with pytest.raises(ValueError, match="does not take these settings"):
        Assault("pgd", "pgd", (("nothing", 1),)).build(small=False)
    with pytest.raises(ValueError, match="`attacks`"):
        Row(EVERY[0].rows[0].defence, ())
    assert set(PRESETS)


def test_the_page_shows_every_entry_and_small_pictures():
    page = Path(__file__).parents[2] / "docs" / "papers.md"
    text = page.read_text(encoding="utf-8")
    for name, one in EXPERIMENTS.items():
        assert f"fastpure reproduce {name} --small" in text
        assert one.title in text
    assert text.count(SMALL) >= len(EXPERIMENTS) - 1, "a closed form is no setting"
    pictures = re.findall(r"\]\((papers/[^)]+)\)", text)
    assert len(pictures) >= len(EXPERIMENTS) - 1
    for picture in pictures:
        assert (page.parent / picture).stat().st_size < 150_000


@pytest.mark.parametrize(
    "one", [pytest.param(one, marks=pytest.mark.slow) if one.name in SLOW else one for one in EVERY], ids=ids
)
def test_costs_in_the_list_are_counted(one):
    assert full_calls(one) == FULL_CALLS[one.name]
