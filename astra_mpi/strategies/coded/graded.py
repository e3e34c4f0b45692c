"""Graded codes: tokens next to another slice have more of them (docs/explanation/quantisers.md)."""

from __future__ import annotations

import numpy as np

from astra_mpi.layout import Layout


class Graded:
    """Of a pass over `layout`, which tokens are among the `near` ones at an end of their slice."""

    def __init__(self, layout: Layout, near: int) -> None:
        self.layout, self.near = layout, near
        self.counts = near_counts(layout, near)  # (P,)
        self._masks: dict[int, np.ndarray] = {}

    @property
    def share(self) -> float:
        """Of the tokens that are sent."""
        senders = slice(self.layout.size - int(self.layout.forward))
        return float(self.counts[senders].sum() / max(self.layout.sent_counts[senders].sum(), 1))

    def mask(self, rank: int) -> np.ndarray | None:
        """(n_r,) of a rank's tokens those with more codes than the ordinary ones; None: all have the same."""
        if not self.near:
            return None
        if rank not in self._masks:
            counts = (self.layout.counts - self.layout.sink_counts)[:, rank]
            self._masks[rank] = near_ends(counts, self.near, self.layout.causal)
        return self._masks[rank]


def near_counts(layout: Layout, near: int) -> np.ndarray:
    """(P,) how many of each rank's tokens are near ones."""
    ends = 1 if layout.causal else 2
    return np.minimum(layout.counts - layout.sink_counts, ends * near).sum(axis=0)


def near_ends(counts: np.ndarray, near: int, causal: bool) -> np.ndarray:
    """counts (B,) of the tokens of a slice of each sequence -> (sum,) whether a token is one of the last `near`, or of
    the first, which tokens of other slices look at in encoders only."""
    masks = [np.arange(n) >= n - near for n in counts]
    if not causal:
        masks = [mask | (np.arange(len(mask)) < near) for mask in masks]
    return np.concatenate([np.empty(0, bool), *masks])
