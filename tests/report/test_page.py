"""The page: well-formed, self-contained, escaped, the same every time, and with the numbers of the runs."""

from __future__ import annotations

import base64
import io
import re
import shutil
import sqlite3
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.evaluate import GaussianNoise
from fastpure.evaluate.identity import identity
from fastpure.evaluate.protocol import FIRST_DRAW
from fastpure.evaluate.store import RunStore
from fastpure.kernels import Domain
from fastpure.report import Options, report
from fastpure.report.data import finding, headlines, open_entries
from fastpure.report.page import collect
from fastpure.report.pictures import RULE, data_uri, flips, majority, what_happened
from fastpure.report.plotting import perturbation
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


def test_comparisons_are_those_of_compare_runs(tmp_path):
    zeros, bad = np.zeros((20, 2)), np.zeros((20, 2))
    bad[:9] = 1
    bad[3] = (0, 1)
    paths = [tmp_path / "a.sqlite", tmp_path / "b.sqlite"]
    run_file(paths[0], zeros, bad).close()
    run_file(paths[1], zeros, np.roll(zeros, 1) + (np.arange(20) == 15)[:, None], seed=1).close()
    result = fp.compare(*paths)
    assert (result.wins, result.losses) == (9, 1)
    rows = [row for row in Page(report(paths)).rows if row and "p =" in row[-1]]
    (name, cell), _ = rows  # robust and clean accuracy, the pair once in each
    assert name.split() == ["2", "b"]
    # The matrix is row minus column, `compare` is b minus a: the row of b under the column of a.
    assert cell.startswith(
        f"+{100 * result.difference:.1f} *[+{100 * result.low:.1f}, +{100 * result.high:.1f}]"
    )
    assert cell.endswith(f"p = {result.p_value:.2g}")
    turned = [row for row in Page(report(paths[::-1])).rows if row and "p =" in row[-1]]
    assert turned[0][1].startswith(f"\u2212{100 * result.difference:.1f} *[\u2212{100 * result.high:.1f}, ")


def test_each_pair_of_many_stands_once(files):
    page = Page(report(files))
    cells = [cell for row in page.rows for cell in row if "p =" in cell]
    assert len(cells) == 3 + 3, "three attacked runs, three defences"


def collected(paths, options=None, given=(), networks=None):
    with ExitStack() as stack:
        return collect(open_entries(paths, stack), options or Options(), given, networks)


def test_only_the_defence_of_the_run_purifies(files):
    without = collected(files[1:2])
    assert "none of" not in without["galleries"][0].note
    assert without["galleries"][0].note
    assert not without["walks"]
    assert [name for name, _, _ in without["galleries"][0].rows] == ["clean", "perturbation", "adversarial"]
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
        ids = opened.sample_ids[positions]
        clean, bad = (opened.images(which, positions) for which in ("clean", "adversarial"))
        predicted = opened.predicted("adversarial")
        labels = opened.labels
    shown = {name: [decode(tile.source) for tile in tiles] for name, _, tiles in found.rows}
    assert np.array_equal(shown["clean"], np.rint(clean[:, 0] * 255))
    assert np.array_equal(shown["adversarial"], np.rint(bad[:, 0] * 255))
    noise = perturbation(bad.astype(np.float64) - clean)[0].transpose(0, 2, 3, 1)
    assert np.abs(np.array(shown["perturbation"], dtype=float) - 255 * noise).max() <= 1
    name, _, tiles = found.rows[-1]
    assert name == "adversarial, purified"
    right = (predicted == labels[:, None]).sum(1)
    for tile, p in zip(tiles, positions, strict=True):
        said = "tie" if right[p] == 2 else ("dark", "bright")[int((predicted[p] == 1).sum() > 2)]
        assert tile.verdict == f"{said} · {right[p]}/4", "of all draws, not of the one that is shown"
        assert tile.right == (right[p] > 2)
    x = torch.from_numpy(clean)
    with torch.no_grad():
        purified = defense().purifier(x, torch.from_numpy(ids), FIRST_DRAW, domain=Domain.EVALUATION)
    quality = fp.diagnostics.image_quality(x, purified)
    name, _, tiles = found.rows[1]
    assert name == "clean, purified"
    told = [
        f"{p:.1f} dB · {s:.2f}" for p, s in zip(quality.psnr.tolist(), quality.ssim.tolist(), strict=True)
    ]
    assert [tile.quality for tile in tiles] == told
    assert found.measures.endswith("below them PSNR in dB, SSIM against the original.")


def test_headings_and_verdicts_agree(files):
    """Whatever stands above an image follows from the marks below it, with the defence at hand and without."""
    kinds = {
        (True, True): "both right",
        (True, False): "caused",
        (False, True): "caught",
        (False, False): "both err",
    }
    found = collected(files[1:3], Options(images=16), given=(defense(),))["galleries"]
    for gallery in found:
        rows = {name: tiles for name, _, tiles in gallery.rows}
        for i, column in enumerate(gallery.columns):
            alone, defended = (rows[name][i].right for name in ("adversarial", "adversarial, purified"))
            assert column.kind == kinds[alone, defended]
    kinds = {
        (True, True): "resisted",
        (True, False): "broken",
        (False, True): "wrong",
        (False, False): "wrong",
    }
    for gallery in collected(files[:3], Options(images=16))["galleries"]:
        rows = {name: tiles for name, _, tiles in gallery.rows}
        for i, column in enumerate(gallery.columns):
            assert column.kind == kinds[rows["clean"][i].right, rows["adversarial"][i].right]
    assert RULE in Page(report(files[1:2])).text_of()


def test_the_most_frequent_class_counts_and_ties_do_not():
    predicted = np.array([[0, 0, 1], [2, 1, 2], [0, 1, 2], [3, 3, 3]])
    assert majority(predicted).tolist() == [0, 2, -1, 3]
    assert majority(np.zeros((2, 0), np.int64)).tolist() == [-1, -1]


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
        assert what_happened(entry, None) == ["resisted", "wrong", "wrong", "wrong"]


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
        answers = majority(opened.predicted("adversarial"))
    said = [tile.verdict.split(" ")[0] for tile in found.rows[-1][2]]
    assert said == [("dark", "bright", "tie")[answers[column.position]] for column in found.columns]


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
            assert f"weak: {finding(warning.name)}" in html
            assert warning.explanation in text


def test_the_lowest_number_of_a_defence_stands_first_with_what_speaks_against_it(tmp_path):
    n = 30
    paths = {}
    for name, wrong, kind in (
        ("strong", 12, attack(n_iter=12)),
        ("weak", 3, attack(n_iter=2)),
        ("other-budget", 25, attack(eps=0.4)),
    ):
        paths[name] = tmp_path / f"{name}.sqlite"
        bad = np.zeros((n, 5))
        bad[:wrong] = 1
        run_file(paths[name], np.zeros((n, 5)), bad, attack=kind, trace=np.ones((n, 2))).close()
    with ExitStack() as stack:
        entries = open_entries(list(paths.values()), stack)
        first, second = headlines(entries)
        assert [entry.name for entry in first.entries] == ["strong", "weak"]
        assert first.taken.name == "strong"
        assert first.told.robust.estimate == pytest.approx(18 / 30)
        assert first.told.robust.low < entries[0].summary.robust.low, "of two runs"
        assert second.taken.name == "other-budget"
        assert "more n_iter still helps" in first.alarms, "it is falling: neither number is the defence's"
    text = Page(report(list(paths.values()))).text_of()
    assert "60.0 % [" in text.split("Results of")[0]
    assert "by PGD, run 1 , the lowest of 2 runs" in text.replace("run 1,", "run 1 ,")


def test_the_same_images_under_two_names_are_two_headlines(tmp_path):
    paths = []
    for name in ("one", "other"):
        data = replace(dataset(4), name=name)
        paths.append(run(tmp_path / f"{name}.sqlite", defense(), attack(n_iter=2 + len(paths)), data=data))
    with ExitStack() as stack:
        entries = open_entries(paths, stack)
        assert len({entry.identity["data"]["checksum"] for entry in entries}) == 1
        assert [len(headline.entries) for headline in headlines(entries)] == [1, 1]


def test_unfinished_runs_and_corruptions_make_no_headline(files, tmp_path):
    noise = run(tmp_path / "noise.sqlite", defense(), GaussianNoise(std=0.2))
    part = tmp_path / "part.sqlite"
    data, how = dataset(16), fp.protocols.fresh(4)
    fp.evaluate(defense(), data, attack(), how, out=part, batch_size=4, progress=False, shard=(1, 2))
    assert "In short" not in report([noise, part, files[3]])
    assert "In short" in report([noise, part, files[1]])


def test_tables_say_that_they_scroll(html):
    page = Page(html)
    wide = [
        attributes for attributes in page.of("div") if "scroll" in (attributes.get("class") or "").split()
    ]
    assert len(wide) == len(page.of("table"))
    assert all(attributes["tabindex"] == "0" and attributes["aria-label"] for attributes in wide)
    assert "The table scrolls sideways" in html
    told = [attributes["aria-label"] for attributes in wide if "wide" in attributes["class"].split()]
    assert "Results of all runs" in told
    assert "Images of run 1" in told
