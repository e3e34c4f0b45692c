"""A batch as every rank holds it before the cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError


@dataclass(frozen=True)
class Batch:
    """B sequences, unpadded.

    lengths: (B,) int64, content tokens per sequence (class tokens not counted).
    values: packed token ids (N,) with class tokens first in each sequence, or images (B, channels, height, width).
    positions: (N,) position of each packed token; None where a family has its own.
    """

    lengths: np.ndarray
    values: np.ndarray
    positions: np.ndarray | None = None


def pack_ids(ids: np.ndarray, mask: np.ndarray | None, vocab_size: int, max_positions: int, n_class: int) -> Batch:
    """Padded token ids (B, T) -> packed batch: masked tokens (mask 0) removed, the others at their own positions.

    The first `n_class` tokens of a sequence are class tokens. InputError names what does not fit the model.
    """
    ids = np.asarray(ids)
    require(
        ids.ndim == 2 and ids.dtype.kind in "iu",
        f"token ids are {ids.dtype} of shape {ids.shape}; give integers (batch, tokens)",
    )
    keep = np.ones(ids.shape, bool) if mask is None else np.asarray(mask).astype(bool)
    require(
        keep.shape == ids.shape, f"the mask has shape {keep.shape}, the token ids {ids.shape}; they must be the same"
    )
    rows, positions = np.nonzero(keep)
    values = ids[rows, positions].astype(np.int64)
    bad = np.flatnonzero((values < 0) | (values >= vocab_size))
    if bad.size:
        where = f"sequence {rows[bad[0]]}, position {positions[bad[0]]}"
        raise InputError(
            f"token id {values[bad[0]]} ({where}) is outside 0..{vocab_size - 1}; was another tokenizer used?"
        )
    require(
        positions.size == 0 or int(positions.max()) < max_positions,
        f"a sequence reaches position {int(positions.max(initial=0)) + 1}, but this model has {max_positions};"
        " shorten it (max_tokens)",
    )
    lengths = keep.sum(axis=1, dtype=np.int64) - n_class
    require(
        bool((lengths >= 0).all()),
        "a sequence has no tokens, but the pooled first token is needed; drop empty sequences",
    )
    return Batch(lengths, values, positions)
