"""What the tests of `fastpure purify` share: small pictures, the command, and what the library gives for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from typer.testing import CliRunner

import fastpure as fp
from fastpure.cli.main import app

SHORT = ["--denoiser", "digits", "--t", "0.1", "--dt", "0.05"]
PIXELS = np.random.RandomState(0).randint(0, 256, (5, 8, 8), dtype=np.uint8)


def run(*words: str | Path):
    return CliRunner().invoke(app, ["purify", *map(str, words)])


def expected(pixels: np.ndarray, ids: list[int], seed: int = 0, draw: int = 0) -> np.ndarray:
    """What the library gives for grey bytes [N, 8, 8], as bytes."""
    purifier = fp.Purifier(fp.load_denoiser("digits"), fp.methods.diffpure(0.1, 0.05), seed=seed)
    with torch.no_grad():
        out = purifier(torch.from_numpy(pixels.astype(np.float32)[:, None] / 255), ids, draw)
    return (out.clamp(0, 1) * 255).round().byte().numpy()[:, 0]


def pictures(folder: Path, names: list[str]) -> Path:
    for name, pixels in zip(names, PIXELS, strict=False):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }


def pixels_of(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        assert image.format == "PNG"
        assert image.mode == "L"
        return np.array(image)
