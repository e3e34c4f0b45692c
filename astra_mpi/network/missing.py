"""Messages that are lost on an emulated network or come after the deadline of their exchange.

The unit is one message: a sender's slice of the batch, for one receiver, in one block.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

from astra_mpi.config import require
from astra_mpi.partition import Hears, hears

Treatment = Literal["auto", "drop", "mean", "predict"]
TREATMENTS: tuple[str, ...] = get_args(Treatment)


class Missing:
    """What one rank misses in a forward pass, and what it does about it."""

    def __init__(self, treatment: str = "auto", deadline_s: float | None = None, seed: int = 0) -> None:
        """treatment: "drop" leaves missing codes out of the softmax, "mean" lets the mean code stand for them, and
        "predict" what was predicted of the tokens; "auto": the last where codes are of what predictions miss, else
        "drop".

        deadline_s: how long a rank waits at most at one exchange, once its own work is done; None: for all.
        """
        require(treatment in TREATMENTS, f"missing = '{treatment}' is unknown; use one of {', '.join(TREATMENTS)}")
        self.asked, self.deadline_s, self.seed = treatment, deadline_s, seed
        self.treatment = "drop" if treatment == "auto" else treatment
        self.reset(0, 0.0, 0, 1)

    def suit(self, predicts: bool) -> None:
        """Settle "auto" for codes of what a prediction misses, or of the tokens themselves. InputError on a treatment
        for the others."""
        if self.asked == "auto":
            self.treatment = "predict" if predicts else "drop"
        fits = (self.treatment == "predict") == predicts
        own, others = ("a prediction misses", "predict") if predicts else ("is sent itself", "drop or mean")
        require(fits, f"missing = '{self.treatment}': these codebooks are of what {own}; use {others}")

    def reset(self, key: int, loss: float, rank: int, size: int) -> None:
        """Before a forward pass of the batch `key` on a network that loses the share `loss` of its messages."""
        self.loss, self.rank, self.size, self._key = loss, rank, size, key
        self.n_messages = self.n_lost = self.n_late = 0

    def counted(self) -> list[float]:
        """Messages that could be missed on this rank, those lost, those late."""
        return [self.n_messages, self.n_lost, self.n_late]

    def report(self, every: np.ndarray) -> dict[str, Any] | None:
        """Counts (3, P) of all ranks -> their sums and the treatment; None where no message could be missed."""
        messages, lost, late = (int(n) for n in every.sum(axis=1))
        if messages == 0 or (self.loss == 0 and self.deadline_s is None):
            return None
        return {
            "treatment": self.treatment,
            "deadline_s": self.deadline_s,
            "seed": self.seed,
            "messages": messages,
            "lost": lost,
            "late": late,
        }

    def limit(self, now_s: float) -> float:
        """Until when a rank waits that begins to wait now."""
        return np.inf if self.deadline_s is None else now_s + self.deadline_s

    def lost(self, block: int) -> np.ndarray:
        """(P,) senders whose messages of this block do not reach this rank: the same ones whenever this is repeated."""
        draw = np.random.default_rng([self.seed, self._key, block, self.rank]).random(self.size)
        return (draw < self.loss) & (np.arange(self.size) != self.rank)

    def judge(
        self, block: int, arrivals_s: np.ndarray, limit_s: float, forward: Hears = False
    ) -> tuple[np.ndarray, float]:
        """Senders that are missed (P,), and when this rank goes on: with everything it hopes for, or at the limit.

        forward: only the messages of ranks before this one are hoped for.

        Without a deadline a loss is noticed at once: nothing is waited for that does not come.
        """
        hoped_for: np.ndarray = np.array([hears(self.rank, sender, forward) for sender in range(self.size)])
        lost = self.lost(block) & hoped_for
        late = ~lost & hoped_for & (arrivals_s > limit_s)
        self.n_messages += int(hoped_for.sum())
        self.n_lost += int(lost.sum())
        self.n_late += int(late.sum())
        missed = lost | late
        if limit_s < np.inf and missed.any():
            return missed, limit_s
        return missed, float(arrivals_s[~missed].max(initial=-np.inf))
