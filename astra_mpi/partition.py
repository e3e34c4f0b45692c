"""The cut: which tokens a rank owns. Integers only, no communication."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require

#: relative speeds of the ranks, "causal" (equal ones, see `finish_together`), or None for an even cut
Cut = Sequence[float] | str | None
#: who hears whom: all of all, all of those before them (True), or per rank the ranks that it hears
Hears = bool | tuple[tuple[int, ...], ...]


def hears(receiver: int, sender: int, forward: Hears) -> bool:
    """Whether a rank gets the message of another one."""
    if receiver == sender:
        return False
    return sender < receiver or not forward if isinstance(forward, bool) else sender in forward[receiver]


@dataclass(frozen=True)
class TokenCost:
    """What a token costs its rank under causal attention, in any one unit of time."""

    own: float  # all that does not depend on other tokens
    score: float  # attending to one token
    far: float = 0.0  # making the key and value of one token of another rank
    send: float = 0.0  # making a token's message, which the last rank does not
    sinks: int = 0  # first tokens, that ranks behind compute themselves and nobody sends


def even(n_tokens: int, size: int) -> np.ndarray:
    """Counts (size,) that differ by at most one, the larger first."""
    return n_tokens // size + (np.arange(size) < n_tokens % size).astype(np.int64)


def weighted(n_tokens: int, weights: Sequence[float]) -> np.ndarray:
    """Counts (size,) in proportion to `weights`: largest remainders, lowest rank first on a tie."""
    w = np.asarray(weights, dtype=np.float64)
    require(
        w.ndim == 1 and w.size > 0 and bool(np.isfinite(w).all() and (w >= 0).all()) and w.sum() > 0,
        f"weights {weights} must be numbers >= 0, not all 0",
    )
    share = n_tokens * (w / w.sum())
    counts = np.floor(share).astype(np.int64)
    order = np.argsort(counts - share, kind="stable")
    counts[order[: n_tokens - counts.sum()]] += 1
    return counts


def split_blocks(n_blocks: int, speeds: Sequence[float], most: Sequence[int] | None = None) -> list[int] | None:
    """Blocks of each of consecutive stages of these relative speeds, none more than it has room for (`most`), so that
    the slowest is done soonest; None: there is no room for all. Stages may have no blocks."""
    counts = [0] * len(speeds)
    for _ in range(n_blocks):
        open_ = [s for s in range(len(speeds)) if most is None or counts[s] < most[s]]
        if not open_:
            return None
        counts[min(open_, key=lambda s: (counts[s] + 1) / speeds[s])] += 1
    return counts


def finish_together(n_tokens: int, speeds: Sequence[float], cost: TokenCost) -> np.ndarray:
    """Counts (size,) with which ranks of these relative speeds need equally long for a causal model.

    A rank with tokens a .. a + n - 1 needs (n own + n send + a far + score sum(i + 1 for these i)) / speed; the last
    rank sends nothing. Of its far tokens the sinks cost it `own` each, and of its own tokens they are not sent. The
    common time is found by bisection: what it lets the ranks own grows with it.
    """
    weighted(n_tokens, speeds)  # checks them
    token = cost.own + cost.send + cost.far + cost.score * n_tokens
    low, high = 0.0, (n_tokens * token + cost.sinks * cost.own) / max(speeds) + 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _ends(middle, speeds, cost)[-1] >= n_tokens else (middle, high)
    ends = np.rint(np.minimum(_ends(high, speeds, cost), n_tokens)).astype(np.int64)
    return np.diff(ends, prepend=0)


def _ends(time: float, speeds: Sequence[float], cost: TokenCost) -> np.ndarray:
    """Tokens (size,) that the ranks up to each one own together if each works for `time`."""
    ends = np.zeros(len(speeds) + 1)
    for rank, speed in enumerate(speeds):
        start, send = ends[rank], 0.0 if rank == len(speeds) - 1 else cost.send
        replicas = min(start, cost.sinks)
        unsent = cost.sinks - replicas
        budget = max(time * speed - (start - replicas) * cost.far - replicas * cost.own, 0.0)
        n_own = _affordable(budget, cost.own + cost.score * (start + 0.5), cost.score)
        if n_own > unsent:
            n_own = _affordable(budget + unsent * send, cost.own + send + cost.score * (start + 0.5), cost.score)
        ends[rank + 1] = start + n_own
    return ends[1:]


def _affordable(budget: float, linear: float, score: float) -> float:
    """n with n linear + n^2 score / 2 = budget; written so that a score of 0 is an ordinary case."""
    return float(2 * budget / (linear + np.sqrt(linear**2 + 2 * score * budget)))


def displs(counts: np.ndarray) -> np.ndarray:
    """Start of each part, and the end of the last: (n + 1,)."""
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def ranges(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The integers starts[i] .. starts[i] + counts[i] - 1, one range after another."""
    first = displs(counts)
    return np.arange(first[-1]) + np.repeat(starts - first[:-1], counts)


def rotated(n_sequences: int, size: int) -> np.ndarray:
    """Places (B, size) that give the last slices of successive sequences to successive ranks, from the last one on."""
    return (np.arange(size) + np.arange(n_sequences)[:, None]) % size


def cut(lengths: np.ndarray, size: int, weights: Cut = None, cost: TokenCost | None = None) -> np.ndarray:
    """Counts (B, size): every sequence is cut by its own length, evenly or by `weights`.

    With the cost of a causal model's tokens, weights are speeds and ranks finish together; else counts are in
    proportion to them.
    """
    if isinstance(weights, str):
        require(weights == "causal" and cost is not None, f"weights '{weights}' does not fit here; give numbers")
        weights = [1.0] * size
    else:
        n = size if weights is None else len(weights)
        require(n == size, f"{n} weights for {size} ranks; give one each")
    distinct, which = np.unique(lengths, return_inverse=True)
    parts = [_cut_one(int(t), size, weights, cost) for t in distinct]
    return np.array(parts, dtype=np.int64).reshape(len(parts), size)[which]


def _cut_one(n_tokens: int, size: int, weights: Sequence[float] | None, cost: TokenCost | None) -> np.ndarray:
    if weights is None:
        return even(n_tokens, size)
    return weighted(n_tokens, weights) if cost is None else finish_together(n_tokens, weights, cost)
