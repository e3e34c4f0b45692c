"""Random inputs of a model's shape: for `init`, `verify` and `bench`, where latency or arithmetic is the question."""

from __future__ import annotations

from typing import Any

import numpy as np

from astra_mpi.config import require


def random_batch(
    config: Any, batch: int, n_tokens: int | None = None, *, seed: int = 0, ragged: bool = False
) -> tuple[np.ndarray, np.ndarray | None]:
    """Inputs and mask of `batch` sequences for a config.

    Images are N(0, 1) float32 (B, channels, height, width); ids are uniform (B, n_tokens); for a model that takes
    pairs and tells their texts apart, ids and types (B, n_tokens, 2). `ragged`: the lengths fall
    from n_tokens to 1, so that some sequences are shorter than the number of ranks.
    """
    require(batch >= 1, f"--batch {batch}: at least one")
    rng = np.random.default_rng(seed)
    if config.family == "vit":
        own = config.grid[0] * config.grid[1]
        require(
            n_tokens in (None, own),
            f"--tokens {n_tokens}: this model takes {own} patches; make another with init --tokens {n_tokens}",
        )
        return rng.standard_normal((batch, config.channels, *config.image_size), dtype=np.float32), None
    length = min(128, config.max_positions) if n_tokens is None else n_tokens
    require(
        1 <= length <= config.max_positions, f"--tokens {n_tokens}: this model takes 1 to {config.max_positions} tokens"
    )
    ids = rng.integers(0, config.vocab_size, (batch, length))
    lengths = np.linspace(length, 1, batch).astype(int) if ragged else np.full(batch, length)
    if getattr(config, "pairs", False) and config.type_vocab > 1:  # the second text is the latter part
        types = np.arange(length) >= lengths[:, None] // 2
        ids = np.stack([ids, types.astype(ids.dtype)], axis=2)
    return ids, np.arange(length) < lengths[:, None]
