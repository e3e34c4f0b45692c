"""Images as users have them -> what a model takes: resized, rescaled, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError


@dataclass(frozen=True)
class Preprocess:
    """What a model was trained on; the fields are the keys of /preprocess in a model file."""

    size: Sequence[int]  # height, width in pixels
    mean: Sequence[float]  # per channel, after rescaling
    std: Sequence[float]
    rescale: float = 1 / 255  # factor on pixel values
    resample: int = 2  # Pillow's number of a filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming

    def __post_init__(self) -> None:
        try:
            for name, kind in (("size", int), ("mean", float), ("std", float)):
                object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
            object.__setattr__(self, "rescale", float(self.rescale))
        except (TypeError, ValueError) as exc:
            raise InputError(
                f"image preprocessing: a value has the wrong type ({exc}); convert the model again"
            ) from exc
        require(len(self.size) == 2 and min(self.size) > 0, f"image preprocessing: size {self.size} is not two pixels")
        same = len(self.mean) == len(self.std) > 0
        require(same and all(self.std), "image preprocessing: give one mean and one std, not 0, per channel")
        require(self.resample in range(6), f"image preprocessing: resample {self.resample!r} is outside 0..5")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C), or (B, H, W) grey -> float32 (B, C, height, width), normalised. InputError otherwise."""
        images = np.asarray(images)
        require(
            images.dtype == np.uint8 and images.ndim in (3, 4),
            f"images are {images.dtype} of shape {images.shape}; give uint8 (images, height, width, channels)",
        )
        if images.ndim == 3:
            images = images[..., None]
        found = images.shape[3]
        require(
            found == self.channels,
            f"images have {found} channels, the model takes {self.channels}; {_advice(found, self.channels)}",
        )
        if images.shape[1:3] != self.size:
            images = self._resize(images)
        pixels = images.transpose(0, 3, 1, 2).astype(np.float32)  # (B, C, height, width)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels * np.float32(self.rescale) - mean) / std

    def _resize(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C) -> uint8 (B, height, width, C), channel by channel: Pillow knows grey, but not any C."""
        try:
            from PIL import Image
        except ImportError as exc:
            raise InputError("resizing images needs Pillow; pip install 'astra-mpi[images]'") from exc
        require(min(images.shape[1:3]) > 0, f"images have no pixels (shape {images.shape}); give at least 1 x 1")
        height, width = self.size
        out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
        for image, resized in zip(images, out, strict=True):
            for c in range(images.shape[3]):
                plane = Image.fromarray(np.ascontiguousarray(image[..., c]))
                resized[..., c] = np.asarray(plane.resize((width, height), self.resample))
        return out


def _advice(found: int, wanted: int) -> str:
    if (found, wanted) == (4, 3):
        return "drop the alpha channel"
    if (found, wanted) == (1, 3):
        return "repeat the grey channel three times"
    return "convert the images"
