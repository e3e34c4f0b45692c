"""Drafts that tests know of, of which some are right and some wrong, and all are checked."""

import numpy as np

from astra_mpi.decode.drafts import N_GRADES, Guess
from astra_mpi.decode.drafts.pace import Pace


def check_all_guesses(monkeypatch):
    """All guesses are checked that fit into a pass, whatever they promise."""

    def worth(self, chances, rows, most):
        counts = []
        for of_one in chances:
            counts.append(min(len(of_one), most - sum(counts)))
        return counts

    monkeypatch.setattr(Pace, "worth", worth)
    monkeypatch.setattr(Pace, "wanted", lambda self, rate, rows, most: most)


class Half:
    """Knows what comes, and says so of some tokens only; the others are wrong."""

    name, free, expected = "half", True, (0.5,) * N_GRADES

    def __init__(self, known, n_tokens):
        self.known, self.n_tokens = known, n_tokens

    def open(self, sample, prompts, room):
        self.counts = dict.fromkeys(prompts, 0)
        return self

    def learn(self, sequence, ids):
        self.counts[sequence] += len(ids)
        return []

    def guess(self, sequences, most):
        return [self._guess(s, self.counts[s], n) for s, n in zip(sequences, most, strict=True)]

    def _guess(self, s, begin, n):
        right = self.known[s][begin : begin + n]
        wrong = np.random.default_rng([s, begin]).random(len(right)) < 0.3
        return Guess([int((i + w) % self.n_tokens) for i, w in zip(right, wrong, strict=True)], [0] * len(right))
