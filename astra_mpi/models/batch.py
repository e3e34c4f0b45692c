"""A batch as every rank holds it before the cut."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from astra_mpi.config import require
from astra_mpi.errors import InputError
from astra_mpi.partition import displs


@dataclass(frozen=True)
class Batch:
    """B sequences, unpadded.

    lengths: (B,) int64, content tokens per sequence (class tokens not counted).
    values: packed token ids (N,) with class tokens first in each sequence, or images (B, channels, height, width).
    positions: (N,) position of each packed token; None where a family has its own.
    position_rows: (N,) rows of the position embedding, where they are not the positions.
    types: (N,) type of each packed token, such as 1 in the second text of a pair; None: all are of type 0.
    """

    lengths: np.ndarray
    values: np.ndarray
    positions: np.ndarray | None = None
    types: np.ndarray | None = None
    position_rows: np.ndarray | None = None

    def part(self, sequences: slice, n_class: int) -> Batch:
        """Neighbouring sequences by themselves; n_class: class tokens of each."""
        if self.values.ndim > 1:  # images
            return replace(self, lengths=self.lengths[sequences], values=self.values[sequences])
        ends = displs(self.lengths + n_class)
        tokens = slice(ends[sequences.start], ends[sequences.stop])
        packed = (self.values, self.positions, self.types, self.position_rows)
        values, *others = (array if array is None else array[tokens] for array in packed)
        assert values is not None
        return Batch(self.lengths[sequences], values, *others)


def pack_ids(
    ids: np.ndarray,
    mask: np.ndarray | None,
    vocab_size: int,
    max_positions: int,
    n_class: int,
    counted: np.ndarray | None = None,
    first: int = 0,
) -> Batch:
    """Padded token ids (B, T) -> packed batch: masked tokens (mask 0) removed, the others at their own positions.

    The first `n_class` tokens of a sequence are class tokens. counted: (B, T) rows of the position
    embedding, default their positions 0, 1, .. in a sequence; `first` is that of a sequence's first token. InputError
    names what does not fit the model.
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
    taken = positions if counted is None else counted[rows, positions]
    require(
        taken.size == 0 or int(taken.max()) - first < max_positions,
        f"a sequence reaches position {int(taken.max(initial=0)) - first + 1}, but this model has {max_positions};"
        " shorten it (max_tokens)",
    )
    lengths = keep.sum(axis=1, dtype=np.int64) - n_class
    require(
        bool((lengths >= 0).all()),
        "a sequence has no tokens, but the pooled first token is needed; drop empty sequences",
    )
    return Batch(lengths, values, positions, None, None if counted is None else taken)


def split_types(inputs: np.ndarray, n_types: int) -> tuple[np.ndarray, np.ndarray | None]:
    """Token ids (B, T), or ids and types side by side (B, T, 2) -> ids (B, T), types (B, T) or None.

    InputError on types of a model that has none but 0.
    """
    inputs = np.asarray(inputs)
    if inputs.ndim != 3 or inputs.shape[2] != 2:
        return inputs, None
    require(
        n_types > 1,
        f"token types (B, T, 2) for a model that has {n_types}: it knows no pairs by their types; give ids (B, T)",
    )
    return inputs[..., 0], inputs[..., 1]


def pack_types(types: np.ndarray, mask: np.ndarray | None, n_types: int) -> np.ndarray:
    """Types (B, T) -> those of the kept tokens (N,) int64. InputError on one that the model has no row for."""
    kept = (types.ravel() if mask is None else types[np.asarray(mask).astype(bool)]).astype(np.int64)
    bad = kept[(kept < 0) | (kept >= n_types)]
    require(not bad.size, f"token type {bad[:1].sum()} is outside 0..{n_types - 1}; was another tokenizer used?")
    return kept
