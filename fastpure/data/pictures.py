"""The one decoder of pictures: pixels are taken by what the file says they are, or the picture is refused by name.

==========================  ==========================================================================================
what the file holds         what comes out
==========================  ==========================================================================================
8-bit grey, colour, 1 bit   its pixels, as torchvision's ``Image.open(path).convert("RGB")`` has them
palette                     the palette's colours, likewise
16-bit grey                 all 16 bits (value / 65535), where torchvision clips nearly all of it to white
16-bit colour               the upper 8 of its 16 bits, as PIL and torchvision read it
transparency                composed on white, or refused where a result would lose it (`Reading.transparency`);
                            opaque pixels keep their colours. torchvision shows the colours hidden behind
CMYK                        refused, since its colours need a profile; ImageNet has some, and keeps torchvision's pixels
anything else               refused: other colour spaces, 32-bit and floating pixels, several frames
==========================  ==========================================================================================
"""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from ..errors import DataError
from .regular import read_regular, reason

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
"""Those of torchvision's ImageFolder."""

FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
"""What these suffixes announce. PIL knows 40 more, and starts Ghostscript for one of them, whatever a file is called.
A PNG called .jpeg is fine (ImageNet has one)."""

LARGEST_SPARE = 2**24
"""Pixels that a picture of any size in bytes may have (4096x4096); beyond, four for each of its bytes."""

_ORIENTATION = 0x0112  # the EXIF tag
_PHOTOMETRIC, _SAMPLE_FORMAT = 262, 339  # TIFF tags
_SIXTEEN = ("I;16", "I;16B", "I;16L", "I;16N")
_REMEDY = "Save it as 8-bit RGB or grey, for example as PNG"


@final
@dataclass(frozen=True)
class Reading:
    """What pictures are read for.

    Fields:
        upright: turn them as their EXIF orientation says, for people to look at. Networks were trained on pixels as
            they lie in the file, since torchvision ignores that tag.
        transparency: "white": composed on it. "refused": a picture with a pixel that is not opaque is.
        cmyk: converted as PIL does without a profile, instead of refused.
        formats: of PIL; no other is tried.
    """

    upright: bool = False
    transparency: Literal["white", "refused"] = "white"
    cmyk: bool = False
    formats: tuple[str, ...] = FORMATS


PHOTOGRAPHS = Reading(upright=True, transparency="refused")
TORCHVISION = Reading()
IMAGENET = replace(TORCHVISION, cmyk=True)


@final
class Picture:
    """A picture whose header was read and found good. Its pixels are decoded when asked for.

    Attributes:
        source: what messages call it.
        width, height: of the pixels that come out.
        grey: whether they are grey.
    """

    def __init__(self, image: Any, source: str, reading: Reading) -> None:
        """``image`` is a `PIL.Image.Image`; DataError if it is of a kind that is refused."""
        self.source, self._image, self._reading = source, image, reading
        turned = self._orientation in (5, 6, 7, 8)
        self.width, self.height = image.size[::-1] if turned else image.size
        self.grey = image.mode in ("1", "L", "LA", "La", "I", *_SIXTEEN)
        self._refuse()

    @staticmethod
    def open(path: str | Path, reading: Reading) -> Picture:
        """The picture in a file. Raises DataError: it is no regular file, cannot be read, or is refused."""
        return Picture.of_bytes(read_regular(path), str(path), reading)

    @staticmethod
    def of_bytes(content: bytes, source: str, reading: Reading) -> Picture:
        """The picture in the bytes of a file. Raises DataError as `open` does."""
        try:
            from PIL import Image
        except ImportError as error:
            raise DataError("reading pictures needs Pillow: pip install pillow") from error
        if not content:
            raise DataError(f"{source}: empty, not an image")
        try:
            image = Image.open(io.BytesIO(content), formats=reading.formats)
        except Image.UnidentifiedImageError as error:
            expected = ", ".join(reading.formats)
            raise DataError(f"{source}: cannot be decoded as an image: it is none of {expected}") from error
        except Exception as error:  # damaged pictures raise about every type there is
            raise DataError(_undecodable(source, error)) from error
        width, height = image.size
        if width * height > LARGEST_SPARE + 4 * len(content):
            raise DataError(
                f"{source}: claims {width}x{height} pixels in {len(content)} bytes; at most "
                f"{LARGEST_SPARE} and four for each byte are decoded. Make it smaller"
            )
        return Picture(image, source, reading)

    def array(self) -> np.ndarray:
        """The pixels, ``[1 or 3, H, W]``, uint8, or uint16 where the picture has 16-bit grey levels."""
        image = self._decoded
        if image.mode in ("L", "RGB"):
            pixels = np.asarray(image)
            return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):  # mode I has room for more
            raise DataError(f"{self.source}: grey levels outside 0..65535. {_REMEDY}")
        return values.astype(np.uint16)[None]

    def rgb(self) -> Any:
        """The pixels as a `PIL.Image.Image` of mode RGB, 8 bits."""
        from PIL import Image

        if self._decoded.mode in ("L", "RGB"):
            return self._decoded.convert("RGB") if self._decoded.mode == "L" else self._decoded
        return Image.fromarray(to_bytes(self.array()[0])).convert("RGB")

    def profile(self, grey: bool) -> bytes | None:
        """The ICC profile that says how its numbers look, if it is one for grey (or else for RGB) pixels."""
        found = self._image.info.get("icc_profile")
        wanted = b"GRAY" if grey else b"RGB "
        return found if isinstance(found, bytes) and found[16:20] == wanted else None

    @cached_property
    def _orientation(self) -> int:
        if not self._reading.upright:
            return 1
        try:
            # A TIFF is turned by PIL itself, in its size already and then by `load`, which ends the tag.
            found = 1 if self._image.format == "TIFF" else self._image.getexif().get(_ORIENTATION, 1)
        except Exception as error:
            raise DataError(_undecodable(self.source, error)) from error
        return found if isinstance(found, int) and 1 <= found <= 8 else 1

    def _refuse(self) -> None:
        """DataError for what would be read wrongly."""
        image, refused = self._image, self._refused()
        # An MPO is a JPEG followed by others (previews, depth): every reader of JPEG sees the first.
        if refused is None and image.format != "MPO":
            try:
                frames = getattr(image, "n_frames", 1)
            except Exception as error:
                raise DataError(_undecodable(self.source, error)) from error
            refused = f"{frames} frames" if frames != 1 else None
        if refused is not None:
            remedy = "Save one frame" if refused.endswith("frames") else _REMEDY
            raise DataError(f"{self.source}: {refused}; expected one picture, grey or RGB. {remedy}")

    def _refused(self) -> str | None:
        image = self._image
        mode, key = image.mode, image.info.get("transparency")
        tags = getattr(image, "tag_v2", {})
        raw = " ".join(str(tile[3]) for tile in getattr(image, "tile", []))
        if mode == "CMYK":
            return None if self._reading.cmyk else "mode CMYK, whose colours need a profile"
        if mode == "I":  # 32 bits, in which PIL keeps the 16 of a PGM and, in old versions, of a PNG
            return None if image.format in ("PNG", "PPM") else "mode I (32-bit integers)"
        if mode in _SIXTEEN:
            if key is not None:
                return "16-bit grey with a transparent level"
            # PIL reads neither 12 bits nor white as zero as what they are.
            if "12" in raw or tags.get(_PHOTOMETRIC, 1) != 1:
                return "16-bit grey, stored with 12 bits or inverted"
            return None
        if mode not in ("1", "L", "P", "RGB", "LA", "PA", "RGBA"):
            return f"mode {mode}"
        if 2 in _listed(tags.get(_SAMPLE_FORMAT)):
            return "signed pixels"
        if key is not None and mode == "RGB" and ";16" in raw:
            return "16-bit colour with a transparent colour"
        return None

    @cached_property
    def _decoded(self) -> Any:
        """Mode L, RGB, or one of 16 bits; upright if wanted."""
        from PIL import Image, ImageOps

        try:
            image = self._image
            image.load()
            if self._orientation != 1:
                image = ImageOps.exif_transpose(image)
            return self._plain(image)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(f"{self.source}: too many pixels: {reason(error)}") from error
        except Exception as error:  # damaged pictures raise about every type there is
            raise DataError(_undecodable(self.source, error)) from error

    def _plain(self, image: Any) -> Any:
        from PIL import Image

        if image.mode in ("L", "RGB", "I", *_SIXTEEN) and "transparency" not in image.info:
            return image
        if "transparency" not in image.info and image.mode in ("1", "P", "CMYK"):
            return image.convert("L" if image.mode == "1" else "RGB")
        grey = image.mode in ("1", "L", "LA")
        image = image.convert("LA" if grey else "RGBA")
        colours, alpha = image.convert("L" if grey else "RGB"), image.getchannel("A")
        lowest = alpha.getextrema()[0]
        if lowest == 255:
            return colours
        if self._reading.transparency == "refused":
            raise DataError(
                f"{self.source}: has transparent pixels, which the result could not keep; expected 8 bits and no "
                "transparency. Save it on the background that it should have"
            )
        white = Image.new(colours.mode, colours.size, "white")
        white.paste(colours, mask=alpha)  # rounds (c a + 255 (255 - a)) / 255 to the nearest
        return white


def to_bytes(levels: np.ndarray) -> np.ndarray:
    """uint16 levels as the nearest of 256; bytes as they are."""
    return levels if levels.dtype == np.uint8 else ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _undecodable(source: str, error: Exception) -> str:
    return f"{source}: cannot be decoded as an image: {reason(error)}"


def _listed(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
