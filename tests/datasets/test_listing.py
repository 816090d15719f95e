"""One listing of folders: the files of torchvision's ImageFolder in its order, and a word on every other file."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastpure.data import load_dataset, read_image_folder
from fastpure.data.listing import list_classes, walk
from fastpure.errors import DataError
from fastpure.purify.files.inputs import find_sources, remarks

NAMES = [
    "b/2.png",
    "b/10.png",
    "b/sub/1.PNG",
    "b/sub-a/1.jpg",
    "b/sub/deep/0.Jpeg",
    "a/Z.webp",
    "a/a.tif",
    "a/.hidden.bmp",
    "a/.png",
    "a/é.pgm",
    "B/1.tiff",
    ".cache/x.ppm",
    "n1/1.png.jpg",
]
OTHERS = ["b/notes.txt", "b/sub/moving.gif", "a/phone.HEIC", "a/png", "readme.md", "beside.png"]


def tree(root: Path) -> Path:
    for name in (*NAMES, *OTHERS):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (root / "linked").symlink_to(root / "b" / "sub", target_is_directory=True)
    (root / "a" / "again").symlink_to(root / "n1", target_is_directory=True)
    (root / "a" / "broken.png").symlink_to(root / "nowhere")
    return root


def documented(root: Path) -> tuple[list[tuple[str, int]], list[str]]:
    """What torchvision documents of ImageFolder: classes are the sorted folders; a class has all files below it with
    one of the extensions (in any case), by sorted folders, then by sorted names; links are followed."""
    extensions = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
    classes = sorted(name for name in os.listdir(root) if os.path.isdir(os.path.join(root, name)))
    files = [
        (os.path.join(folder, name), label)
        for label, kind in enumerate(classes)
        for folder, _, names in sorted(os.walk(os.path.join(root, kind), followlinks=True))
        for name in sorted(names)
        if name.lower().endswith(extensions)
    ]
    return files, classes


def test_the_listing_is_the_documented_one(tmp_path: Path) -> None:
    root = tree(tmp_path)
    found, (files, classes) = list_classes(root), documented(root)
    assert [(str(path), label) for path, label in found.files] == files
    assert list(found.classes) == classes == [".cache", "B", "a", "b", "linked", "n1"]
    assert len(files) == len(NAMES) + 1 + 1 + 2, "one through a/again, the broken link, two through linked"


TORCHVISION = """
import re, sys, torch
library = torch.library.Library("torchvision", "DEF")
for _ in range(20):  # its operators are missing where it was built for another torch; their names are enough here
    try:
        from torchvision.datasets import ImageFolder
        break
    except RuntimeError as error:
        library.define(re.search(r"torchvision::(\\w+)", str(error))[1] + "() -> ()")
        for name in [name for name in sys.modules if name.startswith("torchvision")]:
            del sys.modules[name]
folder = ImageFolder(sys.argv[1])
print(repr((folder.samples, folder.classes)))
"""


@pytest.mark.skipif(find_spec("torchvision") is None, reason="torchvision is not installed")
def test_the_listing_is_torchvision_s_own(tmp_path: Path) -> None:
    root = tree(tmp_path)
    answer = subprocess.run(
        [sys.executable, "-c", TORCHVISION, str(root)], capture_output=True, text=True, check=True
    )
    samples, classes = eval(answer.stdout)
    found = list_classes(root)
    assert [(str(path), label) for path, label in found.files] == samples
    assert list(found.classes) == classes


def test_other_files_are_counted_and_said(tmp_path: Path) -> None:
    note = list_classes(tree(tmp_path)).note
    # linked shows b/sub's gif a second time
    assert note.startswith("not read: 7 files (2 .gif, "), note
    assert "of which 3 pictures of kinds that are not decoded" in note
    assert "1 of them pictures in no class folder" in note
    (tmp_path / "only" / "a").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "only" / "a" / "0.png")
    assert list_classes(tmp_path / "only").note == ""


def test_classes_without_pictures_are_refused(tmp_path: Path) -> None:
    """As torchvision does: their label would count, and never occur."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "0.gif").write_bytes(b"")
    with pytest.raises(
        DataError, match=r"no image files .* in the class folder b\. What is there: 1 file \(1 \.gif\)"
    ):
        load_dataset("folder", path=tmp_path)


@pytest.mark.parametrize("target", ["..", ".", "../.."])
def test_loops_of_links_end(tmp_path: Path, target: str) -> None:
    folder = tmp_path / "a" / "sub"
    folder.mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(folder / "0.png")
    (folder / "loop").symlink_to(target, target_is_directory=True)
    for read in (lambda: load_dataset("folder", path=tmp_path), lambda: find_sources([tmp_path])):
        with pytest.raises(DataError, match=r"links back to a folder around it.*Remove the link"):
            read()


def test_a_link_to_itself_and_a_very_deep_folder_end(tmp_path: Path) -> None:
    (tmp_path / "self.png").symlink_to(tmp_path / "self.png")
    deep = tmp_path
    try:
        for _ in range(1200):
            (deep / "d").mkdir()
            deep = deep / "d"
    except OSError:  # the longest path of this file system
        pass
    try:
        assert [path.name for path in walk(tmp_path)] == ["self.png"]
        with pytest.raises(DataError, match=r"self\.png: cannot be opened"):
            find_sources([tmp_path])[0].digest()
    finally:
        while deep != tmp_path:  # pytest's own clean-up would recurse
            deep.rmdir()
            deep = deep.parent


@pytest.mark.parametrize("name", ["folder", "imagenet", "arrays", "cifar10"])
def test_folders_that_may_not_be_listed_are_named(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for file in ("images", "labels"):
        np.save(
            tmp_path / f"{file}.npy", np.zeros((1, 4, 4), np.uint8) if file == "images" else np.zeros(1, int)
        )

    def denied(folder: object) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(DataError, match="cannot be listed: Permission denied"):
        load_dataset(name, path=tmp_path)


def test_splits_are_told_from_classes(tmp_path: Path) -> None:
    """ImageNet's own layout: test holds files without labels, val is the test set; and what stands beside is said."""
    for name in ("train/a/0.png", "val/a/0.png", "val/b/1.png", "test/0.png", "devkit/synsets.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name, "PNG")
    with pytest.warns(UserWarning, match=r"val: not read beside it: devkit"):
        data = read_image_folder(tmp_path)
    assert data.classes == ("a", "b")
    assert data.describe().endswith("(not read beside it: devkit)")


def test_purify_reads_the_same_files_and_says_what_is_left(tmp_path: Path) -> None:
    root = tmp_path / "in"
    for name in ("a.png", "sub/b.png", "sub/c.gif", "d.txt", ".hidden/e.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "f.png").write_bytes(b"")
    (root / "link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert [str(source.name) for source in find_sources([root])] == ["a.png", "link/f.png", "sub/b.png"]
    assert remarks([root], find_sources([root])) == [
        "not read: 3 files (1 .gif, 1 .png, 1 .txt), of which 1 pictures of kinds that are not decoded"
    ]
