"""Which rank holds which token while training: random contiguous cuts, and masks that follow from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from astra_mpi.partition import Cut, cut

#: of the Dirichlet distribution of random cuts: two ranks' shares differ by a factor of 1.5 or so
EVENNESS = 4.0


def draw_cut(ranks: tuple[int, ...], random: bool, seed: int, step: int) -> tuple[int, Cut]:
    """(P, relative slices) of a step's joint batch: the same on every rank."""
    rng = np.random.default_rng([seed, 3, step])
    size = int(rng.choice(ranks))
    return size, rng.dirichlet(np.full(size, EVENNESS)).tolist() if random else None


@dataclass(frozen=True)
class View:
    """P ranks as masks over the rows of a padded batch: the replicas of each class token, then S content places.

    rank (B or 1, R): of each row, -1 where there is no token. near (.., 1, R, R), far (.., 1, R, S): what rows see
    exactly, and through what is sent; far is None where nothing is sent. received (L, B, P, P): per block and sequence,
    whether a rank got what another sent, receiver by sender; None: everything came.
    """

    size: int
    n_replicas: int
    rank: Tensor
    near: Tensor
    far: Tensor | None
    received: Tensor | None = None
    #: of sequences that look back, are cut alike and have no gaps: where each rank's tokens lie; () otherwise
    slices: tuple[tuple[int, int], ...] = ()
    sinks: int = 0  # first tokens that all see exactly

    def visible(self, i: int) -> Tensor:
        """(.., 1, R, R + S): what rows see in block i."""
        if self.far is None:
            return self.near
        if self.received is None:
            return self.both
        rank, received = self.rank.clamp(min=0), self.received[i]  # a row without a token has no far keys to lose
        rank = rank.expand(len(received), -1)
        came = received[torch.arange(len(received))[:, None, None], rank[:, :, None], rank[:, None, self.n_replicas :]]
        far = self.far & came.unsqueeze(1)
        return torch.cat([self.near.expand(len(far), -1, -1, -1), far], dim=-1)

    def near_tokens(self, near: int, causal: bool, keep: np.ndarray) -> Tensor | None:
        """Of the tokens that keep (B, S) marks, packed (n,): which have more codes than others; None: all have all."""
        if not near:
            return None
        marks = near_places(self.rank[:, self.n_replicas :].cpu().numpy(), near, causal)
        return torch.from_numpy(np.broadcast_to(marks, keep.shape)[keep]).to(self.rank.device)

    @cached_property
    def both(self) -> Tensor:
        """`visible` where everything came."""
        assert self.far is not None
        return torch.cat([self.near, self.far], dim=-1)


def coded_places(keep: np.ndarray, n_class: int, sinks: int) -> np.ndarray:
    """keep (B, n_class + S) marks tokens -> (B, S) which content places hold tokens that have codes: no sinks."""
    content = keep[:, n_class:]
    coded: np.ndarray = content & (np.cumsum(content, axis=1) > sinks)
    return coded


def near_places(owner: np.ndarray, near: int, causal: bool) -> np.ndarray:
    """owner (B, S) of content places, -1 where there is no token -> (B, S) which are of the last `near` tokens of a
    slice, or of the first, which tokens of other slices look at in encoders only."""
    found = np.zeros(owner.shape, bool)
    for row, marks in zip(owner, found, strict=True):
        for rank in range(int(row.max(initial=-1)) + 1):
            places = np.flatnonzero(row == rank)
            marks[places[max(0, len(places) - near) :]] = True
            marks[places[: 0 if causal else near]] = True
    return found


def make_view(
    keep: np.ndarray,
    n_class: int,
    size: int,
    slices: Cut,
    *,
    causal: bool,
    sends: bool,
    replicas: int | None = None,
    missing: np.ndarray | None = None,
    counts: np.ndarray | None = None,
    sinks: int = 0,
    device: torch.device | str = "cpu",
) -> View:
    """keep (B, n_class + S) marks tokens; every sequence is cut by its own length into `size` slices.

    Without `sends` one rank holds everything. counts (B, size): tokens per rank, instead of `slices`. replicas: ranks
    that hold the class token, default all. missing (L, B, P, P): per block and sequence, messages that a rank did
    not get, receiver by sender. sinks: of causal sequences so many first tokens are exact for all.
    """
    if not sends:
        size, slices = 1, None
    if keep.all():
        keep = keep[:1]
    content = keep[:, n_class:]
    if counts is None or not sends:
        counts = cut(content.sum(axis=1, dtype=np.int64), size, slices)  # (B, P)
    counts = counts[: len(content)]
    owner = np.full(content.shape, -1)
    owner[content] = np.repeat(np.tile(np.arange(size), len(counts)), counts.ravel())
    n_holders = size if replicas is None else min(replicas, size)
    n_replicas = n_class * n_holders
    holders = np.tile(np.arange(n_holders), (len(owner), n_class))
    rank = np.concatenate([holders, owner], axis=1)  # (B, R)
    near = rank[:, :, None] == rank[:, None, :]
    coded = coded_places(keep, n_class, sinks)
    near[:, :, n_replicas:] |= (rank >= 0)[:, :, None] & (content & ~coded)[:, None, :]
    if causal:
        near &= np.tri(rank.shape[1], dtype=bool)
    far = None
    if sends:
        receiver, sender = rank[:, :, None], owner[:, None, :]
        far = (sender < receiver if causal else sender != receiver) & (sender >= 0) & (receiver >= 0)
        far &= coded[:, None, :]
    masks = [None if mask is None else torch.from_numpy(mask[:, None]).to(device) for mask in (near, far)]
    assert masks[0] is not None
    received = None if missing is None else torch.from_numpy(~missing).to(device)
    alike = causal and not n_class and missing is None and len(owner) == 1 and bool((owner >= 0).all())
    ends = [0, *np.cumsum(counts[0])] if alike else [0]
    runs = tuple((int(a), int(b)) for a, b in pairwise(ends) if a < b)
    return View(
        size, n_replicas, torch.from_numpy(rank).to(device), masks[0], masks[1], received, runs, sinks if sends else 0
    )
