"""Arrays in files: the right one of several, nothing believed beyond the file's size, nothing unpickled."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpure.data import Dataset, load_dataset
from fastpure.data.archive import Archive
from fastpure.data.cifar import safe_loads
from fastpure.data.numpy_files import Arrays
from fastpure.errors import DataError
from fastpure.purify.files.inputs import find_sources
from fastpure.purify.files.run import PurifyRun
from tests.cli.purifying import SHORT, expected, run

RANDOM = np.random.RandomState(0)
CLEAN = (RANDOM.randint(0, 256, (3, 1, 8, 8)) / 255).astype(np.float32)
ATTACKED = (RANDOM.randint(0, 256, (3, 1, 8, 8)) / 255).astype(np.float32)


def attack_archive(path: Path, **change: np.ndarray) -> Path:
    """As `fastpure.cli.attack.save` writes it."""
    arrays = {
        "x": CLEAN,
        "x_adv": ATTACKED,
        "labels": np.array([1, 0, 2]),
        "sample_ids": np.array([5, 3, 9]),
        "distance": np.full(3, 0.1, np.float32),
        "clean_correct": np.ones(3, bool),
        "robust_correct": np.zeros(3, bool),
        "losses": np.zeros((4, 3), np.float32),
        "about": np.array(json.dumps({"defense": {}, "attack": "PGD"})),
    }
    np.savez_compressed(path, **{**arrays, **change})
    return path


def test_of_an_attack_s_archive_the_attacked_images_are_taken(tmp_path: Path) -> None:
    path = attack_archive(tmp_path / "adversarial.npz")
    with pytest.warns(UserWarning, match="x_adv, the attacked images"):
        data = load_dataset("arrays", path=path)
    assert torch.equal(data.images, torch.from_numpy(ATTACKED))
    assert data.sample_ids.tolist() == [5, 3, 9]
    assert (
        "x_adv, the attacked images of this archive of `fastpure attack`; not read: x, dist"
        in data.describe()
    )
    assert torch.equal(load_dataset("arrays", path=path, key="x").images, torch.from_numpy(CLEAN))
    assert data.subset(2).describe().endswith(f"({data.note})")


def test_purify_purifies_the_attacked_images_and_keeps_the_rest(tmp_path: Path) -> None:
    path = attack_archive(tmp_path / "adversarial.npz")
    result = run(path, "--out", tmp_path / "out", *SHORT)
    assert result.exit_code == 0, result.output + str(result.exception)
    assert "adversarial.npz: purifies x_adv, the attacked images" in result.output
    assert "keeps x, labels, sample_ids" in result.output
    with np.load(path) as before, np.load(tmp_path / "out" / "adversarial.npz") as after:
        assert after.files == before.files
        wanted = expected(np.rint(ATTACKED[:, 0] * 255).astype(np.uint8), [0, 1, 2])
        assert np.abs(after["x_adv"][:, 0] * 255 - wanted).max() <= 0.51
        for name in set(before.files) - {"x_adv"}:
            assert np.array_equal(before[name], after[name])
    clean = run(path, "--out", tmp_path / "clean", *SHORT, "--key", "x")
    assert "purifies x, as asked for" in clean.output
    with np.load(tmp_path / "clean" / "adversarial.npz") as after:
        assert np.array_equal(after["x_adv"], ATTACKED)
        assert not np.array_equal(after["x"], CLEAN)
    again = run(path, "--out", tmp_path / "clean", *SHORT)
    assert "key was 'x', is None" in str(again.exception)


@pytest.mark.parametrize(
    "arrays",
    [
        {"x": CLEAN, "x_adv": ATTACKED},
        {"images": CLEAN, "adversarial": ATTACKED},
        {"images": CLEAN, "masks": CLEAN[:, 0]},
        {"x": CLEAN, "images": CLEAN},
    ],
)
def test_several_arrays_of_images_are_refused_until_one_is_named(
    tmp_path: Path, arrays: dict[str, np.ndarray]
) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, **arrays, labels=np.arange(3))
    with pytest.raises(DataError, match=r"2 arrays have the shape of images \(.*Say which: `key` .*--key"):
        load_dataset("arrays", path=path)
    assert "2 arrays have the shape" in str(run(path, "--out", tmp_path / "out", *SHORT).exception)
    assert not (tmp_path / "out").exists()
    for name, images in arrays.items():
        data = load_dataset("arrays", path=path, key=name)
        assert torch.equal(data.images.flatten(), torch.from_numpy(images).flatten())
        assert f"{name}, as asked for" in data.note
    with pytest.raises(DataError, match=r"has no array 'y'.*it has"):
        load_dataset("arrays", path=path, key="y")


def test_two_arrays_that_may_be_the_labels_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=CLEAN, labels=np.arange(3), targets=np.array([2, 2, 2]))
    with pytest.raises(DataError, match=r"labels and targets may both be the labels; expected one"):
        load_dataset("arrays", path=tmp_path / "set.npz")


def test_a_key_where_there_is_no_choice_is_a_mistake(tmp_path: Path) -> None:
    np.save(tmp_path / "in.npy", CLEAN)
    assert "`--key` must be left out" in str(
        run(tmp_path / "in.npy", "--out", tmp_path / "out", *SHORT, "--key", "x").exception
    )
    with pytest.raises(ValueError, match="`key` must not be given for data set 'digits'"):
        load_dataset("digits", key="x")
    np.savez(tmp_path / "set.npz", pictures=CLEAN, labels=np.arange(3))
    with pytest.raises(
        DataError, match=r"lacks images \(images or x .*it has pictures, labels\. Say which: `key`"
    ):
        load_dataset("arrays", path=tmp_path / "set.npz")
    assert len(load_dataset("arrays", path=tmp_path / "set.npz", key="pictures")) == 3


def test_the_command_line_s_experiments_take_a_key_too(tmp_path: Path) -> None:
    from fastpure.cli.experiment import build
    from fastpure.cli.options import Request

    path = tmp_path / "set.npz"
    np.savez(path, images=CLEAN, adversarial=ATTACKED, labels=np.arange(3))
    wanted = Request(data="arrays", data_path=path, classifier="digits", method="none", attack="none")
    with pytest.raises(DataError, match="2 arrays have the shape of images"):
        build(wanted)
    found = build(replace(wanted, key="adversarial")).dataset
    assert torch.equal(found.images, torch.from_numpy(ATTACKED))
    with pytest.raises(ValueError, match="`--key` must be left out with --preset"):
        build(replace(wanted, key="x", preset="coup-cifar10-linf", method=None))


def npy(shape: str, kind: str = "|u1", body: bytes = b"") -> bytes:
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + body


def npz(path: Path, packed: bool = True, **members: bytes) -> Path:
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


LIES = {
    "a terabyte": (npy("(1000000, 1000, 1000)"), r"announces uint8 \(1000000, 1000, 1000\)"),
    "too short": (npy("(3, 8, 8)", body=bytes(191)), r"192 bytes, and holds 191"),
    "two arrays": (npy("(3, 8, 8)", body=bytes(193)), r"192 bytes, and holds 193; expected one whole array"),
    "more than integers hold": (npy(f"({2**70},)"), "announces"),
    "negative": (npy("(-1, 8, 8)"), "which no array has"),
    "many of nothing": (npy(f"({2**40},)", "|S0"), "which no array has"),
    "no tuple": (npy("3"), "cannot be read as .npy: shape is not valid"),
    "no header": (b"\x93NUMPY\x01\x00\xff\xff{", "cannot be read as .npy"),
    "another version": (b"\x93NUMPY\x09\x00\x10\x00", "cannot be read as .npy|format"),
    "nested": (npy("(" * 3000), "cannot be read as .npy"),
    "objects": (npy("(2, 8, 8)", "|O", pickle.dumps(print)), "Python objects are never run|found object"),
    "nothing": (b"", "cannot be read as .npy"),
}


@pytest.mark.parametrize("kind", LIES)
def test_headers_that_lie_are_refused_without_taking_memory(tmp_path: Path, kind: str) -> None:
    content, reason = LIES[kind]
    (tmp_path / "in.npy").write_bytes(content)
    archive = npz(tmp_path / "set.npz", images=content, labels=npy("(3,)", "|u1", bytes(3)))
    tracemalloc.start()
    with pytest.raises(DataError, match=reason):
        PurifyRun(tuple(find_sources([tmp_path / "in.npy"])), tmp_path / "out", {}, (1, 8, 8)).check()
    with pytest.raises(DataError, match=r"set\.npz"):
        load_dataset("arrays", path=archive)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_zip_bombs_are_refused_by_their_directory(tmp_path: Path) -> None:
    """300 MB of zeros are 300 KB; the header says so before anything is unpacked."""
    size = 300_000_000
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        with archive.open("images.npy", "w", force_zip64=True) as member:
            member.write(npy(f"({size // 64}, 8, 8)"))
            for _ in range(size // 64 // 50_000):
                member.write(bytes(64 * 50_000))
            member.write(bytes(size // 64 % 50_000 * 64))
        archive.writestr("labels.npy", npy("(3,)", body=bytes(3)))
    assert path.stat().st_size < 2**20
    tracemalloc.start()
    with pytest.raises(
        DataError, match=r"images claims 300 MB in a file of 0\.\d+ MB; at most 268 MB and 4 times"
    ):
        load_dataset("arrays", path=path)
    with pytest.raises(DataError, match="images claims"):
        _ = find_sources([path])[0].count
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_counts_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.array([0, 30_000_000]))
    with pytest.raises(
        DataError, match=r"labels up to 30000000 without class names; expected at most 131071"
    ):
        load_dataset("arrays", path=path)
    with pytest.raises(DataError, match=r"labels up to 30000000 without class names"):
        Dataset.from_torch([(np.zeros((8, 8), np.uint8), 30_000_000)])
    with pytest.raises(DataError, match=r"Overflow|too large|out of range|int too big"):
        Dataset.from_torch([(np.zeros((8, 8), np.uint8), 2**70)], classes=["a"])
    np.savez_compressed(
        path, images=np.zeros((2, 8, 8), np.uint8), labels=[0, 1], classes=np.zeros(10**6, "U1")
    )
    with pytest.raises(DataError, match=r"class names are \(1000000,\), expected a vector of at most 131072"):
        load_dataset("arrays", path=path)
    npz(path, images=npy("(1000000000, 0, 8)"), labels=npy("(3,)", body=bytes(3)))
    with pytest.raises(DataError, match=r"holds no images: uint8 \(1000000000, 0, 8\)"):
        load_dataset("arrays", path=path)


def test_damage_inside_an_archive_is_found_by_its_checksum(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=RANDOM.randint(0, 256, (4, 8, 8), dtype=np.uint8), labels=np.arange(4))
    content = bytearray(path.read_bytes())
    content[300] ^= 1  # one bit of a pixel
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"set\.npz: cannot be read as \.npz: Bad CRC-32"):
        load_dataset("arrays", path=path)


def test_two_arrays_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((2, 8, 8), np.uint8), labels=np.arange(2))
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("images.npy", npy("(2, 8, 8)", body=bytes(128)))
    with pytest.raises(DataError, match="holds images twice"):
        load_dataset("arrays", path=path)


def test_a_folder_of_arrays_says_what_else_it_holds(tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", CLEAN)
    np.save(tmp_path / "labels.npy", np.arange(3))
    np.save(tmp_path / "images_adv.npy", ATTACKED)
    with pytest.warns(UserWarning, match=r"not read: 1 file \(1 \.npy\)"):
        assert load_dataset("arrays", path=tmp_path).note == "not read: 1 file (1 .npy)"


PICKLES = {
    "a text of 2**62 bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b".",
    "a call of ndarray": b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR.",
    "an array of 2**40 items": (
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n\x8a\x06"
        + bytes(5)
        + b"\x01\x85C\x01b\x87R."
    ),
    "one text again and again": (
        b"\x80\x02(X\x00\x00\x01\x00"
        + b"a" * 65536
        + b"q\x000"
        + b"c_codecs\nencode\nh\x00\x85R" * 3000
        + b"t."
    ),
}


def test_a_memo_is_as_large_as_its_entries() -> None:
    """Python's reader in C makes room for as many places as the file names."""
    tracemalloc.start()
    assert safe_loads(b"\x80\x02]r\xff\xff\xff\x7f.", "it") == []
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


@pytest.mark.parametrize("kind", PICKLES)
def test_pickles_take_no_memory_for_what_they_claim(kind: str) -> None:
    tracemalloc.start()
    with pytest.raises(DataError, match=r"it: "):
        safe_loads(PICKLES[kind], "it")
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_tar_bombs_are_refused(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "c.tar.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        for _ in range(300):
            file.write(bytes(10**6))
    assert path.stat().st_size < 2**21
    with pytest.raises(DataError, match=r"c\.tar\.gz: unpacking it claims 2\d\d"):
        Archive(path).names()


def test_arrays_are_read_as_numpy_reads_them(tmp_path: Path) -> None:
    arrays = {
        "fortran": np.asfortranarray(RANDOM.rand(3, 4)),
        "big": RANDOM.rand(5).astype(">f4"),
        "text": np.array(["a", "bc"]),
        "alone": np.array("text"),
        "none": np.zeros((0, 3)),
        "flags": np.ones((2, 2), bool),
    }
    np.savez_compressed(tmp_path / "a.npz", **arrays)
    found = Arrays.open(tmp_path / "a.npz")
    for name, wanted in arrays.items():
        assert np.array_equal(found.read(name), wanted)
        np.save(tmp_path / "one.npy", wanted)
        assert np.array_equal(Arrays.open(tmp_path / "one.npy").read(""), wanted)
        target = io.BytesIO()
        Arrays.open(tmp_path / "a.npz").copy_to(target, name, np.arange(3))
        target.seek(0)
        with np.load(target) as again:
            assert again.files == list(arrays)
            assert again[name].tolist() == [0, 1, 2]
