"""Stages where they matter: per block, and for keys and values apart, by what they change in the model's own answer.

Residual codes are embedded: the first m stages are a codec of m. So one codec of many stages shows what each number of
them would do. One codebook is cut to a few stages, while everything else is seen exactly (predicted codes: with all
stages), and the answer is compared with the exact one. For other numbers of stages, the change follows the vectors'
error as a power of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from mpi4py import MPI

from astra_mpi.calibrate.emulated import AsCodes, Change, Emulated
from astra_mpi.calibrate.tokens import Batches
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import MAX_STAGES, CodecConfig, Counts
from astra_mpi.codec.fit import energy
from astra_mpi.config import require
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile

#: slices that sequences are cut into, and tokens that pass at a time
SLICES, TOKENS = 4, 512
#: numbers of stages that are measured
MEASURED = (0, 2)
#: of the samples, those that the stages are fitted to which the measurement is of
SHARE = 4
#: times the mean number of stages that a block may have
MOST_OVER_MEAN = 3


def most_stages(config: CodecConfig, bits: int, n_layers: int) -> int:
    """Stages of the codec that `allotted` starts from, for `bits` per token and block on average. InputError where
    they are less than a stage of all blocks together, or more than all stages that there may be."""
    require(config.bits > 0, f"--bits {bits}: entries of {config.codebook_size} have none; use two or more")
    n_sending, most = n_layers - int(config.predicts), config.bits * config.n_books * MAX_STAGES
    least = max(1, -(-config.bits // max(n_sending, 1)))  # one stage in one block
    require(least <= bits <= most, f"--bits {bits}: with codes of {config.bits} bits give {least} to {most}")
    mean = bits / (config.bits * config.n_books)
    return min(MAX_STAGES, max(MEASURED[-1] + 1, int(np.ceil(MOST_OVER_MEAN * mean))))


def allotted(
    file: ModelFile, codec: Codec, batches: Batches, bits: int, progress: Callable[[float, float], None]
) -> Counts:
    """Stages per block and codebook with `bits` per token on average of the blocks that send. For one process.

    codec: of as many stages as a block may have, embedded. `progress(done, total)` counts passes.
    """
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    inputs, mask = next(iter(batches))
    keep = max(1, TOKENS // max(1, inputs.shape[1])) if inputs.ndim == 2 else len(inputs)
    emulated = Emulated(
        model, inputs[:keep], None if mask is None else mask[:keep], codec.config.site, SLICES, codec.config.sinks
    )
    measured = _Measured(emulated, codec, progress)
    changes = measured.changes()
    n_sending = len(codec.blocks) - int(codec.config.predicts)
    stages = spent(changes, bits * n_sending // codec.config.bits)
    return as_counts(stages.reshape(-1, codec.config.n_books))


def as_counts(rows: np.ndarray) -> Counts:
    """Stages (blocks, codebooks) as a config has them."""
    return tuple(row[0] if len(set(row)) == 1 else tuple(row) for row in rows.tolist())


def as_rows(counts: Counts, config: CodecConfig) -> np.ndarray:
    """The same again, (blocks, codebooks) int64."""
    assert isinstance(counts, tuple)
    rows = [one if isinstance(one, tuple) else (one,) * config.n_books for one in counts]
    return np.array(rows, np.int64)


def spent(changes: np.ndarray, total: int) -> np.ndarray:
    """changes (codebooks, 1 + most) of the answer with each number of stages -> stages of each, at most `total` in all.

    One after another where a stage, or several together, gain most per stage; none where nothing is gained.
    """
    n, most = changes.shape[0], changes.shape[1] - 1
    stages, left = np.zeros(n, np.int64), total
    while left > 0:
        best, gain = (-1, 0), 0.0
        for c in range(n):
            ahead = np.arange(1, min(most - stages[c], left) + 1)
            if len(ahead):
                slopes = (changes[c, stages[c]] - changes[c, stages[c] + ahead]) / ahead
                k = int(slopes.argmax())
                if slopes[k] > gain:
                    best, gain = (c, int(ahead[k])), float(slopes[k])
        if best[0] < 0:
            break
        stages[best[0]] += best[1]
        left -= best[1]
    return stages


@dataclass
class _Measured:
    emulated: Emulated
    codec: Codec
    progress: Callable[[float, float], None]

    def changes(self) -> np.ndarray:
        """(blocks * codebooks, 1 + most): of the answer, with each number of stages in one codebook."""
        model, n_books = self.emulated.model, self.codec.config.n_books
        predicts = self.codec.config.predicts
        follow = AsCodes(self.codec.blocks, predicts, model.backend.kernels)
        rows, before, inputs = [self.emulated.rows], [], []

        def look(i: int, x: np.ndarray) -> np.ndarray:
            inputs.append(x)
            before.append(follow.state)
            return follow(i, x) if predicts else x

        exact = self.emulated.passed(lambda i, x: x, self.emulated.rows)
        for i in range(len(model.blocks)):
            rows.append(self.emulated.passed(look, rows[-1], i, i + 1))
        change = Change(self.emulated, exact)
        found, done = [], 0.0
        total = sum(len(model.blocks) - i for i in range(int(predicts), len(model.blocks)))
        total *= n_books * len(MEASURED)
        for i in range(len(model.blocks)):
            for part in range(n_books):
                if predicts and i == 0:
                    found.append(np.zeros(1 + self._most))
                    continue
                known = {}
                for m in MEASURED:
                    cut = self._cut(i, part, m, inputs[i])
                    see = self._with_cut(i, part, cut, before[i])
                    known[m] = change(self.emulated.passed(see, rows[i], i))
                    done += len(model.blocks) - i
                    self.progress(done, total)
                found.append(between(known, self._errors(i, part, inputs[i], before[i])))
        return np.array(found)

    @property
    def _most(self) -> int:
        return max(book.n_codes for block in self.codec.blocks for book in block.codebooks)

    def _quantised(self, i: int, part: int, x: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """What a codebook's codes are of, (n, width)."""
        block = self.codec.blocks[i]
        if block.predictor is not None:
            assert state is not None
            x = x - block.predictor.predict(state, self.emulated.model.backend.kernels)
        return np.ascontiguousarray(np.split(x, len(block.codebooks), axis=1)[part])

    def _cut(self, i: int, part: int, m: int, x: np.ndarray) -> Codebook:
        """The codebook with its first m stages; with none, the mean of the tokens at hand or, predicted, nothing."""
        book = self.codec.blocks[i].codebooks[part]
        if m:
            return replace(book, entries=book.entries[:m])
        mean = np.split(x.mean(axis=0, dtype=np.float64), len(self.codec.blocks[i].codebooks))[part]
        return Codebook(book.kind, (mean if not self.codec.config.predicts else 0 * mean)[None, None], book.width)

    def _with_cut(self, i: int, part: int, cut: Codebook, state: np.ndarray | None) -> Any:
        """A `See` in which block i has the cut codebook."""
        kernels, block = self.emulated.model.backend.kernels, self.codec.blocks[i]
        if self.codec.config.predicts:
            blocks = list(self.codec.blocks)
            blocks[i] = block.with_books([cut])
            follow = AsCodes(blocks, True, kernels)
            follow.state = None if state is None else state.copy()
            return follow

        def see(j: int, x: np.ndarray) -> np.ndarray:
            if j == i:
                columns = slice(part * cut.width, (part + 1) * cut.width)
                x[:, columns] = cut.decode(cut.encode(np.ascontiguousarray(x[:, columns]), kernels), kernels)
            return x

        return see

    def _errors(self, i: int, part: int, x: np.ndarray, state: np.ndarray | None) -> np.ndarray:
        """(1 + most,) squared errors of what is quantised, with each number of stages."""
        kernels = self.emulated.model.backend.kernels
        quantised = self._quantised(i, part, x, state)
        books = [self._cut(i, part, m, x) for m in range(1 + self._most)]
        quantised = np.delete(quantised, self.emulated.slices.exact, axis=0)
        rests = (quantised - book.decode(book.encode(quantised, kernels), kernels) for book in books)
        basis = self.codec.blocks[i].codebooks[part].basis  # the metric, where there is one
        return np.array([energy(rest if basis is None else rest @ basis) for rest in rests])


def between(known: dict[int, float], errors: np.ndarray) -> np.ndarray:
    """Changes measured at two numbers of stages, at all of them: a power of the squared error.

    errors (1 + most,): of the vectors. The changes never grow with stages.
    """
    tiny = np.finfo(np.float64).tiny
    (a, first), (b, second) = sorted(known.items())
    logs = np.log(np.maximum(np.minimum.accumulate(errors), tiny))
    fall = np.log(max(first, tiny)) - np.log(max(min(first, second), tiny))
    power = np.clip(fall / max(logs[a] - logs[b], tiny), 0.5, 2.0)  # of a quadratic form it is 1
    return max(first, tiny) * np.exp(power * (logs - logs[a]))
