"""`fastpure purify`: right pixels in the same format, nothing overwritten, and the same bytes after any kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import fastpure as fp
from fastpure.classifiers import Resized
from fastpure.cli.main import app
from fastpure.cli.purify_inputs import find_sources
from fastpure.cli.purify_run import PIECES, RUN_FILE, PurifyRun
from fastpure.errors import DataError, FastpureError, ResumeError
from fastpure.purify import ResizedPurifier

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
    from fastpure.cli.purify_inputs import ArrayFile

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
    result = run(source, "--out", tmp_path / "out", *guided, "--scale", "3", "--set", "label=input")
    assert result.exit_code == 0, result.output
    classifier = fp.load_classifier("digits")
    method = fp.methods.coup(classifier, t=0.1, dt=0.05, scale=3.0, label="input")
    x = torch.from_numpy(PIXELS[:1].astype(np.float32)[:, None] / 255)
    wanted = (fp.Purifier(fp.load_denoiser("digits"), method)(x) * 255).round().byte()[0, 0].numpy()
    assert np.array_equal(pixels_of(tmp_path / "out" / "0.png"), wanted)
    kept = json.loads((tmp_path / "out" / RUN_FILE).read_text())
    assert "scale=3.0" in kept["method"]
    assert set(kept["networks"]) == {"denoiser", "classifier"}


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
        (["--set", "clip_output=True"], "method was"),
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
        (["--scale", "1"], "`settings of diffpure` must be among t, dt, clip_output, got scale"),
        (["--set", "t"], "`--set` must be NAME=VALUE"),
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
    assert "1.png: cannot be decoded" in refused(source)
    Image.fromarray(PIXELS[0, :4]).save(source / "1.png")
    assert "1.png: 8x4, but the denoiser's images are 8x8" in refused(source)
    Image.new("RGB", (8, 8)).save(source / "1.png")
    assert "in colour, but the denoiser's images are grey" in refused(source)
    Image.new("LA", (8, 8)).save(source / "1.png")
    assert "expected 8 bits and no transparency" in refused(source)
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


def test_several_inputs_keep_their_folders_apart(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one", ["0.png"]), pictures(tmp_path / "two", ["0.png"])
    names = [str(source.name) for source in find_sources([two, one])]
    assert names == ["one/0.png", "two/0.png"]


def test_one_line_and_status_2_for_a_mistake(tmp_path: Path) -> None:
    words = ["purify", str(tmp_path / "absent"), "--out", str(tmp_path / "out"), *SHORT]
    result = subprocess.run(
        [sys.executable, "-m", "fastpure.cli.main", *words], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no such file or folder" in result.stderr


def fake(images: torch.Tensor, ids: list[int], draw: int) -> torch.Tensor:
    """Results that depend on the image, its id, the draw, and (like float rounding) on the whole batch."""
    scale = 1 / (2 + torch.tensor(ids, dtype=torch.float32) + draw)
    return images * scale.view(-1, 1, 1, 1) + 1e-3 * images.mean()


def small_run(folder: Path, out: Path) -> PurifyRun:
    return PurifyRun(tuple(find_sources([folder])), out, {"a": 1}, (1, 8, 8), batch_size=3, draws=2)


def mixed(folder: Path) -> Path:
    """Pictures and arrays whose borders are not those of the batches."""
    pictures(folder, ["a.png", "d.png"])
    with (folder / "b.NPY").open("wb") as file:
        np.save(file, (PIXELS / 255).astype(np.float32))
    np.savez(folder / "c.npz", x=PIXELS[:4], y=np.arange(4))
    return folder


@pytest.mark.parametrize("where", ["compute", "replace"])
def test_killed_anywhere_and_continued_gives_the_same_bytes(tmp_path: Path, where: str) -> None:
    """A child process is killed with SIGKILL before its n-th batch or n-th rename, for every n, until it ends."""
    source = mixed(tmp_path / "in")
    with small_run(source, tmp_path / "whole").opened() as continued:
        assert not continued
        small_run(source, tmp_path / "whole").execute(fake, lambda n: None)
    whole = contents(tmp_path / "whole")
    assert len(whole) == 2 * 4 + 1
    for kill_at in range(1, 60):
        out = tmp_path / f"killed{kill_at}"
        if _child(source, out, where, kill_at) == 0:
            break
        assert set(contents(out)) - {f"{PIECES}/lock"} != set(whole)
        assert _child(source, out, where, 0) == 0
        assert contents(out) == whole
    assert kill_at > 5, "the loop went through real kill points"
    assert kill_at < 59


def _child(source: Path, out: Path, where: str, kill_at: int) -> int:
    """Run in a forked process that kills itself; its exit status (0: it ended)."""
    pid = os.fork()
    if pid == 0:
        calls = 0

        def count() -> None:
            nonlocal calls
            calls += 1
            if calls == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        real = os.replace

        def replace(*arguments: object) -> None:
            count()
            real(*arguments)  # type: ignore[arg-type]

        def purify(images: torch.Tensor, ids: list[int], draw: int) -> torch.Tensor:
            if where == "compute":
                count()
            return fake(images, ids, draw)

        try:
            if where == "replace":
                os.replace = replace  # type: ignore[assignment]
            task = small_run(source, out)
            with task.opened():
                task.execute(purify, lambda n: None)
            os._exit(0)
        except BaseException:
            os._exit(7)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code in (0, -signal.SIGKILL)
    return code


def test_two_processes_do_not_share_a_folder(tmp_path: Path) -> None:
    source = mixed(tmp_path / "in")
    other = small_run(source, tmp_path / "out").opened()
    with (
        small_run(source, tmp_path / "out").opened(),
        pytest.raises(ResumeError, match="another process is purifying into this folder"),
        other,
    ):
        pass


def test_ids_must_be_distinct(tmp_path: Path) -> None:
    source = pictures(tmp_path / "in", ["a/1.png", "b/1.png"])
    task = PurifyRun(tuple(find_sources([source])), tmp_path / "out", {}, (1, 8, 8), ids="names")
    with pytest.raises(DataError, match="not distinct numbers"):
        _ = task.batches


@pytest.mark.slow
def test_the_command_killed_and_given_again(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    images = np.random.RandomState(2).randint(0, 256, (12, 8, 8), dtype=np.uint8)
    for i, pixels in enumerate(images):
        Image.fromarray(pixels).save(source / f"{i:02}.png")
    np.save(source / "rest.npy", (images / 255).astype(np.float32))
    words = ["--denoiser", "digits", "--t", "0.1", "--dt", "0.01", "--batch-size", "2"]
    assert run(source, "--out", tmp_path / "whole", *words).exit_code == 0
    out = tmp_path / "out"
    command = [sys.executable, "-m", "fastpure.cli.main", "purify", str(source), "--out", str(out), *words]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        while not list(out.glob("*.png")) and child.poll() is None:
            time.sleep(0.01)
        child.kill()
    assert child.returncode == -signal.SIGKILL, "killed in the middle"
    assert 0 < len(list(out.glob("*.png"))) <= 12
    result = run(source, "--out", out, *words)
    assert result.exit_code == 0
    assert "continued: " in result.output
    assert contents(out) == contents(tmp_path / "whole")
