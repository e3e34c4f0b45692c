"""What a sliding window leaves to be sent and seen, for tokens 0 .. T - 1 cut over ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from astra_mpi.config import ModelConfig


@dataclass(frozen=True)
class SeenThrough:
    """Per rank: tokens that it sends because another rank sees them, those of others that it sees, whom it hears."""

    sent: tuple[int, ...]
    seen: tuple[int, ...]
    heard: tuple[tuple[int, ...], ...]


def seen_through(counts: Sequence[int], window: int, causal: bool, sinks: int = 0) -> SeenThrough:
    """A token sees those nearer than `window`, causal ones on one side only; counts (P,). The first `sinks` tokens are
    not sent."""
    size, starts = len(counts), [sum(counts[:r]) for r in range(len(counts) + 1)]
    spans = [range(starts[r], starts[r + 1]) for r in range(size)]
    first, last, seen, heard = [0] * size, [0] * size, [0] * size, []  # of a slice, seen by ranks before and behind it
    for receiver, mine in enumerate(spans):
        senders = []
        for sender, theirs in enumerate(spans):
            if sender == receiver or not mine or (causal and sender > receiver):
                continue
            low, high = max(theirs.start, mine.start - window + 1, sinks), min(theirs.stop, mine.stop + window - 1)
            if low < high:
                senders.append(sender)
                seen[receiver] += high - low
                if receiver > sender:
                    last[sender] = max(last[sender], theirs.stop - low)
                else:
                    first[sender] = max(first[sender], high - theirs.start)
        heard.append(tuple(senders))
    sent = tuple(min(a + b, n) for a, b, n in zip(first, last, counts, strict=True))
    return SeenThrough(sent, tuple(seen), tuple(heard))


def own_seen(n: int, window: int, causal: bool) -> float:
    """Of a rank's n tokens, those that one of them sees on average."""
    if not window or n <= 1 or window >= n:
        return n / 2 if causal else float(n)
    one_side = window - (window - 1) * window / (2 * n)  # itself, and what lies before it
    return one_side if causal else 2 * one_side - 1


def window_shares(config: ModelConfig) -> dict[int, float]:
    """Windows (0: none) and the share of the blocks that has each."""
    windows = config.windows or (0,)
    return {window: windows.count(window) / len(windows) for window in windows}


def within(window: int, own: float, far: int) -> tuple[float, int]:
    """Of the `own` tokens before a new one, and of the `far` ones before these, those in its window."""
    if not window:
        return own, far
    return min(own, window), int(min(far, max(window - 1 - own, 0)))
