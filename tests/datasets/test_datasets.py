"""Data sets: fixed splits, stable ids, the literature's subset, and files refused with the reason."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from fastpure.data import Dataset, load_dataset, read_jpeg_pack
from fastpure.errors import DataError

TRAIN_CHECKSUM = "699b0580f93d2b802db9d62af30d12093eab1288971bca2f1863fad4e8c86874"
TEST_CHECKSUM = "8afa65e1d712fb46933193b592c0654b1f8b9f59ba64332684ccde8438836c0f"


def test_digits_split_is_fixed_disjoint_and_complete() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    assert (len(train), len(test)) == (1297, 500)
    assert torch.equal(torch.cat([train.sample_ids, test.sample_ids]).sort().values, torch.arange(1797))
    assert train.checksum == TRAIN_CHECKSUM
    assert test.checksum == TEST_CHECKSUM


def test_digits_split_is_stratified() -> None:
    train, test = load_dataset("digits", "train"), load_dataset("digits", "test")
    share = torch.bincount(test.labels, minlength=10) / torch.bincount(
        torch.cat([train.labels, test.labels]), minlength=10
    )
    assert (share - 500 / 1797).abs().max() < 0.005


def test_digits_images_and_ids_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    source = load_digits()
    test = load_dataset("digits", "test")
    ids = test.sample_ids.numpy()
    np.testing.assert_array_equal(test.images[:, 0].numpy() * 16, source.images[ids].astype(np.float32))
    np.testing.assert_array_equal(test.labels.numpy(), source.target[ids])
    assert test.images.dtype == torch.float32
    assert test.images.min() == 0
    assert test.images.max() == 1


def test_subset_is_the_literature_choice_and_keeps_ids() -> None:
    test = load_dataset("digits", "test")
    chosen = test.subset(64, data_seed=3)
    rows = np.random.RandomState(3).choice(500, 64, replace=False)
    assert torch.equal(chosen.sample_ids, test.sample_ids[rows])
    assert torch.equal(chosen.images, test.images[rows])
    assert torch.equal(chosen.batch(torch.tensor([5])), test.batch(torch.tensor([int(rows[5])])))
    # first positions of the 512 out of 10,000 that DiffPure and COUP evaluate on (data seed 0)
    many = _plain(10_000).subset(512, data_seed=0)
    assert many.sample_ids[:5].tolist() == [9394, 898, 2398, 5906, 2343]


def test_checksum_sees_every_part() -> None:
    base = _plain(6)
    other = [
        _plain(6, pixel=1),
        _plain(6, label=1),
        base.select([1, 0, 2, 3, 4, 5]),
        Dataset(base.pixels, base.labels, base.sample_ids + 1, base.classes, "plain", "test"),
    ]
    assert len({base.checksum, *(dataset.checksum for dataset in other)}) == 5
    assert _plain(6).checksum == base.checksum


@pytest.mark.parametrize("n", [0, 501, -1])
def test_subset_refuses_impossible_sizes(n: int) -> None:
    with pytest.raises(ValueError, match="`n` must be an integer in"):
        load_dataset("digits", "test").subset(n)


def test_dataset_refuses_wrong_fields() -> None:
    good = _plain(4)
    parts = {
        "pixels": good.pixels,
        "labels": good.labels,
        "sample_ids": good.sample_ids,
        "classes": good.classes,
        "name": "plain",
        "split": "test",
    }
    for field, value, error in (
        ("pixels", torch.full((4, 1, 2, 2), 1.5), "`pixels` must be in 0..1"),
        ("pixels", torch.full((4, 1, 2, 2), float("nan")), "`pixels` must be in 0..1"),
        ("pixels", torch.zeros(4, 2, 2), "`pixels` must be of shape"),
        ("labels", torch.tensor([0, 1, 2, 0]), "`labels` must be in 0..1"),
        ("labels", torch.zeros(3, dtype=torch.int64), "`labels` must be of shape"),
        ("sample_ids", torch.tensor([0, 1, 1, 2]), "`sample_ids` must be distinct"),
        ("sample_ids", torch.tensor([0, 1, -1, 2]), "`sample_ids` must be distinct"),
    ):
        with pytest.raises(ValueError, match=error):
            Dataset(**{**parts, field: value})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="`labels` must be an int64 tensor"):
        Dataset(**{**parts, "labels": torch.zeros(4)})  # type: ignore[arg-type]


def test_unknown_names_are_listed() -> None:
    with pytest.raises(ValueError, match="`name` must be one of 'digits', 'cifar10', 'cifar100'"):
        load_dataset("mnist")
    with pytest.raises(ValueError, match="`split` must be one of 'train', 'test'"):
        load_dataset("digits", "validation")
    with pytest.raises(ValueError, match="`path` must be given"):
        load_dataset("cifar10", "test")
    with pytest.raises(ValueError, match="`path` must not be given"):
        load_dataset("digits", "test", path="x")


def test_jpeg_pack_round_trip(tmp_path: Path) -> None:
    path = _pack(tmp_path / "cifar10_test.npz")
    for where in (path, tmp_path):
        dataset = load_dataset("cifar10", "test", path=where)
        assert dataset.image_shape == (3, 32, 32)
        assert dataset.sample_ids.tolist() == [7, 3, 9]
        assert dataset.labels.tolist() == [0, 1, 2]
    # flat grey levels survive JPEG exactly
    assert dataset.pixels[1].unique().tolist() == [60]
    assert dataset.images[1].mean().item() == pytest.approx(60 / 255)


def test_jpeg_pack_without_index_counts_positions(tmp_path: Path) -> None:
    path = _pack(tmp_path / "pack.npz", index=None)
    assert read_jpeg_pack(path, "any", "test").sample_ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": np.array([0, 1], np.uint8)}, "2 labels need 3 offsets, got 4"),
        ({"labels": np.array([0, 1, 10], np.uint8)}, "`labels` must be in 0..9"),
        ({"offsets": np.array([0, 5, 5, 9])}, "`offsets` must rise from 0"),
        ({"index": np.array([1, 1, 2])}, "`sample_ids` must be distinct"),
        ({"jpeg": None}, "it lacks jpeg"),
        ({"jpeg": np.zeros(9)}, "`jpeg` must be a uint8 vector"),
        ({"classes": np.array(["a"])}, "`labels` must be in 0..0"),
    ],
)
def test_jpeg_pack_with_wrong_contents_is_refused(
    tmp_path: Path, change: dict[str, np.ndarray | None], reason: str
) -> None:
    path = _pack(tmp_path / "pack.npz", **change)
    with pytest.raises(DataError, match=reason):
        read_jpeg_pack(path, "any", "test")


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_dataset("cifar10", "test", path=tmp_path / "absent.npz")
    whole = _pack(tmp_path / "pack.npz")
    half = tmp_path / "half.npz"
    half.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    text = tmp_path / "text.npz"
    text.write_text("not an archive")
    for path in (half, text):
        with pytest.raises(DataError, match="cannot be read"):
            read_jpeg_pack(path, "any", "test")
    with np.load(whole) as archive:
        arrays = dict(archive)
    arrays["jpeg"] = arrays["jpeg"].copy()
    start, stop = arrays["offsets"][1:3]
    arrays["jpeg"][start:stop] = 0
    np.savez(tmp_path / "zeroed.npz", **arrays)
    with pytest.raises(DataError, match="image 1: cannot be decoded as an image"):
        read_jpeg_pack(tmp_path / "zeroed.npz", "any", "test")


def test_pack_of_other_images_is_not_cifar10(tmp_path: Path) -> None:
    path = _pack(tmp_path / "pack.npz", size=16)
    with pytest.raises(DataError, match="expected 32x32 colour images"):
        load_dataset("cifar10", "test", path=path)


def _plain(count: int, pixel: int = 0, label: int = 0) -> Dataset:
    pixels = torch.zeros(count, 1, 2, 2, dtype=torch.uint8)
    labels = torch.zeros(count, dtype=torch.int64)
    pixels[0, 0, 0, 0], labels[0] = pixel, label
    return Dataset(pixels, labels, torch.arange(count), ("a", "b"), "plain", "test")


def _pack(path: Path, size: int = 32, **change: np.ndarray | None) -> Path:
    """Three flat grey images as a pack; ``change`` replaces keys, or drops those that are None."""
    from PIL import Image

    files = []
    for grey in (20, 60, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (size, size), (grey, grey, grey)).save(buffer, "JPEG", quality=95)
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    arrays: dict[str, np.ndarray | None] = {
        "jpeg": np.concatenate(files),
        "offsets": np.cumsum([0, *(len(file) for file in files)]),
        "labels": np.array([0, 1, 2], np.uint8),
        "classes": np.array([f"class {i}" for i in range(10)]),
        "index": np.array([7, 3, 9], np.int32),
        **change,
    }
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def test_showing_a_data_set_does_not_read_its_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    data = _plain(3)
    assert "checksum" not in data._repr_html_()
    assert "checksum" not in data.__dict__
    known = data.checksum[:12]
    assert known in data._repr_html_()
