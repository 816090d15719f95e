"""Charts that stand alone: self-contained, legible, with the runs' numbers and names, as on the page."""

from __future__ import annotations

import re
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np

from fastpure.report import Options, svg
from fastpure.report.standalone import attributes, names, palette, standalone, style_sheet, width, wrapped
from fastpure.report.svg import Series
from tests.evaluate.toys import attack, defense
from tests.report.drawn import SVG, charts_of, values_of
from tests.report.made import run

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
    texts = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".svg"]
    (shares,) = (text for text in texts if "Shares" in text)
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
