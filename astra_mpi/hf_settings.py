"""How a Hugging Face folder says its model is used: end tokens, image preprocessing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from astra_mpi.config import require
from astra_mpi.hf_folder import load_settings
from astra_mpi.images import Preprocess


def image_preprocessing(folder: Path, image_size: tuple[int, int], channels: int) -> Preprocess:
    """preprocessor_config.json in our terms. InputError if it is missing or does what `Preprocess` does not."""
    path = folder / "preprocessor_config.json"
    hf = load_settings(path)
    require(not hf.get("do_center_crop", False), f"{path}: cropping is not supported")
    size = _size(hf["size"]) if hf.get("do_resize", True) and "size" in hf else image_size
    require(size == image_size, f"{path} resizes to {size}, config.json says {image_size}")
    normalize = hf.get("do_normalize", True)
    preprocess = Preprocess(
        size,
        hf.get("image_mean", [0.5] * channels) if normalize else [0.0] * channels,
        hf.get("image_std", [0.5] * channels) if normalize else [1.0] * channels,
        hf.get("rescale_factor", 1 / 255) if hf.get("do_rescale", True) else 1.0,
        hf.get("resample", 2),
    )
    require(
        preprocess.channels == channels, f"{path} is for {preprocess.channels} channels, config.json says {channels}"
    )
    return preprocess


def _size(size: Any) -> Any:
    if isinstance(size, int):
        return (size, size)
    return (size["height"], size["width"]) if isinstance(size, dict) and {"height", "width"} <= set(size) else size
