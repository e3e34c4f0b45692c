"""A folder of PNG and JPEG files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.inputs.image_folder import decoder, folder_digest, image_files, read_labels
from astra_mpi.inputs.kinds.kind import InputKind, Taker, takes_images
from astra_mpi.inputs.sources import FileSource, Source
from astra_mpi.models.images import Preprocess

if TYPE_CHECKING:
    from astra_mpi.decks.deck import InputSection


class ImageFiles(InputKind):
    """Sorted by name, those of folders in it too."""

    kind = "images"

    @classmethod
    def reads(cls, path: Path) -> bool:
        return path.is_dir()

    @classmethod
    def fits(cls, config: Any) -> bool:
        return takes_images(config)

    @classmethod
    def open(cls, section: InputSection, model: Taker) -> Source:
        path, preprocess = section.path, model.preprocess
        require(section.dataset is None, f"{path} is a folder of images, which have no dataset; drop input.dataset")
        if preprocess is None:
            raise InputError(f"{path}: image files need the model's preprocessing, and its file has none; give arrays")
        prepare, paths = Preprocess(**preprocess), image_files(path)
        labels, files = None, paths
        if section.labels is not None:
            labels = read_labels(path, section.labels, paths)
            files = [*paths, path / section.labels]
        decode = decoder(model.config.channels, prepare.rgb)
        return FileSource(paths, decode, prepare, labels, folder_digest(path, files))
