"""Where pairs stand among the pairs of their query, once all their scores are known."""

from __future__ import annotations

from typing import Any

import h5py
import numpy as np


def ranks(queries: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """queries (n,) int, scores (n,) -> (n,) int32: 1 for the highest score of its query; equal ones in input order."""
    order = np.lexsort((np.arange(len(scores)), -scores, queries))
    ordered = queries[order]
    first = np.flatnonzero(np.diff(ordered, prepend=ordered[:1] - 1))  # of each query
    counts = np.diff(first, append=len(order))
    found = np.empty(len(order), np.int32)
    found[order] = np.arange(len(order)) - np.repeat(first, counts) + 1
    return found


def write_ranks(file: h5py.File) -> None:
    """Add outputs/rank to results of a `rerank` task, or put it right where shards have theirs; else do nothing."""
    if "outputs/query" not in file:
        return
    every = ranks(file["outputs/query"][()], file["outputs/score"][()])
    dataset: Any = file.require_dataset("outputs/rank", every.shape, every.dtype)
    dataset[...] = every
