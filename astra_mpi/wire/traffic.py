"""Bytes of the exchanges of one forward pass, counted in three ways (docs/explanation/network.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from astra_mpi.partition import Hears, hears


class Traffic:
    """Counts of one rank."""

    def __init__(self) -> None:
        self.contributed_bytes = 0  # what this rank put into the block exchanges
        self.port_bytes = 0  # what its port received of them
        self.paper_bytes = 0.0  # one rank's share of each
        self.other_bytes = 0  # class tokens and pooling

    def gathered(self, counts: Sequence[int], rank: int, forward: Hears = False) -> None:
        """An all-gather of `counts` (P,) bytes: every payload comes to every rank, or to those that hear its sender."""
        self.contributed_bytes += counts[rank]
        self.port_bytes += sum(n for sender, n in enumerate(counts) if hears(rank, sender, forward))
        self.paper_bytes += sum(counts) / len(counts)

    def reduced(self, n_bytes: int, size: int) -> None:
        """An all-reduce: a port receives what a ring moves, 2 (P - 1) / P of the payload."""
        self.contributed_bytes += n_bytes
        self.port_bytes += 2 * (size - 1) * n_bytes // size
        self.paper_bytes += n_bytes / size

    def counts(self) -> list[float]:
        return [self.contributed_bytes, self.port_bytes, self.paper_bytes, self.other_bytes]


def traffic_report(every: np.ndarray) -> dict[str, Any]:
    """Counts (4, P) of all ranks, as `Traffic.counts` gives them."""
    contributed, port, paper, other = every
    return {
        "contributed_bytes": [int(n) for n in contributed],
        "port_bytes": [int(n) for n in port],
        "paper_bytes": round(float(paper.max())),
        "other_bytes": int(other.sum()),
    }
