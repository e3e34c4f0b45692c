"""Stages where they matter: for groups of blocks, and for keys and values apart, by what they change in the model's own
answer.

Residual codes are embedded: the first m stages are a codec of m. So a codec of as many stages everywhere as there are
bits for shows what fewer of them in some blocks change: half of a group's stages are taken away, and the answer is
compared with that of all. For other numbers of stages the change follows the squared error of the group's vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from mpi4py import MPI

from astra_mpi.calibrate.emulated import AsCodes, Change, Emulated
from astra_mpi.calibrate.tokens import Batches
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import Codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import MAX_STAGES, CodecConfig, Counts
from astra_mpi.codec.fit import energy
from astra_mpi.config import require
from astra_mpi.device.backend import get_backend
from astra_mpi.engine import Model
from astra_mpi.files.modelfile import ModelFile

#: slices that sequences are cut into, and tokens that are measured on
SLICES, TOKENS = 4, 4096
#: blocks that send, side by side, that have stages alike, are in so many groups at most
GROUPS = 8
#: of the samples, those that the stages are fitted to which the measurement is of
SHARE = 4
#: times the mean number of stages that a block may have
MOST_OVER_MEAN = 3
#: of the median over groups, the least that one is taken to change: what is less is noise
LEAST = 0.6


def mean_stages(config: CodecConfig, bits: int, n_layers: int) -> int:
    """Stages of the codec that `allotted` starts from, for `bits` per token and block on average. InputError where
    they are less than a stage of all blocks together, or more than all stages that there may be."""
    require(config.bits > 0, f"--bits {bits}: entries of {config.codebook_size} have none; use two or more")
    n_sending, most = n_layers - int(config.predicts), config.bits * config.n_books * MAX_STAGES
    least = max(1, -(-config.bits // max(n_sending, 1)))  # one stage in one block
    require(least <= bits <= most, f"--bits {bits}: with codes of {config.bits} bits give {least} to {most}")
    return min(MAX_STAGES, max(2, int(np.ceil(bits / (config.bits * config.n_books)))))


def allotted(
    file: ModelFile, codec: Codec, batches: Batches, bits: int, progress: Callable[[float, float], None]
) -> Counts:
    """Stages per block and codebook with `bits` per token on average of the blocks that send. For one process.

    batches: the first ones, of TOKENS tokens together, are measured on. codec: of `mean_stages`, embedded.
    `progress(done, total)` is called after every pass through the model.
    """
    model = Model(file, MPI.COMM_SELF, get_backend("numpy", MPI.COMM_SELF))
    groups = grouped(len(codec.blocks), int(codec.config.predicts))
    n_books, n_stages = codec.config.n_books, most_codes(codec)
    lost, n_tokens = np.zeros(len(groups) * n_books), 0
    errors = np.zeros((len(lost), 1 + n_stages))
    for inputs, mask in batches:
        emulated = Emulated(model, inputs, mask, codec.config.site, SLICES, codec.config.sinks)
        some = emulated.n_tokens
        done = min(1.0, n_tokens / TOKENS), min(1.0, (n_tokens + some) / TOKENS)
        measured = _Measured(emulated, codec, groups, partial(_within, progress, *done))
        for total, mine in zip((lost, errors), measured.losses(), strict=True):
            total += some * mine
        n_tokens += some
        if n_tokens >= TOKENS:
            break
    lost /= n_tokens
    errors /= n_tokens
    least = LEAST * max(float(np.median(lost)), 0.0)
    most = min(MAX_STAGES, MOST_OVER_MEAN * n_stages)
    changes = np.array([followed(max(a, least), b, n_stages // 2, most) for a, b in zip(lost, errors, strict=True)])
    costs = np.repeat([len(group) for group in groups], n_books)
    n_sending = len(codec.blocks) - int(codec.config.predicts)
    stages = spent(changes, costs, bits * n_sending // codec.config.bits).reshape(-1, n_books)
    rows = np.zeros((len(codec.blocks), n_books), np.int64)
    for group, row in zip(groups, stages, strict=True):
        rows[group] = row
    return as_counts(rows)


def most_codes(codec: Codec) -> int:
    """Codes of a vector, the most of any codebook."""
    return max(book.n_codes for block in codec.blocks for book in block.codebooks)


def grouped(n_blocks: int, first: int) -> list[np.ndarray]:
    """Blocks from `first` on, in groups of neighbours whose sizes differ by one at most."""
    return np.array_split(np.arange(first, n_blocks), min(GROUPS, n_blocks - first))


def as_counts(rows: np.ndarray) -> Counts:
    """Stages (blocks, codebooks) as a config has them."""
    return tuple(row[0] if len(set(row)) == 1 else tuple(row) for row in rows.tolist())


def as_rows(counts: Counts, config: CodecConfig) -> np.ndarray:
    """The same again, (blocks, codebooks) int64."""
    assert isinstance(counts, tuple)
    rows = [one if isinstance(one, tuple) else (one,) * config.n_books for one in counts]
    return np.array(rows, np.int64)


def spent(changes: np.ndarray, costs: np.ndarray, total: int) -> np.ndarray:
    """changes (n, 1 + most) of the answer with each number of stages, of which one costs costs (n,) -> stages (n,)
    that cost `total` at most.

    One after another where a stage, or several together, gain most for what they cost; none where nothing is gained.
    """
    n, most = changes.shape[0], changes.shape[1] - 1
    stages, left = np.zeros(n, np.int64), total
    while left > 0:
        best, gain = (-1, 0), 0.0
        for c in range(n):
            ahead = np.arange(1, min(most - stages[c], left // costs[c]) + 1)
            if len(ahead):
                slopes = (changes[c, stages[c]] - changes[c, stages[c] + ahead]) / (ahead * costs[c])
                k = int(slopes.argmax())
                if slopes[k] > gain:
                    best, gain = (c, int(ahead[k])), float(slopes[k])
        if best[0] < 0:
            break
        stages[best[0]] += best[1]
        left -= best[1] * int(costs[best[0]])
    return stages


def _within(progress: Callable[[float, float], None], first: float, last: float, done: float) -> None:
    progress(first + (last - first) * done, 1)


@dataclass
class _Measured:
    emulated: Emulated
    codec: Codec
    groups: list[np.ndarray]
    progress: Callable[[float], None]  # of what is to be done

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Per group and codebook what the answer changes with half of its stages (n,); and the squared errors with
        0, 1 .. M stages, over that with none (n, 1 + M)."""
        emulated, n_books = self.emulated, self.codec.config.n_books
        n_stages = most_codes(self.codec)
        kept = n_stages // 2
        total = 2 + len(self.groups) * n_books
        change = Change(emulated, emulated.passed(lambda i, x: x, emulated.rows))
        self.progress(1 / total)
        errors, means = np.empty((len(self.codec.blocks), n_books, 1 + n_stages)), {}
        follow = AsCodes(self.codec.blocks, self.codec.config, emulated)

        def look(i: int, x: np.ndarray) -> np.ndarray:
            before = follow.state
            seen = follow(i, x)
            errors[i] = self._errors(i, x, before, follow.inputs)
            means[i] = x.mean(axis=0, dtype=np.float64)
            return seen

        whole = change(emulated.passed(look, emulated.rows))
        self.progress(2 / total)
        lost, fall = [], []
        for g, group in enumerate(self.groups):
            for part in range(n_books):
                blocks = list(self.codec.blocks)
                for i in group:
                    blocks[i] = self._cut(i, part, kept, means[i])
                see = AsCodes(blocks, self.codec.config, emulated)
                lost.append(change(emulated.passed(see, emulated.rows)) - whole)
                fall.append(errors[group, part].mean(axis=0))
                self.progress((3 + g * n_books + part) / total)
        return np.array(lost), np.array(fall)

    def _cut(self, i: int, part: int, m: int, mean: np.ndarray) -> BlockCodec:
        """Block i with the first m stages of a codebook; with none, the `mean` of the tokens at hand or, predicted,
        nothing."""
        block = self.codec.blocks[i]
        books = list(block.codebooks)
        book = books[part]
        if m:
            books[part] = replace(book, entries=book.entries[:m])
        else:
            own = np.split(mean * (not self.codec.config.predicts), len(books))[part]
            books[part] = Codebook(book.kind, own[None, None], book.width)
        return block.with_books(books)

    def _errors(self, i: int, x: np.ndarray, before: np.ndarray | None, inputs: np.ndarray | None) -> np.ndarray:
        """(codebooks, 1 + stages): squared errors of block i's tokens (n, width) with each number of stages, over that
        with none. before: the states before it, where codes are predicted, and inputs, which these are predicted from.
        """
        block, kernels = self.codec.blocks[i], self.emulated.model.backend.kernels
        if self.codec.config.predicts and before is None:
            return np.ones((1, 1 + most_codes(self.codec)))
        if block.predictor is not None:
            assert before is not None
            x = x - block.predictor.predict(before, inputs, kernels)
        x = np.delete(x, self.emulated.slices.exact, axis=0)
        found = []
        for book, own in zip(block.codebooks, np.split(x, len(block.codebooks), axis=1), strict=True):
            own = np.ascontiguousarray(own)
            codes = book.encode(own, kernels)
            rests = [own if self.codec.config.predicts else own - own.mean(axis=0)]
            for m in range(1, 1 + book.n_codes):
                first = replace(book, entries=book.entries[:m])
                rests.append(own - first.decode(np.ascontiguousarray(codes[:, :m]), kernels))
            energies = np.array([energy(rest if book.basis is None else rest @ book.basis) for rest in rests])
            found.append(energies / max(energies[0], np.finfo(np.float64).tiny))
        return np.array(found)


def followed(lost: float, errors: np.ndarray, kept: int, most: int) -> np.ndarray:
    """What the answer changes with 0 .. most stages (1 + most,), up to a constant: in proportion to the squared error.

    lost: by keeping only `kept` of all stages; errors (1 + M,) with 0 .. M stages, over that with none. Those of more
    stages fall as the last half of them does. Never grows with stages.
    """
    tiny = np.finfo(np.float64).tiny
    errors = np.minimum.accumulate(np.maximum(errors, tiny))
    n = len(errors) - 1
    fall = min((errors[n] / errors[kept]) ** (1 / (n - kept)), 1 - 1e-6)  # of each further stage
    errors = np.concatenate([errors, errors[n] * fall ** np.arange(1, most - n + 1)])
    return max(lost, tiny) * errors / max(errors[kept] - errors[n], tiny)
