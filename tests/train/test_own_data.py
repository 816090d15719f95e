"""Training on data of one's own: networks made for its size and classes, and files that load."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import fastpure as fp
from fastpure.data import Dataset
from fastpure.nets import Denoiser
from fastpure.train import (
    own_classifier,
    own_denoiser,
    own_fine_tuning,
    own_trades,
    steps_of,
    train_classifier,
    train_denoiser,
)


def images(shape: tuple[int, int, int], classes: int = 3, count: int = 16, name: str = "folder") -> Dataset:
    pixels = torch.randint(0, 256, (count, *shape), generator=torch.Generator().manual_seed(0)).to(
        torch.uint8
    )
    labels = torch.arange(count) % classes
    return Dataset(pixels, labels, torch.arange(count), tuple("abcdefgh"[:classes]), name, "train")


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20), (3, 5, 4)])
def test_a_classifier_of_any_size_is_trained_saved_and_loaded(tmp_path, shape):
    data = images(shape)
    recipe = own_classifier(data)
    recipe = replace(recipe, train=replace(recipe.train, steps=1, batch_size=4, warmup=0))
    done = train_classifier(recipe, data, data, tmp_path, progress=False)
    loaded = fp.load_classifier(done.weights)
    assert loaded(data.images[:2]).shape == (2, 3)


@pytest.mark.parametrize("size", [8, 28, 30])
def test_a_denoiser_of_any_square_is_trained_saved_and_loaded(tmp_path, size):
    data = images((1, size, size), count=4)
    recipe = own_denoiser(data)
    recipe = replace(recipe, train=replace(recipe.train, steps=1, batch_size=2, warmup=0))
    done = train_denoiser(recipe, data, data, tmp_path, progress=False)
    assert fp.load_denoiser(done.weights).image_shape == (1, size, size)


@pytest.mark.parametrize("size", [4, 32, 64, 224, 256])
def test_levels_suit_the_size(size):
    fields = own_denoiser(images((3, size, size), count=2, classes=2)).network
    with torch.device("meta"):
        network = Denoiser.from_config({**fields, "nf": 4}).network
    assert size % 2 ** (len(fields["ch_mult"]) - 1) == 0
    assert len(fields["attn_resolutions"]) == 1
    assert network.config.image_size == size


def test_images_that_are_no_squares_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match=r"square.*--size"):
        own_denoiser(images((3, 12, 20)))
    with pytest.raises(ValueError, match="two classes"):
        own_classifier(images((3, 8, 8), classes=1))


def test_only_photographs_are_mirrored():
    assert not own_classifier(images((3, 8, 8))).loss.augment.flip
    assert own_classifier(images((3, 8, 8), name="imagenet")).loss.augment.flip
    assert own_trades(images((3, 8, 8))).loss.eps == pytest.approx(8 / 255)
    recipe = own_fine_tuning("addt", images((3, 8, 8)))
    assert recipe.start is None
    assert recipe.classifier is None
    assert not recipe.settings["augment"].flip


def test_epochs_are_steps():
    assert steps_of(2, 100, 30) == 7
    assert steps_of(0.001, 100, 30) == 1
    assert steps_of(1.5, 10, 5) == 3
    for wrong in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="epochs"):
            steps_of(wrong, 100, 30)
