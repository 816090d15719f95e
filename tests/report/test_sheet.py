"""Galleries as pictures: the images pixel by pixel, and right or wrong told by marks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fastpure as fp
from fastpure.report import Options, write_figures
from fastpure.report.pictures import pixels as shown
from fastpure.report.sheet import GAP, MARGIN, enlarged, sheet
from tests.evaluate.toys import Brightness, defense
from tests.report.drawn import values_of


def test_galleries_hold_the_images_pixel_by_pixel(written, swept):
    found = values_of(swept, Options(images=5, traced=0), (defense(),))["galleries"]
    pictures = [path for path in written if path.suffix == ".png"]
    for path, gallery in zip(pictures, found, strict=True):
        assert path.read_bytes() == sheet(gallery)
        with Image.open(path) as opened:
            pixels = np.asarray(opened.convert("RGB"))
            assert opened.size[0] >= MARGIN * 2 + 5 * (112 + GAP)
        assert len(gallery.rows) == 5
        for _, _, tiles in gallery.rows:
            for tile in tiles[:: 1 if gallery is found[0] else 4]:
                small = rgb(tile.image)
                assert contains(pixels, small.repeat(28, 0).repeat(28, 1))
        assert (pixels[:MARGIN] == 255).all(), "nothing sticks out"
        assert (pixels[-MARGIN:] == 255).all()
        assert (pixels[:, :MARGIN] == 255).all()
        assert (pixels[:, 1 - MARGIN :] == 255).all(), "but for the frame around an image"


def rgb(image: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(shown(image)).convert("RGB"))


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
    small = rgb(image)
    assert contains(np.asarray(made.convert("RGB")), small.repeat(factor, 0).repeat(factor, 1))


def test_the_picture_of_a_classifier_alone(files, tmp_path):
    assert isinstance(defense().classifier, Brightness)
    with fp.Run.open(files[0]) as opened:
        made_files = write_figures([opened], tmp_path, options=Options(images=1, traced=0))
    (path,) = (each for each in made_files if each.suffix == ".png")
    with Image.open(path) as made:
        assert made.size[0] >= 560
    assert Path(path).name == "images-bare.png"
