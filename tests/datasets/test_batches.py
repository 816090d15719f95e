"""What people have instead of a Dataset becomes one, or is refused with the remedy before anything is attacked."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
)

import fastpure as fp
from fastpure.data import as_dataset
from fastpure.errors import DataError, ResumeError
from tests.datasets.test_sources import Items
from tests.evaluate.toys import FRESH, attack, dataset, defense

TOY = dataset(10)
X, Y = TOY.images, TOY.labels


class Named(TensorDataset):
    classes = ("dark", "bright")


def loader(**options):
    return DataLoader(Named(X, Y), batch_size=4, **options)


def evaluated(source, out=None):
    return fp.evaluate(defense(), source, attack(), FRESH, out, batch_size=4, progress=False)


def test_a_dataset_is_itself():
    assert as_dataset(TOY) is TOY


@pytest.mark.parametrize(
    "source",
    [
        loader(),
        [(X[:3], Y[:3]), (X[3:], Y[3:])],
        ((X[i : i + 1], Y[i : i + 1].to(torch.int32)) for i in range(10)),
        (X, Y),
        (X.numpy(), Y.numpy()),
        Named(X, Y),
    ],
    ids=["loader", "list", "generator", "tensors", "arrays", "map-style"],
)
def test_the_same_images_are_the_same_data_set(source):
    found = as_dataset(source)
    assert found.images.equal(X)
    assert found.labels.equal(Y)
    assert found.sample_ids.tolist() == list(range(10))
    assert len(found.classes) == 2


def test_class_names_and_the_name_are_the_data_sets():
    found = as_dataset(loader())
    assert found.classes == ("dark", "bright")
    assert found.name == "Named"


def test_bytes_stay_bytes():
    pixels = (255 * X).round().to(torch.uint8)
    found = as_dataset(DataLoader(TensorDataset(pixels, Y), batch_size=3))
    assert found.pixels.dtype == torch.uint8
    assert found.images.equal(pixels.float() / 255)


def test_a_subset_keeps_the_positions_that_name_its_noise():
    rows = [7, 2, 5, 0]
    found = as_dataset(DataLoader(Subset(Subset(Named(X, Y), range(1, 9)), [6, 1, 4]), batch_size=2))
    assert found.sample_ids.tolist() == [7, 2, 5]
    assert found.images.equal(X[[7, 2, 5]])
    assert as_dataset(Subset(Named(X, Y), rows)).sample_ids.tolist() == rows
    twice = as_dataset(DataLoader(Subset(Named(X, Y), [3, 3])))
    assert twice.sample_ids.tolist() == [0, 1]


def test_ids_of_batches_give_one_order_to_a_loader_that_shuffles():
    ids = 100 + 3 * torch.arange(10)
    sources = [
        DataLoader(TensorDataset(X, Y, ids), batch_size=3, shuffle=shuffle) for shuffle in (True, False)
    ]
    one, other = map(as_dataset, sources)
    assert one.checksum == other.checksum
    assert one.sample_ids.equal(ids)
    assert one.images.equal(X)


def test_an_evaluation_of_a_loader_is_that_of_its_images_and_continues(tmp_path):
    out = tmp_path / "run.sqlite"
    found = evaluated(loader(), out)
    plain = evaluated(as_dataset((X, Y)))
    assert found.robust == plain.robust
    again = evaluated(loader(), out)  # the same content: the same run
    assert again.robust == found.robust
    with pytest.raises(ResumeError, match=r"data\.checksum"):
        evaluated((1 - X, Y), out)


def test_plan_takes_a_loader():
    assert fp.plan(defense(), loader(), attack(), FRESH).n_images == 10


class Stream(IterableDataset):
    def __iter__(self):
        yield from zip(X, Y.tolist(), strict=True)


def test_an_iterable_data_set_is_read_as_it_comes():
    assert as_dataset(DataLoader(Stream(), batch_size=4)).images.equal(X)


REFUSED = {
    "shuffled": (loader(shuffle=True), ValueError, "shuffle=False"),
    "drop_last": (loader(drop_last=True), ValueError, "leaves out 2 of 10"),
    "path": ("images/", TypeError, "str"),
    "images alone": (X, TypeError, "Tensor"),
    "nothing": ([], ValueError, "at least one image"),
    "dict": ([{"image": X, "label": Y}], ValueError, r"\(b\['image'\], b\['label'\]\)"),
    "normalised": ([(X * 4 - 2, Y)], ValueError, r"batch 0` must be in \[0, 1\].*mean="),
    "second batch": ([(X, Y), (X + 1, Y)], ValueError, "batch 1"),
    "0..255": ([(X * 255, Y)], ValueError, "Divide by 255"),
    "nan": ([(torch.full_like(X, torch.nan), Y)], ValueError, r"in \[0, 1\]"),
    "channels last": ([(torch.rand(2, 8, 8, 3), Y[:2])], ValueError, "permute"),
    "flat": ([(X.flatten(1), Y)], ValueError, r"\[B, C, H, W\]"),
    "single item": ([(X[0], 1)], ValueError, r"\[B, C, H, W\]"),
    "int64 images": ([((255 * X).long(), Y)], ValueError, "uint8 or floating"),
    "one-hot": ([(X, torch.eye(2)[Y])], ValueError, "argmax"),
    "integer one-hot": ([(X, torch.eye(2, dtype=torch.int64)[Y])], ValueError, "argmax"),
    "float labels": ([(X, Y.float())], ValueError, "integers"),
    "fewer labels": ([(X, Y[:9])], ValueError, "10 integers"),
    "negative": ([(X, Y - 1)], ValueError, "classes 0, 1"),
    "sizes": ([(X, Y), (torch.rand(2, 1, 8, 8), Y[:2])], ValueError, "like the first batch"),
    "ids in one batch": ([(X, Y, torch.arange(10)), (X, Y)], ValueError, "ids"),
    "ids twice": ([(X, Y, torch.zeros(10, dtype=torch.int64))], ValueError, "distinct"),
    "three arrays of images": ([(X, X)], ValueError, "10 integers"),
}


@pytest.mark.parametrize(("source", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals(source, kind, words):
    with pytest.raises(kind, match=words) as caught:
        as_dataset(source)
    assert "`" in str(caught.value)


def test_more_labels_than_the_defence_has_classes():
    with pytest.raises(ValueError, match="at least 3 classes"):
        evaluated((X, torch.full_like(Y, 2)))


def test_arrays_of_numpy_that_cannot_be_written_to():
    x = X.numpy().copy()
    x.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_dataset((x, np.asarray(Y))).images.equal(X)


@pytest.mark.parametrize(
    "source", [Named(X, Y), Subset(Named(X, Y), [3, 5, 7, 9, 1])], ids=["whole", "subset"]
)
def test_batches_that_a_sampler_put_together(source):
    """torch shows sampler and drop_last of a loader without batch sampler beside one that has one."""

    def of(batches):
        return as_dataset(DataLoader(source, batch_sampler=batches))

    class Backwards(BatchSampler):
        def __iter__(self):
            yield from reversed(list(super().__iter__()))

    ordered = BatchSampler(SequentialSampler(source), 4, False)
    assert of(ordered).checksum == as_dataset(DataLoader(source, batch_size=4)).checksum
    with pytest.raises(ValueError, match="RandomSampler"):
        of(BatchSampler(RandomSampler(source), 4, False))
    with pytest.raises(ValueError, match="Backwards"):
        of(Backwards(SequentialSampler(source), 4, False))
    with pytest.raises(ValueError, match=f"leaves out {len(source) % 4} of {len(source)}"):
        of(BatchSampler(SequentialSampler(source), 4, True))
    with pytest.raises(ValueError, match="list"):
        of([[4, 2], [0]])


def test_ids_of_items_are_those_of_their_batches():
    ids = 100 - 3 * torch.arange(10)
    source = Subset(TensorDataset(X, Y, ids), [8, 2, 5])
    found = as_dataset(source)
    assert found.sample_ids.tolist() == [76, 85, 94]
    assert found.images.equal(X[[8, 5, 2]])
    assert found.checksum == as_dataset(DataLoader(source, batch_size=2)).checksum
    with pytest.raises(DataError, match="item 0 has id 'dark', expected an integer"):
        as_dataset(Items([(X[0], 0, "dark")]))
    with pytest.raises(DataError, match="distinct"):
        as_dataset(TensorDataset(X, Y, Y))
    with pytest.raises(DataError, match=r"item 1 is tuple, expected \(image, label, id\)"):
        as_dataset(Items([(X[0], 0, 7), (X[1], 1)]))


class Folders(Items):
    """What torchvision's ImageFolder has besides its items."""

    def __init__(self, items: list, target_transform=None) -> None:
        super().__init__(items)
        self.root, self.samples, self.classes = "photos", [("cat/0.png", 0)], ["cat", "dog"]
        self.class_to_idx, self.target_transform = {"cat": 0, "dog": 1}, target_transform


@pytest.mark.parametrize("whole", [False, True])
def test_folders_of_some_classes_of_a_network_are_refused_however_they_come(whole):
    """Labels of an ImageFolder are positions among its folders, which a network of more classes does not use."""
    items = [(torch.rand(1, 4, 4), label) for label in (0, 1, 1)]

    def given(source):
        return as_dataset(DataLoader(source, batch_size=2) if whole else source)

    found = given(Folders(items))
    assert found.named_by == "photos"
    found.fits(2)
    with pytest.raises(ValueError, match="the 2 classes that photos has folders of, got 1000 classes"):
        found.fits(1000)
    assert given(Subset(Folders(items), [0, 2])).named_by == "photos"
    given(Folders(items, target_transform=lambda label: label)).fits(1000)  # which may know better
    given(Items(items)).fits(1000)
    assert fp.data.from_torch(Folders(items)).named_by == "photos"
    assert fp.data.from_torch(Folders(items), classes=["cat", "dog", "emu"]).named_by == ""
