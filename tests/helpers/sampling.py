"""Samples of new tokens that tests can look at."""

import numpy as np


class Recorder:
    """A `sample` that draws from the logits, the same way wherever it runs, and keeps them. noise: 1 draws as likely as
    the model says, less nearer to its first choice."""

    def __init__(self, noise=1.0):
        self.logits, self.noise = {}, noise

    def __call__(self, logits, sequences, step):
        self.logits |= {(int(s), step): row.copy() for s, row in zip(sequences, logits, strict=True)}
        draws = [np.random.default_rng([7, int(s), step]).gumbel(size=logits.shape[1]) for s in sequences]
        return (logits + self.noise * np.array(draws)).argmax(axis=1)

    def gathered(self, comm):
        """{(sequence, step): logits} of all ranks; a sequence's step is sampled by one rank only."""
        parts = comm.allgather(self.logits)
        every = {key: row for part in parts for key, row in part.items()}
        assert len(every) == sum(len(part) for part in parts)
        return every
