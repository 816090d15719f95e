"""One decoder of pictures: exact pixels for every kind that is read, and a sentence for every kind that is not."""

from __future__ import annotations

import io
import os
import socket
import stat
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpure.data import Dataset, load_dataset, read_image_folder, read_jpeg_pack
from fastpure.data.pictures import (
    FORMATS,
    IMAGE_SUFFIXES,
    IMAGENET,
    PHOTOGRAPHS,
    TORCHVISION,
    Picture,
    to_bytes,
)
from fastpure.errors import DataError
from fastpure.purify.files.inputs import find_sources

RANDOM = np.random.RandomState(0)
COLOUR = RANDOM.randint(0, 256, (4, 6, 3), dtype=np.uint8)
GREY = RANDOM.randint(0, 256, (4, 6), dtype=np.uint8)
LEVELS = np.array([[0, 255, 256, 1023], [4095, 32768, 65000, 65535]], np.uint16)
COLOURED = Image.fromarray(COLOUR)
PALETTE = [10, 20, 30, 200, 100, 50, 0, 255, 0]
INDICES = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette(**options: object) -> bytes:
    image = Image.new("P", (3, 2))
    image.putdata(INDICES.ravel().tolist())
    image.putpalette(PALETTE)
    return encoded(image, **options)


def decoded(content: bytes, reading=TORCHVISION) -> np.ndarray:
    return Picture.of_bytes(content, "it", reading).array()


def oriented(value: int, image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encoded(image, kind, exif=exif, **options)


def class_folder(root: Path, content: bytes, name: str = "0.png") -> Path:
    (root / "a").mkdir(parents=True, exist_ok=True)
    (root / "a" / name).write_bytes(content)
    return root


ORDINARY = {
    "rgb": encoded(Image.fromarray(COLOUR)),
    "grey": encoded(Image.fromarray(GREY)),
    "palette": palette(),
    "one bit": encoded(Image.fromarray(GREY).convert("1")),
    "jpeg": encoded(Image.fromarray(COLOUR), "JPEG", quality=90),
    "grey jpeg": encoded(Image.fromarray(GREY), "JPEG", quality=90),
    "bmp": encoded(Image.fromarray(COLOUR), "BMP"),
    "palette bmp": encoded(Image.fromarray(COLOUR).convert("P"), "BMP"),
    "ppm": encoded(Image.fromarray(COLOUR), "PPM"),
    "pgm of 5 bits": b"P5 4 1 31\n" + bytes([0, 1, 16, 31]),
    "tiff": encoded(Image.fromarray(COLOUR), "TIFF", compression="tiff_lzw"),
    "webp": encoded(Image.fromarray(COLOUR), "WEBP", lossless=True),
    "turned jpeg": oriented(6, Image.fromarray(COLOUR), "JPEG"),
    "opaque rgba": encoded(Image.fromarray(np.dstack([COLOUR, np.full((4, 6), 255, np.uint8)]))),
    "mpo": encoded(Image.fromarray(COLOUR), "MPO", save_all=True, append_images=[Image.new("RGB", (6, 4))]),
}


@pytest.mark.parametrize("kind", ORDINARY)
def test_class_folders_keep_torchvision_s_pixels(tmp_path: Path, kind: str) -> None:
    """`torchvision.datasets.folder.pil_loader`: ``Image.open(file).convert("RGB")``."""
    with Image.open(io.BytesIO(ORDINARY[kind])) as image:
        wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    data = read_image_folder(class_folder(tmp_path, ORDINARY[kind]))
    assert np.array_equal(data.pixels[0].numpy(), wanted)


def test_palette_pictures_are_their_colours_everywhere(tmp_path: Path) -> None:
    wanted = np.array(PALETTE, np.uint8).reshape(3, 3)[INDICES].transpose(2, 0, 1)
    assert wanted[:, 0, 1].tolist() == [200, 100, 50]
    assert np.array_equal(decoded(palette()), wanted)
    assert np.array_equal(read_image_folder(class_folder(tmp_path, palette())).pixels[0].numpy(), wanted)
    with Image.open(io.BytesIO(palette())) as image:
        assert image.mode == "P"
        data = Dataset.from_torch([(image, 0)])
    assert np.array_equal(data.pixels[0].numpy(), wanted)


SIXTEEN = {
    "png": encoded(Image.fromarray(LEVELS)),
    "tiff": encoded(Image.fromarray(LEVELS), "TIFF"),
    "big-endian tiff": encoded(Image.fromarray(LEVELS.astype(">u2")), "TIFF"),
    "packed tiff": encoded(Image.fromarray(LEVELS), "TIFF", compression="tiff_lzw"),
    "pgm": encoded(Image.fromarray(LEVELS), "PPM"),
}


@pytest.mark.parametrize("kind", SIXTEEN)
def test_16_bit_grey_is_scaled_and_never_clipped(tmp_path: Path, kind: str) -> None:
    exact = LEVELS / 65535
    assert np.array_equal(decoded(SIXTEEN[kind]), LEVELS[None])
    data = read_image_folder(class_folder(tmp_path / "set", SIXTEEN[kind]))
    assert np.array_equal(data.pixels[0].numpy(), np.broadcast_to(np.rint(exact * 255), (3, 2, 4)))
    assert data.pixels[0, 0].tolist() == [[0, 1, 1, 4], [16, 128, 253, 255]]
    (tmp_path / "photo.png").write_bytes(SIXTEEN[kind])
    (source,) = find_sources([tmp_path / "photo.png"])
    for channels in (1, 3):
        values = source.load([0], (channels, 2, 4))
        torch.testing.assert_close(
            values, torch.from_numpy(exact).float().expand(1, channels, 2, 4), rtol=0, atol=1e-7
        )
    with Image.open(io.BytesIO(SIXTEEN[kind])) as image:
        item = Dataset.from_torch([(image, 0)])
    torch.testing.assert_close(item.images[0, 0], torch.from_numpy(exact).float(), rtol=0, atol=1e-7)


def test_all_16_bit_levels_become_the_nearest_byte() -> None:
    levels = np.arange(65536, dtype=np.uint16)
    assert np.array_equal(to_bytes(levels), np.rint(levels.astype(np.float64) * 255 / 65535))


def test_transparency_is_composed_on_white_for_networks_and_refused_for_people(tmp_path: Path) -> None:
    colour, alpha = np.meshgrid(np.arange(256), np.arange(256))
    wanted = np.rint((colour * alpha + 255 * (255 - alpha)) / 255)
    grey = np.dstack([colour, alpha]).astype(np.uint8)
    both = np.dstack([colour, 255 - colour, colour, alpha]).astype(np.uint8)
    assert np.array_equal(decoded(encoded(Image.fromarray(grey, mode="LA"))), wanted[None])
    assert np.array_equal(decoded(encoded(Image.fromarray(both)))[0], wanted)
    folder = read_image_folder(class_folder(tmp_path, encoded(Image.fromarray(both))))
    assert np.array_equal(folder.pixels[0, 0].numpy(), wanted)
    item = Dataset.from_torch([(Image.fromarray(both), 0)])
    assert np.array_equal(item.pixels[0, 2].numpy(), wanted)
    with pytest.raises(DataError, match=r"it: has transparent pixels.*Save it on the background"):
        decoded(encoded(Image.fromarray(both)), PHOTOGRAPHS)
    both[..., 3] = 255
    assert np.array_equal(decoded(encoded(Image.fromarray(both)), PHOTOGRAPHS)[0], colour)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (palette(transparency=1), [[10, 255, 0], [0, 255, 10]]),
        (palette(transparency=bytes([255, 0, 128])), [[10, 255, 127], [127, 255, 10]]),
        (encoded(Image.fromarray(np.array([[7, 9]], np.uint8)), transparency=7), [[255, 9]]),
        (encoded(Image.new("RGB", (2, 1), (1, 2, 3)), transparency=(1, 2, 3)), [[255, 255]]),
        (encoded(Image.new("1", (2, 1), 0), transparency=0), [[255, 255]]),
    ],
)
def test_a_transparent_level_or_colour_is_transparency_too(content: bytes, wanted: list) -> None:
    assert decoded(content)[0].tolist() == wanted
    with pytest.raises(DataError, match="transparent"):
        decoded(content, PHOTOGRAPHS)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("value", range(1, 9))
def test_photographs_come_out_upright(tmp_path: Path, kind: str, value: int) -> None:
    """A picture laid down as the tag says, taken up again: all eight orientations of EXIF."""
    upright = np.zeros((16, 32, 3), np.uint8)
    upright[:8, :16] = 255  # white top left corner
    laid = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[value]
    options = {"JPEG": {"quality": 100}, "WEBP": {"lossless": True}}.get(kind, {})
    content = oriented(value, Image.fromarray(np.ascontiguousarray(laid)), kind, **options)
    (tmp_path / f"photo.{kind.lower()}").write_bytes(content)
    (source,) = find_sources([tmp_path / f"photo.{kind.lower()}"])
    images = source.load([0], (3, 16, 32))
    assert np.array_equal((images[0] * 255).round().byte().permute(1, 2, 0).numpy(), upright)
    source.write(tmp_path / "out.png", source.encode(images))
    with Image.open(tmp_path / "out.png") as result:
        assert result.format == "PNG"
        assert 0x0112 not in result.getexif()
        assert np.array_equal(np.asarray(result), upright)


def test_photographs_keep_the_profile_that_says_how_their_numbers_look(tmp_path: Path) -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for name, image, kept in (
        ("colour.jpg", COLOURED, profile),
        ("grey.png", Image.fromarray(GREY), None),  # whose profile is for other pixels
    ):
        image.save(tmp_path / name, icc_profile=profile)
        (source,) = find_sources([tmp_path / name])
        channels = 3 if kept else 1
        source.write(tmp_path / "out.png", source.encode(source.load([0], (channels, 4, 6))))
        with Image.open(tmp_path / "out.png") as result:
            assert result.info.get("icc_profile") == kept


def frames(kind: str) -> bytes:
    return encoded(COLOURED, kind, save_all=True, append_images=[Image.new("RGB", (6, 4), "red")])


REFUSED = {
    "animated png": (frames("PNG"), "2 frames; expected one picture.*Save one frame"),
    "animated webp": (frames("WEBP"), "2 frames"),
    "tiff of pages": (frames("TIFF"), "2 frames"),
    "cmyk": (encoded(COLOURED.convert("CMYK"), "JPEG"), "mode CMYK, whose colours need a profile.*8-bit RGB"),
    "lab": (encoded(Image.new("LAB", (6, 4)), "TIFF"), "mode LAB; expected one picture, grey or RGB"),
    "ycbcr tiff": (encoded(COLOURED.convert("YCbCr"), "TIFF"), "mode YCbCr"),
    "floating": (encoded(Image.new("F", (6, 4)), "TIFF"), "mode F"),
    "portable floats": (encoded(Image.new("F", (6, 4)), "PPM"), "mode F"),
    "32 bits": (encoded(Image.new("I", (6, 4)), "TIFF"), r"mode I \(32-bit integers\)"),
    "inverted 16 bits": (
        encoded(Image.fromarray(LEVELS), "TIFF", tiffinfo={262: 0}),
        "16-bit grey, stored with 12 bits or inverted",
    ),
    "16 bits with a hole": (
        encoded(Image.fromarray(LEVELS), transparency=0),
        "16-bit grey with a transparent level",
    ),
    "gif": (encoded(COLOURED, "GIF"), "cannot be decoded as an image: it is none of JPEG, PNG"),
    "postscript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 4\n%%EndComments\n", "none of JPEG"),
    "truncated": (ORDINARY["rgb"][:60], "cannot be decoded as an image"),
    "empty": (b"", "empty, not an image"),
    "text": (b"not an image", "cannot be decoded as an image"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_everything_else_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    content, reason = REFUSED[kind]
    root = class_folder(tmp_path / "set", content)
    with pytest.raises(DataError, match=rf"0\.png: .*{reason}"):
        load_dataset("folder", path=root)
    (source,) = find_sources([root])
    with pytest.raises(DataError, match=rf"0\.png: .*{reason}"):
        source.load([0], (3, 4, 6))


def test_imagenet_s_cmyk_pictures_keep_torchvision_s_pixels(tmp_path: Path) -> None:
    content = REFUSED["cmyk"][0]
    with Image.open(io.BytesIO(content)) as image:
        wanted = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decoded(content, IMAGENET), wanted)


def test_a_torch_dataset_s_pictures_are_refused_by_their_position() -> None:
    with pytest.raises(DataError, match="item 0: mode CMYK"):
        Dataset.from_torch([(COLOURED.convert("CMYK"), 0)])
    with pytest.raises(DataError, match="item 1: 2 frames"), Image.open(io.BytesIO(frames("PNG"))) as image:
        Dataset.from_torch([(COLOURED, 0), (image, 0)])
    with pytest.raises(DataError, match=r"item 0 is .* expected uint8 \[H, W, C\] with 1 or 3 channels"):
        Dataset.from_torch([(np.zeros((4, 6, 4), np.uint8), 0)])
    with pytest.raises(DataError, match=r"expected the channels first"):
        Dataset.from_torch([(torch.zeros(32, 32, 3, dtype=torch.uint8), 0)])


def test_a_pack_of_cmyk_pictures_is_refused(tmp_path: Path) -> None:
    content = np.frombuffer(REFUSED["cmyk"][0], np.uint8)
    arrays = {"jpeg": content, "offsets": np.array([0, len(content)]), "labels": np.array([0])}
    np.savez(tmp_path / "pack.npz", **arrays, classes=np.array(["a"]))
    with pytest.raises(DataError, match="image 0: mode CMYK"):
        read_jpeg_pack(tmp_path / "pack.npz", "any", "test")


def test_no_other_program_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PIL renders PostScript with whatever is called ``gs``."""
    program = tmp_path / "bin" / "gs"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    root = class_folder(tmp_path / "set", REFUSED["postscript"][0], "photo.png")
    with pytest.raises(DataError, match=r"photo\.png"):
        load_dataset("folder", path=root)
    with pytest.raises(DataError, match=r"photo\.png"):
        find_sources([root])[0].load([0], (3, 4, 6))
    assert not (tmp_path / "started").exists()
    assert "EPS" not in FORMATS


def test_a_format_under_another_of_the_suffixes_is_read(tmp_path: Path) -> None:
    """ImageNet has a PNG called .JPEG."""
    data = read_image_folder(class_folder(tmp_path, ORDINARY["rgb"], "n.JPEG"))
    assert np.array_equal(data.pixels[0].permute(1, 2, 0).numpy(), COLOUR)
    assert ".pgm" in IMAGE_SUFFIXES


def test_sizes_are_bounded_before_anything_is_decoded() -> None:
    """A PNG of 8000x8000 white pixels is 60 KB."""
    bomb = encoded(Image.new("1", (8000, 8000), 1))
    assert len(bomb) < 2**16
    with pytest.raises(DataError, match=r"it: claims 8000x8000 pixels in \d+ bytes; at most 16777216"):
        decoded(bomb)
    header = bytearray(ORDINARY["rgb"])
    header[16:24] = np.array([60_000, 60_000], ">u4").tobytes()
    with pytest.raises(DataError, match="it: "):
        decoded(bytes(header))
    assert decoded(encoded(Image.new("L", (4096, 4096)))).shape == (1, 4096, 4096)


def special(folder: Path, kind: str) -> Path:
    path = folder / "x.png"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(path))
    elif kind == "absent":
        path.symlink_to(folder / "nowhere")
    return path


@pytest.mark.parametrize("kind", ["folder", "pipe", "device", "socket", "absent"])
def test_nothing_but_files_is_opened(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = special(tmp_path, kind)
    monkeypatch.setattr(os, "open", lambda *arguments: pytest.fail(f"{arguments} was opened"))
    reason = "no such file" if kind == "absent" else f"{kind}.*not a file; it was not opened"
    with pytest.raises(DataError, match=rf"x\.png: .*{reason}"):
        Picture.open(path, PHOTOGRAPHS)


def test_pipes_in_class_folders_are_named_not_waited_for(tmp_path: Path) -> None:
    class_folder(tmp_path, ORDINARY["rgb"])
    special(tmp_path / "a", "pipe")
    with pytest.raises(DataError, match=r"x\.png: a pipe \(FIFO\), not a file; it was not opened"):
        load_dataset("folder", path=tmp_path)
    with pytest.raises(DataError, match=r"x\.png: a pipe"):
        [source.digest() for source in find_sources([tmp_path])]


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(ORDINARY["rgb"])

    def denied(*arguments: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(DataError, match=r"x\.png: cannot be opened: Permission denied"):
        Picture.open(path, TORCHVISION)
