"""Arrays, folders of images and torch Datasets: the same pixels, labels and ids, or the reason why not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastpure.data import Dataset, as_dataset, load_dataset, read_arrays, read_image_folder
from fastpure.errors import DataError

RANDOM = np.random.RandomState(0)
PIXELS = RANDOM.randint(0, 256, (4, 3, 5, 6), dtype=np.uint8)
LABELS = np.array([2, 0, 1, 1], np.int32)


@pytest.mark.parametrize("order", ["NCHW", "NHWC"])
@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_arrays_in_either_layout_and_container(tmp_path: Path, order: str, kind: str) -> None:
    images = PIXELS if order == "NCHW" else PIXELS.transpose(0, 2, 3, 1)
    if kind == "npz":
        path = tmp_path / "set.npz"
        np.savez(path, x=images, y=LABELS, ids=np.array([9, 4, 7, 5]), class_names=np.array(["a", "b", "c"]))
    else:
        path = tmp_path / "set"
        path.mkdir()
        for name, array in (("images", images), ("labels", LABELS), ("ids", np.array([9, 4, 7, 5]))):
            np.save(path / f"{name}.npy", array)
    data = load_dataset("arrays", path=path)
    assert torch.equal(data.pixels, torch.from_numpy(PIXELS))
    assert data.labels.tolist() == LABELS.tolist()
    assert data.sample_ids.tolist() == [9, 4, 7, 5]
    assert data.classes == (("a", "b", "c") if kind == "npz" else ("0", "1", "2"))


def test_float_and_grey_arrays(tmp_path: Path) -> None:
    grey = PIXELS[:, 0].astype(np.float64) / 255
    np.savez(tmp_path / "set.npz", images=grey, labels=LABELS)
    data = read_arrays(tmp_path / "set.npz")
    assert data.image_shape == (1, 5, 6)
    assert data.pixels.dtype == torch.float32
    torch.testing.assert_close(data.images[:, 0], torch.from_numpy(grey).float())
    assert data.sample_ids.tolist() == [0, 1, 2, 3]


def test_a_layout_that_cannot_be_told_must_be_given(tmp_path: Path) -> None:
    path = tmp_path / "set.npz"
    np.savez(path, images=np.zeros((4, 3, 5, 3), np.uint8), labels=LABELS)
    with pytest.raises(DataError, match=r"`layout` must be given \('NCHW' or 'NHWC'\)"):
        read_arrays(path)
    assert read_arrays(path, layout="NHWC").image_shape == (3, 3, 5)
    assert read_arrays(path, layout="NCHW").image_shape == (3, 5, 3)
    with pytest.raises(ValueError, match="`layout` must be one of"):
        read_arrays(path, layout="CHWN")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": None}, "lacks labels"),
        ({"images": None}, r"lacks images \(images or x or data or pixels\); it has labels"),
        ({"labels": LABELS[:3]}, r"labels must be 4 integers, one per image, found int32 \(3,\)"),
        ({"labels": LABELS / 2}, "labels must be 4 integers"),
        ({"labels": -LABELS}, "`labels` must be in"),
        ({"ids": np.array([1, 1, 2, 3])}, "`sample_ids` must be distinct"),
        ({"images": PIXELS.astype(np.int16)}, "uint8 or floating in .* found int16"),
        ({"images": PIXELS.astype(np.float32)}, r"`pixels` must be in 0\.\.1"),
        ({"images": PIXELS[0, 0]}, r"images must be \[N, C, H, W\]"),
        ({"images": np.array([None] * 4)}, "images: holds object .*Python objects are never run"),
        ({"classes": np.array(["a"])}, "`labels` must be in"),
    ],
)
def test_arrays_with_wrong_contents_are_refused(
    tmp_path: Path, change: dict[str, np.ndarray | None], reason: str
) -> None:
    arrays = {"images": PIXELS, "labels": LABELS, **change}
    np.savez(tmp_path / "set.npz", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(DataError, match=reason):
        load_dataset("arrays", path=tmp_path / "set.npz")


def test_damaged_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", images=PIXELS, labels=LABELS)
    content = (tmp_path / "set.npz").read_bytes()
    (tmp_path / "set.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        read_arrays(tmp_path / "set.npz")
    with pytest.raises(DataError, match="no such file"):
        read_arrays(tmp_path / "absent.npz")
    with pytest.raises(DataError, match=r"images\.npy: no such file"):
        read_arrays(tmp_path)
    np.save(tmp_path / "labels.npy", LABELS)
    (tmp_path / "images.npy").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"cannot be read as \.npy"):
        read_arrays(tmp_path)
    with pytest.raises(ValueError, match="`path` must be given for data set 'arrays'"):
        load_dataset("arrays")


def photographs(root: Path, sizes: dict[str, tuple[int, int]]) -> None:
    for name, size in sizes.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.RandomState(abs(hash(size)) % 1000).randint(
            0, 256, (*size[::-1], 3), dtype=np.uint8
        )
        Image.fromarray(noise).save(file)


def test_image_folder_ids_labels_and_subset(tmp_path: Path) -> None:
    names = {f"{label}/{i}.png": (6, 5) for label in ("cat", "ant", "bee") for i in range(7)}
    photographs(tmp_path / "val", names)
    (tmp_path / "val" / "ant" / "notes.txt").write_text("no image")
    with pytest.warns(UserWarning, match=r"val: not read: 1 file \(1 \.txt\)"):
        data = load_dataset("folder", path=tmp_path)
    assert data.classes == ("ant", "bee", "cat")
    assert data.labels.tolist() == [0] * 7 + [1] * 7 + [2] * 7
    assert data.sample_ids.tolist() == list(range(21))
    with Image.open(tmp_path / "val" / "bee" / "3.png") as image:
        assert np.array_equal(data.pixels[10].permute(1, 2, 0).numpy(), np.asarray(image))
    with pytest.warns(UserWarning, match="not read"):
        early, late = load_dataset("folder", path=tmp_path, n=5, data_seed=3), data.subset(5, data_seed=3)
    assert "not read: 1 file (1 .txt)" in early.describe()
    assert early.checksum == late.checksum, "the same images, though the others were never decoded"


def test_subset_decodes_no_other_image(tmp_path: Path) -> None:
    photographs(tmp_path, {f"a/{i}.png": (4, 4) for i in range(6)})
    kept = np.random.RandomState(0).choice(6, 2, replace=False)
    for i in set(range(6)) - set(kept.tolist()):
        (tmp_path / "a" / f"{i}.png").write_bytes(b"damaged")
    assert read_image_folder(tmp_path, n=2).sample_ids.tolist() == kept.tolist()
    with pytest.raises(DataError, match=r"\.png: cannot be decoded as an image"):
        read_image_folder(tmp_path)


@pytest.mark.parametrize("size", [(300, 400), (500, 301), (256, 256), (224, 600), (333, 257)])
def test_resize_and_crop_are_torchvision_s(tmp_path: Path, size: tuple[int, int]) -> None:
    """Size and position of the crop by torchvision's published rule, pixels by PIL's filter."""
    photographs(tmp_path, {"a/0.png": size})
    data = read_image_folder(tmp_path, resize=256, crop=224)
    assert data.image_shape == (3, 224, 224)
    with Image.open(tmp_path / "a" / "0.png") as image:
        short, long = min(size), max(size)
        scaled = (256, int(256 * long / short)) if size[0] == short else (int(256 * long / short), 256)
        resized = np.asarray(image.resize(scaled, Image.Resampling.BILINEAR))
    top, left = round((scaled[1] - 224) / 2.0), round((scaled[0] - 224) / 2.0)
    expected = resized[top : top + 224, left : left + 224].transpose(2, 0, 1)
    assert np.array_equal(data.pixels[0].numpy(), expected)


def test_image_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; expected one subfolder per class"):
        load_dataset("imagenet", path=tmp_path / "absent")
    with pytest.raises(DataError, match="holds no subfolders"):
        load_dataset("imagenet", path=tmp_path)
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no image files"):
        load_dataset("imagenet", path=tmp_path)
    photographs(tmp_path, {"a/0.png": (8, 8), "a/1.png": (9, 8)})
    with pytest.raises(DataError, match=r"1\.png: 3x8x9, the first one is 3x8x8; give `resize` and `crop`"):
        load_dataset("folder", path=tmp_path)
    with pytest.raises(DataError, match="8x8 is too small to crop 224x224"):
        read_image_folder(tmp_path, crop=224)
    with pytest.raises(DataError, match="`classes` must be a list of all class folders, got none for a"):
        read_image_folder(tmp_path, classes=["b", "c"])
    with pytest.raises(ValueError, match="`n` must be an integer in"):
        read_image_folder(tmp_path, n=3)
    with pytest.raises(ValueError, match="`path` must be given for data set 'imagenet'"):
        load_dataset("imagenet")
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'test'"):
        load_dataset("imagenet", "val", path=tmp_path)


def test_a_part_of_imagenet_is_announced_and_can_be_labelled(tmp_path: Path) -> None:
    photographs(tmp_path, {"n01440764/0.png": (4, 4), "n01443537/0.png": (4, 4)})
    with pytest.warns(UserWarning, match="2 of ImageNet's 1000 classes"):
        read_image_folder(tmp_path)
    every = [f"n{i:08}" for i in (1440764, 1443000, 1443537)]
    assert read_image_folder(tmp_path, classes=every).labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("folders", "moved"),
    [((0, 1, 2, 10), "folder 10 is label 2"), ((1, 2, 3), "folder 1 is label 0"), ((0, 1, 2), None)],
)
def test_numbered_folders_whose_labels_are_other_numbers_are_announced(
    tmp_path: Path, folders: tuple[int, ...], moved: str | None, recwarn: pytest.WarningsRecorder
) -> None:
    """torchvision sorts as text: a folder 10 comes before 2, and the first folder is label 0 whatever it is called."""
    photographs(tmp_path, {f"{number}/0.png": (4, 4) for number in folders})
    dataset = read_image_folder(tmp_path)
    assert dataset.classes == tuple(sorted(map(str, folders)))
    assert [moved in str(one.message) for one in recwarn.list] == ([True] if moved else [])
    numbers = [str(number) for number in range(11)]
    assert sorted(read_image_folder(tmp_path, classes=numbers).labels.tolist()) == list(folders)
    assert len(recwarn.list) == (moved is not None)


def test_a_thousand_classes_by_other_names_are_announced(tmp_path: Path) -> None:
    """ImageNet's labels number WordNet's ids: the alphabet of its words, or of its numbers, is another order."""
    photographs(tmp_path, {f"class {i}/0.png": (1, 1) for i in range(1000)})
    with pytest.warns(UserWarning, match="1000 class folders that are not called by WordNet's ids"):
        read_image_folder(tmp_path)


def test_bytes_of_other_levels_are_announced(tmp_path: Path) -> None:
    """Nothing in a file says which byte is white; one that is nearly black throughout is probably read wrongly."""
    levels = (PIXELS % 17).astype(np.uint8)
    np.savez(tmp_path / "levels.npz", images=levels, labels=LABELS)
    with pytest.warns(UserWarning, match="no byte exceeds 16, though 255 is read as white"):
        dataset = read_arrays(tmp_path / "levels.npz")
    assert "no byte exceeds 16" in dataset.note
    with pytest.warns(UserWarning, match="`dataset`: no byte exceeds 1,"):
        as_dataset((levels // 16, LABELS))
    np.savez(tmp_path / "bytes.npz", images=PIXELS, labels=LABELS)
    assert read_arrays(tmp_path / "bytes.npz").note == ""


class Items(torch.utils.data.Dataset):
    """Whatever it is given."""

    def __init__(self, items: list) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int):  # type: ignore[no-untyped-def]
        return self.items[row]


def test_from_torch_takes_pil_images_and_tensors() -> None:
    colour = PIXELS.transpose(0, 2, 3, 1)
    pil = Items([(Image.fromarray(image), int(label)) for image, label in zip(colour, LABELS, strict=True)])
    data = Dataset.from_torch(pil, name="mine", rows=[2, 0])
    assert torch.equal(data.pixels, torch.from_numpy(PIXELS[[2, 0]]))
    assert data.sample_ids.tolist() == [2, 0]
    assert data.labels.tolist() == [1, 2]
    floats = Items(
        [(torch.from_numpy(image).double() / 255, torch.tensor(1)) for image in PIXELS]  # as ToTensor gives
    )
    torch.testing.assert_close(Dataset.from_torch(floats).images, torch.from_numpy(PIXELS) / 255)
    grey = Items([(PIXELS[0, 0], 0)])
    assert Dataset.from_torch(grey, classes=["only"]).image_shape == (1, 5, 6)


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ([PIXELS[0]], r"item 0 is ndarray, expected \(image, label\)"),
        ([(PIXELS[0, 0], "cat")], "item 0 has label 'cat', expected an integer"),
        ([(PIXELS[0, 0], 2.7)], r"item 0 has label 2\.7, expected an integer"),
        ([(PIXELS[0, 0], torch.tensor(0.5))], r"item 0 has label tensor\(0\.5.*expected an integer"),
        ([(PIXELS[0, 0], float("inf"))], "item 0 has label inf, expected an integer"),
        ([(PIXELS[0, 0] / 2, 0)], "item 0 is float64"),
        ([(torch.zeros(5, 6), 0)], r"item 0 is torch\.float32 \[5, 6\]"),
        (
            [(torch.zeros(3, 5, 6), 0), (torch.zeros(3, 6, 6), 0)],
            r"item 1 is torch\.float32 \[3, 6, 6\], item 0",
        ),
        ([(torch.full((3, 5, 6), 2.0), 0)], r"`pixels` must be in 0\.\.1"),
        ([(torch.zeros(3, 5, 6), -1)], "`labels` must be in"),
    ],
)
def test_from_torch_names_the_item(items: list, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        Dataset.from_torch(Items(items))


def test_from_torch_refuses_streams_and_wrong_rows() -> None:
    with pytest.raises(TypeError, match="`source` must be a torch Dataset with len and indexing"):
        Dataset.from_torch(iter([]))
    with pytest.raises(ValueError, match=r"`rows` must be positions in 0\.\.0"):
        Dataset.from_torch(Items([(PIXELS[0, 0], 0)]), rows=[1])


def test_the_literature_subset_of_a_part() -> None:
    """With a part of the images at hand, the chosen ids that are there, in the literature's order."""
    ids = np.arange(0, 10_000, 2)
    data = Dataset(
        torch.zeros(5000, 1, 1, 1, dtype=torch.uint8),
        torch.zeros(5000, dtype=torch.int64),
        torch.from_numpy(ids),
        ("a",),
        "half",
        "test",
    )
    chosen = data.subset(512, 0, population=10_000).sample_ids
    wanted = [i for i in np.random.RandomState(0).choice(10_000, 512, replace=False).tolist() if i % 2 == 0]
    assert chosen.tolist() == wanted
