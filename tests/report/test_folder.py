"""Pictures that stand alone: whole, self-contained, with the runs' numbers and names, and never over another file."""

from __future__ import annotations

import re
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

import fastpure as fp
from fastpure.errors import RunDamaged
from fastpure.report import Options, report, svg, write_figures
from fastpure.report.chart import Chart, warned
from fastpure.report.data import open_entries
from fastpure.report.folder import file_names, slug
from fastpure.report.page import collect
from fastpure.report.pictures import picture
from fastpure.report.sheet import GAP, MARGIN, enlarged, sheet
from fastpure.report.standalone import names, standalone
from fastpure.report.svg import Series
from fastpure.report.theme import attributes, palette, style_sheet, width, wrapped
from tests.evaluate.toys import Brightness, attack, dataset, defense, run_file
from tests.report.made import HOSTILE, run

SVG = "{http://www.w3.org/2000/svg}"
MOTLEY = "images-script-alert-x-y-script.png"
DRAWN = {
    "svg": {"viewBox", "width", "height", "role", "font-family"},
    "g": {"transform"},
    "rect": {"width", "height", "fill"},
    "line": {"x1", "x2", "y1", "y2", "stroke", "stroke-width", "stroke-dasharray", "fill", "opacity"}
    | {"stroke-linejoin", "stroke-linecap"},
    "polyline": {"points", "fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin"}
    | {"stroke-linecap"},
    "circle": {"cx", "cy", "r", "fill", "stroke", "stroke-width"},
    "text": {"x", "y", "fill", "font-size", "font-weight", "text-anchor", "transform"},
    "title": set(),
    "desc": set(),
}
"""All elements of a chart and what they may say: nothing that refers to anything."""


@pytest.fixture(scope="module")
def swept(tmp_path_factory, files):
    """Two runs over the attack's iterations, and one under the other attack of the page; all with one defence."""
    folder = tmp_path_factory.mktemp("swept")
    more = run(folder / "coup=longer.sqlite", defense(), attack(eps=0.1, n_iter=14))
    return [files[1], files[2], more]


@pytest.fixture(scope="module")
def written(swept, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures") / "new" / "folder"
    return write_figures(swept, folder, defense=defense(), options=Options(images=5, traced=6))


def values_of(runs, options, given=()):
    with ExitStack() as stack:
        return collect(open_entries(runs, stack), options, given)


def charts_of(values) -> list[Chart]:
    return [*values["sweeps"], *values["traces"], *values["walks"]]


def test_names_are_readable_and_what_is_written_is_all_the_page_has(written, swept):
    assert [path.name for path in written] == [
        "accuracy-against-n-iter.svg",
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
    assert html.count('<svg class="chart"') == 5
    assert html.count('<table class="gallery"') == 3


def test_a_chart_alone_needs_nothing_and_says_what_the_page_says(written, swept):
    charts = charts_of(values_of(swept, Options(images=0, traced=6), (defense(),)))
    for path, chart in zip(written, charts, strict=False):
        text = path.read_text(encoding="utf-8")
        assert text == standalone(chart)
        root = ElementTree.fromstring(text)
        for element in root.iter():
            tag = element.tag.removeprefix(SVG)
            assert set(element.attrib) <= DRAWN[tag], tag
            assert not [value for value in element.attrib.values() if re.search(r"url|var\(|nan|--", value)]
        for element in (*root.iter(f"{SVG}line"), *root.iter(f"{SVG}polyline")):
            assert element.get("stroke", "").startswith("#")
        assert root[2].tag == f"{SVG}rect"
        assert root[2].get("fill") == "#ffffff"
        assert root[2].get("width") == root.get("viewBox").split()[2]
        words = "".join(element.text for element in root.iter(f"{SVG}text"))
        for said in (chart.title, *names(chart), chart.x_label, chart.y_label, chart.caption):
            assert said in words
        # The lines are those of the page, to the last digit.
        page = [element.get("points") for element in ElementTree.fromstring(chart.svg).iter("polyline")]
        assert page
        assert [element.get("points") for element in root.iter(f"{SVG}polyline")] == page


def test_intervals_are_drawn_and_named(written, swept):
    text = written[0].read_text(encoding="utf-8")
    assert "95 % Wilson intervals over images" in text
    whiskers = [e for e in ElementTree.fromstring(text).iter(f"{SVG}line") if e.get("opacity")]
    assert len(whiskers) == 2 * len(swept), "clean and robust"
    for line in whiskers:
        assert float(line.get("y2")) - float(line.get("y1")) > 5
    shares = written[4].read_text(encoding="utf-8")
    assert "95 % Wilson intervals" in shares


def test_many_lines_have_intervals_at_both_ends_and_stay_at_their_places(swept, tmp_path):
    paths = [run(tmp_path / f"{n}.sqlite", defense(), attack(eps=0.1, n_iter=n)) for n in range(1, 7)]
    chart = values_of(paths, Options(images=0, traced=4), (defense(),))["walks"][-1]
    assert len(chart.series) == 7
    assert "intervals at both ends" in chart.caption
    for one in chart.series:
        assert np.isfinite(one.low).tolist() == np.isfinite(one.high).tolist() == [True, False, True]
    root = ElementTree.fromstring(chart.svg)
    places = sorted(
        float(point.split(",")[0]) for line in root.iter("polyline") for point in line.get("points").split()
    )
    gap = (svg.WIDTH - svg.LEFT - svg.RIGHT) / 1.06 / 2
    assert places[6] - places[0] < gap / 2, "lines nearer to their own place than to the next"


def test_nothing_sticks_out_and_long_names_are_broken(swept):
    chart = charts_of(values_of(swept, Options(images=0, traced=0)))[0]
    long = "a-rather-long-name-of-a-run " * 6 + "w" * 200
    series = tuple(Series(f"{long}{i}", (0.0, 1.0), (0.1, 0.2 * i), style=7 * i) for i in range(4))
    many = replace(chart, series=series, title="An unusually long title " * 5)
    root = ElementTree.fromstring(standalone(many))
    _, _, wide, high = map(float, root.get("viewBox").split())
    y = []
    for text in root.findall(f"{SVG}text"):
        bold = text.get("font-weight") == "600"
        size = float(text.get("font-size").removesuffix("px"))
        assert float(text.get("x")) + width(text.text.rstrip(), size, bold) <= wide
        y.append(float(text.get("y")))
    assert y == sorted(y)
    assert len(set(y)) == len(y), "no line of text upon another"
    assert y[-1] < high
    words = "".join(element.text for element in root.iter(f"{SVG}text"))
    assert all(one.name in words for one in series)
    strokes = {line.get("stroke") for line in root.iter(f"{SVG}polyline")}
    assert strokes == {palette()[f"s{i}"] for i in range(4)}, "few lines need no dashes"


def test_names_that_xml_cannot_hold(swept):
    chart = charts_of(values_of(swept, Options(images=0, traced=0)))[0]
    odd = Series('a\x00b\ud800\n<&">', (0.0, 1.0), (0.1, 0.2))
    root = ElementTree.fromstring(standalone(replace(chart, series=(odd,))))
    assert 'a\ufffdb\ufffd <&">' in "".join(element.text for element in root.iter(f"{SVG}text"))


def test_lines_with_one_name_are_told_apart_by_number(swept):
    chart = charts_of(values_of(swept, Options(images=0, traced=0)))[0]
    twins = tuple(Series("coup", (0.0, 1.0), (0.1, 0.2), key=key) for key in ("1", "2"))
    assert names(replace(chart, series=twins)) == ["1: coup", "2: coup"]
    assert names(replace(chart, series=twins[:1])) == ["coup"]


def test_the_style_is_that_of_the_page():
    sheet_ = style_sheet()
    assert f"--s3: {palette()['s3']};" in sheet_.split("@media")[0]
    assert attributes("polyline", ["s3", "line"])["stroke"] == palette()["s3"]
    assert attributes("polyline", ["s3", "line"])["fill"] == "none"
    assert attributes("polyline", ["s3", "hollow", "line"])["stroke-width"] == "1.3"
    assert attributes("circle", ["s0", "hollow", "dot"])["fill"] == "#ffffff"
    assert attributes("text", ["label"])["fill"] == palette()["ink"]
    assert attributes("text", [])["fill"] == palette()["soft"]
    assert attributes("g", []) == {}


def test_wrapped_lines_fit_and_give_the_text_back():
    text = "images of fast-pure  runs " + "x" * 50
    lines = wrapped(text, 100, 12)
    assert "".join(lines) == text
    assert max(width(line.rstrip(), 12) for line in lines) <= 100
    assert lines[0].endswith((" ", "-"))
    assert wrapped("", 100, 12) == [""]


def test_galleries_hold_the_images_pixel_by_pixel(written, swept):
    found = values_of(swept, Options(images=5, traced=0), (defense(),))["galleries"]
    for path, gallery in zip(written[5:], found, strict=True):
        assert path.read_bytes() == sheet(gallery)
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
            assert opened.size[0] >= MARGIN * 2 + 5 * (112 + GAP)
        assert len(gallery.rows) == 4
        for _, _, tiles in gallery.rows:
            for tile in tiles[:: 1 if gallery is found[0] else 4]:
                small = np.asarray(picture(tile.image).convert("RGB"))
                assert contains(pixels, small.repeat(28, 0).repeat(28, 1))
        assert (pixels[:MARGIN] == 255).all(), "nothing sticks out"
        assert (pixels[-MARGIN:] == 255).all()
        assert (pixels[:, :MARGIN] == 255).all()
        assert (pixels[:, 1 - MARGIN :] == 255).all(), "but for the frame around an image"


def contains(pixels: np.ndarray, part: np.ndarray) -> bool:
    """Whether an image uint8 [H, W, 3] lies somewhere in a larger one."""
    whole, part = (image.astype(np.uint32) @ np.array([1, 256, 65536], np.uint32) for image in (pixels, part))
    windows = np.lib.stride_tricks.sliding_window_view(whole, part.shape)
    height, width = part.shape
    fits = np.ones(windows.shape[:2], bool)
    for i, j in ((0, 0), (0, width - 1), (height - 1, 0), (height - 1, width - 1), (height // 2, width // 2)):
        fits &= windows[..., i, j] == part[i, j]
    return any(np.array_equal(windows[y, x], part) for y, x in np.argwhere(fits))


def test_right_and_wrong_are_told_by_marks(swept):
    found = values_of(swept, Options(images=5, traced=0), (defense(),))["galleries"][0]
    marks = {tile.mark[:1]: tile.right for _, _, tiles in found.rows for tile in tiles}
    assert marks[""] is None
    assert {mark: right for mark, right in marks.items() if mark} in (
        {"✓": True, "✗": False},
        {"✓": True},
        {"✗": False},
    )
    tile = found.rows[0][2][0]
    for right, text in ((True, "✓"), (False, "✗")):
        assert replace(tile, right=right).mark == f"{text} {tile.verdict}"
    other = replace(
        found, rows=((*found.rows[0][:2], tuple(replace(t, right=not t.right) for t in found.rows[0][2])),)
    )
    grey = [
        np.asarray(Image.open(_file(sheet(one))).convert("1"))
        for one in (replace(found, rows=found.rows[:1]), other)
    ]
    assert not np.array_equal(*grey), "without colour too"


def _file(content: bytes):
    import io

    return io.BytesIO(content)


@pytest.mark.parametrize(
    ("shape", "factor"), [((1, 8, 8), 14), ((3, 32, 32), 4), ((3, 32, 20), 4), ((3, 300, 300), 1)]
)
def test_colour_and_size(shape, factor, swept):
    found = values_of(swept, Options(images=2, traced=0), (defense(),))["galleries"][0]
    image = np.random.default_rng(0).uniform(0, 1, shape).astype(np.float32)
    rows = tuple(
        (name, said, tuple(replace(t, image=image) for t in tiles)) for name, said, tiles in found.rows[:1]
    )
    made = Image.open(_file(sheet(replace(found, rows=rows))))
    assert enlarged(shape[1:]) == factor
    small = np.asarray(picture(image).convert("RGB"))
    assert contains(np.asarray(made), small.repeat(factor, 0).repeat(factor, 1))


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
    assert [path.name for path in paths] == ["attack-loss-ce.svg", "images-bare.png", "images-clean.png"]
    alone = write_figures(
        files[1:2], tmp_path / "one", defense=defense(), options=Options(images=0, traced=2)
    )
    assert [path.name for path in alone] == [
        "attack-loss-ce.svg",
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
    root = ElementTree.fromstring(standalone(chart))
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


def test_the_picture_of_a_classifier_alone(files, tmp_path):
    assert isinstance(defense().classifier, Brightness)
    with fp.Run.open(files[0]) as opened:
        (path,) = write_figures([opened], tmp_path, options=Options(images=1, traced=0))[1:]
    with Image.open(path) as made:
        assert made.size[0] >= 560
    assert Path(path).name == "images-bare.png"
