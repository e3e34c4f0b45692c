"""Images as users have them -> what a model takes: resized, cropped, rescaled, normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError

#: of an image that is resized: an edge, and all
_LONGEST_EDGE, _MOST_PIXELS = 1 << 14, 1 << 26
#: fields that files of earlier versions lack; they are written only where they differ from these
_LATER: dict[str, Any] = {"resize": (), "crop": False, "rgb": False}


@dataclass(frozen=True)
class Preprocess:
    """What a model was trained on; the fields are the keys of /preprocess in a model file."""

    size: Sequence[int]  # height, width in pixels that the model takes
    mean: Sequence[float]  # per channel, after rescaling
    std: Sequence[float]
    rescale: float = 1 / 255  # factor on pixel values
    resample: int = 2  # Pillow's number of a filter: 0 nearest, 1 Lanczos, 2 bilinear, 3 bicubic, 4 box, 5 Hamming
    # what images are resized to: `size` (), height and width, the shortest edge (one number), or nothing (None)
    resize: Sequence[int] | None = ()
    crop: bool = False  # then `size` is cut out of the centre; images that are smaller get a black margin
    rgb: bool = False  # grey becomes RGB before all else, and RGBA is laid on white

    def __post_init__(self) -> None:
        try:
            for name, kind in (("size", int), ("mean", float), ("std", float)):
                object.__setattr__(self, name, tuple(map(kind, getattr(self, name))))
            object.__setattr__(self, "rescale", float(self.rescale))
            if self.resize is not None:
                object.__setattr__(self, "resize", tuple(map(int, self.resize)))
        except (TypeError, ValueError, OverflowError) as exc:
            raise InputError(
                f"image preprocessing: a value has the wrong type ({exc}); convert the model again"
            ) from exc
        require(len(self.size) == 2 and min(self.size) > 0, f"image preprocessing: size {self.size} is not two pixels")
        edges = self.resize or (1,)
        known = len(edges) <= 2 and min(edges) > 0 and max(edges) <= _LONGEST_EDGE
        require(known, f"image preprocessing: resize {edges} is not one or two numbers from 1 to {_LONGEST_EDGE}")
        same = len(self.mean) == len(self.std) > 0
        require(same and all(self.std), "image preprocessing: give one mean and one std, not 0, per channel")
        require(self.resample in range(6), f"image preprocessing: resample {self.resample!r} is outside 0..5")
        flags = isinstance(self.crop, bool) and isinstance(self.rgb, bool)
        require(flags, "image preprocessing: crop and rgb are true or false")
        require(not self.rgb or self.channels == 3, f"image preprocessing: rgb, and {self.channels} channels")

    @property
    def channels(self) -> int:
        return len(self.mean)

    def takes(self, channels: int) -> bool:
        """Images of so many channels."""
        return channels == self.channels or (self.rgb and channels in (1, 4))

    def as_dict(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in _LATER or value != _LATER[name]}

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C), or (B, H, W) grey -> float32 (B, C, height, width), normalised. InputError otherwise."""
        images = np.asarray(images)
        require(
            images.dtype == np.uint8 and images.ndim in (3, 4),
            f"images are {images.dtype} of shape {images.shape}; give uint8 (images, height, width, channels)",
        )
        if images.ndim == 3:
            images = images[..., None]
        if self.rgb:
            images = _as_rgb(images)
        found = images.shape[3]
        require(
            found == self.channels,
            f"images have {found} channels, the model takes {self.channels}; {_advice(found, self.channels)}",
        )
        images = self._resized(images)
        if self.crop:
            images = _centre(images, *self.size)
        require(
            images.shape[1:3] == self.size,
            f"images are {images.shape[1]} x {images.shape[2]} pixels when resized as the model's files say, the model"
            f" takes {self.size[0]} x {self.size[1]}; give images of that shape",
        )
        pixels = images.transpose(0, 3, 1, 2).astype(np.float32)  # (B, C, height, width)
        mean, std = (np.array(values, np.float32)[:, None, None] for values in (self.mean, self.std))
        return (pixels * np.float32(self.rescale) - mean) / std

    def _target(self, height: int, width: int) -> Sequence[int]:
        """Height and width that an image of this height and width is resized to."""
        if self.resize is None:
            return height, width
        if len(self.resize) == 1:
            (edge,) = self.resize
            return (int(edge * height / width), edge) if width <= height else (edge, int(edge * width / height))
        return self.resize or self.size

    def _resized(self, images: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, C) -> uint8 (B, height, width, C)."""
        require(min(images.shape[1:3]) > 0, f"images have no pixels (shape {images.shape}); give at least 1 x 1")
        height, width = self._target(*images.shape[1:3])
        if images.shape[1:3] == (height, width):
            return images
        narrow = f"images of {images.shape[1]} x {images.shape[2]} would become {height} x {width}; give other images"
        require(0 < height * width <= _MOST_PIXELS, narrow)
        try:
            from PIL import Image
        except ImportError as exc:
            raise InputError("resizing images needs Pillow; pip install 'astra-mpi[images]'") from exc
        out = np.empty((len(images), height, width, images.shape[3]), np.uint8)
        # Pillow weighs colours by alpha, the last of two or four channels; of other numbers it knows grey alone
        n = images.shape[3] if images.shape[3] in (2, 4) else 1
        for image, resized in zip(images, out, strict=True):
            for c in range(0, images.shape[3], n):
                plane = Image.fromarray(np.ascontiguousarray(image[..., c] if n == 1 else image))
                pixels = np.asarray(plane.resize((width, height), self.resample))
                resized[..., c : c + n] = pixels.reshape(height, width, n)
        return out


def _as_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 (B, H, W, C) -> (B, H, W, 3) of grey and of RGBA, else as it is."""
    if images.shape[3] == 1:
        return np.repeat(images, 3, axis=3)
    if images.shape[3] == 4:
        alpha = images[..., 3:] / 255
        return np.round(alpha * images[..., :3] + (1 - alpha) * 255).astype(np.uint8)
    return images


def _centre(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """(B, H, W, C) -> (B, height, width, C) around the centre, 0 where there is no image."""
    out = np.zeros((len(images), height, width, images.shape[3]), images.dtype)
    here, there = [], []
    for found, wanted in zip(images.shape[1:3], (height, width), strict=True):
        n = min(found, wanted)
        # an odd number of pixels over: cut one more at the end, or put one more at the beginning
        start, place = (found - n) // 2, -(-(wanted - n) // 2)
        here.append(slice(start, start + n))
        there.append(slice(place, place + n))
    out[:, there[0], there[1]] = images[:, here[0], here[1]]
    return out


def _advice(found: int, wanted: int) -> str:
    if (found, wanted) == (4, 3):
        return "drop the alpha channel"
    if (found, wanted) == (1, 3):
        return "repeat the grey channel three times"
    return "convert the images"
