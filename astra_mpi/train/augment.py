"""Images moved and mirrored at random, the same for an item whatever rank holds it."""

from __future__ import annotations

import numpy as np

from astra_mpi.train.data import Batch

#: share of the height and width by which images are moved at most
SHIFT = 1 / 8


def augmented(batch: Batch, how: str, seed: int, step: int) -> np.ndarray:
    """Images (B, channels, height, width), as float32; edges repeat what is at the border."""
    images = batch.inputs
    if how == "none":
        return images
    height, width = images.shape[2:]
    dy, dx = max(1, round(SHIFT * height)), max(1, round(SHIFT * width))
    rng = np.random.default_rng([seed, 5, step])
    moves = rng.integers([0, 0, 0], [2 * dy + 1, 2 * dx + 1, 2], (batch.n_items, 3))[batch.places]
    padded = np.pad(images, ((0, 0), (0, 0), (dy, dy), (dx, dx)), mode="edge")
    out = np.empty_like(images)
    for i, (y, x, mirror) in enumerate(moves):
        image = padded[i, :, y : y + height, x : x + width]
        out[i] = image[:, :, ::-1] if mirror and how == "shift-flip" else image
    return out
