"""The official CIFAR archives: read as published, in order, and refused with the reason when they are not."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch

from fastpure.data import cifar, load_dataset
from fastpure.errors import DataError

COUNT = 20
NAMES = [f"class{i}" for i in range(10)]


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings as Python 2 did, in which the official archives were made."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_text(self, text: str | bytes) -> None:
        data = text.encode("latin1") if isinstance(text, str) else text
        self.write(b"T" + struct.pack("<i", len(data)) + data)
        self.memoize(text)

    dispatch[str] = save_text
    dispatch[bytes] = save_text


def python2(value: object) -> bytes:
    buffer = io.BytesIO()
    Python2Pickler(buffer, protocol=2).dump(value)
    return buffer.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def images(count: int, seed: int) -> tuple[np.ndarray, list[int]]:
    random = np.random.RandomState(seed)
    return random.randint(0, 256, (count, 3072), dtype=np.uint8), random.randint(0, 10, count).tolist()


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same layouts with few images, so that the tests are quick."""
    counts = {"train": COUNT, "test": COUNT}
    for name in ("CIFAR10", "CIFAR100"):
        monkeypatch.setattr(cifar, name, replace(getattr(cifar, name), counts=counts))


def python_files(write=python2) -> dict[str, bytes]:
    files = {"batches.meta": write({"label_names": NAMES})}
    for seed, name in enumerate(["test_batch", *(f"data_batch_{i}" for i in range(1, 6))]):
        pixels, labels = images(COUNT, seed)
        files[name] = write(
            {"data": pixels, "labels": labels, "batch_label": name, "filenames": ["a"] * COUNT}
        )
    return files


def binary_files() -> dict[str, bytes]:
    files = {"batches.meta.txt": "\n".join(NAMES).encode() + b"\n\n"}
    for seed, name in enumerate(["test_batch.bin", *(f"data_batch_{i}.bin" for i in range(1, 6))]):
        pixels, labels = images(COUNT, seed)
        files[name] = np.hstack([np.array(labels, np.uint8)[:, None], pixels]).tobytes()
    return files


def tar(path: Path, files: dict[str, bytes], folder: str = "cifar-10-batches-py") -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def folder(path: Path, files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, content in files.items():
        (path / name).write_bytes(content)
    return path


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("form", ["python tar", "python folder", "binary tar", "binary folder", "parent"])
def test_cifar10_in_every_official_form(tmp_path: Path, form: str) -> None:
    if form == "python tar":
        path = tar(tmp_path / "cifar-10-python.tar.gz", python_files())
    elif form == "binary tar":
        path = tar(tmp_path / "cifar-10-binary.tar.gz", binary_files(), "cifar-10-batches-bin")
    elif form == "parent":
        tar(tmp_path / "cifar-10-python.tar.gz", python_files())
        path = tmp_path
    else:
        name, files = ("cifar-10-batches-py", python_files()) if "python" in form else ("any", binary_files())
        path = folder(tmp_path / name, files)
    test, train = (load_dataset("cifar10", split, path=path) for split in ("test", "train"))
    pixels, labels = images(COUNT, 0)
    assert torch.equal(test.pixels, torch.from_numpy(pixels.reshape(-1, 3, 32, 32)))
    assert test.labels.tolist() == labels
    assert test.classes == tuple(NAMES)
    assert len(train) == 5 * COUNT
    assert train.sample_ids.tolist() == list(range(5 * COUNT))
    for batch in range(5):
        part = slice(batch * COUNT, (batch + 1) * COUNT)
        assert train.labels[part].tolist() == images(COUNT, batch + 1)[1], "batches in their order"


def test_official_sizes(tmp_path: Path) -> None:
    """10,000 images, no fewer: and the literature's subset of them."""
    pixels = np.tile(np.arange(256, dtype=np.uint8), 10_000 * 12).reshape(10_000, 3072)
    labels = [i % 10 for i in range(10_000)]
    files = {"batches.meta": python2({"label_names": NAMES})}
    path = folder(tmp_path / "batches", {**files, "test_batch": python2({"data": pixels, "labels": labels})})
    chosen = load_dataset("cifar10", "test", path=path, n=512)
    assert chosen.sample_ids[:5].tolist() == [9394, 898, 2398, 5906, 2343]
    assert len(chosen) == 512
    (path / "test_batch").write_bytes(python2({"data": pixels[:9999], "labels": labels[:9999]}))
    with pytest.raises(
        DataError, match=r"test_batch: expected uint8 \(10000, 3072\) pixels, found uint8 \(9999"
    ):
        load_dataset("cifar10", "test", path=path)


@pytest.mark.usefixtures("small")
def test_pickles_of_python_3_are_read_too(tmp_path: Path) -> None:
    path = folder(tmp_path / "batches", python_files(lambda value: pickle.dumps(value, protocol=2)))
    assert load_dataset("cifar10", "test", path=path).labels.tolist() == images(COUNT, 0)[1]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("version", ["python", "binary"])
def test_cifar100_has_fine_labels(tmp_path: Path, version: str) -> None:
    names = [f"fine{i}" for i in range(100)]
    pixels, coarse = images(COUNT, 0)
    fine = [(7 * i + 60) % 100 for i in range(COUNT)]
    if version == "python":
        files = {
            "meta": python2({"fine_label_names": names, "coarse_label_names": NAMES}),
            "test": python2({"data": pixels, "fine_labels": fine, "coarse_labels": coarse}),
        }
    else:
        rows = np.hstack([np.array(coarse, np.uint8)[:, None], np.array(fine, np.uint8)[:, None], pixels])
        files = {"fine_label_names.txt": "\n".join(names).encode(), "test.bin": rows.tobytes()}
    data = load_dataset("cifar100", "test", path=tar(tmp_path / "c.tar.gz", files, "cifar-100"))
    assert data.labels.tolist() == fine
    assert data.classes == tuple(names)
    assert torch.equal(data.pixels.flatten(1), torch.from_numpy(pixels))


class Trap:
    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (Path("/tmp/fastpure-was-here"),)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"test_batch": None}, "not cifar10: lacks test_batch or test_batch.bin"),
        ({"batches.meta": None}, "lacks batches.meta"),
        ({"test_batch": b"\x80\x02garbage"}, "test_batch: damaged pickle"),
        ({"test_batch": b""}, "test_batch: damaged pickle"),
        ({"test_batch": pickle.dumps(Trap(), 2)}, r"refused, since its pickle wants to run \w+\.\w+"),
        ({"test_batch": pickle.dumps(print, 2)}, r"its pickle wants to run (__builtin__|builtins)\.print"),
        ({"test_batch": python2([1])}, "expected a dict, found list"),
        ({"test_batch": python2({"data": images(COUNT, 0)[0]})}, "lacks 'labels'; it has b'data'"),
        (
            {"test_batch": python2({"data": images(COUNT, 0)[0] / 2, "labels": [0] * COUNT})},
            r"expected uint8 \(20, 3072\) pixels, found float64",
        ),
        (
            {"test_batch": python2({"data": images(COUNT, 0)[0], "labels": [0] * 19})},
            "20 images, but 19 labels",
        ),
        (
            {"test_batch": python2({"data": images(COUNT, 0)[0], "labels": [10] * COUNT})},
            r"labels 10\.\.10 outside 0\.\.9",
        ),
        (
            {"test_batch": python2({"data": images(COUNT, 0)[0], "labels": ["0"] * COUNT})},
            "expected a list of integers",
        ),
        ({"batches.meta": python2({"label_names": NAMES[:9]})}, "expected 10 distinct class names, found 9"),
        ({"batches.meta": python2({"label_names": 3})}, "expected a list of class names"),
    ],
)
def test_corrupt_python_archives_are_refused(
    tmp_path: Path, change: dict[str, bytes | None], reason: str
) -> None:
    files = {name: content for name, content in {**python_files(), **change}.items() if content is not None}
    for path in (tar(tmp_path / "c.tar.gz", files), folder(tmp_path / "c", files)):
        with pytest.raises(DataError, match=reason):
            load_dataset("cifar10", "test", path=path)
    assert not Path("/tmp/fastpure-was-here").exists()


@pytest.mark.usefixtures("small")
def test_corrupt_binary_archives_are_refused(tmp_path: Path) -> None:
    files = binary_files()
    short = {**files, "test_batch.bin": files["test_batch.bin"][:-1]}
    with pytest.raises(DataError, match=r"expected 61460 bytes \(20 images\), found 61459"):
        load_dataset("cifar10", "test", path=folder(tmp_path / "short", short))
    wrong = {**files, "test_batch.bin": b"\x0b" + files["test_batch.bin"][1:]}
    with pytest.raises(DataError, match=r"labels \d\.\.11 outside 0\.\.9"):
        load_dataset("cifar10", "test", path=folder(tmp_path / "wrong", wrong))


@pytest.mark.usefixtures("small")
def test_damaged_tar_files_are_refused(tmp_path: Path) -> None:
    path = tar(tmp_path / "c.tar.gz", python_files())
    content = path.read_bytes()
    for damaged in (content[: len(content) // 2], b"no archive", b""):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged, or not a tar archive"):
            load_dataset("cifar10", "test", path=path)
    middle = bytearray(content)
    middle[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(middle)
    with pytest.raises(DataError, match="damaged"):
        load_dataset("cifar10", "train", path=path)
    with pytest.raises(DataError, match="no such file or folder; expected cifar-10-python"):
        load_dataset("cifar10", "test", path=tmp_path / "absent")


@pytest.mark.usefixtures("small")
def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "c.tar"
    files = python_files()
    with tarfile.open(path, "w") as archive:
        for prefix in ("a", "b"):
            for name, content in files.items():
                member = tarfile.TarInfo(f"{prefix}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    with pytest.raises(DataError, match=r"holds .* twice"):
        load_dataset("cifar10", "test", path=path)


def test_paths_are_asked_for() -> None:
    with pytest.raises(ValueError, match=r"`path` must be given for data set 'cifar100'.*cifar-100-python"):
        load_dataset("cifar100")
    with pytest.raises(ValueError, match=r"`path` must be given for data set 'cifar10'.*cifar-10-python"):
        load_dataset("cifar10")
