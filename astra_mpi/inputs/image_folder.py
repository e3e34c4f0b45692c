"""A folder of PNG and JPEG files as the items of a job: their names, classes and pixels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.files.utf8 import read_text

SUFFIXES = (".png", ".jpg", ".jpeg")
#: of an image that is decoded, as much as Pillow takes for safe
MOST_PIXELS = 1 << 26


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder and the folders in it, sorted by their path below it."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    require(bool(found), f"{folder} holds no {', '.join(SUFFIXES)} files; check input.path")
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def folder_digest(folder: Path, paths: Sequence[Path]) -> str:
    """sha256 over the names and contents of these files, one pass."""
    whole = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            whole.update(f"{path.relative_to(folder).as_posix()}\0".encode(errors="surrogateescape"))
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def read_labels(folder: Path, name: str, paths: Sequence[Path]) -> np.ndarray:
    """Classes (n_items,) int64 from a tab-separated file in the folder, a line `image file<TAB>class` per image."""
    table = folder / name
    classes: dict[str, int] = {}
    for number, line in enumerate(read_text(table).split("\n"), 1):
        if not line.strip():
            continue
        file, tab, label = line.rstrip("\r").rpartition("\t")
        require(
            bool(tab) and label.isdecimal() and len(label) < 10,
            f"{table}, line {number}: {line!r} is not an image's name, a tab and its class from 0",
        )
        require(file not in classes, f"{table}, line {number}: '{file}' has been named before; name each image once")
        classes[file] = int(label)
    names = [path.relative_to(folder).as_posix() for path in paths]
    missing = next((name for name in names if name not in classes), None)
    require(missing is None, f"{table} gives no class for '{missing}'; add a line for it")
    extra = next(iter(classes.keys() - set(names)), None)
    require(extra is None, f"{table} names '{extra}', which is no image in {folder}; remove the line")
    return np.array([classes[name] for name in names], dtype=np.int64)


def decoder(channels: int, on_white: bool = False) -> Callable[[Path], np.ndarray]:
    """A function: image file -> uint8 (height, width, channels), turned as its EXIF data say; 1 channel is grey.

    on_white: what is transparent shows white; otherwise the colour that it would have if it were not.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise InputError("PNG and JPEG files need Pillow; pip install 'astra-mpi[images]'") from exc
    modes = {1: "L", 3: "RGB"}
    require(channels in modes, f"the model takes {channels} channels, image files give 1 or 3; give arrays instead")

    def decode(path: Path) -> np.ndarray:
        try:
            with Image.open(path, formats=("PNG", "JPEG")) as image:
                width, height = image.size
                require(width * height <= MOST_PIXELS, f"{path} has {width} x {height} pixels; scale it down")
                turned = ImageOps.exif_transpose(image)
                if on_white and ("A" in turned.getbands() or "transparency" in turned.info):
                    turned = turned.convert("RGBA")
                    turned = Image.alpha_composite(Image.new("RGBA", turned.size, "white"), turned)
                pixels = np.asarray(turned.convert(modes[channels]))
        except InputError:
            raise
        except Exception as exc:  # a broken image may raise anything
            raise InputError(f"{path} is no PNG or JPEG that can be read ({exc}); repair or remove it") from exc
        return pixels.reshape(*pixels.shape[:2], channels)

    return decode
