"""How much there is to do, in multiply-adds, and which rank does what. Integers and formulas only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.fit import SWEEPS
from astra_mpi.config import ModelConfig
from astra_mpi.models.block import Block

#: a fit's multiply-adds beside its searches: means and moves, which are bound by memory
MOVES = 1.3


@dataclass(frozen=True)
class Work:
    """What one block takes."""

    passing: float  # all sequences through it
    starting: float  # of one codebook: its first k-means, stages or groups
    refining: float  # of one codebook: all that follows
    n_books: int

    @property
    def fitting(self) -> float:
        """All codebooks of the block."""
        return self.n_books * (self.starting + self.refining)


def work_of(config: ModelConfig, block: Block, codec: CodecConfig, n_passing: int, n_samples: int) -> Work:
    """Of a block that n_passing tokens pass and n_samples are fitted to, as if nothing ended early."""
    weights = sum(weight.size for name, weight in block.w.items() if weight.ndim == 2)
    two = codec.site == "kv"
    search = n_samples * codec.codebook_size * (config.d_kv if two else config.d_model) * MOVES
    starting, refining = (n * search for n in codec.rule.fit_searches(codec))
    if codec.full_width and codec.encoder != "exact":
        refining += codec.n_codebooks * (SWEEPS + 2) * search / 2  # in a subspace of about half the width
    return Work(float(n_passing * weights), starting, refining, 2 if two else 1)


def shares(n_blocks: int, size: int, passing: float, fitting: float) -> list[range]:
    """Which blocks' codebooks each rank fits, so that all end at about the same time.

    A rank takes the sequences through all blocks up to its last one, so that nothing but codebooks travels: those of
    the first blocks have less to pass and more to fit.
    """
    low, high = 0.0, n_blocks * (passing + fitting)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _ends(middle, n_blocks, size, passing, fitting)[-1] == n_blocks else (middle, high)
    ends = [0, *_ends(high, n_blocks, size, passing, fitting)]
    return [range(first, stop) for first, stop in pairwise(ends)]


def _ends(time: float, n_blocks: int, size: int, passing: float, fitting: float) -> list[int]:
    """The block after each rank's last one, if each works for `time`."""
    ends, first = [], 0
    for _ in range(size):
        first = max(first, min(n_blocks, int((time + first * fitting) / (passing + fitting) + 1e-9)))
        ends.append(first)
    return ends
