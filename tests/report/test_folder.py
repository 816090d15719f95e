"""A folder of pictures: readable names that never collide, and never over another file."""

from __future__ import annotations

from contextlib import ExitStack
from xml.etree import ElementTree

import numpy as np
import pytest

from fastpure.errors import RunDamaged
from fastpure.report import Options, report, write_figures
from fastpure.report.charts import picture, warned
from fastpure.report.data import open_entries
from fastpure.report.sheet import file_names, slug
from tests.evaluate.toys import attack, dataset, defense, run_file
from tests.report.drawn import SVG, values_of
from tests.report.made import HOSTILE, run


def test_names_are_readable_and_what_is_written_is_all_the_page_has(written, swept):
    assert [path.name for path in written] == [
        "accuracy-against-n-iter.svg",
        "attack-accuracy.svg",
        "attack-loss-ce.svg",
        "confidence-most-probable-class.svg",
        "confidence-true-class.svg",
        "classified-right.svg",
        "images-script-alert-x-y.png",
        "images-coup-long.png",
        "images-coup-longer.png",
    ]
    assert sorted(written[0].parent.iterdir()) == sorted(written)
    html = report(swept, defense=defense(), options=Options(images=5, traced=6))
    assert html.count('<svg class="chart"') == 6
    assert html.count('<table class="gallery"') == 3


def test_nothing_is_written_over_unless_forced(swept, tmp_path, monkeypatch):
    options = Options(images=2, traced=2)
    (tmp_path / "images-coup-long.png").write_text("mine")
    page = tmp_path / "page.html"
    monkeypatch.setattr("fastpure.report.page.gallery", None)  # the names are checked before any work
    with pytest.raises(FileExistsError, match=r"images-coup-long\.png exists; use --force"):
        report(swept, page, figures=tmp_path, defense=defense(), options=options)
    assert [path.name for path in tmp_path.iterdir()] == ["images-coup-long.png"]
    assert (tmp_path / "images-coup-long.png").read_text() == "mine"
    monkeypatch.undo()
    paths = write_figures(swept, tmp_path, defense=defense(), options=options, force=True)
    first = {path: path.read_bytes() for path in paths}
    assert set(tmp_path.iterdir()) == set(paths)
    with pytest.raises(FileExistsError, match=r"accuracy-against-n-iter\.svg"):
        write_figures(swept, tmp_path, defense=defense(), options=options)
    for path in paths:
        path.write_bytes(b"old")
    write_figures(swept, tmp_path, defense=defense(), options=options, force=True)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == first


def test_a_file_in_the_way_is_refused(swept, tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        for force in (False, True):
            with pytest.raises(NotADirectoryError, match="file is a file where a folder should be"):
                write_figures(swept, folder, force=force)
    (tmp_path / "attack-loss-ce.svg").mkdir()
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        write_figures(swept, tmp_path, force=True)
    with pytest.raises(RunDamaged):
        write_figures([tmp_path / "file"], tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["attack-loss-ce.svg", "file"]
    assert (tmp_path / "file").read_text() == "mine"


def test_what_was_not_rebuilt_has_no_picture_of_it(files, tmp_path):
    paths = write_figures(files[:1] + files[3:], tmp_path, options=Options(images=3))
    charts = ["attack-accuracy.svg", "attack-loss-ce.svg"]
    assert [path.name for path in paths] == [*charts, "images-bare.png", "images-clean.png"]
    alone = write_figures(
        files[1:2], tmp_path / "one", defense=defense(), options=Options(images=0, traced=2)
    )
    assert [path.name for path in alone] == [
        *charts,
        "confidence-most-probable-class-script-alert-x-y.svg",
        "confidence-true-class-script-alert-x-y.svg",
        "classified-right-script-alert-x-y.svg",
    ]
    none = write_figures(files[3:], tmp_path / "none", options=Options(images=0, traced=0))
    assert none == []
    assert not (tmp_path / "none").exists()


def test_warnings_go_with_the_pictures(tmp_path):
    paths = [tmp_path / f"{n}.sqlite" for n in (2, 3)]
    for n, path in zip((2, 3), paths, strict=True):
        zero, wrong = [True] * 24 if n == 2 else None, np.full((24, 2), n == 3)
        trace = np.ones((24, n))
        run_file(path, np.zeros((24, 2)), wrong, zero=zero, attack=attack(n_iter=n), trace=trace).close()
    chart = values_of(paths, Options(images=0, traced=0))["sweeps"][0]
    assert chart.conditions.endswith("zero gradients (1 of 2 runs), more n_iter still helps.")
    root = ElementTree.fromstring(picture([chart]))
    assert "zero gradients (1 of 2 runs)" in "".join(text.text for text in root.iter(f"{SVG}text"))
    with ExitStack() as stack:
        weak, other = open_entries(paths, stack)
        assert "zero gradients" in warned([weak])
        assert "zero gradients" not in warned([other])


def test_names_never_collide(tmp_path):
    paths = [
        run(folder / f"{name}.sqlite", defense(), attack(n_iter=n, eps=0.1), data=dataset(4))
        for n, (folder, name) in enumerate(
            [
                (tmp_path / "a", "Coup"),
                (tmp_path / "b", "coup"),
                (tmp_path / "b", "co-up"),
                (tmp_path / "b", "Ünï"),
            ],
            1,
        )
        if not folder.mkdir(exist_ok=True)
    ]
    with ExitStack() as stack:
        entries = open_entries(paths, stack)
        own = [entry.summary.digest[:8] for entry in entries]
        found = file_names(["loss-ce", "loss CE", "loss-ce-2"], entries)
        assert found == [
            "loss-ce.svg",
            "loss-ce-2.svg",
            "loss-ce-2-2.svg",
            f"images-coup-{own[0]}.png",
            f"images-coup-{own[1]}.png",
            "images-co-up.png",
            "images-uni.png",
        ]
        turned = file_names([], entries[::-1])
        assert turned[::-1] == found[3:], "whatever the order"


def test_slugs():
    assert slug("accuracy-against-n_iter") == "accuracy-against-n-iter"
    assert slug("images-t=0.05, COUP (2.5)") == "images-t-0.05-coup-2.5"
    assert slug(f"images-{HOSTILE}") == "images-script-alert-x-y"
    assert slug("images-../../etc/passwd") == "images-etc-passwd"
    assert slug("images-日本") == "images"
    assert len(slug("x" * 300)) == 100
