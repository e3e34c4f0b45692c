"""Images in an array: uint8 as cameras give them, or float32 already normalised."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.files.checksum import file_digest
from astra_mpi.inputs.arrays import ArrayFile
from astra_mpi.inputs.kinds.arrays import ArrayKind
from astra_mpi.inputs.kinds.kind import Taker, takes_images
from astra_mpi.inputs.sources import ImageSource, Source
from astra_mpi.models.images import Preprocess

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class ImageArrays(ArrayKind):
    """(items, height, width, channels), grey (items, height, width), or float32 (items, channels, height, width)."""

    kind = "images"

    @classmethod
    def fits(cls, config: Any) -> bool:
        return takes_images(config)

    @classmethod
    def open(cls, section: InputSection, model: Taker) -> Source:
        path, config, preprocess = section.path, model.config, model.preprocess
        file = ArrayFile(path)
        images = file.get(cls.dataset(section))
        shape, height_width = images.shape, tuple(config.image_size)
        if images.dtype == np.uint8 and len(shape) in (3, 4):
            channels = shape[3] if len(shape) == 4 else 1
            require(
                preprocess is not None,
                f"{path}: uint8 images need the model's preprocessing, and its file has none; give float32 "
                f"(items, {config.channels}, {height_width[0]}, {height_width[1]}) already normalised",
            )
            prepare = Preprocess(**(preprocess or {}))
        else:
            require(
                images.dtype.kind == "f" and len(shape) == 4,
                f"{path}: images are {images.dtype} of shape {shape}; give uint8 (items, height, width, channels) "
                "or grey (items, height, width), or float32 (items, channels, height, width) already normalised",
            )
            channels, prepare = shape[1], None
            require(
                shape[2:] == height_width,
                f"{path}: float images are {shape[2]} x {shape[3]}, the model takes {height_width[0]} x "
                f"{height_width[1]}; give uint8 images, which are resized",
            )
        require(
            channels == config.channels if prepare is None else prepare.takes(channels),
            f"{path}: images have {channels} channels, the model takes {config.channels}; convert the images",
        )
        return ImageSource(images, prepare, path, cls.classes(file, section, shape[0]), file_digest(path))
