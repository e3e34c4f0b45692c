"""Codes in every N-th block alone: fewer messages, and the bits that the others spare."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from astra_mpi.codec.config import CodecConfig
from astra_mpi.config import require


def in_every(config: CodecConfig, n: int, n_layers: int) -> CodecConfig:
    """Of a config whose blocks all have as many codes: those of blocks 1, 1 + n, .. share what all would have.

    InputError where blocks without codes could not follow from those before them, or the kind cannot have so many.
    """
    require(n >= 1, f"--every {n}: at least 1")
    count = config.rule.count
    each = getattr(config, count) if count in ("stages", "vector_bits") else None
    require(isinstance(each, int), f"--every {n}: for stages or bits that are alike in all blocks; give one of them")
    require(config.has_maps, f"--every {n}: blocks without codes need maps; add --predict linear or --predict next")
    coded = range(1, n_layers, n)
    least, more = divmod(each * (n_layers - 1), max(len(coded), 1))  # type: ignore[operator]
    counts = [0] * n_layers
    for k, i in enumerate(coded):
        counts[i] = least + (k < more)
    shared: dict[str, Any] = {count: tuple(counts)}
    return replace(config, **shared)
