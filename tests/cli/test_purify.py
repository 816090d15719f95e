"""`fastpure purify`: right pixels in the same format, for pictures and arrays, methods, presets and sizes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastpure as fp
from fastpure.classifiers import Resized
from fastpure.purify import ResizedPurifier
from fastpure.purify.files.inputs import find_sources
from fastpure.purify.files.run import RUN_FILE
from tests.cli.purifying import PIXELS, SHORT, contents, expected, pictures, pixels_of, run


def test_folder_of_pictures(tmp_path: Path) -> None:
    names = ["a/1.png", "a/deep/2.png", "b.png", "z.png"]
    source = pictures(tmp_path / "in", names)
    (source / "notes.txt").write_text("not a picture")
    (source / ".hidden.png").write_bytes(b"")
    result = run(source, "--out", tmp_path / "out", *SHORT, "--seed", "3")
    assert result.exit_code == 0, result.output + str(result.exception)
    found = contents(tmp_path / "out")
    assert set(found) == {*names, RUN_FILE}
    wanted = expected(PIXELS[:4], [0, 1, 2, 3], seed=3)
    for name, pixels in zip(names, wanted, strict=True):
        assert np.array_equal(pixels_of(tmp_path / "out" / name), pixels)
    assert "4 images with diffpure(t=0.1, dt=0.05" in result.output


def test_batch_size_changes_nothing_and_seed_and_draw_do(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", [f"{i}.png" for i in range(5)])
    for name, more in (("one", ["--batch-size", "1"]), ("two", ["--batch-size", "2"]), ("all", [])):
        assert run(source, "--out", tmp_path / name, *SHORT, *more).exit_code == 0
    pixels = {
        name: [pixels_of(tmp_path / name / f"{i}.png") for i in range(5)] for name in ("one", "two", "all")
    }
    assert np.array_equal(pixels["one"], pixels["all"])
    assert np.array_equal(pixels["two"], pixels["all"])
    assert run(source, "--out", tmp_path / "draws", *SHORT, "--draws", "2").exit_code == 0
    for draw in (0, 1):
        wanted = expected(PIXELS, list(range(5)), draw=draw)
        for i in range(5):
            assert np.array_equal(pixels_of(tmp_path / "draws" / f"draw{draw}" / f"{i}.png"), wanted[i])
    assert not np.array_equal(expected(PIXELS, list(range(5)), draw=1), pixels["all"])


def test_jpeg_becomes_png_and_says_so(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "photo.JPG", quality=95)
    with Image.open(tmp_path / "photo.JPG") as image:
        decoded = np.array(image)
    result = run(tmp_path / "photo.JPG", "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 0, result.output
    assert "1 pictures are written as PNG, which loses nothing: photo.JPG becomes photo.png" in result.output
    assert np.array_equal(pixels_of(tmp_path / "out" / "photo.png"), expected(decoded[None], [0])[0])


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.uint8, (5, 8, 8)), (np.float16, (5, 1, 8, 8)), (np.float32, (5, 8, 8, 1)), (np.float64, (5, 8, 8))],
)
def test_arrays_keep_dtype_and_layout(tmp_path: Path, dtype: type, shape: tuple[int, ...]) -> None:
    values = PIXELS if dtype is np.uint8 else (PIXELS / 255).astype(dtype)
    np.save(tmp_path / "in.npy", values.reshape(shape))
    assert run(tmp_path / "in.npy", "--out", tmp_path / "out", *SHORT, "--batch-size", "2").exit_code == 0
    out = np.load(tmp_path / "out" / "in.npy")
    assert (out.dtype, out.shape) == (dtype, shape)
    assert out.min() >= 0
    assert out.max() <= (255 if dtype is np.uint8 else 1)
    scale = 1 if dtype is np.uint8 else 255
    difference = np.abs(out.reshape(5, 8, 8).astype(float) * scale - expected(PIXELS, list(range(5))))
    assert difference.max() <= (0 if dtype is np.uint8 else 1 if dtype is np.float16 else 0.51)


def test_colour_arrays_in_both_orders(tmp_path: Path) -> None:
    """Channels are told from the denoiser's shape, also where height, width and channels could be confused."""
    from fastpure.purify.files.inputs import ArrayFile

    colour = np.random.RandomState(1).randint(0, 256, (2, 3, 4, 4), dtype=np.uint8)
    for name, stored in (("first", colour), ("last", np.ascontiguousarray(colour.transpose(0, 2, 3, 1)))):
        np.save(tmp_path / f"{name}.npy", stored)
        source = find_sources([tmp_path / f"{name}.npy"])[0]
        assert isinstance(source, ArrayFile)
        images = source.load([1, 0], (3, 4, 4))
        assert torch.equal((images * 255).round().byte(), torch.from_numpy(colour[[1, 0]]))
        assert np.array_equal(source.encode(images), stored[[1, 0]])


@pytest.mark.parametrize("packed", [False, True])
def test_npz_keeps_its_other_arrays(tmp_path: Path, packed: bool) -> None:
    others = {"labels": np.arange(5), "note": np.array("hello")}
    save = np.savez_compressed if packed else np.savez
    save(tmp_path / "in.npz", labels=others["labels"], x=PIXELS, note=others["note"])
    assert run(tmp_path / "in.npz", "--out", tmp_path / "out", *SHORT).exit_code == 0
    with np.load(tmp_path / "out" / "in.npz") as out:
        assert out.files == ["labels", "x", "note"]
        assert np.array_equal(out["x"], expected(PIXELS, list(range(5))))
        assert all(np.array_equal(out[name], others[name]) for name in others)


def test_ids_from_names_follow_the_image(tmp_path: Path) -> None:
    """An image keeps its noise when others are added, if its id is its name's."""
    few = pictures(tmp_path / "few", ["img_7.png"])
    many = tmp_path / "many"
    pictures(many, ["img_7.png"])
    Image.fromarray(PIXELS[1]).save(many / "img_3.png")
    for source in (few, many):
        assert run(source, "--out", tmp_path / f"{source.name}-out", *SHORT, "--ids", "names").exit_code == 0
    one, other = (pixels_of(tmp_path / f"{name}-out" / "img_7.png") for name in ("few", "many"))
    assert np.array_equal(one, other)
    assert np.array_equal(one, expected(PIXELS[:1], [7])[0])
    np.savez(tmp_path / "in.npz", images=PIXELS[:2], sample_ids=np.array([7, 3]))
    assert run(tmp_path / "in.npz", "--out", tmp_path / "npz-out", *SHORT, "--ids", "names").exit_code == 0
    assert np.array_equal(np.load(tmp_path / "npz-out" / "in.npz")["images"][0], one)


def test_several_inputs_keep_their_folders_apart(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one", ["0.png"]), pictures(tmp_path / "two", ["0.png"])
    names = [str(source.name) for source in find_sources([two, one])]
    assert names == ["one/0.png", "two/0.png"]


def test_guided_methods_and_other_settings(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["0.png"])
    guided = [
        "--denoiser",
        "digits",
        "--classifier",
        "digits",
        "--method",
        "coup",
        "--t",
        "0.1",
        "--dt",
        "0.05",
    ]
    result = run(source, "--out", tmp_path / "out", *guided, "--scale", "3", "--set", "method.label=input")
    assert result.exit_code == 0, result.output
    classifier = fp.load_classifier("digits")
    method = fp.methods.coup(classifier, t=0.1, dt=0.05, scale=3.0, label="input")
    x = torch.from_numpy(PIXELS[:1].astype(np.float32)[:, None] / 255)
    wanted = (fp.Purifier(fp.load_denoiser("digits"), method)(x) * 255).round().byte()[0, 0].numpy()
    assert np.array_equal(pixels_of(tmp_path / "out" / "0.png"), wanted)
    kept = json.loads((tmp_path / "out" / RUN_FILE).read_text())
    assert "scale=3.0" in kept["method"]
    assert set(kept["networks"]) == {"denoiser", "conventions", "classifier"}


def test_presets_and_another_size(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", PIXELS[:1, :7, :7])
    words = ["--denoiser", "digits", "--preset", "diffpure-cifar10-linf", "--t", "0.002", "--size", "7"]
    result = run(tmp_path / "in.npy", "--out", tmp_path / "out", *words)
    assert result.exit_code == 0, str(result.exception)
    assert np.load(tmp_path / "out" / "in.npy").shape == (1, 7, 7)
    assert "diffpure(t=0.002, dt=0.001" in result.output


def test_a_guide_sees_the_size_of_the_images_that_came_in(tmp_path: Path) -> None:
    """The bundled classifier ends in a mean over all pixels, so 7x7 images go in, and must."""
    np.save(tmp_path / "in.npy", PIXELS[:1, :7, :7])
    words = [
        "--denoiser",
        "digits",
        "--classifier",
        "digits",
        "--method",
        "coup",
        "--t",
        "0.1",
        "--dt",
        "0.05",
    ]
    assert run(tmp_path / "in.npy", "--out", tmp_path / "out", *words, "--size", "7").exit_code == 0
    guide = Resized(fp.load_classifier("digits"), 7)
    method = fp.methods.coup(guide, t=0.1, dt=0.05)
    x = torch.from_numpy(PIXELS[:1, :7, :7].astype(np.float32)[:, None] / 255)
    wanted = ResizedPurifier(fp.load_denoiser("digits"), method, 7)(x)
    assert np.array_equal(np.load(tmp_path / "out" / "in.npy"), (wanted * 255).round().byte()[:, 0].numpy())
