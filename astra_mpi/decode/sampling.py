"""The next token of a sequence from its logits: the most likely one, or one drawn at random."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from astra_mpi.config import require

#: logits (n, V) of the sequences (n,) at this step -> their next token ids (n,)
Sample = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def greedy(logits: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
    """Logits (n, V) -> the most likely ids (n,) int32, the lowest on a tie."""
    return logits.argmax(axis=1).astype(np.int32)


@dataclass(frozen=True)
class Sampler:
    """A pure function of its arguments: which rank calls it, and with which other sequences, does not matter.

    A sequence's draw depends on the seed, its number in the whole input and the step alone.
    """

    temperature: float = 0.0  # 0: the most likely token
    top_k: int | None = None  # keep so many of the most likely tokens, and those as likely as the last of them
    top_p: float | None = None  # then keep the most likely ones that together have at least this probability
    seed: int = 0
    numbers: tuple[int, ...] | None = None  # of the batch's sequences in the whole input; None: 0, 1, ..

    def __post_init__(self) -> None:
        require(
            0 <= self.temperature < np.inf,
            f"temperature = {self.temperature:g}: give 0 for the most likely token, or a number above it",
        )
        require(self.top_k is None or self.top_k >= 1, f"top_k = {self.top_k}: at least 1")
        require(self.top_p is None or 0 < self.top_p <= 1, f"top_p = {self.top_p}: above 0 and at most 1")
        drawn = self.temperature > 0 or (self.top_k is None and self.top_p is None)
        require(drawn, "top_k and top_p need a temperature above 0, such as 1; at 0 the most likely token is taken")

    def __call__(self, logits: np.ndarray, sequences: np.ndarray, step: int) -> np.ndarray:
        """Logits (n, V) of these sequences (n,) of the batch, tokens generated so far -> ids (n,) int32."""
        if self.temperature == 0:
            return greedy(logits, sequences, step)
        shares = self.probabilities(logits)
        numbers = [int(i) if self.numbers is None else self.numbers[i] for i in sequences]
        draws = [uniform(self.seed, number, step) for number in numbers]
        return np.array([_pick(*pair) for pair in zip(shares, draws, strict=True)], np.int32)

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Logits (n, V) -> what is drawn from, (n, V) float64: 0 where a token is not kept."""
        scaled = logits.astype(np.float64) / self.temperature
        if self.top_k is not None and self.top_k < scaled.shape[1]:
            least = -np.partition(-scaled, self.top_k - 1, axis=1)[:, self.top_k - 1]
            scaled[scaled < least[:, None]] = -np.inf
        shares = np.exp(scaled - scaled.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        if self.top_p is None or self.top_p == 1:
            return shares
        order = np.argsort(-shares, axis=1, kind="stable")
        falling = np.take_along_axis(shares, order, axis=1)
        falling[falling.cumsum(axis=1) - falling >= self.top_p] = 0  # those before them are enough
        np.put_along_axis(shares, order, falling, axis=1)
        return shares / shares.sum(axis=1, keepdims=True)


def uniform(seed: int, sequence: int, step: int) -> float:
    """The number in [0, 1) of this sequence at this step: Philox, keyed and counted, so that no state is carried."""
    key = np.array([seed % 2**64, sequence], np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, step])).random())


def _pick(shares: np.ndarray, draw: float) -> int:
    """The token at which the sum of probabilities (V,) passes `draw`."""
    sums = shares.cumsum()
    return int(np.searchsorted(sums, draw * sums[-1], side="right"))
