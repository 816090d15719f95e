"""Pictures of any size, mode and orientation: all purified, what is broken named, nothing stopped, a sheet of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastpure as fp
from fastpure.errors import DataError, ResumeError
from fastpure.purify.files.sheet import contact_sheet
from tests.cli.purifying import SHORT, contents, run

RANDOM = np.random.RandomState(0)


def photos(folder: Path, model: str = "L") -> Path:
    """Ten pictures of different sizes, modes and orientations, one of them broken."""
    folder.mkdir()

    def picture(height: int, width: int, mode: str = model) -> Image.Image:
        shape = (height, width, 3) if mode == "RGB" else (height, width)
        return Image.fromarray(RANDOM.randint(0, 256, shape, dtype=np.uint8))

    picture(9, 21).save(folder / "wide.png")
    picture(21, 9).save(folder / "tall.jpg", quality=95)
    picture(8, 8).save(folder / "exact.png")
    picture(5, 3).save(folder / "tiny.bmp")
    picture(12, 12).save(folder / "web.webp", lossless=True)
    picture(10, 11).save(folder / "tag.tiff")
    picture(16, 16).convert("1").save(folder / "bits.png")
    Image.fromarray(RANDOM.randint(0, 65536, (13, 9)).astype(np.uint16)).save(folder / "deep.png")
    turned = picture(9, 15)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(folder / "turned.jpg", exif=exif, quality=95)
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    return {path.name: Image.open(path).size for path in sorted(folder.glob("*.png"))}


WANTED = {
    "bits.png": (16, 16),
    "deep.png": (9, 13),
    "exact.png": (8, 8),
    "tag.png": (11, 10),
    "tall.png": (9, 21),
    "tiny.png": (3, 5),
    "turned.png": (9, 15),  # upright
    "wide.png": (21, 9),
}


@pytest.mark.parametrize("fit", ["tile", "resize"])
def test_a_folder_of_photos(tmp_path, fit):
    source, out, sheet = photos(tmp_path / "in"), tmp_path / "out", tmp_path / "sheet.png"
    # A lossless WebP is in colour whatever was saved: the grey model cannot take it.
    (source / "web.webp").unlink()
    words = (source, "--out", out, *SHORT, "--fit", fit, "--sheet", sheet)
    result = run(*words)
    assert result.exit_code == 1, result.output + str(result.exception)
    assert sizes(out) == WANTED
    assert "7 pictures of another size than 8x8: " in result.output
    assert result.output.count("not purified: ") == 1
    assert "broken.jpg: cannot be decoded" in result.output
    with Image.open(sheet) as picture:
        assert min(picture.size) > 300
    before = contents(out)
    (out / "tall.png").unlink()
    again = run(*words)
    assert "continued: 7 were there, 1 purified now" in again.output
    assert contents(out) == before


def test_tiles_are_the_library_s_and_a_broken_file_moves_no_other_s_noise(tmp_path):
    source = photos(tmp_path / "in")
    for name in ("web.webp", "tall.jpg", "turned.jpg"):
        (source / name).unlink()
    assert run(source, "--out", tmp_path / "a", *SHORT).exit_code == 1
    Image.fromarray(np.full((8, 8), 99, np.uint8)).save(source / "broken.jpg", format="JPEG")
    assert run(source, "--out", tmp_path / "b", *SHORT).exit_code == 0
    names = sorted(path.name for path in source.iterdir())
    with Image.open(source / "wide.png") as picture:
        x = torch.from_numpy(np.asarray(picture).astype(np.float32) / 255)[None, None]
    purifier = fp.Purifier(fp.load_denoiser("digits"), fp.methods.diffpure(0.1, 0.05))
    with torch.no_grad():
        wanted = purifier.tiled(9, 21)(x, [names.index("wide.png")], 0)[0, 0]
    wanted = (wanted.clamp(0, 1) * 255).round().byte().numpy()
    for out in ("a", "b"):
        assert np.array_equal(np.asarray(Image.open(tmp_path / out / "wide.png")), wanted)


def test_crop_takes_the_middle(tmp_path):
    source = photos(tmp_path / "in")
    result = run(source, "--out", tmp_path / "out", *SHORT, "--fit", "crop")
    assert result.exit_code == 1
    assert set(sizes(tmp_path / "out").values()) == {(8, 8)}
    assert "tiny.bmp: 3x5, too small to cut 8x8 out of it. Use --fit tile or resize" in result.output
    middle = tmp_path / "middle"
    middle.mkdir()
    with Image.open(source / "wide.png") as picture:
        picture.crop((6, 0, 14, 8)).save(middle / "wide.png")
    ids = sorted(path.name for path in source.iterdir()).index("wide.png")
    found = fp.purify_files(middle, tmp_path / "alone", small(), progress=False)
    assert found.new == 1
    x = torch.from_numpy(np.asarray(Image.open(middle / "wide.png")).astype(np.float32) / 255)[None, None]
    wanted = (small()(x, [ids]).clamp(0, 1) * 255).round().byte().numpy()[0, 0]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "wide.png")), wanted)


def small() -> fp.Purifier:
    return fp.Purifier(fp.load_denoiser("digits"), fp.methods.diffpure(0.1, 0.05))


@pytest.mark.slow
def test_in_python_with_the_bundled_network_for_photos(tmp_path):
    source = photos(tmp_path / "in", "RGB")
    for name in ("wide.png", "tall.jpg", "web.webp", "tag.tiff"):
        (source / name).unlink()
    found = fp.purify_files(source, tmp_path / "out", progress=False, sheet=tmp_path / "sheet.pdf")
    assert found.new == len(found.written) == 5
    assert [path.name for path, _ in found.refused] == ["broken.jpg"]
    assert "not purified: " in str(found)
    assert (tmp_path / "sheet.pdf").read_bytes().startswith(b"%PDF")
    # Grey pictures stay grey in front of a network for colours.
    assert {
        name: Image.open(tmp_path / "out" / name).mode for name in ("bits.png", "deep.png", "tiny.png")
    } == {
        "bits.png": "L",
        "deep.png": "L",
        "tiny.png": "RGB",
    }
    again = fp.purify_files([source], tmp_path / "out", progress=False)
    assert again.new == 0
    assert again.written == found.written


def test_wrong_calls(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(source / "a.png")
    with pytest.raises(ValueError, match="`fit`"):
        fp.purify_files(source, tmp_path / "out", small(), fit="stretch")
    with pytest.raises(TypeError, match="`purifier`"):
        fp.purify_files(source, tmp_path / "out", "digits")
    with pytest.raises(ValueError, match="`sheet`"):
        fp.purify_files(source, tmp_path / "out", small(), sheet=tmp_path / "sheet.doc")
    with pytest.raises(ValueError, match="`out`"):
        fp.purify_files(source, source / "out", small())
    with pytest.raises(DataError, match="no such file"):
        fp.purify_files(tmp_path / "absent", tmp_path / "out", small())
    assert not (tmp_path / "out").exists()
    result = run(source, "--out", tmp_path / "out", "--preset", "diffpure-cifar10-linf")
    assert "`--denoiser` must be given with --preset" in str(result.exception)
    result = run(source, "--out", tmp_path / "out", *SHORT, "--fit", "stretch")
    assert "`--fit` must be one of" in str(result.exception)


def test_a_sheet_of_too_many_says_so(tmp_path):
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a.png")
    contact_sheet(
        [("a very long name of a picture file.png", tmp_path / "a.png", tmp_path / "a.png")] * 61,
        tmp_path / "s.svg",
    )
    text = (tmp_path / "s.svg").read_text()
    assert text.count("<image") == 120


def test_a_sheet_overwrites_neither_inputs_nor_results(tmp_path):
    source, out = photos(tmp_path / "in"), tmp_path / "out"
    before = contents(source)
    for sheet in (source / "exact.png", source / "sheet.png", out / "exact.png"):
        with pytest.raises(ValueError, match=r"`sheet` must be a file that is neither an input"):
            fp.purify_files(source, out, small(), sheet=sheet, progress=False)
    np.save(tmp_path / "x.npy", np.zeros((2, 8, 8), np.uint8))
    with pytest.raises(ValueError, match=r"`sheet` must be left out where no input is a picture"):
        fp.purify_files(tmp_path / "x.npy", out, small(), sheet=tmp_path / "sheet.png", progress=False)
    assert contents(source) == before
    assert not out.exists()


def test_other_tiles_are_another_run(tmp_path):
    source = tmp_path / "in"
    source.mkdir()
    Image.fromarray(RANDOM.randint(0, 256, (20, 20), dtype=np.uint8)).save(source / "a.png")
    fp.purify_files(source, tmp_path / "out", small().tiled(20, 20, overlap=2), progress=False)
    with pytest.raises(ResumeError, match="purifier"):
        fp.purify_files(source, tmp_path / "out", small().tiled(20, 20, overlap=3), progress=False)
