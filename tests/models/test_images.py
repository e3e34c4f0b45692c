"""Image preprocessing against transformers' own."""

import sys

import numpy as np
import pytest
from transformers.models.vit import ViTImageProcessorPil

from astra_mpi.errors import InputError
from astra_mpi.models.images import Preprocess

RGB = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("resample", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("shape", [(24, 17), (40, 9), (5, 60)])
def test_equals_transformers(shape, resample):
    images = pixels(3, *shape, 3)
    theirs = ViTImageProcessorPil(
        size={"height": 24, "width": 17}, resample=resample, image_mean=RGB["mean"], image_std=RGB["std"]
    )
    expected = theirs(list(images), return_tensors="np")["pixel_values"]
    ours = Preprocess([24, 17], **RGB, resample=resample)(images)
    assert ours.dtype == np.float32
    assert ours.shape == (3, 3, 24, 17)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_rescale():
    images = np.full((1, 2, 2, 1), 8, np.uint8)
    np.testing.assert_array_equal(Preprocess([2, 2], [0.25], [0.5], rescale=1 / 16)(images), np.full((1, 1, 2, 2), 0.5))


def test_grey_images_may_lack_the_channel_axis():
    prepare, images = Preprocess([4, 6], [0.5], [0.5]), pixels(2, 9, 9)
    np.testing.assert_array_equal(prepare(images), prepare(images[..., None]))


def test_pillow_is_needed_only_for_another_size(monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    prepare = Preprocess([4, 6], **RGB)
    prepare(pixels(1, 4, 6, 3))
    with pytest.raises(InputError, match=r"pip install 'astra-mpi\[images\]'"):
        prepare(pixels(1, 6, 4, 3))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (pixels(1, 4, 6, 4), "4 channels, the model takes 3; drop the alpha channel"),
        (pixels(1, 4, 6, 1), "1 channels, the model takes 3; repeat the grey channel"),
        (pixels(1, 4, 6), "1 channels, the model takes 3; repeat the grey channel"),
        (pixels(1, 3, 4, 6), "6 channels, the model takes 3; convert the images"),
        (pixels(4, 6), r"uint8 of shape \(4, 6\)"),
        (pixels(1, 4, 6, 3).astype(np.float32), "images are float32"),
        (pixels(1, 0, 6, 3), "no pixels"),
    ],
)
def test_unfit_images(images, message):
    with pytest.raises(InputError, match=message):
        Preprocess([4, 6], **RGB)(images)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"size": [4]}, r"size \(4,\) is not two pixels"),
        ({"size": [0, 4]}, "is not two pixels"),
        ({"size": 4}, "wrong type"),
        ({"mean": ["a", "b", "c"]}, "wrong type"),
        ({"mean": [0.5]}, "one mean and one std"),
        ({"std": [0.5, 0, 0.5]}, "one std, not 0"),
        ({"resample": 9}, "resample 9 is outside"),
    ],
)
def test_unfit_settings(changes, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**({"size": [4, 6], **RGB} | changes))


def test_settings_survive_json():
    prepare = Preprocess([4, 6], **RGB, rescale=0.1, resample=3)
    assert Preprocess(**prepare.as_dict()) == prepare
