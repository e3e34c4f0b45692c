"""Codebooks from activations, without training: run the model, keep what its blocks would send, and fit.

All sequences go through one block, its codebooks are fitted, and they go on to the next: one block's activations are
in memory at a time, not those of all.
"""

from astra_mpi.calibrate.fitting import fit_codec
from astra_mpi.calibrate.passes import activations
from astra_mpi.calibrate.tokens import FEW_TOKENS_PER_ENTRY, TOKENS_PER_ENTRY, shared, shuffled_batches, too_few

__all__ = [
    "FEW_TOKENS_PER_ENTRY",
    "TOKENS_PER_ENTRY",
    "activations",
    "fit_codec",
    "shared",
    "shuffled_batches",
    "too_few",
]
