"""The page: well-formed, self-contained, escaped, the same every time, and with the numbers of the runs."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sqlite3
from contextlib import ExitStack

import numpy as np
import pytest
from PIL import Image

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.evaluate import GaussianNoise
from fastpure.evaluate.identity import identity
from fastpure.evaluate.store import RunStore
from fastpure.report import Options, report, tables
from fastpure.report.data import open_entries
from fastpure.report.page import collect
from fastpure.report.pictures import data_uri, flips, what_happened
from tests.evaluate.toys import attack, dataset, defense, run_file
from tests.report.made import HOSTILE, Page, hostile_data, run


def test_the_page_is_well_formed_and_every_id_is_one(html):
    page = Page(html)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for attributes in page.of("a"):
        assert attributes["href"].removeprefix("#") in ids
    for _, attributes in page.elements:
        for name in (attributes.get("aria-labelledby") or "").split():
            assert name in ids
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.of("th"))
    assert all(attributes["alt"] for attributes in page.of("img"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.of("meta")


def test_the_page_needs_nothing_from_outside(html):
    page = Page(html)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", html, re.IGNORECASE)
    assert not page.of("script")
    assert not page.of("link")
    assert not page.of("iframe")
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/png;base64,"))


def test_hostile_names_stay_text(files, tmp_path, html):
    assert "<script" not in html
    assert HOSTILE in "".join(Page(html).text)
    path = run(tmp_path / "&lt;i&gt;.sqlite", defense(), attack(), data=hostile_data())
    other = report([path], options=Options(title="</title><script>"))
    page = Page(other)
    assert "onerror" in other
    assert not [a for a in page.of("img") if a["src"] == "x"]
    text = "".join(page.text)
    for name in ("</title><script>", "&lt;i&gt;", "<img src=x onerror=1>", "<b>"):
        assert name in text


def test_the_page_is_the_same_every_time(files, html, tmp_path):
    assert report(files, tmp_path / "a.html") == html
    assert (tmp_path / "a.html").read_text() == html
    moved = [shutil.copy(path, tmp_path / path.name) for path in files]
    assert report(moved) == html, "the folder of a run is no part of its result"


def test_numbers_are_those_of_the_runs(files, html):
    rows = Page(html).rows
    for number, path in enumerate(files, 1):
        with fp.Run.open(path) as opened:
            summary = fp.Report.of(opened)
        (row,) = [row for row in rows if len(row) == 8 and row[0].split()[0] == str(number)]
        for cell, interval in ((row[1], summary.clean), (row[2], summary.robust)):
            if interval is None:
                assert cell.strip() == "none"
            else:
                assert str(interval).replace(" %", "") in " ".join(cell.split())
        assert row[6] == "16"
        assert summary.digest in html


def test_comparisons_are_those_of_compare_runs_both_ways_round(tmp_path):
    zeros, bad = np.zeros((20, 2)), np.zeros((20, 2))
    bad[:9] = 1
    bad[3] = (0, 1)
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    run_file(paths[0], zeros, bad).close()
    run_file(paths[1], zeros, np.roll(zeros, 1) + (np.arange(20) == 15)[:, None], seed=1).close()
    result = fp.compare(*paths)
    assert (result.wins, result.losses) == (9, 1)
    rows = [row for row in Page(report(paths)).rows if len(row) == 3 and "p =" in "".join(row)]
    (_, _, over), (_, under, _) = rows[:2]
    # The matrix is row minus column, `compare` is b minus a: the row of b under the column of a.
    assert under.startswith(
        f"+{100 * result.difference:.1f} *[+{100 * result.low:.1f}, +{100 * result.high:.1f}]"
    )
    assert over.startswith(f"\u2212{100 * result.difference:.1f} *[\u2212{100 * result.high:.1f}, ")
    for cell in (over, under):
        assert cell.endswith(f"p = {result.p_value:.2g}")


def collected(paths, options=None, given=(), networks=None):
    with ExitStack() as stack:
        return collect(open_entries(paths, stack), options or Options(), given, networks)


def test_only_the_defence_of_the_run_purifies(files):
    without = collected(files[1:2])
    assert "none of" not in without["galleries"][0].note
    assert without["galleries"][0].note
    assert not without["walks"]
    assert [name for name, _, _ in without["galleries"][0].rows] == ["clean", "noise", "adversarial"]
    other = collected(files[1:2], given=(defense(seed=1),))
    assert "none of the 1 given defences" in other["galleries"][0].note
    own = collected(files[1:3], given=(defense(seed=1), defense()))
    for gallery in own["galleries"]:
        assert gallery.note == ""
        assert [name for name, _, _ in gallery.rows][-1] == "adversarial, purified"
    purified = report(files[1:2], defense=defense())
    assert "adversarial, purified" in purified
    assert "could not be rebuilt" not in purified
    assert "could not be rebuilt" in report(files[1:2])


def test_pictures_are_the_images_of_the_run(files):
    found = collected(files[1:2], Options(images=5), given=(defense(),))["galleries"][0]
    positions = [column.position for column in found.columns]
    assert len(positions) == len(set(positions)) == 5
    with fp.Run.open(files[1]) as opened:
        clean, bad = (opened.images(which, positions) for which in ("clean", "adversarial"))
        predicted = opened.predicted("adversarial")[:, 0]
        labels = opened.labels
    shown = {name: [decode(tile.source) for tile in tiles] for name, _, tiles in found.rows}
    assert np.array_equal(shown["clean"], np.rint(clean[:, 0] * 255))
    assert np.array_equal(shown["adversarial"], np.rint(bad[:, 0] * 255))
    difference = bad[:, 0].astype(np.float64) - clean[:, 0]
    noise = np.rint(255 * (0.5 + 0.5 * difference / np.abs(difference).max()))
    assert np.abs(np.array(shown["noise"], dtype=float) - noise).max() <= 1
    tiles = found.rows[-1][2]
    assert [tile.verdict.split(" ")[0] for tile in tiles] == [
        ("dark", "bright")[predicted[p]] for p in positions
    ]
    assert [tile.right for tile in tiles] == [bool(predicted[p] == labels[p]) for p in positions]


def test_colours_are_kept():
    image = np.random.default_rng(0).uniform(-0.2, 1.2, (3, 5, 4)).astype(np.float32)
    expected = np.rint(image.clip(0, 1).astype(np.float64) * 255).transpose(1, 2, 0)
    assert np.array_equal(decode(data_uri(image)), expected)


def decode(source):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))))


def test_flips_are_counted_over_images_and_draws(tmp_path):
    clean = [[0, 0], [0, 1], [1, 1], [1, 0]]
    path = tmp_path / "r.sqlite"
    run_file(path, clean, [[0, 0], [1, 1], [0, 0], [1, 1]]).close()
    with ExitStack() as stack:
        (entry,) = open_entries([path], stack)
        bare = {"clean": np.array([0, 0, 1, 1]), "adversarial": np.array([0, 0, 1, 1])}
        # all labels are 0: right where 0 is said
        assert flips(entry, bare) == (("clean", (3 / 8, 1 / 8, 1 / 8, 3 / 8)), ("adversarial", (0.25,) * 4))
        assert what_happened(entry, bare) == ["both right", "caused", "caught", "both err"]
        assert what_happened(entry, None) == ["resisted", "broken", "wrong", "broken"]


def test_warnings_stand_beside_the_number(tmp_path):
    n = 24
    path = tmp_path / "weak.sqlite"
    made = run_file(path, np.zeros((n, 2)), np.zeros((n, 2)), zero=[True] * n)
    made.close()
    html = report([path])
    assert "weak: zero gradients" in html
    with fp.Run.open(path) as opened:
        for warning in fp.Report.of(opened).warnings:
            assert warning.explanation in "".join(Page(html).text)


def test_unfinished_empty_and_corrupted_runs_are_called_so(tmp_path):
    data_run = run(tmp_path / "noise.sqlite", defense(), GaussianNoise(std=0.2))
    shard = tmp_path / "shard.sqlite"
    fp.evaluate(
        defense(),
        dataset(16),
        attack(),
        fp.protocols.fresh(4),
        out=shard,
        batch_size=4,
        progress=False,
        shard=(2, 2),
    )
    empty = tmp_path / "empty.sqlite"
    RunStore(empty, identity(defense(), dataset(5), attack(), fp.protocols.fresh(4))).close()
    html = report([data_run, shard, empty])
    other = run(tmp_path / "seed.sqlite", defense(seed=1), GaussianNoise(std=0.2))
    Page(html)
    assert "random corruption, no attack" in html
    assert "shard 2/2, 8 of 16 images" in html
    assert "unfinished, 0 of 5 images" in html
    assert "Run 2 is compared with no other: shard 2/2" in report([data_run, shard, other])


@pytest.mark.parametrize(
    "protocol", [fp.protocols.dw_box(transfer_draws=3), fp.protocols.legacy_autoattack()]
)
def test_other_protocols(tmp_path, protocol):
    path = run(tmp_path / "r.sqlite", defense(), attack(), protocol)
    html = report([path], defense=defense())
    assert str(protocol) in html
    found = collected([path], given=(defense(),))["galleries"][0]
    with fp.Run.open(path) as opened:
        first = opened.predicted("adversarial")[:, 0]
    said = [tile.verdict.split(" ")[0] for tile in found.rows[-1][2]]
    assert said == [("dark", "bright")[first[column.position]] for column in found.columns]


def test_files_that_cannot_be_read(files, tmp_path):
    with pytest.raises(ValueError, match="`runs` must be one or more run files"):
        report([])
    with pytest.raises(FileNotFoundError, match=r"none\.sqlite: no such run file"):
        report([files[0], tmp_path / "none.sqlite"])
    copy = shutil.copy(files[1], tmp_path / "copy.sqlite")
    with pytest.raises(ValueError, match="`runs` must be different runs, got the same one twice"):
        report([files[1], files[0], copy])
    with sqlite3.connect(copy) as connection:
        connection.execute(
            "UPDATE draws SET predicted = 1 - predicted, correct = 1 - correct WHERE position = 3"
        )
    with pytest.raises(RunDamaged, match="position 3"):
        report([copy], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()
    (tmp_path / "text.sqlite").write_text("no database")
    with pytest.raises(RunDamaged):
        report([tmp_path / "text.sqlite"])


def test_an_existing_page_is_kept_unless_forced(files, tmp_path):
    page = tmp_path / "r.html"
    page.write_text("mine")
    with pytest.raises(FileExistsError, match="--force"):
        report(files[:1], page)
    assert page.read_text() == "mine"
    report(files[:1], page, force=True)
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert [path.name for path in tmp_path.iterdir()] == ["r.html"]
    with pytest.raises(ValueError, match="`images` must be an integer >= 0"):
        Options(images=-1)


def test_every_alarm_of_a_run_stands_beside_its_number_and_in_the_list(tmp_path):
    path = tmp_path / "weak.sqlite"
    run_file(path, np.zeros((8, 2)), np.zeros((8, 2)), attack=attack(n_iter=2, eot_iter=1)).close()
    html = report([path])
    text = "".join(Page(html).text)
    for name in ("few iterations", "noisy gradients", "few evaluation draws", "few images"):
        assert f"weak: {name}" in html
    with fp.Run.open(path) as opened:
        for warning in fp.Report.of(opened).warnings:
            assert f"weak: {tables.finding(warning.name)}" in html
            assert warning.explanation in text
