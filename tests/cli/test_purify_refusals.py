"""`fastpure purify` overwrites nothing, mixes nothing, and says what is wrong before it writes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpure.errors import DataError, FastpureError, ResumeError
from fastpure.purify.files.inputs import find_sources
from fastpure.purify.files.run import RUN_FILE, PurifyRun
from tests.cli.purifying import PIXELS, SHORT, contents, expected, pictures, pixels_of, run


def test_nothing_is_overwritten_unless_forced(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["0.png", "1.png"])
    out = tmp_path / "out"
    out.mkdir()
    (out / "0.png").write_bytes(b"precious")
    result = run(source, "--out", out, *SHORT)
    assert isinstance(result.exception, ResumeError)
    assert "1 of the files to be written are there already" in str(result.exception)
    assert (out / "0.png").read_bytes() == b"precious"
    assert not (out / "1.png").exists()
    assert run(source, "--out", out, *SHORT, "--force").exit_code == 0
    assert np.array_equal(pixels_of(out / "0.png"), expected(PIXELS[:1], [0])[0])


def test_the_same_weights_told_otherwise_are_another_run(tmp_path: Path) -> None:
    """A class label, a schedule: what a file says beside its weights decides the result too."""
    import fastpure as fp
    from fastpure.checkpoints.native import save_denoiser
    from fastpure.nets import Denoiser

    digits = fp.load_denoiser("digits")
    other = Denoiser.from_module(digits.network, "x0", digits.time_input, digits.image_shape)
    for name, denoiser in (("a", digits), ("b", other)):
        save_denoiser(denoiser, tmp_path / f"{name}.safetensors")
    source, out, file = pictures(tmp_path / "in", ["0.png"]), tmp_path / "out", tmp_path / "d.safetensors"
    words = [word if word != "digits" else str(file) for word in SHORT]
    words = words if str(file) in words else [*words, "--denoiser", str(file)]
    file.write_bytes((tmp_path / "a.safetensors").read_bytes())
    assert run(source, "--out", out, *words).exit_code == 0
    assert run(source, "--out", out, *words).exit_code == 0
    file.write_bytes((tmp_path / "b.safetensors").read_bytes())
    result = run(source, "--out", out, *words)
    assert isinstance(result.exception, ResumeError)
    assert "networks differ (conventions)" in str(result.exception)
    written = out / RUN_FILE
    settings = json.loads(written.read_text())
    del settings["networks"]["conventions"]
    written.write_text(json.dumps(settings))
    file.write_bytes((tmp_path / "a.safetensors").read_bytes())
    assert run(source, "--out", out, *words).exit_code == 0, "a folder from before this was looked at"


def test_another_configuration_is_refused_and_the_same_has_nothing_to_do(tmp_path: Path) -> None:
    source, out = pictures(tmp_path / "in", ["0.png"]), tmp_path / "out"
    assert run(source, "--out", out, *SHORT).exit_code == 0
    before = contents(out)
    again = run(source, "--out", out, *SHORT)
    assert again.exit_code == 0
    assert "continued: 1 were there, 0 purified now" in again.output
    assert contents(out) == before
    for words, reason in (
        (["--seed", "1"], "seed was 0, is 1"),
        (["--batch-size", "2"], "batch_size was 16, is 2"),
        (["--set", "method.clip_output=True"], "method was"),
    ):
        result = run(source, "--out", out, *SHORT, *words)
        assert isinstance(result.exception, ResumeError)
        assert reason in str(result.exception)
    Image.fromarray(PIXELS[1]).save(source / "0.png")
    assert "1 inputs differ (0.png)" in str(run(source, "--out", out, *SHORT).exception)
    assert contents(out) == before
    (out / RUN_FILE).write_text("{")
    assert "damaged" in str(run(source, "--out", out, *SHORT).exception)
    assert run(source, "--out", out, *SHORT, "--force").exit_code == 0
    assert np.array_equal(pixels_of(out / "0.png"), expected(PIXELS[1:2], [0])[0])


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--method", "alchemy"], "`--method` must be one of 'diffpure'"),
        (["--method", "coup"], "`--classifier` must be given: coup is guided by it"),
        (["--classifier", "digits"], "`--classifier` must be left out: diffpure is not guided"),
        (["--scale", "1"], "`settings of diffpure` must be among t, dt, clip_output, solver, got scale"),
        (["--set", "t"], "`--set` must be method.NAME=VALUE"),
        (["--draws", "0"], "`--draws` must be an integer"),
        (["--batch-size", "0"], "`--batch-size` must be an integer"),
        (["--ids", "hash"], "`--ids` must be one of 'position', 'names'"),
        (["--ids", "names"], "no number in the name"),
        (["--precision", "fp8"], "`precision` must be"),
        (["--device", "tpu!"], "`device` must be"),
        (["--preset", "coup"], "`preset` must be one of"),
        (["--preset", "coup-cifar10-linf"], "`classifier` must be given: coup is guided by it"),
        (["--preset", "diffpure-cifar10-linf", "--classifier", "digits"], "`--classifier` must be left out"),
        (["--preset", "diffpure-cifar10-linf", "--method", "ddpm"], "`--method` must be left out"),
        (["--t", "2"], "`t` must be"),
    ],
)
def test_mistakes_are_said_before_anything_is_written(tmp_path: Path, words: list[str], reason: str) -> None:
    source = pictures(tmp_path / "in", ["x.png"])
    result = run(source, "--out", tmp_path / "out", *SHORT, *words)
    assert result.exit_code != 0
    assert isinstance(result.exception, FastpureError | ValueError | TypeError)
    assert reason in str(result.exception)
    assert not (tmp_path / "out").exists()


def test_unusable_inputs_are_named_before_anything_is_written(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["0.png", "1.png"])

    def refused(*inputs: Path) -> str:
        result = run(*inputs, "--out", tmp_path / "out", *SHORT)
        assert isinstance(result.exception, DataError), result.exception
        assert not (tmp_path / "out").exists()
        return str(result.exception)

    assert "no such file or folder" in refused(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "no images or arrays in this folder" in refused(tmp_path / "empty")
    (tmp_path / "a.txt").write_text("x")
    assert "neither an image" in refused(tmp_path / "a.txt")
    (source / "1.png").write_bytes(b"damaged")
    assert "1.png: cannot be decoded" in refused(source / "1.png")
    Image.new("RGB", (8, 8)).save(source / "1.png")
    assert "in colour, but the denoiser's images are grey" in refused(source / "1.png")
    Image.new("LA", (8, 8)).save(source / "1.png")
    assert "expected 8 bits and no transparency" in refused(source / "1.png")
    (source / "1.png").write_bytes(b"damaged")
    (source / "0.png").write_bytes(b"damaged")
    assert "none of the 2 inputs can be purified. The first: " in refused(source)
    (source / "1.png").unlink()
    Image.fromarray(PIXELS[0]).save(source / "0.bmp")
    assert "would both become 0.png" in refused(source)
    for name, array, reason in (
        ("flat.npy", np.zeros((8, 8), np.uint8), "expected uint8 or floating [N, C, H, W]"),
        ("ints.npy", np.zeros((2, 8, 8), np.int64), "found int64"),
        ("large.npy", np.zeros((2, 9, 9), np.uint8), "but the denoiser's are (1, 8, 8)"),
        ("bright.npy", np.full((2, 8, 8), 255.0), "floating images must be in [0, 1]"),
        ("nan.npy", np.full((2, 8, 8), np.nan), "floating images must be in [0, 1]"),
    ):
        np.save(tmp_path / name, array)
        assert reason in refused(tmp_path / name)
    (tmp_path / "half.npz").write_bytes(b"PK")
    assert "cannot be read as .npz" in refused(tmp_path / "half.npz")
    np.savez(tmp_path / "other.npz", weights=np.zeros(3))
    assert "lacks images" in refused(tmp_path / "other.npz")


def test_outputs_never_mix_with_inputs(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["0.png"])
    before = contents(source)
    for out in (source, source / "out"):
        result = run(source, "--out", out, *SHORT, "--force")
        assert "`--out` must be a folder outside of the inputs" in str(result.exception)
    result = run(source / "0.png", "--out", source, *SHORT, "--force")
    assert "`--out` must be a folder without inputs in it" in str(result.exception)
    assert contents(source) == before


def test_ids_must_be_distinct(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["a/1.png", "b/1.png"])
    task = PurifyRun(tuple(find_sources([source])), tmp_path / "out", {}, (1, 8, 8), ids="names")
    with pytest.raises(DataError, match="not distinct numbers"):
        _ = task.batches


def test_one_line_and_status_2_for_a_mistake(tmp_path: Path) -> None:
    words = ["purify", str(tmp_path / "absent"), "--out", str(tmp_path / "out"), *SHORT]
    result = subprocess.run(
        [sys.executable, "-m", "fastpure.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no such file or folder" in result.stderr
