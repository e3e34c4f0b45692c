"""Image encoders: answers and hidden states of random images, then uint8 images through both image processors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from astra_mpi.convert.check.findings import FLOOR, Finding, equal_rows, held_against
from astra_mpi.convert.check.image_models import asked
from astra_mpi.convert.check.libraries import reads
from astra_mpi.convert.check.reference import Outputs, Reference, rounding
from astra_mpi.convert.synthetic import random_batch
from astra_mpi.models.images import Preprocess


def compare(reference: Reference, model: Any) -> Iterator[Finding]:
    """The model file, loaded, against the reference."""
    config = model.config
    images, _ = random_batch(config, 2)
    answers, hidden = model(images, gather=True)
    expected, allowed, exact = reference.outputs(lambda torch_model: _forward(torch_model, images, config))
    yield held_against(f"hidden states of {len(images)} random images", hidden, expected["hidden"], allowed)
    yield held_against("logits" if config.n_classes else "embeddings", answers, expected["answers"], allowed)
    if exact is not None:
        yield rounding(reference, expected["answers"], exact["answers"])
    if config.n_classes:
        names = reference.model.config.id2label
        every = [str(i) for i in range(config.n_classes)]
        yield equal_rows("names of classes", every, config.labels or every, [names.get(i) for i in range(len(every))])
    yield _pixels(reference, model)


def _forward(torch_model: Any, images: np.ndarray, config: Any) -> Outputs:
    import torch

    pixels = torch.from_numpy(images).to(next(torch_model.parameters()).dtype)
    answers, hidden = asked(torch_model, pixels, config)
    return {"hidden": hidden.numpy(), "answers": answers.numpy()}


def _pixels(reference: Reference, model: Any) -> Finding:
    """uint8 images as the model takes them; transformers resizes with Pillow, as we do."""
    what = "uint8 images by AutoImageProcessor"
    if model.preprocess is None:
        return Finding(what, note="not compared, for the file takes float32 images alone")
    with reads(f"the image processor of {reference.folder}"):
        from transformers import AutoImageProcessor

        theirs = AutoImageProcessor.from_pretrained(
            reference.folder, local_files_only=True, trust_remote_code=False, use_fast=False
        )
    prepare, (height, width) = Preprocess(**model.preprocess), model.config.image_size
    rng, ours, expected = np.random.default_rng(0), [], []
    for shape in ((height, width), (height + 37, width + 12), (height // 2 + 3, width * 2 + 5), (height, height)):
        image = rng.integers(0, 256, (*shape, prepare.channels), dtype=np.uint8)
        try:
            pixels = np.asarray(theirs([image], input_data_format="channels_last", return_tensors="np")["pixel_values"])
        except Exception:
            continue
        if pixels.shape[2:] == (height, width):
            expected.append(pixels)
            ours.append(prepare(image[None]))
    if not expected:
        return Finding(what, wrong="transformers gives none of the model's shape, and the file takes uint8 images")
    return held_against(f"{len(expected)} {what}", np.concatenate(ours), np.concatenate(expected), FLOOR)
