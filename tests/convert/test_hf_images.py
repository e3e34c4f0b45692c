"""Settings of image processors: honoured or refused by name, a part of jobs/checks/differential_images.py."""

import json

import differential_images
import numpy as np
import pytest
import transformers
from PIL import Image
from transformers.models.clip import CLIPImageProcessorPil

from astra_mpi.convert.images import CLASSES, image_preprocessing
from astra_mpi.errors import InputError
from astra_mpi.inputs.image_folder import decoder
from astra_mpi.models.images import Preprocess

VIT = dict(differential_images.cases("ViTImageProcessor"))


@pytest.mark.parametrize("changed", VIT)
def test_every_setting_changed(tmp_path, changed):
    end, details = differential_images.outcome(tmp_path, VIT[changed], changed)
    assert end in ("same", "refused"), details


@pytest.mark.parametrize("kind", CLASSES)
def test_defaults_of_the_classes(tmp_path, kind):
    assert differential_images.outcome(tmp_path, {"image_processor_type": kind}, "", (224, 224))[0] == "same"


def test_all_that_transformers_reads_is_tried():
    assert differential_images.unknown_settings() == []


def test_nested_settings_come_first(tmp_path):
    mine = differential_images.BASE | {"image_mean": [0.1, 0.1, 0.1], "image_processor_type": "ViTImageProcessor"}
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": mine}))
    end, details = differential_images.outcome(tmp_path, differential_images.BASE, "nothing")
    assert end == "same", details
    assert image_preprocessing(tmp_path, (20, 12), 3)[0].mean == (0.1, 0.1, 0.1)


def test_settings_that_nothing_reads_are_noted(tmp_path):
    settings = differential_images.BASE | {"crop_pct": 0.9, "processor_class": "A"}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert "ViTImageProcessor does not read crop_pct" in image_preprocessing(tmp_path, (20, 12), 3)[1][0]


def test_four_channels_are_resized_as_transformers_does(tmp_path):
    settings = {"size": {"height": 20, "width": 12}, "image_mean": [0.5] * 4, "image_std": [0.5] * 4}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    images = np.random.default_rng(0).integers(0, 256, (2, 31, 17, 4), dtype=np.uint8)
    theirs = transformers.models.vit.ViTImageProcessorPil(**settings)
    expected = theirs(list(images), return_tensors="np")["pixel_values"]
    prepare, _ = image_preprocessing(tmp_path, (20, 12), 4)
    np.testing.assert_allclose(prepare(images), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L"])
def test_image_files_are_laid_on_white_as_transformers_does(tmp_path, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 4), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    image.save(tmp_path / "a.png", **({"transparency": 3} if mode == "P" else {}))
    settings = {"size": {"height": 24, "width": 24}, "crop_size": {"height": 24, "width": 24}}
    expected = CLIPImageProcessorPil(**settings)(Image.open(tmp_path / "a.png"), return_tensors="np")["pixel_values"]
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(settings | {"image_processor_type": "CLIPImageProcessor"})
    )
    prepare, _ = image_preprocessing(tmp_path, (24, 24), 3)
    ours = prepare(decoder(3, prepare.rgb)(tmp_path / "a.png")[None])
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)


def test_images_of_another_shape_than_the_model_takes_are_refused():
    prepare = Preprocess([8, 8], [0.5], [0.5], resize=[8])
    assert prepare(np.zeros((1, 9, 9), np.uint8)).shape == (1, 1, 8, 8)
    with pytest.raises(InputError, match=r"images are 16 x 8 pixels when resized.*the model takes 8 x 8"):
        prepare(np.zeros((1, 20, 10), np.uint8))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rescale": 10**400}, "a value has the wrong type"),
        ({"resize": [1 << 20, 8]}, "is not one or two numbers from 1 to 16384"),
        ({"resize": [1, 2, 3]}, "is not one or two numbers"),
        ({"crop": 1}, "crop and rgb are true or false"),
        ({"rgb": True}, "rgb, and 1 channels"),
    ],
)
def test_settings_that_no_file_should_have(changes, message):
    with pytest.raises(InputError, match=message):
        Preprocess(**{"size": [8, 8], "mean": [0.5], "std": [0.5]} | changes)


def test_an_image_that_would_become_very_long():
    with pytest.raises(InputError, match="images of 1 x 9000 would become 8000 x 72000000; give other images"):
        Preprocess([8, 8], [0.5], [0.5], resize=[8000], crop=True)(np.zeros((1, 1, 9000), np.uint8))


def test_files_of_earlier_versions_need_no_new_keys():
    assert set(Preprocess([8, 8], [0.5], [0.5]).as_dict()) == {"size", "mean", "std", "rescale", "resample"}
    new = Preprocess([8, 8], [0.5], [0.5], resize=None, crop=True)
    assert Preprocess(**json.loads(json.dumps(new.as_dict()))) == new
