"""Purified images in numbers on the page: those of the run's own defence, on its first evaluation draw."""

from __future__ import annotations

import csv
import math
from contextlib import ExitStack
from dataclasses import replace

import pytest
import torch

import fastpure as fp
from fastpure.evaluate import GaussianNoise
from fastpure.evaluate.protocol import FIRST_DRAW
from fastpure.kernels import Domain
from fastpure.report import Options, report, write_csv
from fastpure.report.data import open_entries
from fastpure.report.page import collect
from fastpure.report.tables import decimals
from tests.evaluate.toys import attack, dataset, defense
from tests.report.made import Page, run


def measured(paths, options=None, given=None):
    with ExitStack() as stack:
        entries = open_entries(paths, stack)
        return collect(entries, options or Options(), (given or defense(),))["measured"]


def test_the_numbers_are_those_of_the_images(files):
    n = 5
    (found,) = measured(files[1:2], Options(measured=n))
    assert found.n == n
    own = defense()
    with fp.Run.open(files[1]) as opened:
        positions = opened.positions[:n].tolist()
        x, x_adv = (torch.from_numpy(opened.images(which, positions)) for which in ("clean", "adversarial"))
        ids = torch.from_numpy(opened.sample_ids[:n])
    purified = [own.purifier(u, ids, FIRST_DRAW, domain=Domain.EVALUATION) for u in (x, x_adv)]
    names = [row.name for row in found.rows]
    assert names == ["clean, purified", "adversarial", "adversarial, purified"]
    for row, image in zip(found.rows, (purified[0], x_adv, purified[1]), strict=True):
        difference = (image.double() - x.double()).flatten(1)
        assert row.l2 == pytest.approx(float(difference.norm(dim=1).mean()), rel=1e-6)
        assert row.linf == pytest.approx(float(difference.abs().amax(1).mean()), rel=1e-6)
        assert row.psnr == pytest.approx(-10 * math.log10(float(difference.square().mean())), rel=1e-6)
        quality = fp.diagnostics.image_quality(x, image)
        assert row.ssim == pytest.approx(float(quality.ssim.mean()), rel=1e-6)
        assert row.lpips is None
    moved = (x_adv - x).flatten(1).norm(dim=1) > 0
    shrunk = (purified[1] - purified[0]).flatten(1).norm(dim=1)[moved]
    ratio = shrunk / (x_adv - x).flatten(1).norm(dim=1)[moved]
    assert found.rows[2].compression == pytest.approx(float(ratio.mean()), rel=1e-4)
    assert found.rows[2].moved == int(moved.sum())
    assert found.rows[0].compression is found.rows[1].compression is None
    assert "LPIPS sees grey or colour images of at least 16 x 16 pixels" in found.note


def test_the_page_says_of_how_many_images(files):
    page = Page(report(files[1:3], defense=defense(), options=Options(images=0, traced=0, measured=3)))
    text = " ".join("".join(page.text).split())
    assert "Purified images in numbers" in text
    assert text.count("first 3 images") == 2
    assert text.count("LPIPS sees grey or colour images") == 1
    (head,) = [row for row in page.rows if row and row[-1] == "Compression"]
    assert head[1:] == ["Images", "L2", "Linf", "PSNR, dB", "SSIM", "Compression"]
    rows = [row for row in page.rows if len(row) == 7 and row != head]
    assert [row[1] for row in rows] == 2 * ["clean, purified", "adversarial", "adversarial, purified"]
    for row, one in zip(
        rows, [r for q in measured(files[1:3], Options(measured=3)) for r in q.rows], strict=True
    ):
        assert row[2] == decimals(one.l2, 3)
        assert row[4] == decimals(one.psnr, 1)


def test_the_numbers_of_the_page_as_a_table(files, tmp_path):
    found: list = []
    report(
        files[1:3], defense=defense(), options=Options(images=0, traced=0, measured=3), measured=found.extend
    )
    path = write_csv(files[1:3], tmp_path, measured=found)[-1]
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert path.name == "quality.csv"
    assert [row["images"] for row in rows] == 2 * ["clean, purified", "adversarial", "adversarial, purified"]
    assert [row["run"] for row in rows] == ["1"] * 3 + ["2"] * 3
    for row, one in zip(rows, [row for quality in found for row in quality.rows], strict=True):
        assert (row["n"], row["l2"], row["psnr"], row["lpips"]) == ("3", repr(one.l2), repr(one.psnr), "")
        assert row["compression"] == ("" if one.compression is None else repr(one.compression))
        assert row["moved"] == ("" if one.compression is None else str(one.moved))
    assert rows[2]["compression"]


def test_it_is_left_out_where_it_was_not_asked_for_or_nothing_purifies(files, html):
    assert "Purified images in numbers" not in html, "no networks, no numbers"
    assert measured(files[1:2], Options(measured=0)) == []
    bare = defense().classifier
    assert measured(files[:1], given=bare) == []
    assert measured(files[1:2], given=defense(seed=1)) == []
    (only,) = measured(files[3:4], given=defense(seed=3))
    assert [row.name for row in only.rows] == ["clean, purified"]
    with pytest.raises(ValueError, match="`measured` must be an integer >= 0"):
        Options(measured=-1)


def test_corruptions_and_held_noise(tmp_path):
    path = run(tmp_path / "noise.sqlite", defense(), GaussianNoise(std=0.2))
    (found,) = measured([path], Options(measured=2))
    assert [row.name for row in found.rows] == ["clean, purified", "corrupted", "corrupted, purified"]
    held = run(tmp_path / "held.sqlite", defense(), attack(eps=0.1), fp.protocols.dw_box(draw=4))
    (found,) = measured([held], Options(measured=4))
    own, x = defense().purifier, dataset(16)
    purified = own(x.images[:4], x.sample_ids[:4], 4)
    distance = (purified - x.images[:4]).flatten(1).double().norm(dim=1).mean()
    assert found.rows[0].l2 == pytest.approx(float(distance), rel=1e-5)


def test_numbers_that_are_none_or_infinite():
    assert [decimals(value, 2) for value in (0.126, None, math.inf)] == ["0.13", "\u2013", "\u221e"]


def test_pictures_have_lpips_where_it_is_installed(files, monkeypatch):
    from fastpure.report import pictures

    real = pictures.image_quality

    def with_lpips(x, purified):
        return replace(real(x, purified), lpips=torch.full((len(x),), 0.125, dtype=torch.float64))

    monkeypatch.setattr(pictures, "image_quality", with_lpips)
    with ExitStack() as stack:
        (gallery,) = collect(open_entries(files[1:2], stack), Options(images=2), (defense(),))["galleries"]
    purified = [tiles for name, _, tiles in gallery.rows if name.endswith("purified")]
    assert len(purified) == 2
    for tile in (tile for tiles in purified for tile in tiles):
        assert [" dB" in tile.quality, tile.quality.count(" · ")] == [True, 2]
        assert tile.quality.endswith(" · 0.12")
    assert "PSNR in dB, SSIM, LPIPS against the original" in gallery.rule
