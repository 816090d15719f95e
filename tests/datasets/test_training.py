"""Images to train on from folders and arrays: never the ones that are scored, and never more than memory holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fastpure as fp
from fastpure.data import load_dataset, mapped, read_image_folder, train_and_test
from fastpure.data.training import held_out
from fastpure.errors import DataError
from fastpure.progress import Progress


def folder(root: Path, counts: dict[str, int], size: tuple[int, int] = (12, 10), seed: int = 0) -> Path:
    """Pictures of noise in class folders."""
    random = np.random.default_rng(seed)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = random.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{i}.png")
    return root


def test_own_splits_are_taken(tmp_path):
    folder(tmp_path / "train", {"cat": 4, "dog": 3})
    folder(tmp_path / "val", {"cat": 1, "dog": 2}, seed=1)
    train, test = train_and_test("folder", tmp_path)
    assert (len(train), len(test), train.classes) == (7, 3, ("cat", "dog"))
    assert test.classes == train.classes
    assert (train.split, test.split) == ("train", "test")


def test_test_images_are_labelled_by_the_classes_of_training(tmp_path):
    folder(tmp_path / "train", {"cat": 2, "dog": 2})
    folder(tmp_path / "test", {"dog": 2}, seed=1)
    assert train_and_test("folder", tmp_path)[1].labels.tolist() == [1, 1]
    folder(tmp_path / "test", {"emu": 1}, seed=2)
    with pytest.raises(DataError, match="emu"):
        train_and_test("folder", tmp_path)


@pytest.mark.parametrize("inside", ["", "train"])
def test_without_test_images_a_tenth_is_held_out(tmp_path, inside):
    folder(tmp_path / inside, {"cat": 15, "dog": 10})
    train, test = train_and_test("folder", tmp_path)
    assert (len(train), len(test)) == (23, 2)
    ids = set(train.sample_ids.tolist()), set(test.sample_ids.tolist())
    assert not ids[0] & ids[1]
    assert ids[0] | ids[1] == set(range(25))
    assert "held out" in train.describe()
    again = train_and_test("folder", tmp_path)
    assert [one.checksum for one in again] == [train.checksum, test.checksum]
    every = read_image_folder(tmp_path / inside)
    assert every.select(test.sample_ids).pixels.equal(test.pixels)
    assert every.select(train.sample_ids).labels.equal(train.labels)


def test_pictures_become_squares(tmp_path):
    folder(tmp_path, {"a": 2, "b": 2}, size=(20, 30))
    assert train_and_test("folder", tmp_path, size=8)[0].image_shape == (3, 8, 8)
    assert train_and_test("imagenet", tmp_path, size=14)[0].image_shape == (3, 14, 14)
    assert train_and_test("imagenet", tmp_path)[0].image_shape == (3, 224, 224)


def test_large_sets_are_mapped_and_found_again(tmp_path, monkeypatch):
    root = folder(tmp_path / "pictures", {"a": 12, "b": 11})
    plain = train_and_test("folder", root)
    monkeypatch.setattr(mapped, "LARGE", 100)
    keep = tmp_path / "keep"
    found = train_and_test("folder", root, keep=keep)
    assert [one.checksum for one in found] == [one.checksum for one in plain]
    assert len(list(keep.iterdir())) == 2

    def forbidden(*_):
        raise AssertionError("decoded again")

    filled = mapped._fill
    monkeypatch.setattr(mapped, "_fill", forbidden)
    again = train_and_test("folder", root, keep=keep)
    assert again[0].checksum == plain[0].checksum
    again[0].pixels[0] = 0  # of the tensor, not of the file
    assert train_and_test("folder", root, keep=keep)[0].checksum == plain[0].checksum
    monkeypatch.setattr(mapped, "_fill", filled)
    Image.fromarray(np.zeros((10, 12, 3), np.uint8)).save(root / "a" / "0.png")
    changed = train_and_test("folder", root, keep=keep)
    assert {one.checksum for one in changed} != {one.checksum for one in plain}


def test_nothing_is_left_of_a_set_that_cannot_be_decoded(tmp_path, monkeypatch):
    root = folder(tmp_path / "pictures", {"a": 5, "b": 5})
    (root / "b" / "2.png").write_bytes(b"no picture")
    monkeypatch.setattr(mapped, "LARGE", 100)
    with pytest.raises(DataError, match="cannot be decoded"):
        train_and_test("folder", root, keep=tmp_path / "keep")
    assert not list((tmp_path / "keep").iterdir())


def test_a_mapped_set_takes_no_memory_for_its_pixels(tmp_path, monkeypatch):
    root = folder(tmp_path / "pictures", {"a": 3, "b": 3})
    monkeypatch.setattr(mapped, "LARGE", 100)
    train, _ = train_and_test("folder", root, keep=tmp_path / "keep")
    file = next(p for p in (tmp_path / "keep").iterdir() if np.load(p, mmap_mode="r").shape[0] == len(train))
    with Path("/proc/self/maps").open() as maps:
        assert any(str(file) in line for line in maps)
    assert train.batch(torch.tensor([1])).shape == (1, 3, 10, 12)


def arrays(path: Path, count: int, top: int = 3, seed: int = 0) -> None:
    random = np.random.default_rng(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.concatenate([np.arange(top + 1), random.integers(0, top + 1, count - top - 1)])
    np.savez(path, images=random.integers(0, 256, (count, 1, 6, 6), dtype=np.uint8), labels=labels)


def test_arrays_in_one_file_and_in_two(tmp_path):
    arrays(tmp_path / "one.npz", 30)
    train, test = train_and_test("arrays", tmp_path / "one.npz")
    assert (len(train), len(test)) == (27, 3)
    assert not set(train.sample_ids.tolist()) & set(test.sample_ids.tolist())
    arrays(tmp_path / "two" / "train.npz", 20)
    arrays(tmp_path / "two" / "test.npz", 10, top=2, seed=1)
    train, test = train_and_test("arrays", tmp_path / "two")
    assert (len(train), len(test)) == (20, 10)
    assert train.classes == test.classes == ("0", "1", "2", "3")


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("arrays", {"size": 8}, "`size` must not be given for data set 'arrays'"),
        ("folder", {"key": "x"}, "`key` must not be given for data set 'folder'"),
        ("folder", {"size": 2}, "size"),
        ("digits", {}, "one of 'folder'"),
    ],
)
def test_mistakes(tmp_path, name, options, words):
    with pytest.raises(ValueError, match=words):
        train_and_test(name, tmp_path, **options)
    with pytest.raises(ValueError, match="--data-path"):
        train_and_test("folder", None)


def test_the_held_out_tenth():
    train, test = held_out(25)
    assert sorted([*train, *test]) == list(range(25))
    assert len(test) == 2
    assert len(held_out(2)[0]) == len(held_out(2)[1]) == 1
    with pytest.raises(ValueError, match="number of images"):
        held_out(1)


def test_reading_many_pictures_is_told_like_everything_else(tmp_path, monkeypatch, capsys):
    """A log has no bars in it; and a terminal's bar is that of `Progress`."""
    monkeypatch.setattr(mapped, "_MANY", 2)
    read_image_folder(folder(tmp_path, {"a": 3}))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(mapped, "Progress", partial(Progress, pause=0.0))
    read_image_folder(tmp_path)
    assert "3/3 pictures" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["folder", "imagenet"])
def test_what_is_evaluated_is_what_training_held_out(tmp_path, name):
    folder(tmp_path / "train", {"cat": 15, "dog": 10})
    held = train_and_test(name, tmp_path, size=8)
    for split, wanted in zip(("train", "test"), held, strict=True):
        found = load_dataset(name, split, path=tmp_path, size=8)
        assert found.checksum == wanted.checksum
        assert "held out" in found.note
    assert (
        load_dataset(name, path=tmp_path, size=8, n=1, data_seed=2).checksum == held[1].subset(1, 2).checksum
    )
    with pytest.raises(DataError, match="holds train, but no folder test or val"):
        read_image_folder(tmp_path)


def test_what_is_evaluated_is_labelled_as_in_training(tmp_path):
    folder(tmp_path / "train", {"cat": 2, "dog": 2})
    folder(tmp_path / "val", {"dog": 3}, seed=1)
    found = load_dataset("folder", path=tmp_path)
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), [1, 1, 1])
    assert found.checksum == train_and_test("folder", tmp_path)[1].checksum
    assert not found.note
    folder(tmp_path / "val", {"emu": 1})
    with pytest.raises(DataError, match=r"classes that .*train has not: emu"):
        load_dataset("folder", path=tmp_path)


@pytest.mark.parametrize("inside", ["", "val"])
def test_pictures_that_training_may_see_are_said(tmp_path, inside):
    folder(tmp_path / inside, {"cat": 2, "dog": 2})
    found = load_dataset("folder", path=tmp_path)
    assert len(found) == 4
    assert "also those `train` trains on" in found.note
    if inside:
        with pytest.raises(DataError, match="holds val, but no folder train"):
            load_dataset("folder", "train", path=tmp_path)


def test_folders_of_some_classes_of_a_network_are_refused_until_all_are_named(tmp_path):
    class Three(torch.nn.Module):
        def forward(self, x):
            return x.flatten(1)[:, :3]

    def evaluated(dataset):
        return fp.evaluate(Three().eval(), dataset, None, fp.protocols.fresh(1), progress=False)

    folder(tmp_path / "train", {"cat": 2, "dog": 2})
    folder(tmp_path / "val", {"dog": 3}, seed=1)
    for dataset in (load_dataset("folder", path=tmp_path), train_and_test("folder", tmp_path)[1]):
        with pytest.raises(ValueError, match="`defense` must be a classifier of the 2 classes"):
            evaluated(dataset)
    assert evaluated(read_image_folder(tmp_path, classes=["cat", "dog", "emu"])).n_images == 3
    (tmp_path / "train" / "emu").mkdir()
    assert evaluated(load_dataset("folder", path=tmp_path)).n_images == 3
