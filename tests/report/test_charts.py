"""Charts: to scale, in the page's theme there, self-contained and legible alone, and the same bytes every time."""

from __future__ import annotations

import io
import math
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from PIL import Image

import fastpure.report
from fastpure.report import Options, write_figures
from fastpure.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, Chart, Series, picture, svg
from fastpure.report.plotting import PALETTE, perturbation, width, wrapped
from tests.evaluate.toys import attack, defense
from tests.report.drawn import SVG, charts_of, lines_of, values_of
from tests.report.made import run

LINE = Series("a & <b> $x$", (0.0, 1.0, 2.0), (0.0, 0.5, math.nan), (0.0, 0.4, 0.5), (0.1, 0.6, 0.7))


def chart(*series: Series, **more) -> Chart:
    return Chart("name", "A title", "A caption.", (), series, **{"x_label": "along", "y_label": "up"} | more)


def ticks(text: str) -> list[str]:
    """What stands at the axes, in order: x, then y."""
    return [one.text for one in ElementTree.fromstring(text).iter("text")]


def test_a_chart_is_well_formed_and_to_scale():
    text = svg(chart(LINE, percent=True))
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-label"].startswith("A title. a & <b> $x$ from 0.0 % at 0 to 50.0 % at 1")
    lines = lines_of(root)
    ((x0, y0), (x1, y1)) = lines["a & <b> $x$"]
    assert y0 - y1 == pytest.approx(0.5 * (HEIGHT - 14 - 46), abs=1e-3)
    assert x1 - x0 == pytest.approx((WIDTH - LEFT - RIGHT) / 2 / 1.06, abs=1e-3)
    marks = [
        one for one in root.iter("path") if "transform" in one.attrib and "var(--s0)" in one.get("style")
    ]
    assert len(marks) == 2, "no mark where nothing is known"
    assert "nan" not in text.lower()
    ElementTree.fromstring(svg(chart()))
    ElementTree.fromstring(svg(chart(replace(LINE, y=(math.nan,) * 3, low=(), high=()))))


def test_the_page_colours_it_and_nothing_in_it_refers_to_anything():
    text = svg(chart(LINE, replace(LINE, style=3, hollow=True)))
    assert not re.search(r"#|url|href|xmlns|<style|\bid=|clip|font-family", text)
    colours = set(re.findall(r"(?:fill|stroke): ([^;\"]+)", text))
    assert colours == {
        "none",
        "currentColor",
        *(f"var(--{name})" for name in ("soft", "rule", "paper", "s0", "s3")),
    }
    assert "<rect" not in text, "no ground"


def test_colours_are_those_of_the_page():
    sheet = Path(fastpure.report.__file__).with_name("page.css").read_text()
    light, dark = sheet.split("@media", 1)
    for name, colour in PALETTE.items():
        assert f"--{name}: {colour};" in light or name == "paper", "pictures are on white"
        assert f"--{name}: " in dark.split("}")[0]
    assert len(set(PALETTE.values())) == len(PALETTE)


def test_axes_that_count_have_whole_numbers():
    few = Series("a", (1.0, 2.0, 3.0), (0.1, 0.2, 0.3))
    assert "1.5" in ticks(svg(chart(few)))
    assert ticks(svg(chart(few, counts=True)))[:3] == ["1", "2", "3"]
    many = replace(few, x=(1.0, 50.0, 100.0))
    assert ticks(svg(chart(many, counts=True)))[:3] == ["0", "20", "40"]
    one = replace(few, x=(4.0,), y=(0.5,))
    assert ticks(svg(chart(one, counts=True)))[0] == "4"


def test_charts_with_one_range_can_be_laid_side_by_side():
    short, long = (Series("a", tuple(map(float, range(1, n))), (0.5,) * (n - 1)) for n in (4, 9))
    own, beside = (chart(one, counts=True, x_range=(1.0, 8.0)) for one in (short, long))
    places = [lines_of(ElementTree.fromstring(svg(one)))["a"] for one in (own, beside)]
    assert [x for x, _ in places[0]] == [x for x, _ in places[1]][:3]
    assert "8" in ticks(svg(own))


def test_a_logarithmic_axis_gives_equal_room_to_equal_ratios():
    series = Series("a", (10.0, 100.0, 1000.0), (0.1, 0.2, 0.3))
    text = svg(chart(series, logarithmic=True))
    first, second, third = (x for x, _ in lines_of(ElementTree.fromstring(text))["a"])
    assert second - first == pytest.approx(third - second, abs=1e-3)
    assert ticks(text)[:7] == ["10", "20", "50", "100", "200", "500", "1000"]
    with pytest.raises(ValueError, match="`x` must be positive on a logarithmic axis"):
        svg(chart(replace(series, x=(0.0, 1.0, 2.0)), logarithmic=True))
    ElementTree.fromstring(svg(chart(logarithmic=True)))


def test_files_are_the_same_every_time_whatever_the_caller_has_set():
    charts = [chart(LINE), chart(replace(LINE, style=1), backwards=True)]
    first = {kind: picture(charts, kind) for kind in ("svg", "png", "pdf")}
    page = svg(charts[0])
    own = {"font.size": 31, "lines.linewidth": 9, "svg.fonttype": "path", "savefig.transparent": True}
    with matplotlib.rc_context(own):
        for kind, content in first.items():
            assert picture(charts, kind) == content
        assert svg(charts[0]) == page
    assert b"CreationDate" not in first["pdf"]
    assert b"/Type3" not in first["pdf"], "whole fonts, as publishers want them"
    image = Image.open(io.BytesIO(first["png"]))
    root = ElementTree.fromstring(first["svg"])
    assert image.size == tuple(2 * float(root.get(name).removesuffix("pt")) for name in ("width", "height"))
    assert image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    for wanted, message in (
        (("jpg", charts), "`kind` must be"),
        (("svg", []), "`charts` must be one or more"),
    ):
        with pytest.raises(ValueError, match=message):
            picture(wanted[1], wanted[0])


def test_a_chart_alone_needs_nothing_and_says_what_the_page_says(written, swept):
    charts = charts_of(values_of(swept, Options(images=0, traced=6), (defense(),)))
    for path, one in zip(written, charts, strict=False):
        assert path.read_bytes() == picture([one])
        text = path.read_text(encoding="utf-8")
        root = ElementTree.fromstring(text)
        assert not re.search(r"url|href|var\(|nan|<style|\bid=", text)
        words = "".join(element.text for element in root.iter(f"{SVG}text"))
        for said in (one.title, *one.names, one.x_label, one.y_label, one.caption):
            assert said in words
        # The lines are those of the page, moved.
        page, alone = lines_of(ElementTree.fromstring(svg(one))), lines_of(root)
        assert [len(points) for points in page.values()] == [len(points) for points in alone.values()]
        moves = np.concatenate(
            [np.subtract(a, b) for a, b in zip(page.values(), alone.values(), strict=True)]
        )
        assert np.abs(moves - moves[0]).max() < 1e-3


def test_figures_are_written_in_the_formats_that_are_asked_for(swept, tmp_path):
    options = Options(images=1, traced=0, measured=0)
    paths = write_figures(swept[:1], tmp_path, formats=("pdf", "png"), options=options)
    names = [f"attack-{what}.{kind}" for what in ("accuracy", "loss-ce") for kind in ("pdf", "png")]
    assert [path.name for path in paths] == [
        *names,
        "images-script-alert-x-y.png",
        "images-script-alert-x-y.pdf",
    ]
    starts = {".pdf": b"%PDF", ".png": b"\x89PNG"}
    for path in paths:
        assert path.read_bytes().startswith(starts[path.suffix])
    for formats in ("svg", (), ("svg", "svg"), ("eps",)):
        with pytest.raises(ValueError, match="`formats` must be one or more of svg, png, pdf"):
            write_figures(swept[:1], tmp_path / "new", formats=formats, options=options)
    assert not (tmp_path / "new").exists()


def test_intervals_are_drawn_and_named(written, swept):
    text = written[0].read_text(encoding="utf-8")
    assert "95 % Wilson intervals over images" in text
    whiskers = [
        one.get("d")
        for one in ElementTree.fromstring(text).iter(f"{SVG}path")
        if "opacity" in one.get("style")
    ]
    pieces = [piece.split() for d in whiskers for piece in d.split("M ")[1:]]
    assert len(pieces) == 2 * len(swept), "clean and robust"
    for x, low, _, other, high in pieces:
        assert x == other
        assert float(low) - float(high) > 5
    texts = [path.read_text(encoding="utf-8") for path in written if path.suffix == ".svg"]
    (shares,) = (text for text in texts if "Shares" in text)
    assert "95 % Wilson intervals" in shares


def test_many_lines_have_intervals_at_both_ends_and_stay_at_their_places(swept, tmp_path):
    paths = [run(tmp_path / f"{n}.sqlite", defense(), attack(eps=0.1, n_iter=n)) for n in range(1, 7)]
    one = values_of(paths, Options(images=0, traced=4), (defense(),))["walks"][-1]
    assert len(one.series) == 7
    assert "intervals at both ends" in one.caption
    for series in one.series:
        assert np.isfinite(series.low).tolist() == np.isfinite(series.high).tolist() == [True, False, True]
    lines = lines_of(ElementTree.fromstring(svg(one)))
    places = sorted(x for points in lines.values() for x, _ in points)
    assert len(places) == 21
    gap = (WIDTH - LEFT - RIGHT) / 1.06 / 2
    assert 0 < places[6] - places[0] < gap / 2, "lines nearer to their own place than to the next"


def test_nothing_sticks_out_and_long_names_are_broken(swept):
    first = charts_of(values_of(swept, Options(images=0, traced=0)))[0]
    long = "a-rather-long-name-of-a-run " * 6 + "w" * 200
    series = tuple(Series(f"{long}{i}", (0.0, 1.0), (0.1, 0.2 * i), style=7 * i) for i in range(4))
    root = ElementTree.fromstring(
        picture([replace(first, series=series, title="An unusually long title " * 5)])
    )
    _, _, wide, high = map(float, root.get("viewBox").split())
    y = []
    for text in root.iter(f"{SVG}text"):
        if "transform" in text.attrib or "middle" in text.get("style") or "end" in text.get("style"):
            continue  # at the axes
        size = float(re.search(r"font-size: ([\d.]+)px", text.get("style"))[1])
        bold = "font-weight: bold" in text.get("style")
        assert float(text.get("x")) + width(text.text.rstrip(), size, bold) <= wide
        y.append(float(text.get("y")))
    assert len(set(y)) == len(y) > 20, "no line of text upon another"
    assert max(y) < high
    words = "".join(element.text for element in root.iter(f"{SVG}text"))
    assert all(one.name in words for one in series)
    text = ElementTree.tostring(root, encoding="unicode")
    assert all(PALETTE[f"s{i}"] in text for i in range(4)), "few lines need no dashes"
    assert "dasharray" not in text


def test_names_that_xml_cannot_hold_and_names_that_look_like_formulas():
    odd = replace(LINE, name='a\x00b\ud800\n<&"> $\\frac{1}$')
    root = ElementTree.fromstring(picture([chart(odd)]))
    words = "".join(element.text for element in root.iter(f"{SVG}text"))
    assert 'a\ufffdb\ufffd <&"> $\\frac{1}$' in words
    picture([chart(replace(odd, name="日本 \U0001f600"))], "png")


def test_lines_with_one_name_are_told_apart_by_number():
    twins = tuple(Series("coup", (0.0, 1.0), (0.1, 0.2), key=key) for key in ("1", "2"))
    assert chart(*twins).names == ["1: coup", "2: coup"]
    assert chart(*twins[:1]).names == ["coup"]


def test_perturbations_are_symmetric_about_nothing():
    noise = np.array([-0.2, 0.0, 0.1, 0.2]).reshape(1, 1, 2, 2)
    shown, said = perturbation(noise)
    turned, _ = perturbation(-noise)
    assert shown.shape == (1, 3, 2, 2)
    assert said.startswith("up to 0.2")
    blue, none, some, red = shown[0].reshape(3, 4).T
    assert none.min() > 0.95, "white"
    assert blue[2] > blue[0]
    assert red[0] > red[2]
    assert red[0] - red[2] > 0
    assert some[0] > some[2]
    assert np.abs(turned[0].reshape(3, 4).T[0] - red).max() < 0.02
    colour = np.concatenate([noise] * 3, 1) * [[[[1]], [[0.5]], [[0]]]]
    shown, said = perturbation(colour)
    assert np.allclose(shown - 0.5, 2.5 * colour)
    assert said == "2.5 times magnified, grey is none"
    flat, _ = perturbation(np.zeros((1, 3, 2, 2)))
    assert (flat == 0.5).all()


def test_wrapped_lines_fit_and_give_the_text_back():
    text = "images of fast-pure  runs " + "x" * 50
    lines = wrapped(text, 100, 12)
    assert "".join(lines) == text
    assert max(width(line.rstrip(), 12) for line in lines) <= 100
    assert lines[0].endswith((" ", "-"))
    assert wrapped("", 100, 12) == [""]
