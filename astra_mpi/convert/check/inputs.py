"""Random token ids that both sides get."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """Sequences of random tokens, some with gaps between their positions."""

    ids: np.ndarray  # (B, max_positions) int64, for our side: a token stands at its position
    mask: np.ndarray  # (B, max_positions) bool: where there is one
    lengths: np.ndarray  # (B,)
    types: np.ndarray | None = None  # (B, max_positions) int64, for models that tell types of tokens apart

    @property
    def inputs(self) -> np.ndarray:
        """What our model takes: ids, with their types beside them if there are any."""
        return self.ids if self.types is None else np.stack([self.ids, self.types], axis=2)

    def alone(self) -> Iterator[Tokens]:
        """Each sequence by itself, without padding; of sequences without gaps."""
        for i, n in enumerate(self.lengths.tolist()):
            types = None if self.types is None else self.types[i : i + 1, :n]
            yield Tokens(self.ids[i : i + 1, :n], self.mask[i : i + 1, :n], self.lengths[i : i + 1], types)

    def packed(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """-> ids, positions, mask (B, T): the tokens side by side, as transformers takes them."""
        keep = np.arange(self.lengths.max()) < self.lengths[:, None]
        ids, positions = np.zeros(keep.shape, np.int64), np.zeros(keep.shape, np.int64)
        ids[keep], positions[keep] = self.ids[self.mask], np.nonzero(self.mask)[1]
        return ids, positions, keep


def random_tokens(config: Any, longest: int = 96, seed: int = 0) -> Tokens:
    """Ragged sequences from position 0 on, and one whose positions are spread up to the model's last.

    Not so where transformers looks at places in the batch instead of positions: windows, biases by distance, and
    longrope, which turns by the longest sequence of a batch. Then there are no gaps, so that each can go `alone`.
    """
    rng, long = np.random.default_rng(seed), getattr(config, "rope_type", "") == "longrope"
    n = min(longest, config.max_positions, *([config.rope_trained_positions] if long else []))
    in_order = long or any(config.windows) or getattr(config, "relative_buckets", 0) > 0
    lengths = np.array([n, max(1, 2 * n // 3), min(5, n), 1, n])
    mask = np.arange(config.max_positions) < lengths[:, None]
    spread = rng.permutation(config.max_positions)[:n]
    spread[np.argmin(spread)], spread[np.argmax(spread)] = 0, config.max_positions - 1
    if in_order:
        spread = np.arange(n)
    mask[-1] = False
    mask[-1, spread] = True
    lengths[-1] = mask[-1].sum()
    ids = rng.integers(0, config.vocab_size, mask.shape)
    ids[0, 0], ids[-1, -1] = config.vocab_size - 1, 0
    n_types = getattr(config, "type_vocab", 0)
    return Tokens(ids, mask, lengths, rng.integers(0, n_types, mask.shape) if n_types > 1 else None)
