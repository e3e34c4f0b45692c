"""Maps from a token's last codes to what enters a block: for codes that come late, and for blocks that have none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from astra_mpi.calibrate.closed_loop import by_weight
from astra_mpi.calibrate.passes import Passes
from astra_mpi.codec.ahead import plain_metric
from astra_mpi.codec.block import BlockCodec
from astra_mpi.codec.codebook import no_codebook
from astra_mpi.codec.codec import Codec
from astra_mpi.codec.config import CodecConfig
from astra_mpi.codec.predictor import fit_predictor


def with_maps(
    passes: Passes,
    rows: Sequence[np.ndarray],
    codebooks: Sequence[BlockCodec],
    config: CodecConfig,
    rank: int | None,
    kernels: Any,
) -> Codec:
    """The codec with these codebooks, of site normed, and a map for each block but the first, which needs no codes.

    rows: of each batch of `passes`, before the first block. rank: of the maps; 0 and None: whole matrices, which cost
    nothing more once they are part of tables. Maps are from codes as they are, errors and all.
    """
    for batch, before in zip(passes.batches, rows, strict=True):
        batch.rows = before
    known, blocks = np.empty((0, 0), np.float32), [BlockCodec((no_codebook(config, passes.model.config.d_model),))]
    for i in range(len(codebooks)):
        (x,) = samples = passes.room()
        norms = np.empty((passes.n_tokens, 1), np.float32)
        for batch in passes.batches:
            batch.keep([norms], np.einsum("nd,nd->n", batch.rows, batch.rows)[:, None])
            passes.through(i, batch, samples)
        passes.leave(i)
        if not i:
            known = x
            continue
        drawn = by_weight(norms[:, 0])
        block = replace(
            codebooks[i], predictor=fit_predictor(known[drawn], x[drawn], rank or 0, plain_metric(x.shape[1]))
        )
        blocks.append(block)
        if block.bits_per_token:
            known = block.decode(block.encode(x, kernels), kernels)
    return Codec(config, tuple(blocks))
